package iakcallback

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"unicode/utf8"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddy-iak/iakcallback/internal/store"
	"go.uber.org/zap"
)

// unrouted tells whether no route of this configuration leads to what is kept under a
// key of a store.
func (a *App) unrouted(s *store.Store, key string) bool {
	a.mu.Lock()
	workers := a.workers
	a.mu.Unlock()
	for _, w := range workers {
		if w.IsUnrouted(s, key) {
			return true
		}
	}
	return false
}

// serveReveal answers with the callback that is kept. That is logged before anything of
// it leaves.
func serveReveal(w http.ResponseWriter, r *http.Request) error {
	found, values, err := oneRecord(r)
	if err != nil {
		return err
	}
	revealed, err := inspect.Reveal(found, values["ref_id"], readKept)
	for _, c := range revealed.Callbacks {
		operated("reveal", zap.String("account", c.Account), zap.String("ref_id", c.RefID), zap.String("store", c.Store))
	}
	w.Header().Set("Cache-Control", "no-store")
	return answerOf(w, revealed, err)
}

func readKept(payload string) (c inspect.Callback, err error) {
	kept, err := spool.Decode(payload)
	if err != nil {
		return c, err
	}
	c = inspect.Callback{
		Host: string(kept.Host), Target: string(kept.URI), Proto: kept.Proto, Remote: kept.Remote, Local: kept.Local,
		Header: make(map[string][]string, len(kept.Header)),
	}
	for name, values := range kept.Header {
		for _, v := range values {
			c.Header[string(name)] = append(c.Header[string(name)], string(v))
		}
	}
	if kept.TLS != nil {
		c.TLS = tls.VersionName(kept.TLS.Version)
	}
	if c.Body = string(kept.Body); !utf8.ValidString(c.Body) {
		c.Body, c.Bytes = "", kept.Body
	}
	return c, nil
}

// serveRedeliverAll makes all that is kept in one state due, and tells meanwhile how far
// it is.
func serveRedeliverAll(w http.ResponseWriter, r *http.Request) error {
	states := []string{string(inspect.Spooled), string(inspect.Dead)}
	found, only, err := filter(r, states)
	if err != nil {
		return err
	}
	if only.State == "" {
		return apiError(http.StatusBadRequest, errors.New("state is needed: use "+either(states)))
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, begun := json.NewEncoder(w), false
	done, err := inspect.RedeliverAll(r.Context(), found, only, func(p inspect.Progress) error {
		begun = true
		if err := out.Encode(p); err != nil {
			return err
		}
		_ = http.NewResponseController(w).Flush() // or it comes later
		return nil
	})
	if done.Redelivered > 0 {
		account := r.URL.Query().Get("account")
		operated("redeliver", zap.String("account", account), zap.String("state", string(only.State)), zap.Int("callbacks", done.Redelivered), zap.Error(err))
	}
	switch {
	case err != nil && !begun && done.Redelivered == 0:
		return apiError(http.StatusServiceUnavailable, err)
	case err != nil:
		done.Error = err.Error()
	}
	return out.Encode(done)
}
