// Package iakcallback is a Caddy HTTP handler that stands between IAK, a seller
// of prepaid products, and a merchant's app: it verifies IAK's callbacks, lets
// each outcome of an order through once, and forwards it as normalized JSON.
package iakcallback

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddy-iak/iakcallback/internal/command"
	"github.com/caddy-iak/iakcallback/internal/delivery"
	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

func init() {
	guard.Report = func(what string, p *guard.PanicError) {
		logger().Error("panic: the code of this module, or of a handler or plugin that it called, is at fault",
			zap.String("in", what), zap.Any("panic", p.Cause), zap.ByteString("stack", p.Stack))
	}
	caddy.RegisterModule(Handler{})
	caddy.RegisterModule(new(App))
	caddy.RegisterModule(adminAPI{})
	caddycmd.RegisterCommand(command.Command())
}

// The words of the options.
const (
	bodyIAK  = "iak"
	bodyFlat = "flat"

	validateStrict  = "strict"
	validateLenient = "lenient"

	processForward     = "forward"
	processAcknowledge = "acknowledge"

	conflictReject  = "reject"
	conflictForward = "forward"

	doubtRetry  = "retry"
	doubtHold   = "hold"
	doubtAccept = "accept"

	storeErrorReject  = "reject"
	storeErrorForward = "forward"
	storeErrorKeep    = "keep"
)

const (
	defaultUpstreamTimeout = 30 * time.Second
	defaultRetention       = 30 * 24 * time.Hour
	minRetention           = 48 * time.Hour
	defaultMaxBodySize     = 64 << 10
	maxMaxBodySize         = 1 << 30
	defaultKeyPrefix       = "iak:"
	defaultRedisTimeout    = 500 * time.Millisecond
	maxRedisTimeout        = 5 * time.Second // store.Margin
)

