package integration

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// Redis and Caddy are told to end while the app works, as by docker compose restart or
// a reboot: the app's answer waits to be recorded. Caddy goes on with that for as long
// as its grace period lasts; then it says by ref_id what it gives up. What belongs to
// this kind: Redis ends before Caddy or after, comes back or not, hangs; one callback or
// many; a grace period that is short, long, or none.
func TestSIGTERM(t *testing.T) {
	for _, row := range []struct {
		name, grace string
		back        bool // Redis comes back in time
	}{
		{"Redis comes back", "grace_period 8s", true},
		{"Redis comes back, no grace period", "log", true},
		{"Redis stays away", "grace_period 2s", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Start(t, "--appendonly", "yes")
			g := startGates(t)
			block := sitetest.Block("redis "+redis.URL(), "upstream_timeout 20s") + "reverse_proxy " + g.app.Addr()
			caddy := sitetest.StartProcess(t, t.TempDir(), block, row.grace)
			const n = 20
			answers := make(chan int, n)
			for i := range n {
				go func() { answers <- post(t, caddy.URL, fmt.Sprint("order-", i)).Status }()
			}
			for range n {
				<-g.arrived
			}
			redis.Signal(syscall.SIGTERM)
			redis.Kill()
			for i := range n {
				g.open(fmt.Sprint("test:order-", i, ":1"))
			}
			for range n {
				if status := <-answers; status != http.StatusOK {
					t.Errorf("status %d, want the app's 200", status)
				}
			}
			start := time.Now()
			if err := caddy.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			sitetest.Eventually(t, "Caddy is told to end", func() bool { return strings.Contains(caddy.Log(), "exiting") })
			if row.back {
				redis.Start()
			}
			_ = caddy.Cmd.Wait()
			if took := time.Since(start); took > 12*time.Second {
				t.Errorf("Caddy ended after %s", took)
			}
			if !row.back {
				redis.Start()
			}
			given := strings.Count(caddy.Log(), "could not be recorded")
			if want := map[bool]int{true: 0, false: n}[row.back]; given != want {
				t.Errorf("%d are given up by the log, want %d:\n%s", given, want, caddy.Log())
			}
			if !row.back {
				for i := range n {
					if !strings.Contains(caddy.Log(), fmt.Sprintf(`"key":"iak:test:order-%d"`, i)) {
						t.Errorf("order-%d is not among those that were given up", i)
					}
				}
				return
			}
			again := sitetest.StartProcess(t, t.TempDir(), block)
			for i := range n {
				got := post(t, again.URL, fmt.Sprint("order-", i))
				if got.Status != http.StatusOK || got.Header.Get("Idempotent-Replayed") == "" {
					t.Errorf("order-%d: status %d, replayed %q, want a duplicate", i, got.Status, got.Header.Get("Idempotent-Replayed"))
				}
			}
			if left := len(g.arrived); left != 0 {
				t.Errorf("the app got %d more", left)
			}
		})
	}
}
