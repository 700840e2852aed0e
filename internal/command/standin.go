package command

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/caddy-iak/iakcallback/internal/standin"
	"github.com/spf13/cobra"
)

const standInLong = `Plays IAK for your own tests, on your own machine. It never contacts IAK, and nothing is
bought.

Let your app send its requests to the address of this command instead of
https://prepaid.iak.id: it takes orders (/api/top-up), answers /api/check-status and
/api/check-balance, and calls back. Its page, at the same address, shows the orders, and
each click on SUCCESS or FAILED there sends one callback, as IAK's sandbox report does.

What becomes of each order:

	success   a success, called back
	failed    a failure, called back
	pending   it stays under way, and is not called back
	lost      a success whose callback never comes: see caddy iak-callback ask
	twice     a success, called back twice
	reversed  a success, and some time later a failure

The username and the api key are those that the app and the site have: set them in the
environment, as IAK_USERNAME and IAK_API_KEY. For confirm, give the site's iak_callback
this address as its base.`

// standInOptions are the flags of stand-in.
type standInOptions struct {
	standin.Options
	listen, format, version string
}

func standInCommand() *cobra.Command {
	var o standInOptions
	cmd := &cobra.Command{
		Use:   "stand-in",
		Short: "Plays IAK for your own tests",
		Long:  standInLong,
		Example: "  caddy iak-callback stand-in --to http://localhost:8080/iak/callback\n" +
			"  caddy iak-callback stand-in --outcome lost --delay 0s\n  caddy iak-callback stand-in --outcome pending --format xml",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errors.New("stand-in takes flags only")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			if o.Username == "" {
				o.Username = os.Getenv(envUsername)
			}
			if o.APIKey == "" {
				o.APIKey = os.Getenv(envKey)
			}
			return o.run(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:9090", "the `address` to listen on")
	f.StringVar(&o.To, "to", "", "the `url` that is called back (default: callback_url of the Caddy at --address)")
	f.DurationVar(&o.Delay, "delay", 3*time.Second, "how long after the order it calls back, and between a success and its reversal")
	f.StringVar(&o.Outcome, "outcome", standin.OutcomeSuccess, "what becomes of each order: "+strings.Join(standin.Outcomes(), ", "))
	f.StringVar(&o.format, "format", "json", "the `name` of the callbacks' format: json, xml")
	f.StringVar(&o.version, "version", "1", "the `number` of IAK's API version in callbacks: 1 (code, hp), 2 (product_code, customer_id)")
	f.StringVar(&o.Username, "username", "", "the `phone` number registered at IAK (default $"+envUsername+")")
	f.StringVar(&o.APIKey, "api-key", "", "the `key` of the account (default $"+envKey+"); other users of the machine can see it here")
	f.String("address", "", "The address of Caddy's admin API, which is asked for callback_url")
	return cmd
}

// run listens until it is interrupted.
func (o *standInOptions) run(cmd *cobra.Command) error {
	switch {
	case o.format != "json" && o.format != "xml":
		return errors.New("--format has no such name: use json or xml")
	case o.version != "1" && o.version != "2":
		return errors.New("--version has no such number: use 1 or 2")
	case o.Delay < 0:
		return errors.New("--delay is negative")
	}
	if err := checkCredentials(o.Username, o.APIKey); err != nil {
		return err
	}
	if o.To == "" {
		var err error
		if o.To, err = oneCallbackURL(callbackURLs(cmd)); err != nil {
			return err
		}
	}
	o.XML, o.Version2 = o.format == "xml", o.version == "2"
	var mu sync.Mutex
	o.Log = func(line string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(cmd.OutOrStdout(), time.Now().Format(time.TimeOnly), line)
	}
	s, err := standin.New(o.Options)
	if err != nil {
		return err
	}
	defer s.Close()
	listener, err := listen(cmd.Context(), o.listen)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	server := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	o.Log("IAK is played at http://" + listener.Addr().String() + " and calls back to " + o.To + "; Ctrl-C ends it")
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