// Handler receives the callbacks with which IAK tells the outcome of each
// order. It verifies the signature, lets each outcome of a ref_id through once,
// and forwards it to the handlers behind it as normalized JSON, whatever format
// IAK sent. What it does not forward it answers itself:
//
//   - 200 (or the app's status code of then), with the header
//     `Idempotent-Replayed: true`: the app has accepted this outcome before
//   - 400, 405, 408, 413, 415, 422: not a callback
//   - 403: the signature is wrong
//   - 409 with `Retry-After`: the same ref_id is being delivered right now
//   - 409 without: the callback contradicts an outcome that was accepted, waits for an
//     operator (`on_doubt hold`), or IAK says another thing of the order (`confirm`)
//   - 502: no handler behind this one answered, or its 2xx does not count (`accept_when`)
//   - 503 with `Retry-After`: the store does not answer, or IAK cannot say yet (`confirm`)
//   - 504: the app did not answer within `upstream_timeout`
//
// With a spool what the app refuses, or does not answer, is kept and answered 200 with
// an empty body: of the last four only 503 is left.
//
// All of these but the first are handler errors, which `handle_errors` can
// shape. It sets these placeholders, empty as long as they are not known:
//
// Placeholder | Description
// ------------|------------
// `{http.iak_callback.ref_id}` | The order's ref_id
// `{http.iak_callback.account}` | The account whose key signed the callback
// `{http.iak_callback.status}` | `process`, `success` or `failed`
// `{http.iak_callback.outcome}` | `forwarded`, `duplicate`, `stale`, `acknowledged`, `in_flight`, `held`, `conflict`, `rejected`, `app_failed`, `app_unknown`, `assumed`, `store_unavailable`; with a spool also `spooled`, `dead` and `unrouted`, with confirm `unconfirmed` and `not_confirmed`
// `{http.iak_callback.reason}` | Why it was rejected: `method`, `media_type`, `too_large`, `incomplete`, `malformed`, `ref_id`, `signature` or `field`
// `{http.iak_callback.attempt}` | The number of this delivery, from 1
//
// It emits these events, with the fields of its log line as data:
// `iak_callback.conflict`, `iak_callback.held` and `iak_callback.store_unavailable`;
// with a spool also `iak_callback.dead`, `iak_callback.unrouted` and
// `iak_callback.spool_full`, with confirm `iak_callback.unconfirmed`.
//
// In the Caddyfile the directive runs before `basic_auth`, so every handler
// that responds sees the normalized request.
type Handler struct {
	// The merchant's IAK accounts, at least one.
	Accounts []Account `json:"accounts,omitempty"`

	// Keep the records in Redis. Without it, the embedded store is used.
	Redis *Redis `json:"redis,omitempty"`

	// Settings of the embedded store. Excludes `redis`.
	Embedded *Embedded `json:"embedded,omitempty"`

	// The JSON that the app receives: `iak` is IAK's documented shape, with
	// every value a string; `flat` is one object with typed values.
	// Default: `iak`.
	Body string `json:"body,omitempty"`

	// The longest that the app may take for one callback, counted from before the
	// claim, so that the store's time is part of it. Default: 30s.
	UpstreamTimeout caddy.Duration `json:"upstream_timeout,omitempty"`

	// How long an accepted outcome is remembered, at least 48h. Default: 30d.
	Retention caddy.Duration `json:"retention,omitempty"`

	// The largest body that is read, in bytes. Default: 65536.
	MaxBodySize int64 `json:"max_body_size,omitempty"`

	// `strict` asks for all mandatory fields of IAK's reference, and for price
	// and balance to be numbers; `lenient` asks for ref_id, status and sign only.
	// Default: `strict`.
	Validation string `json:"validate,omitempty"`

	// What becomes of a callback with status 0, an order under way: `forward` it,
	// or `acknowledge` it with 200 and keep it from an app that would take it for
	// a failure. Default: `forward`.
	OnProcess string `json:"on_process,omitempty"`

	// What becomes of a callback that contradicts the outcome that the app has
	// accepted: `reject` it with 409, or `forward` it with the header
	// `Iak-Conflict` to an app that expects it. Default: `reject`.
	OnConflict string `json:"on_conflict,omitempty"`

	// What becomes of a delivery to which the app did not answer in time:
	// `retry` delivers it again when IAK sends it again; `hold` keeps it from the
	// app until an operator has settled it (`caddy iak-callback accept` or
	// `release`); `accept` takes it for accepted, state `assumed`, for an app that acts
	// but never answers. Default: `retry`; with a spool `hold`.
	OnDoubt string `json:"on_doubt,omitempty"`

	// What becomes of a callback while the store does not answer: `reject` it
	// with 503; `forward` it with the header `Iak-Deduplicated: false`, to an
	// app that can tell a repeat by itself; or `keep` it in the file
	// `iak_callback/outage.sqlite` in Caddy's data directory until Redis answers, which
	// needs `redis` and `spool`. Default: `reject`.
	OnStoreError string `json:"on_store_error,omitempty"`

	// Conditions that all have to hold for a 2xx of the app to count as accepted, for an
	// app that answers 2xx whatever happened. The answer is held back until they are
	// known. A 2xx that does not count is answered with 502, and the callback is delivered
	// again when it comes again. Where the body cannot be looked at, since it is encoded,
	// or has no match and is longer than 64 KiB, no condition about it holds. Default:
	// each 2xx counts.
	AcceptWhen []AcceptWhen `json:"accept_when,omitempty"`

	// Keep each callback until the app has accepted it, and deliver it again by itself.
	// Default: off.
	Spool *Spool `json:"spool,omitempty"`

	// Where IAK sends callbacks to, as registered there: an http or https url that leads to
	// this handler, for `caddy iak-callback ask --deliver`. Takes placeholders. Default: none.
	CallbackURL string `json:"callback_url,omitempty"`

	// Ask IAK itself before the app gets a callback. Default: off.
	Confirm *Confirm `json:"confirm,omitempty"`

	accounts   accounts
	callback   *url.URL // CallbackURL, nil without
	client     *iak.Client
	standings  *standings
	conditions delivery.Conditions
	keyPrefix  string
	app        *App
	store      *storeUse
	opened     *openStore // held from Provision to Cleanup
	outage     *storeUse  // where callbacks are kept while Redis does not answer; nil without on_store_error keep
	gate       *spool.Gate
	server     *caddyhttp.Server // whose routes lead here; nil for a handler that was provisioned by hand
	logger     *zap.Logger
	events     *caddyevents.App
	ctx        caddy.Context // the configuration's, for events
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.iak_callback",
		New: func() caddy.Module { return new(Handler) },
	}
}

// String names the accounts and nothing more: Caddy's trace log prints
// handlers (caddyhttp/server.go, wrapMiddleware), and a literal api key must not
// be in it.
func (h Handler) String() string {
	names := make([]string, 0, len(h.Accounts))
	for _, a := range h.Accounts {
		names = append(names, a.Name)
	}
	return fmt.Sprintf("iak_callback%q", names)
}

// Provision sets defaults, resolves placeholders and takes a reference to the
// store. It dials nothing and opens no file.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("the events app: %w", err)
	}
	h.events, h.ctx = events.(*caddyevents.App), ctx
	h.setDefaults()
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if err := h.resolveAccounts(); err != nil {
		return err
	}
	if h.OnDoubt == doubtAccept {
		h.logger.Warn("on_doubt accept: when the app does not answer within upstream_timeout, its callback counts as accepted, " +
			"also if the app has done nothing; it is meant for an app that acts and then leaves the connection hanging. " +
			"caddy iak-callback list --state assumed shows what was taken for accepted")
	}
	if err := h.resolveConditions(); err != nil {
		return err
	}
	if err := h.resolveStore(); err != nil {
		return err
	}
	if h.opened, err = h.store.load(); err != nil {
		return err
	}
	if h.Spool != nil {
		h.gate = spool.NewGate(h.Spool.Concurrency, h.Spool.Backoff.pauses(), h.tellBreaker)
	}
	h.server, _ = ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if err := h.resolveAsking(); err != nil {
		return err
	}
	app, err := ctx.App("iak_callback")
	if err != nil {
		return fmt.Errorf("the iak_callback app: %w", err)
	}
	h.app = app.(*App)
	h.app.add(h)
	return nil
}

