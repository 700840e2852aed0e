package integration

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// What came into doubt: with hold, the default with a spool, it is held with its
// callback until an operator accepts it, or releases it, and then it is delivered by
// itself; with retry it is delivered when the lease is over; with accept it is assumed.
func TestSpoolDoubt(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	onBothStores(t, func(t *testing.T, option string) {
		var hangs atomic.Bool
		app := sitetest.StartApp(t, func(_ http.ResponseWriter, r *http.Request) {
			if hangs.Load() {
				<-r.Context().Done()
			}
		})
		block := func(doubt string) string {
			return sitetest.Block(option, pauses, "upstream_timeout 400ms", doubt) + "reverse_proxy " + app.Addr()
		}
		s := sitetest.StartOperated(t, block(""))
		for _, by := range []string{"release", "accept"} {
			hangs.Store(true)
			ref := "hold-" + by
			spooled(t, ref, s.Post(sitetest.Order(ref, "1")))
			s.ComesTo(ref, "held")
			spooled(t, ref+" again", s.Post(sitetest.Order(ref, "1")))
			hangs.Store(false)
			s.Must(by, "test", ref)
			s.ComesTo(ref, "accepted")
			want := map[string][]string{"release": {"1", "2"}, "accept": {"1"}}[by]
			if got := attempts(app, ref); !slices.Equal(got, want) {
				t.Errorf("%s: attempts %q, want %q", ref, got, want)
			}
		}
		hangs.Store(true)
		spooled(t, "switched", s.Post(sitetest.Order("switched", "1")))
		s.ComesTo("switched", "held")
		hangs.Store(false)
		s.Reload(block("on_doubt retry")) // nobody holds it any more
		s.ComesTo("switched", "accepted")
		hangs.Store(true)
		spooled(t, "retry", s.Post(sitetest.Order("retry", "1")))
		sitetest.Eventually(t, "it is delivered again", func() bool { return len(attempts(app, "retry")) >= 2 })
		hangs.Store(false)
		s.ComesTo("retry", "accepted")

		s.Reload(block("on_doubt accept"))
		hangs.Store(true)
		s.Post(sitetest.Order("assume", "1")).Expect(t, "assume", http.StatusOK)
		s.ComesTo("assume", "assumed")
	})
}

// A newer outcome waits behind the delivery that is under way, IAK gets 200, and the app
// gets both, one after the other.
func TestSpoolWaits(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		g := startGates(t)
		s := sitetest.StartOperated(t, sitetest.Block(option, "spool {\nanswer_within 50ms\nbackoff 100ms 500ms\n}")+"reverse_proxy "+g.app.Addr())
		spooled(t, "0", s.Post(sitetest.Order("order", "0")))
		<-g.arrived
		spooled(t, "1 while 0 is under way", s.Post(sitetest.Order("order", "1")))
		spooled(t, "the same again", s.Post(sitetest.Order("order", "1")))
		if got := s.Post(sitetest.Order("order", "0")); got.Status != 200 || got.Header.Get("Idempotent-Replayed") == "" {
			t.Errorf("0 after 1: %d, want late news", got.Status)
		}
		if got := s.Post(sitetest.Order("order", "2")); got.Status != http.StatusConflict {
			t.Errorf("2 after 1: %d, want a conflict", got.Status)
		}
		g.open("test:order:0")
		if key := <-g.arrived; key != "test:order:1" {
			t.Errorf("the app gets %s next", key)
		}
		g.open("test:order:1")
		s.ComesTo("order", "accepted")
		if got := s.Show("order")[0]; got.Accepted != "success" {
			t.Errorf("accepted %s", got.Accepted)
		}
	})
}

