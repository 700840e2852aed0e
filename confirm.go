package iakcallback

import (
	"errors"
	"fmt"
	"time"

	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

const (
	confirmFinal    = "final"
	confirmConflict = "conflict"

	confirmErrorRetry   = "retry"
	confirmErrorForward = "forward"

	defaultConfirmTimeout = 5 * time.Second
	defaultConfirmRate    = 10
	maxConfirmRate        = 1000
)

// Confirm asks IAK's check-status before the app gets a callback, since the signature
// proves the order and nothing of its outcome. IAK is asked after the claim, for success
// and failed, with the key that signed the callback. What IAK says another thing of is
// answered 409 and not forwarded, event `iak_callback.unconfirmed`. What IAK cannot say
// yet is answered 503 and the claim given back; with a spool it is kept and IAK asked
// again.
//
// The question is a part of `upstream_timeout` and of the spool's `answer_within`. IAK's
// production answers only to addresses that are registered there.
type Confirm struct {
	// What IAK is asked about: `final`, each success and each failure before its first
	// delivery; or `conflict`, only what contradicts the record. Default: `final`.
	Mode string `json:"mode,omitempty"`

	// The address of IAK, https; http only to a loopback address. Default:
	// `https://prepaid.iak.id`; the sandbox is `https://prepaid.iak.dev`.
	Base string `json:"base,omitempty"`

	// Other addresses, by account.
	Bases map[string]string `json:"bases,omitempty"`

	// The longest that one question may take, the wait for its turn included. Shorter than
	// `upstream_timeout`. Default: 5s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How many questions are asked in a second, and at once, at most: 1 to 1000. What has
	// no turn within the timeout is asked again later. Default: 10.
	Rate int `json:"rate,omitempty"`

	// What becomes of a callback of which IAK cannot say anything now: `retry` asks again
	// when it comes again, or by itself with a spool; `forward` forwards it with the
	// header `Iak-Confirmed: false`. Default: `retry`.
	OnError string `json:"on_error,omitempty"`
}

func (c *Confirm) setDefaults() {
	setDefault(&c.Mode, confirmFinal)
	setDefault(&c.Base, iak.DefaultBase)
	setDefault(&c.Timeout, caddy.Duration(defaultConfirmTimeout))
	setDefault(&c.Rate, defaultConfirmRate)
	setDefault(&c.OnError, confirmErrorRetry)
}

// resolve normalizes the addresses.
func (c *Confirm) resolve() (err error) {
	if c.Base, err = iak.CheckBase(c.Base); err != nil {
		return fmt.Errorf("confirm: base %w", err)
	}
	for account, base := range c.Bases {
		if c.Bases[account], err = iak.CheckBase(base); err != nil {
			return fmt.Errorf("confirm: base of account %q %w", account, err)
		}
	}
	return nil
}

func (h *Handler) validateConfirm() error {
	c := h.Confirm
	for account := range c.Bases {
		if !h.hasAccount(account) {
			return fmt.Errorf("confirm: base names the account %q, which this iak_callback does not have", account)
		}
	}
	switch {
	case c.Mode != confirmFinal && c.Mode != confirmConflict:
		return fmt.Errorf("confirm %q: use %s or %s", c.Mode, confirmFinal, confirmConflict)
	case c.OnError != confirmErrorRetry && c.OnError != confirmErrorForward:
		return fmt.Errorf("confirm: on_error %q: use %s or %s", c.OnError, confirmErrorRetry, confirmErrorForward)
	case c.Timeout < 0:
		return errors.New("confirm: timeout is negative")
	case c.Timeout >= h.UpstreamTimeout:
		return fmt.Errorf("confirm: timeout, %s, is not shorter than upstream_timeout, %s, of which it is a part",
			time.Duration(c.Timeout), time.Duration(h.UpstreamTimeout))
	case c.Rate < 1 || c.Rate > maxConfirmRate:
		return fmt.Errorf("confirm: rate is not between 1 and %d", maxConfirmRate)
	}
	return nil
}

// base is the address at which IAK is asked for an account.
func (c *Confirm) base(account string) string {
	if base, ok := c.Bases[account]; ok {
		return base
	}
	return c.Base
}

// ask is what the record is told: about which outcomes IAK is asked.
func (h *Handler) ask() record.Ask {
	switch {
	case h.Confirm == nil:
		return record.AskNothing
	case h.Confirm.Mode == confirmConflict:
		return record.AskConflict
	default:
		return record.AskFinal
	}
}

func (h *Handler) unmarshalConfirm(d *caddyfile.Dispenser) error {
	h.Confirm = new(Confirm)
	if d.NextArg() {
		h.Confirm.Mode = d.Val()
		if mode := h.Confirm.Mode; mode != confirmFinal && mode != confirmConflict {
			return d.Errf("confirm%s: use %s or %s", word(mode), confirmFinal, confirmConflict)
		}
		if d.NextArg() {
			return d.ArgErr()
		}
	}
	return unmarshalBlock(d, "confirm: ", []string{"base"}, h.Confirm.unmarshalOption)
}

func (c *Confirm) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "base":
		return c.unmarshalBase(d)
	case "timeout":
		return unmarshalDuration(d, &c.Timeout)
	case "rate":
		return unmarshalCount(d, "confirm: ", &c.Rate)
	case "on_error":
		return unmarshalWord(d, &c.OnError, confirmErrorRetry, confirmErrorForward)
	default:
		return d.Errf("confirm: unknown option%s", word(option))
	}
}

func (c *Confirm) unmarshalBase(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 && len(args) != 2 {
		return d.Err("confirm: base takes <url>, or <account> <url>")
	}
	if _, err := iak.CheckBase(args[len(args)-1]); err != nil {
		return d.Errf("confirm: base %v", err)
	}
	switch {
	case len(args) == 1 && c.Base != "":
		return d.Err("confirm: base is given twice: a second one takes <account> <url>")
	case len(args) == 1:
		c.Base = args[0]
	case c.Bases[args[0]] != "":
		return d.Errf("confirm: base of account %q is given twice", args[0])
	default:
		if c.Bases == nil {
			c.Bases = make(map[string]string)
		}
		c.Bases[args[0]] = args[1]
	}
	return noBlock(d)
}
