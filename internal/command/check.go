package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/words"
	"github.com/spf13/cobra"
)

const checkLong = `Is this site protected? Sends forged callbacks only, each with a new ref_id and a wrong
sign: what takes one takes every forgery. A protected app never sees them.

It tries the callback's url, and its siblings that many frameworks route to the same place:
with a slash at its end, in other case, behind /index.php, and by http in the place of
https; and the app's own port, unless --to is on localhost. Then it asks the running Caddy
whether each of them has met iak_callback. What has not, and was answered by the app, is
compared with a path beside it that nobody has. It also checks that a GET is refused, that
the stores answer and, with confirm, that IAK does.

It prints a table, and what to do about each line that says FAILS or look: there the app
itself has answered, and only its log can tell whether its callback code ran. The exit code
is 1 if a check fails. The url must lead to the Caddy at --address.`

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
	doSibling  = "whoever posts there gets around iak_callback: let the matcher cover this path too, with a * at its end and behind /index.php, as in @callback path /iak/callback* /index.php/iak/callback*; " +
		"see \"Let nothing get around it\" in docs/configuration.md"
	doLook    = "the app itself has answered, as it does on a path that nobody has. Look into its log: if its callback code ran, this path is open, and the matcher must cover it too"
	doOwnPort = "whoever reaches the app at its own port gets around iak_callback: let the app listen on 127.0.0.1 alone, or close the port in the firewall"
	doUnseen  = "the path does not pass iak_callback, another server answers there, or --address is another Caddy: " +
		"check the matcher, and that the directive stands before the app"
	doHTTPS = "that port speaks https: write https:// in --to"
	doGet   = "iak_callback answers 405 to a GET: something else answers here, a directive in front of it, or handle_errors with another status"
)

// verdict is how a check ends.
type verdict string

const (
	passes  verdict = "ok"
	fails   verdict = "FAILS"
	unsure  verdict = "look" // the app's log has to tell
	untried verdict = "--"
)

// finding is one check, and what to do if it does not pass.
type finding struct {
	verdict           verdict
	what, saw, advice string
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
	if c.itself(target) {
		c.get(target)
		for _, s := range siblings(target) {
			c.sibling(s)
		}
		c.ownPorts(target)
	} else {
		c.add(untried, "its siblings", "not tried: mend the first line", "")
	}
	c.stores(health, account)
	for _, w := range health.Warnings {
		c.add(fails, "the configuration", "a warning", w)
	}
	return c.print(cmd.OutOrStdout())
}

func (c *checker) add(v verdict, what, saw, advice string) {
	c.all = append(c.all, finding{verdict: v, what: what, saw: saw, advice: advice})
}

// stores tells what health tells.
func (c *checker) stores(health inspect.Health, account string) {
	for _, s := range health.Stores {
		if s.OK {
			c.add(passesIf(s.Warning == ""), "the store", s.Store+" answers", s.Warning)
		} else {
			c.add(fails, "the store", s.Store+" does not answer", s.Error)
		}
	}
	for _, h := range health.Confirm {
		if account != "" && h.Account != account {
			continue
		}
		var asked inspect.Asked
		query := one([]string{h.Account, "check-" + newRefID()})
		if err := askForJSON(c.cmd, http.MethodPost, inspect.PathAsk, query, &asked); err != nil {
			c.add(fails, "IAK, for "+h.Account, "not asked", err.Error())
			continue
		}
		// Of an order that nobody has made IAK knows nothing: the key and the address are right.
		if ok := asked.Standing == "unknown" || asked.Standing == inspect.Final || asked.Standing == "open"; ok {
			c.add(passes, "IAK, for "+h.Account, asked.Base+" answers", "")
		} else {
			c.add(fails, "IAK, for "+h.Account, asked.Standing, asked.Why)
		}
	}
}

// print prints the table. Its error is that something failed.
func (c *checker) print(out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	failed := 0
	for _, f := range c.all {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.verdict, f.what, f.saw)
		if f.verdict == fails {
			failed++
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, f := range c.all {
		if f.verdict == fails || f.verdict == unsure {
			fmt.Fprintf(out, "\n%s: %s\n", f.what, words.FromEnvironment().Say(f.advice))
		}
	}
	switch failed {
	case 0:
		return nil
	case 1:
		return errors.New("one check fails")
	default:
		return fmt.Errorf("%d checks fail", failed)
	}
}

// plainClient sends as IAK does: once, without following redirects.
func plainClient() *http.Client {
	// Not a clone of the default one, which would still offer HTTP/2 to the server (Go 1.26,
	// net/http/transport.go, Clone).
	transport := &http.Transport{
		Proxy:              http.ProxyFromEnvironment,
		DisableCompression: true, // the body is shown as it came
		Protocols:          new(http.Protocols),
	}
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
	if err := json.NewDecoder(body).Decode(health); err != nil {
		return errNotAdmin(err)
	}
	return nil
}
