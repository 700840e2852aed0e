package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/words"
	"github.com/spf13/cobra"
)

const checkLong = `Is this site protected? Sends forged callbacks only, each with a new ref_id and a wrong
sign: what takes one takes every forgery. A protected app never sees them.

It tries the callback's url, and its siblings that many frameworks route to the same place:
with a slash at its end, in other case, behind /index.php, and by http in the place of
https. Then it asks the running Caddy whether each of them has met iak_callback. It also
checks that a GET is refused, that the stores answer and, with confirm, that IAK does.

It prints a table, and for each check that fails what to do. The exit code is 1 if one
fails. The url must lead to the Caddy at --address.`

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check [--to <url>] [--account <name>]",
		Short:   "Checks that the site is protected, by forged callbacks",
		Long:    checkLong,
		Example: "  caddy iak-callback check --to https://shop.example.com/iak/callback\n  caddy iak-callback check --account shop",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().String("to", "", "The `url` of the callback (default: callback_url of the Caddy at --address)")
	cmd.Flags().String("account", "", "The `name` of the account, where several have a callback_url")
	cmd.Flags().String("address", "", "The address of Caddy's admin API")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cmd.SilenceUsage = true
		return runCheck(cmd)
	}
	return cmd
}

// What to do about a check that fails.
const (
	doRedirect = "IAK's POST would become a GET, or get lost: give IAK, and callback_url, the url that it leads to"
	doForgery  = "this path does not pass iak_callback: give its matcher a * at the end, and see \"Let nothing get around it\" in docs/configuration.md"
	doUnseen   = "the path does not pass iak_callback, another server answers there, or --address is another Caddy: " +
		"check the matcher, and that the directive stands before the app"
	doFirst = "see the first line"
	doGet   = "iak_callback answers 405 to a GET: something else answers here, a directive in front of it, or handle_errors with another status"
)

// finding is one check, and what to do if it fails.
type finding struct {
	what, saw, advice string
	ok                bool
}

type checker struct {
	cmd    *cobra.Command
	client *http.Client
	all    []finding
}

func runCheck(cmd *cobra.Command) error {
	to, _ := cmd.Flags().GetString("to")
	account, _ := cmd.Flags().GetString("account")
	var health inspect.Health
	if err := askForHealth(cmd, &health); err != nil {
		return err
	}
	if to == "" {
		var err error
		if to, err = callbackURLFor(callbackURLs(cmd), account); err != nil {
			return err
		}
	}
	target, err := parseTarget(to)
	if err != nil {
		return err
	}
	c := &checker{cmd: cmd, client: plainClient()}
	c.forge("the callback's url", target, true)
	c.get(target)
	for _, s := range siblings(target) {
		c.forge(s.what, s.url, false)
	}
	for _, port := range appPorts(cmd) {
		c.ownPort(target, port)
	}
	c.stores(health, account)
	for _, w := range health.Warnings {
		c.add("the configuration", false, "a warning", w)
	}
	return c.print(cmd.OutOrStdout())
}

func (c *checker) add(what string, ok bool, saw, advice string) {
	c.all = append(c.all, finding{what: what, ok: ok, saw: saw, advice: advice})
}

type sibling struct {
	what string
	url  *url.URL
}

// siblings are urls that many frameworks route as the callback's.
func siblings(target *url.URL) (all []sibling) {
	with := func(what, path string) {
		u := *target
		u.Path, u.RawPath = path, ""
		all = append(all, sibling{what, &u})
	}
	with("with a slash at its end", strings.TrimRight(target.Path, "/")+"/")
	with("in other case", swapCase(target.Path))
	with("behind /index.php", path.Join("/index.php", target.Path))
	if target.Scheme == "https" {
		u := *target
		u.Scheme, u.Host = "http", target.Hostname()
		all = append(all, sibling{"by http", &u})
	}
	return all
}

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLower(r) {
			return unicode.ToUpper(r)
		}
		return unicode.ToLower(r)
	}, s)
}

