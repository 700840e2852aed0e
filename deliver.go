package iakcallback

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Variables, so that tests need not wait as long.
var (
	// leaseMargin is how much longer than upstream_timeout a claim is held, so
	// that its delivery has settled before anybody takes over.
	leaseMargin = 5 * time.Second

	// returnGrace is how long after upstream_timeout the handlers behind may take
	// to return. FastCGI does not watch its request's context (Caddy v2.11.9,
	// reverseproxy/fastcgi/fastcgi.go, RoundTrip) and may not return for hours.
	returnGrace = time.Second
)

// answer is what became of a delivery.
type answer int

const (
	answerAccepted answer = iota // 2xx
	answerRefused                // the app's own 3xx, 4xx or 5xx
	answerUnsent                 // nothing reached the app
	answerNobody                 // no handler answered
	answerTimeout                // upstream_timeout passed; it may have been applied
	answerBroken                 // the app broke off; it may have been applied
)

// delivery is one run of the handlers behind this one.
type delivery struct {
	answer answer
	status int   // what the app sent, 0 if nothing
	over   bool  // the caller has his answer: err is not for him
	why    error // why nothing reached the app
}

// deliver runs next for at most timeout and tells what became of it to settle,
// which is called before deliver returns or panics. When next does not return
// in time, late is called meanwhile and returns the status for the caller.
//
// Neither the caller's hanging up nor a reload ends the run.
func deliver(
	w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, timeout time.Duration,
	late func() int, settle func(delivery),
) (d delivery, err error) {
	ctx := &deliveryContext{caller: r.Context()}
	rec := newResponse(w, func() bool {
		status := upstreamStatus(ctx.caller)
		return status != 0 && (status < 200 || status > 999) // PHP can end with 103 or 42
	})
	var cancel context.CancelFunc
	ctx.Context, cancel = context.WithTimeout(context.WithoutCancel(ctx.caller), timeout)
	answered := make(chan bool, 1)
	watchdog := time.AfterFunc(timeout+returnGrace, func() { answered <- rec.answer(late()) })

	returned := false
	defer func() { // also when next panics: reverse_proxy does to break the connection off
		// By the clock, not by ctx.Err: a transport's own deadline, set after ours to
		// the same time, may end before the context's timer has run.
		deadline, _ := ctx.Deadline()
		timedOut := !time.Now().Before(deadline)
		ctx.over.Store(true)
		cancel()
		if !watchdog.Stop() {
			d.over = <-answered
		}
		d.status = rec.sent()
		d.answer = classify(returned, err, d.status, timedOut, upstreamStatus(ctx))
		if d.answer == answerUnsent {
			d.why = whyUnsent(err)
		}
		settle(d)
	}()
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Delete(upstreamStatusKey) // of a forward_auth in front
	}
	*r = *r.WithContext(ctx)
	err = next.ServeHTTP(rec, r)
	returned = true
	return d, err
}

// deliveryContext is the context of a request: while the app works it ends at
// upstream_timeout and not when the caller hangs up, and then it is the
// caller's own again, since error routes must not run on one that has ended.
// The request itself cannot be given the caller's context back: Go's transport
// may still be reading it (net/http, Transport; reverseproxy.go,
// requestBodyWithTrailers).
type deliveryContext struct {
	context.Context
	caller context.Context
	over   atomic.Bool
}

func (c *deliveryContext) current() context.Context {
	if c.over.Load() {
		return c.caller
	}
	return c.Context
}

func (c *deliveryContext) Deadline() (time.Time, bool) { return c.current().Deadline() }
func (c *deliveryContext) Done() <-chan struct{}       { return c.current().Done() }
func (c *deliveryContext) Err() error                  { return c.current().Err() }

// classify reads the outcome of a delivery off what the handlers behind did.
// upstream is the status that a reverse_proxy among them was given, 0 if none.
func classify(returned bool, err error, status int, timedOut bool, upstream int) answer {
	unknown := answerBroken
	if timedOut {
		unknown = answerTimeout
	}
	if !returned {
		return unknown
	}
	if err == nil {
		switch {
		case status == 0 && (timedOut || upstream != 0): // somebody behind swallowed it
			return unknown
		case status == 0:
			return answerNobody
		case status < 300:
			return answerAccepted
		case status == statusClientClosed:
			return unknown
		default:
			return answerRefused
		}
	}
	if dial := (reverseproxy.DialError{}); errors.As(err, &dial) {
		return answerUnsent
	}
	code := http.StatusInternalServerError
	if handlerErr := (caddyhttp.HandlerError{}); errors.As(err, &handlerErr) {
		code = handlerErr.StatusCode
	}
	switch {
	case status != 0: // it failed in the middle of the answer
		return unknown
	case code == http.StatusBadGateway, code == http.StatusGatewayTimeout, code == statusClientClosed:
		return unknown
	case upstream != 0: // and a handle_response route made an error of it
		return answerRefused
	default:
		return answerUnsent
	}
}

// whyUnsent names a dial error, which holds no more than an address, and of
// any other the status: its text may quote anything.
func whyUnsent(err error) error {
	if dial := (reverseproxy.DialError{}); errors.As(err, &dial) {
		return dial
	}
	if handlerErr := (caddyhttp.HandlerError{}); errors.As(err, &handlerErr) {
		return fmt.Errorf("a handler behind iak_callback refused with status %d", handlerErr.StatusCode)
	}
	return errors.New("a handler behind iak_callback failed")
}

// statusClientClosed is what reverse_proxy reports for a cancelled request
// (Caddy v2.11.9, reverseproxy.go, ServeHTTP): the app may have acted.
const statusClientClosed = 499

// upstreamStatusKey is the placeholder that reverse_proxy sets to the status it
// got from its upstream, whatever it makes of it (Caddy v2.11.9,
// reverseproxy.go, reverseProxy).
const upstreamStatusKey = "http.reverse_proxy.status_code"

// upstreamStatus is the last status that a reverse_proxy behind got, 0 if none.
func upstreamStatus(ctx context.Context) int {
	repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return 0
	}
	value, _ := repl.Get(upstreamStatusKey)
	status, _ := value.(int)
	return status
}
