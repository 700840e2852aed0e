package command

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/words"
)

// dayAndOffset is how times are printed: in local time, with what one needs to compare
// them with those of another machine.
const dayAndOffset = "2006-01-02 15:04:05 -07:00"

// printList prints the records that have changed last, the newest first, limit of them, or
// all if that is 0. rest is told how many more there are. There may be millions: no more
// than twice the limit are held.
func printList(out, rest io.Writer, answer io.Reader, asJSON bool, limit int) error {
	type entry struct {
		inspect.Record
		line string
	}
	var all []entry
	total := 0
	sort := func() {
		slices.SortStableFunc(all, func(a, b entry) int { return b.Changed.Compare(a.Changed) })
		if limit > 0 && len(all) > limit {
			all = all[:limit]
		}
	}
	broken := eachRecord(answer, func(r inspect.Record, line []byte) {
		total++
		e := entry{Record: r}
		if asJSON {
			e.line = string(line)
		}
		if all = append(all, e); limit > 0 && len(all) >= 2*limit+100 {
			sort()
		}
	})
	sort()
	table := "%-9s  %-12s  %-8s  %7s  %-26s  %s\n"
	if !asJSON && (broken == nil || total > 0) {
		fmt.Fprintf(out, table, "STATE", "ACCOUNT", "STATUS", "ATTEMPT", "CHANGED", "REF_ID")
	}
	for _, r := range all {
		if asJSON {
			fmt.Fprintf(out, "%s\n", r.line)
			continue
		}
		fmt.Fprintf(out, table, r.State, r.Account, statusOf(r.Record), attempts(r.Record), r.Changed.Local().Format(dayAndOffset), printable(r.RefID))
	}
	if more := total - len(all); more > 0 {
		fmt.Fprintf(rest, "%d more: --limit 0 for all, --state, --account and --since to select\n", more)
	}
	return broken
}

// eachRecord reads a list.
func eachRecord(answer io.Reader, visit func(r inspect.Record, line []byte)) error {
	lines := bufio.NewScanner(answer)
	for lines.Scan() {
		var r struct {
			inspect.Record
			inspect.Problem
		}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return errNotAdmin(err)
		}
		if r.Error != "" {
			return fmt.Errorf("the list is not complete: %s", r.Error)
		}
		visit(r.Record, lines.Bytes())
	}
	return lines.Err()
}

// printRecord writes a record, a fact a line.
func printRecord(out io.Writer, r inspect.Record) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(table, "%s\t%s\n", name, value)
		}
	}
	line("account", r.Account)
	line("ref_id", printable(r.RefID))
	say := words.FromEnvironment().Say
	line("state", string(r.State))
	line("it means", say("means "+string(r.State)))
	line("what to do", say("do "+string(r.State)))
	if r.Accepted != "" {
		line("accepted", fmt.Sprintf("%s, answered %d", r.Accepted, r.Code))
	}
	if r.Until != nil {
		line("in flight", fmt.Sprintf("%s, until %s at the latest", r.InFlight, r.Until.Format(dayAndOffset)))
	}
	line("in doubt", r.InDoubt)
	line("and before it", r.InDoubtBefore)
	if r.Kept != nil {
		line("kept", fmt.Sprintf("%s, since %s", r.Kept.Status, r.Kept.Came.Format(dayAndOffset)))
		line("due", due(r, say))
	}
	if r.Attempt > 0 {
		line("deliveries", fmt.Sprintf("%d since the last accepted outcome", r.Attempt))
	}
	if r.State != inspect.Forgotten {
		line("changed", r.Changed.Format(dayAndOffset))
		expires := say(notUntilSettled)
		switch {
		case !r.Expires.IsZero():
			expires = r.Expires.Format(dayAndOffset)
		case r.Kept != nil:
			expires = say(notWhileKept)
		}
		line("expires", expires)
	}
	line("store", r.Store)
	if r.Outage {
		line("", say(inOutageFile))
	}
	if err := table.Flush(); err != nil || r.Kept == nil || len(r.Kept.Tries) == 0 {
		return err
	}
	fmt.Fprintln(table, "\nTRIED\tTOOK\tAPP\tWHAT HAPPENED")
	for _, t := range r.Kept.Tries {
		status := "-"
		if t.AppStatus != 0 {
			status = strconv.Itoa(t.AppStatus)
		}
		took := "<1ms"
		if d := time.Duration(t.Duration * float64(time.Second)).Round(time.Millisecond); d > 0 {
			took = d.String()
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", t.Time.Format(dayAndOffset), took, status, say(t.What()))
	}
	return table.Flush()
}