// After max_age nothing is delivered any more by itself: it is dead, told once, and kept;
// when it comes again it begins anew.
func TestSpoolDead(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		app := startMoody(t)
		app.status.Store(500)
		s := sitetest.StartOperated(t, sitetest.Block(option, "spool {\nbackoff 50ms 100ms\nmax_age 1s\n}")+"reverse_proxy "+app.Addr())
		ref := "dead-" + option[:5] // an event comes once a minute for one order
		spooled(t, ref, s.Post(sitetest.Order(ref, "1")))
		s.ComesTo(ref, "dead")
		n := len(attempts(app.App, ref))
		line := regexp.MustCompile(`"msg":"redelivery","outcome":"dead".*max_age`)
		sitetest.Eventually(t, "it is told", func() bool { return line.MatchString(s.Log()) })
		if told := len(line.FindAllString(s.Log(), -1)); told != 1 {
			t.Errorf("it is told %d times", told)
		}
		if !strings.Contains(s.Log(), `"iak_callback.dead"`) {
			t.Error("no event")
		}
		app.status.Store(0)
		if got := len(attempts(app.App, ref)); got != n {
			t.Errorf("%d more deliveries of a dead one", got-n)
		}
		s.ExpectState(ref, "dead")
		spooled(t, "it comes again", s.Post(sitetest.Order(ref, "1")))
		s.ComesTo(ref, "accepted")
	})
}

// When max_pending is reached, a new callback is treated as without a spool; what is
// kept is still answered, and there is room when the app has accepted some.
func TestSpoolFull(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		app := startMoody(t)
		app.status.Store(500)
		s := sitetest.StartOperated(t, sitetest.Block(option, "spool {\nbackoff 100ms 200ms\nmax_pending 3\n}")+"reverse_proxy "+app.Addr())
		for i := range 3 {
			spooled(t, "with room", s.Post(sitetest.Order(fmt.Sprint("order", i), "1")))
		}
		for range 2 {
			if got := s.Post(sitetest.Order("more", "1")); got.Status != 500 {
				t.Errorf("without room: %d, want the app's 500", got.Status)
			}
		}
		if told := strings.Count(s.Log(), `"msg":"callback","outcome":"app_failed"`); told != 2 {
			t.Errorf("%d log lines of refusals without a spool, want 2", told)
		}
		if !strings.Contains(s.Log(), "max_pending is reached") || !strings.Contains(s.Log(), `"iak_callback.spool_full"`) {
			t.Error("neither log nor event tell that it is full")
		}
		s.ExpectState("more", "released")
		spooled(t, "one that is kept", s.Post(sitetest.Order("order1", "1")))
		app.status.Store(0)
		for i := range 3 {
			s.ComesTo(fmt.Sprint("order", i), "accepted")
		}
		app.status.Store(500)
		spooled(t, "with room again", s.Post(sitetest.Order("again", "1")))
	})
}

// delay keeps the first delivery back, also when the callback comes again meanwhile.
func TestSpoolDelay(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		at := make(chan time.Time, 10)
		app := sitetest.StartApp(t, func(http.ResponseWriter, *http.Request) { at <- time.Now() })
		s := sitetest.StartOperated(t, sitetest.Block(option, "spool {\ndelay 2s\nbackoff 100ms 500ms\n}")+"reverse_proxy "+app.Addr())
		start := time.Now()
		for range 3 {
			spooled(t, "order", s.Post(sitetest.Order("order", "1")))
		}
		if waited := (<-at).Sub(start); waited < 2*time.Second {
			t.Errorf("delivered after %s, want 2s at least", waited)
		}
		s.ComesTo("order", "accepted")
		if got := attempts(app, "order"); !slices.Equal(got, []string{"1"}) {
			t.Errorf("attempts %q, want one", got)
		}
	})
}

// The app says when to come again, in seconds; what is absurd is bounded by the longest
// pause.
func TestSpoolRetryAfter(t *testing.T) {
	var say atomic.Value
	say.Store("1")
	at := make(chan time.Time, 100)
	app := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
		at <- time.Now()
		w.Header().Set("Retry-After", say.Load().(string))
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	s := sitetest.Start(t, sitetest.Block("spool {\nbackoff 10ms 2s\n}")+"reverse_proxy "+app.Addr())
	spooled(t, "order", s.Post(sitetest.Order("order", "1")))
	first := <-at
	say.Store("99999999999")
	second := <-at
	if waited := second.Sub(first); waited < time.Second {
		t.Errorf("delivered again after %s, and the app asked for a second", waited)
	}
	if waited := (<-at).Sub(second); waited < 2*time.Second || waited > 20*time.Second {
		t.Errorf("delivered again after %s, want the longest pause of 2s, or little more", waited)
	}
}

