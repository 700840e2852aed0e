package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

const (
	crashCallbacks = 10 // in Caddy's hands when it dies

	// crashTimeout is the upstream_timeout: long, since the callbacks wait for
	// one another in the app, and a busy machine must not let them run into it.
	crashTimeout = 5 * time.Second
	crashLease   = crashTimeout + 5*time.Second // leaseMargin, as it is built

	crashPause = 100 * time.Millisecond // between IAK's repeats
)

// crashPoint is a point on a callback's way at which Caddy dies.
type crashPoint struct {
	name   string
	stores []string
	// Iak-Attempt of each delivery of a callback that the app gets, before the
	// crash and after it.
	attempts []int
	told     bool // IAK got its answers before the crash
	// What the proxy in front of Redis stops, if it stops anything. Calls that
	// come meanwhile wait in Caddy, since they share the next trip: waiting is
	// what attempts is for the others.
	stop      string // "claim" or "settle"
	stopReply bool   // when Redis has carried it out
	waiting   []int
	appWaits  bool // until it is told to answer, or Caddy is dead
	// Brings the callbacks to the point, and leaves Caddy there to be killed.
	reach func(c *crash)
}

// crash is a Caddy that dies, and what becomes of the callbacks that it had in
// hand. IAK sends them again to a new Caddy on the same store.
type crash struct {
	t     *testing.T
	name  string
	point crashPoint
	tally *sitetest.Tally
	start time.Time

	before, after *sitetest.Process
	proxy         *stoppingProxy
	senders       sync.WaitGroup

	arrived, answered chan bool // one for each callback
	answer, dead      chan bool // closed when the app may answer, and when Caddy has died

	answers map[int]int // what IAK was told after the crash, by status
}

// A Caddy that is killed with callbacks in hand, at any point of their way,
// loses none: each that IAK sends again to a new Caddy is accepted. It reaches
// the app once if the app had not got it, or if its acceptance was recorded;
// and once more, with the same Idempotency-Key and the next Iak-Attempt and not
// before the lease is over, if Caddy died in between.
func TestKilledAtEachPoint(t *testing.T) {
	both, onlyRedis := []string{"embedded", "redis"}, []string{"redis"}
	points := []crashPoint{
		// Those with a lease to wait for come first, so that the leases run out
		// while the others are still dying.
		{name: "claimed, not yet forwarded", stores: onlyRedis, attempts: []int{2}, waiting: []int{1},
			stop: "claim", stopReply: true, reach: (*crash).untilStopped},
		{name: "while the app works", stores: both, attempts: []int{1, 2},
			appWaits: true, reach: (*crash).whileAppWorks},
		{name: "after the app's 2xx, before the settle", stores: both, attempts: []int{1, 2},
			appWaits: true, reach: (*crash).frozenThenAnswered},
		{name: "with the settle on its way", stores: onlyRedis, attempts: []int{1, 2}, waiting: []int{1, 2}, appWaits: true,
			stop: "settle", reach: (*crash).untilStopped},
		{name: "before the claim", stores: both, attempts: []int{1},
			reach: (*crash).unread},
		{name: "settled, before IAK's answer", stores: onlyRedis, attempts: []int{1}, waiting: []int{1, 2}, appWaits: true,
			stop: "settle", stopReply: true, reach: (*crash).untilStopped},
		{name: "after IAK's answer", stores: both, attempts: []int{1},
			told: true, reach: (*crash).untilAnswered},
	}
	server := redistest.Start(t)
	// So that Redis knows the scripts, and carries out each call at once.
	warm := sitetest.StartProcess(t, sitetest.MemoryDir(t), sitetest.Block("redis "+server.URL()+" {\ntimeout 5s\n}")+"respond 200")
	if got := sitetest.NewTally().Send(warm.URL, "warm", "1"); got != http.StatusOK {
		t.Fatalf("status %d, want 200", got)
	}
	var crashes []*crash
	var again sync.WaitGroup
	t.Cleanup(again.Wait) // when a crash fails
	for _, point := range points {
		for _, store := range point.stores {
			c := newCrash(t, point, store, server)
			crashes = append(crashes, c)
			again.Go(c.sendAgain) // while the others die
		}
	}
	again.Wait()
	for _, c := range crashes {
		t.Run(c.name, c.check)
	}
}

