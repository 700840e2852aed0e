package spool

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// After a start, or a failure, one redelivery is let through, and twice as many after
// each round of acceptances, up to the limit.
func TestGateSlowStart(t *testing.T) {
	now := time.Now()
	g := NewGate(4, Backoff{time.Second, time.Minute}, func(bool) {})
	// room enters as often as it can, and leaves again.
	room := func() (n int) {
		for g.Enter(now) {
			n++
		}
		for range n {
			g.Leave()
		}
		return n
	}
	want := func(n int, when string) {
		t.Helper()
		if got := room(); got != n {
			t.Errorf("%s %d may be under way, want %d", when, got, n)
		}
	}
	want(1, "at the start")
	g.Tell(Accepted, now)
	want(2, "after one acceptance")
	g.Tell(Accepted, now)
	want(2, "after half a round")
	g.Tell(Accepted, now)
	want(4, "after a round of two")
	for range 4 {
		g.Tell(Accepted, now)
	}
	want(4, "at the limit")
	g.Tell(Silent, now)
	want(1, "after a failure")
	g.Tell(Accepted, now)
	g.Tell(Answered, now) // a refusal: a round begins anew
	g.Tell(Accepted, now)
	want(2, "after a refusal in the middle of a round")
}

// gather returns the metrics by their short name and account.
func gather(t *testing.T) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(Collectors()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			name := strings.TrimPrefix(f.GetName(), "caddy_iak_callback_")
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			found[name] = m.Gauge.GetValue() + m.Counter.GetValue()
		}
	}
	return found
}

// open is how many breakers are open by the gauge.
func open(t *testing.T) float64 {
	t.Helper()
	return gather(t)["breaker_open"]
}

// After five deliveries in a row that did not reach the app, or got no answer, the
// breaker is open: one probe a pause, and what is shown by any delivery closes it.
func TestGateBreaker(t *testing.T) {
	before := open(t)
	now := time.Now()
	var told []bool
	g := NewGate(4, Backoff{time.Second, 8 * time.Second}, func(open bool) { told = append(told, open) })
	for range openAfter - 1 {
		g.Tell(Silent, now)
	}
	if g.Open() {
		t.Fatal("open after four")
	}
	g.Tell(Answered, now) // a refusal is an answer
	for range openAfter {
		g.Tell(Silent, now)
	}
	if !g.Open() || open(t) != before+1 {
		t.Fatal("not open after five in a row, or not counted")
	}
	pause := time.Second // the first pause, a random part of it
	for probe := range 6 {
		if g.Enter(now) {
			t.Fatalf("probe %d goes without a pause", probe)
		}
		now = now.Add(pause)
		if !g.Enter(now) {
			t.Fatalf("probe %d does not go after %s", probe, pause)
		}
		if g.Enter(now) || g.Ready(now) {
			t.Fatalf("a second beside probe %d", probe)
		}
		g.Leave()
		g.Tell(Silent, now)
		pause = min(2*pause, 8*time.Second)
	}
	now = now.Add(8 * time.Second)
	if !g.Enter(now) {
		t.Fatal("no probe after the longest pause")
	}
	g.Leave()
	g.Tell(Accepted, now)
	if g.Open() || !g.Ready(now) || open(t) != before {
		t.Error("open after an acceptance, or still counted")
	}
	for range openAfter {
		g.Tell(Silent, now)
	}
	if !slices.Equal(told, []bool{true, false, true}) {
		t.Errorf("told %v, want open, closed, open", told)
	}
	g.Close()
	g.Close()
	if open(t) != before {
		t.Error("the gate of a handler that is gone is still counted as open")
	}
	g.Tell(Accepted, now)
	if open(t) != before {
		t.Error("a gate that is gone counts")
	}
}

