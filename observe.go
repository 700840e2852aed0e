package iakcallback

import (
	"net/http"
	"strconv"
	"time"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The outcomes that are no verdict of the record.
const (
	resultAcknowledged     = "acknowledged"
	resultRejected         = "rejected"
	resultAppFailed        = "app_failed"
	resultAppUnknown       = "app_unknown"
	resultAssumed          = "assumed"
	resultStoreUnavailable = "store_unavailable"
	resultUnrouted         = "unrouted"
	resultUnconfirmed      = "unconfirmed"
	resultNotConfirmed     = "not_confirmed"
)

// levels says how loud each outcome is; those that are not here are Info.
var levels = map[string]zapcore.Level{
	resultRejected:          zapcore.WarnLevel,
	resultAppFailed:         zapcore.WarnLevel,
	resultAssumed:           zapcore.WarnLevel,
	resultAppUnknown:        zapcore.ErrorLevel,
	resultStoreUnavailable:  zapcore.ErrorLevel,
	string(record.Held):     zapcore.ErrorLevel,
	string(record.Conflict): zapcore.ErrorLevel,
	string(record.Died):     zapcore.ErrorLevel,
	resultUnrouted:          zapcore.ErrorLevel,
	resultUnconfirmed:       zapcore.ErrorLevel,
	resultNotConfirmed:      zapcore.WarnLevel,
}

// observation is what is known so far of one callback: it feeds the
// placeholders, the log line, the metrics and the events. It never holds a
// signature, goods or a customer.
type observation struct {
	logger *zap.Logger
	emit   func(event string, facts map[string]any)
	start  time.Time

	clientIP string // as Caddy's trusted_proxies see it

	claimed time.Time // when the claim began

	source    string // check-status, for what IAK was asked for; else empty
	refID     string
	account   string // empty until the signature is proven
	status    string // the word, empty until the fields are checked
	result    string // the outcome
	reason    reason
	attempt   int
	appStatus int
	err       error         // what is wrong, in our own words: never what the app said
	level     zapcore.Level // of the log line at least, whatever the outcome; Info is the zero level
	event     string

	// What is told is no callback that comes: its message says what it is.
	message     string
	redelivered bool // it is counted as a redelivery
	counted     bool // its callback is counted elsewhere
	told        bool // the same, and its event was emitted
}

// observe begins an observation and sets the placeholders, through one closure
// for all.
func (h *Handler) observe(r *http.Request) *observation {
	o := &observation{logger: h.logger, emit: h.emit, start: time.Now(), message: "callback"}
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(o.placeholder)
	}
	o.clientIP, _ = caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	return o
}

// placeholder answers for {http.iak_callback.*}; what is not known is empty.
func (o *observation) placeholder(key string) (any, bool) {
	const prefix = "http.iak_callback."
	if len(key) <= len(prefix) || key[:len(prefix)] != prefix {
		return nil, false
	}
	switch key[len(prefix):] {
	case "ref_id":
		return o.refID, true
	case "account":
		return o.account, true
	case "status":
		return o.status, true
	case "outcome":
		return o.result, true
	case "reason":
		return string(o.reason), true
	case "attempt":
		if o.attempt == 0 {
			return "", true
		}
		return strconv.Itoa(o.attempt), true
	default:
		return nil, false
	}
}

// end counts the callback, writes its log line and emits its event, also when a
// handler behind panics. What was told before is not told again as a callback.
func (o *observation) end() {
	switch {
	case o.redelivered:
		spool.Redelivered(o.account, o.result)
	case !o.told && !o.counted:
		requestsTotal.WithLabelValues(o.account, o.result, string(o.reason)).Inc()
	}
	if entry := o.logger.Check(max(o.level, levels[o.result]), o.message); entry != nil {
		entry.Write(zap.Inline(o))
	}
	if !o.redelivered || !repeats[o.result] {
		recent.add(o.facts())
	}
	o.tell()
}

// early parts what is told now from what is told when the app comes back. The
// handlers behind are still at work and may read the placeholders, so it is a
// copy; nobody else looks at o before they are back.
func (o *observation) early() *observation {
	early := *o
	o.told, o.redelivered, o.message = true, false, "the app came back after upstream_timeout"
	return &early
}

// repeats are the outcomes that a redelivery can come to once a second: among the recent
// callbacks they would leave room for nothing else.
var repeats = map[string]bool{resultAppFailed: true, resultAppUnknown: true, resultNotConfirmed: true, resultStoreUnavailable: true}

// facts are what is told of the callback.
func (o *observation) facts() inspect.Recent {
	f := inspect.Recent{
		Message: o.message, Outcome: o.result, Reason: string(o.reason), Account: o.account, RefID: o.refID, Status: o.status,
		Attempt: o.attempt, Duration: time.Since(o.start).Seconds(), AppStatus: o.appStatus, ClientIP: o.clientIP, Source: o.source,
	}
	if o.err != nil {
		f.Error = o.err.Error()
	}
	return f
}

// MarshalLogObject writes the fields of the log line, and of events, without the empty
// ones.
func (o *observation) MarshalLogObject(line zapcore.ObjectEncoder) error {
	f := o.facts()
	for _, field := range [...]struct{ name, value string }{
		{"outcome", f.Outcome}, {"reason", f.Reason}, {"account", f.Account}, {"ref_id", f.RefID}, {"status", f.Status},
		{"client_ip", f.ClientIP}, {"source", f.Source}, {"error", f.Error},
	} {
		if field.value != "" {
			line.AddString(field.name, field.value)
		}
	}
	if f.Attempt > 0 {
		line.AddInt("attempt", f.Attempt)
	}
	if f.AppStatus > 0 {
		line.AddInt("app_status", f.AppStatus)
	}
	line.AddDuration("duration", time.Since(o.start))
	return nil
}
