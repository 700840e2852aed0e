package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// steady is IAK with a new callback now and then, each sent until IAK is told 200.
type steady struct {
	c    *sitetest.Tally
	url  func() string
	stop func() // returns when all that was begun is told

	mu      sync.Mutex
	told    map[string]time.Time // by Idempotency-Key
	answers map[int]int
	slowest time.Duration // of the 200s
}

// startSteady sends so many callbacks a second, as long as they are taken.
func startSteady(t *testing.T, c *sitetest.Tally, url func() string, perSecond int) *steady {
	t.Helper()
	const senders = 8
	s := &steady{c: c, url: url, told: make(map[string]time.Time), answers: make(map[int]int)}
	stop := make(chan bool)
	var all sync.WaitGroup
	for sender := range senders {
		all.Go(func() {
			ticker := time.NewTicker(senders * time.Second / time.Duration(perSecond))
			defer ticker.Stop()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-ticker.C:
					if ref := fmt.Sprintf("order-%d-%d", sender, i); !s.deliver(ref) {
						t.Errorf("%s is not taken", ref)
						return
					}
				}
			}
		})
	}
	s.stop = sync.OnceFunc(func() { close(stop); all.Wait() })
	t.Cleanup(s.stop)
	return s
}

func (s *steady) deliver(ref string) bool {
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		began := time.Now()
		got := s.c.Send(s.url(), ref, "1")
		s.mu.Lock()
		s.answers[got]++
		if got == http.StatusOK {
			s.told["test:"+ref+":1"] = time.Now()
			s.slowest = max(s.slowest, time.Since(began))
		}
		s.mu.Unlock()
		if got == http.StatusOK {
			return true
		}
	}
	return false
}

func (s *steady) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.told)
}

// flows waits until so many more callbacks are told.
func (s *steady) flows(t *testing.T, more int) {
	t.Helper()
	want := s.count() + more
	sitetest.Eventually(t, fmt.Sprint(more, " more callbacks are answered 200"), func() bool { return s.count() >= want })
}

// sendAll sends callbacks eight at a time, each until IAK is told 200.
func sendAll(t *testing.T, c *sitetest.Tally, url string, n int) {
	t.Helper()
	var senders sync.WaitGroup
	for sender := range 8 {
		senders.Go(func() {
			for i := sender; i < n; i += 8 {
				if got := c.Deliver(url, fmt.Sprint("order-", i), "1", 20*time.Second); got != http.StatusOK {
					t.Errorf("order-%d: status %d, want 200", i, got)
				}
			}
		})
	}
	senders.Wait()
}

// drains waits until nothing is left to deliver, and an operator settles what is held
// meanwhile: how many that were, it returns, and how long it took.
func (m *manned) drains(c *sitetest.Tally, patience time.Duration) (held int, took time.Duration) {
	m.t.Helper()
	began := time.Now()
	for {
		asked := time.Now()
		held += len(m.settleHeld(c))
		states := m.states()
		if len(states) == 1 && states["accepted"] > 0 {
			return held, time.Since(began)
		}
		if time.Since(began) > patience {
			m.t.Errorf("the records are %v after %s, want accepted ones only", states, patience)
			return held, time.Since(began)
		}
		time.Sleep(max(50*time.Millisecond, 5*time.Since(asked)))
	}
}

// onBothSpools runs a test for both stores at the same time.
func onBothSpools(t *testing.T, run func(t *testing.T, option string)) {
	for _, store := range []string{"redis", "embedded"} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			option := ""
			if store == "redis" {
				option = "redis " + redistest.Start(t, "--appendonly", "yes").URL() + " {\ntimeout 5s\n}"
			}
			run(t, option)
		})
	}
}

// noneLost sums up: nothing is lost, and nothing extra.
func noneLost(t *testing.T, c *sitetest.Tally) sitetest.Counts {
	t.Helper()
	n := c.Count(t)
	if n.Lost != 0 || n.Extra != 0 {
		t.Errorf("%d lost, %d extra, want none", n.Lost, n.Extra)
	}
	return n
}