// resolveStore prepares the way to the store.
func (h *Handler) resolveStore() (err error) {
	switch {
	case h.Redis != nil && h.Embedded != nil:
		return errors.New("redis and embedded exclude each other: remove one")
	case h.Redis != nil:
		h.keyPrefix = h.Redis.KeyPrefix
		h.store, err = h.Redis.use()
	default:
		h.store, err = h.Embedded.use()
	}
	if err == nil && h.OnStoreError == storeErrorKeep {
		h.outage, err = outageUse()
	}
	return err
}

func (h *Handler) setDefaults() {
	setDefault(&h.Body, bodyIAK)
	setDefault(&h.UpstreamTimeout, caddy.Duration(defaultUpstreamTimeout))
	setDefault(&h.Retention, caddy.Duration(defaultRetention))
	setDefault(&h.MaxBodySize, defaultMaxBodySize)
	setDefault(&h.Validation, validateStrict)
	setDefault(&h.OnProcess, processForward)
	setDefault(&h.OnConflict, conflictReject)
	if h.Spool != nil {
		h.Spool.setDefaults()
		setDefault(&h.OnDoubt, doubtHold)
	}
	setDefault(&h.OnDoubt, doubtRetry)
	setDefault(&h.OnStoreError, storeErrorReject)
	if h.Confirm != nil {
		h.Confirm.setDefaults()
	}
	if h.Redis != nil {
		setDefault(&h.Redis.KeyPrefix, defaultKeyPrefix)
		setDefault(&h.Redis.Timeout, caddy.Duration(defaultRedisTimeout))
	}
}

func setDefault[T comparable](option *T, value T) {
	var unset T
	if *option == unset {
		*option = value
	}
}

// Validate checks the options.
func (h *Handler) Validate() error {
	if len(h.Accounts) == 0 {
		return errors.New("no account: add account <name> <username> <api_key>")
	}
	for _, a := range h.Accounts {
		if !accountName.MatchString(a.Name) {
			return fmt.Errorf("account %q: a name consists of letters, digits, _ and -", a.Name)
		}
	}
	for _, o := range []struct {
		option, word string
		words        []string
	}{
		{"body", h.Body, []string{bodyIAK, bodyFlat}},
		{"validate", h.Validation, []string{validateStrict, validateLenient}},
		{"on_process", h.OnProcess, []string{processForward, processAcknowledge}},
		{"on_conflict", h.OnConflict, []string{conflictReject, conflictForward}},
		{"on_doubt", h.OnDoubt, []string{doubtRetry, doubtHold, doubtAccept}},
		{"on_store_error", h.OnStoreError, []string{storeErrorReject, storeErrorForward, storeErrorKeep}},
	} {
		if !slices.Contains(o.words, o.word) {
			return fmt.Errorf("%s %q: use %s", o.option, o.word, either(o.words))
		}
	}
	switch {
	case h.UpstreamTimeout < 0:
		return errors.New("upstream_timeout is negative")
	case time.Duration(h.Retention) < minRetention:
		return fmt.Errorf("retention is shorter than %s: IAK may send a callback up to 24 hours after the order", minRetention)
	case h.UpstreamTimeout >= h.Retention:
		return errors.New("upstream_timeout is not shorter than retention")
	case h.MaxBodySize < 0 || h.MaxBodySize > maxMaxBodySize:
		return errors.New("max_body_size is not between 1B and 1GiB")
	case h.Redis != nil && time.Duration(h.Redis.Timeout) > maxRedisTimeout:
		return fmt.Errorf("redis: timeout is longer than %s: a claim lasts that much longer than upstream_timeout, "+
			"and the app's answer must be recorded by then", maxRedisTimeout)
	case h.Redis != nil && (h.Redis.Timeout < 0 || h.Redis.PoolSize < 0):
		return errors.New("redis: timeout or pool_size is negative")
	case h.OnStoreError == storeErrorKeep && (h.Spool == nil || h.Redis == nil):
		return errors.New("on_store_error keep needs spool and redis: a callback that finds Redis down is kept in a file until Redis is back")
	}
	return h.Spool.validate()
}

// either joins words for a sentence: a, b or c.
func either(words []string) string {
	last := len(words) - 1
	if last == 0 {
		return words[0]
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// Cleanup gives back the store that Provision took. Requests that are still at
// work hold it by themselves. If nobody does, the store is closed when Cleanup
// returns, unless its server or disk hangs. When Caddy ends, deliveries that go on and
// what could not be recorded yet get the time that its grace period leaves: all servers
// are stopped by then (Caddy v2.11.9, caddy.go, unsyncedStop).
func (h *Handler) Cleanup() error {
	if h.opened == nil {
		return nil
	}
	exiting := caddy.Exiting() && h.app != nil
	if exiting {
		h.app.delivered()
	}
	if h.gate != nil {
		h.gate.Close()
	}
	h.client.Close()
	if exiting {
		h.opened.Drain(h.app.drainUntil())
	}
	if last := h.store.Close(); last {
		<-h.opened.closed
	}
	h.opened = nil
	return nil
}

// Interface guards
var (
	_ caddy.Module                = (*Handler)(nil)
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
	_ fmt.Stringer                = Handler{}
)
