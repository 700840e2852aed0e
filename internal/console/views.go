package console

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/inspect"
)

func (c *Console) overview(q *request) {
	ctx := q.r.Context()
	health, err := c.health(ctx)
	if err != nil {
		q.failed(err)
		return
	}
	counts, err := c.count(ctx)
	data := map[string]any{"Health": health, "Counts": counts.byState, "States": inspect.States(), "Oldest": counts.oldest}
	if err != nil { // a store that does not answer: health says which
		data["CountError"] = err.Error()
	}
	recent, err := c.recentOf(ctx, selected("since", "1h"))
	if err != nil {
		q.failed(err)
		return
	}
	data["Plot"], data["Lately"] = plot(recent, time.Now()), recent[:min(len(recent), 10)]
	data["Refreshes"] = true
	q.page("overview", data)
}

func (c *Console) recent(q *request) {
	v := q.r.URL.Query()
	all, err := c.recentOf(q.r.Context(), selected("account", v.Get("account"), "ref_id", v.Get("ref_id"), "outcome", v.Get("outcome")))
	if err != nil {
		q.failed(err)
		return
	}
	q.page("recent", map[string]any{"Lately": all[:min(len(all), 200)], "Refreshes": true, "Total": len(all), "Filter": v})
}

// filter are the parameters of a list of records.
func filter(v url.Values) url.Values {
	return selected("state", v.Get("state"), "account", v.Get("account"), "since", v.Get("since"))
}

func (c *Console) orders(q *request) {
	v := q.r.URL.Query()
	page, err := strconv.Atoi(v.Get("page"))
	if err != nil || page < 1 || page > 10_000 {
		page = 1
	}
	l, err := c.list(q.r.Context(), filter(v), v.Get("ref_id"), page)
	if err != nil {
		q.failed(err)
		return
	}
	other := func(page int) string {
		with := url.Values{}
		for name, values := range v {
			with[name] = values
		}
		with.Set("page", strconv.Itoa(page))
		return "/orders?" + with.Encode()
	}
	q.page("orders", map[string]any{
		"List": l, "Filter": v, "States": inspect.States(), "Previous": other(l.Page - 1), "Next": other(l.Page + 1),
		"CSV": "/export?format=csv&" + v.Encode(), "NDJSON": "/export?format=ndjson&" + v.Encode(),
	})
}

// find returns the records of one order, none if there is none.
func (c *Console) find(q *request, account, refID string) ([]inspect.Record, error) {
	var answer inspect.Answer
	err := c.one(q.r.Context(), http.MethodGet, inspect.PathRecord, selected("account", account, "ref_id", refID), &answer)
	if err != nil && strings.HasPrefix(err.Error(), "there is no record") {
		return nil, nil
	}
	return answer.Records, err
}

func (c *Console) order(q *request) {
	v := q.r.URL.Query()
	c.showOrder(q, v.Get("account"), v.Get("ref_id"), map[string]any{"Done": v.Get("done")})
}

// showOrder writes the page of one order, with what was just done to it.
func (c *Console) showOrder(q *request, account, refID string, data map[string]any) {
	records, err := c.find(q, account, refID)
	if err != nil {
		q.failed(err)
		return
	}
	recent, err := c.recentOf(q.r.Context(), selected("account", account, "ref_id", refID))
	if err != nil {
		q.failed(err)
		return
	}
	data["Account"], data["RefID"], data["Records"], data["Recent"] = account, refID, records, recent
	data["Refreshes"] = data["Revealed"] == nil
	q.page("order", data)
}

// actions are what can be done to one order: by its name, how it is asked for.
var actions = map[string]struct{ method, path, sure string }{
	"accept":    {http.MethodPost, inspect.PathAccept, ""},
	"release":   {http.MethodPost, inspect.PathRelease, ""},
	"redeliver": {http.MethodPost, inspect.PathRedeliver, inspect.SureToRedeliver},
	"forget":    {http.MethodDelete, inspect.PathRecord, inspect.SureToForget},
}

// beforeAct says what an action will do before it is done.
func (c *Console) beforeAct(q *request) {
	v := q.r.URL.Query()
	if _, known := actions[v.Get("do")]; !known {
		q.failed(errors.New(q.t("no such action")))
		return
	}
	records, err := c.find(q, v.Get("account"), v.Get("ref_id"))
	if err != nil {
		q.failed(err)
		return
	}
	q.page("act", map[string]any{"Do": v.Get("do"), "Account": v.Get("account"), "RefID": v.Get("ref_id"), "Records": records})
}

func (c *Console) act(q *request) {
	account, refID, do := q.r.PostFormValue("account"), q.r.PostFormValue("ref_id"), q.r.PostFormValue("do")
	action, known := actions[do]
	if !known {
		q.failed(errors.New(q.t("no such action")))
		return
	}
	query := selected("account", account, "ref_id", refID)
	if action.sure != "" { // the page before has said what it means
		query.Set(action.sure, "true")
	}
	var answer inspect.Answer
	if err := c.one(q.r.Context(), action.method, action.path, query, &answer); err != nil {
		q.failed(err)
		return
	}
	c.mu.Lock()
	c.counts = counted{}
	c.mu.Unlock()
	http.Redirect(q.w, q.r, "/order?"+selected("account", account, "ref_id", refID, "done", do).Encode(), http.StatusSeeOther)
}