// What show says beside a record's facts.
const (
	notUntilSettled = "not until it is settled"
	notWhileKept    = "not as long as a callback is kept"
	inOutageFile    = "the file for callbacks that come while Redis does not answer: it is handed in when Redis is back"
	dueIfDead       = "not by itself any more: mend what is wrong, then redeliver or forget it"
	dueIfHeld       = "not by itself: accept, release or redeliver it"
	dueIfUnrouted   = "no route of this Caddy leads to an iak_callback with a spool and this account: it waits for one"
)

// due tells when what is kept is delivered, and by whom if not by itself.
func due(r inspect.Record, say func(string) string) string {
	switch {
	case r.State == inspect.InFlight:
		return ""
	case r.State == inspect.Dead:
		return say(dueIfDead)
	case r.Kept.Due == nil:
		return say(dueIfHeld)
	case r.Kept.Unrouted:
		return say(dueIfUnrouted)
	default:
		return r.Kept.Due.Format(dayAndOffset)
	}
}

// printCallback writes a callback much as it came.
func printCallback(out io.Writer, c inspect.Callback) {
	fmt.Fprintf(out, "account  %s\nref_id   %s\nstore    %s\n", c.Account, printable(c.RefID), c.Store)
	from := c.Remote
	if c.TLS != "" {
		from += ", by " + c.TLS
	}
	fmt.Fprintf(out, "from     %s\nto       %s\n\n", harmless(from), harmless(c.Local))
	fmt.Fprintf(out, "POST %s %s\nHost: %s\n", harmless(c.Target), harmless(c.Proto), harmless(c.Host))
	for _, name := range slices.Sorted(maps.Keys(c.Header)) {
		for _, value := range c.Header[name] {
			fmt.Fprintf(out, "%s: %s\n", harmless(name), harmless(value))
		}
	}
	body := c.Body
	if len(c.Bytes) > 0 {
		body = string(c.Bytes)
	}
	fmt.Fprintln(out)
	for line := range strings.Lines(body) {
		fmt.Fprintln(out, harmless(strings.TrimRight(line, "\r\n")))
	}
}

// statusOf is the one that matters in the record's state.
func statusOf(r inspect.Record) string {
	switch r.State {
	case inspect.InFlight:
		return r.InFlight
	case inspect.Accepted, inspect.Assumed:
		return r.Accepted
	case inspect.Spooled, inspect.Dead:
		return r.Kept.Status
	default:
		return r.InDoubt
	}
}

// attempts is empty where nothing was delivered since the last accepted outcome.
func attempts(r inspect.Record) string {
	if r.Attempt == 0 {
		return ""
	}
	return strconv.Itoa(r.Attempt)
}

// printable quotes a ref_id that could play tricks on a terminal.
func printable(refID string) string {
	if quoted := strconv.Quote(refID); quoted != `"`+refID+`"` || strings.ContainsAny(refID, " ") {
		return quoted
	}
	return refID
}

// harmless is a text in which what could play tricks on a terminal is written as in Go.
func harmless(text string) string {
	var b strings.Builder
	for _, c := range strings.ToValidUTF8(text, "\ufffd") {
		if strconv.IsPrint(c) || c == '\t' {
			b.WriteRune(c)
			continue
		}
		quoted := strconv.QuoteRune(c)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}
