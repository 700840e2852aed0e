package iakcallback

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
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

// load is IAK at work: callback after callback, each sent until it is accepted.
type load struct {
	t   *testing.T
	c   *tally
	url string

	end func()
	wg  sync.WaitGroup

	mu       sync.Mutex
	accepted []acceptance
	answers  map[int]int // how often each status came
}

// acceptance is a callback that was accepted, and when the request for it began.
type acceptance struct {
	refID string
	began time.Time
}

// startLoad sends callbacks from 6 senders at once, until it is stopped.
func startLoad(t *testing.T, c *tally, url, name string) *load {
	t.Helper()
	stop := make(chan struct{})
	l := &load{t: t, c: c, url: url, end: sync.OnceFunc(func() { close(stop) }), answers: make(map[int]int)}
	for sender := range 6 {
		l.wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					l.deliver(fmt.Sprintf("%s-%d-%d", name, sender, i))
				}
			}
		})
	}
	t.Cleanup(l.stop)
	return l
}

// deliver sends a callback until it is accepted.
func (l *load) deliver(refID string) {
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		began := time.Now()
		got := l.c.send(l.url, refID, "1")
		l.mu.Lock()
		l.answers[got]++
		if got/100 == 2 {
			l.accepted = append(l.accepted, acceptance{refID, began})
		}
		l.mu.Unlock()
		if got/100 == 2 {
			return
		}
		if time.Now().After(deadline) {
			l.t.Errorf("%s is not accepted; the last status is %d", refID, got)
			return
		}
	}
}

// stop ends the load when what is on its way is accepted, and checks that IAK
// was asked to send again by nothing but 409 and 503.
func (l *load) stop() {
	l.end()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for status := range l.answers {
		if status != 200 && status != 409 && status != 503 {
			l.t.Errorf("the answers are %v, want 200, 409 and 503 only", l.answers)
		}
	}
}

// refIDs are the callbacks accepted so far.
func (l *load) refIDs() (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.accepted {
		all = append(all, a.refID)
	}
	return all
}

// flows waits until 30 more callbacks are accepted.
func (l *load) flows() {
	l.t.Helper()
	want := len(l.refIDs()) + 30
	eventually(l.t, "30 more callbacks are accepted", func() bool { return len(l.refIDs()) >= want })
}

// recovers waits for the first callback, of those that match, that is sent after
// the fault and accepted, and returns how long that took.
func (l *load) recovers(fault time.Time, match func(refID string) bool) (took time.Duration) {
	l.t.Helper()
	seen := 0
	eventually(l.t, "a callback is accepted after the fault", func() bool {
		l.mu.Lock()
		news := l.accepted[seen:]
		seen = len(l.accepted)
		l.mu.Unlock()
		for _, a := range news {
			if a.began.After(fault) && (match == nil || match(a.refID)) {
				took = time.Since(fault)
				return true
			}
		}
		return false
	})
	return took
}

// sendAgain sends callbacks, most of them once more, each until it is accepted.
func (l *load) sendAgain(refIDs []string) {
	l.t.Helper()
	next := make(chan string)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for refID := range next {
				l.deliver(refID)
			}
		})
	}
	for _, refID := range refIDs {
		next <- refID
	}
	close(next)
	wg.Wait()
}

// forgotten returns the ref_ids whose accepted outcome the store does not know.
func forgotten(t *testing.T, store redis.Cmdable, refIDs []string) (forgotten []string) {
	t.Helper()
	for _, refID := range refIDs {
		b, err := store.Get(context.Background(), recordKey("iak:", "test", refID)).Bytes()
		if err != nil && !errors.Is(err, redis.Nil) {
			t.Fatal(err)
		}
		r, err := decodeRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if r.accepted == nil {
			forgotten = append(forgotten, refID)
		}
	}
	slices.Sort(forgotten)
	return forgotten
}

// repeated returns the ref_ids that reached the app again after it had accepted
// them. It stands in for count where a store may forget: there a repeat is a
// first attempt again.
func (c *tally) repeated(t *testing.T) (repeated []string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := counts{callbacks: len(c.all), sent: c.sent}
	for key := range c.all {
		arrivals := c.delivered[key]
		n.reached += len(arrivals)
		n.extra += max(len(arrivals)-1, 0)
		if !slices.ContainsFunc(arrivals, func(a arrival) bool { return a.status/100 == 2 }) {
			n.lost++
			if c.told[key] {
				n.lied++
			}
		}
		if len(arrivals) > 1 {
			repeated = append(repeated, strings.Split(key, ":")[1])
		}
	}
	t.Logf("counted: %s", n)
	if n.lost != 0 {
		t.Errorf("%d callbacks are lost", n.lost)
	}
	slices.Sort(repeated)
	return repeated
}

// slowApp takes a moment for each callback, so that some are under way whenever
// something breaks.
func slowApp(http.ResponseWriter, *http.Request) { time.Sleep(20 * time.Millisecond) }

// infoHas tells whether a server's INFO says all of it.
func infoHas(s *redis.Client, words ...string) bool {
	info, err := s.Info(context.Background()).Result()
	return err == nil && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(info, w) })
}

