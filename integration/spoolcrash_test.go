package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// manned is a Caddy in a process of its own, and an operator at its admin API.
type manned struct {
	*sitetest.Process
	admin  string // a unix socket: a port could be taken by somebody else
	client *http.Client
	global []string
	t      *testing.T
}

// startManned starts a Caddy with a data directory and more global options.
func startManned(t *testing.T, dir, block string, global ...string) *manned {
	t.Helper()
	socket := filepath.Join(sitetest.MemoryDir(t), "admin")
	m := &manned{t: t, admin: "unix/" + socket, global: global}
	m.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	if len(global) == 0 {
		m.global = []string{"grace_period 1s"}
	}
	m.Process = sitetest.StartProcess(t, dir, block, append(m.global, "admin "+m.admin)...)
	return m
}

// reload replaces the configuration through the admin API, and returns when Caddy says
// that it is done.
func (m *manned) reload(block string) error {
	text := "{\nadmin " + m.admin + "\npersist_config off\n" + strings.Join(m.global, "\n") + "\n}\n" + m.URL + " {\n" + block + "\n}\n"
	answer, err := m.client.Post("http://127.0.0.1/load", "text/caddyfile", strings.NewReader(text))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", answer.Status, said)
	}
	return err
}

// kill ends it without a warning.
func (m *manned) kill() {
	_ = m.Cmd.Process.Kill()
	_ = m.Cmd.Wait()
}

// command runs caddy iak-callback against it.
func (m *manned) command(args ...string) (string, error) {
	return sitetest.Run(append([]string{args[0], "--address", m.admin}, args[1:]...)...)
}

// records are what it remembers, of all stores that answer, by ref_id.
func (m *manned) records(flags ...string) map[string]sitetest.Record {
	out, _ := m.command(append([]string{"list", "--limit", "0", "--json"}, flags...)...)
	found := make(map[string]sitetest.Record)
	for _, r := range sitetest.Records(m.t, out) {
		found[r.RefID] = r
	}
	return found
}

// states counts the records by their state.
func (m *manned) states() map[string]int {
	n := make(map[string]int)
	for _, r := range m.records() {
		n[r.State]++
	}
	return n
}

// settleHeld is an operator who looks into the app: what is held and the app has acted
// on he accepts, and what it has not he releases, or redelivers. He returns the ref_ids.
func (m *manned) settleHeld(c *sitetest.Tally) (held []string) {
	for ref, r := range m.records("--state", "held") {
		args := []string{"accept", "test", ref}
		if !c.HasAccepted("test:" + ref + ":1") {
			args = [][]string{{"release", "test", ref}, {"redeliver", "--yes", "test", ref}}[len(held)%2]
		}
		if _, err := m.command(args...); err != nil {
			if _, still := m.records("--state", "held")[ref]; still { // or else its delivery has just settled it
				m.t.Errorf("%s is held since %s: %q: %v", ref, r.Changed, args, err)
			}
			continue
		}
		held = append(held, ref)
	}
	return held
}