// newCrash starts a Caddy, brings callbacks to the point, kills it, and starts
// the next.
func newCrash(t *testing.T, point crashPoint, store string, server *redistest.Server) *crash {
	t.Helper()
	c := &crash{
		t: t, name: store + ", " + point.name, point: point, tally: sitetest.NewTally(),
		arrived: make(chan bool, crashCallbacks), answered: make(chan bool, crashCallbacks),
		answer: make(chan bool), dead: make(chan bool),
		answers: make(map[int]int),
	}
	app := sitetest.StartApp(t, c.tally.Counting(c.app))
	if !point.appWaits {
		close(c.answer)
	}
	site := func(redisAddr string) string {
		options := []string{"upstream_timeout " + crashTimeout.String()}
		if store == "redis" {
			options = append(options, "redis redis://"+redisAddr+" {\ntimeout 5s\n}")
		}
		return sitetest.Block(options...) + "reverse_proxy " + app.Addr()
	}
	dir := sitetest.MemoryDir(t)
	addr := server.Addr()
	if point.stop != "" {
		c.proxy = startStoppingProxy(t, addr, point.stopReply)
		addr = c.proxy.Addr().String()
	}
	c.before = sitetest.StartProcess(t, dir, site(addr))
	kill := sync.OnceFunc(func() {
		_ = c.before.Cmd.Process.Kill()
		_ = c.before.Cmd.Wait()
		close(c.dead)
	})
	t.Cleanup(kill) // whatever fails: the app must not wait for ever
	c.start = time.Now()
	point.reach(c)
	kill()
	c.senders.Wait()
	if told := len(c.tally.Told); (told > 0) != point.told {
		t.Fatalf("%s: IAK had the answers of %d callbacks", c.name, told)
	}
	c.after = sitetest.StartProcess(t, dir, site(server.Addr()))
	return c
}

// app is the merchant's: it answers 200 when it may, and nothing to a Caddy that
// has died meanwhile.
func (c *crash) app(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-c.dead: // it is the next Caddy that asks
		return
	default:
	}
	c.arrived <- true
	select {
	case <-c.answer:
		w.Header().Set("Content-Length", "2")
		_, _ = io.WriteString(w, "ok")
		if err := http.NewResponseController(w).Flush(); err != nil {
			c.t.Errorf("%s: the app's answer: %v", c.name, err)
		}
		c.answered <- true
	case <-c.dead:
		panic(http.ErrAbortHandler) // it never answers
	}
}

func (c *crash) refID(i int) string {
	return strings.NewReplacer(",", "", "'", "", " ", "-").Replace(c.name) + "-" + fmt.Sprint(i)
}

// post sends all callbacks at once. What is refused for now is sent again, until
// Caddy is dead.
func (c *crash) post() {
	for i := range crashCallbacks {
		c.senders.Go(func() {
			for {
				switch c.tally.Send(c.before.URL, c.refID(i), "1") {
				case http.StatusServiceUnavailable, http.StatusConflict: // a busy machine
					time.Sleep(crashPause)
				default:
					return
				}
			}
		})
	}
}

// all waits for an event of each callback.
func (c *crash) all(what string, events <-chan bool) {
	c.t.Helper()
	timeout := time.After(20 * time.Second)
	for n := range crashCallbacks {
		select {
		case <-events:
		case <-timeout:
			c.t.Fatalf("%s: %s: %d callbacks of %d", c.name, what, n, crashCallbacks)
		}
	}
}

// freeze stops Caddy, as if it was never scheduled again.
func (c *crash) freeze() {
	c.t.Helper()
	if err := c.before.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		c.t.Fatal(err)
	}
	threads := fmt.Sprintf("/proc/%d/task/*/stat", c.before.Cmd.Process.Pid)
	sitetest.Eventually(c.t, "every thread of Caddy stands still", func() bool {
		files, err := filepath.Glob(threads)
		for _, file := range files {
			var stat []byte
			if stat, err = os.ReadFile(file); err != nil {
				break
			}
			// The state is behind the name, which stands in parentheses.
			if !bytes.HasPrefix(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" T ")) {
				return false
			}
		}
		return err == nil && len(files) > 0
	})
}

// unread brings half of the callbacks to Caddy without the ends of their bodies,
// and the other half when it cannot read any more.
func (c *crash) unread() {
	for i := range crashCallbacks {
		if i == crashCallbacks/2 {
			c.freeze()
		}
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.before.URL, "http://"))
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { conn.Close() })
		body := sitetest.Order(c.refID(i), "1")
		request := fmt.Sprintf("POST / HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
			conn.RemoteAddr(), len(body), body)
		if i < crashCallbacks/2 {
			request = request[:len(request)-len(body)/2]
		}
		if _, err := io.WriteString(conn, request); err != nil {
			c.t.Fatal(err)
		}
		c.tally.Mu.Lock()
		c.tally.Sent++
		c.tally.Mu.Unlock()
	}
}

// untilStopped leaves some callbacks where the proxy stops their calls, and the
// others behind them. The calls for records are claims until the app works, and
// settlements from then on.
func (c *crash) untilStopped() {
	if c.point.stop == "claim" {
		c.proxy.armed.Store(true)
	}
	c.post()
	if c.point.stop == "settle" { // no claim is to wait behind what is stopped
		c.all("the app works", c.arrived)
		c.proxy.armed.Store(true)
		close(c.answer)
		c.all("the app has answered", c.answered)
	}
	sitetest.Eventually(c.t, "the proxy stops a call", func() bool { return c.proxy.stoppedRequests() != "" })
}

