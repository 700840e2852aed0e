package iakcallback

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/caddy-iak/iakcallback/internal/delivery"
	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap/zapcore"
)

// ServeHTTP leads one callback through the steps of section "What happens to a
// callback" of docs/semantics.md. Each step passes it on or ends it. What ends it
// without the app is returned as a caddyhttp.HandlerError, so that
// handle_errors can shape the answer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) (err error) {
	if delivery.Within(r.Context()) {
		return caddyhttp.Error(http.StatusInternalServerError, errBehindItself)
	}
	m := marked(r)
	switch {
	case m != nil && m.source == "":
		return h.redeliver(w, r, next, m)
	case m != nil && !m.takeSource(h, r):
		return nil
	}
	o := h.observe(r)
	defer o.end()
	if m != nil {
		o.source = m.source
		defer func() { m.outcome, m.why = o.result, o.err }()
	}
	defer func() { // a refused request is dead, whatever an error route does with it
		if err != nil || o.attempt == 0 {
			delivery.Empty(r)
		}
	}()

	c, raw, rejected := receive(r, h.MaxBodySize, h.Spool != nil)
	if rejected != nil {
		return o.reject(w, r, rejected)
	}
	defer c.Release()
	if err := c.CheckRefID(); err != nil {
		return o.reject(w, r, reject(http.StatusUnprocessableEntity, reasonRefID, err))
	}
	o.refID = c.RefID
	account, err := h.accounts.verify(c.RefID, c.Sign())
	if err != nil {
		return o.reject(w, r, reject(http.StatusForbidden, reasonSignature, err))
	}
	o.account = account
	// What IAK has answered is what there is.
	if err := c.CheckFields(h.Validation == validateLenient || o.source != ""); err != nil {
		return o.reject(w, r, reject(http.StatusUnprocessableEntity, reasonField, err))
	}
	o.status = c.Status.String()
	if c.Status == record.Process && h.OnProcess == processAcknowledge {
		o.result = resultAcknowledged
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return h.claim(w, r, next, c, raw, o)
}

// claim takes the record of the callback and, if it is this delivery's turn,
// forwards it.
func (h *Handler) claim(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, c *iak.Callback, raw []byte, o *observation) error {
	s, err := h.store.Open()
	if err != nil {
		return o.unavailable(w, h.store.ID(), err)
	}
	defer h.store.Close()

	request := &record.Request{
		Outcome:         c.Outcome(o.account),
		Lease:           time.Duration(h.UpstreamTimeout) + store.Margin,
		ForwardConflict: h.OnConflict == conflictForward,
		Hold:            h.OnDoubt == doubtHold,
		Ask:             h.ask(),
		Confirmed:       o.source != "", // it is IAK's own answer
	}
	if h.Spool != nil {
		h.keep(request, s, r, raw, o)
	}
	o.claimed = time.Now()
	_, _ = rand.Read(request.Owner[:]) // never fails (Go documentation of crypto/rand.Read)
	// The caller's hanging up ends no store operation: half of one is worse.
	lease, d, err := s.Claim(h.place(o.account, c.RefID), request)
	if err == nil && d.Verdict == record.AskFirst {
		if refused := h.askFirst(context.WithoutCancel(r.Context()), c, o, request); refused != nil {
			refused.tell(o)
			return refused.answer(w)
		}
		o.claimed = time.Now()
		lease, d, err = s.Claim(h.place(o.account, c.RefID), request)
	}
	if err != nil {
		if h.OnStoreError == storeErrorKeep {
			notKept := h.keepHere(request, c, o)
			if notKept == nil {
				o.storeFailed(h.store.ID())
				w.WriteHeader(http.StatusOK)
				return nil
			}
			err = fmt.Errorf("%w; and the callback could not be kept in outage.sqlite: %w", err, notKept)
		}
		if h.OnStoreError == storeErrorForward {
			o.storeFailed(h.store.ID())
			o.err, o.level = fmt.Errorf("forwarded without deduplication: %w", err), zapcore.ErrorLevel
			asking := request.Ask == record.AskFinal && !request.Confirmed && c.Status != record.Process
			return h.forward(w, r, next, c, o, record.Decision{Attempt: 1, Contradicts: -1, Asking: asking, Confirmed: request.Confirmed}, nil)
		}
		return o.unavailable(w, h.store.ID(), err)
	}
	storeAnswered(h.store.ID())
	switch {
	case d.Verdict == record.Forwarded && request.Keep != nil:
		return h.forwardKept(w, r, next, c, raw, o, d, lease)
	case d.Verdict == record.Forwarded:
		return h.forward(w, r, next, c, o, d, lease)
	}
	o.result = string(d.Verdict)
	switch d.Verdict {
	case record.Spooled:
		w.WriteHeader(http.StatusOK)
		return nil
	case record.Duplicate, record.Stale:
		w.Header().Set(inspect.HeaderReplayed, "true")
		w.WriteHeader(max(d.Code, http.StatusOK))
		return nil
	case record.InFlight:
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter(d.Wait)))
		if d.Other {
			o.err, o.level = errOther, zapcore.WarnLevel
		}
		return caddyhttp.Error(http.StatusConflict, errors.New("another delivery of this ref_id waits for the app's answer"))
	case record.Held:
		o.event, o.err = eventHeld, errHeld
		if d.Kept {
			w.WriteHeader(http.StatusOK)
			return nil
		}
	default: // record.Conflict
		o.event, o.err = eventConflict, contradiction(d.Contradicts)
	}
	return caddyhttp.Error(http.StatusConflict, o.err)
}

