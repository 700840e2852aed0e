package command

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/words"
	"github.com/spf13/cobra"
)

const askLong = `Asks IAK what has become of orders, and prints the answers. The running Caddy asks
IAK's check-status, with the key of the account. Nothing is ordered and nothing paid: this
is the way to learn of an order whose callback never came. Never repeat a top-up for that.

Without a ref_id they are read from standard input, one a line: a cron job can pass on
the app's own pending orders.

With --deliver what IAK says of an order that has ended is handed in as a callback, at the
callback_url of the account's iak_callback: through the site's own routes, with the same
verification and deduplication. A real callback that comes later is a duplicate. The app
sees it with the header Iak-Source: check-status.

Goods (sn, pin, activation_code) are masked, unless you give --reveal: Caddy logs that.

The exit code is 0 if every order has ended and, with --deliver, has reached the app or is
kept for it; else 1.`

func askCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ask <account> [<ref_id>...]",
		Short: "Asks IAK what has become of orders",
		Long:  askLong,
		Example: "  caddy iak-callback ask shop order001\n  caddy iak-callback ask shop order001 order002 --deliver\n" +
			"  pending-orders | caddy iak-callback ask shop --deliver",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("ask takes an account, and ref_ids here or on standard input: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cmd.SilenceUsage = true // the arguments were right
			return runAsk(cmd, args[0], args[1:])
		},
	}
	cmd.Flags().Bool("deliver", false, "Hand in what has ended as a callback")
	cmd.Flags().Bool("reveal", false, "Show sn, pin, activation_code and the whole customer")
	adminFlags(cmd)
	return cmd
}

// maxLine is the longest line that is read: a ref_id has 255 bytes at most.
const maxLine = 4096

// runAsk asks for each order.
func runAsk(cmd *cobra.Command, account string, refIDs []string) error {
	asked, open := 0, 0
	one := func(refID string) error {
		isOpen, err := askOne(cmd, account, refID, asked > 0)
		asked++
		if isOpen {
			open++
		}
		return err
	}
	for _, refID := range refIDs {
		if err := one(refID); err != nil {
			return err
		}
	}
	if len(refIDs) == 0 {
		in := cmd.InOrStdin()
		if in == os.Stdin && isTerminal(os.Stdin) {
			fmt.Fprintln(cmd.ErrOrStderr(), "Give one ref_id a line, then Ctrl-D:")
		}
		lines := bufio.NewScanner(in)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			refID := strings.TrimSuffix(lines.Text(), "\r") // of a file of Windows
			if refID == "" {
				continue
			}
			if err := one(refID); err != nil {
				return err
			}
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("reading ref_ids from standard input: %w", err)
		}
	}
	switch {
	case open == 0:
		return nil
	case asked == 1:
		return errors.New("the order has not ended, as far as is known: ask again later")
	default:
		return fmt.Errorf("%d of %d orders have not ended, as far as is known: ask again later", open, asked)
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// askOne asks for one order and prints the answer, behind an empty line if it is not the
// first.
func askOne(cmd *cobra.Command, account, refID string, behind bool) (open bool, err error) {
	query := one([]string{account, refID})
	for _, name := range []string{inspect.AskDeliver, inspect.AskReveal} {
		if set, _ := cmd.Flags().GetBool(name); set {
			query.Set(name, "true")
		}
	}
	var asked inspect.Asked
	if err := askForJSON(cmd, http.MethodPost, inspect.PathAsk, query, &asked); err != nil {
		return true, err
	}
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		return asked.Open(), json.NewEncoder(cmd.OutOrStdout()).Encode(asked)
	}
	if behind {
		fmt.Fprintln(cmd.OutOrStdout())
	}
	printAsked(cmd.OutOrStdout(), &asked)
	return asked.Open(), nil
}

// printAsked writes what IAK says, a fact a line.
func printAsked(out io.Writer, a *inspect.Asked) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(out, "%-16s %s\n", name, harmless(value))
		}
	}
	line("account", a.Account)
	fmt.Fprintf(out, "%-16s %s\n", "ref_id", printable(a.RefID))
	line("asked", a.Base)
	switch a.Standing {
	case inspect.Final:
		line("IAK says", a.Status)
	case "open":
		line("IAK says", "still under way")
	default:
		line("IAK says", "nothing of the order: "+a.Why)
	}
	for _, f := range a.Fields {
		if f.Name != "ref_id" && f.Name != "status" {
			line(f.Name, f.Value)
		}
	}
	if len(a.Fields) == 0 {
		line("rc", a.RC)
	}
	d := a.Delivery
	switch {
	case d == nil:
	case d.Done:
		line("handed in", words.FromEnvironment().Say(deliveries[d.Outcome]))
	case d.Outcome == "":
		line("handed in", "no: "+d.Error)
	default:
		line("handed in", strings.TrimSuffix(d.Outcome+": "+d.Error, ": "))
	}
}

// deliveries say what an outcome means for an order that was handed in.
var deliveries = map[string]string{
	"forwarded": "the app has accepted it",
	"duplicate": "the app had accepted it before",
	"stale":     "the app had accepted newer news before",
	"spooled":   "it is kept, and delivered to the app by itself",
	"assumed":   "the app did not answer, and on_doubt accept takes it for accepted",
}