// A recovering app gets one redelivery, then two at once, then four, and never more;
// what comes live meanwhile is answered as ever.
func TestSpoolGentle(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		const n = 60
		var mu sync.Mutex
		var now, most int
		var begun []int // how many were under way when each began
		var up atomic.Bool
		app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
			if !up.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			if strings.Contains(r.Header.Get("Idempotency-Key"), "live") {
				return
			}
			mu.Lock()
			now++
			most = max(most, now)
			begun = append(begun, now)
			mu.Unlock()
			time.Sleep(20 * time.Millisecond) // its work
			mu.Lock()
			now--
			mu.Unlock()
		})
		s := sitetest.StartOperated(t, sitetest.Block(option, "spool {\nbackoff 200ms 400ms\n}")+"reverse_proxy "+app.Addr())
		for i := range n {
			spooled(t, "down", s.Post(sitetest.Order(fmt.Sprint("order", i), "1")))
		}
		up.Store(true)
		for i := range 10 {
			if got := s.Post(sitetest.Order(fmt.Sprint("live", i), "1")); got.Status != 200 {
				t.Errorf("live: %d", got.Status)
			}
		}
		for i := range n {
			s.ComesTo(fmt.Sprint("order", i), "accepted")
		}
		mu.Lock()
		defer mu.Unlock()
		if most > 4 || most < 2 {
			t.Errorf("%d redeliveries at once, want 2 to 4", most)
		}
		if len(begun) != n {
			t.Errorf("%d redeliveries of %d", len(begun), n)
		}
	})
}

// An app that does not answer five times in a row is asked once a pause, and what comes
// then is kept at once; when it answers again everything is delivered.
func TestSpoolBreaker(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	onBothStores(t, func(t *testing.T, option string) {
		var hangs atomic.Bool
		hangs.Store(true)
		app := sitetest.StartApp(t, func(_ http.ResponseWriter, r *http.Request) {
			if hangs.Load() {
				<-r.Context().Done()
			}
		})
		s := sitetest.StartOperated(t, "handle /metrics {\nmetrics\n}\nhandle {\n"+sitetest.Block(option, "on_doubt retry", "upstream_timeout 300ms", "spool {\nbackoff 200ms 1s\n}")+"reverse_proxy "+app.Addr()+"\n}")
		open := func() float64 { return s.Metrics()["caddy_iak_callback_breaker_open"] }
		var senders sync.WaitGroup
		for i := range 5 {
			senders.Go(func() { spooled(t, "silent", s.Post(sitetest.Order(fmt.Sprint("order", i), "1"))) })
		}
		senders.Wait()
		if got := open(); got != 1 {
			t.Fatalf("%v breakers are open after five without an answer", got)
		}
		for i := range 20 {
			ref := fmt.Sprint("later", i)
			spooled(t, ref, s.Post(sitetest.Order(ref, "1")))
			s.ExpectState(ref, "spooled") // and not in flight
		}
		if got := len(app.Received()); got > 8 {
			t.Errorf("the app got %d requests, want 5 and a few probes", got)
		}
		hangs.Store(false)
		for i := range 5 {
			s.ComesTo(fmt.Sprint("order", i), "accepted")
		}
		for i := range 20 {
			s.ComesTo(fmt.Sprint("later", i), "accepted")
		}
		if got := open(); got != 0 {
			t.Errorf("%v breakers are open", got)
		}
	})
}

// When the index is gone, as by an operator's DEL, it is put right by the next start.
func TestSpoolIndexLost(t *testing.T) {
	redis := redistest.Start(t)
	app := startMoody(t)
	app.status.Store(500)
	block := sitetest.Block("redis "+redis.URL(), "spool {\nbackoff 5s 5s\n}") + "reverse_proxy " + app.Addr()
	s := sitetest.StartOperated(t, block)
	for i := range 250 {
		spooled(t, "order", s.Post(sitetest.Order(fmt.Sprint("order", i), "1")))
	}
	if n := redis.Client().Del(context.Background(), "iak::due").Val(); n != 1 {
		t.Fatal("there is no index")
	}
	app.status.Store(0)
	s.Reload("respond ok")
	s.Reload(block)
	for i := range 250 {
		s.ComesTo(fmt.Sprint("order", i), "accepted")
	}
	sitetest.Eventually(t, "the index is empty", func() bool { return redis.Client().Exists(context.Background(), "iak::due").Val() == 0 })
}