// place is where the record of an order is.
func (h *Handler) place(account, refID string) store.Place {
	return store.Place{Key: record.Key(h.keyPrefix, account, refID), Index: h.keyPrefix, Retention: time.Duration(h.Retention)}
}

// statusWord is the word of a status that is a number in a decision.
func statusWord(s int) string { return record.Status(s).String() } //nolint:gosec // 0, 1 or 2

// reject ends the way before the claim.
func (o *observation) reject(w http.ResponseWriter, r *http.Request, rejected *rejection) error {
	o.result, o.reason, o.err = resultRejected, rejected.reason, rejected.err
	if place := addresses[o.clientIP]; place != "" && rejected.reason == reasonSignature {
		o.err = fmt.Errorf("%w; it came from IAK's own address (%s), so the key or the username here is not the one at IAK", rejected.err, place)
	}
	if rejected.unread && r.ProtoMajor == 1 {
		// Go would wait for the rest of the body before it answers: it does not see
		// through Caddy's wrapper of the body (net/http, server.go, writeHeader).
		w.Header().Set("Connection", "close")
	}
	if rejected.reason == reasonMethod {
		w.Header().Set("Allow", http.MethodPost)
	}
	return caddyhttp.Error(rejected.status, rejected.err)
}

// unavailable ends the way when the store cannot say whose turn it is.
func (o *observation) unavailable(w http.ResponseWriter, id string, err error) error {
	o.storeFailed(id)
	o.result, o.err = resultStoreUnavailable, err
	w.Header().Set("Retry-After", strconv.Itoa(maxRetryAfter))
	return caddyhttp.Error(http.StatusServiceUnavailable, err)
}

// maxRetryAfter is the longest that a caller is asked to wait, in seconds.
const maxRetryAfter = 5

// retryAfter is what is left of a lease in full seconds, 1 to 5.
func retryAfter(left time.Duration) int {
	return min(max(int(math.Ceil(left.Seconds())), 1), maxRetryAfter)
}

const howToSettle = "when it cannot be at work any more, look at the order in the app, then settle it with caddy iak-callback accept (it has acted) or release (it has not)"

var errHeld = errors.New("it is not known whether the app has acted on this outcome, or ever got it: " + howToSettle)

var errOther = errors.New("another outcome of this order is being delivered, so this one was answered 409, to be sent again: " +
	"if it does not come again, ask IAK for the order's status (check-status) and enter it in the app; " +
	"if the delivery under way is one of status 0, on_process acknowledge keeps those from the app")

