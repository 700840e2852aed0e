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

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// reason is why a callback was rejected before its claim.
type reason string

const (
	reasonMethod     reason = "method"
	reasonMediaType  reason = "media_type"
	reasonTooLarge   reason = "too_large"
	reasonIncomplete reason = "incomplete"
	reasonMalformed  reason = "malformed"
	reasonRefID      reason = "ref_id"
	reasonSignature  reason = "signature"
	reasonField      reason = "field"
)

// rejection ends a callback's way with an error status.
type rejection struct {
	status int
	reason reason
	err    error
	unread bool // the body was not read to its end
}

func reject(status int, reason reason, err error) *rejection {
	return &rejection{status: status, reason: reason, err: err}
}

// beforeEnd marks a rejection that left some of the body unread.
func (r *rejection) beforeEnd() *rejection {
	r.unread = true
	return r
}

// ServeHTTP leads one callback through the steps of section "What happens to a
// callback" of docs/semantics.md. Each step passes it on or ends it. What ends it
// without the app is returned as a caddyhttp.HandlerError, so that
// handle_errors can shape the answer.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	p := h.begin(w, r)
	defer p.end()

	c, rejected := receive(r, h.MaxBodySize)
	if rejected != nil {
		return p.reject(rejected)
	}
	defer c.done()
	if err := c.checkRefID(); err != nil {
		return p.reject(reject(http.StatusUnprocessableEntity, reasonRefID, err))
	}
	p.refID = c.refID
	account, err := h.accounts.verify(c.refID, c.find("sign"))
	if err != nil {
		return p.reject(reject(http.StatusForbidden, reasonSignature, err))
	}
	p.account = account
	if err := c.checkFields(h.Validation == validateLenient); err != nil {
		return p.reject(reject(http.StatusUnprocessableEntity, reasonField, err))
	}
	p.status = c.status.String()
	if c.status == statusProcess && h.OnProcess == processAcknowledge {
		p.outcome = outcomeAcknowledged
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return p.claim(c, next)
}

// claim takes the record of the callback and, if it is this delivery's turn,
// forwards it.
func (p *passage) claim(c *callback, next caddyhttp.Handler) error {
	h := p.handler
	store, err := h.store.acquire()
	if err != nil {
		return p.unavailable(err)
	}
	defer h.releaseStore()

	t := ticket{
		store: store,
		claim: claimRequest{
			key:             recordKey(h.keyPrefix, p.account, c.refID),
			outcome:         outcome{status: c.status, fingerprint: c.fingerprint(p.account)},
			lease:           time.Duration(h.UpstreamTimeout) + leaseMargin,
			retention:       time.Duration(h.Retention),
			forwardConflict: h.OnConflict == conflictForward,
			hold:            h.OnDoubt == doubtHold,
		},
		until: time.Now().Add(time.Duration(h.UpstreamTimeout) + leaseMargin),
	}
	_, _ = rand.Read(t.claim.owner[:]) // never fails (Go documentation of crypto/rand.Read)

	start := time.Now()
	// The caller's hanging up ends no store operation: half of one is worse.
	d, err := store.claim(context.Background(), &t.claim)
	observeStore(h.store.kind, "claim", start, err)
	if err != nil {
		if !errors.Is(err, errRecord) { // then no claim was made, nor will be
			h.giveBack(&t)
		}
		if h.OnStoreError == storeErrorForward {
			p.event = eventStoreUnavailable
			p.err, p.alarm = fmt.Errorf("forwarded without deduplication: %w", err), true
			return p.forward(c, decision{attempt: 1, contradicts: -1}, nil, next)
		}
		return p.unavailable(err)
	}
	t.leaseEnd = d.leaseEnd
	switch d.verdict {
	case verdictForwarded:
		return p.forward(c, d, &t, next)
	case verdictDuplicate, verdictStale:
		p.outcome = string(d.verdict)
		p.w.Header().Set(replayedHeader, "true")
		p.w.WriteHeader(max(d.code, http.StatusOK))
		return nil
	case verdictInFlight:
		p.outcome = string(d.verdict)
		p.w.Header().Set("Retry-After", strconv.Itoa(retryAfter(d.wait)))
		return caddyhttp.Error(http.StatusConflict, errors.New("another delivery of this ref_id waits for the app's answer"))
	case verdictHeld:
		p.outcome, p.event = string(d.verdict), eventHeld
		p.err = errHeld
		return caddyhttp.Error(http.StatusConflict, p.err)
	case verdictConflict:
		p.outcome, p.event = string(d.verdict), eventConflict
		p.err = fmt.Errorf("the callback contradicts the outcome %q that the app has, or may have, accepted for this ref_id: "+
			"IAK reversed the order, or somebody replays its signature; ask IAK for the order's status", statusWord(d.contradicts))
		return caddyhttp.Error(http.StatusConflict, p.err)
	default:
		return p.unavailable(fmt.Errorf("unexpected verdict %q from the store", d.verdict))
	}
}

