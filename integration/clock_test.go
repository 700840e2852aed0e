package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// jumps are how far a clock is set. What belongs to this kind: a time server that
// steps a clock, a virtual machine that resumes, a board that starts without a battery,
// a person who sets the year; for a moment or for good; while a delivery is under way,
// after its owner died, between two callbacks.
var jumps = []time.Duration{
	time.Second, -time.Second, time.Hour, -time.Hour, 24 * time.Hour, -24 * time.Hour, 365 * 24 * time.Hour, -365 * 24 * time.Hour,
}

// gates let an app work on each ref_id until it is told to answer.
type gates struct {
	app     *sitetest.App
	arrived chan string // the Idempotency-Key of each request
	gates   sync.Map    // from a key to a channel that is closed when the app may answer
	end     chan bool
}

func startGates(t *testing.T) *gates {
	g := &gates{arrived: make(chan string, 100), end: make(chan bool)}
	g.app = sitetest.StartApp(t, func(_ http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		g.arrived <- key
		select {
		case <-g.gate(key):
		case <-g.end:
		}
	})
	t.Cleanup(func() { close(g.end) })
	return g
}

func (g *gates) gate(key string) chan bool {
	gate, _ := g.gates.LoadOrStore(key, make(chan bool))
	return gate.(chan bool)
}

func (g *gates) open(key string) { close(g.gate(key)) }

// While the app works on a callback, the clock of Redis is set. The app gets nothing
// a second time, an operator is told that a delivery is under way, the answer settles
// the record, and the repeat is a duplicate, also when the clock is right again: Redis
// itself forgets only what was written while its clock was behind by more than retention.
func TestClockOfRedisWhileTheAppWorks(t *testing.T) {
	redis := redistest.StartClocked(t)
	g := startGates(t)
	s := sitetest.StartOperated(t, sitetest.Block("redis "+redis.URL())+"reverse_proxy "+g.app.Addr())
	for _, jump := range jumps {
		t.Run(jump.String(), func(t *testing.T) {
			redis.Set(t, 0)
			ref := "order" + jump.String()
			body, key := sitetest.Order(ref, "1"), "test:"+ref+":1"
			first := make(chan sitetest.Reply, 1)
			go func() { first <- s.Post(body) }()
			<-g.arrived
			redis.Set(t, jump)
			for range 2 {
				if got := s.Post(body); got.Status != http.StatusConflict {
					t.Errorf("status %d while the app works, want 409", got.Status)
				}
			}
			s.ExpectState(ref, "in_flight")
			s.Refuses("a delivery is under way", "forget", "test", ref)
			g.open(key)
			if got := <-first; got.Status != http.StatusOK {
				t.Errorf("status %d, want 200", got.Status)
			}
			expect := func(what string) {
				t.Helper()
				if got := s.Post(body); got.Status != http.StatusOK || got.Header.Get("Idempotent-Replayed") == "" {
					t.Errorf("%s: status %d, replayed %q, want a duplicate", what, got.Status, got.Header.Get("Idempotent-Replayed"))
				}
			}
			expect("after the jump")
			if -jump < 30*24*time.Hour {
				redis.Set(t, 0)
				expect("and back")
			}
			if n := len(g.arrived); n != 0 {
				t.Errorf("the app got it %d more times", n)
			}
		})
	}
}

// The owner of a claim dies, and the clock of Redis is set. The callback is delivered
// again when the lease is over, or at once if the lease cannot be so long, and operators
// are never locked out for longer.
func TestClockOfRedisAfterTheOwnerDied(t *testing.T) {
	redis := redistest.StartClocked(t)
	g := startGates(t)
	block := sitetest.Block("redis "+redis.URL(), "upstream_timeout 1s") + "reverse_proxy " + g.app.Addr()
	dies := sitetest.StartProcess(t, t.TempDir(), block)
	for _, jump := range jumps {
		for _, way := range []string{"again", "operator"} {
			go func() { _, _ = sitetest.Client.Post(dies.URL, "application/json", order(jump, way)) }()
			<-g.arrived
		}
	}
	_ = dies.Cmd.Process.Kill()
	s := sitetest.StartOperated(t, block)
	for _, jump := range jumps {
		t.Run(jump.String(), func(t *testing.T) {
			redis.Set(t, jump)
			ref := func(way string) string { return fmt.Sprint("order", jump, way) }
			key := "test:" + ref("again") + ":1"
			g.open(key)
			sitetest.Eventually(t, "it is delivered again", func() bool {
				got := s.Post(sitetest.Order(ref("again"), "1"))
				return got.Status == http.StatusOK
			})
			if jump == 365*24*time.Hour { // beyond retention: Redis has forgotten it
				s.Refuses("there is no record", "release", "test", ref("operator"))
				return
			}
			if got := g.app.Last(t).Header.Get("Iak-Attempt"); got != "2" {
				t.Errorf("Iak-Attempt %q, want 2", got)
			}
			s.ComesTo(ref("operator"), "in_doubt") // it was claimed later
			s.Must("release", "test", ref("operator"))
			s.ExpectState(ref("operator"), "released")
			s.Must("forget", "test", ref("operator"), "--yes")
		})
	}
}

func order(jump time.Duration, way string) *strings.Reader {
	return strings.NewReader(sitetest.Order(fmt.Sprint("order", jump, way), "1"))
}
