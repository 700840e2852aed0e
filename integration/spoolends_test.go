package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// panics is a handler behind that panics as long as it is told to.
type panics struct{}

var panicWith atomic.Pointer[any]

func init() {
	caddy.RegisterModule(panics{})
	httpcaddyfile.RegisterHandlerDirective("test_panics", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) { return panics{}, nil })
	httpcaddyfile.RegisterDirectiveOrder("test_panics", httpcaddyfile.After, "basic_auth")
}

func (panics) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.test_panics", New: func() caddy.Module { return panics{} }}
}

func (panics) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if p := panicWith.Load(); p != nil {
		_, _ = io.ReadAll(r.Body) // as a handler that was at work
		panic(*p)
	}
	return next.ServeHTTP(w, r)
}

// A handler behind that panics before the app answered is no doubt: it is delivered
// again; three times in a row, and it is dead. One that breaks the connection off is a
// doubt.
func TestSpoolPanics(t *testing.T) {
	shortLease(t)
	app := startMoody(t)
	s := sitetest.StartOperated(t, sitetest.Block("upstream_timeout 400ms", pauses)+"test_panics\nreverse_proxy "+app.Addr())
	t.Cleanup(func() { panicWith.Store(nil) })
	var p any = "at fault"
	panicWith.Store(&p)
	spooled(t, "order", s.Post(sitetest.Order("panics", "1")))
	s.ComesTo("panics", "dead")
	sitetest.Eventually(t, "each panic is told", func() bool { return strings.Count(s.Log(), "is at fault") == 3 })
	panicWith.Store(nil)
	spooled(t, "it comes again", s.Post(sitetest.Order("panics", "1")))
	s.ComesTo("panics", "accepted")

	var broken any = http.ErrAbortHandler
	panicWith.Store(&broken)
	spooled(t, "broken off", s.Post(sitetest.Order("broken", "1")))
	s.ComesTo("broken", "held")
	panicWith.Store(nil)
	s.Must("release", "test", "broken")
	s.ComesTo("broken", "accepted")
	if n := strings.Count(s.Log(), "is at fault"); n != 3 {
		t.Errorf("%d panics are told, want 3", n)
	}
}

// IAK's answer is whole within answer_within, also while the app still works: the
// connection is free for the next callback, over each version of HTTP.
func TestSpoolAnswerIsWhole(t *testing.T) {
	g := startGates(t)
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2", "HTTP/3"} {
		t.Run(protocol, func(t *testing.T) {
			url := "https://localhost:" + sitetest.FreePort(t)
			caddy := sitetest.StartProcess(t, t.TempDir(), "respond ok\n}\n"+url+" {\ntls internal\n"+sitetest.Block("spool {\nanswer_within 200ms\n}")+"reverse_proxy "+g.app.Addr(),
				"skip_install_trust", "grace_period 1s")
			client := clientFor(t, protocol)
			sendForging(t, client, protocol, http.MethodGet, url, "", [2]string{}) // when it is answered, Caddy has its certificate
			for i := range 3 {
				ref := fmt.Sprint(strings.ReplaceAll(protocol, "/", ""), i)
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				answer, err := client.RoundTrip(sitetest.CallbackOf(t, url, sitetest.Order(ref, "1")).WithContext(ctx))
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(answer.Body)
				_ = answer.Body.Close()
				cancel()
				if err != nil || answer.StatusCode != http.StatusOK || len(body) != 0 {
					t.Errorf("%s: status %d, body %q, %v, want a whole empty 200", ref, answer.StatusCode, body, err)
				}
				<-g.arrived
			}
			for i := range 3 {
				g.open(fmt.Sprint("test:", strings.ReplaceAll(protocol, "/", ""), i, ":1"))
			}
			sitetest.Eventually(t, "the app's answers are recorded", func() bool {
				return strings.Count(caddy.Log(), `"msg":"the delivery of a callback that IAK was answered before","outcome":"forwarded"`) == 3
			})
		})
	}
}

