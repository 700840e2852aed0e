// Package integration tests the whole from outside: by its configuration, HTTP,
// the admin API, the commands, the log, the metrics, and what the stores hold.
package integration

import (
	"context"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/caddyserver/caddy/v2"

	_ "github.com/caddy-iak/iakcallback" // the module
	"github.com/caddy-iak/iakcallback/internal/delivery"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddy-iak/iakcallback/internal/store"
)

func TestMain(m *testing.M) {
	embeddedTimeout *= 10 // a test machine's disk may be busy
	spool.Tick /= 10
	os.Exit(sitetest.Main(m))
}

// What the tests shorten, so as not to wait seconds for it, and count: nothing
// else of the module's inside. A build without one of these does not link.
var (
	//go:linkname embeddedTimeout github.com/caddy-iak/iakcallback.embeddedTimeout
	embeddedTimeout time.Duration
	//go:linkname stores github.com/caddy-iak/iakcallback.stores
	stores *caddy.UsagePool
)

// shortLease lets a claim be in doubt soon after upstream_timeout.
func shortLease(t *testing.T) {
	t.Helper()
	margin, grace := store.Margin, delivery.ReturnGrace
	store.Margin, delivery.ReturnGrace = 200*time.Millisecond, 50*time.Millisecond
	t.Cleanup(func() { store.Margin, delivery.ReturnGrace = margin, grace })
}

// workers are the goroutines that repeat what a store could not do, by their
// first lines in a trace. Who began a goroutine is in the trace even before it has
// run, its own function is not.
func workers() map[string]bool {
	found := make(map[string]bool)
	trace := make([]byte, 16<<20)
	for stack := range strings.SplitSeq(string(trace[:runtime.Stack(trace, true)]), "\n\n") {
		if strings.Contains(stack, "created by github.com/caddy-iak/iakcallback/internal/store.(*retry).add in") {
			id, _, _ := strings.Cut(stack, " [")
			found[id] = true
		}
	}
	return found
}

// earlierWorkers are those of tests before: a store that never comes back keeps
// its worker for a while.
var earlierWorkers map[string]bool

// watchRepeating lets repeating and waitDrained look at what comes from now on.
func watchRepeating() { earlierWorkers = workers() }

// repeating tells whether a store of this test has something to repeat.
func repeating() bool {
	for id := range workers() {
		if !earlierWorkers[id] {
			return true
		}
	}
	return false
}

// waitDrained waits until the stores of this test have nothing left to repeat.
func waitDrained(t *testing.T) {
	t.Helper()
	sitetest.Eventually(t, "nothing is left to repeat", func() bool { return !repeating() })
}

// announced waits until the stores of the configuration have been asked whether
// they answer.
func announced() {
	trace := make([]byte, 16<<20)
	for strings.Contains(string(trace[:runtime.Stack(trace, true)]), "created by github.com/caddy-iak/iakcallback.(*App).Start in") {
		time.Sleep(10 * time.Millisecond)
	}
}

// storeUses says how often each open store is used, by its key.
func storeUses() map[any]int {
	announced()
	open := make(map[any]int)
	stores.Range(func(key, _ any) bool {
		open[key] = 0
		return true
	})
	for key := range open {
		open[key], _ = stores.References(key)
	}
	return open
}

// addedUses says what has come to the stores that were in use before. What went
// is left out: an earlier test's store may be given back in the background.
func addedUses(before map[any]int) map[any]int {
	added := make(map[any]int)
	for key, n := range storeUses() {
		if n > before[key] {
			added[key] = n - before[key]
		}
	}
	return added
}

func writeFile(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// safeBuilder is a strings.Builder that a command may write while a test reads.
type safeBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *safeBuilder) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuilder) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// contextOf is a context that ends with the test at the latest.
func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithCancel(t.Context())
}
