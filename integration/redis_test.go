package integration

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/redis/go-redis/v9"
)

// redisSite starts a site in front of app with a Redis store. options are
// further lines of the redis block.
func redisSite(t *testing.T, url string, app *sitetest.App, options ...string) *sitetest.Site {
	t.Helper()
	watchRepeating()
	return sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\nredis "+url+" {\n"+strings.Join(options, "\n")+"\n}\n}\nreverse_proxy "+app.Addr())
}

func wantUnavailable(t *testing.T, got sitetest.Reply) {
	t.Helper()
	if got.Status != http.StatusServiceUnavailable || got.Header.Get("Retry-After") != "5" {
		t.Errorf("status %d, Retry-After %q, want 503 and 5", got.Status, got.Header.Get("Retry-After"))
	}
}

// A callback that meets a frozen Redis is refused in time; the claim that Redis
// carries out when it thaws is given back, and the callback that IAK sends
// again is the first delivery.
func TestRedisFrozenSite(t *testing.T) {
	server := redistest.Start(t)
	app := sitetest.StartApp(t, nil)
	s := redisSite(t, server.URL(), app)
	if got := s.Post(sitetest.Order("warm", "1")); got.Status != 200 {
		t.Fatalf("status %d, want 200", got.Status)
	}
	client := server.Client()
	sets := server.Calls(client)["set"]

	server.Signal(syscall.SIGSTOP)
	start := time.Now()
	wantUnavailable(t, s.Post(sitetest.Order("frozen", "1")))
	if took := time.Since(start); took > time.Second { // twice the timeout that applies by default
		t.Errorf("answered after %s, want at most 1s", took)
	}
	server.Signal(syscall.SIGCONT)
	sitetest.Eventually(t, "Redis carries the claim out", func() bool { return server.Calls(client)["set"] > sets })

	sitetest.Eventually(t, "the callback is forwarded", func() bool {
		got := s.Post(sitetest.Order("frozen", "1"))
		if got.Status != 200 && got.Status != 409 && got.Status != 503 {
			t.Fatalf("status %d", got.Status)
		}
		return got.Status == 200
	})
	if n := len(app.Received()); n != 2 {
		t.Errorf("the app received %d callbacks, want 2", n)
	}
	if got := app.Last(t).Header.Get("Iak-Attempt"); got != "1" {
		t.Errorf("Iak-Attempt %s, want 1", got)
	}
	waitDrained(t)
}

// A crowd of callbacks that meets a frozen Redis is answered in time, and
// nobody is locked out when it thaws.
func TestRedisFrozenCrowd(t *testing.T) {
	server := redistest.Start(t)
	app := sitetest.StartApp(t, nil)
	s := redisSite(t, server.URL(), app, "timeout 1s")
	if got := s.Post(sitetest.Order("warm", "1")); got.Status != 200 {
		t.Fatalf("status %d, want 200", got.Status)
	}
	server.Signal(syscall.SIGSTOP)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			start := time.Now()
			got := s.Post(sitetest.Order(fmt.Sprint("crowd", i), "1"))
			if took := time.Since(start); got.Status != 503 || took > 2*time.Second {
				t.Errorf("status %d after %s, want 503 within 2s", got.Status, took)
			}
		})
	}
	wg.Wait()
	server.Signal(syscall.SIGCONT)
	waitDrained(t)
	for i := range 50 {
		if got := s.Post(sitetest.Order(fmt.Sprint("crowd", i), "1")); got.Status != 200 {
			t.Errorf("callback %d: status %d, want 200", i, got.Status)
		}
	}
	for _, d := range app.Received() {
		if got := d.Header.Get("Iak-Attempt"); got != "1" {
			t.Errorf("Iak-Attempt %s, want 1", got)
		}
	}
}

