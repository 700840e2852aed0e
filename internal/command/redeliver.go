package command

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/spf13/cobra"
)

func redeliverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "redeliver <account> <ref_id> | --dead | --spooled",
		Short: "Delivers a callback that is kept now, or all of them",
		Long: `Delivers the callback that is kept of one order now, in the place of the delivery
that was to come next, and begins its max_age anew. What is held is in doubt: the app may
have acted on it, so look at the order there first; the command asks before it is
delivered. Of an order of which nothing is kept, release lets the next callback through.

With --dead or --spooled it delivers all that is in this state: it counts them, asks, and
makes each due a fiftieth of a second after the one before, so that an app that is just
up again is not flooded. --since and --account select as in list.`,
		Example: "  caddy iak-callback redeliver shop order001\n  caddy iak-callback redeliver --dead --since 24h\n" +
			"  caddy iak-callback redeliver --spooled --account shop --yes",
	}
	cmd.Flags().Bool("dead", false, "All that was tried for too long")
	cmd.Flags().Bool("spooled", false, "All that waits for its next delivery")
	cmd.Flags().String("since", "", "Of these only what has changed within this time, such as 2h or 7d")
	cmd.Flags().String("account", "", "Of these only those of this account")
	cmd.Flags().Bool("yes", false, "Do not ask")
	adminFlags(cmd)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		state, err := bulkState(cmd)
		switch {
		case err != nil:
			return err
		case state == "" && (cmd.Flags().Changed("since") || cmd.Flags().Changed("account")):
			return errors.New("--since and --account go with --dead or --spooled")
		case state == "":
			return accountAndRefID(cmd, args)
		case len(args) > 0:
			return fmt.Errorf("--%s is for all that is kept: leave out the account and the ref_id, or the flag", state)
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage = true // the arguments were right
		if state, _ := bulkState(cmd); state != "" {
			return runRedeliverAll(cmd, state)
		}
		return runRedeliver(cmd, args)
	}
	return cmd
}

// bulkState is the state of all that is to be redelivered, empty for one order.
func bulkState(cmd *cobra.Command) (string, error) {
	dead, _ := cmd.Flags().GetBool("dead")
	spooled, _ := cmd.Flags().GetBool("spooled")
	switch {
	case dead && spooled:
		return "", errors.New("use --dead or --spooled, one after the other")
	case dead:
		return string(inspect.Dead), nil
	case spooled:
		return string(inspect.Spooled), nil
	default:
		return "", nil
	}
}

var (
	errHeld  = errors.New(inspect.WhyRedeliversHeld)
	errNotOK = errors.New("nothing was redelivered")
)

func runRedeliver(cmd *cobra.Command, args []string) error {
	query := one(args)
	yes, _ := cmd.Flags().GetBool("yes")
	if yes {
		query.Set(inspect.SureToRedeliver, "true")
	}
	err := askForRecords(cmd, http.MethodPost, inspect.PathRedeliver, query)
	if !errors.Is(err, errHeld) {
		return err
	}
	if err := confirm(cmd, errHeld.Error()+".\nDeliver it?"); err != nil {
		return err
	}
	query.Set(inspect.SureToRedeliver, "true")
	return askForRecords(cmd, http.MethodPost, inspect.PathRedeliver, query)
}

func runRedeliverAll(cmd *cobra.Command, state string) error {
	query := given(cmd, "since", "account")
	query.Set("state", state)
	n, err := count(cmd, query)
	if err != nil {
		return err
	}
	asJSON, _ := cmd.Flags().GetBool("json")
	yes, _ := cmd.Flags().GetBool("yes")
	found := fmt.Sprintf("%s %s.", callbacks(n), state)
	switch {
	case n > 0 && !yes:
		if err := confirm(cmd, found+" Deliver now?"); err != nil {
			return err
		}
	case n == 0 || !asJSON:
		fmt.Fprintln(cmd.ErrOrStderr(), found)
	}
	if n == 0 {
		return nil
	}
	answer, err := askAdmin(cmd, http.MethodPost, inspect.PathRedeliverAll, query)
	if err != nil {
		return err
	}
	defer answer.Close()
	return printProgress(cmd.OutOrStdout(), answer, asJSON)
}

// count counts the records that a query selects.
func count(cmd *cobra.Command, query url.Values) (n int, err error) {
	answer, err := askAdmin(cmd, http.MethodGet, inspect.PathRecords, query)
	if err != nil {
		return 0, err
	}
	defer answer.Close()
	err = eachRecord(answer, func(inspect.Record, []byte) { n++ })
	return n, err
}

func callbacks(n int) string {
	switch n {
	case 0:
		return "No callback is"
	case 1:
		return "1 callback is"
	default:
		return fmt.Sprintf("%d callbacks are", n)
	}
}

// printProgress prints how far it is, until it is done.
func printProgress(out io.Writer, answer io.Reader, asJSON bool) error {
	var p inspect.Progress
	lines := bufio.NewScanner(answer)
	for lines.Scan() {
		p = inspect.Progress{}
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return fmt.Errorf("reading Caddy's answer: %w", err)
		}
		switch {
		case asJSON:
			fmt.Fprintf(out, "%s\n", lines.Bytes())
		case p.Done:
			fmt.Fprintf(out, "%s due: 50 a second, beginning now.\n", callbacks(p.Redelivered))
		case p.Error == "":
			fmt.Fprintf(out, "%s due so far.\n", callbacks(p.Redelivered))
		}
	}
	switch {
	case p.Error != "":
		return fmt.Errorf("not all were reached: %s due, and then: %s; begin again, what is due stays so", lower(callbacks(p.Redelivered)), p.Error)
	case !p.Done:
		return errors.New("the answer broke off before all were reached: begin again, what is due stays so")
	case p.Held > 0:
		return fmt.Errorf("%s in doubt too and left alone: look at the order in the app, then redeliver it by its account and ref_id", lower(callbacks(p.Held)))
	}
	return nil
}

func lower(text string) string { return strings.ToLower(text[:1]) + text[1:] }

// confirm asks a question, and is an error unless the answer is yes.
func confirm(cmd *cobra.Command, question string) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	case "":
		if err != nil {
			fmt.Fprintln(cmd.ErrOrStderr())
			return fmt.Errorf("%w: nobody answers here; add --yes", errNotOK)
		}
	}
	return errNotOK
}