// A probe whose delivery tells nothing, as one that another instance was faster with,
// does not keep the next from going for ever.
func TestGateProbeWithoutNews(t *testing.T) {
	now := time.Now()
	g := NewGate(1, Backoff{time.Second, time.Minute}, func(bool) {})
	for range openAfter {
		g.Tell(Silent, now)
	}
	now = now.Add(time.Second)
	if !g.Enter(now) {
		t.Fatal("no probe")
	}
	g.Leave()
	if g.Ready(now) || !g.Ready(now.Add(time.Minute)) {
		t.Error("the next probe goes at once, or not after the longest pause")
	}
}

// A pause is a random part of a time that doubles from the first pause to the longest;
// it is not shorter than what the app asked for, and never longer than the longest.
func TestBackoff(t *testing.T) {
	b := Backoff{time.Second, 5 * time.Minute}
	for _, row := range []struct {
		pauses int
		full   time.Duration
	}{{0, time.Second}, {1, 2 * time.Second}, {8, 256 * time.Second}, {9, 5 * time.Minute}, {31, 5 * time.Minute}, {62, 5 * time.Minute}, {63, 5 * time.Minute}, {64, 5 * time.Minute}, {255, 5 * time.Minute}} {
		short, long := 0, 0
		for range 1000 {
			pause := b.After(row.pauses, 0)
			if pause <= 0 || pause > row.full {
				t.Fatalf("after %d pauses one of %s, want up to %s", row.pauses, pause, row.full)
			}
			if pause < row.full/4 {
				short++
			}
			if pause > row.full*3/4 {
				long++
			}
		}
		if short < 150 || long < 150 {
			t.Errorf("after %d pauses: of 1,000 %d are in the first quarter of %s, and %d in the last", row.pauses, short, row.full, long)
		}
	}
	for _, row := range []struct{ asked, least, most time.Duration }{
		{30 * time.Second, 30 * time.Second, 30 * time.Second},
		{time.Hour, 5 * time.Minute, 5 * time.Minute},
		{-time.Hour, 1, time.Second},
	} {
		if pause := b.After(0, row.asked); pause < row.least || pause > row.most {
			t.Errorf("the app asked for %s, the pause is %s", row.asked, pause)
		}
	}
	same := Backoff{time.Minute, time.Minute}
	if pause := same.After(200, 0); pause > time.Minute {
		t.Errorf("a pause of %s", pause)
	}
}

// Retry-After is seconds or a date; what is neither counts for nothing.
func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 27, 5, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "120": 2 * time.Minute, " 120 ": 2 * time.Minute, "0": 0, "-5": 0, "soon": 0, "1.5": 0, "1e3": 0, "5 s": 0,
		"99999999999":                   365 * 24 * time.Hour,
		"9223372036854775807":           365 * 24 * time.Hour,
		"99999999999999999999":          0,
		"Fri, 27 Nov 2026 05:01:00 GMT": time.Minute, "Fri, 27 Nov 2026 04:59:00 GMT": 0,
		"Friday, 27-Nov-26 05:01:00 GMT": time.Minute, "Fri Nov 27 05:01:00 2026": time.Minute,
	} {
		if got := RetryAfter(header, now); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

// A probe that did not get to the app is followed by another soon, not after the longest
// pause.
func TestGateProbeUntold(t *testing.T) {
	now := time.Now()
	g := NewGate(4, Backoff{time.Second, time.Hour}, func(bool) {})
	for range openAfter {
		g.Tell(Silent, now)
	}
	now = now.Add(time.Hour)
	if !g.Enter(now) {
		t.Fatal("no probe is let through")
	}
	g.Leave()
	if g.Enter(now) || !g.Enter(now.Add(time.Second)) {
		t.Error("the next probe does not come after the first pause")
	}
	g.Tell(Silent, now.Add(time.Second))
	g.Leave()
	if g.Ready(now.Add(2*time.Second)) && g.Ready(now.Add(time.Second)) {
		t.Error("a probe that found the app silent has no pause behind it")
	}
}
