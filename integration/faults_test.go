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

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
)

const (
	// crowd is how many callers come at once.
	crowd = 50

	// faultTimeout is the store's timeout in most of the tests below.
	faultTimeout = 500 * time.Millisecond

	// slowMachine is what a crowd's work may add to the time of an answer. Without a
	// bound on the whole operation, go-redis's four tries would take longer.
	slowMachine = 500 * time.Millisecond

	// An app that has a callback of one of these ref_ids works on it until it is
	// told to answer; the second kind it refuses at the first attempt.
	workingRef, refusedRef = "working-", "refused-"

	storePassword = "right"
)

// standstill measures for how long the machine was too busy to let this process
// run: no store can answer in that time.
type standstill struct {
	mu    sync.Mutex
	total time.Duration
	due   time.Time // when the process should run next
}

func startStandstill(t testing.TB) *standstill {
	const tick = 5 * time.Millisecond
	s := &standstill{due: time.Now().Add(tick)}
	done := make(chan bool)
	t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(tick):
				s.mu.Lock()
				now := time.Now()
				s.total += stoodStill(now.Sub(s.due))
				s.due = now.Add(tick)
				s.mu.Unlock()
			}
		}
	}()
	return s
}

// soFar is the time that was lost from the start until now.
func (s *standstill) soFar() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total + stoodStill(time.Since(s.due))
}

// stoodStill leaves out what a timer is late by on any machine: it would add up
// to a good part of the bound.
func stoodStill(late time.Duration) time.Duration {
	if late < 50*time.Millisecond {
		return 0
	}
	return late
}

// toxicLink is a toxiproxy between the site and Redis.
type toxicLink struct {
	t      testing.TB
	addr   string
	target string
	proxy  *toxiproxy.Proxy
}

// startToxicLink starts a proxy without a toxic. It ends with the test.
func startToxicLink(t testing.TB, target string) *toxicLink {
	t.Helper()
	l := &toxicLink{t: t, addr: "127.0.0.1:" + sitetest.FreePort(t), target: target}
	l.restart(target)
	t.Cleanup(func() { l.proxy.Stop() })
	return l
}

// restart breaks all connections off. New ones lead to target, through toxics.
func (l *toxicLink) restart(target string, toxics ...string) {
	l.t.Helper()
	if l.proxy != nil {
		l.proxy.Stop()
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l.proxy = toxiproxy.NewProxy(server, "redis", l.addr, target)
	l.add(toxics...)
	if err := l.proxy.Start(); err != nil {
		l.t.Fatal(err)
	}
}

// add puts toxics on the connections that there are, and on new ones. No
// command may be under way.
func (l *toxicLink) add(toxics ...string) {
	l.t.Helper()
	for _, toxic := range toxics {
		if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// loseReply is a toxic that breaks a connection off instead of passing on the
// reply to a claim or a settlement, which has been carried out by then. What a
// client says on connecting is answered.
type loseReply struct {
	Every int64 `json:"every"` // 1: all, 2: every second one
	seen  atomic.Int64
}

func init() { toxics.Register("lose_reply", new(loseReply)) }

// Pipe makes loseReply a toxic.
func (l *loseReply) Pipe(stub *toxics.ToxicStub) {
	for {
		select {
		case <-stub.Interrupt:
			return
		case c := <-stub.Input:
			// A claim is answered with a string, a settlement with an integer.
			if c == nil || (c.Data[0] == '$' || c.Data[0] == ':') && l.seen.Add(1)%l.Every == 0 {
				stub.Close()
				return
			}
			stub.Output <- c
		}
	}
}

// toxicJSON is one of toxiproxy's, with one attribute.
func toxicJSON(kind, stream, attribute string, value int) string {
	return fmt.Sprintf(`{"type":%q,"stream":%q,"attributes":{%q:%d}}`, kind, stream, attribute, value)
}

// faultyStore is a Redis, and the ways to it that can be broken.
type faultyStore struct {
	t      testing.TB
	server *redistest.Server
	client *redis.Client // to look behind the site, and to break the server
	link   *toxicLink
}

func startFaultyStore(t testing.TB) *faultyStore {
	t.Helper()
	server := redistest.Start(t, "--appendonly", "yes", "--requirepass", storePassword, "--repl-diskless-sync-delay", "0")
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: storePassword})
	t.Cleanup(func() { _ = client.Close() })
	return &faultyStore{t: t, server: server, client: client, link: startToxicLink(t, server.Addr())}
}

// do runs a command on the server.
func (s *faultyStore) do(args ...any) {
	s.t.Helper()
	if err := s.client.Do(context.Background(), args...).Err(); err != nil {
		s.t.Fatal(err)
	}
}

// writes counts the records that the server has written.
func (s *faultyStore) writes() int {
	s.t.Helper()
	return s.server.Calls(s.client)["set"]
}

// meeting is what a fault comes between.
type meeting int

const (
	everything meeting = iota // the claims and the settlements
	claimsOnly
	settlementsOnly
	startsOnly // claims, and the site starts with the fault
)

// fault is a way in which a store misbehaves.
type fault struct {
	name       string
	linked     bool // the site reaches the server through the link
	meets      meeting
	timeout    time.Duration // of the store, faultTimeout when zero
	start, end func(s *faultyStore)

	// claims lists the statuses that a callback may get while the fault lasts, if
	// no other of its ref_id is under way.
	claims []int
	// The server carries claims, or settlements, out while the fault lasts.
	claimed, settled bool
}

var (
	unavailable = []int{http.StatusServiceUnavailable}
	served      = []int{http.StatusOK}
	// Some are served, and some are not: 409 is for a claim that is given back.
	partly = []int{http.StatusOK, http.StatusConflict, http.StatusServiceUnavailable}
)

func healLink(s *faultyStore) { s.link.restart(s.link.target) }

func poisonLink(toxics ...string) func(s *faultyStore) {
	return func(s *faultyStore) { s.link.add(toxics...) }
}

// claimRefs are the ref_ids of the callbacks that come while a fault lasts.
func claimRefs() []string { return append(refs("claim-", crowd), "claim-same") }

func refs(prefix string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint(prefix, i))
	}
	return all
}