// attempts is what a callback is to reach the app as.
func (c *crash) attempts(refID string) []int {
	if c.proxy != nil && !strings.Contains(c.proxy.stoppedRequests(), "iak:test:"+refID+"\r\n") {
		return c.point.waiting
	}
	return c.point.attempts
}

func (c *crash) whileAppWorks() {
	c.post()
	c.all("the app works", c.arrived)
}

// frozenThenAnswered lets the app answer when Caddy can no longer read it.
func (c *crash) frozenThenAnswered() {
	c.post()
	c.all("the app works", c.arrived)
	c.freeze()
	close(c.answer)
	c.all("the app has answered", c.answered)
}

func (c *crash) untilAnswered() {
	c.post()
	c.senders.Wait()
	if told := len(c.tally.Told); told != crashCallbacks {
		c.t.Fatalf("%s: %d callbacks of %d were accepted", c.name, told, crashCallbacks)
	}
}

// sendAgain sends all callbacks to the new Caddy until each is accepted, and
// then once more until it is answered so again.
func (c *crash) sendAgain() {
	deadline := time.Now().Add(crashLease + 30*time.Second)
	for range 2 {
		pending := make([]string, crashCallbacks)
		for i := range pending {
			pending[i] = c.refID(i)
		}
		for len(pending) > 0 && time.Now().Before(deadline) && c.t.Context().Err() == nil {
			pending = slices.DeleteFunc(pending, func(refID string) bool {
				status := c.tally.Send(c.after.URL, refID, "1")
				c.answers[status]++
				return status == http.StatusOK
			})
			time.Sleep(crashPause)
		}
		if c.t.Context().Err() != nil { // another crash has failed
			return
		}
		if len(pending) > 0 {
			c.t.Errorf("%s: not accepted by the new Caddy: %v", c.name, pending)
			return
		}
	}
}

// check compares what became of the callbacks with what is promised.
func (c *crash) check(t *testing.T) {
	n := c.tally.Count(t)
	want := sitetest.Counts{
		Callbacks: crashCallbacks, Sent: n.Sent,
	}
	for i := range crashCallbacks {
		times := len(c.attempts(c.refID(i)))
		want.Reached += times
		want.Extra += times - 1
	}
	if n != want {
		t.Errorf("counted %s; want %s", n, want)
	}
	for key, arrivals := range c.tally.Delivered {
		var attempts []int
		for _, a := range arrivals {
			attempts = append(attempts, a.Attempt)
			if sinceStart := a.At.Sub(c.start); a.Attempt > 1 && sinceStart < crashLease-10*time.Millisecond { // the record counts milliseconds
				t.Errorf("%s was taken over after %s, within the lease of %s", key, sinceStart, crashLease)
			}
		}
		if want := c.attempts(strings.Split(key, ":")[1]); !slices.Equal(attempts, want) {
			t.Errorf("%s reached the app as attempts %v, want %v", key, attempts, want)
		}
	}
	t.Logf("answers after the crash, by status: %v", c.answers)
	for status := range c.answers {
		switch status {
		case http.StatusOK, http.StatusConflict, http.StatusServiceUnavailable:
		default:
			t.Errorf("status %d from the new Caddy", status)
		}
	}
}

// stoppingProxy stands between Caddy and Redis. Once armed, it stops the calls
// for records: before they reach Redis, or when they have been carried out and
// before their replies reach Caddy. What is stopped goes no further.
type stoppingProxy struct {
	net.Listener
	target string
	reply  bool
	armed  atomic.Bool

	mu      sync.Mutex
	stopped strings.Builder // the requests
}

func startStoppingProxy(t testing.TB, target string, reply bool) *stoppingProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &stoppingProxy{Listener: l, target: target, reply: reply}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn)
		}
	}()
	return p
}

func (p *stoppingProxy) stop(request string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped.WriteString(request)
}

// stoppedRequests are the requests that were stopped.
func (p *stoppingProxy) stoppedRequests() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped.String()
}

// serve keeps the connection to Caddy open as long as Caddy does, or Caddy would
// call again.
func (p *stoppingProxy) serve(conn net.Conn) {
	defer conn.Close()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	var stop atomic.Bool // the replies from now on
	requests := make(chan string, 1)
	go func() {
		reply := make([]byte, 64<<10)
		for {
			n, err := server.Read(reply)
			if err != nil {
				return
			}
			if stop.Load() {
				p.stop(<-requests)
				continue
			}
			if _, err := conn.Write(reply[:n]); err != nil {
				return
			}
		}
	}()
	request := make([]byte, 64<<10)
	for {
		n, err := conn.Read(request)
		if err != nil {
			return
		}
		if p.armed.Load() && bytes.Contains(request[:n], []byte("iak:test:")) {
			if !p.reply {
				p.stop(string(request[:n]))
				continue
			}
			requests <- string(request[:n])
			stop.Store(true)
		}
		if _, err := server.Write(request[:n]); err != nil {
			return
		}
	}
}
