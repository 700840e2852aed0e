package iakcallback

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddyserver/caddy/v2"
)

// maxRecent is how many callbacks are remembered for whoever asks what has come.
const maxRecent = 1000

// recent are the last callbacks of this process, across reloads.
var recent = &ring{}

// ring holds the last callbacks, in the order in which they ended.
type ring struct {
	mu   sync.Mutex
	all  []inspect.Recent
	next int // where the next one goes, when it is full
	last time.Time
}

// add remembers one. Its time is later than that of any before, whatever the clock does:
// whoever follows goes on from the last that he has seen.
func (r *ring) add(f inspect.Recent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now().Round(0); now.After(r.last) {
		r.last = now
	} else {
		r.last = r.last.Add(time.Nanosecond)
	}
	f.Time = r.last
	if len(r.all) < maxRecent {
		r.all = append(r.all, f)
		return
	}
	r.all[r.next] = f
	r.next = (r.next + 1) % maxRecent
}

// since returns those that are later than a time, the oldest first.
func (r *ring) since(after time.Time) (found []inspect.Recent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.all {
		if f := r.all[(r.next+i)%len(r.all)]; f.Time.After(after) {
			found = append(found, f)
		}
	}
	return found
}

// serveRecent answers with the last callbacks of this process.
func serveRecent(w http.ResponseWriter, r *http.Request) error {
	values, err := parameters(r, "account", "ref_id", "outcome", "since")
	if err != nil {
		return err
	}
	after := time.Time{}
	if text := values["since"]; text != "" {
		since, err := caddy.ParseDuration(text)
		if err != nil || since <= 0 {
			return apiError(http.StatusBadRequest, errSince(text))
		}
		after = time.Now().Add(-since)
	}
	found := slices.DeleteFunc(recent.since(after), func(f inspect.Recent) bool {
		for _, only := range [...]struct{ wanted, has string }{{values["account"], f.Account}, {values["ref_id"], f.RefID}, {values["outcome"], f.Outcome}} {
			if only.wanted != "" && only.wanted != only.has {
				return true
			}
		}
		return false
	})
	if len(found) == 0 { // one that was taken out may have some
		if _, err := namespaces(values["account"]); err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	for _, f := range found {
		if err := out.Encode(f); err != nil {
			return err
		}
	}
	return nil
}