// startReplica starts a replica and waits until it follows its master.
func startReplica(t *testing.T, master *redisServer, args ...string) *redisServer {
	t.Helper()
	s := startRedis(t, append([]string{"--replicaof", "127.0.0.1 " + master.port, "--repl-diskless-sync", "no"}, args...)...)
	client := redisClient(t, s.addr())
	eventually(t, "the replica follows its master", func() bool { return infoHas(client, "master_link_status:up") })
	return s
}

// watched is a master with two replicas, and three sentinels that watch it as
// "iak".
type watched struct {
	t         *testing.T
	servers   []*redisServer
	sentinels []*redisServer
}

func startWatched(t *testing.T) *watched {
	t.Helper()
	master := startRedis(t, "--repl-diskless-sync", "no")
	w := &watched{t: t, servers: []*redisServer{master, startReplica(t, master), startReplica(t, master)}}
	// They are told of one another: to find out by themselves takes them seconds.
	var ids, ports, known []string
	for i := range 3 {
		ids, ports = append(ids, strings.Repeat(strconv.Itoa(i), 40)), append(ports, freePort(t))
		known = append(known, "sentinel known-sentinel iak 127.0.0.1 "+ports[i]+" "+ids[i])
	}
	for i := range 3 {
		lines := []string{
			"sentinel myid " + ids[i], "sentinel monitor iak 127.0.0.1 " + master.port + " 2",
			"sentinel down-after-milliseconds iak 1000", "sentinel failover-timeout iak 2000",
		}
		w.sentinels = append(w.sentinels, startSentinelServer(t, ports[i], slices.Concat(lines, known[:i], known[i+1:])...))
	}
	for _, s := range w.sentinels {
		client := sentinelClient(t, s)
		eventually(t, "the sentinels know one another and the replicas", func() bool {
			m, err := client.Master(context.Background(), "iak").Result()
			return err == nil && m["num-slaves"] == "2" && m["num-other-sentinels"] == "2" && m["flags"] == "master"
		})
	}
	return w
}

// startSentinelServer starts a Sentinel with the lines of its configuration.
func startSentinelServer(t *testing.T, port string, lines ...string) *redisServer {
	t.Helper()
	s := &redisServer{t: t, dir: t.TempDir(), port: port}
	file := filepath.Join(s.dir, "sentinel.conf")
	lines = append([]string{"port " + s.port, "bind 127.0.0.1", "dir " + s.dir}, lines...)
	writeFile(t, file, []byte(strings.Join(lines, "\n")+"\n"))
	s.cmd = exec.Command("redis-server", file, "--sentinel")
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	client := sentinelClient(t, s)
	eventually(t, "Sentinel answers", func() bool { return client.Ping(context.Background()).Err() == nil })
	return s
}

func sentinelClient(t *testing.T, s *redisServer) *redis.SentinelClient {
	t.Helper()
	c := redis.NewSentinelClient(&redis.Options{Addr: s.addr()})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (w *watched) urls() string {
	var urls []string
	for _, s := range w.sentinels {
		urls = append(urls, s.url())
	}
	return strings.Join(urls, " ")
}

// master returns the server that a sentinel takes for the master.
func (w *watched) master(sentinel *redisServer) *redisServer {
	w.t.Helper()
	addr, err := sentinelClient(w.t, sentinel).GetMasterAddrByName(context.Background(), "iak").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	i := slices.IndexFunc(w.servers, func(s *redisServer) bool { return s.port == addr[1] })
	if i < 0 {
		w.t.Fatalf("the master is %v, want one of the servers", addr)
	}
	return w.servers[i]
}

// listenedTo returns the sentinel that the site listens to, and another one.
func (w *watched) listenedTo() (listened, other *redisServer) {
	w.t.Helper()
	for _, s := range w.sentinels {
		clients, err := redisClient(w.t, s.addr()).Do(context.Background(), "CLIENT", "LIST", "TYPE", "pubsub").Text()
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
		w.t.Fatal("the site listens to no sentinel, or to all")
	}
	return listened, other
}

// When the master of a Sentinel set dies or hangs, alone or together with the
// sentinel that Caddy listens to, the sentinels choose a new one, and Caddy
// follows without a restart. No callback is lost; one that the app has accepted
// is delivered again only if the new master does not know it. A master that
// comes back is not used any more.
func TestSentinelFailover(t *testing.T) {
	for _, row := range []struct {
		name     string
		signal   syscall.Signal
		sentinel bool // hangs too, as when their machine does
	}{
		{name: "the master dies", signal: syscall.SIGKILL},
		{name: "the master hangs", signal: syscall.SIGSTOP},
		{name: "the master and a sentinel hang", signal: syscall.SIGSTOP, sentinel: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := startWatched(t)
			c := newTally()
			app := startApp(t, c.counting(slowApp))
			s := redisSite(t, w.urls(), app, "master_name iak")
			l := startLoad(t, c, s.url, "order")
			l.flows()

			listened, other := w.listenedTo()
			old := w.master(other)
			if row.sentinel {
				listened.signal(syscall.SIGSTOP)
				defer listened.signal(syscall.SIGCONT)
			}
			old.signal(row.signal)
			fault := time.Now()
			eventually(t, "the sentinels choose a new master", func() bool { return w.master(other) != old })
			elected := time.Since(fault)
			took := l.recovers(fault, nil)
			l.flows()

			l.stop()
			t.Logf("the new master was chosen after %s, the first callback was accepted %s after the fault; answers %v",
				elected.Round(time.Millisecond), took.Round(time.Millisecond), l.answers)
			if extra := c.repeated(t); len(extra) != 0 {
				t.Errorf("%v reached the app again although IAK did not send them again", extra)
			}

			waitDrained(t)
			operations := func() int { return 0 }
			if row.signal == syscall.SIGSTOP {
				old.signal(syscall.SIGCONT)
				client := redisClient(t, old.addr())
				// What it was sent before it hung is carried out before it answers.
				eventually(t, "the old master answers", func() bool { return client.Ping(context.Background()).Err() == nil })
				operations = func() int { return commandCalls(t, client)["evalsha"] }
			}
			before := operations()
			all := l.refIDs()
			missing := forgotten(t, redisClient(t, w.master(other).addr()), all)
			for i := range 30 {
				all = append(all, fmt.Sprint("later-", i))
			}
			l.sendAgain(all)
			if extra := c.repeated(t); !slices.Equal(extra, missing) {
				t.Errorf("%v reached the app again, want those that the new master did not know, %v", extra, missing)
			}
			if n := operations() - before; n != 0 {
				t.Errorf("%d operations went to the old master after it came back, want none", n)
			}
		})
	}
}

