package iakcallback

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

const (
	defaultAnswerWithin = 5 * time.Second
	defaultFirstPause   = time.Second
	defaultLongestPause = 5 * time.Minute
	defaultMaxAge       = 24 * time.Hour
	defaultMaxPending   = 100_000
	defaultConcurrency  = 4
	maxConcurrency      = 1000
)

// Spool keeps each callback in its record until the app has accepted it. What the app
// refuses, or does not get, is delivered again through the site's own routes, by any
// instance on the same store; IAK, which documents no retry, gets 200.
//
// The app must be able to tell a repeat by its Idempotency-Key: what was in doubt may be
// delivered a second time. Redeliveries carry neither Authorization, Proxy-Authorization
// nor Cookie headers, and no client certificate: handlers in front that ask for these
// keep them from the app. So do handlers in front that ask others, such as forward_auth.
type Spool struct {
	// The longest that IAK waits for the app's own answer. Then, or if that is no 2xx, it
	// gets 200 with an empty body. 0: 200 at once, always. Default: 5s.
	AnswerWithin *caddy.Duration `json:"answer_within,omitempty"`

	// The pause before the first delivery, for an app that answers 2xx to an order whose
	// row it has not written yet. Implies 200 at once. Default: 0, none.
	Delay caddy.Duration `json:"delay,omitempty"`

	// The pauses between deliveries.
	Backoff Backoff `json:"backoff,omitzero"`

	// How long delivery is tried, from the first arrival. Then the callback is dead: it
	// is kept until an operator redelivers or forgets it. Default: 24h.
	MaxAge caddy.Duration `json:"max_age,omitempty"`

	// How many callbacks are kept in a store, at most. One that comes then is treated as
	// without a spool. Default: 100000.
	MaxPending int `json:"max_pending,omitempty"`

	// The most redeliveries at once, 1 to 1000. After a failure it begins with one, and
	// doubles with each round of acceptances. Default: 4.
	Concurrency int `json:"concurrency,omitempty"`
}

// Backoff is how long to wait between deliveries: a random part of a time that doubles
// from the first pause to the longest, but not less than the app's Retry-After.
type Backoff struct {
	// The first pause. Default: 1s.
	First caddy.Duration `json:"first,omitempty"`

	// The longest pause, which also bounds Retry-After. Default: 5m.
	Longest caddy.Duration `json:"longest,omitempty"`
}

func (b Backoff) pauses() spool.Backoff {
	return spool.Backoff{First: time.Duration(b.First), Longest: time.Duration(b.Longest)}
}

func (s *Spool) setDefaults() {
	if s.AnswerWithin == nil {
		within := caddy.Duration(defaultAnswerWithin)
		s.AnswerWithin = &within
	}
	setDefault(&s.Backoff.First, caddy.Duration(defaultFirstPause))
	setDefault(&s.Backoff.Longest, max(s.Backoff.First, caddy.Duration(defaultLongestPause)))
	setDefault(&s.MaxAge, caddy.Duration(defaultMaxAge))
	setDefault(&s.MaxPending, defaultMaxPending)
	setDefault(&s.Concurrency, defaultConcurrency)
}

func (s *Spool) validate() error {
	if s == nil {
		return nil
	}
	switch {
	case *s.AnswerWithin < 0 || s.Delay < 0 || s.Backoff.First < 0 || s.MaxAge < 0 || s.MaxPending < 0:
		return errors.New("spool: answer_within, delay, backoff, max_age or max_pending is negative")
	case s.Backoff.Longest < s.Backoff.First:
		return fmt.Errorf("spool: backoff: the longest pause, %s, is shorter than the first, %s",
			time.Duration(s.Backoff.Longest), time.Duration(s.Backoff.First))
	case s.Delay >= s.MaxAge:
		return errors.New("spool: delay is not shorter than max_age")
	case s.Concurrency < 1 || s.Concurrency > maxConcurrency:
		return fmt.Errorf("spool: concurrency is not between 1 and %d", maxConcurrency)
	}
	return nil
}

func (h *Handler) unmarshalSpool(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	h.Spool = new(Spool)
	return unmarshalBlock(d, "spool: ", nil, h.Spool.unmarshalOption)
}

func (s *Spool) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "answer_within":
		s.AnswerWithin = new(caddy.Duration)
		return unmarshalPause(d, s.AnswerWithin)
	case "delay":
		return unmarshalPause(d, &s.Delay)
	case "backoff":
		var first, longest string
		if !d.AllArgs(&first, &longest) {
			return d.Err("spool: backoff takes <first pause> <longest pause>")
		}
		if err := parseDuration(d, "spool: backoff", first, &s.Backoff.First); err != nil {
			return err
		}
		if err := parseDuration(d, "spool: backoff", longest, &s.Backoff.Longest); err != nil {
			return err
		}
		return noBlock(d)
	case "max_age":
		return unmarshalDuration(d, &s.MaxAge)
	case "max_pending":
		return unmarshalCount(d, "spool: ", &s.MaxPending)
	case "concurrency":
		return unmarshalCount(d, "spool: ", &s.Concurrency)
	default:
		return d.Errf("spool: unknown option%s", word(option))
	}
}

// outageUse is the way to the file in which callbacks are kept while Redis does not
// answer.
func outageUse() (*storeUse, error) {
	return embeddedUse(filepath.Join(caddy.AppDataDir(), "iak_callback", "outage.sqlite"))
}
