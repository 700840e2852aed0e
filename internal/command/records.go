package command

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// recordCommands look at records of a running Caddy and settle them, through
// its admin API.
func recordCommands() []*cobra.Command {
	return []*cobra.Command{showCommand(), listCommand(), acceptCommand(), releaseCommand(), forgetCommand()}
}

func showCommand() *cobra.Command {
	return recordCommand(&cobra.Command{
		Use:   "show <account> <ref_id>",
		Short: "Shows what is remembered of one order",
		Long: `Shows what the running Caddy remembers of one order. The state is one of

  in_flight  a delivery waits for the app's answer
  in_doubt   the app did not answer in time, or Caddy died: nobody knows whether it has
             acted. The callback is delivered again when IAK sends it again
  held       the same with on_doubt hold: kept from the app until accept or release
  accepted   the app has accepted an outcome; the same again does not reach it
  released   the app has accepted none; the next callback is delivered

A ref_id that begins with - needs -- before the arguments.`,
		Example: "  caddy iak-callback show shop order001\n  caddy iak-callback show shop order001 --json",
	}, http.MethodGet, inspect.PathRecord)
}

func acceptCommand() *cobra.Command {
	return recordCommand(&cobra.Command{
		Use:   "accept <account> <ref_id>",
		Short: "Says that the app has acted on what is in doubt",
		Long: `Says that the app has acted on the outcome that is in doubt: from now on the
same outcome is answered as a duplicate. Look at the order in the app first.`,
		Example: "  caddy iak-callback accept shop order001",
	}, http.MethodPost, inspect.PathAccept)
}

func releaseCommand() *cobra.Command {
	return recordCommand(&cobra.Command{
		Use:   "release <account> <ref_id>",
		Short: "Says that the app has not acted on what is in doubt",
		Long: `Says that the app has not acted on the outcome that is in doubt: the next
callback of this order is delivered. Nothing is sent by itself: ask IAK to send the
callback again, or settle the order by IAK's check-status. Look at the order in the
app first.`,
		Example: "  caddy iak-callback release shop order001",
	}, http.MethodPost, inspect.PathRelease)
}

func forgetCommand() *cobra.Command {
	cmd := recordCommand(&cobra.Command{
		Use:   "forget <account> <ref_id>",
		Short: "Removes the record of one order",
		Long: `Removes the record of one order: its next callback is delivered as if none had
ever come. If the app has accepted an outcome, that takes --yes, since a repeat then
reaches the app again.`,
		Example: "  caddy iak-callback forget shop order001\n  caddy iak-callback forget shop order001 --yes",
	}, http.MethodDelete, inspect.PathRecord)
	cmd.Flags().Bool("yes", false, "Forget it even if the app has accepted an outcome")
	return cmd
}

// recordCommand is a command that asks for, or changes, one record.
func recordCommand(cmd *cobra.Command, method, path string) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) != 2 {
			return fmt.Errorf("%s takes an account and a ref_id: %s", cmd.Name(), cmd.UseLine())
		}
		return nil
	}
	adminFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage = true // the arguments were right
		query := url.Values{"account": {args[0]}, "ref_id": {args[1]}}
		if yes, _ := cmd.Flags().GetBool("yes"); yes {
			query.Set("accepted", "true")
		}
		answer, err := askAdmin(cmd, method, path, query)
		if err != nil {
			return err
		}
		defer answer.Close()
		var records inspect.Answer
		if err := json.NewDecoder(answer).Decode(&records); err != nil {
			return fmt.Errorf("reading Caddy's answer: %w", err)
		}
		asJSON, _ := cmd.Flags().GetBool("json")
		for i, r := range records.Records {
			switch {
			case asJSON:
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(r)
			default:
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				err = printRecord(cmd.OutOrStdout(), r)
			}
			if err != nil {
				return err
			}
		}
		if len(records.Errors) > 0 {
			return fmt.Errorf("the account has records in several places, and not in all of them it could be done: %s", strings.Join(records.Errors, "; "))
		}
		return nil
	}
	return cmd
}

func listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Lists what is remembered of all orders",
		Long: `Lists the records of the running Caddy, in no order: with the embedded store all
in its file, with Redis all under the key prefix. --state and --since select; since is
measured from a record's last change.`,
		Example: "  caddy iak-callback list --state held\n  caddy iak-callback list --state in_doubt --since 24h\n  caddy iak-callback list --json | jq -r .ref_id",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().String("state", "", "Only records in this state: "+strings.Join(inspect.States(), ", "))
	cmd.Flags().String("since", "", "Only records that have changed within this time, such as 2h or 7d")
	cmd.Flags().String("account", "", "Only records of this account")
	adminFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cmd.SilenceUsage = true
		query := url.Values{}
		for _, name := range []string{"state", "since", "account"} {
			if value, _ := cmd.Flags().GetString(name); value != "" {
				query.Set(name, value)
			}
		}
		answer, err := askAdmin(cmd, http.MethodGet, inspect.PathRecords, query)
		if err != nil {
			return err
		}
		defer answer.Close()
		asJSON, _ := cmd.Flags().GetBool("json")
		return printList(cmd.OutOrStdout(), answer, asJSON)
	}
	return cmd
}

// dayAndOffset is how times are printed: in local time, with what one needs to compare
// them with those of another machine.
const dayAndOffset = "2006-01-02 15:04:05 -07:00"

// printList prints the records as they come: there may be millions.
func printList(out io.Writer, answer io.Reader, asJSON bool) error {
	table := "%-9s  %-12s  %-8s  %7s  %-26s  %s\n"
	if !asJSON {
		fmt.Fprintf(out, table, "STATE", "ACCOUNT", "STATUS", "ATTEMPT", "CHANGED", "REF_ID")
	}
	lines := bufio.NewScanner(answer)
	for lines.Scan() {
		var r struct {
			inspect.Record
			inspect.Problem
		}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("reading Caddy's answer: %w", err)
		}
		if r.Error != "" {
			return fmt.Errorf("the list is not complete: %s", r.Error)
		}
		if asJSON {
			fmt.Fprintf(out, "%s\n", lines.Bytes())
			continue
		}
		fmt.Fprintf(out, table, r.State, r.Account, statusOf(r.Record), attempts(r.Record), r.Changed.Format(dayAndOffset), printable(r.RefID))
	}
	return lines.Err()
}

func adminFlags(cmd *cobra.Command) {
	cmd.Flags().String("address", "", "The address of Caddy's admin API, if it is not "+caddy.DefaultAdminListen)
	cmd.Flags().Bool("json", false, "Print a JSON object a line, for scripts")
}

// askAdmin asks the running Caddy.
func askAdmin(cmd *cobra.Command, method, path string, query url.Values) (io.ReadCloser, error) {
	given, _ := cmd.Flags().GetString("address")
	address, err := caddycmd.DetermineAdminAPIAddress(given, nil, "", "")
	if err != nil {
		return nil, err
	}
	answer, err := caddycmd.AdminAPIRequest(address, method, path+"?"+query.Encode(), nil, nil)
	if err == nil {
		return answer.Body, nil
	}
	text := err.Error()
	if strings.Contains(text, "performing request") {
		return nil, fmt.Errorf("no Caddy answers at %s: is it running, and is its admin API there? Name another address with --address (%w)", address, err)
	}
	var why struct {
		Error string `json:"error"`
	}
	if i := strings.IndexByte(text, '{'); i < 0 || json.Unmarshal([]byte(text[i:]), &why) != nil || why.Error == "" {
		return nil, err
	}
	if why.Error == inspect.WhyForgetsAccepted {
		why.Error += "; to forget it all the same, add --yes"
	}
	return nil, errors.New(why.Error)
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
	line("state", string(r.State))
	if r.Accepted != "" {
		line("accepted", fmt.Sprintf("%s, answered %d", r.Accepted, r.Code))
	}
	if r.Until != nil {
		line("in flight", fmt.Sprintf("%s, until %s at the latest", r.InFlight, r.Until.Format(dayAndOffset)))
	}
	line("in doubt", r.InDoubt)
	line("and before it", r.InDoubtBefore)
	if r.Attempt > 0 {
		line("deliveries", fmt.Sprintf("%d since the last accepted outcome", r.Attempt))
	}
	if r.State != inspect.Forgotten {
		line("changed", r.Changed.Format(dayAndOffset))
		expires := "not until it is settled"
		if !r.Expires.IsZero() {
			expires = r.Expires.Format(dayAndOffset)
		}
		line("expires", expires)
	}
	line("store", r.Store)
	return table.Flush()
}

// statusOf is the one that matters in the record's state.
func statusOf(r inspect.Record) string {
	switch r.State {
	case inspect.InFlight:
		return r.InFlight
	case inspect.Accepted, inspect.Assumed:
		return r.Accepted
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