// reveal shows the callback that is kept, goods and all. Caddy logs that.
func (c *Console) reveal(q *request) {
	account, refID := q.r.PostFormValue("account"), q.r.PostFormValue("ref_id")
	var revealed inspect.Revealed
	if err := c.one(q.r.Context(), http.MethodPost, inspect.PathReveal, selected("account", account, "ref_id", refID), &revealed); err != nil {
		q.failed(err)
		return
	}
	c.showOrder(q, account, refID, map[string]any{"Revealed": revealed.Callbacks})
}

// beforeBulk counts what would be redelivered.
func (c *Console) beforeBulk(q *request) {
	v := q.r.URL.Query()
	state := v.Get("state")
	if state != string(inspect.Spooled) {
		state = string(inspect.Dead)
	}
	v.Set("state", state)
	l, err := c.list(q.r.Context(), filter(v), "", 1)
	if err != nil {
		q.failed(err)
		return
	}
	q.page("bulk", map[string]any{"State": state, "Filter": v, "Total": l.Total})
}

func (c *Console) bulk(q *request) {
	query := selected("state", q.r.PostFormValue("state"), "account", q.r.PostFormValue("account"), "since", q.r.PostFormValue("since"))
	var last inspect.Progress
	if err := each(q.r.Context(), c, http.MethodPost, inspect.PathRedeliverAll, query, func(p inspect.Progress) { last = p }); err != nil {
		q.failed(err)
		return
	}
	q.page("bulk", map[string]any{"State": query.Get("state"), "Filter": query, "Progress": last})
}

func (c *Console) beforeAsk(q *request) {
	v := q.r.URL.Query()
	q.page("ask", map[string]any{"Account": v.Get("account"), "RefID": v.Get("ref_id")})
}

// ask asks IAK for an order, and hands a final answer in if that is wanted.
func (c *Console) ask(q *request) {
	account, refID := q.r.PostFormValue("account"), q.r.PostFormValue("ref_id")
	query := selected("account", account, "ref_id", refID)
	if q.r.PostFormValue("deliver") != "" {
		query.Set(inspect.AskDeliver, "true")
	}
	if q.r.PostFormValue("reveal") != "" {
		query.Set(inspect.AskReveal, "true")
	}
	var asked inspect.Asked
	if err := c.one(q.r.Context(), http.MethodPost, inspect.PathAsk, query, &asked); err != nil {
		q.failed(err)
		return
	}
	q.page("ask", map[string]any{"Account": account, "RefID": refID, "Asked": asked})
}

func (c *Console) beforeSend(q *request) {
	q.page("send", map[string]any{"Samples": iak.SampleNames()})
}

func (c *Console) doSend(q *request) {
	to, sample, refID := q.r.PostFormValue("to"), q.r.PostFormValue("sample"), q.r.PostFormValue("ref_id")
	said, err := c.send(q.r.Context(), to, sample, refID)
	data := map[string]any{"Samples": iak.SampleNames(), "To": to, "Sample": sample, "RefID": refID, "Said": said}
	if err != nil {
		data["Error"] = err.Error()
	}
	q.page("send", data)
}

// export writes a list without goods, as it comes: there may be millions.
func (c *Console) export(q *request) {
	v := q.r.URL.Query()
	part, asCSV := v.Get("ref_id"), v.Get("format") != "ndjson"
	body, err := c.admin(q.r.Context(), http.MethodGet, inspect.PathRecords, filter(v))
	if err != nil {
		q.failed(err)
		return
	}
	defer body.Close()
	name, kind := "orders.csv", "text/csv; charset=utf-8"
	if !asCSV {
		name, kind = "orders.ndjson", "application/x-ndjson"
	}
	q.w.Header().Set("Content-Type", kind)
	q.w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
	table := csv.NewWriter(q.w)
	if asCSV {
		_ = table.Write([]string{"account", "ref_id", "state", "status", "attempt", "changed", "store"})
	}
	lines := json.NewDecoder(body)
	for {
		var r inspect.Record
		if err := lines.Decode(&r); err != nil {
			if !errors.Is(err, io.EOF) {
				panic(http.ErrAbortHandler) // a file that breaks off is not taken for a whole one
			}
			break
		}
		if part != "" && !strings.Contains(r.RefID, part) {
			continue
		}
		if asCSV {
			_ = table.Write([]string{r.Account, harmlessCell(r.RefID), string(r.State), statusOf(r), strconv.Itoa(r.Attempt), r.Changed.Format(time.RFC3339), r.Store})
		} else {
			_ = json.NewEncoder(q.w).Encode(r)
		}
	}
	table.Flush()
}

// harmlessCell keeps a spreadsheet from taking a ref_id for a formula.
func harmlessCell(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
		return "'" + text
	}
	return text
}

// statusOf is the status that matters in the record's state.
func statusOf(r inspect.Record) string {
	switch {
	case r.State == inspect.InFlight:
		return r.InFlight
	case r.Kept != nil:
		return r.Kept.Status
	case r.InDoubt != "":
		return r.InDoubt
	default:
		return r.Accepted
	}
}
