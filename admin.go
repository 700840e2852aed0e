package iakcallback

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// adminAPI adds these routes to Caddy's admin API, for operators and probes:
//
//   - `GET /iak_callback/record?account=&ref_id=`: one record
//   - `DELETE` on the same: forget it; with `accepted=true` also if the app has
//     accepted it, or a callback is kept
//   - `POST /iak_callback/record/accept?account=&ref_id=`: the app has acted on
//     what is in doubt
//   - `POST /iak_callback/record/release?account=&ref_id=`: it has not; what is kept is
//     delivered, or else the callback when it comes again
//   - `POST /iak_callback/record/redeliver?account=&ref_id=`: deliver what is kept now;
//     with `held=true` also if it is held
//   - `POST /iak_callback/record/reveal?account=&ref_id=`: the callback that is kept, goods
//     and all
//   - `GET /iak_callback/records?account=&state=&since=`: all records, a JSON
//     object a line; state and since (a duration) select
//   - `POST /iak_callback/redeliver?account=&state=&since=`: deliver all that is kept in
//     the state spooled or dead, spread over time; a JSON object a line tells how far it is
//   - `POST /iak_callback/ask?account=&ref_id=&deliver=&reveal=`: what IAK's check-status
//     says of an order; with `deliver=true` a final answer is handed in as a callback, with
//     `reveal=true` goods are shown
//   - `GET /iak_callback/recent?account=&ref_id=&outcome=&since=`: the last 1,000 callbacks of
//     this process, a JSON object a line, the oldest first
//   - `GET /iak_callback/health`: 200 if every store answers, else 503
//
// No answer but a revealed one holds goods, customers, or anything secret.
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
		{Pattern: inspect.PathRecord, Handler: allow(map[string]caddy.AdminHandlerFunc{
			http.MethodGet:    serveRecord,
			http.MethodDelete: serveOperation(record.OperationForget),
		})},
		{Pattern: inspect.PathAccept, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodPost: serveOperation(record.OperationAccept)})},
		{Pattern: inspect.PathRelease, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodPost: serveOperation(record.OperationRelease)})},
		{Pattern: inspect.PathRedeliver, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodPost: serveOperation(record.OperationRedeliver)})},
		{Pattern: inspect.PathReveal, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodPost: serveReveal})},
		{Pattern: inspect.PathRedeliverAll, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodPost: serveRedeliverAll})},
		{Pattern: inspect.PathRecords, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodGet: serveRecords})},
		{Pattern: inspect.PathAsk, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodPost: serveAsk})},
		{Pattern: inspect.PathRecent, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodGet: serveRecent})},
		{Pattern: inspect.PathHealth, Handler: allow(map[string]caddy.AdminHandlerFunc{http.MethodGet: serveHealth})},
	}
}

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

// namespaces returns where the records of an account are, of all accounts if it is
// empty; an account that no handler has is an error.
func namespaces(account string) ([]inspect.Namespace, error) {
	found := inForce.Load().namespaces(account)
	if len(found) == 0 && account != "" {
		return nil, errAccount(account)
	}
	return found, nil
}

// errAccount names the accounts that there are.
func errAccount(account string) error {
	known := "there is none"
	var names []string
	for _, h := range inForce.Load().all() {
		for _, a := range h.Accounts {
			names = append(names, a.Name)
		}
	}
	if slices.Sort(names); len(names) > 0 {
		known = "there are " + strings.Join(slices.Compact(names), ", ")
	}
	return apiError(http.StatusNotFound, fmt.Errorf("no iak_callback in the configuration has the account %q: %s", account, known))
}

// oneRecord reads account and ref_id, which are needed.
func oneRecord(r *http.Request, more ...string) (found []inspect.Namespace, values map[string]string, err error) {
	values, err = parameters(r, append(more, "account", "ref_id")...)
	if err != nil {
		return nil, nil, err
	}
	if values["account"] == "" || values["ref_id"] == "" {
		return nil, nil, apiError(http.StatusBadRequest, errors.New("account and ref_id are needed"))
	}
	found, err = namespaces(values["account"])
	return found, values, err
}