// shards is a Redis Cluster of three masters and three replicas.
type shards struct {
	t       *testing.T
	servers []*redisServer // server i+3 is the replica of i at the start
	clients []*redis.Client
	ids     []string
}

func startShards(t *testing.T) *shards {
	t.Helper()
	ctx := context.Background()
	c := &shards{t: t}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 6 {
		bus := freePort(t)
		s := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "1000",
			"--repl-diskless-sync", "no")
		client := redisClient(t, s.addr())
		id, err := client.ClusterMyID(ctx).Result()
		must(err)
		c.servers, c.clients, c.ids = append(c.servers, s), append(c.clients, client), append(c.ids, id)
		must(client.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err())
		if i < 3 {
			must(client.ClusterAddSlotsRange(ctx, 16384*i/3, 16384*(i+1)/3-1).Err())
		}
		if i > 0 {
			must(c.clients[0].Do(ctx, "CLUSTER", "MEET", "127.0.0.1", s.port, bus).Err())
		}
	}
	for i, client := range c.clients {
		eventually(t, "the nodes have met", func() bool {
			nodes, err := client.ClusterNodes(ctx).Result()
			return err == nil && !slices.ContainsFunc(c.ids, func(id string) bool { return !strings.Contains(nodes, id) }) &&
				!strings.Contains(nodes, "handshake")
		})
		if i >= 3 {
			must(client.ClusterReplicate(ctx, c.ids[i-3]).Err())
		}
	}
	for i, client := range c.clients {
		eventually(t, "the cluster is ready", func() bool {
			info, err := client.ClusterInfo(ctx).Result()
			role := "state=online"
			if i >= 3 {
				role = "master_link_status:up"
			}
			nodes, errNodes := client.ClusterNodes(ctx).Result()
			return err == nil && errNodes == nil && strings.Contains(info, "cluster_state:ok") &&
				strings.Count(nodes, "slave ") == 3 && infoHas(client, role)
		})
	}
	return c
}

func (c *shards) urls() string {
	var urls []string
	for _, s := range c.servers {
		urls = append(urls, s.url())
	}
	return strings.Join(urls, " ")
}

// client is one for the whole cluster.
func (c *shards) client() *redis.ClusterClient {
	var addrs []string
	for _, s := range c.servers {
		addrs = append(addrs, s.addr())
	}
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
	c.t.Cleanup(func() { _ = client.Close() })
	return client
}

// When a master of a Cluster dies, its replica takes over, and Caddy follows
// without a restart. No callback is lost; one that the app has accepted is
// delivered again only if the replica does not know it.
func TestClusterFailover(t *testing.T) {
	cluster := startShards(t)
	c := newTally()
	app := startApp(t, c.counting(slowApp))
	s := redisSite(t, cluster.urls(), app, "cluster")
	l := startLoad(t, c, s.url, "order")
	l.flows()

	cluster.servers[0].kill()
	fault := time.Now()
	eventually(t, "the replica takes over", func() bool { return infoHas(cluster.clients[3], "role:master") })
	elected := time.Since(fault)
	took := l.recovers(fault, func(refID string) bool {
		slot, err := cluster.clients[1].ClusterKeySlot(context.Background(), recordKey("iak:", "test", refID)).Result()
		return err == nil && slot < 16384/3
	})
	l.flows()
	l.stop()
	t.Logf("the replica took over after %s, the first callback of its slots was accepted %s after the fault; answers %v",
		elected.Round(time.Millisecond), took.Round(time.Millisecond), l.answers)
	if extra := c.repeated(t); len(extra) != 0 {
		t.Errorf("%v reached the app again although IAK did not send them again", extra)
	}

	waitDrained(t)
	all := l.refIDs()
	missing := forgotten(t, cluster.client(), all)
	l.sendAgain(all)
	if extra := c.repeated(t); !slices.Equal(extra, missing) {
		t.Errorf("%v reached the app again, want those that the replica did not know, %v", extra, missing)
	}
}