// SIGTERM waits for the deliveries that go on without a request, and for redeliveries,
// within the grace period; a reload waits for neither, and both settle.
func TestSpoolSIGTERM(t *testing.T) {
	for _, grace := range []string{"grace_period 10s", "log"} {
		t.Run(grace, func(t *testing.T) {
			t.Parallel()
			g := startGates(t)
			dir := t.TempDir()
			block := sitetest.Block("upstream_timeout 20s", "spool {\nanswer_within 0s\n}") + "reverse_proxy " + g.app.Addr()
			caddy := sitetest.StartProcess(t, dir, block, grace)
			const n = 10
			for i := range n {
				if got := post(t, caddy.URL, fmt.Sprint("order-", i)); got.Status != http.StatusOK {
					t.Errorf("status %d", got.Status)
				}
			}
			for range n {
				<-g.arrived
			}
			if err := caddy.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			sitetest.Eventually(t, "Caddy is told to end", func() bool { return strings.Contains(caddy.Log(), "exiting") })
			for i := range n {
				g.open(fmt.Sprint("test:order-", i, ":1"))
			}
			_ = caddy.Cmd.Wait()
			again := sitetest.StartProcess(t, dir, block)
			for i := range n {
				got := post(t, again.URL, fmt.Sprint("order-", i))
				if got.Status != http.StatusOK || got.Header.Get("Idempotent-Replayed") == "" {
					t.Errorf("order-%d: status %d, replayed %q, want a duplicate", i, got.Status, got.Header.Get("Idempotent-Replayed"))
				}
			}
		})
	}
}

// A reload does not wait for a delivery whose request is over, nor for a redelivery, and
// what they come to is recorded; the new configuration leaves them alone meanwhile.
func TestSpoolReload(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		g := startGates(t)
		var refuses atomic.Bool
		refuses.Store(true)
		first := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
			if refuses.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		kept := "spool {\nanswer_within 100ms\nbackoff 300ms 300ms\n}"
		block := func(app string) string { return sitetest.Block(option, kept) + "reverse_proxy " + app }
		s := sitetest.StartOperated(t, block(first.Addr()))
		spooled(t, "again", s.Post(sitetest.Order("again", "1")))
		s.Reload(block(g.app.Addr()))
		spooled(t, "live", s.Post(sitetest.Order("live", "1")))
		keys := []string{<-g.arrived, <-g.arrived} // the live one, and the redelivery
		slices.Sort(keys)
		if want := []string{"test:again:1", "test:live:1"}; !slices.Equal(keys, want) {
			t.Fatalf("the app works on %q, want %q", keys, want)
		}
		start := time.Now()
		for range 3 {
			s.Reload(block(first.Addr()))
		}
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("three reloads took %s", took)
		}
		refuses.Store(false)
		s.ExpectState("live", "in_flight")
		s.ExpectState("again", "in_flight")
		g.open("test:live:1")
		g.open("test:again:1")
		s.ComesTo("live", "accepted")
		s.ComesTo("again", "accepted")
		if got := len(attempts(first, "live")) + len(attempts(g.app, "live")); got != 1 {
			t.Errorf("live was delivered %d times", got)
		}
	})
}

// A Caddy that is killed while the app works, while callbacks wait for the next try, and
// while redeliveries are under way loses none of those that IAK was told 200 for: with
// hold those in doubt are held, and delivered when they are released; with retry all are
// delivered by themselves. What the app has accepted before does not come again.
func TestSpoolKilled(t *testing.T) {
	dir := sitetest.MemoryDir(t)
	t.Setenv("IAK_TEST_DIR", dir)
	const n = 3 // of each; redeliveries are four at once
	for _, doubt := range []string{"hold", "retry"} {
		t.Run(doubt, func(t *testing.T) {
			onBothStores(t, func(t *testing.T, option string) {
				option = strings.Replace(option, "records.sqlite", doubt+".sqlite", 1)
				arrived, end := make(chan string, 100), make(chan bool)
				first := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
					key, again := r.Header.Get("Idempotency-Key"), r.Header.Get("Iak-Attempt") != "1"
					switch {
					case strings.Contains(key, "right"):
					case strings.Contains(key, "kept"), strings.Contains(key, "again") && !again:
						w.WriteHeader(http.StatusServiceUnavailable)
					default:
						arrived <- key
						<-end
					}
				})
				t.Cleanup(func() { close(end) })
				block := func(app string) string {
					return sitetest.Block(option, "on_doubt "+doubt, "upstream_timeout 2s", "spool {\nanswer_within 100ms\nbackoff 100ms 300ms\n}") + "reverse_proxy " + app
				}
				caddy := sitetest.StartProcess(t, dir, block(first.Addr()))
				all := make(map[string][]string)
				for i := range n {
					for _, point := range []string{"right", "kept", "works", "again"} {
						ref := fmt.Sprint(point, "-", i)
						all[point] = append(all[point], ref)
						if got := post(t, caddy.URL, ref); got.Status != http.StatusOK {
							t.Errorf("%s: status %d, want 200", ref, got.Status)
						}
					}
				}
				for range 2 * n {
					<-arrived
				}
				if err := caddy.Cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = caddy.Cmd.Wait()
				second := sitetest.StartApp(t, nil)
				s := sitetest.StartOperated(t, block(second.Addr()))
				held := make(map[string]bool)
				for _, ref := range slices.Concat(all["works"], all["again"], all["kept"]) {
					if doubt == "hold" {
						sitetest.Eventually(t, ref+" is held or accepted", func() bool {
							state := strings.Join(s.States(ref), " ")
							return state == "held" || state == "accepted"
						})
						if held[ref] = s.States(ref)[0] == "held"; held[ref] {
							s.Must("release", "test", ref)
						}
						if !held[ref] && !strings.HasPrefix(ref, "kept") { // that may have been under way too
							t.Errorf("%s is delivered, and nobody knows what became of it before", ref)
						}
					}
					s.ComesTo(ref, "accepted")
				}
				for _, ref := range all["right"] {
					s.ExpectState(ref, "accepted")
				}
				reached := make(map[string]int)
				for _, r := range second.Received() {
					reached[r.Header.Get("Idempotency-Key")]++
				}
				for point, refs := range all {
					for _, ref := range refs {
						want := 1
						if point == "right" {
							want = 0
						}
						if got := reached["test:"+ref+":1"]; got != want {
							t.Errorf("%s reached the app %d times after the crash, want %d", ref, got, want)
						}
					}
				}
			})
		})
	}
}

