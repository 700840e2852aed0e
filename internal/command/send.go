package command

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/caddy-iak/iakcallback/internal/iak"
)

const sendLong = `
Plays IAK: sends a signed callback, as IAK's sandbox report does, and prints the
answer. Each run is a new order, unless --ref-id names one.

The callback is one of the examples of IAK's reference:

	game     a success with sn and pin
	esim     a success with sn and activation_code
	other    a success with sn, such as phone credit
	failed   a failed order
	process  an order under way

It is real: the app behind --to takes it for IAK's. To try things out use the
sandbox key, or a site of your own machine.

The username and the api key are those that the site has for the account. Set
them in the environment, as IAK_USERNAME and IAK_API_KEY: what stands on a
command line can be seen by the other users of the machine. They are never
printed.

The sign proves an order to everyone who checks it: to your site, and to IAK,
where it also signs your own requests for the same ref_id. Do not share it, nor
what --dry-run prints, which contains it.

It says what the answer means. An answer of any status is a success of this
command, unless --expect names another; but a forgery that gets a 2xx is an error:
then the path does not pass iak_callback. The exit code is 1 for these, if a request
got no complete answer within 60 seconds, or if the command line is wrong. Redirects
are not followed. In --to, --username, --api-key and --ref-id {env.NAME} and
{file./path} are resolved.

With --repeat the same callback is sent again and again. One answer of each kind
is printed, and a table of all: how often each status came, and how many of
them carried Idempotent-Replayed, which means that the app did not see them.`

const sendExample = `  A success, in the names of version 1, as JSON:
  $ caddy iak-callback send --to http://localhost:8080/iak/callback

  A failed order, as XML, in the names of version 2:
  $ caddy iak-callback send --to http://localhost:8080/iak/callback --sample failed --format xml --version 2

  The same order turns from "under way" to a success:
  $ caddy iak-callback send --to http://localhost:8080/iak/callback --ref-id order-7 --sample process
  $ caddy iak-callback send --to http://localhost:8080/iak/callback --ref-id order-7 --sample other

  Does your app see a callback once, when it comes 20 times, 5 at a time?
  $ caddy iak-callback send --to http://localhost:8080/iak/callback --repeat 20 --parallel 5

  Is a forged one refused?
  $ caddy iak-callback send --to http://localhost:8080/iak/callback --forge

  Another product and price, and a field that IAK does not document:
  $ caddy iak-callback send --to http://localhost:8080/iak/callback --set code=pln20000 --set price=20500 --set note=test

  What would be sent, and a curl command for it:
  $ caddy iak-callback send --to http://localhost:8080/iak/callback --dry-run`

// The environment's names for the credentials, the same as in the README.
const (
	envUsername = "IAK_USERNAME"
	envKey      = "IAK_API_KEY"
)

// sendTimeout is how long an answer may take: twice what the handler gives the
// app by default. Tests make it shorter.
var sendTimeout = 60 * time.Second

// sendOptions are the flags of send.
type sendOptions struct {
	to, sample, format, version string
	username, apiKey, refID     string
	set                         []string
	repeat, parallel, expect    int
	forge, dryRun               bool
}

