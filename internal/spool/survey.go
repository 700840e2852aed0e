package spool

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/prometheus/client_golang/prometheus"
)

// surveyEvery is how often what is kept is counted, at most.
const surveyEvery = 15 * time.Second

// account is what is kept of one account.
type account struct {
	spooled, dead int
	oldest        int64 // when the first of them came, of those that are delivered by themselves
}

// count goes over all that is kept, in constant memory.
func (w *Worker) count(ctx context.Context, s *store.Store) error {
	found := make(map[string]*account)
	var after store.Hint
	for skip := 0; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		page, err := s.Due(&store.DueQuery{Index: w.Index, Skip: skip, After: after, Limit: 2 * pageSize, All: true, Head: record.HeadSize})
		if err != nil {
			return err
		}
		for _, hint := range page.Hints {
			came, state, ok := record.Peek(hint.Head, hint.At, page.Now)
			if !ok {
				continue
			}
			setBack := hint.At != record.Never && hint.At-page.Now > w.Latest.Milliseconds()
			if setBack || state == record.StateHeld && !w.Holds(hint.Key) {
				_ = s.Correct(w.Index, hint, page.Now) // so that it is looked at
			}
			name := w.Account(hint.Key)
			a := found[name]
			if a == nil {
				a = new(account)
				found[name] = a
			}
			switch state {
			case record.StateDead:
				a.dead++
			case record.StateSpooled:
				a.spooled++
				if a.oldest == 0 || came < a.oldest {
					a.oldest = came
				}
			}
		}
		if skip += len(page.Hints); len(page.Hints) < 2*pageSize {
			break
		}
		after = page.Hints[len(page.Hints)-1]
	}
	surveys.set(w, found)
	return nil
}

// surveys are what the workers of this process have counted last. It is a collector.
var surveys = &survey{found: make(map[*Worker]map[string]*account)}

type survey struct {
	mu    sync.Mutex
	found map[*Worker]map[string]*account
	known map[string]bool // accounts that were told of before: they are told as 0
}

var (
	spooledDesc  = describe("spooled", "Callbacks that are kept for the app and delivered again by themselves.", "account")
	deadDesc     = describe("dead", "Callbacks that are kept, and not delivered any more until an operator says so.", "account")
	unroutedDesc = describe("unrouted", "Callbacks that are kept, and for which no route of this configuration leads to iak_callback any more.", "account")
	oldestDesc   = describe("oldest_spooled_seconds", "How long ago the oldest callback came first that is kept and delivered by itself; 0 without one.")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("caddy", "iak_callback", name), help, labels, nil)
}

func (s *survey) add(w *Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found[w] = nil
}

// set takes what a worker has counted, unless that has ended meanwhile.
func (s *survey) set(w *Worker, found map[string]*account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, works := s.found[w]; !works {
		return
	}
	s.found[w] = found
	if s.known == nil {
		s.known = make(map[string]bool)
	}
	for name := range found {
		s.known[name] = true
	}
}

func (s *survey) remove(w *Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.found, w)
}

// Describe is that of prometheus.Collector.
func (s *survey) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{spooledDesc, deadDesc, unroutedDesc, oldestDesc} {
		to <- d
	}
}

// Collect is that of prometheus.Collector.
func (s *survey) Collect(to chan<- prometheus.Metric) {
	s.mu.Lock()
	workers := slices.Collect(maps.Keys(s.found))
	all, oldest := make(map[string]account), int64(0)
	for name := range s.known {
		all[name] = account{}
	}
	for _, found := range s.found {
		for name, a := range found {
			sum := all[name]
			sum.spooled += a.spooled
			sum.dead += a.dead
			all[name] = sum
			if a.oldest != 0 && (oldest == 0 || a.oldest < oldest) {
				oldest = a.oldest
			}
		}
	}
	s.mu.Unlock()
	unrouted := make(map[string]int)
	for _, w := range workers {
		w.countUnrouted(unrouted)
	}
	for name := range unrouted {
		if _, known := all[name]; !known {
			all[name] = account{}
		}
	}
	for name, a := range all {
		to <- prometheus.MustNewConstMetric(spooledDesc, prometheus.GaugeValue, float64(a.spooled), name)
		to <- prometheus.MustNewConstMetric(deadDesc, prometheus.GaugeValue, float64(a.dead), name)
		to <- prometheus.MustNewConstMetric(unroutedDesc, prometheus.GaugeValue, float64(unrouted[name]), name)
	}
	age := 0.0
	if oldest != 0 {
		age = max(time.Since(time.UnixMilli(oldest)).Seconds(), 0)
	}
	to <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, age)
}

// breakers counts the open breakers.
var breakers = breakerGauge{prometheus.NewGauge(prometheus.GaugeOpts{
	Namespace: "caddy", Subsystem: "iak_callback", Name: "breaker_open",
	Help: "Handlers whose app does not answer: it is sent one probe a pause, and new callbacks are kept at once.",
})}

type breakerGauge struct{ prometheus.Gauge }

func (g breakerGauge) count(open bool) {
	if open {
		g.Inc()
	} else {
		g.Dec()
	}
}

var redeliveries = prometheus.NewCounterVec(prometheus.CounterOpts{
	Namespace: "caddy", Subsystem: "iak_callback", Name: "redeliveries_total",
	Help: "Deliveries of what was kept, by account and what became of them.",
}, []string{"account", "result"})

// Redelivered counts the delivery of something kept.
func Redelivered(account, result string) { redeliveries.WithLabelValues(account, result).Inc() }

// Collectors returns the metrics of what is kept.
func Collectors() []prometheus.Collector {
	return []prometheus.Collector{surveys, breakers.Gauge, redeliveries}
}
