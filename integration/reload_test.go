package integration

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

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddyserver/caddy/v2"
	"github.com/redis/go-redis/v9"
)

// A reload does not disturb a request that waits for its app: it finishes, with
// the old configuration, and its answer is recorded. The store of the old
// configuration is closed after its last request and not before, whether the new
// one uses another store, the same, or none.
func TestReload(t *testing.T) {
	uses := storeUses()
	redis := redistest.Start(t)
	redisBlock := "redis " + redis.URL()
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
			app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.Header.Get("Idempotency-Key"), "test:held") {
					started <- true
					<-held
				}
				w.WriteHeader(http.StatusCreated)
			})
			t.Setenv("OTHER", t.TempDir()+"/other.sqlite")
			heldOrder := sitetest.Order("held: "+name, "1") // the cases share one redis
			block := func(options string) string {
				if options == "" {
					return "reverse_proxy " + app.Addr()
				}
				return sitetest.Block(options) + "reverse_proxy " + app.Addr()
			}
			s := sitetest.Start(t, block(tc.before))
			s.Post(sitetest.Order("warm up: "+name, "1")).Expect(t, "before", 201)
			answer := make(chan sitetest.Reply)
			go func() { answer <- s.Post(heldOrder) }()
			<-started

			s.Load(block(tc.after))
			if tc.after != "" {
				s.PostAgain(sitetest.Order("after: "+name, "1")).Expect(t, "after the reload", 201)
			}
			if n := len(addedUses(uses)); tc.before != tc.after && n < 1 {
				t.Error("the store was closed under a request")
			}
			finish()
			(<-answer).Expect(t, "the held request", 201)

			wanted := 1
			if tc.after == "" {
				wanted = 0
			}
			sitetest.Eventually(t, "the old store is closed", func() bool { return len(addedUses(uses)) == wanted })

			// With the old store back, the answer is found to be recorded.
			s.Load(block(tc.before))
			again := s.PostAgain(heldOrder)
			again.Expect(t, "repeat", 201)
			if again.Header.Get("Idempotent-Replayed") != "true" {
				t.Error("the answer of the held request was not recorded")
			}
			s.Load("respond 200")
		})
	}
	if n := len(addedUses(uses)); n != 0 {
		t.Errorf("%d stores are still open", n)
	}
}

// A configuration that fails to load leaves the running one as it is, its store
// included.
func TestReloadFails(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	good := sitetest.Block() + "reverse_proxy " + app.Addr()
	s := sitetest.Start(t, good)
	s.Post(sitetest.Order("one", "1")).Expect(t, "before", 200)
	for _, bad := range []string{
		sitetest.Block("retention 1h"),
		sitetest.Block("account other {env.UNSET_KEY} x"),
		sitetest.Block("redis redis://user:password@[::1"),
		sitetest.Block() + "no_such_directive",
		sitetest.Block() + "reverse_proxy " + app.Addr() + "\ntls /no/such/file.pem /no/such/key.pem",
	} {
		if err := s.TryLoad(good + "\n" + bad); err == nil {
			t.Errorf("loaded: %s", bad)
		}
		s.PostAgain(sitetest.Order("one", "1")).Expect(t, "repeat", 200)
	}
	if n := len(app.Received()); n != 1 {
		t.Errorf("the app received %d requests, want 1", n)
	}
}