// The app's port is closed for a while under load, then it answers 503 as an app does
// that is not ready yet, and then it is well: each callback reaches it once beside what
// it has refused. IAK_SPOOL_MINUTES says for how long.
func TestSpoolAppAway(t *testing.T) {
	away := 10 * time.Second
	if minutes, err := strconv.ParseFloat(os.Getenv("IAK_SPOOL_MINUTES"), 64); err == nil {
		away = time.Duration(minutes * float64(time.Minute))
	} else if testing.Short() {
		away = time.Second
	}
	onBothSpools(t, func(t *testing.T, option string) {
		c := sitetest.NewTally()
		var ready atomic.Bool
		ready.Store(true)
		works := c.Counting(func(w http.ResponseWriter, _ *http.Request) {
			if !ready.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		addr := "127.0.0.1:" + sitetest.FreePort(t)
		app := sitetest.StartAppAt(t, addr, works)
		caddy := startManned(t, sitetest.MemoryDir(t), sitetest.Block(option, "spool {\nbackoff 200ms 2s\n}")+"reverse_proxy "+addr)
		load := startSteady(t, c, func() string { return caddy.URL }, 100) // ten minutes are less than max_pending
		load.flows(t, 50)
		app.Close()
		before := load.count()
		time.Sleep(away) // the run's own length
		kept := load.count() - before
		ready.Store(false)
		sitetest.StartAppAt(t, addr, works)
		load.flows(t, 200)
		ready.Store(true)
		load.flows(t, 50)
		load.stop()
		held, took := caddy.drains(c, 2*time.Minute+away)
		noneLost(t, c)
		t.Logf("IAK was told 200 for %d while the app was away for %s, after %s at most; all was accepted %s after the load; %d were held; answers %v",
			kept, away, load.slowest.Round(time.Millisecond), took.Round(time.Millisecond), held, load.answers)
	})
}

// Two Caddys on one Redis deliver what is kept, and never one callback both at the same
// time. When one is killed, the other delivers what that had taken, and what that had
// under way is held, or with retry delivered when its lease is over.
func TestSpoolInstances(t *testing.T) {
	for _, doubt := range []string{"hold", "retry"} {
		t.Run(doubt, func(t *testing.T) {
			t.Parallel()
			const n = 400
			redis := redistest.Start(t)
			var well atomic.Bool
			var working sync.Map
			c := sitetest.NewTally()
			app := sitetest.StartApp(t, c.Counting(func(w http.ResponseWriter, r *http.Request) {
				key := r.Header.Get("Idempotency-Key")
				if _, already := working.LoadOrStore(key, true); already {
					t.Errorf("%s is delivered twice at the same time", key)
				}
				defer working.Delete(key)
				if !well.Load() {
					w.WriteHeader(http.StatusServiceUnavailable)
					return
				}
				time.Sleep(5 * time.Millisecond) // its work
			}))
			start := func(name string) *manned {
				return startManned(t, t.TempDir(), sitetest.Block("redis "+redis.URL()+" {\ntimeout 5s\n}", "on_doubt "+doubt, "upstream_timeout 1s",
					"spool {\nbackoff 100ms 1s\n}")+"request_header Test-Via "+name+"\nreverse_proxy "+app.Addr())
			}
			one, other := start("one"), start("other")
			var senders sync.WaitGroup
			for sender := range 8 {
				senders.Go(func() {
					for i := sender; i < n; i += 8 {
						url := []string{one.URL, other.URL}[i/8%2]
						if got := c.Deliver(url, fmt.Sprint("order-", i), "1", 20*time.Second); got != http.StatusOK {
							t.Errorf("order-%d: status %d, want 200", i, got)
						}
					}
				})
			}
			senders.Wait()
			well.Store(true)
			sitetest.Eventually(t, "a part is accepted", func() bool { return c.Accepted() > n/4 })
			one.kill()
			held, _ := other.drains(c, 30*time.Second)
			count, twice := c.Count(t), c.Twice()
			by := make(map[string]int)
			for _, arrivals := range c.Delivered {
				by[arrivals[len(arrivals)-1].Via]++
			}
			if most := map[string]int{"hold": 0, "retry": 4}[doubt]; count.Lost != 0 || twice > most || by["one"] == 0 || by["other"] == 0 || held > 4 {
				t.Errorf("%d lost, %d twice, by %v, %d held; want none, %d at most, both, 4 at most", count.Lost, twice, by, held, most)
			}
			t.Logf("the last delivery of each was by %v; %d were held; %d reached an app that had accepted them", by, held, twice)
		})
	}
}

// evenOnly is an app that refuses every second callback until it is well.
func evenOnly(well *atomic.Bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		if last := key[len(key)-len("0:1")]; !well.Load() && last%2 == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
}

// terminate ends a Redis as an operator does, and waits until it has ended.
func terminate(t *testing.T, redis *redistest.Server) {
	t.Helper()
	redis.Signal(syscall.SIGTERM)
	sitetest.Eventually(t, "Redis has ended", func() bool {
		conn, err := net.Dial("tcp", redis.Addr())
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	redis.Kill() // it has closed its ports last
}

// A Redis with appendonly is ended and started again under load, while callbacks are
// kept and due. Whether told to or killed it loses nothing, since what it has written is
// the kernel's; with everysec a power cut takes what was written in the last second.
func TestSpoolRedisRestarts(t *testing.T) {
	for _, row := range []struct {
		fsync string
		end   string
	}{
		{"always", "SIGTERM"}, {"always", "SIGKILL"}, {"everysec", "SIGTERM"}, {"everysec", "SIGKILL"}, {"everysec", "power cut"},
	} {
		t.Run(row.fsync+", "+row.end, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", row.fsync)
			c := sitetest.NewTally()
			var well atomic.Bool
			app := sitetest.StartApp(t, c.Counting(evenOnly(&well)))
			// Long enough for a Redis that is away to be told what the app has answered.
			caddy := startManned(t, t.TempDir(), sitetest.Block("redis "+redis.URL(), "on_doubt retry", "upstream_timeout 20s",
				"spool {\nbackoff 100ms 500ms\n}")+"reverse_proxy "+app.Addr())
			load := startSteady(t, c, func() string { return caddy.URL }, 200)
			load.flows(t, 100)
			var synced time.Time // what was written before that is on the disk
			switch row.end {
			case "SIGTERM":
				terminate(t, redis)
			case "SIGKILL":
				redis.Kill()
			default:
				files, err := filepath.Glob(filepath.Join(redis.Dir, "appendonlydir", "*.incr.aof"))
				if err != nil || len(files) != 1 {
					t.Fatalf("%q, %v", files, err)
				}
				synced = time.Now()
				there, err := os.Stat(files[0])
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // what everysec may lose
				redis.Kill()
				if err := os.Truncate(files[0], there.Size()); err != nil {
					t.Fatal(err)
				}
			}
			redis.Start()
			load.flows(t, 100)
			load.stop()
			well.Store(true)
			caddy.drains(c, 30*time.Second)
			n := c.Sum()
			t.Logf("counted: %s; %d reached an app that had accepted them; answers %v", n, c.Twice(), load.answers)
			if synced.IsZero() {
				if n.Lost != 0 || n.Extra != 0 {
					t.Errorf("%d lost, %d extra, want none", n.Lost, n.Extra)
				}
				return
			}
			for key, at := range load.told {
				if !c.HasAccepted(key) && at.Before(synced) {
					t.Errorf("%s is lost, and IAK was told 200 for it %s before what the disk has ends", key, synced.Sub(at))
				}
			}
			if n.Lost == 0 {
				t.Error("the power cut has taken nothing: the test shows nothing")
			}
		})
	}
}

// replicationOffset reads from INFO how much a server has of its master's writes.
func replicationOffset(t *testing.T, s *redistest.Server) int {
	t.Helper()
	info, err := s.Client().Info(context.Background(), "replication").Result()
	_, text, found := strings.Cut(info, "master_repl_offset:")
	n, _ := strconv.Atoi(strings.TrimSpace(strings.SplitN(text, "\n", 2)[0]))
	if err != nil || !found {
		t.Fatalf("%v in %q", err, info)
	}
	return n
}

// The master of a Sentinel set is killed under load, while callbacks are kept and due. What its replicas have
// is delivered; what they have not is lost, and that is no more than what IAK was told
// 200 for just before.
func TestSpoolSentinelFailover(t *testing.T) {
	w := redistest.StartWatched(t)
	c := sitetest.NewTally()
	var well atomic.Bool
	app := sitetest.StartApp(t, c.Counting(evenOnly(&well)))
	caddy := startManned(t, t.TempDir(), sitetest.Block("redis "+w.URLs()+" {\nmaster_name iak\n}", "on_doubt retry", "upstream_timeout 1s",
		"spool {\nbackoff 100ms 500ms\n}")+"reverse_proxy "+app.Addr())
	load := startSteady(t, c, func() string { return caddy.URL }, 100)
	load.flows(t, 200)
	replicated := make(map[string]bool)
	load.mu.Lock()
	for key := range load.told {
		replicated[key] = true
	}
	load.mu.Unlock()
	master := w.Servers[0]
	offset := replicationOffset(t, master)
	for _, replica := range w.Servers[1:] {
		sitetest.Eventually(t, "the replicas have caught up", func() bool { return replicationOffset(t, replica) >= offset })
	}
	switches := w.Switches()
	master.Kill()
	last := time.Now() // when a master was lost last: on a busy machine the sentinels may change their mind
	sitetest.Eventually(t, "the sentinels choose a new master", func() bool { return w.Master(w.Sentinels[0]) != master })
	load.flows(t, 100)
	load.stop()
	well.Store(true)
	caddy.drains(c, 30*time.Second)
	masters := make(map[string]bool)
	for _, s := range switches() {
		if masters[s.Port] = true; len(masters) > 1 && s.At.After(last) {
			last = s.At
		}
	}
	n, lost := c.Sum(), 0
	t.Logf("counted: %s; %d reached an app that had accepted them; answers %v", n, c.Twice(), load.answers)
	for key, at := range load.told {
		switch {
		case c.HasAccepted(key):
		case replicated[key] || at.After(last):
			t.Errorf("%s is lost, told %s after the last master was lost, replicated %t", key, at.Sub(last), replicated[key])
		default:
			lost++
		}
	}
	t.Logf("%d of %d were replicated before, none of them is lost; %d of the others are; %d new masters", len(replicated), len(load.told), lost, len(masters))
}

// A thousand callbacks are due when the app is well again, and the configuration is
// replaced twenty times while they are delivered: each reaches the app once more, and
// none comes into doubt.
func TestSpoolReloads(t *testing.T) {
	onBothSpools(t, func(t *testing.T, option string) {
		const n, reloads = 1000, 20
		c := sitetest.NewTally()
		var well atomic.Bool
		app := sitetest.StartApp(t, c.Counting(func(w http.ResponseWriter, _ *http.Request) {
			if !well.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			time.Sleep(5 * time.Millisecond) // its work
		}))
		block := func(i int) string {
			return sitetest.Block(option, fmt.Sprintf("upstream_timeout %ds", 5+i%3), fmt.Sprintf("spool {\nconcurrency %d\nanswer_within %ds\nbackoff 200ms 500ms\n}", 4+i%5, 1+i%2)) +
				"reverse_proxy " + app.Addr()
		}
		caddy := startManned(t, sitetest.MemoryDir(t), block(0))
		sendAll(t, c, caddy.URL, n)
		well.Store(true)
		var left []int // when each reload has ended
		for i := range reloads {
			before := c.Accepted()
			sitetest.Eventually(t, "some are accepted", func() bool { return c.Accepted() >= before+10 })
			if err := caddy.reload(block(i + 1)); err != nil {
				t.Fatal(err)
			}
			left = append(left, n-c.Accepted())
		}
		held, took := caddy.drains(c, 30*time.Second)
		count := noneLost(t, c)
		if held != 0 || count.Reached-count.Refused != n || left[reloads-1] <= 0 {
			t.Errorf("%d held, %d accepted, %d left after the last reload", held, count.Reached-count.Refused, left[reloads-1])
		}
		t.Logf("left after each reload: %v; all was accepted %s after the last", left, took.Round(time.Millisecond))
	})
}

// The path moves while a hundred callbacks are kept, and moves back: nothing reaches the app meanwhile,
// though a route of the site leads to it from everywhere; and then each is delivered.
func TestSpoolMoves(t *testing.T) {
	onBothSpools(t, func(t *testing.T, option string) {
		const n = 100
		c := sitetest.NewTally()
		var well atomic.Bool
		app := sitetest.StartApp(t, c.Counting(func(w http.ResponseWriter, _ *http.Request) {
			if !well.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}))
		block := func(path string) string {
			return "handle " + path + " {\n" + sitetest.Block(option, "spool {\nbackoff 200ms 1s\n}") + "reverse_proxy " + app.Addr() + "\n}\n" +
				"handle {\nreverse_proxy " + app.Addr() + "\n}"
		}
		caddy := startManned(t, sitetest.MemoryDir(t), block("/iak"))
		answer := len(app.Received()) // to whoever asks whether Caddy is there
		sendAll(t, c, caddy.URL+"/iak", n)
		if err := caddy.reload(block("/elsewhere")); err != nil {
			t.Fatal(err)
		}
		unrouted := func() (all int) {
			for _, r := range caddy.records() {
				if r.Kept != nil && r.Kept.Unrouted {
					all++
				}
			}
			return all
		}
		sitetest.Eventually(t, "all are unrouted", func() bool { return unrouted() == n })
		before := len(app.Received())
		well.Store(true)
		sitetest.Eventually(t, "they are asked for again", func() bool { return strings.Count(caddy.Log(), `"outcome":"unrouted"`) == n })
		if got := len(app.Received()) - before; got != 0 {
			t.Errorf("the app got %d requests while no route led to iak_callback", got)
		}
		if err := caddy.reload(block("/iak")); err != nil {
			t.Fatal(err)
		}
		caddy.drains(c, 30*time.Second)
		for _, r := range app.Received()[answer:] {
			if r.Header.Get("Idempotency-Key") == "" {
				t.Errorf("the app got %s %s without the module's headers", r.Method, r.Path)
			}
		}
		delete(c.Delivered, "") // checked above
		if count := noneLost(t, c); count.Reached-count.Refused != n {
			t.Errorf("%d were accepted, want %d", count.Reached-count.Refused, n)
		}
	})
}

// The clock of Redis is set an hour forward or back while callbacks are kept, in the
// app, and come; and set right again. All are delivered, soon after it is right.
func TestSpoolClock(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, -time.Hour} {
		for _, meanwhile := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, well meanwhile %t", jump, meanwhile), func(t *testing.T) {
				t.Parallel()
				const n = 20 // of each
				redis := redistest.StartClocked(t)
				c := sitetest.NewTally()
				var well atomic.Bool
				answer := make(chan bool)
				open := sync.OnceFunc(func() { close(answer) })
				app := sitetest.StartApp(t, c.Counting(func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.Header.Get("Idempotency-Key"), "works") && r.Header.Get("Iak-Attempt") == "1" {
						<-answer
					}
					if !well.Load() {
						w.WriteHeader(http.StatusServiceUnavailable)
					}
				}))
				t.Cleanup(open) // before the app is closed
				caddy := startManned(t, t.TempDir(), sitetest.Block("redis "+redis.URL()+" {\ntimeout 5s\n}", "upstream_timeout 10s",
					"spool {\nanswer_within 200ms\nbackoff 200ms 1s\n}")+"reverse_proxy "+app.Addr())
				send := func(name string) {
					var senders sync.WaitGroup
					for i := range n {
						senders.Go(func() {
							if got := c.Deliver(caddy.URL, fmt.Sprint(name, "-", i), "1", 20*time.Second); got != http.StatusOK {
								t.Errorf("%s-%d: status %d, want 200", name, i, got)
							}
						})
					}
					senders.Wait()
				}
				send("before")
				send("works")
				redis.Set(t, jump)
				send("meanwhile")
				tried := func() int { n := c.Sum(); return n.Refused }
				if jump > 0 {
					sofar := tried()
					sitetest.Eventually(t, "what is kept is delivered by the other clock", func() bool { return tried() >= sofar+2*n })
				}
				open()
				if meanwhile {
					well.Store(true)
					held, took := caddy.drains(c, time.Minute)
					t.Logf("all was accepted after %s by the clock that is wrong; %d were held", took.Round(time.Millisecond), held)
				} else {
					sitetest.Eventually(t, "the app has refused what it worked on", func() bool { return caddy.states()["spooled"] == 3*n })
				}
				redis.Set(t, 0)
				send("after")
				well.Store(true)
				held, took := caddy.drains(c, time.Minute)
				noneLost(t, c)
				if held != 0 || took > 30*time.Second {
					t.Errorf("%d held, all accepted after %s; want none, and half a minute at most", held, took)
				}
				t.Logf("all was accepted %s after the clock was right again", took.Round(time.Millisecond))
			})
		}
	}
}

