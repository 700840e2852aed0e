package iakcallback

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/redis/go-redis/v9"
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
// callbacks come without a pause. As long as the records stay in one place, each
// reaches the app once, also when IAK sends it again, because Caddy broke the
// connection or long after it was accepted. When the store changes, so does each
// that is not sent again after the change: another store cannot know what the app
// got before. None is lost, no status tells IAK of a reload, and no connection to
// Redis, file or goroutine is left behind.
func TestReloadStorm(t *testing.T) {
	one, two := startRedis(t), startRedis(t)
	// The timeout is for a busy machine.
	onOne, onTwo := "redis "+one.url()+" {\ntimeout 10s\n}", "redis "+two.url()+" {\ntimeout 10s\n}"
	const embedded, removed = "body iak", ""
	for _, tc := range []struct {
		name     string
		configs  []string // taken in turn
		switches bool     // of the store
	}{
		{name: "one Redis", configs: []string{
			onOne + "\nupstream_timeout 10s",
			"redis " + one.url() + " {\ntimeout 10s\npool_size 3\n}",
			"redis " + one.url() + " {\ntimeout 11s\n}",
			onOne + "\non_conflict forward\nbody flat",
			removed,
		}},
		{name: "one file", configs: []string{
			embedded, "upstream_timeout 10s", "on_conflict forward\nbody flat", removed,
		}},
		{name: "other stores", switches: true, configs: []string{
			onOne, onTwo, embedded, removed, embedded,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			load := newStorm(t, strings.ReplaceAll(tc.name, " ", "-"), !tc.switches)
			block := func(options string) string {
				if options == removed {
					return "respond 404"
				}
				return handlerBlock(options) + "reverse_proxy " + load.app.addr()
			}
			s := startSite(t, block(removed))
			redises := []*redis.Client{redisClient(t, one.addr()), redisClient(t, two.addr())}
			before := countResources(t, redises)
			s.load(block(tc.configs[0]))
			finish := load.start(s.url)
			// One that fails while it is started serves requests until then.
			own := tc.configs[0]
			if tc.switches {
				own = "embedded " + t.TempDir() + "/other.db"
			}
			fails := []string{
				block("redis " + two.url() + "/1\nretention 1h"),
				block(own) + "\n}\nhttp://" + one.addr() + " {\n", // Redis listens there
			}
			for i := 1; i <= 20; i++ {
				config := tc.configs[i%len(tc.configs)]
				s.load(block(config))
				if err := s.tryLoad(fails[i%len(fails)]); err == nil {
					t.Error("a broken configuration was loaded")
				}
				answers := &load.accepted // under load means that there are answers
				if config == removed {
					answers = &load.absent
				}
				sofar := answers.Load()
				eventually(t, "callbacks go on", func() bool { return answers.Load() >= sofar+20 })
			}
			if tc.configs[20%len(tc.configs)] == removed {
				s.load(block(tc.configs[0]))
			}
			finish()
			load.check(t)

			// The garbage collector closes what is forgotten, and would hide it.
			defer debug.SetGCPercent(debug.SetGCPercent(-1))
			// What is in use is seen, and it is gone when the handler is.
			if now := countResources(t, redises); now.clients+now.databases == 0 {
				t.Errorf("no store is in use: %+v", now)
			}
			if n := openStores(); n != 1 {
				t.Errorf("%d stores are open, want 1", n)
			}
			s.load(block(removed))
			load.app.CloseClientConnections() // which Caddy's proxy keeps for a while
			after := before
			defer func() { t.Logf("before %+v, after %+v", before, after) }()
			eventually(t, "nothing is left behind", func() bool {
				after = countResources(t, redises)
				return openStores() == 0 && after.clients == 0 && after.databases == 0 &&
					after.files <= before.files && after.goroutines <= before.goroutines
			})

			// The same when Caddy stops.
			s.load(block(tc.configs[0]))
			s.postAgain(order("the last of "+load.name, "1")).expect(t, "after the storm", 200)
			if now := countResources(t, redises); now.clients+now.databases == 0 {
				t.Errorf("no store is in use: %+v", now)
			}
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			load.app.CloseClientConnections()
			eventually(t, "nothing is left behind by a stop", func() bool {
				after = countResources(t, redises)
				return openStores() == 0 && after.clients == 0 && after.databases == 0 && after.files <= before.files
			})
		})
	}
}