// The network drops all packets for longer than the store's timeout, and then
// everything arrives that the kernel has sent again meanwhile: but not what was given up.
// What belongs to this kind: a cable, a firewall's table, a virtual machine that is moved.
// Without the reset a claim arrives when nobody knows of it any more, and its ref_id is
// locked until the lease is over.
func TestRedisPacketsDropped(t *testing.T) {
	server := redistest.Start(t)
	network := redistest.StartDrops(t, server.Addr())
	app := sitetest.StartApp(t, nil)
	s := redisSite(t, network.URL(), app)
	for i := range 10 {
		if got := s.Post(sitetest.Order(fmt.Sprint("warm", i), "1")); got.Status != 200 {
			t.Fatalf("status %d, want 200", got.Status)
		}
	}
	client := server.Client()
	sets := server.Calls(client)["set"]
	back := network.Break()
	wantUnavailable(t, s.Post(sitetest.Order("dropped", "1")))
	sitetest.Eventually(t, "its connection ends", func() bool { return network.Ended() > 0 })
	if closes, resets := back(); closes != 0 || resets == 0 {
		t.Errorf("%d connections were closed and %d reset with something on its way, want 0 and some", closes, resets)
	}
	if n := server.Calls(client)["set"]; n != sets {
		t.Errorf("the claim was carried out later: %d SET, want %d", n, sets)
	}
	waitDrained(t)
	if got := s.Post(sitetest.Order("dropped", "1")); got.Status != 200 {
		t.Errorf("status %d, want 200", got.Status)
	}
	if got := app.Last(t).Header.Get("Iak-Attempt"); got != "1" {
		t.Errorf("Iak-Attempt %s, want 1", got)
	}
}

// A store that is as slow as it may be takes its time from the app's: when that is
// over before the claim is made, nothing is delivered, and nothing counted. Else the
// app could still be at work when its lease is over.
func TestRedisSlowClaim(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr())
	app := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, sitetest.Block("redis "+proxy.URL()+" {\ntimeout 5s\n}", "upstream_timeout 1s")+"reverse_proxy "+app.Addr())
	if got := s.Post(sitetest.Order("warm", "1")); got.Status != 200 {
		t.Fatalf("status %d, want 200", got.Status)
	}
	release := proxy.HoldNext()
	reply := make(chan sitetest.Reply, 1)
	go func() { reply <- s.Post(sitetest.Order("slow", "1")) }()
	sitetest.Eventually(t, "the claim is on its way", func() bool { return !proxy.Holds() })
	time.Sleep(1100 * time.Millisecond) // the time that the store takes
	release()
	if got := <-reply; got.Status != 504 && got.Status != 502 {
		t.Errorf("status %d, want 504", got.Status)
	}
	if n := len(app.Received()); n != 1 {
		t.Errorf("the app received %d callbacks, want 1", n)
	}
	if got := s.Post(sitetest.Order("slow", "1")); got.Status != 200 || app.Last(t).Header.Get("Iak-Attempt") != "1" {
		t.Errorf("status %d, attempt %s, want 200 and 1", got.Status, app.Last(t).Header.Get("Iak-Attempt"))
	}
}

// A claim that reaches Redis only after it was given back, because its
// connection was slower, is given back once more.
func TestRedisClaimOvertaken(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr())
	app := sitetest.StartApp(t, nil)
	s := redisSite(t, proxy.URL(), app)
	if got := s.Post(sitetest.Order("warm", "1")); got.Status != 200 {
		t.Fatalf("status %d, want 200", got.Status)
	}
	client := server.Client()
	before := server.Calls(client)
	release := proxy.HoldNext()
	defer release()
	wantUnavailable(t, s.Post(sitetest.Order("slow", "1")))
	if proxy.Holds() {
		t.Fatal("no request was held back: the test shows nothing")
	}
	sitetest.Eventually(t, "the claim is given back", func() bool { return server.Calls(client)["evalsha"] > before["evalsha"] })
	release()
	sitetest.Eventually(t, "Redis carries the claim out", func() bool { return server.Calls(client)["set"] > before["set"] })
	sitetest.Eventually(t, "the callback is forwarded", func() bool { return s.Post(sitetest.Order("slow", "1")).Status == 200 })
	if got := app.Last(t).Header.Get("Iak-Attempt"); got != "1" {
		t.Errorf("Iak-Attempt %s, want 1", got)
	}
	waitDrained(t)
}

// A site starts without its Redis, refuses callbacks meanwhile, and forwards
// them once Redis is there.
func TestRedisDownAtStart(t *testing.T) {
	server := redistest.Start(t)
	server.Kill()
	app := sitetest.StartApp(t, nil)
	s := redisSite(t, server.URL(), app)
	wantUnavailable(t, s.Post(sitetest.Order("early", "1")))
	if n := len(app.Received()); n != 0 {
		t.Errorf("the app received %d callbacks, want none", n)
	}
	server.Start()
	sitetest.Eventually(t, "the callback is forwarded", func() bool { return s.Post(sitetest.Order("early", "1")).Status == 200 })
	if got := app.Last(t).Header.Get("Iak-Attempt"); got != "1" {
		t.Errorf("Iak-Attempt %s, want 1", got)
	}
	waitDrained(t)
}