// Redis is away: with on_store_error keep each callback is kept in a file, IAK gets 200,
// and it is delivered when Redis is back, also if Caddy was started anew meanwhile.
func TestSpoolKeep(t *testing.T) {
	redis := redistest.Start(t, "--appendonly", "yes")
	app := startMoody(t)
	block := sitetest.Block("redis "+redis.URL(), "on_store_error keep", pauses) + "reverse_proxy " + app.Addr()
	s := sitetest.StartOperated(t, block)
	s.Post(sitetest.Order("known", "1")).Expect(t, "known", 200)
	redis.Kill()
	for _, ref := range []string{"order1", "order2", "order1", "known"} {
		spooled(t, ref, s.Post(sitetest.Order(ref, "1")))
	}
	if got := s.Post(sitetest.Order("order1", "2")); got.Status != http.StatusServiceUnavailable {
		t.Errorf("a contradiction is answered %d, want 503: Redis has to say", got.Status)
	}
	if got := len(app.Received()); got != 1 {
		t.Errorf("the app got %d requests, want the one before", got)
	}
	s.Reload("respond ok")
	s.Reload(block)
	redis.Start()
	for _, ref := range []string{"order1", "order2"} {
		sitetest.Eventually(t, ref+" is accepted", func() bool { return slices.Contains(s.States(ref), "accepted") })
		if got := attempts(app.App, ref); !slices.Equal(got, []string{"1"}) {
			t.Errorf("%s: attempts %q, want one", ref, got)
		}
	}
	sitetest.Eventually(t, "nothing is left in the file", func() bool {
		return len(s.States("order1")) == 1 && len(s.States("order2")) == 1 && len(s.States("known")) == 1
	})
	if got := attempts(app.App, "known"); len(got) != 1 {
		t.Errorf("what was accepted before is delivered again: %q", got)
	}
}

// In a Cluster the index is on one server and the records are on all: what is kept is
// found, and delivered once; what a lost hint has left is found by the next start.
func TestSpoolCluster(t *testing.T) {
	cluster := redistest.StartShards(t)
	app := startMoody(t)
	app.status.Store(500)
	block := sitetest.Block("redis "+cluster.URLs()+" {\ncluster\n}", "spool {\nbackoff 300ms 600ms\n}") + "reverse_proxy " + app.Addr()
	s := sitetest.StartOperated(t, block)
	const n = 30
	for i := range n {
		spooled(t, "order", s.Post(sitetest.Order(fmt.Sprint("{a}order", i), "1")))
		spooled(t, "order", s.Post(sitetest.Order(fmt.Sprint("order", i), "1")))
	}
	ctx := context.Background()
	if kept := cluster.Client().ZCard(ctx, "iak::due").Val(); kept != 2*n {
		t.Errorf("the index has %d keys, want %d", kept, 2*n)
	}
	if lost := cluster.Client().Del(ctx, "iak::due").Val(); lost != 1 {
		t.Fatal("there is no index")
	}
	s.Reload("respond ok")
	s.Reload(block)
	app.status.Store(0)
	for i := range n {
		s.ComesTo(fmt.Sprint("order", i), "accepted")
		s.ComesTo(fmt.Sprint("{a}order", i), "accepted")
	}
	sitetest.Eventually(t, "the index is empty", func() bool { return cluster.Client().Exists(ctx, "iak::due").Val() == 0 })
	seen := make(map[string]bool)
	for _, r := range app.Received() {
		key := r.Header.Get("Idempotency-Key") + " " + r.Header.Get("Iak-Attempt")
		if seen[key] {
			t.Errorf("%s came twice", key)
		}
		seen[key] = true
	}
}
