package command

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/spf13/cobra"
)

// followEvery is the time between two looks of tail -f. A variable, so that tests need not
// wait as long.
var followEvery = time.Second

func tailCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Prints the last callbacks, and what became of them",
		Long: `Prints the last callbacks of the running Caddy, the oldest first: when each came, what
became of it, and why. Caddy remembers the last 1,000 of this process; the log has all. With
-f it goes on with those that come, until Ctrl-C.`,
		Example: "  caddy iak-callback tail\n  caddy iak-callback tail -f --outcome rejected\n  caddy iak-callback tail --ref-id order001 --since 24h",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolP("follow", "f", false, "Go on with those that come")
	cmd.Flags().String("account", "", "Only callbacks of this account")
	cmd.Flags().String("ref-id", "", "Only callbacks of this order")
	cmd.Flags().String("outcome", "", "Only callbacks with this outcome")
	cmd.Flags().String("since", "", "Only callbacks of this time, such as 10m or 2h")
	adminFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cmd.SilenceUsage = true
		return runTail(cmd)
	}
	return cmd
}

func runTail(cmd *cobra.Command) error {
	query := given(cmd, "account", "outcome", "since")
	if refID, _ := cmd.Flags().GetString("ref-id"); refID != "" {
		query.Set("ref_id", refID)
	}
	asJSON, _ := cmd.Flags().GetBool("json")
	follow, _ := cmd.Flags().GetBool("follow")
	last, err := printRecent(cmd.OutOrStdout(), cmd, query, time.Time{}, asJSON)
	if err == nil && last.IsZero() {
		fmt.Fprintln(cmd.ErrOrStderr(), "None of these has come since Caddy was started; what is older is in its log.")
	}
	for follow && err == nil {
		select {
		case <-cmd.Context().Done():
			return nil
		case <-time.After(followEvery):
		}
		query.Del("since") // a time of this machine: Caddy's clock may be another
		last, err = printRecent(cmd.OutOrStdout(), cmd, query, last, asJSON)
	}
	return err
}

// printRecent prints the callbacks that are later than a time, and returns that of the
// last.
func printRecent(out io.Writer, cmd *cobra.Command, query url.Values, after time.Time, asJSON bool) (last time.Time, err error) {
	last = after
	err = eachRecent(cmd, query, func(r inspect.Recent, line []byte) {
		if !r.Time.After(after) {
			return
		}
		last = r.Time
		if asJSON {
			fmt.Fprintf(out, "%s\n", line)
		} else {
			fmt.Fprintln(out, recentLine(r))
		}
	})
	return last, err
}

// eachRecent visits the last callbacks of the running Caddy.
func eachRecent(cmd *cobra.Command, query url.Values, visit func(r inspect.Recent, line []byte)) error {
	answer, err := askAdmin(cmd, http.MethodGet, inspect.PathRecent, query)
	if err != nil {
		return err
	}
	defer answer.Close()
	lines := bufio.NewScanner(answer)
	for lines.Scan() {
		var r inspect.Recent
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return errNotAdmin(err)
		}
		visit(r, lines.Bytes())
	}
	return lines.Err()
}

// recentLine is one callback in a line.
func recentLine(r inspect.Recent) string {
	parts := []string{r.Time.Local().Format(dayAndOffset), fmt.Sprintf("%-12s", r.Outcome)}
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+value)
		}
	}
	add("", r.Reason)
	add("", strings.TrimSpace(r.Account+" "+refIDOf(r)))
	add("", r.Status)
	if r.Attempt > 0 {
		add("attempt ", strconv.Itoa(r.Attempt))
	}
	if r.AppStatus > 0 {
		add("app ", strconv.Itoa(r.AppStatus))
	}
	add("from ", r.ClientIP)
	if r.Message != "callback" {
		add("", "("+r.Message+")")
	}
	add("- ", harmless(r.Error))
	return strings.Join(parts, "  ")
}

func refIDOf(r inspect.Recent) string {
	if r.RefID == "" {
		return ""
	}
	return printable(r.RefID)
}
