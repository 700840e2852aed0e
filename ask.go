package iakcallback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddy-iak/iakcallback/internal/delivery"
	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"
)

// sourceCheckStatus is where a callback comes from that is made of IAK's answer.
const sourceCheckStatus = "check-status"

// The addresses from which IAK sends callbacks (https://api.iak.id, "Callback"): what is
// handed in for it passes the matchers that its callbacks pass.
const (
	addressProduction = "52.220.38.194"
	addressSandbox    = "52.76.169.212"
	baseSandbox       = "https://prepaid.iak.dev"
)

var addresses = map[string]string{addressProduction: "production", addressSandbox: "sandbox"}

// serveAsk asks IAK for an order, and hands a final answer in as a callback.
func serveAsk(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r, "account", "ref_id", inspect.AskDeliver, inspect.AskReveal)
	if err != nil {
		return err
	}
	account, refID := values["account"], values["ref_id"]
	if account == "" || refID == "" || len(refID) > iak.MaxRefIDLength {
		return apiError(http.StatusBadRequest, fmt.Errorf("account and ref_id are needed, ref_id of at most %d bytes", iak.MaxRefIDLength))
	}
	for _, name := range []string{inspect.AskDeliver, inspect.AskReveal} {
		if v := values[name]; v != "" && v != "true" && v != "false" {
			return apiError(http.StatusBadRequest, fmt.Errorf("%s %q: use true or false", name, v))
		}
	}
	found := withAccount(inForce.Load().all(), account)
	if len(found) == 0 {
		return errAccount(account)
	}
	h := asker(found)
	deliver, reveal := values[inspect.AskDeliver] == "true", values[inspect.AskReveal] == "true"
	if deliver && h.callback == nil {
		return apiError(http.StatusBadRequest, errors.New("the iak_callback of this account has no callback_url: add it, the url that is registered at IAK"))
	}
	operated("ask", zap.String("account", account), zap.String("ref_id", refID), zap.Bool("deliver", deliver), zap.Bool("reveal", reveal))
	answer, who := h.askFor(context.WithoutCancel(r.Context()), account, refID)
	asked := viewAnswer(answer, reveal)
	asked.Account, asked.RefID, asked.Base = account, refID, h.askBase(account)
	if deliver && answer.Standing == iak.StandingFinal {
		asked.Delivery = h.handOver(found, account, refID, answer.Sign(who.secret))
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(w).Encode(asked)
}

// all are the handlers of the configuration; none without one.
func (a *App) all() []*Handler {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.handlers)
}

// warned is what was warned of when the configuration was loaded.
func (a *App) warned() []string {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.warnings)
}

// asker is the handler by which IAK is asked: one with a callback_url before one with
// confirm before any other.
func asker(found []*Handler) *Handler {
	for _, better := range []func(*Handler) bool{
		func(h *Handler) bool { return h.callback != nil && h.Confirm != nil },
		func(h *Handler) bool { return h.callback != nil },
		func(h *Handler) bool { return h.Confirm != nil },
	} {
		if i := slices.IndexFunc(found, better); i >= 0 {
			return found[i]
		}
	}
	return found[0]
}

func (h *Handler) askBase(account string) string {
	if h.Confirm == nil {
		return iak.DefaultBase
	}
	return h.Confirm.base(account)
}

// askFor asks IAK for an order with each key of the account, while IAK refuses them.
func (h *Handler) askFor(ctx context.Context, account, refID string) (answer *iak.Answer, who credential) {
	for _, who = range h.accounts.of(account) {
		answer = h.client.Ask(ctx, h.askBase(account), who.username, who.secret, refID)
		if answer.Standing != iak.StandingRefused {
			break
		}
	}
	if h.Confirm != nil {
		h.standings.note(account, h.askBase(account), answer)
	}
	return answer, who
}

// viewAnswer is IAK's answer as an operator sees it: with its goods masked, unless he
// asks to see them.
func viewAnswer(a *iak.Answer, reveal bool) *inspect.Asked {
	asked := &inspect.Asked{Standing: string(a.Standing), RC: a.RC, HTTP: a.HTTP}
	if a.Why != nil {
		asked.Why = a.Why.Error()
		return asked
	}
	asked.Status = a.Status().String()
	for _, f := range a.Fields() {
		if !reveal {
			f.Value = masked(f)
		}
		asked.Fields = append(asked.Fields, inspect.Field{Name: f.Name, Value: f.Value})
	}
	return asked
}

