package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
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
