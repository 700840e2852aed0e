// Package delivery runs the handlers behind iak_callback with the request that the
// app receives, watches the answer, and tells what became of it.
package delivery

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// ReturnGrace is how long after the time is over the handlers behind may take to
// return. FastCGI does not watch its request's context (Caddy v2.11.9,
// reverseproxy/fastcgi/fastcgi.go, RoundTrip) and may not return for hours. A
// variable, so that tests need not wait as long.
var ReturnGrace = time.Second

// Result is what became of a delivery.
type Result int

// What can become of a delivery.
const (
	Accepted Result = iota // the app answered 2xx
	Refused                // the app answered 3xx, 4xx or 5xx
	Unsent                 // nothing was sent to it
	Nobody                 // no handler answered
	TimedOut               // the time passed without an answer; it may have acted
	BrokeOff               // the app broke off; it may have acted
	Unmet                  // the app answered 2xx, and not as it does when it has accepted
)

// Report tells of one delivery.
type Report struct {
	Result Result
	Status int   // what the app sent, 0 if nothing
	Why    error // why nothing was sent (Unsent), or what is not as it should be (Unmet)
	HTML   bool  // the answer is a page for people: a login or an error page, perhaps (Accepted)

	// RetryAfter is that header of the app's answer.
	RetryAfter string

	// Panicked tells that a handler behind did, before the app answered, and not to break
	// the connection off, as http.ErrAbortHandler does.
	Panicked bool
}

// Delivery is one run of the handlers behind.
type Delivery struct {
	// Timeout is the longest that the app may take.
	Timeout time.Duration

	// Accept are the conditions under which a 2xx counts.
	Accept Conditions

	// Late is called when the handlers do not return in time, on a goroutine of its
	// own. It returns the status that the caller is answered with.
	Late func(Report) int

	// Ended is called when the handlers have returned or panicked, before Run does.
	Ended func(Report)

	// Name is told with a panic in Late, or in answering the caller then.
	Name string

	response *response
	body     *watchedBody
	answered chan bool // by watch, when it is done
}

// Run runs next with r, whose body Rewrite has made, and returns its error.
// answered tells that the caller has got an answer meanwhile: the error is not for
// him. Neither the caller's hanging up nor a reload ends the run.
func (d *Delivery) Run(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) (report Report, answered bool, err error) {
	ctx := &deliveryContext{caller: r.Context()}
	d.response = newResponse(w, r, d, func() bool {
		status := upstreamStatus(ctx.caller)
		return status != 0 && (status < 200 || status > 999) // PHP can end with 103 or 42
	})
	d.body = &watchedBody{ReadCloser: r.Body}
	r.Body = d.body
	var cancel context.CancelFunc
	ctx.Context, cancel = context.WithTimeout(context.WithoutCancel(ctx.caller), d.Timeout)
	d.answered = make(chan bool, 1)
	watchdog := time.AfterFunc(d.Timeout+ReturnGrace, func() { guard.Do(d.Name, d.watch) })

	returned := false
	defer func() { // also when next panics: reverse_proxy does to break the connection off
		// By the clock, not by ctx.Err: a transport's own deadline, set after ours to
		// the same time, may end before the context's timer has run.
		deadline, _ := ctx.Deadline()
		timedOut := !time.Now().Before(deadline)
		ctx.over.Store(true)
		cancel()
		if !watchdog.Stop() {
			answered = <-d.answered
		}
		status, unmet, html := d.response.seen()
		e := &evidence{
			status: status, unmet: unmet, upstream: upstreamStatus(ctx), read: d.body.end(),
			timedOut: timedOut, returned: returned, err: err,
		}
		report = classify(e)
		report.HTML = html && report.Result == Accepted
		report.RetryAfter = d.response.sent("Retry-After")
		if returned {
			d.Ended(report)
			return
		}
		p := recover()
		report.Panicked = p != http.ErrAbortHandler && e.status == 0 && e.upstream == 0 //nolint:errorlint // the very value
		d.Ended(report)
		panic(p)
	}()
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Delete(upstreamStatusKey) // of a forward_auth in front
	}
	*r = *r.WithContext(ctx)
	if d.Accept.LookAtBody() {
		delete(r.Header, "Accept-Encoding") // what is compressed cannot be looked at
	}
	err = next.ServeHTTP(d.response, r)
	if err == nil {
		d.response.finish()
	}
	returned = true
	return report, answered, err
}

