package iakcallback

import (
	"fmt"
	"testing"
	"time"
)

// What happens again within a minute is not told again, and what is remembered for
// that is bounded, and forgotten.
func TestRecently(t *testing.T) {
	r := &recently{at: make(map[string]time.Time)}
	now := time.Now()
	for _, step := range []struct {
		what  string
		after time.Duration
		want  bool
	}{
		{"a", 0, true}, {"a", 0, false}, {"b", 0, true}, {"a", 59 * time.Second, false}, {"a", 60 * time.Second, true}, {"a", 61 * time.Second, false},
	} {
		if got := r.first(step.what, now.Add(step.after)); got != step.want {
			t.Errorf("%s after %s: %t, want %t", step.what, step.after, got, step.want)
		}
	}
	for i := range 2 * maxEmitted {
		r.first(fmt.Sprint("many ", i), now.Add(time.Hour))
	}
	if len(r.at) > maxEmitted {
		t.Errorf("%d are remembered, want at most %d", len(r.at), maxEmitted)
	}
	if r.first("one more", now.Add(time.Hour)) {
		t.Error("one more is told")
	}
	if !r.first("one more", now.Add(2*time.Hour)) || len(r.at) != 1 {
		t.Errorf("an hour later it is not told, or %d are remembered", len(r.at))
	}
}

// A store that comes and goes is told when it goes, once a minute at most.
func TestStoreFailed(t *testing.T) {
	event := func(id string) string {
		o := new(observation)
		o.storeFailed(id)
		return o.event
	}
	first, second := t.Name()+"1", t.Name()+"2"
	if event(first) == "" || event(first) != "" || event(second) == "" {
		t.Error("want one event for each store")
	}
	storeAnswered(first)
	if event(first) != "" {
		t.Error("a second event within a minute")
	}
	storeAnswered(first)
	emitted.mu.Lock()
	clear(emitted.at)
	emitted.mu.Unlock()
	if event(first) == "" {
		t.Error("no event for a store that went again")
	}
}