// A password that Redis refuses is an error of the store, and is not logged.
func TestRedisWrongPassword(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "right")
	app := sitetest.StartApp(t, nil)
	t.Setenv("IAK_TEST_REDIS", "redis://:wr0ng-secret@"+server.Addr())
	s := redisSite(t, "{env.IAK_TEST_REDIS}", app)
	wantUnavailable(t, s.Post(sitetest.Order("order001", "1")))
	if n := len(app.Received()); n != 0 {
		t.Errorf("the app received %d callbacks, want none", n)
	}
	log := s.Log()
	if !strings.Contains(log, "WRONGPASS") {
		t.Error("the log does not say that the password is wrong")
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "wr0ng-secret") {
			t.Errorf("the log holds the password: %s", line)
		}
	}
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: "right"})
	defer client.Close()
	if err := client.ConfigSet(context.Background(), "requirepass", "wr0ng-secret").Err(); err != nil {
		t.Fatal(err)
	}
	sitetest.Eventually(t, "the callback is forwarded", func() bool { return s.Post(sitetest.Order("order001", "1")).Status == 200 })
	waitDrained(t)
}

// What stands under a record's key and cannot be read is never taken for no
// record: the callback is refused, and the operator is told what to do. Nothing
// is repeated in the background for it, since no claim was made.
func TestRedisUnreadable(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	ctx := context.Background()
	for name, put := range map[string]func(key string) error{
		"wrong type":    func(key string) error { return client.LPush(ctx, key, "x").Err() },
		"newer version": func(key string) error { return client.Set(ctx, key, newerRecord, 0).Err() },
		"other use":     func(key string) error { return client.Set(ctx, key, "1", 0).Err() },
	} {
		t.Run(name, func(t *testing.T) {
			app := sitetest.StartApp(t, nil)
			s := redisSite(t, server.URL(), app)
			if err := put("iak:test:" + name); err != nil {
				t.Fatal(err)
			}
			wantUnavailable(t, s.Post(sitetest.Order(name, "1")))
			if n := len(app.Received()); n != 0 {
				t.Errorf("the app received %d callbacks, want none", n)
			}
			if !strings.Contains(s.Log(), "key_prefix") {
				t.Error("the log does not say what to do")
			}
			if repeating() {
				t.Error("an operation is repeated in the background, want none")
			}
			if err := client.Del(ctx, "iak:test:"+name).Err(); err != nil {
				t.Fatal(err)
			}
			waitDrained(t)
		})
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
			server := redistest.Start(t, "--appendonly", "yes")
			answer := make(chan struct{})
			app := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
				<-answer
				w.WriteHeader(row.appStatus)
				fmt.Fprint(w, "the app's own words")
			})
			s := redisSite(t, server.URL(), app)
			first := make(chan sitetest.Reply)
			go func() { first <- s.Post(sitetest.Order("order001", "1")) }()
			sitetest.Eventually(t, "the app receives the callback", func() bool { return len(app.Received()) == 1 })
			server.Kill()
			close(answer)
			if got := <-first; got.Status != row.appStatus || got.Body != "the app's own words" {
				t.Errorf("IAK got %d %q, want the app's answer", got.Status, got.Body)
			}
			if !repeating() {
				t.Error("nothing is repeated in the background")
			}
			server.Start()
			waitDrained(t)
			again := s.Post(sitetest.Order("order001", "1"))
			if again.Status != row.then || again.Header.Get("Idempotent-Replayed") != row.wantReplayed {
				t.Errorf("again: %d, Idempotent-Replayed %q, want %d, %q",
					again.Status, again.Header.Get("Idempotent-Replayed"), row.then, row.wantReplayed)
			}
			if row.attempt == "" {
				if n := len(app.Received()); n != 1 {
					t.Errorf("the app received %d callbacks, want 1", n)
				}
			} else if got := app.Last(t).Header.Get("Iak-Attempt"); got != row.attempt {
				t.Errorf("Iak-Attempt %q, want %q", got, row.attempt)
			}
		})
	}
}