// masked shows of goods that they are there, and of a customer the last three digits.
func masked(f iak.AnswerField) string {
	switch {
	case f.Goods:
		return "***"
	case f.Customer:
		return "***" + f.Value[max(len(f.Value)-3, 0):]
	default:
		return f.Value
	}
}

// handOver hands a callback in through the site's own routes, as if it had come to
// callback_url from IAK.
func (h *Handler) handOver(found []*Handler, account, refID string, body []byte) *inspect.Delivery {
	request := &spool.Request{
		Host: spool.Octets(h.callback.Host), URI: spool.Octets(h.callback.RequestURI()), Proto: "HTTP/1.1", Remote: addressProduction + ":443",
		Header: map[spool.Octets][]spool.Octets{"Content-Type": {"application/json"}, "User-Agent": {"iak-callback-ask"}},
	}
	if h.askBase(account) == baseSandbox {
		request.Remote = addressSandbox + ":443"
	}
	port := h.callback.Port()
	if h.callback.Scheme == "https" {
		request.TLS = &spool.TLS{Version: 0x0304, ServerName: h.callback.Hostname()} // TLS 1.3
		if port == "" {
			port = "443"
		}
	} else if port == "" {
		port = "80"
	}
	request.Local = "tcp/127.0.0.1:" + port
	m := &mark{account: account, refID: refID, source: sourceCheckStatus, body: body}
	r, err := request.HTTP(context.WithValue(cancelled, markKey{}, m))
	if err != nil {
		return &inspect.Delivery{Error: err.Error()}
	}
	done := make(chan struct{})
	go guard.Do("a callback made of IAK's answer", func() {
		defer close(done)
		for _, server := range servers(found, port) {
			guard.Do("a callback made of IAK's answer", func() { server.ServeHTTP(delivery.NewRecorder(nil), r.Clone(r.Context())) })
			if m.taken.Load() {
				return
			}
		}
	})
	// FastCGI may not come back for hours, see delivery.ReturnGrace.
	longest := time.NewTimer(time.Duration(h.UpstreamTimeout) + store.Margin + delivery.ReturnGrace)
	defer longest.Stop()
	select {
	case <-done:
	case <-longest.C:
		return &inspect.Delivery{Outcome: resultAppUnknown, Error: "the app did not answer within upstream_timeout; it may have acted"}
	}
	if !m.taken.Load() {
		return &inspect.Delivery{Error: "no route of this configuration leads from callback_url to an iak_callback with this account: " +
			"check the path and host of callback_url, and the site's matchers"}
	}
	d := &inspect.Delivery{Outcome: m.outcome, Done: slices.Contains(arrived, m.outcome)}
	if m.why != nil {
		d.Error = m.why.Error()
	}
	return d
}

// arrived are the outcomes after which the app has the callback, or gets it by itself.
var arrived = []string{
	string(record.Forwarded), string(record.Duplicate), string(record.Spooled), string(record.Stale), resultAssumed,
}

// parseCallbackURL checks the url at which IAK sends callbacks. Its errors do not repeat
// it: its path may hold a token.
func parseCallbackURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, errors.New("callback_url is not a url such as https://shop.example.com/iak/callback")
	case u.User != nil || u.Fragment != "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("callback_url has a user, a fragment, a space or a letter beyond ASCII: write it as it is registered at IAK")
	}
	if u.Path == "" {
		u.Path = "/"
	}
	return u, nil
}

func (h *Handler) unmarshalCallbackURL(d *caddyfile.Dispenser) error {
	if err := unmarshalText(d, &h.CallbackURL); err != nil {
		return d.Err("callback_url takes <url>") // ArgErr would quote it
	}
	if strings.Contains(h.CallbackURL, "{") { // it is resolved when the configuration is loaded
		return nil
	}
	if _, err := parseCallbackURL(h.CallbackURL); err != nil {
		return d.Err(err.Error())
	}
	return nil
}