// replayedHeader says, in an answer from the record, that the app did not see
// this callback.
const replayedHeader = "Idempotent-Replayed"

const howToSettle = "when it cannot be at work any more, look at the order in the app, then settle it with caddy iak-callback accept (it has acted) or release (it has not)"

var errHeld = errors.New("it is not known whether the app has acted on this outcome, or ever got it: " + howToSettle)

var errNobody = errors.New("no handler behind iak_callback answered: put the app's reverse_proxy or php_fastcgi on the same route")

// maxRetryAfter is the longest that a caller is asked to wait, in seconds.
const maxRetryAfter = 5

// retryAfter is what is left of a lease in full seconds, 1 to 5.
func retryAfter(left time.Duration) int {
	return min(max(int(math.Ceil(left.Seconds())), 1), maxRetryAfter)
}

// forward sends the normalized callback to the handlers behind, and settles
// the claim by their answer. Without a ticket there is no claim.
func (p *passage) forward(c *callback, d decision, t *ticket, next caddyhttp.Handler) error {
	h := p.handler
	p.attempt = d.attempt
	headers := append(make([]header, 0, 8),
		header{"Idempotency-Key", c.idempotencyKey(p.account, d.lateGoods)},
		header{"Iak-Account", p.account},
		header{"Iak-Attempt", strconv.Itoa(d.attempt)},
	)
	if d.contradicts >= 0 {
		p.event = eventConflict
		p.err, p.alarm = fmt.Errorf("forwarded although it contradicts the outcome %q that the app has, or may have, accepted", statusWord(d.contradicts)), true
		headers = append(headers, header{"Iak-Conflict", strconv.Itoa(d.contradicts)})
	}
	if t == nil {
		headers = append(headers, header{"Iak-Deduplicated", "false"})
	}
	body := make([]byte, 0, c.size+64) // most often that is enough
	if h.Body == bodyFlat {
		body = c.appendFlat(body)
	} else {
		body = c.appendIAK(body)
	}
	rewrite(p.r, body, headers)

	accept := h.OnDoubt == doubtAccept
	start := time.Now()
	inFlight.Inc()
	delivered, err := deliver(p.w, p.r, next, time.Duration(h.UpstreamTimeout),
		func() int { // the handlers behind do not come back, perhaps for hours
			p.tellEarly(delivery{answer: answerTimeout})
			if !accept {
				return http.StatusGatewayTimeout
			}
			h.settle(t, settleAccepted, http.StatusOK)
			return http.StatusOK
		},
		func(dl delivery) {
			inFlight.Dec()
			upstreamDuration.WithLabelValues(p.account).Observe(time.Since(start).Seconds())
			p.appStatus = dl.status
			p.settled(dl, d.contradicts >= 0, t)
			if p.err == nil {
				p.err = p.explain(dl)
			}
		})
	if delivered.over {
		return nil
	}
	switch {
	case delivered.answer == answerNobody:
		return caddyhttp.Error(http.StatusBadGateway, errNobody)
	case delivered.answer == answerTimeout && delivered.status == 0 && accept:
		p.w.WriteHeader(http.StatusOK)
		return nil
	case delivered.answer == answerTimeout && delivered.status == 0:
		return caddyhttp.Error(http.StatusGatewayTimeout, p.explain(delivered))
	case delivered.status == 0 && err == nil:
		// Without an error Caddy would answer 200 for what the app did not accept.
		return caddyhttp.Error(http.StatusBadGateway, p.explain(delivered))
	default:
		return err
	}
}

// settled settles the claim by what became of the delivery, and names it for
// the log.
func (p *passage) settled(d delivery, contradicted bool, t *ticket) {
	h := p.handler
	switch d.answer {
	case answerAccepted:
		p.outcome = string(verdictForwarded)
		if contradicted {
			p.outcome = string(verdictConflict)
		}
		h.settle(t, settleAccepted, d.status)
	case answerRefused, answerNobody:
		p.outcome = outcomeAppFailed
		h.settle(t, settleReleased, 0)
		p.alarm = p.alarm || d.answer == answerNobody
	case answerUnsent:
		p.outcome = outcomeAppFailed
		h.settle(t, settleUnsent, 0)
	case answerTimeout:
		if h.OnDoubt == doubtAccept {
			p.outcome = string(verdictForwarded)
			h.settle(t, settleAccepted, http.StatusOK)
			return
		}
		p.outcome = outcomeAppUnknown // in doubt when the lease is over
	case answerBroken:
		p.outcome = outcomeAppUnknown
	}
}

