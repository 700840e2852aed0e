//go:build unix

package redistest

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// MasterName is what the sentinels call the master that they watch.
const MasterName = "iak"

// StartSentinel starts a Sentinel on a port, with lines of its configuration.
func StartSentinel(t testing.TB, port string, lines ...string) *Server {
	t.Helper()
	s := &Server{t: t, Dir: t.TempDir(), Port: port}
	file := filepath.Join(s.Dir, "sentinel.conf")
	lines = append([]string{"port " + s.Port, "bind 127.0.0.1", "dir " + s.Dir, "loglevel warning"}, lines...)
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.args = []string{file, "--sentinel"}
	s.Start()
	t.Cleanup(s.Kill)
	return s
}

// Sentinel is a client for a Sentinel, without a password.
func (s *Server) Sentinel() *redis.SentinelClient {
	c := redis.NewSentinelClient(&redis.Options{Addr: s.Addr()})
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// StartWatchedServer starts a Redis, and one Sentinel that watches it as
// MasterName; lines are of the Sentinel's configuration.
func StartWatchedServer(t testing.TB, lines ...string) (master, sentinel *Server) {
	t.Helper()
	master = Start(t)
	monitor := "sentinel monitor " + MasterName + " 127.0.0.1 " + master.Port + " 1"
	return master, StartSentinel(t, FreePort(t), append([]string{monitor}, lines...)...)
}

// Watched is a master with two replicas, and three sentinels that watch it as
// MasterName. They take it for down after one second.
type Watched struct {
	Servers   []*Server // the first is the master at the start
	Sentinels []*Server

	t testing.TB
}

// StartWatched starts a Watched, and waits until its sentinels know everything.
func StartWatched(t testing.TB) *Watched {
	t.Helper()
	master := Start(t, "--repl-diskless-sync", "no")
	w := &Watched{t: t, Servers: []*Server{master, StartReplica(t, master), StartReplica(t, master)}}
	// They are told of one another: to find out by themselves takes them seconds.
	var ids, ports, known []string
	for i := range 3 {
		ids, ports = append(ids, strings.Repeat(strconv.Itoa(i), 40)), append(ports, FreePort(t))
		known = append(known, "sentinel known-sentinel "+MasterName+" 127.0.0.1 "+ports[i]+" "+ids[i])
	}
	for i := range 3 {
		lines := []string{
			"sentinel myid " + ids[i], "sentinel monitor " + MasterName + " 127.0.0.1 " + master.Port + " 2",
			"sentinel down-after-milliseconds " + MasterName + " 1000", "sentinel failover-timeout " + MasterName + " 2000",
		}
		w.Sentinels = append(w.Sentinels, StartSentinel(t, ports[i], slices.Concat(lines, known[:i], known[i+1:])...))
	}
	for _, s := range w.Sentinels {
		client := s.Sentinel()
		Eventually(t, "the sentinels know one another and the replicas", func() bool {
			m, err := client.Master(context.Background(), MasterName).Result()
			return err == nil && m["num-slaves"] == "2" && m["num-other-sentinels"] == "2" && m["flags"] == "master"
		})
	}
	return w
}

// Addrs are the sentinels' addresses.
func (w *Watched) Addrs() (addrs []string) {
	for _, s := range w.Sentinels {
		addrs = append(addrs, s.Addr())
	}
	return addrs
}

// URLs are the sentinels' URLs, one word each.
func (w *Watched) URLs() string { return urls(w.Sentinels) }

func urls(servers []*Server) string {
	all := make([]string, 0, len(servers))
	for _, s := range servers {
		all = append(all, s.URL())
	}
	return strings.Join(all, " ")
}

// Master returns the server that a sentinel takes for the master.
func (w *Watched) Master(sentinel *Server) *Server {
	w.t.Helper()
	addr, err := sentinel.Sentinel().GetMasterAddrByName(context.Background(), MasterName).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	i := slices.IndexFunc(w.Servers, func(s *Server) bool { return s.Port == addr[1] })
	if i < 0 {
		w.t.Fatalf("the master is %v, want one of the servers", addr)
	}
	return w.Servers[i]
}

// Switches collects the masters that any of the sentinels changes to from now on.
func (w *Watched) Switches() func() []Switch {
	w.t.Helper()
	var mu sync.Mutex
	var seen []Switch
	for _, s := range w.Sentinels {
		messages := s.Sentinel().Subscribe(context.Background(), "+switch-master")
		w.t.Cleanup(func() { _ = messages.Close() })
		if _, err := messages.Receive(context.Background()); err != nil { // it listens
			w.t.Fatal(err)
		}
		go func() {
			for m := range messages.Channel() {
				words := strings.Fields(m.Payload) // name, old address and port, new ones
				mu.Lock()
				seen = append(seen, Switch{At: time.Now(), Port: words[len(words)-1]})
				mu.Unlock()
			}
		}()
	}
	return func() []Switch {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// Switch is a new master, as a sentinel has told it.
type Switch struct {
	At   time.Time
	Port string
}

// ListenedTo returns the sentinel whose messages somebody listens to, and
// another one.
func (w *Watched) ListenedTo() (listened, other *Server) {
	w.t.Helper()
	for _, s := range w.Sentinels {
		clients, err := s.Client().Do(context.Background(), "CLIENT", "LIST", "TYPE", "pubsub").Text()
		if err != nil {
			w.t.Fatal(err)
		}
		if clients != "" {
			listened = s
		} else {
			other = s
		}
	}
	if listened == nil || other == nil {
		w.t.Fatal("no sentinel is listened to, or all are")
	}
	return listened, other
}