var errHTML = errors.New("the app's answer counts as accepted, but is a page of HTML: if it is a login or error page, " +
	"the app has not acted; mend that, or say with accept_when how it answers when it has")

var errBehindItself = errors.New("iak_callback stands behind itself on one route: the second cannot verify what the first has forwarded; remove one")

var errNobody = errors.New("no handler behind iak_callback answered: put the app's reverse_proxy or php_fastcgi on the same route")

// forward sends the normalized callback to the handlers behind, and settles
// the claim by their answer. Without a lease there is no claim.
func (h *Handler) forward(
	w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, c *iak.Callback, o *observation, d record.Decision, lease *store.Lease,
) error {
	if d.Asking {
		if refused := h.confirm(context.WithoutCancel(r.Context()), c, o, &d, lease); refused != nil {
			refused.tell(o)
			return refused.answer(w)
		}
	}
	h.rewrite(r, c, o, d, lease != nil)
	return h.deliver(w, r, next, o, lease, func() {})
}

// rewrite makes r what the app receives.
func (h *Handler) rewrite(r *http.Request, c *iak.Callback, o *observation, d record.Decision, claimed bool) {
	o.attempt = d.Attempt
	headers := append(make([]delivery.Header, 0, 10),
		delivery.Header{Name: delivery.IdempotencyKey, Value: c.IdempotencyKey(o.account, d.LateGoods, d.Contradicts >= 0)},
		delivery.Header{Name: delivery.HeaderAccount, Value: o.account},
		delivery.Header{Name: delivery.HeaderAttempt, Value: strconv.Itoa(d.Attempt)},
	)
	if d.Contradicts >= 0 {
		o.event = eventConflict
		o.err = fmt.Errorf("forwarded although it contradicts the outcome %q that the app has, or may have, accepted", statusWord(d.Contradicts))
		o.level = zapcore.ErrorLevel
		headers = append(headers, delivery.Header{Name: delivery.HeaderConflict, Value: strconv.Itoa(d.Contradicts)})
	}
	if d.Asking || d.Confirmed {
		headers = append(headers, delivery.Header{Name: delivery.HeaderConfirmed, Value: strconv.FormatBool(d.Confirmed)})
	}
	if o.source != "" {
		headers = append(headers, delivery.Header{Name: delivery.HeaderSource, Value: o.source})
	}
	if !claimed {
		headers = append(headers, delivery.Header{Name: delivery.HeaderDeduplicated, Value: "false"})
	}
	body := make([]byte, 0, c.Size()+64) // most often that is enough
	if h.Body == bodyFlat {
		body = c.AppendFlat(body)
	} else {
		body = c.AppendIAK(body)
	}
	delivery.Rewrite(r, body, headers)
}

// deliver runs the handlers behind with what rewrite has made. late is called when they
// do not come back in time.
func (h *Handler) deliver(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, o *observation, lease *store.Lease, late func()) error {
	start := time.Now()
	inFlight.Inc()
	run := &delivery.Delivery{
		// Counted from before the claim, whose lease begins later: however slow the store,
		// nobody takes over while the app is within its time.
		Timeout: max(time.Duration(h.UpstreamTimeout)-time.Since(o.claimed), 0),
		Accept:  h.conditions,
		Late: func(report delivery.Report) int { // the handlers behind do not come back, perhaps for hours
			early := o.early()
			h.settle(report, lease, early, time.Since(start))
			early.end()
			late()
			if h.assumes(report) {
				return http.StatusOK
			}
			return http.StatusGatewayTimeout
		},
		Ended: func(report delivery.Report) {
			inFlight.Dec()
			took := time.Since(start)
			upstreamDuration.WithLabelValues(o.account).Observe(took.Seconds())
			h.settle(report, lease, o, took)
		},
		Name: "giving up a late app, ref_id " + o.refID,
	}
	report, answered, err := run.Run(w, r, next)
	if errors.Is(err, errBehindItself) {
		o.err, o.level = errBehindItself, zapcore.ErrorLevel
	}
	switch {
	case answered:
		return nil
	case report.Result == delivery.Nobody:
		return caddyhttp.Error(http.StatusBadGateway, errNobody)
	case report.Result == delivery.Unmet:
		return caddyhttp.Error(http.StatusBadGateway, h.explain(report, o.status))
	case report.Result == delivery.TimedOut && report.Status == 0 && h.assumes(report):
		w.WriteHeader(http.StatusOK)
		return nil
	case report.Result == delivery.TimedOut && report.Status == 0:
		return caddyhttp.Error(http.StatusGatewayTimeout, h.explain(report, o.status))
	case report.Status == 0 && err == nil:
		// Without an error Caddy would answer 200 for what the app did not accept.
		return caddyhttp.Error(http.StatusBadGateway, h.explain(report, o.status))
	default:
		return err
	}
}

