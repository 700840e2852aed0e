package iakcallback

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap/zapcore"
)

// The verdicts of IAK on a callback.
const (
	verdictConfirmed = "confirmed"
	verdictDenied    = "denied"
	verdictNotYet    = "not_yet"
)

// says is what IAK says of a callback.
type says struct {
	verdict string
	answer  *iak.Answer
	why     error // unless it is confirmed
}

// question asks IAK about a callback, and notes how IAK answers.
func (h *Handler) question(ctx context.Context, c *iak.Callback, account string) says {
	start := time.Now()
	who := h.accounts.signer(account, c.RefID, c.Sign())
	answer := h.client.Ask(ctx, h.Confirm.base(account), who.username, who.secret, c.RefID)
	confirmDuration.Observe(time.Since(start).Seconds())
	h.standings.note(account, h.Confirm.base(account), answer)
	s := says{verdict: verdictConfirmed, answer: answer}
	switch answer.Standing {
	case iak.StandingFinal:
		if differs := answer.Differs(c); len(differs) > 0 {
			s.verdict, s.why = verdictDenied, fmt.Errorf("IAK says another thing of this order (%s): the callback is forged, or older than what IAK says now; "+
				"it was not forwarded. caddy iak-callback ask shows what IAK says, and --deliver brings it to the app", strings.Join(differs, ", "))
		}
	case iak.StandingOpen:
		s.verdict, s.why = verdictNotYet, errors.New("IAK says that the order is still under way")
	default:
		s.verdict, s.why = verdictNotYet, answer.Why
	}
	confirmTotal.WithLabelValues(account, s.verdict).Inc()
	return s
}

// refusedError ends the way of a callback about which IAK was asked.
type refusedError struct {
	status  int
	outcome string
	ending  record.Ending
	event   string
	err     error
}

func (e *refusedError) Error() string { return e.err.Error() }

// confirm asks IAK about what was claimed, and hands it on if IAK says the same: c has the
// goods then that only IAK's answer has. What ends its way is settled.
func (h *Handler) confirm(ctx context.Context, c *iak.Callback, o *observation, d *record.Decision, lease *store.Lease) *refusedError {
	s := h.question(ctx, c, o.account)
	refused := h.judge(s, d, o)
	if refused == nil {
		more := d.Confirmed && s.answer.Complete(c)
		if lease == nil {
			return nil
		}
		payload := ""
		if more {
			payload = withBody(lease.Kept(), c)
		}
		err := lease.Hand(c.Outcome(o.account).Goods, payload, d.Confirmed)
		if err == nil {
			return nil
		}
		refused = &refusedError{http.StatusServiceUnavailable, resultStoreUnavailable, record.Unsent, "",
			fmt.Errorf("IAK has answered, and the store does not note it: %w", err)}
	}
	if lease != nil {
		if kept := lease.Kept(); kept != nil && h.Spool != nil {
			lease.Tried(time.Since(o.claimed), h.Spool.Backoff.pauses().After(kept.Pauses, 0), false)
		}
		lease.Settle(refused.ending, 0)
	}
	return refused
}

// judge says what becomes of a callback by what IAK says; nil if it is forwarded.
func (h *Handler) judge(s says, d *record.Decision, o *observation) *refusedError {
	switch {
	case s.verdict == verdictDenied:
		return &refusedError{http.StatusConflict, resultUnconfirmed, record.Denied, eventUnconfirmed, s.why}
	case s.verdict == verdictConfirmed && d.Refused:
		return &refusedError{http.StatusConflict, string(record.Conflict), record.Denied, eventConflict,
			fmt.Errorf("IAK has reversed the order: the app has, or may have, accepted the outcome %q, and IAK confirms this one; "+
				"on_conflict reject keeps it from the app, so enter it there by hand", statusWord(d.Contradicts))}
	case s.verdict == verdictConfirmed:
		d.Confirmed = true
		return nil
	case h.Confirm.OnError == confirmErrorForward && d.Refused:
		return &refusedError{http.StatusConflict, string(record.Conflict), record.Denied, eventConflict, contradiction(d.Contradicts)}
	case h.Confirm.OnError == confirmErrorForward:
		o.level, o.err = max(o.level, zapcore.WarnLevel), fmt.Errorf("forwarded though IAK has not confirmed it: %w", s.why)
		return nil
	default:
		return &refusedError{http.StatusServiceUnavailable, resultNotConfirmed, record.NotConfirmed, "",
			fmt.Errorf("IAK has not confirmed the callback: %w", s.why)}
	}
}