// forge sends a forged callback and finds out whether it has met iak_callback.
func (c *checker) forge(what string, target *url.URL, itself bool) {
	refID := "check-" + newRefID()
	fields := append(iak.Fields{{Name: "ref_id", Value: refID}}, iak.Sample("failed")...)
	fields = append(fields, iak.Field{Name: "sign", Value: iak.Signature(randomBytes(len(iak.Signature{}))).String()})
	s := &sender{target: target, contentType: "application/json", body: fields.JSON()}
	a := s.sendOne(c.cmd.Context(), c.client)
	if a.err != nil {
		if itself || target.Scheme != "http" {
			c.add(what, false, "no answer", s.explain(a.err).Error())
		} else {
			c.add(what, true, "no answer", "")
		}
		return
	}
	saw := fmt.Sprint(a.code)
	switch met := c.met(refID); {
	case met:
		c.add(what, true, saw+", refused by iak_callback", "")
	case a.code >= 300 && a.code < 400 && itself:
		c.add(what, false, saw+", a redirect", doRedirect)
	case a.code >= 300 && a.code < 400:
		c.add(what, true, saw+", a redirect", "")
	case a.code/100 == 2:
		c.add(what, false, saw+", the app took a forgery", doForgery)
	case !itself && a.code/100 == 4:
		c.add(what, true, saw+", not by iak_callback", "")
	default:
		c.add(what, false, saw+", and iak_callback has not seen it", doUnseen)
	}
}

// ownPort finds out whether the app can be reached past Caddy, at the port that Caddy's
// reverse_proxy sends to, under the name of the site.
func (c *checker) ownPort(target *url.URL, port string) {
	if port == target.Port() || target.Hostname() == "localhost" || net.ParseIP(target.Hostname()).IsLoopback() {
		return // from this machine it has to be reachable
	}
	u := *target
	u.Scheme, u.Host = "http", net.JoinHostPort(target.Hostname(), port)
	c.forge("the app's own port, "+port, &u, false)
}

// met asks the running Caddy whether it has refused a ref_id.
func (c *checker) met(refID string) bool {
	r := outcomeOf(c.cmd, refID)
	return r != nil && r.Outcome == "rejected"
}

// get expects that a GET is refused: another method is an early sign that a path is not
// protected.
func (c *checker) get(target *url.URL) {
	r, err := http.NewRequestWithContext(c.cmd.Context(), http.MethodGet, target.String(), nil)
	if err != nil {
		return
	}
	answer, err := c.client.Do(r) //nolint:gosec // the url is the one that the person names
	if err != nil {
		c.add("a GET", false, "no answer", doFirst)
		return
	}
	defer answer.Body.Close()
	c.add("a GET", answer.StatusCode == http.StatusMethodNotAllowed, fmt.Sprint(answer.StatusCode), doGet)
}

// stores tells what health tells.
func (c *checker) stores(health inspect.Health, account string) {
	for _, s := range health.Stores {
		if s.OK {
			c.add("the store", s.Warning == "", s.Store+" answers", s.Warning)
		} else {
			c.add("the store", false, s.Store+" does not answer", s.Error)
		}
	}
	for _, h := range health.Confirm {
		if account != "" && h.Account != account {
			continue
		}
		var asked inspect.Asked
		query := one([]string{h.Account, "check-" + newRefID()})
		if err := askForJSON(c.cmd, http.MethodPost, inspect.PathAsk, query, &asked); err != nil {
			c.add("IAK, for "+h.Account, false, "not asked", err.Error())
			continue
		}
		// Of an order that nobody has made IAK knows nothing: the key and the address are right.
		if ok := asked.Standing == "unknown" || asked.Standing == inspect.Final || asked.Standing == "open"; ok {
			c.add("IAK, for "+h.Account, true, asked.Base+" answers", "")
		} else {
			c.add("IAK, for "+h.Account, false, asked.Standing, asked.Why)
		}
	}
}

// print prints the table. Its error is that something failed.
func (c *checker) print(out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range c.all {
		word := "ok"
		if !f.ok {
			word = "FAILS"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", word, f.what, f.saw)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	failed := slices.DeleteFunc(slices.Clone(c.all), func(f finding) bool { return f.ok })
	for _, f := range failed {
		fmt.Fprintf(out, "\n%s: %s\n", f.what, words.FromEnvironment().Say(f.advice))
	}
	switch len(failed) {
	case 0:
		return nil
	case 1:
		return errors.New("one check fails")
	default:
		return fmt.Errorf("%d checks fail", len(failed))
	}
}

// plainClient sends as IAK does: once, without following redirects.
func plainClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // the body is shown as it came
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP1(true) // the request that --dry-run prints
	return &http.Client{
		Transport:     transport,
		Timeout:       sendTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// askForHealth asks for health, which is an answer also when a store does not answer.
func askForHealth(cmd *cobra.Command, health *inspect.Health) error {
	body, err := askAdmin(cmd, http.MethodGet, inspect.PathHealth, url.Values{})
	if err != nil { // 503 is an error of Caddy's client, with the answer in its text
		text := err.Error()
		if i := strings.IndexByte(text, '{'); i >= 0 && json.Unmarshal([]byte(text[i:]), health) == nil && len(health.Stores) > 0 {
			return nil
		}
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(health)
}
