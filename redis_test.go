package iakcallback

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// claimOf is a claim of one delivery, with everything that the tests below do
// not care about.
func claimOf(key, who string, o outcome, lease time.Duration) *claimRequest {
	return &claimRequest{key: key, outcome: o, owner: testOwner(who), lease: lease, retention: 48 * time.Hour}
}

// mustClaim makes a claim that has to be forwarded.
func mustClaim(t testing.TB, s recordStore, c *claimRequest) decision {
	t.Helper()
	d, err := s.claim(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if d.verdict != verdictForwarded {
		t.Fatalf("the claim: %+v, want it forwarded", d)
	}
	return d
}

// settlementOf ends a claim by verdict; an accepted one with 200.
func settlementOf(c *claimRequest, d decision, v settleVerdict) *settlement {
	s := &settlement{key: c.key, owner: c.owner, leaseEnd: d.leaseEnd, retention: c.retention, verdict: v, outcome: c.outcome}
	if v == settleAccepted {
		s.outcome.code = 200
	}
	return s
}

func mustSettle(t testing.TB, s recordStore, st *settlement) {
	t.Helper()
	if err := s.settle(context.Background(), st); err != nil {
		t.Fatal(err)
	}
}

// wantVerdict makes a claim by a new owner and compares what it comes to.
func wantVerdict(t testing.TB, s recordStore, c *claimRequest, want verdict) decision {
	t.Helper()
	d, err := s.claim(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if d.verdict != want {
		t.Errorf("the claim: %+v, want %s", d, want)
	}
	return d
}

// An accepted record takes at most 112 bytes of Redis's memory, with a key of
// 24 bytes.
func TestRedisMemory(t *testing.T) {
	server := startRedis(t)
	s := newTestRedisStore(t, server.url())
	key := recordKey("iak:", "shop", "order0123456789")
	if len(key) != 24 {
		t.Fatalf("the key has %d bytes", len(key))
	}
	c := claimOf(key, "A", late, alive)
	mustSettle(t, s, settlementOf(c, mustClaim(t, s, c), settleAccepted))
	used, err := redisClient(t, server.addr()).MemoryUsage(context.Background(), key, 0).Result()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", used)
	if used > 112 {
		t.Errorf("an accepted record takes %d bytes, want at most 112", used)
	}
}

// commandCalls returns how often each command ran, but for those of this
// function.
func commandCalls(t testing.TB, c *redis.Client) map[string]int {
	t.Helper()
	info, err := c.Info(context.Background(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]int{}
	for _, m := range regexp.MustCompile(`cmdstat_(\S+):calls=(\d+)`).FindAllStringSubmatch(info, -1) {
		if m[1] != "info" && m[1] != "config|resetstat" {
			calls[m[1]], _ = strconv.Atoi(m[2])
		}
	}
	return calls
}

// A claim is one script call, and so is a settlement: nothing else goes over
// the wire.
func TestRedisOneCall(t *testing.T) {
	server := startRedis(t)
	s := newTestRedisStore(t, server.url())
	client := redisClient(t, server.addr())
	ctx := context.Background()
	warm := claimOf("iak:shop:warm", "A", success, alive) // connects, and loads the scripts
	mustSettle(t, s, settlementOf(warm, mustClaim(t, s, warm), settleAccepted))

	c := claimOf("iak:shop:one", "A", success, alive)
	var d decision
	for _, row := range []struct {
		name string
		run  func()
		want map[string]int
	}{
		{"claim", func() { d = mustClaim(t, s, c) }, map[string]int{"evalsha": 1, "time": 1, "get": 1, "set": 1}},
		{"settle", func() { mustSettle(t, s, settlementOf(c, d, settleAccepted)) }, map[string]int{"evalsha": 1, "time": 1, "get": 1, "set": 1}},
		{"duplicate", func() { wantVerdict(t, s, c, verdictDuplicate) }, map[string]int{"evalsha": 1, "time": 1, "get": 1}},
	} {
		if err := client.ConfigResetStat(ctx).Err(); err != nil {
			t.Fatal(err)
		}
		row.run()
		if got := commandCalls(t, client); !maps.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

// A Redis that has forgotten the scripts, by SCRIPT FLUSH or a restart, is told
// them again.
func TestRedisScriptsForgotten(t *testing.T) {
	server := startRedis(t, "--appendonly", "yes")
	s := newTestRedisStore(t, server.url())
	client := redisClient(t, server.addr())
	forget := map[string]func(){
		"flush": func() {
			if err := client.ScriptFlush(context.Background()).Err(); err != nil {
				t.Fatal(err)
			}
		},
		"restart": func() { server.kill(); server.start() },
	}
	for name, forget := range forget {
		t.Run(name, func(t *testing.T) {
			c := claimOf("iak:shop:"+name, "A", success, alive)
			forget()
			d := mustClaim(t, s, c)
			forget()
			mustSettle(t, s, settlementOf(c, d, settleAccepted))
			forget()
			wantVerdict(t, s, claimOf(c.key, "B", success, alive), verdictDuplicate)
		})
	}
}

// faultyProxy stands between a client and Redis. It can lose replies: the
// command has been carried out, and the connection breaks before its answer
// arrives. And it can hold a request back, so that it reaches Redis after its
// caller has given up.
type faultyProxy struct {
	net.Listener
	mu   sync.Mutex
	lose int // how many replies are still to be lost
	lost int
	hold chan struct{} // holds the next request back until it is closed
}

func startFaultyProxy(t testing.TB, target string) *faultyProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &faultyProxy{Listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn, target)
		}
	}()
	return p
}

func (p *faultyProxy) serve(conn net.Conn, target string) {
	defer conn.Close()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer server.Close()
		request := make([]byte, 64<<10)
		for {
			n, err := conn.Read(request)
			if err != nil {
				return
			}
			p.wait()
			if _, err := server.Write(request[:n]); err != nil {
				return
			}
		}
	}()
	reply := make([]byte, 64<<10)
	for {
		n, err := server.Read(reply)
		if err != nil || p.loses(reply[:n]) {
			return
		}
		if _, err := conn.Write(reply[:n]); err != nil {
			return
		}
	}
}

// holdNext holds the next request back, until release is called.
func (p *faultyProxy) holdNext() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hold := make(chan struct{})
	p.hold = hold
	return sync.OnceFunc(func() { close(hold) })
}