// until looks now and then whether something has happened that sitetest.Eventually does
// not wait for, and tells whether it has.
func until(patience, pause time.Duration, happened func() bool) bool {
	for deadline := time.Now().Add(patience); !happened(); time.Sleep(pause) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

const (
	spoolCrashCallbacks = 10 // in Caddy's hands when it dies
	spoolCrashTimeout   = 3 * time.Second
	spoolCrashLease     = spoolCrashTimeout + 5*time.Second // store.Margin, as it is built
)

// spoolPoint is a point on the way of a callback that is kept, at which Caddy dies.
type spoolPoint struct {
	name      string
	onlyRedis bool
	appWaits  bool   // until it is told to answer, or Caddy is dead
	refuses   bool   // the app refuses each first delivery
	later     bool   // and says that the next is to come two seconds later
	deaf      bool   // the app's port takes connections, and nobody reads
	again     bool   // what is under way when Caddy dies are redeliveries
	stop      string // "claim" or "settle": the calls that the proxy in front of Redis stops
	stopReply bool   // when Redis has carried them out
	settles   bool   // what the app has accepted is recorded

	begin func(c *spoolCrash) // brings the callbacks on their way; nil to send them
	reach func(c *spoolCrash) // waits until they are at the point, and leaves Caddy there to be killed
}

// spoolCrash is a Caddy with a spool that dies, and what becomes of the callbacks that
// it had in hand. IAK sends again only those that it was not told 200 for.
type spoolCrash struct {
	t     *testing.T
	name  string
	point *spoolPoint
	store string
	doubt string
	tally *sitetest.Tally
	start time.Time
	dir   string

	redis         *redistest.Server
	proxy         *stoppingProxy
	app           *sitetest.App
	deaf          net.Listener
	before, after *manned
	senders       sync.WaitGroup
	answer, dead  chan bool // closed when the app may answer, and when Caddy has died
	version       int
	warmUps       int // callbacks that are not counted

	// When Caddy has died:
	arrivals map[string][]sitetest.Arrival
	told     map[string]bool
	stopped  string
	claimed  map[string]bool // and not settled: what is under way for the store

	held map[string]bool
}

// run brings one point in each of its variants about, all at the same time.
func (p *spoolPoint) run(t *testing.T, whenDead func(c *spoolCrash)) (crashes []*spoolCrash) {
	t.Helper()
	for _, store := range []string{"redis", "embedded"} {
		for _, doubt := range []string{"hold", "retry"} {
			if store == "embedded" && p.onlyRedis {
				continue
			}
			crashes = append(crashes, newSpoolCrash(t, p, store, doubt))
		}
	}
	for _, c := range crashes {
		c.start = time.Now()
		if p.begin != nil {
			p.begin(c)
		} else {
			c.post(c.refs())
		}
	}
	for _, c := range crashes {
		p.reach(c)
	}
	for _, c := range crashes {
		c.die()
	}
	for _, c := range crashes {
		c.after = startManned(t, c.dir, c.block(c.redisURL(), c.app.Addr()))
		whenDead(c)
	}
	return crashes
}

func newSpoolCrash(t *testing.T, p *spoolPoint, store, doubt string) *spoolCrash {
	t.Helper()
	c := &spoolCrash{
		t: t, name: store + ", " + doubt + ", " + p.name, point: p, store: store, doubt: doubt, tally: sitetest.NewTally(),
		dir: sitetest.MemoryDir(t), answer: make(chan bool), dead: make(chan bool), claimed: make(map[string]bool), held: make(map[string]bool),
	}
	c.app = sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Idempotency-Key"), "warm-up") {
			c.tally.Counting(c.works)(w, r)
		}
	})
	t.Cleanup(sync.OnceFunc(func() {
		select {
		case <-c.dead:
		default:
			close(c.dead)
		}
	}))
	if store == "redis" {
		c.redis = redistest.Start(t)
	}
	redis, app := c.redisURL(), c.app.Addr()
	if p.stop != "" {
		c.proxy = startStoppingProxy(t, c.redis.Addr(), p.stopReply)
		redis = "redis://" + c.proxy.Addr().String()
	}
	if p.deaf {
		var err error
		if c.deaf, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.deaf.Close() })
		app = c.deaf.Addr().String()
	}
	c.before = startManned(t, c.dir, c.block(redis, app), "grace_period 20s")
	if p.deaf {
		return c
	}
	c.warmUps = 3 // so that Redis knows the scripts, and four are delivered again at once
	for i := range c.warmUps {
		if got := post(t, c.before.URL, fmt.Sprint("warm-up-", i)); got.Status != http.StatusOK {
			t.Fatalf("%s: status %d, want 200", c.name, got.Status)
		}
	}
	return c
}

func (c *spoolCrash) redisURL() string {
	if c.redis == nil {
		return ""
	}
	return c.redis.URL()
}

func (c *spoolCrash) block(redis, app string) string {
	options := []string{
		"on_doubt " + c.doubt, "upstream_timeout " + spoolCrashTimeout.String(), "spool {\nanswer_within 100ms\nbackoff 200ms 2s\n}",
	}
	if redis != "" {
		options = append(options, "redis "+redis+" {\ntimeout 5s\n}")
	}
	c.version++
	return fmt.Sprintf("handle /version {\nrespond %d\n}\nhandle {\n%sreverse_proxy %s\n}", c.version, sitetest.Block(options...), app)
}