// settlements is what each result of a delivery makes of the callback's outcome
// and its claim. Without an ending the claim is in doubt when the lease is over.
var settlements = map[delivery.Result]struct {
	outcome string
	ending  record.Ending
}{
	delivery.Accepted: {string(record.Forwarded), record.Accepted},
	delivery.Refused:  {resultAppFailed, record.Released},
	delivery.Unmet:    {resultAppFailed, record.Released},
	delivery.Nobody:   {resultAppFailed, record.Released},
	delivery.Unsent:   {resultAppFailed, record.Unsent},
	delivery.TimedOut: {resultAppUnknown, ""},
	delivery.BrokeOff: {resultAppUnknown, ""},
}

// assumes tells whether on_doubt takes a delivery for accepted.
func (h *Handler) assumes(report delivery.Report) bool {
	return report.Result == delivery.TimedOut && h.OnDoubt == doubtAccept
}

// settle settles the claim by what became of the delivery, and tells it.
func (h *Handler) settle(report delivery.Report, lease *store.Lease, o *observation, took time.Duration) {
	s, code := settlements[report.Result], report.Status
	if h.assumes(report) {
		s.outcome, s.ending, code = resultAssumed, record.Assumed, http.StatusOK
	}
	if lease != nil && h.Spool != nil {
		s.ending = h.tried(report, lease, s.ending, took)
	}
	switch {
	case lease == nil:
	case s.ending != "":
		lease.Settle(s.ending, code)
	default:
		lease.Leave()
	}
	if report.Result == delivery.Accepted && o.event == eventConflict {
		s.outcome = string(record.Conflict)
	}
	o.result, o.appStatus = s.outcome, report.Status
	switch {
	case report.Result == delivery.Nobody:
		o.level = zapcore.ErrorLevel
	case report.HTML && len(h.conditions) == 0:
		o.level = max(o.level, zapcore.WarnLevel)
	}
	if o.err == nil {
		o.err = h.explain(report, o.status)
	}
	if lease != nil && lease.Dead() {
		o.result, o.event, o.err = string(record.Died), eventDead, errPanics
	}
}

// explain says why a delivery was not accepted by the app's own answer, for the
// log: with handle_errors, Caddy's log does not.
func (h *Handler) explain(report delivery.Report, status string) error {
	unknown := "it may have acted"
	if h.OnDoubt == doubtHold && status != record.Process.String() {
		unknown += "; " + howToSettle
	}
	switch report.Result {
	case delivery.Nobody:
		return errNobody
	case delivery.Unsent:
		return fmt.Errorf("nothing reached the app: %w", report.Why)
	case delivery.TimedOut:
		if h.OnDoubt == doubtAccept {
			unknown = "taken for accepted by on_doubt accept"
		}
		return fmt.Errorf("the app did not answer within upstream_timeout, %s; %s", time.Duration(h.UpstreamTimeout), unknown)
	case delivery.BrokeOff:
		return errors.New("the app broke off without a whole answer; " + unknown)
	case delivery.Refused:
		if report.Status == 0 {
			return errors.New("the app refused, and a handler between dropped its answer")
		}
	case delivery.Unmet:
		return fmt.Errorf("the app answered %d, but %w", report.Status, report.Why)
	case delivery.Accepted:
		if report.HTML && len(h.conditions) == 0 {
			return errHTML
		}
	}
	return nil
}