// Two handlers with the same settings share one store, and closing one leaves
// it to the other.
func TestHandlersShareStore(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	block := func(paths ...string) string {
		var b strings.Builder
		for _, p := range paths {
			fmt.Fprintf(&b, "handle %s {\n%sreverse_proxy %s\n}\n", p, sitetest.Block(), app.Addr())
		}
		return b.String()
	}
	uses := storeUses()
	s := sitetest.Start(t, block("/a", "/callback"))
	s.Post(sitetest.Order("one", "1")).Expect(t, "first", 200)
	if n := len(addedUses(uses)); n != 1 {
		t.Errorf("%d stores are open, want 1", n)
	}
	s.Load(block("/callback"))
	again := s.PostAgain(sitetest.Order("one", "1"))
	again.Expect(t, "repeat", 200)
	if again.Header.Get("Idempotent-Replayed") != "true" || len(addedUses(uses)) != 1 {
		t.Error("the shared store was lost")
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := len(addedUses(uses)); n != 0 {
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
	one, two := redistest.Start(t), redistest.Start(t)
	redises := []*redis.Client{one.Client(), two.Client()}
	// The timeout is for a busy machine.
	onOne, onTwo := "redis "+one.URL()+" {\ntimeout 5s\n}", "redis "+two.URL()+" {\ntimeout 5s\n}"
	const embedded, removed = "body iak", ""
	for _, tc := range []struct {
		name     string
		configs  []string // taken in turn
		switches bool     // of the store
	}{
		{name: "one Redis", configs: []string{
			onOne + "\nupstream_timeout 10s",
			"redis " + one.URL() + " {\ntimeout 5s\npool_size 3\n}",
			"redis " + one.URL() + " {\ntimeout 4s\n}",
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
				return sitetest.Block(options) + "reverse_proxy " + load.app.Addr()
			}
			s := sitetest.Start(t, block(removed))
			before := countResources(t, redises)
			s.Load(block(tc.configs[0]))
			finish := load.start(s.URL)
			// One that fails while it is started serves requests until then.
			own := tc.configs[0]
			if tc.switches {
				own = "embedded " + t.TempDir() + "/other.sqlite"
			}
			fails := []string{
				block("redis " + two.URL() + "/1\nretention 1h"),
				block(own) + "\n}\nhttp://" + one.Addr() + " {\n", // Redis listens there
			}
			for i := 1; i <= 20; i++ {
				config := tc.configs[i%len(tc.configs)]
				s.Load(block(config))
				if err := s.TryLoad(fails[i%len(fails)]); err == nil {
					t.Error("a broken configuration was loaded")
				}
				answers := &load.accepted // under load means that there are answers
				if config == removed {
					answers = &load.absent
				}
				sofar := answers.Load()
				sitetest.Eventually(t, "callbacks go on", func() bool { return answers.Load() >= sofar+20 })
			}
			if tc.configs[20%len(tc.configs)] == removed {
				s.Load(block(tc.configs[0]))
			}
			finish()
			load.check(t)

			// The garbage collector closes what is forgotten, and would hide it.
			defer debug.SetGCPercent(debug.SetGCPercent(-1))
			// What is in use is seen, and it is gone when the handler is.
			if now := countResources(t, redises); now.stores() != 1 {
				t.Errorf("%d stores are in use, want 1: %+v", now.stores(), now)
			}
			s.Load(block(removed))
			load.app.CloseClientConnections() // which Caddy's proxy keeps for a while
			after := before
			defer func() { t.Logf("before %+v, after %+v", before, after) }()
			sitetest.Eventually(t, "nothing is left behind", func() bool {
				after = countResources(t, redises)
				return after.stores() == 0 &&
					after.files <= before.files && after.goroutines <= before.goroutines
			})

			// The same when Caddy stops.
			s.Load(block(tc.configs[0]))
			s.PostAgain(sitetest.Order("the last of "+load.name, "1")).Expect(t, "after the storm", 200)
			if now := countResources(t, redises); now.stores() != 1 {
				t.Errorf("%d stores are in use, want 1: %+v", now.stores(), now)
			}
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			load.app.CloseClientConnections()
			sitetest.Eventually(t, "nothing is left behind by a stop", func() bool {
				after = countResources(t, redises)
				return after.stores() == 0 && after.files <= before.files
			})
		})
	}
}

// resources are what a store may leave behind.
type resources struct {
	clients    [2]int // connections to each Redis
	databases  int    // files of the embedded store that are open
	files      int    // open files of any kind, connections included
	goroutines int
}

// stores are the stores that are in use.
func (r resources) stores() (n int) {
	for _, clients := range r.clients {
		n += min(clients, 1)
	}
	return n + r.databases
}

// countResources counts them. The clients are those that it asks Redis with,
// and not counted themselves.
func countResources(t *testing.T, redises []*redis.Client) (r resources) {
	t.Helper()
	for i, client := range redises {
		list, err := client.ClientList(context.Background()).Result()
		if err != nil {
			t.Fatal(err)
		}
		r.clients[i] += strings.Count(list, "\n") - 1
	}
	r.goroutines = runtime.NumGoroutine()
	files := make(map[string]bool)
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
		if strings.HasSuffix(target, ".sqlite") {
			files[target] = true
		}
	}
	r.databases = len(files)
	return r
}

// storm is IAK that sends callbacks without a pause, each until it is accepted,
// and the app that gets them.
type storm struct {
	t        *testing.T
	name     string // its ref_ids begin with it: the storms share one Redis
	oneStore bool   // all configurations share their records
	app      *sitetest.App
	tally    *sitetest.Tally
	accepted atomic.Int64
	absent   atomic.Int64 // answers of a configuration without the handler

	mu     sync.Mutex
	broken map[string]int // requests without an answer, by Idempotency-Key
}

func newStorm(t *testing.T, name string, oneStore bool) *storm {
	t.Helper()
	load := &storm{t: t, name: name, oneStore: oneStore, tally: sitetest.NewTally(), broken: make(map[string]int)}
	load.app = sitetest.StartApp(t, load.tally.Counting(nil))
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
		switch status := load.tally.Send(url, refID, "1"); {
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
		load.tally.Mu.Lock()
		for key, broken := range load.broken {
			arrivals := load.tally.Delivered[key]
			if len(arrivals) < 1 || len(arrivals) > 1+broken {
				t.Errorf("%s reached the app %d times, with %d broken connections", key, len(arrivals), broken)
			}
			repeated += max(len(arrivals)-1, 0)
			delete(load.tally.Delivered, key)
			delete(load.tally.All, key)
		}
		load.tally.Mu.Unlock()
		t.Logf("of these callbacks, counted apart, %d reached the app again", repeated)
	}
	n := load.tally.Count(t)
	want := sitetest.Counts{Callbacks: n.Callbacks, Sent: n.Sent, Reached: n.Callbacks}
	if n != want || n.Callbacks == 0 {
		t.Errorf("counted %s; want %s", n, want)
	}
}