// Redis is killed under load, and is away while Caddy is killed too, twice: with
// on_store_error keep nothing is lost, be it in Redis or in the file.
func TestSpoolKeepKilled(t *testing.T) {
	for _, doubt := range []string{"hold", "retry"} {
		t.Run(doubt, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			c := sitetest.NewTally()
			app := sitetest.StartApp(t, c.Counting(slowApp))
			dir := sitetest.MemoryDir(t)
			block := sitetest.Block("redis "+redis.URL(), "on_store_error keep", "on_doubt "+doubt, "upstream_timeout 1s",
				"spool {\nbackoff 100ms 500ms\n}") + "reverse_proxy " + app.Addr()
			var caddy atomic.Pointer[manned]
			caddy.Store(startManned(t, dir, block))
			load := startSteady(t, c, func() string { return caddy.Load().URL }, 100)
			load.flows(t, 100)
			redis.Kill()
			for range 2 {
				load.flows(t, 100)
				caddy.Load().kill()
				caddy.Store(startManned(t, dir, block))
			}
			load.flows(t, 100)
			kept := len(caddy.Load().records("--state", "spooled"))
			redis.Start()
			load.flows(t, 100)
			load.stop()
			held, took := caddy.Load().drains(c, 30*time.Second)
			n, twice := c.Count(t), c.Twice()
			if most := map[string]int{"hold": 0, "retry": 8}[doubt]; n.Lost != 0 || twice > most || kept == 0 {
				t.Errorf("%d lost, %d twice, %d in the file; want none, %d at most, some", n.Lost, twice, kept, most)
			}
			t.Logf("%d were in the file when Redis came back, all was accepted %s after the load; %d were held; %d reached an app that had accepted them; answers %v",
				kept, took.Round(time.Millisecond), held, twice, load.answers)
		})
	}
}