// resources are what a store may leave behind.
type resources struct {
	clients    int // connections to Redis
	databases  int // open files of the embedded store
	files      int // open files of any kind, connections included
	goroutines int
}

// countResources counts them. The clients are those that it asks Redis with,
// and not counted themselves.
func countResources(t *testing.T, redises []*redis.Client) (r resources) {
	t.Helper()
	for _, client := range redises {
		list, err := client.ClientList(context.Background()).Result()
		if err != nil {
			t.Fatal(err)
		}
		r.clients += strings.Count(list, "\n") - 1
	}
	r.goroutines = runtime.NumGoroutine()
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		target, err := os.Readlink(name)
		if err != nil { // closed meanwhile
			continue
		}
		r.files++
		if strings.HasSuffix(target, ".db") {
			r.databases++
		}
	}
	return r
}

// storm is IAK that sends callbacks without a pause, each until it is accepted,
// and the app that gets them.
type storm struct {
	t        *testing.T
	name     string // its ref_ids begin with it: the storms share one Redis
	oneStore bool   // all configurations share their records
	app      *app
	tally    *tally
	accepted atomic.Int64
	absent   atomic.Int64 // answers of a configuration without the handler

	mu     sync.Mutex
	broken map[string]int // requests without an answer, by Idempotency-Key
}

func newStorm(t *testing.T, name string, oneStore bool) *storm {
	t.Helper()
	load := &storm{t: t, name: name, oneStore: oneStore, tally: newTally(), broken: make(map[string]int)}
	load.app = startApp(t, load.tally.counting(nil))
	return load
}

// start begins to send. finish ends it when all that was begun is accepted.
func (load *storm) start(url string) (finish func()) {
	stop := make(chan bool)
	var workers sync.WaitGroup
	for worker := range 8 {
		workers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-load.t.Context().Done(): // the test has failed
					return
				default:
					load.deliver(url, load.refID(worker, i))
					if load.oneStore && i >= stormRepeat {
						load.deliver(url, load.refID(worker, i-stormRepeat))
					}
				}
			}
		})
	}
	load.t.Cleanup(workers.Wait)
	return func() {
		close(stop)
		workers.Wait()
	}
}

// stormRepeat is how many callbacks later one that was accepted is sent again:
// some reloads later.
const stormRepeat = 10

func (load *storm) refID(worker, i int) string {
	return fmt.Sprintf("%s-%d-%d", load.name, worker, i)
}

// deliver sends a callback until it is accepted.
func (load *storm) deliver(url, refID string) {
	key := "test:" + refID + ":1"
	for load.t.Context().Err() == nil {
		switch status := load.tally.send(url, refID, "1"); {
		case status == http.StatusOK:
			load.accepted.Add(1)
			return
		case status == http.StatusNotFound:
			load.absent.Add(1)
		case status == 0: // Caddy breaks connections at a reload
			load.mu.Lock()
			load.broken[key]++
			load.mu.Unlock()
		case status == http.StatusConflict && load.wasBroken(key): // what did not answer still works
		default:
			load.t.Errorf("%s: status %d", refID, status)
		}
		time.Sleep(time.Millisecond)
	}
}

func (load *storm) wasBroken(key string) bool {
	load.mu.Lock()
	defer load.mu.Unlock()
	return load.broken[key] > 0
}

// check counts. When stores change, the callbacks whose answer once did not come
// are counted apart: each may have reached the app as often as that, and then
// again from another store, where it is new.
func (load *storm) check(t *testing.T) {
	t.Helper()
	again, repeated := 0, 0
	for _, n := range load.broken {
		again += n
	}
	t.Logf("%d connections of %d callbacks were broken", again, len(load.broken))
	if !load.oneStore {
		load.tally.mu.Lock()
		for key, broken := range load.broken {
			arrivals := load.tally.delivered[key]
			if len(arrivals) < 1 || len(arrivals) > 1+broken {
				t.Errorf("%s reached the app %d times, with %d broken connections", key, len(arrivals), broken)
			}
			repeated += max(len(arrivals)-1, 0)
			delete(load.tally.delivered, key)
			delete(load.tally.all, key)
		}
		load.tally.mu.Unlock()
		t.Logf("of these callbacks, counted apart, %d reached the app again", repeated)
	}
	n := load.tally.count(t)
	want := counts{callbacks: n.callbacks, sent: n.sent, reached: n.callbacks}
	if n != want || n.callbacks == 0 {
		t.Errorf("counted %s; want %s", n, want)
	}
}