// explain says why a delivery was not accepted by the app's own answer, for the
// log: with handle_errors, Caddy's log does not.
func (p *passage) explain(d delivery) error {
	h := p.handler
	unknown := "it may have acted"
	if h.OnDoubt == doubtHold && p.status != statusProcess.String() {
		unknown += "; " + howToSettle
	}
	switch d.answer {
	case answerNobody:
		return errNobody
	case answerUnsent:
		return fmt.Errorf("nothing reached the app: %w", d.why)
	case answerTimeout:
		if h.OnDoubt == doubtAccept {
			return fmt.Errorf("the app did not answer within upstream_timeout, %s; taken for accepted by on_doubt accept", time.Duration(h.UpstreamTimeout))
		}
		return fmt.Errorf("the app did not answer within upstream_timeout, %s; %s", time.Duration(h.UpstreamTimeout), unknown)
	case answerBroken:
		return errors.New("the app broke off without a whole answer; " + unknown)
	default:
		return nil
	}
}

// ticket is a claim that was asked for, and what is needed to end it.
type ticket struct {
	store    *sharedStore
	claim    claimRequest
	leaseEnd int64     // by the store's clock
	until    time.Time // by our own, counted from before the claim: never later
}

// settle ends a claim. What the store cannot record now is tried again in the
// background until the lease is over.
func (h *Handler) settle(t *ticket, verdict settleVerdict, code int) {
	if t == nil {
		return
	}
	o := t.claim.outcome
	o.code = code
	s := &settlement{
		key: t.claim.key, owner: t.claim.owner, leaseEnd: t.leaseEnd, retention: t.claim.retention,
		verdict: verdict, outcome: o,
	}
	err := h.trySettle(t.store, s)
	if err == nil {
		return
	}
	logger().Warn("the store failed after the app's answer; recording it is tried again until the lease is over",
		zap.String("key", s.key), zap.String("verdict", string(verdict)), zap.Error(err))
	again := func() error { return h.trySettle(t.store, s) }
	h.later(t.store, &task{try: again, successes: 1, until: t.until, end: func(err error) {
		if err != nil {
			storeErrorsTotal.WithLabelValues(h.store.kind, "settle_lost").Inc()
			logger().Error("the app's answer could not be recorded before the lease was over; the callback may be delivered again",
				zap.String("key", s.key), zap.String("verdict", string(verdict)), zap.Error(err))
		}
	}})
}

func (h *Handler) trySettle(store recordStore, s *settlement) error {
	start := time.Now()
	err := store.settle(context.Background(), s)
	observeStore(h.store.kind, "settle", start, err)
	return err
}

// giveBackFor is how long a claim with an unknown outcome is pursued: a frozen
// Redis carries it out when it thaws.
const giveBackFor = time.Hour

// giveBack releases a claim of which it is not known whether it was, or will
// be, carried out. Two successes are needed: a thawing Redis may run the first
// release before the claim that waits on another connection.
func (h *Handler) giveBack(t *ticket) {
	s := &settlement{key: t.claim.key, owner: t.claim.owner, retention: t.claim.retention, verdict: settleUnsent}
	h.later(t.store, &task{
		try:       func() error { return t.store.settle(context.Background(), s) },
		successes: 2,
		minor:     true,
		until:     time.Now().Add(giveBackFor),
		end: func(err error) {
			if err != nil {
				logger().Error("a claim of unknown outcome could not be given back; its ref_id may be locked until the lease is over",
					zap.String("key", s.key), zap.Error(err))
			}
		},
	})
}

// later hands a task to the store's backlog, which holds the store meanwhile.
func (h *Handler) later(store *sharedStore, t *task) {
	if _, err := h.store.acquire(); err != nil { // cannot be: the caller holds it
		t.end(err)
		return
	}
	end := t.end
	t.end = func(err error) {
		end(err)
		h.releaseStore()
	}
	store.backlog.add(t)
}

func (h *Handler) releaseStore() {
	if err := h.store.release(); err != nil {
		logger().Error("closing the store", zap.Error(err))
	}
}

// logger is the logger of the configuration in force, for what may outlive the
// handler's own.
func logger() *zap.Logger {
	return caddy.Log().Named("http.handlers.iak_callback")
}