// squat puts something else under the keys of the claims; evict removes it.
func squat(put func(s *faultyStore, key string)) func(s *faultyStore) {
	return func(s *faultyStore) {
		for _, ref := range claimRefs() {
			put(s, "iak:test:"+ref)
		}
	}
}

func evict(s *faultyStore) {
	for _, ref := range claimRefs() {
		s.do("del", "iak:test:"+ref)
	}
}

func kill(s *faultyStore) { s.server.Kill() }

func restart(s *faultyStore) { s.server.Start() }

// storeFaults are all ways in which a Redis is made to misbehave.
func storeFaults() []fault {
	var stopFlushing func()
	return []fault{
		{name: "down at start", meets: startsOnly, start: kill, end: restart, claims: unavailable},
		{name: "down", start: kill, end: restart, claims: unavailable},
		{
			name:   "hang",
			start:  func(s *faultyStore) { s.server.Signal(syscall.SIGSTOP) },
			end:    func(s *faultyStore) { s.server.Signal(syscall.SIGCONT) },
			claims: unavailable,
		},
		{
			name: "latency above the timeout", linked: true,
			start: poisonLink(toxicJSON("latency", "upstream", "latency", 700)), end: healLink,
			claims: unavailable, settled: true,
		},
		{
			name: "latency below the timeout", linked: true, timeout: 5 * time.Second,
			start: poisonLink(toxicJSON("latency", "upstream", "latency", 50), toxicJSON("latency", "downstream", "latency", 50)), end: healLink,
			claims: served, claimed: true, settled: true,
		},
		{
			name: "connections reset", linked: true,
			start: func(s *faultyStore) {
				s.link.restart(s.link.target, toxicJSON("reset_peer", "downstream", "timeout", 0))
			},
			end:    healLink,
			claims: unavailable,
		},
		{
			name: "slices", linked: true, timeout: 5 * time.Second,
			start: poisonLink(toxicJSON("slicer", "upstream", "average_size", 16), toxicJSON("slicer", "downstream", "average_size", 2)), end: healLink,
			claims: served, claimed: true, settled: true,
		},
		{
			name: "1 KB/s", linked: true,
			start: poisonLink(toxicJSON("bandwidth", "upstream", "rate", 1), toxicJSON("bandwidth", "downstream", "rate", 1)), end: healLink,
			claims: partly,
		},
		{
			name: "every reply lost", linked: true,
			start: poisonLink(toxicJSON("lose_reply", "downstream", "every", 1)), end: healLink,
			// The settlements use up the connections; a new one is not answered when it asks
			// for the version.
			claims: unavailable, settled: true,
		},
		{
			name: "every second reply lost", linked: true,
			start: poisonLink(toxicJSON("lose_reply", "downstream", "every", 2)), end: healLink,
			claims: partly, claimed: true, settled: true,
		},
		{
			name: "replies to claims swallowed", linked: true, meets: claimsOnly,
			start: poisonLink(toxicJSON("timeout", "downstream", "timeout", 0)), end: healLink,
			claims: unavailable, claimed: true,
		},
		{
			name: "replies to settlements swallowed", linked: true, meets: settlementsOnly,
			start: poisonLink(toxicJSON("timeout", "downstream", "timeout", 0)), end: healLink,
			settled: true,
		},
		{
			name: "replies to claims cut off", linked: true, meets: claimsOnly,
			start: poisonLink(toxicJSON("limit_data", "downstream", "bytes", 10)), end: healLink,
			claims: unavailable, claimed: true,
		},
		{
			name: "scripts flushed all the time", timeout: 5 * time.Second,
			start: func(s *faultyStore) {
				var wg sync.WaitGroup
				ctx, cancel := context.WithCancel(context.Background())
				wg.Go(func() {
					for ctx.Err() == nil {
						_ = s.client.ScriptFlush(ctx).Err()
					}
				})
				stopFlushing = sync.OnceFunc(func() { cancel(); wg.Wait() })
				s.t.Cleanup(stopFlushing)
			},
			end:    func(*faultyStore) { stopFlushing() },
			claims: served, claimed: true, settled: true,
		},
		{
			name:   "memory full",
			start:  func(s *faultyStore) { s.do("config", "set", "maxmemory", "1") },
			end:    func(s *faultyStore) { s.do("config", "set", "maxmemory", "0") },
			claims: unavailable, settled: true,
		},
		{
			name: "read-only replica", linked: true,
			start: func(s *faultyStore) {
				replica := redistest.Start(s.t, "--replicaof", "127.0.0.1 "+s.server.Port, "--masterauth", storePassword, "--requirepass", storePassword)
				client := redis.NewClient(&redis.Options{Addr: replica.Addr(), Password: storePassword})
				defer client.Close()
				sitetest.Eventually(s.t, "the replica follows its master", func() bool {
					info, err := client.Info(context.Background(), "replication").Result()
					return err == nil && strings.Contains(info, "master_link_status:up")
				})
				s.link.restart(replica.Addr())
			},
			end:    healLink,
			claims: unavailable,
		},
		{
			name: "wrong password",
			start: func(s *faultyStore) {
				s.do("config", "set", "requirepass", "another")
				s.do("client", "kill", "type", "normal", "skipme", "yes")
			},
			end:    func(s *faultyStore) { s.do("config", "set", "requirepass", storePassword) },
			claims: unavailable,
		},
		{
			name: "wrong type under the key", meets: claimsOnly,
			start: squat(func(s *faultyStore, key string) { s.do("lpush", key, "x") }), end: evict,
			claims: unavailable,
		},
		{
			name: "record of a newer version", meets: claimsOnly,
			start: squat(func(s *faultyStore, key string) {
				s.do("set", key, newerRecord)
			}),
			end:    evict,
			claims: unavailable,
		},
	}
}