// works is the merchant's app. To a Caddy that has died meanwhile it answers nothing.
func (c *spoolCrash) works(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Idempotency-Key")
	select {
	case <-c.dead: // it is the next Caddy that asks
		return
	default:
	}
	switch {
	case c.point.refuses && r.Header.Get("Iak-Attempt") == "1" && !strings.Contains(key, "works"):
		if c.point.later {
			w.Header().Set("Retry-After", "2")
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	case c.point.appWaits:
		select {
		case <-c.answer:
			w.Header().Set("Content-Length", "2")
			_, _ = io.WriteString(w, "ok")
			_ = http.NewResponseController(w).Flush()
		case <-c.dead:
			panic(http.ErrAbortHandler) // it never answers
		}
	}
}

func (c *spoolCrash) refs() (all []string) {
	for i := range spoolCrashCallbacks {
		all = append(all, fmt.Sprint("order-", i))
	}
	return all
}

// post sends callbacks at once. What Caddy refuses for now is sent again, until it is dead.
func (c *spoolCrash) post(refs []string) {
	for _, ref := range refs {
		c.senders.Go(func() {
			for {
				switch c.tally.Send(c.before.URL, ref, "1") {
				case http.StatusServiceUnavailable, http.StatusConflict: // a busy machine
					time.Sleep(crashPause)
				default:
					return
				}
			}
		})
	}
}

// comesTo waits until so many deliveries are as is said, and IAK has been told 200 for so
// many callbacks.
func (c *spoolCrash) comesTo(what string, deliveries, told int, is func(sitetest.Arrival) bool) {
	c.t.Helper()
	sitetest.Eventually(c.t, c.name+": "+what, func() bool {
		c.tally.Mu.Lock()
		defer c.tally.Mu.Unlock()
		n := 0
		for _, arrivals := range c.tally.Delivered {
			for _, a := range arrivals {
				if is(a) {
					n++
				}
			}
		}
		return n >= deliveries && len(c.tally.Told) >= told
	})
}

func first(a sitetest.Arrival) bool    { return a.Attempt == 1 }
func second(a sitetest.Arrival) bool   { return a.Attempt == 2 }
func accepted(a sitetest.Arrival) bool { return a.Status == http.StatusOK }
func refused(a sitetest.Arrival) bool  { return a.Status == http.StatusServiceUnavailable }

// unread brings half of the callbacks to Caddy without the ends of their bodies, and
// the other half when it cannot read any more.
func (c *spoolCrash) unread() {
	for i, ref := range c.refs() {
		if i == spoolCrashCallbacks/2 {
			c.freeze()
		}
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.before.URL, "http://"))
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { conn.Close() })
		request := sitetest.Head("Content-Type: application/json", fmt.Sprint("Content-Length: ", len(sitetest.Order(ref, "1")))) + sitetest.Order(ref, "1")
		if i < spoolCrashCallbacks/2 {
			request = request[:len(request)-100]
		}
		if _, err := io.WriteString(conn, request); err != nil {
			c.t.Fatal(err)
		}
		c.tally.Mu.Lock()
		c.tally.Sent++
		c.tally.All["test:"+ref+":1"] = true
		c.tally.Mu.Unlock()
	}
}

// freeze stops Caddy, as if it was never scheduled again.
func (c *spoolCrash) freeze() { (&crash{t: c.t, before: c.before.Process}).freeze() }

func (c *spoolCrash) underWay() int {
	if c.point.again {
		return 4 // concurrency
	}
	return spoolCrashCallbacks
}

// atWork waits until the app works, on first deliveries or on redeliveries, and IAK was
// told 200 for all.
func (c *spoolCrash) atWork() {
	c.t.Helper()
	if c.point.again {
		c.comesTo("the app works on redeliveries", c.underWay(), spoolCrashCallbacks, second)
		return
	}
	c.comesTo("the app works", c.underWay(), spoolCrashCallbacks, first)
}

// frozenThenAnswered lets the app answer when Caddy can no longer read it.
func (c *spoolCrash) frozenThenAnswered() {
	c.t.Helper()
	c.atWork()
	c.freeze()
	close(c.answer)
	c.comesTo("the app has answered", c.underWay(), spoolCrashCallbacks, accepted)
}

