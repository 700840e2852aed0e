package iakcallback

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI adds these routes to Caddy's admin API, for operators and probes:
//
//   - `GET /iak_callback/record?account=&ref_id=`: one record
//   - `DELETE` on the same: forget it; with `accepted=true` also if the app has
//     accepted it
//   - `POST /iak_callback/record/accept?account=&ref_id=`: the app has acted on
//     what is in doubt
//   - `POST /iak_callback/record/release?account=&ref_id=`: it has not; deliver it
//     when it comes again
//   - `GET /iak_callback/records?account=&state=&since=`: all records, a JSON
//     object a line; state and since (a duration) select
//   - `GET /iak_callback/health`: 200 if every store answers, else 503
//
// No answer holds goods, customers, or anything secret: the records do not.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.iak_callback",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes returns the routes.
func (adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: adminRecord, Handler: allow(map[string]caddy.AdminHandlerFunc{
			http.MethodGet:    serveRecord,
			http.MethodDelete: serveOperation(operationForget),
		})},
		{Pattern: adminAccept, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodPost: serveOperation(operationAccept)})},
		{Pattern: adminRelease, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodPost: serveOperation(operationRelease)})},
		{Pattern: adminRecords, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodGet: serveRecords})},
		{Pattern: adminHealth, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodGet: serveHealth})},
	}
}

const (
	adminRecord  = "/iak_callback/record"
	adminAccept  = "/iak_callback/record/accept"
	adminRelease = "/iak_callback/record/release"
	adminRecords = "/iak_callback/records"
	adminHealth  = "/iak_callback/health"
)

// allow answers other methods with 405.
func allow(methods map[string]caddy.AdminHandlerFunc) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		handler, ok := methods[r.Method]
		if !ok {
			names := make([]string, 0, len(methods))
			for name := range methods {
				names = append(names, name)
			}
			slices.Sort(names)
			w.Header().Set("Allow", strings.Join(names, ", "))
			return apiError(http.StatusMethodNotAllowed, fmt.Errorf("method %q: use %s", r.Method, either(names)))
		}
		return handler(w, r)
	}
}

func apiError(status int, err error) error {
	return caddy.APIError{HTTPStatus: status, Err: err}
}

// parameters reads the query, in which each of names may be given once, and
// nothing else.
func parameters(r *http.Request, names ...string) (map[string]string, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // r.URL.Query would leave out what it cannot read
		return nil, apiError(http.StatusBadRequest, errors.New("the query is not properly percent-encoded"))
	}
	values := make(map[string]string)
	for name, given := range query {
		if !slices.Contains(names, name) || len(given) != 1 {
			return nil, apiError(http.StatusBadRequest, fmt.Errorf("parameter %q: use %s, each once", name, strings.Join(names, ", ")))
		}
		values[name] = given[0]
	}
	return values, nil
}

// placesOf returns where the records of an account are; an account that no
// handler has is an error.
func placesOf(account string) ([]*place, error) {
	places := inForce.places(account)
	if len(places) == 0 && account != "" {
		return nil, apiError(http.StatusNotFound, fmt.Errorf("no iak_callback in the configuration has the account %q", account))
	}
	return places, nil
}

// oneRecord reads account and ref_id, which are needed.
func oneRecord(r *http.Request, more ...string) (places []*place, values map[string]string, err error) {
	values, err = parameters(r, append(more, "account", "ref_id")...)
	if err != nil {
		return nil, nil, err
	}
	if values["account"] == "" || values["ref_id"] == "" {
		return nil, nil, apiError(http.StatusBadRequest, errors.New("account and ref_id are needed"))
	}
	places, err = placesOf(values["account"])
	return places, values, err
}

func serveRecord(w http.ResponseWriter, r *http.Request) error {
	places, values, err := oneRecord(r)
	if err != nil {
		return err
	}
	return each(w, places, values["ref_id"], func(store recordStore, p *place, key string) (snapshot, error) {
		shot, err := store.read(r.Context(), key)
		if err == nil && shot.record.empty() {
			err = errNoRecord
		}
		return shot, err
	})
}

func serveOperation(what operation) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		var more []string
		if what == operationForget {
			more = []string{"accepted"}
		}
		places, values, err := oneRecord(r, more...)
		if err != nil {
			return err
		}
		evenAccepted := values["accepted"] == "true"
		if accepted := values["accepted"]; !evenAccepted && accepted != "" && accepted != "false" {
			return apiError(http.StatusBadRequest, fmt.Errorf("accepted %q: use true or false", accepted))
		}
		return each(w, places, values["ref_id"], func(store recordStore, p *place, key string) (snapshot, error) {
			shot, err := store.change(r.Context(), key, p.retention, func(record *record, now int64) error {
				return record.operate(what, evenAccepted, now)
			})
			if err == nil {
				caddy.Log().Named("admin.api.iak_callback").Info("operator", zap.String("operation", string(what)),
					zap.String("account", p.account), zap.String("ref_id", values["ref_id"]), zap.String("store", store.String()))
			}
			return shot, err
		})
	}
}

