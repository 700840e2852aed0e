package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// recordCommands look at records of a running Caddy and settle them, through
// its admin API.
func recordCommands() []*cobra.Command {
	return []*cobra.Command{showCommand(), listCommand(), acceptCommand(), releaseCommand(), redeliverCommand(), forgetCommand()}
}

func showCommand() *cobra.Command {
	cmd := recordCommand(&cobra.Command{
		Use:   "show <account> <ref_id>",
		Short: "Shows what is remembered of one order",
		Long: `Shows what the running Caddy remembers of one order. The state is one of

  in_flight  a delivery waits for the app's answer
  in_doubt   the app did not answer in time, or Caddy died: nobody knows whether it has
             acted. The callback is delivered again when IAK sends it again
  held       the same with on_doubt hold: kept from the app until accept or release
  accepted   the app has accepted an outcome; the same again does not reach it
  assumed    it did not answer in time, and on_doubt accept takes it for accepted
  released   the app has accepted none; the next callback is delivered
  spooled    a callback is kept until the app accepts it, and delivered again by itself
  dead       the same, but it was tried for too long: it waits for redeliver or forget

Of a callback that is kept it tells how the last ten deliveries have ended. What the
callback says is told with --reveal only, goods and customer too: Caddy logs that
somebody has looked.

A ref_id that begins with - needs -- before the arguments.`,
		Example: "  caddy iak-callback show shop order001\n  caddy iak-callback show shop order001 --json\n  caddy iak-callback show shop order001 --reveal",
	}, http.MethodGet, inspect.PathRecord)
	cmd.Flags().Bool("reveal", false, "Print the callback that is kept instead, goods and all")
	show := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if reveal, _ := cmd.Flags().GetBool("reveal"); reveal {
			return runReveal(cmd, args)
		}
		return show(cmd, args)
	}
	return cmd
}

// runReveal prints the callback that is kept.
func runReveal(cmd *cobra.Command, args []string) error {
	cmd.SilenceUsage = true
	var revealed inspect.Revealed
	if err := askForJSON(cmd, http.MethodPost, inspect.PathReveal, one(args), &revealed); err != nil {
		return err
	}
	asJSON, _ := cmd.Flags().GetBool("json")
	for i, c := range revealed.Callbacks {
		if asJSON {
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(c); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		printCallback(cmd.OutOrStdout(), c)
	}
	return notEverywhere(revealed.Errors)
}

func acceptCommand() *cobra.Command {
	return recordCommand(&cobra.Command{
		Use:   "accept <account> <ref_id>",
		Short: "Says that the app has acted on what is in doubt",
		Long: `Says that the app has acted on the outcome that is in doubt: from now on the
same outcome is answered as a duplicate, and is not kept any more. Look at the order in
the app first.`,
		Example: "  caddy iak-callback accept shop order001",
	}, http.MethodPost, inspect.PathAccept)
}

func releaseCommand() *cobra.Command {
	return recordCommand(&cobra.Command{
		Use:   "release <account> <ref_id>",
		Short: "Says that the app has not acted on what is in doubt",
		Long: `Says that the app has not acted on the outcome that is in doubt. If the callback
is kept, it is delivered at once. Else the next callback of this order is delivered, and
nothing is sent by itself: ask IAK to send the callback again, or settle the order by
IAK's check-status. Look at the order in the app first.`,
		Example: "  caddy iak-callback release shop order001",
	}, http.MethodPost, inspect.PathRelease)
}

func forgetCommand() *cobra.Command {
	cmd := recordCommand(&cobra.Command{
		Use:   "forget <account> <ref_id>",
		Short: "Removes the record of one order",
		Long: `Removes the record of one order: its next callback is delivered as if none had
ever come. If the app has accepted an outcome, that takes --yes, since a repeat then
reaches the app again. So does a callback that is kept: the app never gets it, unless
IAK sends it again.`,
		Example: "  caddy iak-callback forget shop order001\n  caddy iak-callback forget shop order001 --yes",
	}, http.MethodDelete, inspect.PathRecord)
	cmd.Flags().Bool("yes", false, "Forget it even if the app has accepted an outcome, or a callback is kept")
	return cmd
}

// recordCommand is a command that asks for, or changes, one record.
func recordCommand(cmd *cobra.Command, method, path string) *cobra.Command {
	cmd.Args = accountAndRefID
	adminFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage = true // the arguments were right
		query := one(args)
		if yes, _ := cmd.Flags().GetBool("yes"); yes {
			query.Set(inspect.SureToForget, "true")
		}
		return askForRecords(cmd, method, path, query)
	}
	return cmd
}

func accountAndRefID(cmd *cobra.Command, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%s takes an account and a ref_id: %s", cmd.Name(), cmd.UseLine())
	}
	return nil
}

// one is the query for one record.
func one(args []string) url.Values {
	return url.Values{"account": {args[0]}, "ref_id": {args[1]}}
}