// untilStopped leaves some callbacks where the proxy stops their calls, and the others
// behind them.
func (c *spoolCrash) untilStopped() {
	c.t.Helper()
	if c.point.stop == "settle" {
		c.atWork()
		c.proxy.armed.Store(true)
		close(c.answer)
		c.comesTo("the app has answered", c.underWay(), spoolCrashCallbacks, accepted)
	}
	sitetest.Eventually(c.t, c.name+": the proxy stops a call", func() bool { return c.proxy.stoppedRequests() != "" })
}

// reloads leaves Caddy in the middle of a reload, the second: the app works for both
// configurations before it, and others wait.
func (c *spoolCrash) reloads() {
	c.t.Helper()
	works, kept := []string{"works-0", "works-1", "works-2", "works-3"}, []string{"kept-0", "kept-1", "kept-2"}
	c.post(works)
	c.post(kept)
	c.comesTo("the app works", len(works)+len(kept), len(works)+len(kept), first)
	c.comesTo("the app refuses", len(kept), 0, refused)
	block := func() string { return c.block(c.redisURL(), c.app.Addr()) }
	if err := c.before.reload(block()); err != nil {
		c.t.Fatal(err)
	}
	sitetest.Eventually(c.t, c.name+": the new configuration serves", func() bool {
		answer, err := sitetest.Client.Get(c.before.URL + "/version")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		b, _ := io.ReadAll(answer.Body)
		return string(b) == fmt.Sprint(c.version)
	})
	c.post([]string{"works-new-0", "works-new-1", "works-new-2"})
	c.comesTo("the app works for both configurations", spoolCrashCallbacks, spoolCrashCallbacks, first)
	loads := strings.Count(c.before.Log(), `"uri":"/load"`)
	last := block()
	c.senders.Go(func() { _ = c.before.reload(last) })
	sitetest.Eventually(c.t, c.name+": the next reload has begun", func() bool { return strings.Count(c.before.Log(), `"uri":"/load"`) > loads })
}

// die kills Caddy, and notes what is known then.
func (c *spoolCrash) die() {
	c.before.kill()
	if c.deaf != nil {
		c.deaf.Close()
	}
	c.tally.Mu.Lock()
	c.arrivals, c.told = make(map[string][]sitetest.Arrival), make(map[string]bool)
	for key, arrivals := range c.tally.Delivered {
		c.arrivals[key] = slices.Clone(arrivals)
	}
	c.tally.Mu.Unlock()
	close(c.dead)
	c.senders.Wait()
	c.tally.Mu.Lock()
	defer c.tally.Mu.Unlock()
	for key := range c.tally.Told {
		c.told[key] = true
	}
	if c.proxy != nil {
		c.stopped = c.proxy.stoppedRequests()
	}
	for key := range c.tally.All {
		arrivals := c.arrivals[key]
		working := len(arrivals) > 0 && arrivals[len(arrivals)-1].Status < 300
		ref := strings.Split(key, ":")[1]
		isStopped := strings.Contains(c.stopped, "iak:test:"+ref+"\r\n")
		switch {
		case c.point.stop == "claim":
			c.claimed[key] = isStopped
		case c.point.deaf:
			c.claimed[key] = true
		case c.point.settles, c.point.stop == "settle" && c.point.stopReply && isStopped:
		default:
			c.claimed[key] = working
		}
	}
}

// recover lets IAK send again what it was not told 200 for, and an operator settle what
// is held, until all is accepted; and then all once more.
func (c *spoolCrash) recover() {
	for key := range c.tally.All {
		if ref := strings.Split(key, ":")[1]; !c.told[key] {
			if got := c.tally.Deliver(c.after.URL, ref, "1", 20*time.Second); got != http.StatusOK {
				c.t.Errorf("%s: %s is answered %d by %s", c.name, key, got, c.after.URL)
				return
			}
		}
	}
	c.tally.Mu.Lock()
	all := len(c.tally.All) + c.warmUps
	c.tally.Mu.Unlock()
	if !until(spoolCrashLease+20*time.Second, 200*time.Millisecond, func() bool {
		for _, ref := range c.after.settleHeld(c.tally) {
			c.held["test:"+ref+":1"] = true
		}
		states := c.after.states()
		return len(states) == 1 && states["accepted"] == all
	}) {
		c.t.Errorf("%s: the records are %v, want %d accepted", c.name, c.after.states(), all)
		return
	}
	for key := range c.tally.All {
		if got := c.tally.Send(c.after.URL, strings.Split(key, ":")[1], "1"); got != http.StatusOK {
			c.t.Errorf("%s: a repeat of %s is answered %d", c.name, key, got)
		}
	}
}

