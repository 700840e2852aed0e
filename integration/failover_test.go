package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/redis/go-redis/v9"
)

// load is IAK at work: callback after callback, each sent until it is accepted.
type load struct {
	t   *testing.T
	c   *sitetest.Tally
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
func startLoad(t *testing.T, c *sitetest.Tally, url, name string) *load {
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
		got := l.c.Send(l.url, refID, "1")
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
	sitetest.Eventually(l.t, "30 more callbacks are accepted", func() bool { return len(l.refIDs()) >= want })
}

// recovers waits for the first callback, of those that match, that is sent after
// the fault and accepted, and returns how long that took.
func (l *load) recovers(fault time.Time, match func(refID string) bool) (took time.Duration) {
	l.t.Helper()
	seen := 0
	sitetest.Eventually(l.t, "a callback is accepted after the fault", func() bool {
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
		b, err := store.Get(context.Background(), "iak:test:"+refID).Bytes()
		if err != nil && !errors.Is(err, redis.Nil) {
			t.Fatal(err)
		}
		// The second byte of a record says what it holds, by its lowest bit whether an accepted outcome.
		if len(b) < 2 || b[1]&1 == 0 {
			forgotten = append(forgotten, refID)
		}
	}
	slices.Sort(forgotten)
	return forgotten
}

// slowApp takes a moment for each callback, so that some are under way whenever
// something breaks.
func slowApp(http.ResponseWriter, *http.Request) { time.Sleep(20 * time.Millisecond) }

// infoHas tells whether a server's INFO says all of it.
func infoHas(s *redis.Client, words ...string) bool {
	info, err := s.Info(context.Background()).Result()
	return err == nil && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(info, w) })
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
			w := redistest.StartWatched(t)
			c := sitetest.NewTally()
			app := sitetest.StartApp(t, c.Counting(slowApp))
			s := redisSite(t, w.URLs(), app, "master_name iak")
			l := startLoad(t, c, s.URL, "order")
			l.flows()

			listened, other := w.ListenedTo()
			old := w.Master(other)
			if row.sentinel {
				listened.Signal(syscall.SIGSTOP)
				defer listened.Signal(syscall.SIGCONT)
			}
			old.Signal(row.signal)
			fault := time.Now()
			sitetest.Eventually(t, "the sentinels choose a new master", func() bool { return w.Master(other) != old })
			elected := time.Since(fault)
			took := l.recovers(fault, nil)
			l.flows()

			l.stop()
			t.Logf("the new master was chosen after %s, the first callback was accepted %s after the fault; answers %v",
				elected.Round(time.Millisecond), took.Round(time.Millisecond), l.answers)
			if extra := c.Repeated(t); len(extra) != 0 {
				t.Errorf("%v reached the app again although IAK did not send them again", extra)
			}

			waitDrained(t)
			operations := func() int { return 0 }
			if row.signal == syscall.SIGSTOP {
				old.Signal(syscall.SIGCONT)
				client := old.Client()
				// What it was sent before it hung is carried out before it answers.
				sitetest.Eventually(t, "the old master answers", func() bool { return client.Ping(context.Background()).Err() == nil })
				operations = func() int { return old.Calls(client)["evalsha"] }
			}
			before := operations()
			all := l.refIDs()
			missing := forgotten(t, w.Master(other).Client(), all)
			for i := range 30 {
				all = append(all, fmt.Sprint("later-", i))
			}
			l.sendAgain(all)
			if extra := c.Repeated(t); !slices.Equal(extra, missing) {
				t.Errorf("%v reached the app again, want those that the new master did not know, %v", extra, missing)
			}
			if n := operations() - before; n != 0 {
				t.Errorf("%d operations went to the old master after it came back, want none", n)
			}
		})
	}
}

// When a master of a Cluster dies, its replica takes over, and Caddy follows
// without a restart. No callback is lost; one that the app has accepted is
// delivered again only if the replica does not know it.
func TestClusterFailover(t *testing.T) {
	cluster := redistest.StartShards(t)
	c := sitetest.NewTally()
	app := sitetest.StartApp(t, c.Counting(slowApp))
	s := redisSite(t, cluster.URLs(), app, "cluster")
	l := startLoad(t, c, s.URL, "order")
	l.flows()

	cluster.Servers[0].Kill()
	fault := time.Now()
	sitetest.Eventually(t, "the replica takes over", func() bool { return infoHas(cluster.Clients[3], "role:master") })
	elected := time.Since(fault)
	took := l.recovers(fault, func(refID string) bool {
		return cluster.Slot("iak:test:"+refID) < redistest.Slots/3
	})
	l.flows()
	l.stop()
	t.Logf("the replica took over after %s, the first callback of its slots was accepted %s after the fault; answers %v",
		elected.Round(time.Millisecond), took.Round(time.Millisecond), l.answers)
	if extra := c.Repeated(t); len(extra) != 0 {
		t.Errorf("%v reached the app again although IAK did not send them again", extra)
	}

	waitDrained(t)
	all := l.refIDs()
	missing := forgotten(t, cluster.Client(), all)
	l.sendAgain(all)
	if extra := c.Repeated(t); !slices.Equal(extra, missing) {
		t.Errorf("%v reached the app again, want those that the replica did not know, %v", extra, missing)
	}
}