func serveRecord(w http.ResponseWriter, r *http.Request) error {
	found, values, err := oneRecord(r)
	if err != nil {
		return err
	}
	answer, err := inspect.Show(found, values["ref_id"])
	return answerOf(w, answer, err)
}

// sure is the parameter by which an operator says that he means an operation.
var sure = map[record.Operation]string{
	record.OperationForget: inspect.SureToForget, record.OperationRedeliver: inspect.SureToRedeliver,
}

func serveOperation(what record.Operation) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		var more []string
		name, asks := sure[what]
		if asks {
			more = []string{name}
		}
		found, values, err := oneRecord(r, more...)
		if err != nil {
			return err
		}
		given := values[name]
		if given != "" && given != "true" && given != "false" {
			return apiError(http.StatusBadRequest, fmt.Errorf("%s %q: use true or false", name, given))
		}
		answer, err := inspect.Operate(found, values["ref_id"], what, given == "true")
		for _, done := range answer.Records {
			operated(string(what), zap.String("account", done.Account), zap.String("ref_id", done.RefID), zap.String("store", done.Store))
		}
		return answerOf(w, answer, err)
	}
}

// operated logs what an operator has done.
func operated(what string, fields ...zap.Field) {
	caddy.Log().Named("admin.api.iak_callback").Info("operator", append([]zap.Field{zap.String("operation", what)}, fields...)...)
}

// answerOf answers with what was done, or tells why it was not.
func answerOf(w http.ResponseWriter, answer any, err error) error {
	switch {
	case err == nil:
	case errors.As(err, new(inspect.UnavailableError)):
		return apiError(http.StatusServiceUnavailable, err)
	case errors.Is(err, record.ErrNone):
		return apiError(http.StatusNotFound, err)
	default:
		return apiError(http.StatusConflict, err)
	}
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(answer)
}

// filter reads account, state and since, which select records. The state is one of
// states.
func filter(r *http.Request, states []string) (found []inspect.Namespace, only inspect.Filter, err error) {
	values, err := parameters(r, "account", "state", "since")
	if err != nil {
		return nil, only, err
	}
	if found, err = namespaces(values["account"]); err != nil {
		return nil, only, err
	}
	only.State = record.State(values["state"])
	if only.State != "" && !slices.Contains(states, values["state"]) {
		return nil, only, apiError(http.StatusBadRequest, fmt.Errorf("state %q: use %s", only.State, either(states)))
	}
	if text := values["since"]; text != "" {
		if only.Since, err = caddy.ParseDuration(text); err != nil || only.Since <= 0 {
			return nil, only, apiError(http.StatusBadRequest, errSince(text))
		}
	}
	return found, only, nil
}

func errSince(text string) error {
	return fmt.Errorf("since %q is not a positive duration, such as 2h or 7d", text)
}

func serveRecords(w http.ResponseWriter, r *http.Request) error {
	found, only, err := filter(r, inspect.States())
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, begun := json.NewEncoder(w), false
	err = inspect.List(r.Context(), found, only, func(v inspect.Record) error {
		begun = true
		return out.Encode(v)
	})
	switch {
	case err != nil && !begun:
		return apiError(http.StatusServiceUnavailable, err)
	case err != nil: // the status is on its way: the last line tells
		return out.Encode(inspect.Problem{Error: err.Error()})
	}
	return nil
}

func serveHealth(w http.ResponseWriter, _ *http.Request) error {
	health := inspect.Ask(inForce.Load().namespaces(""))
	for _, h := range inForce.Load().all() {
		health.Confirm = append(health.Confirm, h.confirmHealth()...)
	}
	health.Warnings = inForce.Load().warned()
	w.Header().Set("Content-Type", "application/json")
	if !health.OK {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	return json.NewEncoder(w).Encode(health)
}

// Interface guards
var (
	_ caddy.Module      = adminAPI{}
	_ caddy.AdminRouter = adminAPI{}
)