// check compares what became of the callbacks with what is promised.
func (c *spoolCrash) check(t *testing.T) {
	n := c.tally.Count(t)
	twice, claimed, acted := 0, 0, 0
	for key := range c.tally.All {
		before := c.arrivals[key]
		had := slices.ContainsFunc(before, accepted)
		want := 1 // delivery by the next Caddy
		switch {
		case had && c.claimed[key] && c.doubt == "retry":
			acted++
		case had:
			want = 0
		}
		if c.claimed[key] {
			claimed++
		}
		if held := c.claimed[key] && c.doubt == "hold"; c.held[key] != held {
			t.Errorf("%s is held: %t, want %t", key, c.held[key], held)
		}
		after := c.tally.Delivered[key][len(before):]
		if len(after) != want {
			t.Errorf("%s reached the app %d times after the crash, want %d; before it %+v", key, len(after), want, before)
			continue
		}
		if want == 0 {
			continue
		}
		attempt := len(before) + 1
		if len(before) == 0 && c.claimed[key] { // the app knows nothing of the first
			attempt++
		}
		if after[0].Attempt != attempt {
			t.Errorf("%s reached the app as attempt %d, want %d", key, after[0].Attempt, attempt)
		}
		if waited := after[0].At.Sub(c.start); c.claimed[key] && waited < spoolCrashLease-10*time.Millisecond {
			t.Errorf("%s was taken over %s after the start, within the lease of %s", key, waited, spoolCrashLease)
		}
	}
	if n.Lost != 0 {
		t.Errorf("%d callbacks are lost", n.Lost)
	}
	if twice = c.tally.Twice(); twice != acted {
		t.Errorf("%d deliveries of what the app had accepted, want %d", twice, acted)
	}
	if strings.Contains(c.after.Log(), "is at fault") {
		t.Error("the next Caddy has panicked")
	}
	t.Logf("when Caddy died IAK had its 200 for %d, and %d were under way; %d were held; %d reached an app that had accepted them", len(c.told), claimed, len(c.held), twice)
}

// A Caddy with a spool that is killed at any point of a callback's way loses none that
// IAK was told 200 for, without a repeat by IAK. With hold what was under way is held,
// and delivered when an operator has seen that the app has not acted; with retry it is
// delivered when the lease is over, and so reaches an app once more that had answered.
func TestSpoolKilledAtEachPoint(t *testing.T) {
	killedAtEachPoint(t, []*spoolPoint{
		{name: "claimed, its answer on the way", onlyRedis: true, stop: "claim", stopReply: true,
			begin: func(c *spoolCrash) { c.proxy.armed.Store(true); c.post(c.refs()) }, reach: (*spoolCrash).untilStopped},
		{name: "claimed, before the app got it", deaf: true, reach: func(c *spoolCrash) {
			sitetest.Eventually(c.t, c.name+": all are claimed", func() bool { return c.before.states()["in_flight"] == spoolCrashCallbacks })
		}},
		{name: "while the app works", appWaits: true, reach: (*spoolCrash).atWork},
		{name: "after the app's 2xx, before the settle", appWaits: true, reach: (*spoolCrash).frozenThenAnswered},
		{name: "with the settle on its way", onlyRedis: true, appWaits: true, stop: "settle", reach: (*spoolCrash).untilStopped},
		{name: "settled, before Caddy knows", onlyRedis: true, appWaits: true, stop: "settle", stopReply: true, reach: (*spoolCrash).untilStopped},
		{name: "before the claim", begin: func(*spoolCrash) {}, reach: (*spoolCrash).unread},
		{name: "after the settle", settles: true, reach: func(c *spoolCrash) {
			c.comesTo("all are accepted", spoolCrashCallbacks, spoolCrashCallbacks, accepted)
		}},
	})
}