func sendCommand() *cobra.Command {
	var o sendOptions
	cmd := &cobra.Command{
		Use:                   "send --to <url> [flags]",
		DisableFlagsInUseLine: true,
		Short:                 "Plays IAK: sends a signed callback and prints the answer",
		Long:                  strings.TrimSpace(sendLong),
		Example:               sendExample,
		// What is left over may be a part of a secret that was not quoted, so it is not printed.
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && !cmd.Flags().Changed("to") && strings.HasPrefix(args[0], "http") {
				o.to = args[0]
				return nil
			}
			if len(args) > 0 {
				return errors.New("send takes flags only, and something else is on the command line: put a value with spaces between quotes")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Not the default of the flag, which the help would print. A flag that is given counts
			// also when it is empty: --api-key "$TYPO" must not sign with another key.
			if !cmd.Flags().Changed("username") {
				o.username = os.Getenv(envUsername)
			}
			if !cmd.Flags().Changed("api-key") {
				o.apiKey = os.Getenv(envKey)
			}
			if cmd.Flags().Changed("ref-id") && o.refID == "" {
				return errors.New("--ref-id is empty: give an order's ref_id, or leave it out for a new one")
			}
			if err := o.resolve(cmd); err != nil {
				return err
			}
			return o.run(cmd)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	f := cmd.Flags()
	f.SortFlags = false
	// With --dry-run too: the path and the host are a part of the request that it prints.
	f.StringVar(&o.to, "to", "", "the callback `url`, http or https (default: callback_url of the Caddy at --address)")
	f.StringVar(&o.sample, "sample", iak.SampleNames()[0], "the `name` of what is sent: "+strings.Join(iak.SampleNames(), ", "))
	f.StringVar(&o.format, "format", "json", "the `name` of the format: json, xml")
	f.StringVar(&o.version, "version", "1", "the `number` of IAK's API version: 1 (code, hp), 2 (product_code, customer_id)")
	f.StringVar(&o.username, "username", "", "the `phone` number registered at IAK (default $"+envUsername+")")
	f.StringVar(&o.apiKey, "api-key", "", "the `key` of the account (default $"+envKey+"); other users of the machine can see it here")
	f.StringVar(&o.refID, "ref-id", "", "the order's ref_id, as `text` (default a new one)")
	f.StringArrayVar(&o.set, "set", nil, "`field=value`: change or add a field, by the name that is sent; sign too; can be repeated")
	f.IntVar(&o.repeat, "repeat", 1, "send the same callback `n` times")
	f.IntVar(&o.parallel, "parallel", 1, "at most `n` at once")
	f.BoolVar(&o.forge, "forge", false, "send a wrong sign; needs no username and key")
	f.IntVar(&o.expect, "expect", 0, "the `status` that each answer has to have; else the exit code is 1")
	f.String("address", "", "the address of Caddy's admin API, which knows callback_url and what has become of a callback")
	f.BoolVar(&o.dryRun, "dry-run", false, "send nothing: print the request, with its sign, and a curl command for it")
	return cmd
}

// flagError takes what stands on the command line out of an error about it: a
// key that was pasted to a wrong place would be printed. The name of an unknown
// flag stays in it, without its value.
func flagError(err error) error {
	var value interface{ GetValue() string }
	var short interface{ GetSpecifiedShortnames() string }
	switch {
	case errors.As(err, &value):
		return errors.New("a flag has a value that it cannot have: --repeat and --parallel take a whole number, --forge and --dry-run nothing")
	case errors.As(err, &short) && short.GetSpecifiedShortnames() != "":
		return errors.New("a flag has one dash only: all flags have two, such as --to")
	}
	return err
}

// run checks the flags, and sends or prints.
func (o *sendOptions) run(cmd *cobra.Command) error {
	target, err := parseTarget(o.to)
	if err != nil {
		return err
	}
	for _, n := range []struct {
		flag  string
		value int
	}{{"repeat", o.repeat}, {"parallel", o.parallel}} {
		if n.value < 1 {
			return fmt.Errorf("--%s must be 1 or more", n.flag)
		}
	}
	fields, err := o.fields()
	if err != nil {
		return err
	}
	body, contentType := fields.JSON(), "application/json"
	if o.format == "xml" {
		contentType = "application/xml"
		if body, err = fields.XML(); err != nil {
			return err
		}
	}
	s := &sender{target: target, contentType: contentType, body: body, out: cmd.OutOrStdout(), expect: o.expect, forged: o.forge}
	s.meaning = func(a *siteAnswer) string {
		r, asked := outcomeOf(cmd, fields.Get("ref_id"), a)
		return meaningOf(a, r, asked, o.forge)
	}
	if o.dryRun {
		return s.dryRun()
	}
	fmt.Fprintf(s.out, "ref_id %q\n", fields.Get("ref_id"))
	return s.sendAll(cmd.Context(), o.repeat, o.parallel)
}

// parseTarget checks the callback's URL. Its errors do not repeat it: it may
// hold a token. What Go and curl would send differently is refused, since
// --dry-run promises the same request.
func parseTarget(to string) (*url.URL, error) {
	if to == "" {
		return nil, errors.New("--to is missing: give the callback url, such as --to https://shop.example.com/iak/callback")
	}
	if strings.ContainsFunc(to, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("--to holds a space, a control character or a letter beyond ASCII: percent-encode it (in a host name: punycode)")
	}
	target, err := url.Parse(to)
	if err != nil || target.Scheme != "http" && target.Scheme != "https" || target.Hostname() == "" {
		return nil, errors.New("--to is not a url that can be sent to: it must look like https://shop.example.com/iak/callback")
	}
	if target.User != nil {
		return nil, errors.New("--to holds a user or password before the host, which would be printed: leave it out")
	}
	target.Fragment, target.RawFragment = "", "" // never sent
	return target, nil
}

// fields are the callback's fields with the sign, in the order of sending.
func (o *sendOptions) fields() (iak.Fields, error) {
	sample := iak.Sample(o.sample)
	switch {
	case sample == nil:
		return nil, fmt.Errorf("--sample has no such name: use %s", strings.Join(iak.SampleNames(), ", "))
	case o.format != "json" && o.format != "xml":
		return nil, errors.New("--format has no such name: use json or xml")
	case o.version != "1" && o.version != "2":
		return nil, errors.New("--version has no such number: use 1 or 2")
	}
	refID := o.refID
	if refID == "" {
		refID = newRefID()
	}
	fields := append(iak.Fields{{Name: "ref_id", Value: refID}}, sample...)
	if o.version == "2" {
		fields.Version2()
	}
	sign, signed := "", false
	for i, s := range o.set {
		// Neither error repeats the value, which may be goods.
		name, value, found := strings.Cut(s, "=")
		if !found || name == "" {
			return nil, fmt.Errorf("--set number %d is not field=value", i+1)
		}
		if !utf8.ValidString(s) {
			return nil, fmt.Errorf("--set number %d is not UTF-8", i+1)
		}
		if name == "sign" {
			sign, signed = value, true
			continue
		}
		fields = fields.Set(name, value)
	}
	refID = fields.Get("ref_id")
	if !utf8.ValidString(refID) {
		return nil, errors.New("--ref-id is not UTF-8")
	}
	switch {
	case signed && o.forge:
		return nil, errors.New("--forge and --set sign=... exclude each other: leave one out")
	case o.forge:
		sign = iak.Signature(randomBytes(len(iak.Signature{}))).String()
	case !signed:
		if err := checkCredentials(o.username, o.apiKey); err != nil {
			return nil, err
		}
		sign = iak.NewSecret(o.username, o.apiKey).Sign(refID).String()
	}
	return append(slices.Clip(fields), iak.Field{Name: "sign", Value: sign}), nil
}

// checkCredentials says what is missing and how to give it, and no value.
func checkCredentials(username, apiKey string) error {
	var missing []string
	if username == "" {
		missing = append(missing, "the username (set "+envUsername+" in the environment, or give --username)")
	}
	if apiKey == "" {
		missing = append(missing, "the api key (set "+envKey+" in the environment, or give --api-key)")
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("missing or empty: %s; they are those of the account in the site's iak_callback", strings.Join(missing, " and "))
}

// newRefID is one that no order has: the time, for a person who looks for it in
// the log, and chance.
func newRefID() string {
	return "send-" + time.Now().UTC().Format("20060102-150405") + "-" + hex.EncodeToString(randomBytes(6))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// request is what is sent, without what the transport adds.
func (s *sender) request(ctx context.Context) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.target.String(), strings.NewReader(s.body))
	if err != nil {
		return nil, errors.New("--to is not a url that can be sent to: it must look like https://shop.example.com/iak/callback")
	}
	r.Header.Set("Content-Type", s.contentType)
	r.Header.Set("User-Agent", sendUserAgent)
	// A connection for each callback: a server may close one that is kept, just
	// when the next callback is on it.
	r.Close = true
	return r, nil
}

// sendUserAgent tells these callbacks from IAK's in an access log.
const sendUserAgent = "iak-callback-send"

// dryRun prints the request, and a curl command for it as the last thing.
func (s *sender) dryRun() error {
	r, err := s.request(context.Background())
	if err != nil {
		return err
	}
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		return err
	}
	// The body has no line end of this kind: both formats escape it.
	fmt.Fprintf(s.out, "The request:\n\n%s\n\n", strings.ReplaceAll(b.String(), "\r\n", "\n"))
	fmt.Fprintf(s.out, "The same with curl, for a POSIX shell (the sign proves this order: do not share it):\n\n")
	// curl would read brackets in a url as a pattern, and shorten a path with dots.
	fmt.Fprintf(s.out, "curl -i --globoff --path-as-is -H %s -H %s --data-raw %s %s\n",
		shellQuote("Content-Type: "+s.contentType), shellQuote("User-Agent: "+sendUserAgent), shellQuote(s.body), shellQuote(s.target.String()))
	return nil
}

// shellQuote makes one word of any text, for a POSIX shell: between single
// quotes only a single quote means something.
func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
