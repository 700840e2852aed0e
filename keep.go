package iakcallback

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/delivery"
	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap/zapcore"
)

var (
	errSpoolFull = errors.New("max_pending is reached: until the app has accepted some of what is kept, new callbacks are treated as without a spool")
	errPanics    = errors.New("the handlers behind iak_callback have panicked three times in a row: mend them, then caddy iak-callback redeliver")
	errUnrouted  = errors.New("no route of this configuration leads to an iak_callback with a spool and this account: the callback is kept and not delivered, " +
		"until its path, host and account are there again; or an operator forgets it")
	errDead = errors.New("the app has not accepted the callback within max_age: mend the app, then caddy iak-callback redeliver; " +
		"show tells how each try has ended")
)

// keep makes the claim carry the callback itself, if there is room.
func (h *Handler) keep(q *record.Request, s *store.Store, r *http.Request, raw []byte, o *observation) {
	place := h.store.ID() + " " + h.keyPrefix
	if s.Waiting(h.keyPrefix) >= h.Spool.MaxPending {
		o.spoolIsFull(place)
		return
	}
	spoolHasRoom(place)
	uri := r.RequestURI
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		uri = original.RequestURI
	}
	kept := spool.Capture(r, uri, raw)
	kept.Source = o.source
	payload, err := kept.Encode()
	if err != nil { // it is strings and numbers
		o.err, o.level = err, zapcore.ErrorLevel
		return
	}
	q.Keep, q.Came = &payload, o.start.UnixMilli()
	q.Delay = time.Duration(h.Spool.Delay)
	q.Later = q.Delay > 0 || h.gate.Open()
}

// keepHere keeps a callback in a file of this machine, since Redis does not answer. An
// error says why that has it not.
func (h *Handler) keepHere(q *record.Request, c *iak.Callback, o *observation) error {
	if q.Keep == nil {
		return errFull
	}
	s, err := h.outage.Open()
	if err != nil {
		return err
	}
	defer h.outage.Close()
	if s.Waiting(h.keyPrefix) >= h.Spool.MaxPending {
		o.spoolIsFull(h.outage.ID() + " " + h.keyPrefix)
		return errFull
	}
	here := *q
	here.Later, here.Delay, here.Hold = true, 0, false
	_, d, err := s.Claim(h.place(o.account, c.RefID), &here)
	if err != nil {
		return err
	}
	if d.Verdict != record.Spooled && d.Verdict != record.Stale {
		return errors.New("it holds another outcome of this order, which this one contradicts")
	}
	o.result, o.level = string(record.Spooled), zapcore.ErrorLevel
	o.err = errors.New("redis does not answer: the callback is kept in the file outage.sqlite, and handed in when Redis is back")
	return nil
}

var errFull = errors.New("as many callbacks wait as max_pending allows")

// tried tells the gate and the lease of a delivery of what is kept, and returns how it
// ends the claim.
func (h *Handler) tried(report delivery.Report, lease *store.Lease, ending record.Ending, took time.Duration) record.Ending {
	now := time.Now()
	stopped := h.app.stopped.Load()
	switch {
	case stopped: // its configuration was replaced: that tells nothing of the app
	case report.Result == delivery.Accepted:
		h.gate.Tell(spool.Accepted, now)
	case report.Result == delivery.Unsent, report.Result == delivery.TimedOut:
		h.gate.Tell(spool.Silent, now)
	default:
		h.gate.Tell(spool.Answered, now)
	}
	kept := lease.Kept()
	if kept == nil {
		return ending
	}
	panicked := report.Panicked && !stopped
	if report.Panicked || report.Result == delivery.Nobody && stopped {
		ending = record.Unsent
	}
	if panicked {
		ending = record.Released
	}
	lease.Tried(took, h.Spool.Backoff.pauses().After(kept.Pauses, spool.RetryAfter(report.RetryAfter, now)), panicked)
	return ending
}