// contradiction is what a conflict of which IAK says nothing means.
func contradiction(status int) error {
	return fmt.Errorf("the callback contradicts the outcome %q that the app has, or may have, accepted for this ref_id: "+
		"IAK reversed the order, or somebody replays its signature; ask IAK for the order's status", statusWord(status))
}

// tell makes the observation that of a callback whose way has ended.
func (e *refusedError) tell(o *observation) {
	o.result, o.err, o.event = e.outcome, e.err, e.event
}

// answer answers IAK's caller.
func (e *refusedError) answer(w http.ResponseWriter) error {
	if e.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(maxRetryAfter))
	}
	return caddyhttp.Error(e.status, e.err)
}

// askFirst asks IAK about a callback before its claim, since it would take the place of a
// final one that waits for the app. Without an error the request may be made again.
func (h *Handler) askFirst(ctx context.Context, c *iak.Callback, o *observation, q *record.Request) *refusedError {
	key := h.place(o.account, c.RefID).Key
	if _, busy := h.app.asking.LoadOrStore(key, true); busy { // there is no claim that keeps others from asking
		return &refusedError{http.StatusServiceUnavailable, resultNotConfirmed, record.NotConfirmed, "",
			errors.New("IAK is being asked about another callback of this order")}
	}
	defer h.app.asking.Delete(key)
	if h.Spool != nil { // IAK is not kept waiting
		within := max(time.Duration(*h.Spool.AnswerWithin)-time.Since(o.start), time.Second)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, within)
		defer cancel()
	}
	s := h.question(ctx, c, o.account)
	d := &record.Decision{Contradicts: -1}
	if refused := h.judge(s, d, o); refused != nil {
		return refused
	}
	if q.Confirmed = d.Confirmed; !q.Confirmed { // on_error forward
		q.Ask = record.AskNothing
		return nil
	}
	if s.answer.Complete(c) {
		q.Outcome = c.Outcome(o.account)
		if q.Keep != nil {
			if payload := withBody(&record.Kept{Payload: *q.Keep}, c); payload != "" {
				q.Keep = &payload
			}
		}
	}
	return nil
}

// askFirstKept is askFirst for what was kept without a claim.
func (h *Handler) askFirstKept(kept *record.Kept, o *observation, q *record.Request) *refusedError {
	request, err := spool.Decode(kept.Payload)
	if err == nil {
		var c *iak.Callback
		if c, err = decodeKept(request.Body); err == nil {
			return h.askFirst(context.Background(), c, o, q)
		}
	}
	return &refusedError{http.StatusServiceUnavailable, resultAppFailed, record.NotConfirmed, "", err}
}

// decodeKept reads a callback that was understood when it came. What was proven then is
// not proven again: this version, or strict by now, may ask for more.
func decodeKept(body []byte) (*iak.Callback, error) {
	c, err := iak.Decode(body)
	if err != nil {
		return nil, err
	}
	if err = c.CheckRefID(); err == nil {
		_ = c.CheckFields(true)
	}
	return c, nil
}

// withBody is what is kept with the body that a callback has by now, empty if that cannot
// be.
func withBody(kept *record.Kept, c *iak.Callback) string {
	if kept == nil {
		return ""
	}
	request, err := spool.Decode(kept.Payload)
	if err != nil {
		return ""
	}
	request.Body = c.AppendIAK(nil)
	payload, err := request.Encode()
	if err != nil {
		return ""
	}
	return payload
}