// watch answers the caller when the handlers do not return in time, unless they
// are just answering him.
func (d *Delivery) watch() {
	taken := d.response.take()
	defer func() { d.answered <- taken }()
	if !taken {
		return
	}
	status := http.StatusGatewayTimeout
	guard.Do(d.Name, func() { status = d.Late(classify(&evidence{read: d.body.end(), timedOut: true})) })
	guard.Do(d.Name, func() { d.response.cutIn(status) })
}

// deliveryContext is the context of a request: while the app works it ends at
// the timeout and not when the caller hangs up, and then it is the caller's own
// again, since error routes must not run on one that has ended. The request
// itself cannot be given the caller's context back: Go's transport may still be
// reading it (net/http, Transport; reverseproxy.go, requestBodyWithTrailers).
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

// Value tells what runs within a delivery apart from the error routes after it.
func (c *deliveryContext) Value(key any) any {
	if key == (withinKey{}) {
		return !c.over.Load()
	}
	return c.Context.Value(key)
}

type withinKey struct{}

// Within tells whether a request is that of a delivery: what it meets stands behind
// iak_callback.
func Within(ctx context.Context) bool {
	within, _ := ctx.Value(withinKey{}).(bool)
	return within
}

func (c *deliveryContext) Deadline() (time.Time, bool) { return c.current().Deadline() }
func (c *deliveryContext) Done() <-chan struct{}       { return c.current().Done() }
func (c *deliveryContext) Err() error                  { return c.current().Err() }

// evidence is what was seen of a delivery.
type evidence struct {
	status   int   // the final status that the handlers sent, 0 if none
	unmet    error // why a 2xx does not count
	upstream int   // the status that a reverse_proxy among them got, 0 if none
	read     bool  // the body was read
	timedOut bool  // the time is over
	returned bool  // the handlers returned; else they panicked, or are still at work
	err      error // what they returned
}

// classify is the one place that decides what became of a delivery.
func classify(e *evidence) Report {
	status := e.status
	if status == statusClientClosed && e.upstream != statusClientClosed {
		status = 0 // not the app's
	}
	report := Report{Result: e.result(status), Status: e.status}
	switch report.Result {
	case Unsent:
		report.Why = e.whyUnsent()
	case Unmet:
		report.Why = e.unmet
	}
	return report
}

func (e *evidence) result(status int) Result {
	unknown := BrokeOff
	if e.timedOut {
		unknown = TimedOut
	}
	fine := e.returned && e.err == nil
	switch {
	case status >= 300:
		return Refused // whatever became of the rest
	case e.unmet != nil:
		return Unmet
	case status != 0 && fine:
		return Accepted
	case status != 0: // it failed in the middle of the answer
		return unknown
	case fine && !e.timedOut && e.status == 0 && (e.upstream == 0 || !e.read): // forward_auth alone has an upstream too
		return Nobody
	case !e.read || e.dialFailed():
		return Unsent
	case e.upstream >= 300 && e.upstream != statusClientClosed: // seen, and made an error or nothing of
		return Refused
	case !e.returned || e.err == nil: // somebody behind swallowed it
		return unknown
	}
	switch e.code() {
	case http.StatusBadGateway, http.StatusGatewayTimeout, statusClientClosed:
		return unknown
	}
	if e.upstream != 0 { // a handle_response route made an error of a 2xx
		return Refused
	}
	return Unsent // a handler refused by itself
}

// dialFailed: FastCGI reads the body into a buffer before it dials (Caddy
// v2.11.9, fastcgi.go, DefaultBufferSizes).
func (e *evidence) dialFailed() bool {
	dial := reverseproxy.DialError{}
	return errors.As(e.err, &dial)
}

// code is the status that a handler's error asks for.
func (e *evidence) code() int { return ErrorStatus(e.err) }

// ErrorStatus is the status that a handler's error asks for.
func ErrorStatus(err error) int {
	if handlerErr := (caddyhttp.HandlerError{}); errors.As(err, &handlerErr) {
		return handlerErr.StatusCode
	}
	return http.StatusInternalServerError
}

// whyUnsent names a dial error, which holds no more than an address, and of
// any other the status: its text may quote anything.
func (e *evidence) whyUnsent() error {
	if dial := (reverseproxy.DialError{}); errors.As(e.err, &dial) {
		return dial
	}
	switch {
	case e.timedOut:
		return errors.New("the time was over before it could be reached")
	case !e.returned:
		return errors.New("a handler behind iak_callback panicked")
	case e.err == nil:
		return errors.New("a handler behind iak_callback did not pass it on")
	}
	if handlerErr := (caddyhttp.HandlerError{}); errors.As(e.err, &handlerErr) {
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