// newerRecord begins as a record of a version that this build does not know.
const newerRecord = "\xff\x00\x00\x01"

// faultRun is a site whose store misbehaves, with IAK before and an app behind
// it.
type faultRun struct {
	t     *testing.T
	fault fault
	bound time.Duration // of every answer
	store *faultyStore
	tally *sitetest.Tally
	app   *sitetest.App
	site  *sitetest.Site

	open    func()    // lets the app answer what it works on
	since   stopwatch // the app may answer
	working sync.WaitGroup

	standstill *standstill
	mu         sync.Mutex
	slowest    time.Duration // answer of those that are bounded
}

// stopwatch tells what an answer took, and what of it the process stood still.
type stopwatch struct {
	start time.Time
	stood time.Duration
}

func (r *faultRun) stopwatch() stopwatch {
	return stopwatch{time.Now(), r.standstill.soFar()}
}

// startFaultRun starts the site. options are further lines of iak_callback.
func startFaultRun(t *testing.T, f fault, options ...string) *faultRun {
	t.Helper()
	watchRepeating()
	if f.timeout == 0 {
		f.timeout = faultTimeout
	}
	r := &faultRun{t: t, fault: f, bound: 2*f.timeout + slowMachine, store: startFaultyStore(t), tally: sitetest.NewTally(), standstill: startStandstill(t)}
	if f.meets == startsOnly {
		f.start(r.store)
	}
	gate := make(chan bool)
	r.open = sync.OnceFunc(func() {
		r.since = r.stopwatch()
		close(gate)
	})
	r.app = sitetest.StartApp(t, r.tally.Counting(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		refused := strings.Contains(key, refusedRef)
		if refused || strings.Contains(key, workingRef) {
			<-gate
		}
		if refused && r.Header.Get("Iak-Attempt") == "1" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(r.open)
	addr := r.store.server.Addr()
	if f.linked {
		addr = r.store.link.addr
	}
	// A long lease: the store has to be well again within it, on a slow machine too.
	r.site = sitetest.Start(t, sitetest.Block(append(options, "upstream_timeout 2m",
		"redis redis://:"+storePassword+"@"+addr+" {\ntimeout "+f.timeout.String()+"\n}")...)+"reverse_proxy "+r.app.Addr())
	return r
}

// ask makes one request as the tally does, for a test that reads the whole answer.
func (r *faultRun) ask(refID string) sitetest.Reply {
	c, key := r.tally, "test:"+refID+":1"
	c.Mu.Lock()
	c.Sent++
	c.All[key] = true
	c.Mu.Unlock()
	answer, err := sitetest.Client.Post(r.site.URL, "application/json", strings.NewReader(sitetest.Order(refID, "1")))
	if err != nil {
		return sitetest.Reply{}
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return sitetest.Reply{}
	}
	if answer.StatusCode/100 == 2 {
		c.Mu.Lock()
		c.Told[key] = true
		c.Mu.Unlock()
	}
	return sitetest.Reply{Status: answer.StatusCode, Header: answer.Header, Body: string(body)}
}

// work lets the app work on as many callbacks as half a crowd each: of the
// first it will accept all, of the second it will refuse all. A crowd sends one
// of them.
func (r *faultRun) work() {
	r.t.Helper()
	r.deliver([]string{"before"}) // Redis knows the scripts
	before := len(r.app.Received())
	// The store is well: only a machine that is too slow for its timeout makes it
	// answer 503, and 409 until that claim is given back.
	post := func(ref string, want int) {
		got := r.ask(ref)
		for got.Status == http.StatusServiceUnavailable || got.Status == http.StatusConflict && want != got.Status {
			got = r.ask(ref)
		}
		if got.Status != want {
			r.t.Errorf("%s: status %d, want %d", ref, got.Status, want)
		}
	}
	workOn := func(ref string, answer int) {
		r.working.Go(func() {
			post(ref, answer)
			r.inTime(ref, r.since)
		})
	}
	for i := range crowd / 2 {
		workOn(fmt.Sprint(workingRef, i), http.StatusOK)
		workOn(fmt.Sprint(refusedRef, i), http.StatusInternalServerError)
	}
	sitetest.Eventually(r.t, "the app works on all of them", func() bool { return len(r.app.Received()) == before+crowd })
	var others sync.WaitGroup
	for range crowd {
		others.Go(func() { post(workingRef+"0", http.StatusConflict) })
	}
	others.Wait()
}

// finish lets the app answer, and waits until IAK has the answers.
func (r *faultRun) finish() {
	r.open()
	r.working.Wait()
}

// claim sends callbacks at once while the fault lasts, and checks the answers.
func (r *faultRun) claim(refs []string, want []int) {
	r.t.Helper()
	var wg sync.WaitGroup
	for _, ref := range refs {
		wg.Go(func() {
			start := r.stopwatch()
			got := r.ask(ref)
			r.inTime(ref, start)
			if !slices.Contains(want, got.Status) {
				r.t.Errorf("%s: status %d, want one of %v", ref, got.Status, want)
			}
			if after := got.Header.Get("Retry-After"); got.Status == http.StatusServiceUnavailable && after != "5" {
				r.t.Errorf("%s: Retry-After %q, want 5", ref, after)
			}
		})
	}
	wg.Wait()
}

// wrote makes sure that the fault hits what it is about: that the server carries
// some of it out.
func (r *faultRun) wrote(what string, before int) (writes int) {
	r.t.Helper()
	sitetest.Eventually(r.t, "the server carries "+what+" out", func() bool {
		writes = r.store.writes()
		return writes > before
	})
	return writes
}

// inTime checks how long the store kept an answer back.
func (r *faultRun) inTime(ref string, start stopwatch) {
	took, stood := time.Since(start.start), r.standstill.soFar()-start.stood
	if took-stood > r.bound {
		r.t.Errorf("%s: answered after %s, of which the machine stood still for %s; want at most %s", ref, took, stood, r.bound)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slowest = max(r.slowest, took)
}

// deliver sends all callbacks again, at once and until they are accepted. The
// pauses grow, since the callers share the machine with the site.
func (r *faultRun) deliver(refs []string) {
	r.t.Helper()
	deadline := time.Now().Add(time.Minute)
	var wg sync.WaitGroup
	for _, ref := range refs {
		wg.Go(func() {
			for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second/2) {
				got := r.ask(ref)
				if got.Status == http.StatusOK {
					return
				}
				if time.Now().After(deadline) {
					r.t.Errorf("%s: status %d to the end, want 200", ref, got.Status)
					return
				}
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
}

// check counts what has reached the app: every callback once, and once more
// what it refused. Claims that nobody knows of count as no attempt.
func (r *faultRun) check(refused int) {
	r.t.Helper()
	r.t.Logf("the slowest bounded answer took %s of %s", r.slowest, 2*r.fault.timeout)
	n := r.tally.Count(r.t)
	if n.Lost != 0 || n.Extra != 0 || n.Refused != refused || n.Reached != n.Callbacks+refused {
		r.t.Errorf("want each callback to reach the app once, 0 extra, 0 lost, %d refused and once more", refused)
	}
	for key, arrivals := range r.tally.Delivered {
		for i, a := range arrivals {
			if a.Attempt != i+1 {
				r.t.Errorf("%s: delivery %d is attempt %d", key, i+1, a.Attempt)
			}
		}
	}
}

// However the store misbehaves, every callback is answered within twice the
// store's timeout, with 503 and Retry-After if it cannot be claimed, and what
// the app answers goes to IAK. When the store is well again, each callback
// reaches the app once: what IAK sends again after the app's 2xx is a duplicate,
// what the app refused is its second attempt, and a claim that was carried out
// without anybody's knowing locks nobody out.
func TestStoreFaults(t *testing.T) {
	for _, f := range storeFaults() {
		t.Run(f.name, func(t *testing.T) {
			r := startFaultRun(t, f)
			var again []string
			refused := 0
			if f.meets != startsOnly {
				r.work()
				again = append(again, refs(workingRef, crowd/2)...)
				again = append(again, refs(refusedRef, crowd/2)...)
				refused = crowd / 2
				if f.meets == claimsOnly {
					r.finish()
				}
			}

			if f.meets != startsOnly {
				r.deliver([]string{"before"}) // a connection is open
			}
			writes := 0
			if f.claimed || f.settled {
				writes = r.store.writes()
			}
			if f.meets != startsOnly {
				f.start(r.store)
			}
			if f.meets == everything || f.meets == settlementsOnly {
				r.finish()
				if f.settled {
					writes = r.wrote("settlements", writes)
				}
			}
			if f.meets != settlementsOnly {
				own, same := refs("claim-", crowd), slices.Repeat([]string{"claim-same"}, crowd)
				r.claim(own, f.claims)
				if f.claimed {
					r.wrote("claims", writes)
				}
				wantSame := f.claims
				if slices.Contains(f.claims, http.StatusOK) {
					wantSame = append([]int{http.StatusConflict}, f.claims...) // while the first is under way
				}
				r.claim(same, wantSame)
				again = append(append(again, own...), same...)
			}

			f.end(r.store)
			r.deliver(again)
			r.check(refused)
		})
	}
}

// With on_store_error forward, a store that fails before the claim stops no
// callback: each is forwarded and marked as not deduplicated, and nothing of it
// is recorded, then or later.
func TestStoreFaultsForward(t *testing.T) {
	for _, f := range storeFaults() {
		if f.name != "down" && f.name != "every reply lost" {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			r := startFaultRun(t, f, "on_store_error forward")
			r.deliver([]string{"before"})
			f.start(r.store)
			r.claim(refs("claim-", crowd), served)
			f.end(r.store)
			r.check(0)
			for i, d := range r.app.Received() {
				want := "false"
				if i == 0 {
					want = ""
				}
				if got := d.Header.Get("Iak-Deduplicated"); got != want {
					t.Errorf("delivery %d: Iak-Deduplicated %q, want %q", i+1, got, want)
				}
			}
			waitDrained(t)
			keys, err := r.store.client.Keys(context.Background(), "*").Result()
			if err != nil || !slices.Equal(keys, []string{"iak:test:before"}) {
				t.Errorf("the store holds %q, %v, want the first callback's record only", keys, err)
			}
			r.deliver([]string{"after"})
			r.check(0)
		})
	}
}