// The disk of the file in which callbacks are kept while Redis is away is full: IAK gets
// 503, and nothing is kept that it was not told 200 for. With room it goes on.
func TestSpoolKeepDiskFull(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("a small disk cannot be mounted: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	fill := func() (empty func()) {
		t.Helper()
		name := filepath.Join(dir, "filler")
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4<<10))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("%v, want a full disk", err)
		}
		return func() {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	redis := redistest.Start(t, "--appendonly", "yes")
	c := sitetest.NewTally()
	app := sitetest.StartApp(t, c.Counting(nil))
	caddy := startManned(t, dir, sitetest.Block("redis "+redis.URL(), "on_store_error keep", "spool {\nbackoff 100ms 500ms\n}")+"reverse_proxy "+app.Addr())
	if got := c.Deliver(caddy.URL, "known", "1", 20*time.Second); got != http.StatusOK {
		t.Fatalf("status %d, want 200", got)
	}
	redis.Kill()
	round := func(name string, want int) {
		t.Helper()
		answers := make(map[int]int)
		for i := range 20 {
			answers[c.Send(caddy.URL, fmt.Sprint(name, "-", i), "1")]++
		}
		if answers[want] != 20 {
			t.Errorf("%s: the answers are %v, want 20 times %d", name, answers, want)
		}
	}
	empty := fill()
	round("at-first", 503)
	empty()
	round("room", 200)
	empty = fill()
	told := 0
	for i := range 2000 { // what is left in pages that are there already
		got := c.Send(caddy.URL, fmt.Sprint("last-", i), "1")
		if got == http.StatusServiceUnavailable {
			break
		}
		if told++; got != http.StatusOK {
			t.Errorf("status %d, want 200 or 503", got)
		}
	}
	round("full", 503)
	if got := c.Send(caddy.URL, "room-3", "1"); got != http.StatusOK {
		t.Errorf("one that is kept already is answered %d, want 200", got)
	}
	if !strings.Contains(caddy.Log(), "could not be kept in outage.sqlite: embedded store") || !strings.Contains(caddy.Log(), "disk is full") {
		t.Error("the log does not say that the disk is full")
	}
	t.Logf("the full disk took %d more", told)
	caddy.kill()
	empty()
	caddy = startManned(t, dir, sitetest.Block("redis "+redis.URL(), "on_store_error keep", "spool {\nbackoff 100ms 500ms\n}")+"reverse_proxy "+app.Addr())
	redis.Start()
	caddy.drains(c, 30*time.Second)
	for key := range c.All {
		if c.Told[key] != c.HasAccepted(key) {
			t.Errorf("%s: IAK was told 200: %t, the app has it: %t", key, c.Told[key], c.HasAccepted(key))
		}
	}
	for key := range c.All { // as IAK would
		if got := c.Deliver(caddy.URL, strings.Split(key, ":")[1], "1", 20*time.Second); got != http.StatusOK {
			t.Errorf("%s: status %d, want 200", key, got)
		}
	}
	caddy.drains(c, 30*time.Second)
	if n := noneLost(t, c); n.Reached != n.Callbacks {
		t.Errorf("%d callbacks reached the app %d times", n.Callbacks, n.Reached)
	}
}