// A slot that moves to another node under load, as when a cluster grows, loses
// and repeats nothing: claims, their settlements and duplicates follow the
// records by redirections, to a node that has never seen the scripts.
func TestClusterSlotMoves(t *testing.T) {
	cluster := redistest.StartShards(t)
	c := sitetest.NewTally()
	moved := make(chan bool)
	app := sitetest.StartApp(t, c.Counting(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Idempotency-Key"), "long") {
			<-moved
		}
		slowApp(w, r)
	}))
	ctx := context.Background()
	for _, client := range cluster.Clients { // the documented rights, for the keys of this test
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
	urls := strings.ReplaceAll(cluster.URLs(), "redis://", "redis://iak:pass@")
	s := redisSite(t, urls, app, "cluster", "key_prefix {iak}:")
	slot := cluster.Slot("{iak}:")
	from := slot * 3 / redistest.Slots
	to := (from + 1) % 3
	l := startLoad(t, c, s.URL, "order")
	var long sync.WaitGroup
	for i := range 5 {
		long.Go(func() { l.deliver(fmt.Sprint("long-", i)) })
	}
	sitetest.Eventually(t, "the long deliveries are under way", func() bool {
		n := 0
		for _, d := range app.Received() {
			if strings.Contains(d.Header.Get("Idempotency-Key"), "long") {
				n++
			}
		}
		return n == 5
	})
	l.flows()
	for _, i := range []int{from, to} {
		if err := cluster.Clients[i].ConfigResetStat(ctx).Err(); err != nil {
			t.Fatal(err)
		}
	}

	keys := cluster.MoveSlot(slot, from, to, l.flows)
	l.flows()
	close(moved)
	long.Wait()
	l.stop()
	l.sendAgain(l.refIDs())

	redirected, err := cluster.Clients[from].Info(ctx, "errorstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := cluster.Clients[to].Info(ctx, "errorstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	if keys < 30 || !strings.Contains(redirected, "errorstat_ASK:") || !strings.Contains(redirected, "errorstat_MOVED:") || !strings.Contains(unknown, "errorstat_NOSCRIPT:") {
		t.Errorf("%d keys were moved; errors of the old node %q, of the new one %q: the test shows nothing", keys, redirected, unknown)
	}
	t.Logf("%d keys were moved under load; answers %v", keys, l.answers)
	if n := c.Count(t); n.Lost != 0 || n.Extra != 0 {
		t.Errorf("%d lost, %d extra, want none", n.Lost, n.Extra)
	}
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
			p := redistest.StartPair(t, row.args...)
			c := sitetest.NewTally()
			app := sitetest.StartApp(t, c.Counting(nil))
			s := redisSite(t, "unix://"+p.Socket, app, "timeout 3s")
			l := startLoad(t, c, s.URL, "replicated")
			l.flows()
			l.stop()
			p.WaitReplicated()
			p.Link.Signal(syscall.SIGSTOP)
			since := time.Now()
			behind := &load{t: t, c: c, url: s.URL, answers: make(map[int]int)}
			if row.bounded {
				refused := 0
				sitetest.Eventually(t, "the master takes no more claims", func() bool {
					refID := fmt.Sprint("behind-", len(behind.accepted))
					switch got := c.Send(s.URL, refID, "1"); got {
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
				reached := len(app.Received())
				for i := range 5 {
					if got := c.Send(s.URL, fmt.Sprint("refused-", i), "1"); got != 503 {
						t.Errorf("status %d, want 503", got)
					}
				}
				if n := len(app.Received()) - reached; n != 0 {
					t.Errorf("%d callbacks reached the app without a claim, want none", n)
				}
				if !strings.Contains(s.Log(), "NOREPLICAS") {
					t.Error("the log does not say NOREPLICAS")
				}
				if got := c.Send(s.URL, l.refIDs()[0], "1"); got != 200 {
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
			p.FailOver()

			// What was refused is delivered now; it is no repeat.
			if row.bounded {
				for i := range 5 {
					l.deliver(fmt.Sprint("refused-", i))
				}
				l.deliver(fmt.Sprint("behind-", len(want)))
			}
			for round := range 2 { // what is forgotten is forgotten once
				l.sendAgain(slices.Concat(l.refIDs(), want))
				extra := c.Repeated(t)
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
			for _, d := range app.Received() {
				if got := d.Header.Get("Iak-Attempt"); got != "1" {
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
	p := redistest.StartPair(t, "--min-replicas-to-write", "1", "--min-replicas-max-lag", "1")
	c := sitetest.NewTally()
	refusing := make(chan bool)
	app := sitetest.StartApp(t, c.Counting(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Idempotency-Key"), "work") {
			<-refusing
		}
	}))
	s := redisSite(t, "unix://"+p.Socket, app, "timeout 3s")
	status := make(chan int)
	go func() { status <- c.Send(s.URL, "work", "1") }()
	sitetest.Eventually(t, "the app is at work", func() bool { return len(app.Received()) == 1 })
	p.Link.Signal(syscall.SIGSTOP)
	n := 0
	sitetest.Eventually(t, "the master takes no more claims", func() bool {
		n++
		return c.Send(s.URL, fmt.Sprint("behind-", n), "1") == 503
	})
	close(refusing)
	if got := <-status; got != 200 {
		t.Errorf("status %d, want the app's 200", got)
	}
	if !strings.Contains(s.Log(), "recording it is tried again") {
		t.Error("the log does not say that the answer could not be recorded yet")
	}
	p.Link.Signal(syscall.SIGCONT)
	sitetest.Eventually(t, "the answer is recorded", func() bool { return c.Send(s.URL, "work", "1") == 200 })
	for i := 1; i <= n; i++ {
		if got := c.Deliver(s.URL, fmt.Sprint("behind-", i), "1", 20*time.Second); got != 200 {
			t.Errorf("status %d, want 200", got)
		}
	}
	if n := c.Count(t); n.Lost != 0 || n.Extra != 0 {
		t.Errorf("%d lost, %d extra, want none", n.Lost, n.Extra)
	}
}

// A claim that died with its master does not keep a repeat that comes through another
// Caddy from the app that is still at work on the first delivery; one that was replicated
// does, and so does the Caddy whose delivery it is. Either way all answers are recorded,
// and the app gets nothing after them.
func TestClaimLostWithMaster(t *testing.T) {
	for _, row := range []struct {
		name       string
		replicated bool
		through    string // which of the Caddys the repeat comes
		status     int    // of the repeat
		extra      int
	}{
		{name: "replicated", replicated: true, through: "/other", status: 409},
		{name: "not replicated", through: "/other", status: 200, extra: 1},
		{name: "not replicated, the same Caddy", through: "/one", status: 409},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := redistest.StartPair(t)
			c := sitetest.NewTally()
			done := make(chan bool)
			var once sync.Once
			app := sitetest.StartApp(t, c.Counting(func(http.ResponseWriter, *http.Request) {
				first := false
				once.Do(func() { first = true })
				if first {
					<-done
				}
			}))
			// Two handlers with other settings of their store know as little of each other as
			// two Caddys.
			handle := func(path, timeout string) string {
				return "handle " + path + " {\n" + sitetest.Block("redis unix://"+p.Socket+" {\ntimeout "+timeout+"\n}") + "reverse_proxy " + app.Addr() + "\n}\n"
			}
			watchRepeating()
			s := sitetest.Start(t, handle("/one", "3s")+handle("/other", "2s"))
			if !row.replicated {
				p.WaitReplicated()
				p.Link.Signal(syscall.SIGSTOP)
			}
			status := make(chan int)
			go func() { status <- c.Send(s.URL+"/one", "order", "1") }()
			sitetest.Eventually(t, "the app is at work", func() bool { return len(app.Received()) == 1 })
			if row.replicated {
				p.WaitReplicated()
			}
			p.FailOver()

			got := 0
			sitetest.Eventually(t, "the store answers again", func() bool {
				got = c.Send(s.URL+row.through, "order", "1")
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
			if got := c.Deliver(s.URL+row.through, "order", "1", 20*time.Second); got != 200 {
				t.Errorf("again: status %d, want 200", got)
			}
			c.Repeated(t)
			if n := len(app.Received()) - 1; n != row.extra {
				t.Errorf("%d extra deliveries, want %d", n, row.extra)
			}
		})
	}
}

// The rights that a user of Redis needs: those of the keys and commands of the
// scripts, and for a Cluster to find the nodes; at the sentinels, to find and
// follow the master.
var (
	aclSingle   = []string{"~iak:*", "+evalsha", "+eval", "+time", "+get", "+set", "+del", "+pttl", "+scan", "+getrange", "+zadd", "+zrem", "+zcard", "+zrange", "+zscore"}
	aclCluster  = append([]string{"+cluster|slots", "+asking"}, aclSingle...)
	aclSentinel = []string{
		"+sentinel|get-master-addr-by-name", "+sentinel|sentinels", "+subscribe", "+ping", "&+switch-master", "&+replica-reconf-done",
	}
)

// A Redis with TLS, whose certificate a private authority has signed, is used
// when Caddy trusts that authority, by SSL_CERT_FILE; single, behind Sentinel and
// as a Cluster, by users with no more rights than are needed.
func TestRedisTLSTrusted(t *testing.T) {
	certificate := redistest.NewCertificate(t)
	t.Setenv("SSL_CERT_FILE", certificate.Authority)
	type starter func(t testing.TB, args ...string) *redistest.Server
	start := func(t *testing.T, server starter, acl []string, args ...string) (s *redistest.Server, tlsAddr string) {
		t.Helper()
		port := sitetest.FreePort(t)
		args = append(args, "--tls-port", port)
		return server(t, slices.Concat(args, certificate.Args(), []string{"--user", "iak", "on", ">pass-w0rd"}, acl)...), "127.0.0.1:" + port
	}
	const user = "rediss://iak:pass-w0rd@"
	for _, row := range []struct {
		name  string
		start func(t *testing.T) (block string, records *redistest.Server)
	}{
		{"single", func(t *testing.T) (string, *redistest.Server) {
			s, addr := start(t, redistest.Start, aclSingle)
			return "redis " + user + addr, s
		}},
		{"sentinel", func(t *testing.T) (string, *redistest.Server) {
			s, addr := start(t, redistest.Start, aclSingle)
			_, port, _ := net.SplitHostPort(addr)
			sentinelPort := sitetest.FreePort(t)
			lines := []string{
				"tls-port " + sentinelPort, "tls-replication yes", "sentinel monitor iak 127.0.0.1 " + port + " 1",
				"user guard on >gu4rd " + strings.Join(aclSentinel, " "),
			}
			redistest.StartSentinel(t, sitetest.FreePort(t), append(lines, certificate.Lines()...)...)
			return "redis " + user + "127.0.0.1:" + sentinelPort + "?sentinel_username=guard&sentinel_password=gu4rd {\nmaster_name iak\n}", s
		}},
		{"cluster", func(t *testing.T) (string, *redistest.Server) {
			s, addr := start(t, redistest.StartCluster, aclCluster, "--tls-cluster", "yes", "--cluster-announce-ip", "127.0.0.1")
			return "redis " + user + addr + " {\ncluster\n}", s
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			block, records := row.start(t)
			c := sitetest.NewTally()
			app := sitetest.StartApp(t, c.Counting(nil))
			p := sitetest.StartProcess(t, t.TempDir(), sitetest.Block(block)+"reverse_proxy "+app.Addr())
			for range 2 {
				if got := c.Deliver(p.URL, "order", "1", 10*time.Second); got != 200 {
					t.Errorf("status %d, want 200", got)
				}
			}
			if n := c.Count(t); n.Extra != 0 || n.Lost != 0 {
				t.Errorf("%d lost, %d extra, want none", n.Lost, n.Extra)
			}
			if n, err := records.Client().DBSize(context.Background()).Result(); n != 1 || err != nil {
				t.Errorf("%d records, %v, want 1", n, err)
			}
		})
	}
}

// A Redis whose certificate Caddy does not trust gets neither the password nor
// a callback, and one that asks Caddy for a certificate has none: the callback is
// refused with 503, and the log says why. skip_verify=true trusts any certificate.
func TestRedisTLSUntrusted(t *testing.T) {
	certificate := redistest.NewCertificate(t)
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
			port := sitetest.FreePort(t)
			args := append(certificate.Args(), "--tls-port", port, "--tls-auth-clients", row.authClients)
			redistest.Start(t, slices.Concat(args, []string{"--user", "iak", "on", ">pass-w0rd"}, aclSingle)...)
			app := sitetest.StartApp(t, nil)
			t.Setenv("IAK_TEST_REDIS", "rediss://iak:pass-w0rd@127.0.0.1:"+port+row.query)
			s := redisSite(t, "{env.IAK_TEST_REDIS}", app)
			// The first handshakes may take longer than the store's timeout.
			sitetest.Eventually(t, fmt.Sprintf("a callback is answered with %d, and the log says %q", row.status, row.log), func() bool {
				got := s.Post(sitetest.Order("order", "1"))
				if got.Status != row.status && got.Status != 503 {
					t.Fatalf("status %d, want %d", got.Status, row.status)
				}
				return got.Status == row.status && slices.ContainsFunc(s.CallbackLines(), func(line map[string]any) bool {
					why, _ := line["error"].(string)
					return row.log == "" || line["level"] == "error" && strings.Contains(why, row.log)
				})
			})
			if n := len(app.Received()); row.status == 503 && n != 0 {
				t.Errorf("the app received %d callbacks, want none", n)
			}
			if strings.Contains(s.Log(), "pass-w0rd") {
				t.Error("the log holds the password")
			}
		})
	}
}
