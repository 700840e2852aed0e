package integration

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// spoolBlock is a site with a spool whose pauses a test can wait for.
func spoolBlock(app string, options ...string) string {
	return sitetest.Block(append(options, "spool {\nbackoff 100ms 1s\n}")...) + "reverse_proxy " + app
}

// moody is an app that answers as it is told.
type moody struct {
	*sitetest.App
	status atomic.Int64 // 0 for 200
}

func startMoody(t *testing.T) *moody {
	m := new(moody)
	m.App = sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
		if status := int(m.status.Load()); status != 0 {
			w.Header().Set("App-Says", "no")
			w.WriteHeader(status)
		}
		_, _ = io.WriteString(w, "the app's own words")
	})
	return m
}

// attempts are the Iak-Attempt of what the app has received of one order.
func attempts(app *sitetest.App, ref string) (all []string) {
	for _, r := range app.Received() {
		if strings.HasPrefix(r.Header.Get("Idempotency-Key"), "test:"+ref+":") {
			all = append(all, r.Header.Get("Iak-Attempt"))
		}
	}
	return all
}

// spooled expects 200 without a word of the app.
func spooled(t *testing.T, what string, got sitetest.Reply) {
	t.Helper()
	if got.Status != http.StatusOK || got.Body != "" || got.Header.Get("App-Says") != "" || got.Header.Get("Retry-After") != "" {
		t.Errorf("%s: status %d, body %q, header %v, want an empty 200", what, got.Status, got.Body, got.Header)
	}
}

// What the app accepts in time is answered by the app; what it refuses is answered 200
// and delivered again, the same request, until it is accepted.
func TestSpool(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		app := startMoody(t)
		s := sitetest.StartOperated(t, spoolBlock(app.Addr(), option))
		if got := s.Post(sitetest.Order("at once", "1")); got.Status != 200 || got.Body != "the app's own words" {
			t.Errorf("status %d, body %q, want the app's answer", got.Status, got.Body)
		}
		s.ExpectState("at once", "accepted")
		for _, status := range []int64{500, 404, 503, 302, 401} {
			ref := fmt.Sprint("order-", status)
			app.status.Store(status)
			spooled(t, ref, s.Post(sitetest.Order(ref, "1")))
			spooled(t, ref+" again", s.Post(sitetest.Order(ref, "1")))
			sitetest.Eventually(t, ref+" is delivered again", func() bool { return len(attempts(app.App, ref)) >= 2 })
			app.status.Store(0)
			s.ComesTo(ref, "accepted")
			got := s.Post(sitetest.Order(ref, "1"))
			if got.Status != 200 || got.Header.Get("Idempotent-Replayed") != "true" {
				t.Errorf("%s: a repeat is answered %d, replayed %q", ref, got.Status, got.Header.Get("Idempotent-Replayed"))
			}
			var first sitetest.Delivered
			for i, r := range app.Received() {
				if !strings.HasPrefix(r.Header.Get("Idempotency-Key"), "test:"+ref+":") {
					continue
				}
				if first.Header == nil {
					first = r
				}
				for name := range first.Header {
					if name != "Iak-Attempt" && !slices.Equal(r.Header[name], first.Header[name]) {
						t.Errorf("%s, request %d: %s is %q, was %q", ref, i, name, r.Header[name], first.Header[name])
					}
				}
				if r.Path != first.Path || r.Body != first.Body || r.Method != first.Method || len(r.Header) != len(first.Header) {
					t.Errorf("%s, request %d: %s %s %s, was %s %s %s", ref, i, r.Method, r.Path, r.Body, first.Method, first.Path, first.Body)
				}
			}
		}
	})
}

// An app that is down gets the callback when it is back, as the first attempt: nothing
// was sent before.
func TestSpoolAppDown(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		addr := "127.0.0.1:" + sitetest.FreePort(t)
		s := sitetest.StartOperated(t, spoolBlock(addr, option))
		for i := range 10 {
			spooled(t, "while the app is down", s.Post(sitetest.Order(fmt.Sprint("order", i), "1")))
		}
		app := sitetest.StartAppAt(t, addr, nil)
		for i := range 10 {
			ref := fmt.Sprint("order", i)
			s.ComesTo(ref, "accepted")
			if got := attempts(app, ref); !slices.Equal(got, []string{"1"}) {
				t.Errorf("%s: attempts %q, want one, the first", ref, got)
			}
		}
	})
}

// IAK waits for the app no longer than answer_within; the app goes on, and its answer
// counts.
func TestSpoolSlowApp(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		g := startGates(t)
		block := func(within string) string {
			return sitetest.Block(option, "spool {\nanswer_within "+within+"\nbackoff 100ms 1s\n}") + "reverse_proxy " + g.app.Addr()
		}
		s := sitetest.StartOperated(t, block("200ms"))
		for _, within := range []string{"200ms", "0s"} {
			s.Reload(block(within))
			ref := "order" + within
			start := time.Now()
			spooled(t, ref, s.Post(sitetest.Order(ref, "1")))
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("within %s IAK waited %s", within, took)
			}
			<-g.arrived
			s.ExpectState(ref, "in_flight")
			spooled(t, "a repeat meanwhile", s.Post(sitetest.Order(ref, "1")))
			g.open("test:" + ref + ":1")
			s.ComesTo(ref, "accepted")
			if got := attempts(g.app, ref); !slices.Equal(got, []string{"1"}) {
				t.Errorf("%s: attempts %q, want one", ref, got)
			}
		}
	})
}
