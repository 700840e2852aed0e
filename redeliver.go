package iakcallback

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-iak/iakcallback/internal/delivery"
	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// mark makes a request a redelivery. It is a value of the request's context that only
// this package can set, so no header and no query can imitate it, and it is used once.
type mark struct {
	storeID, keyPrefix, account, refID string

	// Where a callback comes from that IAK did not send: it goes the way of one that has
	// just come. Empty for a redelivery.
	source  string
	outcome string // what it came to
	why     error

	keptSource string // the same of what is kept
	body       []byte
	taken      atomic.Bool
	leave      time.Duration // for how long the worker leaves it alone
}

type markKey struct{}

func marked(r *http.Request) *mark {
	m, _ := r.Context().Value(markKey{}).(*mark)
	return m
}

// take tells whether the mark is meant for a handler, and is not used up.
func (m *mark) take(h *Handler) bool {
	return h.Spool != nil && h.store.ID() == m.storeID && h.keyPrefix == m.keyPrefix && h.hasAccount(m.account) && !m.taken.Swap(true)
}

// takeSource tells whether a callback that IAK did not send is meant for a handler, and
// makes r it.
func (m *mark) takeSource(h *Handler, r *http.Request) bool {
	if !h.hasAccount(m.account) || m.taken.Swap(true) {
		return false
	}
	*r = *r.WithContext(context.WithoutCancel(r.Context()))
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(m.body)), int64(len(m.body))
	return true
}

func (h *Handler) hasAccount(name string) bool {
	return slices.ContainsFunc(h.Accounts, func(a Account) bool { return a.Name == name })
}

// cancelled is the context that a redelivery has until a handler takes it: with it
// nothing is dialed, should its route lead elsewhere by now.
var cancelled = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// lead leads what is kept under a key through the site's own routes, on a server
// whose handler has the account.
func lead(handlers []*Handler, m *mark, kept *record.Kept) spool.Done {
	longest := time.Duration(handlers[0].Spool.Backoff.Longest)
	request, err := spool.Decode(kept.Payload)
	var r *http.Request
	if err == nil {
		r, err = request.HTTP(context.WithValue(cancelled, markKey{}, m))
	}
	if err != nil {
		handlers[0].logger.Error("a callback that is kept cannot be delivered", zap.String("account", m.account), zap.String("ref_id", m.refID), zap.Error(err))
		return spool.Done{Leave: longest}
	}
	m.body, m.keptSource = request.Body, request.Source
	for _, server := range servers(handlers, request.Port()) {
		guard.Do("a redelivery", func() { server.ServeHTTP(delivery.NewRecorder(nil), r.Clone(r.Context())) })
		if m.taken.Load() {
			return spool.Done{Leave: m.leave}
		}
	}
	return spool.Done{Unrouted: true}
}

// servers are those of the handlers, with those that listen on a port first.
func servers(handlers []*Handler, port string) (all []*caddyhttp.Server) {
	for _, h := range handlers {
		if h.server != nil && !slices.Contains(all, h.server) {
			all = append(all, h.server)
		}
	}
	slices.SortStableFunc(all, func(a, b *caddyhttp.Server) int {
		switch on := listensOn(a, port); {
		case on == listensOn(b, port):
			return 0
		case on:
			return -1
		default:
			return 1
		}
	})
	return all
}

func listensOn(server *caddyhttp.Server, port string) bool {
	for _, text := range server.Listen {
		address, err := caddy.ParseNetworkAddress(text)
		for i := range address.PortRangeSize() {
			if _, p, found := strings.Cut(address.JoinHostPort(i), "]:"); err == nil && found && p == port {
				return true
			}
			if err == nil && strings.HasSuffix(address.JoinHostPort(i), ":"+port) {
				return true
			}
		}
	}
	return false
}

// redeliver is what becomes of a request that a worker has made: it is the delivery of
// what is kept, and nothing else. It returns no error, since error routes are for a
// sender.
func (h *Handler) redeliver(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, m *mark) error {
	if !m.take(h) {
		return nil
	}
	o := h.observe(r)
	o.message, o.redelivered, o.account, o.refID, o.source = "redelivery", true, m.account, m.refID, m.keptSource
	quiet := false
	defer func() {
		if !quiet {
			o.end()
		}
		delivery.Empty(r)
	}()
	s, err := h.store.Open()
	if err != nil {
		quiet = true
		return nil
	}
	defer h.store.Close()
	c, err := decodeKept(m.body)
	if err != nil { // it was understood when it came
		o.result, o.err, m.leave = resultAppFailed, err, time.Duration(h.Spool.Backoff.Longest)
		return nil
	}
	defer c.Release()
	o.status = c.Status.String()
	q := &record.Redelivery{
		Lease: time.Duration(h.UpstreamTimeout) + store.Margin, Hold: h.OnDoubt == doubtHold, Assume: h.OnDoubt == doubtAccept,
		Oldest: time.Now().Add(-time.Duration(h.Spool.MaxAge)).UnixMilli(), Longest: h.latest(),
		Ask: h.ask(), ForwardConflict: h.OnConflict == conflictForward,
	}
	_, _ = rand.Read(q.Owner[:])
	o.claimed = time.Now()
	lease, d, err := s.Redeliver(h.place(m.account, m.refID), q)
	if err != nil {
		o.result, o.err, m.leave = resultStoreUnavailable, err, time.Second
		return nil
	}
	o.result = string(d.Verdict)
	switch {
	case d.Verdict == record.Forwarded:
		if d.Asking {
			if refused := h.confirm(context.WithoutCancel(r.Context()), c, o, &d, lease); refused != nil {
				refused.tell(o)
				return nil
			}
		}
		quiet = true
		h.forwardAgain(w, r, next, c, o, d, lease)
	case d.Verdict == record.Held && d.Changed:
		o.event, o.err = eventHeld, errHeld
	case d.Verdict == record.Died && d.Changed:
		o.event, o.err = eventDead, errDead
	case d.Verdict == record.Settled:
		o.result = resultAssumed
	default: // another was faster
		quiet = true
		m.leave = min(max(d.Wait, time.Second), time.Duration(h.Spool.Backoff.Longest))
	}
	return nil
}

// latest is the longest that anything of this handler's has to wait.
func (h *Handler) latest() time.Duration {
	return max(time.Duration(h.Spool.Delay), time.Duration(h.Spool.Backoff.Longest), time.Duration(h.UpstreamTimeout)+store.Margin)
}

// forwardAgain delivers what is kept, and returns when that has ended, or the handlers
// behind do not come back in time: the worker goes on. The delivery tells of itself.
func (h *Handler) forwardAgain(
	w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, c *iak.Callback, o *observation, d record.Decision, lease *store.Lease,
) {
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Add(zap.Bool("iak_redelivery", true))
		extra.Add(zap.Int("iak_attempt", d.Attempt))
	}
	answer := delivery.NewRecorder(w.Header())
	own := detach(r, answer, o.placeholder)
	h.rewrite(own, c, o, d, true)
	done := make(chan struct{})
	end := sync.OnceFunc(func() { close(done) })
	h.apart("a redelivery", func() {
		defer end()
		defer o.end()
		if err := h.deliver(answer, own, next, o, lease, end); err != nil && answer.Status() == 0 {
			answer.WriteHeader(delivery.ErrorStatus(err))
		}
	})
	<-done
	if answer.Status() == 0 { // a handler panicked, or does not come back: its answer is still its own
		w.WriteHeader(http.StatusGatewayTimeout)
		return
	}
	answer.Replay(w) // the access log has the app's status
}