// holds tells whether a request is still to be held back.
func (p *faultyProxy) holds() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hold != nil
}

func (p *faultyProxy) wait() {
	p.mu.Lock()
	hold := p.hold
	p.hold = nil
	p.mu.Unlock()
	if hold != nil {
		<-hold
	}
}

// loses tells whether this reply is to be lost. The replies to what a client
// says on connecting (Redis 7.0 knows no CLIENT SETINFO), and that a script is
// not known, go through.
func (p *faultyProxy) loses(reply []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := string(reply)
	if p.lose == 0 || strings.Contains(text, "NOSCRIPT") || strings.Contains(text, "proto") || strings.Contains(text, "SETINFO") || strings.HasPrefix(text, "+OK") {
		return false
	}
	p.lose--
	p.lost++
	return true
}

// loseReplies makes the next n replies get lost.
func (p *faultyProxy) loseReplies(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose, p.lost = n, 0
}

func (p *faultyProxy) repliesLost() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// An operation that was carried out, but whose answer was lost, neither locks
// its own delivery out nor counts twice.
func TestRedisReplyLost(t *testing.T) {
	server := startRedis(t)
	proxy := startFaultyProxy(t, server.addr())
	s := newTestRedisStore(t, "redis://"+proxy.Addr().String())
	warm := claimOf("iak:shop:warm", "A", success, alive)
	mustSettle(t, s, settlementOf(warm, mustClaim(t, s, warm), settleAccepted))
	losing := func(t *testing.T, n int, run func()) {
		t.Helper()
		proxy.loseReplies(n)
		run()
		if got := proxy.repliesLost(); got != n {
			t.Fatalf("%d replies were lost, want %d: the test shows nothing", got, n)
		}
		proxy.loseReplies(0)
	}

	t.Run("claim", func(t *testing.T) {
		c := claimOf("iak:shop:claim", "A", success, alive)
		var d decision
		losing(t, 2, func() { d = mustClaim(t, s, c) })
		if d.attempt != 1 {
			t.Errorf("attempt %d, want 1", d.attempt)
		}
		wantVerdict(t, s, claimOf(c.key, "B", success, alive), verdictInFlight)
	})
	for verdict, want := range map[settleVerdict]decision{
		settleAccepted: {verdict: verdictDuplicate, code: 200, contradicts: -1},
		settleReleased: {verdict: verdictForwarded, attempt: 2, contradicts: -1},
		settleUnsent:   {verdict: verdictForwarded, attempt: 1, contradicts: -1},
	} {
		t.Run(string(verdict), func(t *testing.T) {
			c := claimOf("iak:shop:"+string(verdict), "A", success, alive)
			d := mustClaim(t, s, c)
			losing(t, 2, func() { mustSettle(t, s, settlementOf(c, d, verdict)) })
			got := wantVerdict(t, s, claimOf(c.key, "B", success, alive), want.verdict)
			got.leaseEnd = 0
			if got != want {
				t.Errorf("the next claim: %+v, want %+v", got, want)
			}
		})
	}
	t.Run("given back", func(t *testing.T) {
		c := claimOf("iak:shop:back", "A", success, alive)
		losing(t, 4, func() { // more than are tried again
			if d, err := s.claim(context.Background(), c); err == nil {
				t.Fatalf("the claim: %+v, want an error", d)
			}
		})
		mustSettle(t, s, settlementOf(c, decision{}, settleUnsent))
		if d := mustClaim(t, s, claimOf(c.key, "B", success, alive)); d.attempt != 1 {
			t.Errorf("attempt %d, want 1", d.attempt)
		}
	})
}