// A node of a Cluster that hangs holds up the calls for its own slots only.
func TestClusterHungNode(t *testing.T) {
	cluster := startShards(t)
	const timeout = 4 * time.Second
	s, err := newRedisStore(redisConfig{urls: strings.Fields(cluster.urls()), cluster: true, timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Destruct() })
	ctx := context.Background()
	keys := make([][]string, 2) // of the first node, and of the others
	for i := range 200 {
		key := fmt.Sprint("iak:shop:", i)
		slot, err := cluster.clients[1].ClusterKeySlot(ctx, key).Result()
		if err != nil {
			t.Fatal(err)
		}
		other := min(int(slot)/(16384/3), 1)
		keys[other] = append(keys[other], key)
	}
	if _, err := s.claim(ctx, claimOf("iak:shop:warm", "A", success, alive)); err != nil {
		t.Fatal(err)
	}
	cluster.servers[0].signal(syscall.SIGSTOP)
	defer cluster.servers[0].signal(syscall.SIGCONT)
	var hung sync.WaitGroup
	for _, key := range keys[0] {
		hung.Go(func() { _, _ = s.claim(ctx, claimOf(key, "A", success, alive)) })
	}
	eventually(t, "calls wait for the node that hangs", func() bool { return goroutines("(*redisStore).run") == len(keys[0]) })
	for _, key := range keys[1] {
		start := time.Now()
		d, err := s.claim(ctx, claimOf(key, "A", success, alive))
		if took := time.Since(start); err != nil || d.verdict != verdictForwarded || took > timeout/2 {
			t.Errorf("%s, which is of another node: %+v, %v after %s", key, d, err, took)
		}
	}
	hung.Wait()
}