// askForRecords asks for what answers with records, and prints them.
func askForRecords(cmd *cobra.Command, method, path string, query url.Values) error {
	var answer inspect.Answer
	if err := askForJSON(cmd, method, path, query, &answer); err != nil {
		return err
	}
	asJSON, _ := cmd.Flags().GetBool("json")
	for i, r := range answer.Records {
		var err error
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
	return notEverywhere(answer.Errors)
}

// notEverywhere is an error if there are any of other places.
func notEverywhere(errs []string) error {
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("the account has records in several places, and not in all of them it could be done: %s", strings.Join(errs, "; "))
}

func listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Lists what is remembered of all orders",
		Long: `Lists the records of the running Caddy, those that have changed last first: with the
embedded store those in its file, with Redis those under the key prefix. --state, --account
and --since select; since is measured from a record's last change.`,
		Example: "  caddy iak-callback list --state held\n  caddy iak-callback list --state in_doubt --since 24h\n  caddy iak-callback list --json | jq -r .ref_id",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().String("state", "", "Only records in this state: "+strings.Join(inspect.States(), ", "))
	cmd.Flags().String("since", "", "Only records that have changed within this time, such as 2h or 7d")
	cmd.Flags().String("account", "", "Only records of this account")
	cmd.Flags().Int("limit", 100, "At most so many; 0 for all")
	adminFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cmd.SilenceUsage = true
		limit, _ := cmd.Flags().GetInt("limit")
		if limit < 0 {
			return errors.New("--limit is negative: give a number, or 0 for all")
		}
		answer, err := askAdmin(cmd, http.MethodGet, inspect.PathRecords, given(cmd, "state", "since", "account"))
		if err != nil {
			return err
		}
		defer answer.Close()
		asJSON, _ := cmd.Flags().GetBool("json")
		return printList(cmd.OutOrStdout(), cmd.ErrOrStderr(), answer, asJSON, limit)
	}
	return cmd
}

// given is a query with the flags that were given.
func given(cmd *cobra.Command, names ...string) url.Values {
	query := url.Values{}
	for _, name := range names {
		if value, _ := cmd.Flags().GetString(name); value != "" {
			query.Set(name, value)
		}
	}
	return query
}

func adminFlags(cmd *cobra.Command) {
	cmd.Flags().String("address", "", "The address of Caddy's admin API, if it is not "+caddy.DefaultAdminListen)
	cmd.Flags().Bool("json", false, "Print a JSON object a line, for scripts")
}

// askForJSON asks the running Caddy for one JSON object.
func askForJSON(cmd *cobra.Command, method, path string, query url.Values, answer any) error {
	body, err := askAdmin(cmd, method, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(answer); err != nil {
		return errNotAdmin(err)
	}
	return nil
}

// errNotAdmin is an answer that the admin API does not give.
func errNotAdmin(err error) error {
	return fmt.Errorf("what answers there is not the admin API of a Caddy with iak_callback: "+
		"name its address with --address, localhost:2019 most often (%w)", err)
}

// adminAddress is the address of the admin API as Caddy writes it, also when it is given
// as a url.
func adminAddress(cmd *cobra.Command) (string, error) {
	given, _ := cmd.Flags().GetString("address")
	switch {
	case strings.HasPrefix(given, "https://"):
		return "", errors.New("--address begins with https://: Caddy's admin API is spoken to over http, write host:port or unix//path")
	case strings.HasPrefix(given, "http://"):
		given = strings.TrimRight(strings.TrimPrefix(given, "http://"), "/")
	}
	if strings.HasPrefix(given, ":") {
		given = "localhost" + given
	}
	if given != "" && !strings.Contains(given, ":") && !strings.HasPrefix(given, "unix/") {
		return "", fmt.Errorf("--address %q has no port: write host:port, such as %s", given, caddy.DefaultAdminListen)
	}
	return caddycmd.DetermineAdminAPIAddress(given, nil, "", "")
}

// askAdmin asks the running Caddy.
func askAdmin(cmd *cobra.Command, method, path string, query url.Values) (io.ReadCloser, error) {
	address, err := adminAddress(cmd)
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
		if strings.Contains(text, "<") || strings.Contains(text, "HTTP 404") || strings.Contains(text, "HTTP 405") { // a page of a site
			text, _, _ = strings.Cut(text, "<")
			return nil, errNotAdmin(errors.New(strings.TrimSpace(text)))
		}
		return nil, err
	}
	if strings.Contains(text, "HTTP 404") && !strings.Contains(why.Error, "iak") { // a site speaks JSON too
		return nil, errNotAdmin(errors.New(why.Error))
	}
	switch why.Error {
	case inspect.WhyForgetsAccepted, inspect.WhyForgetsKept:
		why.Error += "; to forget it all the same, add --yes"
	case inspect.WhyRedeliversHeld:
		return nil, errHeld
	}
	return nil, errors.New(why.Error)
}