// A store that hangs answers every claim with an error within twice its
// timeout, however many come at once and whether or not it is connected.
func TestRedisHangs(t *testing.T) {
	const timeout = 500 * time.Millisecond
	for _, row := range []struct {
		name  string
		start func(t *testing.T) (server *redisServer, cfg redisConfig)
	}{
		{"single", func(t *testing.T) (*redisServer, redisConfig) {
			s := startRedis(t)
			return s, redisConfig{urls: []string{s.url()}}
		}},
		{"a pool of one", func(t *testing.T) (*redisServer, redisConfig) {
			s := startRedis(t)
			return s, redisConfig{urls: []string{s.url()}, poolSize: 1}
		}},
		{"cluster", func(t *testing.T) (*redisServer, redisConfig) {
			s := startCluster(t)
			return s, redisConfig{urls: []string{s.url()}, cluster: true}
		}},
		{"sentinel's master", func(t *testing.T) (*redisServer, redisConfig) {
			master, sentinel := startSentinel(t)
			return master, redisConfig{urls: []string{sentinel.url()}, masterName: "iak"}
		}},
		{"sentinel", func(t *testing.T) (*redisServer, redisConfig) {
			_, sentinel := startSentinel(t)
			return sentinel, redisConfig{urls: []string{sentinel.url()}, masterName: "iak"}
		}},
	} {
		for _, connected := range []bool{true, false} {
			if row.name == "sentinel" && connected {
				continue // only the way to the master needs it
			}
			t.Run(fmt.Sprintf("%s, connected %t", row.name, connected), func(t *testing.T) {
				server, cfg := row.start(t)
				cfg.timeout = timeout
				s, err := newRedisStore(cfg)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = s.Destruct() })
				if connected {
					eventually(t, "the store is connected", func() bool {
						_, err := s.claim(context.Background(), claimOf("iak:shop:warm", "A", success, alive))
						return err == nil
					})
				}
				server.signal(syscall.SIGSTOP)
				defer server.signal(syscall.SIGCONT)
				var wg sync.WaitGroup
				for i := range 50 {
					wg.Go(func() {
						start := time.Now()
						d, err := s.claim(context.Background(), claimOf(fmt.Sprint("iak:shop:", i), "A", success, alive))
						if took := time.Since(start); took > 2*timeout {
							t.Errorf("answered after %s, want at most %s", took, 2*timeout)
						}
						if err == nil {
							t.Errorf("a store that hangs decided %+v", d)
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// redisSite starts a site in front of app with a Redis store. options are
// further lines of the redis block.
func redisSite(t *testing.T, url string, app *app, options ...string) *site {
	t.Helper()
	return startSite(t, "iak_callback {\n"+testAccount+"\nredis "+url+" {\n"+strings.Join(options, "\n")+"\n}\n}\nreverse_proxy "+app.addr())
}

// waitDrained waits until the stores have nothing left to repeat.
func waitDrained(t *testing.T) {
	t.Helper()
	eventually(t, "the backlog is empty", func() bool { return backlogTasks() == 0 })
}

// backlogTasks counts what all open stores have still to repeat.
func backlogTasks() (n int) {
	stores.Range(func(_, value any) bool {
		b := &value.(*sharedStore).backlog
		b.mu.Lock()
		defer b.mu.Unlock()
		n += len(b.tasks)
		if b.working && len(b.tasks) == 0 {
			n++ // the one at work
		}
		return true
	})
	return n
}

func wantUnavailable(t *testing.T, got reply) {
	t.Helper()
	if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") != "5" {
		t.Errorf("status %d, Retry-After %q, want 503 and 5", got.status, got.header.Get("Retry-After"))
	}
}

// A callback that meets a frozen Redis is refused in time; the claim that Redis
// carries out when it thaws is given back, and the callback that IAK sends
// again is the first delivery.
func TestRedisFrozenSite(t *testing.T) {
	server := startRedis(t)
	app := startApp(t, nil)
	s := redisSite(t, server.url(), app)
	if got := s.post(order("warm", "1")); got.status != 200 {
		t.Fatalf("status %d, want 200", got.status)
	}
	client := redisClient(t, server.addr())
	sets := commandCalls(t, client)["set"]

	server.signal(syscall.SIGSTOP)
	start := time.Now()
	wantUnavailable(t, s.post(order("frozen", "1")))
	if took := time.Since(start); took > 2*defaultRedisTimeout {
		t.Errorf("answered after %s, want at most %s", took, 2*defaultRedisTimeout)
	}
	server.signal(syscall.SIGCONT)
	eventually(t, "Redis carries the claim out", func() bool { return commandCalls(t, client)["set"] > sets })

	eventually(t, "the callback is forwarded", func() bool {
		got := s.post(order("frozen", "1"))
		if got.status != 200 && got.status != 409 && got.status != 503 {
			t.Fatalf("status %d", got.status)
		}
		return got.status == 200
	})
	if n := len(app.received()); n != 2 {
		t.Errorf("the app received %d callbacks, want 2", n)
	}
	if got := app.last(t).header.Get("Iak-Attempt"); got != "1" {
		t.Errorf("Iak-Attempt %s, want 1", got)
	}
	waitDrained(t)
}

// A crowd of callbacks that meets a frozen Redis is answered in time, and
// nobody is locked out when it thaws.
func TestRedisFrozenCrowd(t *testing.T) {
	server := startRedis(t)
	app := startApp(t, nil)
	s := redisSite(t, server.url(), app, "timeout 1s")
	if got := s.post(order("warm", "1")); got.status != 200 {
		t.Fatalf("status %d, want 200", got.status)
	}
	server.signal(syscall.SIGSTOP)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			start := time.Now()
			got := s.post(order(fmt.Sprint("crowd", i), "1"))
			if took := time.Since(start); got.status != 503 || took > 2*time.Second {
				t.Errorf("status %d after %s, want 503 within 2s", got.status, took)
			}
		})
	}
	wg.Wait()
	server.signal(syscall.SIGCONT)
	waitDrained(t)
	for i := range 50 {
		if got := s.post(order(fmt.Sprint("crowd", i), "1")); got.status != 200 {
			t.Errorf("callback %d: status %d, want 200", i, got.status)
		}
	}
	for _, d := range app.received() {
		if got := d.header.Get("Iak-Attempt"); got != "1" {
			t.Errorf("Iak-Attempt %s, want 1", got)
		}
	}
}

// A claim that reaches Redis only after it was given back, because its
// connection was slower, is given back once more.
func TestRedisClaimOvertaken(t *testing.T) {
	server := startRedis(t)
	proxy := startFaultyProxy(t, server.addr())
	app := startApp(t, nil)
	s := redisSite(t, "redis://"+proxy.Addr().String(), app)
	if got := s.post(order("warm", "1")); got.status != 200 {
		t.Fatalf("status %d, want 200", got.status)
	}
	client := redisClient(t, server.addr())
	before := commandCalls(t, client)
	release := proxy.holdNext()
	defer release()
	wantUnavailable(t, s.post(order("slow", "1")))
	if proxy.holds() {
		t.Fatal("no request was held back: the test shows nothing")
	}
	eventually(t, "the claim is given back", func() bool { return commandCalls(t, client)["evalsha"] > before["evalsha"] })
	release()
	eventually(t, "Redis carries the claim out", func() bool { return commandCalls(t, client)["set"] > before["set"] })
	eventually(t, "the callback is forwarded", func() bool { return s.post(order("slow", "1")).status == 200 })
	if got := app.last(t).header.Get("Iak-Attempt"); got != "1" {
		t.Errorf("Iak-Attempt %s, want 1", got)
	}
	waitDrained(t)
}

// A site starts without its Redis, refuses callbacks meanwhile, and forwards
// them once Redis is there.
func TestRedisDownAtStart(t *testing.T) {
	server := startRedis(t)
	server.kill()
	app := startApp(t, nil)
	s := redisSite(t, server.url(), app)
	wantUnavailable(t, s.post(order("early", "1")))
	if n := len(app.received()); n != 0 {
		t.Errorf("the app received %d callbacks, want none", n)
	}
	server.start()
	eventually(t, "the callback is forwarded", func() bool { return s.post(order("early", "1")).status == 200 })
	if got := app.last(t).header.Get("Iak-Attempt"); got != "1" {
		t.Errorf("Iak-Attempt %s, want 1", got)
	}
	waitDrained(t)
}

// A password that Redis refuses is an error of the store, and is not logged.
func TestRedisWrongPassword(t *testing.T) {
	server := startRedis(t, "--requirepass", "right")
	app := startApp(t, nil)
	t.Setenv("IAK_TEST_REDIS", "redis://:wr0ng-secret@"+server.addr())
	s := redisSite(t, "{env.IAK_TEST_REDIS}", app)
	wantUnavailable(t, s.post(order("order001", "1")))
	if n := len(app.received()); n != 0 {
		t.Errorf("the app received %d callbacks, want none", n)
	}
	log := s.log()
	if !strings.Contains(log, "WRONGPASS") {
		t.Error("the log does not say that the password is wrong")
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "wr0ng-secret") {
			t.Errorf("the log holds the password: %s", line)
		}
	}
	client := redis.NewClient(&redis.Options{Addr: server.addr(), Password: "right"})
	defer client.Close()
	if err := client.ConfigSet(context.Background(), "requirepass", "wr0ng-secret").Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the callback is forwarded", func() bool { return s.post(order("order001", "1")).status == 200 })
	waitDrained(t)
}

// What stands under a record's key and cannot be read is never taken for no
// record: the callback is refused, and the operator is told what to do. Nothing
// is repeated in the background for it, since no claim was made.
func TestRedisUnreadable(t *testing.T) {
	server := startRedis(t)
	client := redisClient(t, server.addr())
	ctx := context.Background()
	newer := testRecords()[1].encode()
	newer[0] = recordVersion + 1
	for name, put := range map[string]func(key string) error{
		"wrong type":    func(key string) error { return client.LPush(ctx, key, "x").Err() },
		"newer version": func(key string) error { return client.Set(ctx, key, newer, 0).Err() },
		"other use":     func(key string) error { return client.Set(ctx, key, "1", 0).Err() },
	} {
		t.Run(name, func(t *testing.T) {
			app := startApp(t, nil)
			s := redisSite(t, server.url(), app)
			if err := put("iak:test:" + name); err != nil {
				t.Fatal(err)
			}
			wantUnavailable(t, s.post(order(name, "1")))
			if n := len(app.received()); n != 0 {
				t.Errorf("the app received %d callbacks, want none", n)
			}
			if !strings.Contains(s.log(), "key_prefix") {
				t.Error("the log does not say what to do")
			}
			if n := backlogTasks(); n != 0 {
				t.Errorf("%d operations are repeated in the background, want none", n)
			}
			if err := client.Del(ctx, "iak:test:"+name).Err(); err != nil {
				t.Fatal(err)
			}
			waitDrained(t)
		})
	}
}

// A Redis whose memory is full refuses new claims with an error, but takes the
// answer of an app that is at work, and still knows what was accepted.
func TestRedisMemoryFull(t *testing.T) {
	server := startRedis(t)
	s := newTestRedisStore(t, server.url())
	client := redisClient(t, server.addr())
	ctx := context.Background()
	atWork, refusing, known := claimOf("iak:shop:work", "A", success, alive), claimOf("iak:shop:refusing", "A", success, alive), claimOf("iak:shop:known", "A", success, alive)
	atWorkDecision, refusingDecision := mustClaim(t, s, atWork), mustClaim(t, s, refusing)
	mustSettle(t, s, settlementOf(known, mustClaim(t, s, known), settleAccepted))
	if err := client.ConfigSet(ctx, "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}

	if d, err := s.claim(ctx, claimOf("iak:shop:new", "B", success, alive)); err == nil || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("a new claim: %+v, %v, want an error that says OOM", d, err)
	}
	mustSettle(t, s, settlementOf(atWork, atWorkDecision, settleAccepted))
	mustSettle(t, s, settlementOf(refusing, refusingDecision, settleReleased))
	for _, c := range []*claimRequest{atWork, known} {
		wantVerdict(t, s, claimOf(c.key, "B", success, alive), verdictDuplicate)
		wantVerdict(t, s, claimOf(c.key, "B", progress, alive), verdictStale)
		wantVerdict(t, s, claimOf(c.key, "B", failed, alive), verdictConflict)
	}

	if err := client.ConfigSet(ctx, "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	if d := mustClaim(t, s, claimOf(refusing.key, "B", success, alive)); d.attempt != 2 {
		t.Errorf("attempt %d, want 2", d.attempt)
	}
	mustClaim(t, s, claimOf("iak:shop:new", "C", success, alive))
}

// A replica that cannot be written to is an error, not a decision.
func TestRedisReadOnlyReplica(t *testing.T) {
	master := startRedis(t)
	replica := startRedis(t, "--replicaof", "127.0.0.1 "+master.port)
	client := redisClient(t, replica.addr())
	eventually(t, "the replica follows its master", func() bool {
		info, err := client.Info(context.Background(), "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	})
	s := newTestRedisStore(t, replica.url())
	c := claimOf("iak:shop:order001", "A", success, alive)
	if d, err := s.claim(context.Background(), c); err == nil || !strings.Contains(err.Error(), "READONLY") {
		t.Errorf("claim: %+v, %v, want an error that says READONLY", d, err)
	}
	if err := s.settle(context.Background(), settlementOf(c, decision{}, settleAccepted)); err == nil || !strings.Contains(err.Error(), "READONLY") {
		t.Errorf("settle: %v, want an error that says READONLY", err)
	}
}

// A Redis that is killed while the app works does not take its answer away: IAK
// gets it, it is recorded when Redis is back, and the callback that IAK sends
// again is a duplicate.
func TestRedisKilledWhileAppWorks(t *testing.T) {
	for _, row := range []struct {
		appStatus    int
		then         int
		attempt      string // of the repeated callback, if it is forwarded
		wantReplayed string
	}{
		{appStatus: 201, then: 201, wantReplayed: "true"},
		{appStatus: 422, then: 422, attempt: "2"},
	} {
		t.Run(fmt.Sprint(row.appStatus), func(t *testing.T) {
			server := startRedis(t, "--appendonly", "yes")
			answer := make(chan struct{})
			app := startApp(t, func(w http.ResponseWriter, _ *http.Request) {
				<-answer
				w.WriteHeader(row.appStatus)
				fmt.Fprint(w, "the app's own words")
			})
			s := redisSite(t, server.url(), app)
			first := make(chan reply)
			go func() { first <- s.post(order("order001", "1")) }()
			eventually(t, "the app receives the callback", func() bool { return len(app.received()) == 1 })
			server.kill()
			close(answer)
			if got := <-first; got.status != row.appStatus || got.body != "the app's own words" {
				t.Errorf("IAK got %d %q, want the app's answer", got.status, got.body)
			}
			server.start()
			waitDrained(t)
			again := s.post(order("order001", "1"))
			if again.status != row.then || again.header.Get("Idempotent-Replayed") != row.wantReplayed {
				t.Errorf("again: %d, Idempotent-Replayed %q, want %d, %q",
					again.status, again.header.Get("Idempotent-Replayed"), row.then, row.wantReplayed)
			}
			if row.attempt == "" {
				if n := len(app.received()); n != 1 {
					t.Errorf("the app received %d callbacks, want 1", n)
				}
			} else if got := app.last(t).header.Get("Iak-Attempt"); got != row.attempt {
				t.Errorf("Iak-Attempt %q, want %q", got, row.attempt)
			}
		})
	}
}

// startCluster starts a Redis Cluster of one node.
func startCluster(t *testing.T) *redisServer {
	t.Helper()
	// The default port of the cluster bus is out of range for many free ports.
	s := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", freePort(t))
	client := redisClient(t, s.addr())
	ctx := context.Background()
	if err := client.ClusterAddSlotsRange(ctx, 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster is ready", func() bool {
		info, err := client.ClusterInfo(ctx).Result()
		return err == nil && strings.Contains(info, "cluster_state:ok")
	})
	return s
}

// startSentinel starts a Redis, and a Sentinel that watches it as "iak".
func startSentinel(t *testing.T, config ...string) (master, sentinel *redisServer) {
	t.Helper()
	master = startRedis(t)
	sentinel = &redisServer{t: t, dir: t.TempDir(), port: freePort(t)}
	file := filepath.Join(sentinel.dir, "sentinel.conf")
	lines := append([]string{
		"port " + sentinel.port, "bind 127.0.0.1", "dir " + sentinel.dir,
		"sentinel monitor iak 127.0.0.1 " + master.port + " 1",
	}, config...)
	writeFile(t, file, []byte(strings.Join(lines, "\n")+"\n"))
	sentinel.cmd = exec.Command("redis-server", file, "--sentinel")
	if err := sentinel.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sentinel.kill)
	eventually(t, "Sentinel answers", func() bool {
		conn, err := net.Dial("tcp", sentinel.addr())
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
	return master, sentinel
}

// Every kind of url leads to a store that claims and settles.
func TestRedisKinds(t *testing.T) {
	for _, row := range []struct {
		name  string
		start func(t *testing.T) (redisConfig, *redisServer)
	}{
		{"single, with a database", func(t *testing.T) (redisConfig, *redisServer) {
			s := startRedis(t)
			return redisConfig{urls: []string{s.url() + "/3"}}, s
		}},
		{"single, with a user", func(t *testing.T) (redisConfig, *redisServer) {
			s := startRedis(t, "--user", "iak", "on", ">p%w", "~iak:*", "+@all")
			return redisConfig{urls: []string{"redis://iak:p%25w@" + s.addr()}}, s
		}},
		{"RESP2", func(t *testing.T) (redisConfig, *redisServer) {
			s := startRedis(t)
			return redisConfig{urls: []string{s.url() + "?protocol=2"}}, s
		}},
		{"unix socket", func(t *testing.T) (redisConfig, *redisServer) {
			s := startRedis(t, "--unixsocket", "redis.sock")
			return redisConfig{urls: []string{"unix://" + filepath.Join(s.dir, "redis.sock") + "?db=1"}}, s
		}},
		{"cluster", func(t *testing.T) (redisConfig, *redisServer) {
			s := startCluster(t)
			return redisConfig{urls: []string{s.url()}, cluster: true}, s
		}},
		{"cluster, a seed that is down", func(t *testing.T) (redisConfig, *redisServer) {
			s := startCluster(t)
			return redisConfig{urls: []string{"redis://127.0.0.1:" + freePort(t), s.url()}, cluster: true}, s
		}},
		{"sentinel", func(t *testing.T) (redisConfig, *redisServer) {
			master, sentinel := startSentinel(t)
			return redisConfig{urls: []string{sentinel.url()}, masterName: "iak"}, master
		}},
		{"sentinel with a password, one that is down", func(t *testing.T) (redisConfig, *redisServer) {
			master, sentinel := startSentinel(t, "requirepass se%cret")
			query := "/?sentinel_password=se%25cret"
			return redisConfig{urls: []string{"redis://127.0.0.1:" + freePort(t) + query, sentinel.url() + query}, masterName: "iak"}, master
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg, server := row.start(t)
			cfg.timeout = 5 * time.Second
			s, err := newRedisStore(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Destruct()
			c := claimOf("iak:shop:order001", "A", success, alive)
			mustSettle(t, s, settlementOf(c, mustClaim(t, s, c), settleAccepted))
			wantVerdict(t, s, claimOf(c.key, "B", success, alive), verdictDuplicate)
			keyspace, err := redisClient(t, server.addr()).Info(context.Background(), "keyspace").Result()
			if err != nil || strings.Count(keyspace, "keys=1") != 1 {
				t.Errorf("the server holds %q, %v, want one key", keyspace, err)
			}
		})
	}
}

// A url is read as its documentation says.
func TestRedisURL(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  redisConfig
		want func(o *redis.UniversalOptions) bool
	}{
		{"plain", redisConfig{urls: []string{"redis://h:6380"}}, func(o *redis.UniversalOptions) bool {
			return slices.Equal(o.Addrs, []string{"h:6380"}) && o.TLSConfig == nil && o.DB == 0 && !o.IsClusterMode
		}},
		{"default port", redisConfig{urls: []string{"redis://h"}}, func(o *redis.UniversalOptions) bool {
			return slices.Equal(o.Addrs, []string{"h:6379"})
		}},
		{"user, password, database", redisConfig{urls: []string{"redis://u:p%40%2F@h:6379/4"}}, func(o *redis.UniversalOptions) bool {
			return o.Username == "u" && o.Password == "p@/" && o.DB == 4
		}},
		{"TLS", redisConfig{urls: []string{"rediss://h:6379"}}, func(o *redis.UniversalOptions) bool {
			return o.TLSConfig != nil && o.TLSConfig.ServerName == "h" && !o.TLSConfig.InsecureSkipVerify
		}},
		{"TLS without verification", redisConfig{urls: []string{"rediss://h:6379?skip_verify=true"}}, func(o *redis.UniversalOptions) bool {
			return o.TLSConfig != nil && o.TLSConfig.InsecureSkipVerify
		}},
		{"unix", redisConfig{urls: []string{"unix://u:p@/run/redis.sock?db=2"}}, func(o *redis.UniversalOptions) bool {
			s := o.Simple()
			return s.Addr == "/run/redis.sock" && o.DB == 2 && o.Username == "u" && o.Password == "p"
		}},
		{"query options", redisConfig{urls: []string{"redis://h?protocol=2&client_name=iak&max_retries=-1&pool_fifo=true&min_idle_conns=1" +
			"&max_idle_conns=4&max_active_conns=9&max_concurrent_dials=5&conn_max_idle_time=1m&conn_max_lifetime=1h&conn_max_lifetime_jitter=2m&pool_size=7"}},
			func(o *redis.UniversalOptions) bool {
				return o.Protocol == 2 && o.ClientName == "iak" && o.MaxRetries == -1 && o.PoolFIFO && o.MinIdleConns == 0 &&
					o.MaxIdleConns == 4 && o.MaxActiveConns == 9 && o.MaxConcurrentDials == 5 && o.ConnMaxIdleTime == time.Minute &&
					o.ConnMaxLifetime == time.Hour && o.ConnMaxLifetimeJitter == 2*time.Minute && o.PoolSize == 7
			}},
		{"pool_size", redisConfig{urls: []string{"redis://h?pool_size=7"}, poolSize: 3}, func(o *redis.UniversalOptions) bool {
			return o.PoolSize == 3
		}},
		{"the timeout bounds everything", redisConfig{urls: []string{"redis://h?dial_timeout=1h&read_timeout=1h&write_timeout=1h&pool_timeout=1h"}, timeout: time.Second},
			func(o *redis.UniversalOptions) bool {
				return o.ContextTimeoutEnabled && o.DialTimeout == time.Second && o.ReadTimeout == time.Second &&
					o.WriteTimeout == time.Second && o.PoolTimeout == time.Second &&
					o.Failover().ContextTimeoutEnabled && o.Cluster().ContextTimeoutEnabled
			}},
		{"cluster", redisConfig{urls: []string{"redis://u:p@a:1", "redis://u:p@b:2"}, cluster: true}, func(o *redis.UniversalOptions) bool {
			return o.IsClusterMode && slices.Equal(o.Addrs, []string{"a:1", "b:2"}) && o.Username == "u" && o.Password == "p"
		}},
		{"cluster with TLS: each node's own name", redisConfig{urls: []string{"rediss://a:1", "rediss://b:2"}, cluster: true}, func(o *redis.UniversalOptions) bool {
			return o.TLSConfig != nil && o.TLSConfig.ServerName == ""
		}},
		{"sentinel", redisConfig{urls: []string{
			"redis://u:p@a:1/2?sentinel_username=su&sentinel_password=s%26p", "redis://u:p@b:2/2?sentinel_username=su&sentinel_password=s%26p",
		}, masterName: "m"}, func(o *redis.UniversalOptions) bool {
			return o.MasterName == "m" && slices.Equal(o.Addrs, []string{"a:1", "b:2"}) && o.DB == 2 && o.Username == "u" &&
				o.Password == "p" && o.SentinelUsername == "su" && o.SentinelPassword == "s&p"
		}},
		{"sentinel with a database in the query", redisConfig{urls: []string{"redis://a:1?db=2"}, masterName: "m"}, func(o *redis.UniversalOptions) bool {
			return o.DB == 2
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			o, err := row.cfg.options()
			if err != nil {
				t.Fatal(err)
			}
			if !row.want(o) {
				t.Errorf("read as %+v", o)
			}
		})
	}
}

// What is wrong with the urls is told without quoting them: they may hold a
// password.
func TestRedisURLErrors(t *testing.T) {
	const secret = "s3cret"
	for _, row := range []struct {
		name string
		cfg  redisConfig
		want string
	}{
		{"none", redisConfig{}, "no url"},
		{"no url at all", redisConfig{urls: []string{secret}}, "redis://"},
		{"empty", redisConfig{urls: []string{""}}, "redis://"},
		{"another scheme", redisConfig{urls: []string{"http://:" + secret + "@h"}}, "redis://"},
		{"control character", redisConfig{urls: []string{"redis://:" + secret + "\n@h"}}, "not a valid url"},
		{"percent sign", redisConfig{urls: []string{"redis://:" + secret + "%zz@h"}}, "not a valid url"},
		{"unescaped slash", redisConfig{urls: []string{"redis://:" + secret + "/@h:1"}}, "not a valid url"},
		{"database", redisConfig{urls: []string{"redis://:" + secret + "@h/" + secret}}, "not a valid Redis url"},
		{"unknown option", redisConfig{urls: []string{"redis://:" + secret + "@h?" + secret + "=1"}}, "unknown option"},
		{"value of an option", redisConfig{urls: []string{"redis://:" + secret + "@h?pool_fifo=" + secret}}, "not a valid Redis url"},
		{"sentinel option without Sentinel", redisConfig{urls: []string{"redis://h?sentinel_password=" + secret}}, "unknown option"},
		{"unix without a path", redisConfig{urls: []string{"unix://:" + secret + "@"}}, "not a valid Redis url"},
		{"unix with Sentinel", redisConfig{urls: []string{"unix:///" + secret}, masterName: "m"}, "unix"},
		{"unix with Cluster", redisConfig{urls: []string{"unix:///" + secret}, cluster: true}, "unix"},
		{"cluster and Sentinel", redisConfig{urls: []string{"redis://:" + secret + "@h"}, cluster: true, masterName: "m"}, "exclude"},
		{"cluster with a database", redisConfig{urls: []string{"redis://:" + secret + "@h/1"}, cluster: true}, "database 0"},
		{"several for one server", redisConfig{urls: []string{"redis://:" + secret + "@a", "redis://:" + secret + "@b"}}, "several urls"},
		{"the second is wrong", redisConfig{urls: []string{"redis://a", "redis://:" + secret + "@b?x=1"}, cluster: true}, "url 2"},
		{"passwords differ", redisConfig{urls: []string{"redis://:a@a", "redis://:" + secret + "@b"}, cluster: true}, "url 2 differs"},
		{"users differ", redisConfig{urls: []string{"redis://x:" + secret + "@a", "redis://y:" + secret + "@b"}, masterName: "m"}, "url 2 differs"},
		{"databases differ", redisConfig{urls: []string{"redis://a/1", "redis://b/2"}, masterName: "m"}, "url 2 differs"},
		{"options differ", redisConfig{urls: []string{"redis://a", "redis://b?protocol=2"}, cluster: true}, "url 2 differs"},
		{"sentinel passwords differ", redisConfig{urls: []string{"redis://a", "redis://b?sentinel_password=" + secret}, masterName: "m"}, "url 2 differs"},
		{"TLS differs", redisConfig{urls: []string{"redis://a", "rediss://b"}, cluster: true}, "url 2 differs"},
		{"verification differs", redisConfig{urls: []string{"rediss://a", "rediss://b?skip_verify=true"}, cluster: true}, "url 2 differs"},
		{"the third differs", redisConfig{urls: []string{"redis://a", "redis://b", "redis://:" + secret + "@c"}, cluster: true}, "url 3 differs"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, err := newRedisStore(row.cfg)
			if err == nil {
				_ = s.Destruct()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), row.want) {
				t.Errorf("%q does not say %q", err, row.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%q quotes the url", err)
			}
		})
	}
}

// A claim on a closed store is an error, as every other that a caller can meet.
func TestRedisClosed(t *testing.T) {
	server := startRedis(t)
	s := newTestRedisStore(t, server.url())
	mustClaim(t, s, claimOf("iak:shop:order001", "A", success, alive))
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	if d, err := s.claim(context.Background(), claimOf("iak:shop:order002", "A", success, alive)); !errors.Is(err, redis.ErrClosed) {
		t.Errorf("%+v, %v, want ErrClosed", d, err)
	}
}