// each does work in every place and answers with the records that it was done
// on, or why it was done on none.
func each(w http.ResponseWriter, places []*place, refID string, work func(store recordStore, p *place, key string) (snapshot, error)) error {
	var done []recordView
	var errs []error
	for _, p := range places {
		err := p.with(func(store recordStore) error {
			shot, err := work(store, p, p.key(refID))
			if err == nil {
				done = append(done, view(p, store, refID, shot))
			}
			return err
		})
		if err != nil && !errors.Is(err, errNoRecord) {
			errs = append(errs, err)
		}
	}
	if len(done) == 0 {
		err := errors.Join(errs...)
		refused := func(err error) bool { return errors.As(err, new(errNotDone)) }
		switch {
		case err == nil: // only that there is none
			return apiError(http.StatusNotFound, errNoRecord)
		case !slices.ContainsFunc(errs, func(err error) bool { return !refused(err) }):
			return apiError(http.StatusConflict, errs[0])
		default: // the record may be in the store that does not answer
			return apiError(http.StatusServiceUnavailable, err)
		}
	}
	answer := recordsAnswer{Records: done}
	for _, err := range errs {
		answer.Errors = append(answer.Errors, err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(answer)
}

// recordsAnswer tells of the places where it was done, and of those where it was
// not, but for those that have no such record.
type recordsAnswer struct {
	Records []recordView `json:"records"`
	Errors  []string     `json:"errors,omitempty"`
}

func serveRecords(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r, "account", "state", "since")
	if err != nil {
		return err
	}
	places, err := placesOf(values["account"])
	if err != nil {
		return err
	}
	state := values["state"]
	if state != "" && !slices.Contains(recordStates, state) {
		return apiError(http.StatusBadRequest, fmt.Errorf("state %q: use %s", state, either(recordStates)))
	}
	var since time.Duration
	if text := values["since"]; text != "" {
		if since, err = caddy.ParseDuration(text); err != nil || since <= 0 {
			return apiError(http.StatusBadRequest, fmt.Errorf("since %q is not a positive duration, such as 2h or 7d", text))
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, begun := json.NewEncoder(w), false
	for _, p := range places {
		err := p.with(func(store recordStore) error {
			return store.list(r.Context(), p.key(""), func(key string, shot snapshot) error {
				v := view(p, store, strings.TrimPrefix(key, p.key("")), shot)
				changed := time.UnixMilli(shot.now).Sub(v.Changed)
				if (state != "" && v.State != state) || (since > 0 && changed > since) {
					return nil
				}
				begun = true
				return out.Encode(v)
			})
		})
		switch {
		case err != nil && !begun:
			return apiError(http.StatusServiceUnavailable, err)
		case err != nil: // the status is on its way: the last line tells
			return out.Encode(map[string]string{"error": err.Error()})
		}
	}
	return nil
}

func serveHealth(w http.ResponseWriter, r *http.Request) error {
	type storeHealth struct {
		Store string `json:"store"`
		OK    bool   `json:"ok"`
		Error string `json:"error,omitempty"`
	}
	stores := []storeHealth{}
	status := http.StatusOK
	asked := make(map[string]bool)
	for _, p := range inForce.places("") {
		if asked[p.ref.key] {
			continue
		}
		asked[p.ref.key] = true
		health := storeHealth{Store: p.ref.kind, OK: true}
		err := p.with(func(store recordStore) error {
			health.Store = store.String()
			_, err := store.read(r.Context(), p.key("")) // no order has an empty ref_id
			return err
		})
		if err != nil {
			health.OK, health.Error = false, err.Error()
			status = http.StatusServiceUnavailable
		}
		stores = append(stores, health)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(map[string]any{"ok": status == http.StatusOK, "stores": stores})
}

// recordView is what an operator sees of a record.
type recordView struct {
	Account  string     `json:"account"`
	RefID    string     `json:"ref_id"`
	State    string     `json:"state"`
	Accepted string     `json:"accepted,omitempty"`  // the status that the app accepted last
	Code     int        `json:"code,omitempty"`      // what the app answered then
	InFlight string     `json:"in_flight,omitempty"` // the status that is being delivered
	Until    *time.Time `json:"until,omitempty"`     // when that lease is over
	InDoubt  string     `json:"in_doubt,omitempty"`  // the status of which nobody knows whether the app has acted
	// With on_conflict forward, the status that is in doubt behind the newer one.
	InDoubtBefore string `json:"in_doubt_before,omitempty"`

	Attempt int       `json:"attempt"` // deliveries since the last accepted outcome
	Changed time.Time `json:"changed"`
	Expires time.Time `json:"expires"`
	Store   string    `json:"store"`
}

func view(p *place, store recordStore, refID string, s snapshot) recordView {
	r := s.record
	v := recordView{
		Account: p.account, RefID: refID, State: s.state(p.hold), Attempt: r.attempt, Store: store.String(),
		Expires: time.UnixMilli(s.expires), Changed: time.UnixMilli(s.expires).Add(-p.retention),
	}
	if r.accepted != nil {
		v.Accepted, v.Code = r.accepted.status.String(), r.accepted.code
	}
	if r.inFlight(s.now) {
		end := time.UnixMilli(r.claim.end)
		v.InFlight, v.Until = r.claim.status.String(), &end
	} else if doubt := r.doubtful(); doubt != nil {
		v.InDoubt = doubt.status.String()
		if r.doubt != nil && !r.doubt.same(*doubt) {
			v.InDoubtBefore = r.doubt.status.String()
		}
	}
	return v
}

// Interface guards
var (
	_ caddy.Module      = adminAPI{}
	_ caddy.AdminRouter = adminAPI{}
)
