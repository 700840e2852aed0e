package iakcallback

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The outcomes that are no verdict of the store.
const (
	outcomeAcknowledged     = "acknowledged"
	outcomeRejected         = "rejected"
	outcomeAppFailed        = "app_failed"
	outcomeAppUnknown       = "app_unknown"
	outcomeStoreUnavailable = "store_unavailable"
)

// The events, which Caddy's events app tells its subscribers.
const (
	eventConflict         = "iak_callback.conflict"
	eventHeld             = "iak_callback.held"
	eventStoreUnavailable = "iak_callback.store_unavailable"
)

// levels says how loud each outcome is; those that are not here are Info.
var levels = map[string]zapcore.Level{
	outcomeRejected:         zapcore.WarnLevel,
	outcomeAppFailed:        zapcore.WarnLevel,
	outcomeAppUnknown:       zapcore.ErrorLevel,
	outcomeStoreUnavailable: zapcore.ErrorLevel,
	string(verdictHeld):     zapcore.ErrorLevel,
	string(verdictConflict): zapcore.ErrorLevel,
}

// passage is what is known so far of one callback on its way: it feeds the
// placeholders, the log line and the metrics. It never holds a signature,
// goods or a customer.
type passage struct {
	handler *Handler
	w       http.ResponseWriter
	r       *http.Request
	start   time.Time

	refID     string
	account   string // empty until the signature is proven
	status    string // the word, empty until the fields are checked
	outcome   string
	reason    reason
	attempt   int
	appStatus int
	err       error // what is wrong, in our own words: never what the app said
	alarm     bool  // err needs a hand, whatever the outcome
	event     string
	told      bool // counted and logged before the app came back
}

// begin sets the placeholders, through one closure for all.
func (h *Handler) begin(w http.ResponseWriter, r *http.Request) *passage {
	p := &passage{handler: h, w: w, r: r, start: time.Now()}
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(p.placeholder)
	}
	return p
}

// placeholder answers for {http.iak_callback.*}; what is not known is empty.
func (p *passage) placeholder(key string) (any, bool) {
	const prefix = "http.iak_callback."
	if len(key) <= len(prefix) || key[:len(prefix)] != prefix {
		return nil, false
	}
	switch key[len(prefix):] {
	case "ref_id":
		return p.refID, true
	case "account":
		return p.account, true
	case "status":
		return p.status, true
	case "outcome":
		return p.outcome, true
	case "reason":
		return string(p.reason), true
	case "attempt":
		if p.attempt == 0 {
			return "", true
		}
		return strconv.Itoa(p.attempt), true
	default:
		return nil, false
	}
}

// reject ends the way before the claim.
func (p *passage) reject(rejected *rejection) error {
	p.outcome, p.reason, p.err = outcomeRejected, rejected.reason, rejected.err
	if rejected.unread && p.r.ProtoMajor == 1 {
		// Go would wait for the rest of the body before it answers: it does not see
		// through Caddy's wrapper of the body (net/http, server.go, writeHeader).
		p.w.Header().Set("Connection", "close")
	}
	if rejected.reason == reasonMethod {
		p.w.Header().Set("Allow", http.MethodPost)
	}
	return caddyhttp.Error(rejected.status, rejected.err)
}

// unavailable ends the way when the store cannot say whose turn it is.
func (p *passage) unavailable(err error) error {
	p.outcome, p.event, p.err = outcomeStoreUnavailable, eventStoreUnavailable, err
	p.w.Header().Set("Retry-After", strconv.Itoa(maxRetryAfter))
	return caddyhttp.Error(http.StatusServiceUnavailable, err)
}

// end counts the callback, writes its log line and emits its event, also when a
// handler behind panics. What was told before is not told again as a callback.
func (p *passage) end() {
	message := "callback"
	if p.told {
		message = "the app came back after upstream_timeout"
	} else {
		requestsTotal.WithLabelValues(p.account, p.outcome, string(p.reason)).Inc()
	}
	level := levels[p.outcome] // Info is the zero level
	if p.alarm {
		level = zapcore.ErrorLevel
	}
	if entry := p.handler.logger.Check(level, message); entry != nil {
		entry.Write(zap.Inline(p))
	}
	if p.event != "" && !p.told {
		facts := zapcore.NewMapObjectEncoder()
		_ = p.MarshalLogObject(facts) // always nil
		ctx := p.handler.ctx
		ctx.Context = context.WithoutCancel(ctx.Context) // the configuration may have been replaced meanwhile
		p.handler.events.Emit(ctx, p.event, facts.Fields)
	}
}

// tellEarly ends the passage for the log, the metrics and the events while the
// handlers behind are still at work: they may read the placeholders, so what is
// told is a copy. deliver waits for it before anything else is changed.
func (p *passage) tellEarly(d delivery) {
	early := *p
	p.told = true // nobody else looks at it before deliver is back
	early.settled(d, early.event == eventConflict, nil)
	if early.err == nil {
		early.err = early.explain(d)
	}
	early.end()
}

// MarshalLogObject writes the fields of the log line, and of events.
func (p *passage) MarshalLogObject(line zapcore.ObjectEncoder) error {
	line.AddString("outcome", p.outcome)
	line.AddString("reason", string(p.reason))
	line.AddString("account", p.account)
	line.AddString("ref_id", p.refID)
	line.AddString("status", p.status)
	line.AddInt("attempt", p.attempt)
	line.AddDuration("duration", time.Since(p.start))
	line.AddInt("app_status", p.appStatus)
	if p.err != nil {
		line.AddString("error", p.err.Error())
	}
	return nil
}