// A slot that moves to another node under load, as when a cluster grows, loses
// and repeats nothing: claims, their settlements and duplicates follow the
// records by redirections, to a node that has never seen the scripts.
func TestClusterSlotMoves(t *testing.T) {
	cluster := startShards(t)
	c := newTally()
	moved := make(chan bool)
	app := startApp(t, c.counting(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Idempotency-Key"), "long") {
			<-moved
		}
		slowApp(w, r)
	}))
	ctx := context.Background()
	for _, client := range cluster.clients { // the documented rights, for the keys of this test
		rule := []any{"ACL", "SETUSER", "iak", "on", ">pass", "~{iak}:*"}
		for _, right := range aclCluster[:len(aclCluster)-len(aclSingle)] {
			rule = append(rule, right)
		}
		for _, right := range aclSingle[1:] {
			rule = append(rule, right)
		}
		if err := client.Do(ctx, rule...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	// The braces put all records in one slot.
	urls := strings.ReplaceAll(cluster.urls(), "redis://", "redis://iak:pass@")
	s := redisSite(t, urls, app, "cluster", "key_prefix {iak}:")
	slot, err := cluster.clients[0].ClusterKeySlot(ctx, "{iak}:").Result()
	if err != nil {
		t.Fatal(err)
	}
	from := int(slot) * 3 / 16384
	to := (from + 1) % 3
	l := startLoad(t, c, s.url, "order")
	var long sync.WaitGroup
	for i := range 5 {
		long.Go(func() { l.deliver(fmt.Sprint("long-", i)) })
	}
	eventually(t, "the long deliveries are under way", func() bool {
		n := 0
		for _, d := range app.received() {
			if strings.Contains(d.header.Get("Idempotency-Key"), "long") {
				n++
			}
		}
		return n == 5
	})
	l.flows()
	for _, i := range []int{from, to} {
		if err := cluster.clients[i].ConfigResetStat(ctx).Err(); err != nil {
			t.Fatal(err)
		}
	}

	setSlot := func(node int, args ...any) {
		t.Helper()
		if err := cluster.clients[node].Do(ctx, append([]any{"CLUSTER", "SETSLOT", slot}, args...)...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	setSlot(to, "IMPORTING", cluster.ids[from])
	setSlot(from, "MIGRATING", cluster.ids[to])
	l.flows()
	keys := 0
	for {
		some, err := cluster.clients[from].ClusterGetKeysInSlot(ctx, int(slot), 5).Result()
		if err != nil {
			t.Fatal(err)
		}
		if len(some) == 0 {
			break
		}
		keys += len(some)
		args := []any{"MIGRATE", "127.0.0.1", cluster.servers[to].port, "", 0, 5000, "KEYS"}
		for _, key := range some {
			args = append(args, key)
		}
		if err := cluster.clients[from].Do(ctx, args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	l.flows()
	setSlot(to, "NODE", cluster.ids[to])
	setSlot(from, "NODE", cluster.ids[to])
	l.flows()
	close(moved)
	long.Wait()
	l.stop()
	l.sendAgain(l.refIDs())

	redirected, err := cluster.clients[from].Info(ctx, "errorstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := cluster.clients[to].Info(ctx, "errorstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	if keys < 30 || !strings.Contains(redirected, "errorstat_ASK:") || !strings.Contains(redirected, "errorstat_MOVED:") || !strings.Contains(unknown, "errorstat_NOSCRIPT:") {
		t.Errorf("%d keys were moved; errors of the old node %q, of the new one %q: the test shows nothing", keys, redirected, unknown)
	}
	t.Logf("%d keys were moved under load; answers %v", keys, l.answers)
	if n := c.count(t); n.lost != 0 || n.extra != 0 {
		t.Errorf("%d lost, %d extra, want none", n.lost, n.extra)
	}
}

// pair is a master and a replica behind one address, as a load balancer or a
// name gives them. The replica follows through another server, which stands for
// the network between them: stopped, it passes nothing on.
type pair struct {
	t                     *testing.T
	master, link, replica *redisServer
	address               string
}

func startPair(t *testing.T, args ...string) *pair {
	t.Helper()
	socket := []string{"--unixsocket", "redis.sock", "--repl-diskless-sync", "no"}
	p := &pair{t: t, master: startRedis(t, append(args, socket...)...), address: filepath.Join(t.TempDir(), "redis.sock")}
	p.link = startReplica(t, p.master)
	p.replica = startReplica(t, p.link, socket...)
	p.pointTo(p.master)
	return p
}

func (p *pair) pointTo(s *redisServer) {
	p.t.Helper()
	_ = os.Remove(p.address)
	if err := os.Symlink(filepath.Join(s.dir, "redis.sock"), p.address); err != nil {
		p.t.Fatal(err)
	}
}

var replicationOffset = regexp.MustCompile(`master_repl_offset:(\d+)`)

// waitReplicated waits until the replica has all that the master has.
func (p *pair) waitReplicated() {
	p.t.Helper()
	offset := func(s *redisServer) string {
		info, err := redisClient(p.t, s.addr()).Info(context.Background(), "replication").Result()
		m := replicationOffset.FindStringSubmatch(info)
		if err != nil || m == nil {
			p.t.Fatalf("%v in %q", err, info)
		}
		return m[1]
	}
	eventually(p.t, "the replica has caught up", func() bool { return offset(p.master) == offset(p.replica) })
}

// failOver kills the master, and what it has not passed on with it, and makes
// the replica the master.
func (p *pair) failOver() {
	p.t.Helper()
	p.master.kill()
	p.link.kill()
	if err := redisClient(p.t, p.replica.addr()).Do(context.Background(), "REPLICAOF", "NO", "ONE").Err(); err != nil {
		p.t.Fatal(err)
	}
	p.pointTo(p.replica)
}

// What the master had not yet passed on when it died is forgotten: exactly
// those callbacks, if IAK sends them again, are delivered a second time, as
// first attempts. Nothing is lost. With min-replicas-to-write the master stops
// taking claims soon after its replica falls behind, which bounds how many.
func TestReplicationLosesRecords(t *testing.T) {
	for _, row := range []struct {
		name    string
		args    []string
		bounded bool
	}{
		{name: "asynchronous"},
		{name: "min-replicas-to-write", args: []string{"--min-replicas-to-write", "1", "--min-replicas-max-lag", "1"}, bounded: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := startPair(t, row.args...)
			c := newTally()
			app := startApp(t, c.counting(nil))
			s := redisSite(t, "unix://"+p.address, app, "timeout 3s")
			l := startLoad(t, c, s.url, "replicated")
			l.flows()
			l.stop()
			p.waitReplicated()
			p.link.signal(syscall.SIGSTOP)
			since := time.Now()
			behind := &load{t: t, c: c, url: s.url, answers: make(map[int]int)}
			if row.bounded {
				refused := 0
				eventually(t, "the master takes no more claims", func() bool {
					refID := fmt.Sprint("behind-", len(behind.accepted))
					switch got := c.send(s.url, refID, "1"); got {
					case 200:
						behind.accepted = append(behind.accepted, acceptance{refID, since})
					case 503:
						refused++
					default:
						t.Fatalf("status %d", got)
					}
					return refused > 0
				})
				t.Logf("%d callbacks were accepted in the %s before the master refused", len(behind.accepted), time.Since(since).Round(time.Millisecond))
				reached := len(app.received())
				for i := range 5 {
					if got := c.send(s.url, fmt.Sprint("refused-", i), "1"); got != 503 {
						t.Errorf("status %d, want 503", got)
					}
				}
				if n := len(app.received()) - reached; n != 0 {
					t.Errorf("%d callbacks reached the app without a claim, want none", n)
				}
				if !strings.Contains(s.log(), "NOREPLICAS") {
					t.Error("the log does not say NOREPLICAS")
				}
				if got := c.send(s.url, l.refIDs()[0], "1"); got != 200 {
					t.Errorf("a duplicate: status %d, want 200", got)
				}
			} else {
				for i := range 50 {
					behind.deliver(fmt.Sprint("behind-", i))
				}
			}
			want := behind.refIDs()
			last := want[len(want)-1]
			slices.Sort(want)
			p.failOver()

			// What was refused is delivered now; it is no repeat.
			if row.bounded {
				for i := range 5 {
					l.deliver(fmt.Sprint("refused-", i))
				}
				l.deliver(fmt.Sprint("behind-", len(want)))
			}
			for round := range 2 { // what is forgotten is forgotten once
				l.sendAgain(slices.Concat(l.refIDs(), want))
				extra := c.repeated(t)
				if row.bounded && !slices.Contains(extra, last) {
					// The master took its claim and refused to settle it: that was done in the
					// background, after the failover.
					extra = append(extra, last)
					slices.Sort(extra)
				}
				if !slices.Equal(extra, want) {
					t.Errorf("round %d: %v reached the app again, want what was not replicated, %v", round+1, extra, want)
				}
			}
			for _, d := range app.received() {
				if got := d.header.Get("Iak-Attempt"); got != "1" {
					t.Errorf("Iak-Attempt %s, want 1", got)
				}
			}
		})
	}
}

// The answer of an app that was at work when the master lost its replica is
// given to IAK, and recorded when the replica is back: nothing is lost or
// repeated.
func TestNoReplicasWhileAppWorks(t *testing.T) {
	p := startPair(t, "--min-replicas-to-write", "1", "--min-replicas-max-lag", "1")
	c := newTally()
	refusing := make(chan bool)
	app := startApp(t, c.counting(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Idempotency-Key"), "work") {
			<-refusing
		}
	}))
	s := redisSite(t, "unix://"+p.address, app, "timeout 3s")
	status := make(chan int)
	go func() { status <- c.send(s.url, "work", "1") }()
	eventually(t, "the app is at work", func() bool { return len(app.received()) == 1 })
	p.link.signal(syscall.SIGSTOP)
	n := 0
	eventually(t, "the master takes no more claims", func() bool {
		n++
		return c.send(s.url, fmt.Sprint("behind-", n), "1") == 503
	})
	close(refusing)
	if got := <-status; got != 200 {
		t.Errorf("status %d, want the app's 200", got)
	}
	if !strings.Contains(s.log(), "recording it is tried again") {
		t.Error("the log does not say that the answer could not be recorded yet")
	}
	p.link.signal(syscall.SIGCONT)
	eventually(t, "the answer is recorded", func() bool { return c.send(s.url, "work", "1") == 200 })
	for i := 1; i <= n; i++ {
		if got := c.deliver(s.url, fmt.Sprint("behind-", i), "1", 20*time.Second); got != 200 {
			t.Errorf("status %d, want 200", got)
		}
	}
	if n := c.count(t); n.lost != 0 || n.extra != 0 {
		t.Errorf("%d lost, %d extra, want none", n.lost, n.extra)
	}
}

// A claim that died with its master does not keep a repeat from the app that is
// still at work on the first delivery; one that was replicated does. Either way
// both answers are recorded, and the app gets nothing after them.
func TestClaimLostWithMaster(t *testing.T) {
	for _, row := range []struct {
		name       string
		replicated bool
		status     int // of the repeat
		extra      int
	}{
		{name: "replicated", replicated: true, status: 409},
		{name: "not replicated", status: 200, extra: 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := startPair(t)
			c := newTally()
			done := make(chan bool)
			var once sync.Once
			app := startApp(t, c.counting(func(http.ResponseWriter, *http.Request) {
				first := false
				once.Do(func() { first = true })
				if first {
					<-done
				}
			}))
			s := redisSite(t, "unix://"+p.address, app, "timeout 3s")
			if !row.replicated {
				p.waitReplicated()
				p.link.signal(syscall.SIGSTOP)
			}
			status := make(chan int)
			go func() { status <- c.send(s.url, "order", "1") }()
			eventually(t, "the app is at work", func() bool { return len(app.received()) == 1 })
			if row.replicated {
				p.waitReplicated()
			}
			p.failOver()

			got := 0
			eventually(t, "the store answers again", func() bool {
				got = c.send(s.url, "order", "1")
				return got != 503
			})
			if got != row.status {
				t.Errorf("the repeat: status %d, want %d", got, row.status)
			}
			close(done)
			if got := <-status; got != 200 {
				t.Errorf("the first delivery: status %d, want the app's 200", got)
			}
			waitDrained(t)
			if got := c.deliver(s.url, "order", "1", 20*time.Second); got != 200 {
				t.Errorf("again: status %d, want 200", got)
			}
			c.repeated(t)
			if n := len(app.received()) - 1; n != row.extra {
				t.Errorf("%d extra deliveries, want %d", n, row.extra)
			}
		})
	}
}

// certificates makes a private authority and a certificate of it for 127.0.0.1,
// and returns the authority's file and what lets a Redis use the certificate.
func certificates(t *testing.T) (authority string, settings [][2]string) {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		writeFile(t, file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
		return file
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a private authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, ca, &key.PublicKey, caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	authority = write("authority.pem", "CERTIFICATE", caDER)
	return authority, [][2]string{
		{"tls-cert-file", write("server.pem", "CERTIFICATE", serverDER)},
		{"tls-key-file", write("server.key", "PRIVATE KEY", keyDER)},
		{"tls-ca-cert-file", authority},
		{"tls-auth-clients", "no"},
	}
}

// The rights that a user of Redis needs: those of the keys and commands of the
// scripts, and for a Cluster to find the nodes; at the sentinels, to find and
// follow the master.
var (
	aclSingle   = []string{"~iak:*", "+evalsha", "+eval", "+time", "+get", "+set", "+del", "+pttl", "+scan"}
	aclCluster  = append([]string{"+cluster|slots", "+asking"}, aclSingle...)
	aclSentinel = []string{
		"+sentinel|get-master-addr-by-name", "+sentinel|sentinels", "+subscribe", "+ping", "&+switch-master", "&+replica-reconf-done",
	}
)

// A Redis with TLS, whose certificate a private authority has signed, is used
// when Caddy trusts that authority, by SSL_CERT_FILE; single, behind Sentinel and
// as a Cluster, by users with no more rights than are needed.
func TestRedisTLSTrusted(t *testing.T) {
	authority, settings := certificates(t)
	t.Setenv("SSL_CERT_FILE", authority)
	start := func(t *testing.T, acl []string, args ...string) (s *redisServer, tlsAddr string) {
		t.Helper()
		port := freePort(t)
		args = append(args, "--tls-port", port)
		for _, setting := range settings {
			args = append(args, "--"+setting[0], setting[1])
		}
		return startRedis(t, slices.Concat(args, []string{"--user", "iak", "on", ">pass-w0rd"}, acl)...), "127.0.0.1:" + port
	}
	const user = "rediss://iak:pass-w0rd@"
	for _, row := range []struct {
		name  string
		start func(t *testing.T) (block string, records *redisServer)
	}{
		{"single", func(t *testing.T) (string, *redisServer) {
			s, addr := start(t, aclSingle)
			return "redis " + user + addr, s
		}},
		{"sentinel", func(t *testing.T) (string, *redisServer) {
			s, addr := start(t, aclSingle)
			_, port, _ := net.SplitHostPort(addr)
			sentinelPort := freePort(t)
			lines := []string{
				"tls-port " + sentinelPort, "tls-replication yes", "sentinel monitor iak 127.0.0.1 " + port + " 1",
				"user guard on >gu4rd " + strings.Join(aclSentinel, " "),
			}
			for _, setting := range settings {
				lines = append(lines, setting[0]+" "+setting[1])
			}
			startSentinelServer(t, freePort(t), lines...)
			return "redis " + user + "127.0.0.1:" + sentinelPort + "?sentinel_username=guard&sentinel_password=gu4rd {\nmaster_name iak\n}", s
		}},
		{"cluster", func(t *testing.T) (string, *redisServer) {
			s, addr := start(t, aclCluster, "--cluster-enabled", "yes", "--cluster-port", freePort(t), "--tls-cluster", "yes",
				"--cluster-announce-ip", "127.0.0.1")
			takeAllSlots(t, s)
			return "redis " + user + addr + " {\ncluster\n}", s
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			block, records := row.start(t)
			c := newTally()
			app := startApp(t, c.counting(nil))
			p := startProcess(t, t.TempDir(), handlerBlock(block)+"reverse_proxy "+app.addr())
			for range 2 {
				if got := c.deliver(p.url, "order", "1", 10*time.Second); got != 200 {
					t.Errorf("status %d, want 200", got)
				}
			}
			if n := c.count(t); n.extra != 0 || n.lost != 0 {
				t.Errorf("%d lost, %d extra, want none", n.lost, n.extra)
			}
			if n, err := redisClient(t, records.addr()).DBSize(context.Background()).Result(); n != 1 || err != nil {
				t.Errorf("%d records, %v, want 1", n, err)
			}
		})
	}
}

// A Redis whose certificate Caddy does not trust gets neither the password nor
// a callback, and one that asks Caddy for a certificate has none: the callback is
// refused with 503, and the log says why. skip_verify=true trusts any certificate.
func TestRedisTLSUntrusted(t *testing.T) {
	_, settings := certificates(t)
	for _, row := range []struct {
		name, query, authClients string
		status                   int
		log                      string
	}{
		{"unknown authority", "", "no", 503, "x509: certificate signed by unknown authority"},
		{"skip_verify", "?skip_verify=true", "no", 200, ""},
		{"client certificate wanted", "?skip_verify=true", "yes", 503, "certificate required"},
	} {
		t.Run(row.name, func(t *testing.T) {
			port := freePort(t)
			args := []string{"--tls-port", port}
			for _, setting := range settings {
				args = append(args, "--"+setting[0], setting[1])
			}
			args = append(args, "--tls-auth-clients", row.authClients)
			startRedis(t, slices.Concat(args, []string{"--user", "iak", "on", ">pass-w0rd"}, aclSingle)...)
			app := startApp(t, nil)
			t.Setenv("IAK_TEST_REDIS", "rediss://iak:pass-w0rd@127.0.0.1:"+port+row.query)
			s := redisSite(t, "{env.IAK_TEST_REDIS}", app)
			// The first handshakes may take longer than the store's timeout.
			eventually(t, fmt.Sprintf("a callback is answered with %d, and the log says %q", row.status, row.log), func() bool {
				got := s.post(order("order", "1"))
				if got.status != row.status && got.status != 503 {
					t.Fatalf("status %d, want %d", got.status, row.status)
				}
				return got.status == row.status && slices.ContainsFunc(s.callbackLines(), func(line map[string]any) bool {
					why, _ := line["error"].(string)
					return row.log == "" || line["level"] == "error" && strings.Contains(why, row.log)
				})
			})
			if n := len(app.received()); row.status == 503 && n != 0 {
				t.Errorf("the app received %d callbacks, want none", n)
			}
			if strings.Contains(s.log(), "pass-w0rd") {
				t.Error("the log holds the password")
			}
		})
	}
}

// takeAllSlots makes a server a Cluster of its own.
func takeAllSlots(t *testing.T, s *redisServer) {
	t.Helper()
	client := redisClient(t, s.addr())
	if err := client.ClusterAddSlotsRange(context.Background(), 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster is ready", func() bool {
		info, err := client.ClusterInfo(context.Background()).Result()
		return err == nil && strings.Contains(info, "cluster_state:ok")
	})
}

// A user with exactly the rights of the documentation can do all that the store
// does, also when Redis has forgotten the scripts; without any one of them
// Redis, or Sentinel, denies something.
func TestRedisRights(t *testing.T) {
	for _, row := range []struct {
		name  string
		acl   []string
		start func(t *testing.T) (guarded *redisServer, cfg redisConfig) // guarded is where the rights are needed
	}{
		{"single", aclSingle, func(t *testing.T) (*redisServer, redisConfig) {
			s := startRedis(t)
			return s, redisConfig{urls: []string{"redis://iak:pass@" + s.addr()}}
		}},
		{"cluster", aclCluster, func(t *testing.T) (*redisServer, redisConfig) {
			s := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", freePort(t))
			takeAllSlots(t, s)
			return s, redisConfig{urls: []string{"redis://iak:pass@" + s.addr()}, cluster: true}
		}},
		{"sentinel", aclSentinel, func(t *testing.T) (*redisServer, redisConfig) {
			master := startRedis(t)
			s := startSentinelServer(t, freePort(t), "sentinel monitor iak 127.0.0.1 "+master.port+" 1")
			return s, redisConfig{urls: []string{s.url() + "?sentinel_username=iak&sentinel_password=pass"}, masterName: "iak"}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			server, cfg := row.start(t)
			cfg.timeout = 2 * time.Second
			client := redisClient(t, server.addr())
			ctx := context.Background()
			do := func(args ...any) any {
				t.Helper()
				answer, err := client.Do(ctx, args...).Result()
				if err != nil {
					t.Fatal(err)
				}
				return answer
			}
			denied := func() bool { return len(do("ACL", "LOG").([]any)) != 0 }
			for i := range len(row.acl) + 1 { // the last time with all rights
				if i < len(row.acl) && row.acl[i] == "+asking" {
					continue // for a slot that moves: TestClusterSlotMoves
				}
				acl := slices.Delete(slices.Clone(row.acl), i, min(i+1, len(row.acl)))
				rule := []any{"ACL", "SETUSER", "iak", "reset", "on", ">pass"}
				for _, right := range acl {
					rule = append(rule, right)
				}
				do(rule...)
				do("ACL", "LOG", "RESET")
				if cfg.masterName == "" {
					do("SCRIPT", "FLUSH")
				}
				s, err := newRedisStore(cfg)
				if err != nil {
					t.Fatal(err)
				}
				err = useAll(s, fmt.Sprintf("iak:shop:%02d", i))
				if i < len(row.acl) {
					eventually(t, row.acl[i]+" is needed", denied)
					t.Logf("without %s: %v", row.acl[i], err)
				} else if err != nil || denied() {
					t.Errorf("with all rights: %v, denied: %v", err, do("ACL", "LOG"))
				}
				_ = s.Destruct()
			}
		})
	}
}

// useAll does all that a store does.
func useAll(s recordStore, key string) error {
	ctx := context.Background()
	c := claimOf(key, "A", success, alive)
	for _, verdict := range []settleVerdict{settleUnsent, settleReleased, settleAccepted} {
		d, err := s.claim(ctx, c)
		if err == nil {
			err = s.settle(ctx, settlementOf(c, d, verdict))
		}
		if err != nil {
			return err
		}
	}
	if _, err := s.claim(ctx, claimOf(c.key, "B", success, alive)); err != nil {
		return err
	}
	return operateAll(s, key)
}

// operateAll does all that a store does for operators.
func operateAll(s recordStore, key string) error {
	ctx := context.Background()
	listed := 0
	if _, err := s.read(ctx, key); err != nil {
		return err
	}
	err := s.list(ctx, key, func(string, snapshot) error {
		listed++
		return nil
	})
	if err != nil {
		return err
	}
	if listed != 1 {
		return fmt.Errorf("%d records are listed, want 1", listed)
	}
	for _, result := range []record{{attempt: 3}, {}} { // set and del
		_, err := s.change(ctx, key, 48*time.Hour, func(r *record, _ int64) error {
			*r = result
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
