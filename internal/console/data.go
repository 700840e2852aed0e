package console

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddy-iak/iakcallback/internal/inspect"
)

// one asks for one JSON object.
func (c *Console) one(ctx context.Context, method, path string, query url.Values, answer any) error {
	body, err := c.admin(ctx, method, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(answer)
}

// each asks for a JSON object a line.
func each[T any](ctx context.Context, c *Console, method, path string, query url.Values, visit func(T)) error {
	body, err := c.admin(ctx, method, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var problem inspect.Problem
		if json.Unmarshal(lines.Bytes(), &problem) == nil && problem.Error != "" && strings.HasPrefix(lines.Text(), `{"error"`) {
			return errors.New(problem.Error)
		}
		var v T
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			return err
		}
		visit(v)
	}
	return lines.Err()
}

// selected is a query of names and values, without those that are empty.
func selected(pairs ...string) url.Values {
	query := url.Values{}
	for pair := range slices.Chunk(pairs, 2) {
		if name, value := pair[0], pair[len(pair)-1]; value != "" {
			query.Set(name, value)
		}
	}
	return query
}

// recentOf are the last callbacks, the newest first.
func (c *Console) recentOf(ctx context.Context, query url.Values) (all []inspect.Recent, err error) {
	err = each(ctx, c, http.MethodGet, inspect.PathRecent, query, func(r inspect.Recent) { all = append(all, r) })
	slices.Reverse(all)
	return all, err
}

// counted are the records by state, as they were counted last: with a hundred thousand of
// them that takes a second, and a page is refreshed every few.
type counted struct {
	at      time.Time
	took    time.Duration
	byState map[string]int
	oldest  *inspect.Record // spooled
}

// count counts the records, if that was not done lately.
func (c *Console) count(ctx context.Context) (counted, error) {
	c.mu.Lock()
	last := c.counts
	c.mu.Unlock()
	if time.Since(last.at) < max(2*time.Second, 20*last.took) {
		return last, nil
	}
	began := time.Now()
	now := counted{byState: make(map[string]int)}
	err := each(ctx, c, http.MethodGet, inspect.PathRecords, nil, func(r inspect.Record) {
		now.byState[string(r.State)]++
		if r.State == inspect.Spooled && (now.oldest == nil || r.Kept.Came.Before(now.oldest.Kept.Came)) {
			now.oldest = &r
		}
	})
	now.at, now.took = time.Now(), time.Since(began)
	if err == nil {
		c.mu.Lock()
		c.counts = now
		c.mu.Unlock()
	}
	return now, err
}

const perPage = 100

// listed is a page of records.
type listed struct {
	Records []inspect.Record
	Total   int
	Page    int
	Pages   int
}

// list returns a page of the records that are selected, those that have changed last
// first. A part of a ref_id selects too.
func (c *Console) list(ctx context.Context, query url.Values, part string, page int) (l listed, err error) {
	keep := perPage * page
	sort := func(all []inspect.Record) []inspect.Record {
		slices.SortStableFunc(all, func(a, b inspect.Record) int { return b.Changed.Compare(a.Changed) })
		return all[:min(len(all), keep)]
	}
	var all []inspect.Record
	err = each(ctx, c, http.MethodGet, inspect.PathRecords, query, func(r inspect.Record) {
		if part != "" && !strings.Contains(r.RefID, part) {
			return
		}
		l.Total++
		if all = append(all, r); len(all) > 2*keep+perPage {
			all = sort(all)
		}
	})
	all = sort(all)
	l.Page, l.Pages = page, max((l.Total+perPage-1)/perPage, 1)
	l.Records = all[min(perPage*(page-1), len(all)):]
	return l, err
}

// health asks whether stores and IAK answer; a store that does not is no error here.
func (c *Console) health(ctx context.Context) (health inspect.Health, err error) {
	err = c.one(ctx, http.MethodGet, inspect.PathHealth, nil, &health)
	if err != nil { // 503 comes as an error with the answer in its text
		text := err.Error()
		if i := strings.IndexByte(text, '{'); i >= 0 && json.Unmarshal([]byte(text[i:]), &health) == nil && len(health.Stores) > 0 {
			err = nil
		}
	}
	return health, err
}