// forwardKept delivers a callback that is kept, on a request of its own: IAK gets the
// app's answer if it comes in time and is a 2xx, and else 200.
func (h *Handler) forwardKept(
	w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, c *iak.Callback, raw []byte, o *observation, d record.Decision, lease *store.Lease,
) error {
	answer := delivery.NewRecorder(w.Header())
	apart, event := *o, ""
	own := detach(r, answer, apart.placeholder)
	apart.message, apart.counted = "the delivery of a callback that IAK was answered before", true
	var refused *refusedError
	if d.Asking { // which may take longer than the request, to which c belongs
		var err error
		if c, err = decodeKept(raw); err != nil {
			return caddyhttp.Error(http.StatusInternalServerError, err) // it was read before
		}
	} else {
		h.rewrite(own, c, &apart, d, true)
		event = apart.event
		o.attempt, o.event, o.err, o.level = apart.attempt, apart.event, apart.err, apart.level
	}
	handover := &handover{done: make(chan struct{}), late: make(chan struct{})}
	h.apart("a delivery", func() {
		defer func() { // also when a handler panics
			if handover.end() {
				return // the caller tells
			}
			if apart.event == event { // which the request has emitted
				apart.event = ""
			}
			apart.redelivered = !apart.told
			apart.end()
		}()
		if d.Asking {
			if refused = h.confirm(own.Context(), c, &apart, &d, lease); refused != nil {
				refused.tell(&apart)
				return
			}
			h.rewrite(own, c, &apart, d, true)
		}
		_ = h.deliver(answer, own, next, &apart, lease, func() { close(handover.late) })
	})
	if !handover.wait(time.Duration(*h.Spool.AnswerWithin)) {
		o.result = string(record.Spooled)
		w.WriteHeader(http.StatusOK)
		return nil
	}
	o.event, o.err, o.level, o.appStatus, o.result, o.attempt = apart.event, apart.err, apart.level, apart.appStatus, apart.result, apart.attempt
	if refused != nil && refused.status == http.StatusConflict {
		return refused.answer(w)
	}
	switch o.result {
	case string(record.Forwarded), string(record.Conflict):
		answer.Replay(w)
	case resultAssumed:
		w.WriteHeader(http.StatusOK)
	default:
		o.level = max(o.level, levels[o.result])
		if o.result != string(record.Died) {
			o.result = string(record.Spooled)
		}
		w.WriteHeader(http.StatusOK)
	}
	return nil
}

// apart runs a delivery that may outlive its request and its configuration: it holds the
// store, and the end of Caddy waits for it. The caller holds the store.
func (h *Handler) apart(what string, deliver func()) {
	_, _ = h.store.Open() // cannot fail
	done := h.app.delivers()
	go guard.Do(what, func() {
		defer done()
		defer h.store.Close()
		deliver()
	})
}

// handover says who tells of a delivery: the request, if it still waits for it, or else
// the delivery itself.
type handover struct {
	mu    sync.Mutex
	gone  bool // the request waits no longer
	ended bool
	done  chan struct{}
	late  chan struct{} // closed when nothing more is to be waited for
}

// wait waits for the delivery and tells whether it has ended.
func (h *handover) wait(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-h.done:
	case <-h.late:
	case <-timer.C:
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone = !h.ended
	return h.ended
}

// end ends the delivery and tells whether the request waits for it.
func (h *handover) end() (awaited bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	close(h.done)
	return !h.gone
}

// What belongs to one request in its context, beside what Caddy exports (Caddy v2.11.9,
// caddyhttp/routes.go and idletimeout.go).
const (
	routeGroupKey   = caddy.CtxKey("route_group")
	idleTimeoutsKey = caddy.CtxKey("idle_timeouts")
)

// detach copies a request, so that what handlers do with the copy can go on when the
// request is over: it has its own headers, placeholders, vars and route groups, with what
// the handlers in front have set.
func detach(r *http.Request, w http.ResponseWriter, placeholder caddy.ReplacerFunc) *http.Request {
	before := r.Context()
	server, _ := before.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	repl := caddy.NewReplacer()
	own := caddyhttp.PrepareRequest(r.Clone(context.WithoutCancel(before)), repl, w, server)
	repl.Map(placeholder)
	if old, ok := before.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(old.Get)
	}
	ctx := context.WithValue(own.Context(), idleTimeoutsKey, nil)
	if original := before.Value(caddyhttp.OriginalRequestCtxKey); original != nil {
		ctx = context.WithValue(ctx, caddyhttp.OriginalRequestCtxKey, original)
	}
	if vars, ok := before.Value(caddyhttp.VarsCtxKey).(map[string]any); ok {
		ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, maps.Clone(vars))
	}
	if groups, ok := before.Value(routeGroupKey).(map[string]struct{}); ok {
		ctx = context.WithValue(ctx, routeGroupKey, maps.Clone(groups))
	}
	*own = *own.WithContext(ctx) // the placeholders are bound to this very request
	return own
}