// Two instances on one Redis never deliver one callback at the same time, and none that
// the other has delivered; when one is killed the other goes on.
func TestSpoolTwoInstances(t *testing.T) {
	redis := redistest.Start(t)
	var down atomic.Bool
	down.Store(true)
	var working sync.Map
	tally := sitetest.NewTally()
	app := sitetest.StartApp(t, tally.Counting(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		if _, already := working.LoadOrStore(key, true); already {
			t.Errorf("%s is delivered twice at the same time", key)
		}
		defer working.Delete(key)
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		time.Sleep(5 * time.Millisecond) // its work
	}))
	block := sitetest.Block("redis "+redis.URL(), "on_doubt retry", "upstream_timeout 2s", "spool {\nbackoff 100ms 500ms\n}") + "reverse_proxy " + app.Addr()
	one, other := sitetest.StartProcess(t, t.TempDir(), block), sitetest.StartProcess(t, t.TempDir(), block)
	const n = 200
	for i := range n {
		url := []string{one.URL, other.URL}[i%2]
		if status := tally.Send(url+"/callback", fmt.Sprint("order-", i), "1"); status != http.StatusOK {
			t.Errorf("order-%d: status %d", i, status)
		}
	}
	down.Store(false)
	accepted := func() (all int) {
		tally.Mu.Lock()
		defer tally.Mu.Unlock()
		for _, arrivals := range tally.Delivered {
			if arrivals[len(arrivals)-1].Status == http.StatusOK {
				all++
			}
		}
		return all
	}
	sitetest.Eventually(t, "a part is accepted", func() bool { return accepted() > n/4 })
	if err := one.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	sitetest.Eventually(t, "all are accepted", func() bool { return accepted() == n })
	again := 0
	tally.Mu.Lock()
	defer tally.Mu.Unlock()
	for key, arrivals := range tally.Delivered {
		fine := 0
		for _, a := range arrivals {
			if a.Status == http.StatusOK {
				fine++
			}
		}
		if again += fine - 1; fine < 1 {
			t.Errorf("%s is lost", key)
		}
	}
	if again > 4 { // those that the killed one had under way
		t.Errorf("%d were accepted before, and came again", again)
	}
}

// With nothing kept a spool costs Redis one command a second.
func TestSpoolIdle(t *testing.T) {
	tick := spool.Tick
	spool.Tick = time.Second
	t.Cleanup(func() { spool.Tick = tick })
	redis := redistest.Start(t)
	sitetest.Start(t, sitetest.Block("redis "+redis.URL(), "spool")+"respond ok")
	client := redis.Client()
	calls := func() (looks, others int) {
		t.Helper()
		text, err := client.Info(context.Background(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text) {
			name, rest, found := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
			if !found {
				continue
			}
			var n int
			_, _ = fmt.Sscan(strings.Split(rest, ",")[0], &n)
			switch name {
			case "evalsha":
				looks = n
			case "info", "time", "zcard", "zrange": // our own, and what the script does
			default:
				others += n
			}
		}
		return looks, others
	}
	sitetest.Eventually(t, "it has looked twice", func() bool { looks, _ := calls(); return looks >= 2 })
	before, others := calls()
	start := time.Now()
	sitetest.Eventually(t, "it looks four times more", func() bool { looks, _ := calls(); return looks >= before+4 })
	looks, more := calls()
	if took := time.Since(start); took < 2500*time.Millisecond || looks > before+4 {
		t.Errorf("%d looks within %s, want one a second", looks-before, took)
	}
	if more != others {
		t.Errorf("%d other commands meanwhile", more-others)
	}
}