// The same for what is kept and its redeliveries, and in the middle of a reload.
func TestSpoolKilledRedelivering(t *testing.T) {
	killedAtEachPoint(t, []*spoolPoint{
		{name: "while a redelivery works", again: true, refuses: true, appWaits: true, reach: (*spoolCrash).atWork},
		{name: "after a redelivery's 2xx, before the settle", again: true, refuses: true, appWaits: true, reach: (*spoolCrash).frozenThenAnswered},
		{name: "with a redelivery's settle on its way", onlyRedis: true, again: true, refuses: true, appWaits: true, stop: "settle", reach: (*spoolCrash).untilStopped},
		{name: "a redelivery settled, before Caddy knows", onlyRedis: true, again: true, refuses: true, appWaits: true, stop: "settle", stopReply: true,
			reach: (*spoolCrash).untilStopped},
		{name: "during a reload", appWaits: true, refuses: true, later: true, begin: func(*spoolCrash) {}, reach: (*spoolCrash).reloads},
		{name: "kept and waiting", refuses: true, later: true, reach: func(c *spoolCrash) {
			c.comesTo("all are refused", spoolCrashCallbacks, spoolCrashCallbacks, refused)
			sitetest.Eventually(c.t, c.name+": all are kept", func() bool { return c.before.states()["spooled"] == spoolCrashCallbacks })
		}},
	})
}

func killedAtEachPoint(t *testing.T, points []*spoolPoint) {
	var all []*spoolCrash
	var recovering sync.WaitGroup
	t.Cleanup(recovering.Wait) // when one fails
	for _, p := range points {
		all = append(all, p.run(t, func(c *spoolCrash) { recovering.Go(c.recover) })...)
	}
	recovering.Wait()
	for _, c := range all {
		t.Run(c.name, c.check)
	}
}

// Caddy is killed again and again while it hands in what it has kept in a file as long
// as Redis was away: none is lost, and none is delivered twice but what was with the app
// just then.
func TestSpoolKilledHandingIn(t *testing.T) {
	for _, doubt := range []string{"hold", "retry"} {
		t.Run(doubt, func(t *testing.T) {
			t.Parallel()
			const n, kills = 400, 5
			redis := redistest.Start(t, "--appendonly", "yes")
			tally := sitetest.NewTally()
			app := sitetest.StartApp(t, tally.Counting(nil))
			dir := sitetest.MemoryDir(t)
			block := sitetest.Block("redis "+redis.URL()+" {\ntimeout 1s\n}", "on_store_error keep", "on_doubt "+doubt,
				"upstream_timeout 1s", "spool {\nbackoff 100ms 1s\n}") + "reverse_proxy " + app.Addr()
			caddy := startManned(t, dir, block)
			redis.Kill()
			var senders sync.WaitGroup
			for sender := range 8 {
				senders.Go(func() {
					for i := sender; i < n; i += 8 {
						if got := tally.Deliver(caddy.URL, fmt.Sprint("order-", i), "1", 20*time.Second); got != http.StatusOK {
							t.Errorf("while Redis is away: status %d, want 200", got)
						}
					}
				})
			}
			senders.Wait()
			redis.Start()
			var handed []int
			for range kills {
				lines := func() int { return strings.Count(caddy.Log(), "is handed in") }
				sitetest.Eventually(t, "some are handed in", func() bool { return lines() >= n/kills/4 })
				caddy.kill()
				handed = append(handed, lines())
				caddy = startManned(t, dir, block)
			}
			held := 0
			if !until(30*time.Second, 100*time.Millisecond, func() bool {
				held += len(caddy.settleHeld(tally))
				states := caddy.states()
				return len(states) == 1 && states["accepted"] == n
			}) {
				t.Errorf("the records are %v, want %d accepted", caddy.states(), n)
			}
			for i := range n {
				if got := tally.Send(caddy.URL, fmt.Sprint("order-", i), "1"); got != http.StatusOK {
					t.Errorf("a repeat of order-%d is answered %d", i, got)
				}
			}
			count, twice := tally.Count(t), tally.Twice()
			most := kills * 4 // deliveries at once
			if doubt == "hold" {
				most = 0
			}
			if count.Lost != 0 || twice > most || count.Reached > n+kills*4 {
				t.Errorf("%d lost, %d twice, %d reached the app; want none, %d at most, and %d and little more", count.Lost, twice, count.Reached, most, n)
			}
			t.Logf("killed after so many were handed in: %v; %d were held; %d reached an app that had accepted them", handed, held, twice)
		})
	}
}
