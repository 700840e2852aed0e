package iakcallback

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// A reload does not disturb a request that waits for its app: it finishes, with
// the old configuration, and its answer is recorded. The store of the old
// configuration is closed after its last request and not before, whether the new
// one uses another store, the same, or none.
func TestReload(t *testing.T) {
	redis := startRedis(t)
	redisBlock := "redis " + redis.url()
	for name, tc := range map[string]struct{ before, after string }{
		"other timeout":          {redisBlock, redisBlock + "\nupstream_timeout 10s"},
		"other pool":             {redisBlock, redisBlock + " {\npool_size 3\n}"},
		"redis to embedded":      {redisBlock, "body flat"},
		"embedded to redis":      {"body iak", redisBlock},
		"embedded, same file":    {"body iak", "body flat"},
		"handler removed":        {redisBlock, ""},
		"embedded removed":       {"body iak", ""},
		"embedded to other file": {"body iak", "embedded {env.OTHER}"},
	} {
		t.Run(name, func(t *testing.T) {
			started, held := make(chan bool), make(chan bool)
			finish := sync.OnceFunc(func() { close(held) })
			t.Cleanup(finish)
			app := startApp(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.Header.Get("Idempotency-Key"), "test:held") {
					started <- true
					<-held
				}
				w.WriteHeader(http.StatusCreated)
			})
			t.Setenv("OTHER", t.TempDir()+"/other.db")
			heldOrder := order("held: "+name, "1") // the cases share one redis
			block := func(options string) string {
				if options == "" {
					return "reverse_proxy " + app.addr()
				}
				return handlerBlock(options) + "reverse_proxy " + app.addr()
			}
			s := startSite(t, block(tc.before))
			s.post(order("warm up: "+name, "1")).expect(t, "before", 201)
			answer := make(chan reply)
			go func() { answer <- s.post(heldOrder) }()
			<-started

			s.load(block(tc.after))
			if tc.after != "" {
				s.postAgain(order("after: "+name, "1")).expect(t, "after the reload", 201)
			}
			if n := openStores(); tc.before != tc.after && n < 1 {
				t.Error("the store was closed under a request")
			}
			finish()
			(<-answer).expect(t, "the held request", 201)

			wanted := 1
			if tc.after == "" {
				wanted = 0
			}
			eventually(t, "the old store is closed", func() bool { return openStores() == wanted })

			// With the old store back, the answer is found to be recorded.
			s.load(block(tc.before))
			again := s.postAgain(heldOrder)
			again.expect(t, "repeat", 201)
			if again.header.Get("Idempotent-Replayed") != "true" {
				t.Error("the answer of the held request was not recorded")
			}
			s.load("respond 200")
		})
	}
	if n := openStores(); n != 0 {
		t.Errorf("%d stores are still open", n)
	}
}

// A configuration that fails to load leaves the running one as it is, its store
// included.
func TestReloadFails(t *testing.T) {
	app := startApp(t, nil)
	good := handlerBlock() + "reverse_proxy " + app.addr()
	s := startSite(t, good)
	s.post(order("one", "1")).expect(t, "before", 200)
	for _, bad := range []string{
		handlerBlock("retention 1h"),
		handlerBlock("account other {env.UNSET_KEY} x"),
		handlerBlock("redis redis://user:password@[::1"),
		handlerBlock() + "no_such_directive",
		handlerBlock() + "reverse_proxy " + app.addr() + "\ntls /no/such/file.pem /no/such/key.pem",
	} {
		if err := s.tryLoad(good + "\n" + bad); err == nil {
			t.Errorf("loaded: %s", bad)
		}
		s.postAgain(order("one", "1")).expect(t, "repeat", 200)
	}
	if n := len(app.received()); n != 1 {
		t.Errorf("the app received %d requests, want 1", n)
	}
}

// Two handlers with the same settings share one store, and closing one leaves
// it to the other.
func TestHandlersShareStore(t *testing.T) {
	app := startApp(t, nil)
	block := func(paths ...string) string {
		var b strings.Builder
		for _, p := range paths {
			fmt.Fprintf(&b, "handle %s {\n%sreverse_proxy %s\n}\n", p, handlerBlock(), app.addr())
		}
		return b.String()
	}
	s := startSite(t, block("/a", "/callback"))
	s.post(order("one", "1")).expect(t, "first", 200)
	if n := openStores(); n != 1 {
		t.Errorf("%d stores are open, want 1", n)
	}
	s.load(block("/callback"))
	again := s.postAgain(order("one", "1"))
	again.expect(t, "repeat", 200)
	if again.header.Get("Idempotent-Replayed") != "true" || openStores() != 1 {
		t.Error("the shared store was lost")
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := openStores(); n != 0 {
		t.Errorf("%d stores are still open", n)
	}
}

// Twenty reloads of different configurations, and as many that fail, while
// callbacks come without a pause: each reaches the app once, none is lost, and
// neither a store nor a goroutine is left behind.
func TestReloadStorm(t *testing.T) {
	redis := startRedis(t)
	var mu sync.Mutex
	seen := make(map[string]int)
	app := startApp(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen[r.Header.Get("Idempotency-Key")]++
	})
	block := func(options string) string {
		return handlerBlock(options) + "reverse_proxy " + app.addr()
	}
	base := "redis " + redis.url()
	blocks := []string{
		block(base + "\nupstream_timeout 10s"),
		block(base + " {\npool_size 3\n}"),
		block(base + " {\ntimeout 2s\n}"),
		block(base + "\non_conflict forward\nbody flat"),
		"respond 503", // the handler is removed
	}
	s := startSite(t, blocks[0])
	goroutines := runtime.NumGoroutine()

	stop := make(chan bool)
	var accepted, broken atomic.Int64
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				body := order(fmt.Sprintf("%d-%d", worker, i), "1")
				for { // IAK would send it again
					answer, err := client.Post(s.url, "application/json", strings.NewReader(body))
					if err != nil {
						broken.Add(1)
						continue
					}
					answer.Body.Close()
					if answer.StatusCode == http.StatusOK {
						accepted.Add(1)
						break
					}
				}
			}
		})
	}
	for i := range 20 {
		before := accepted.Load()
		s.load(blocks[i%len(blocks)])
		if err := s.tryLoad(block(base + "\nretention 1h")); err == nil {
			t.Error("a broken configuration was loaded")
		}
		if i%len(blocks) != len(blocks)-1 { // under load means that callbacks come through
			eventually(t, "callbacks go on", func() bool { return accepted.Load() > before+20 })
		}
	}
	s.load(blocks[0])
	close(stop)
	wg.Wait()

	t.Logf("%d accepted, %d connections broken", accepted.Load(), broken.Load())
	mu.Lock()
	defer mu.Unlock()
	if int64(len(seen)) != accepted.Load() {
		t.Errorf("%d outcomes reached the app, %d were accepted", len(seen), accepted.Load())
	}
	for key, n := range seen {
		if n != 1 {
			t.Errorf("%s reached the app %d times", key, n)
		}
	}
	if n := openStores(); n != 1 {
		t.Errorf("%d stores are open, want 1", n)
	}
	app.CloseClientConnections()
	client.CloseIdleConnections()
	eventually(t, "the goroutines are gone", func() bool { return runtime.NumGoroutine() <= goroutines+10 })
}
