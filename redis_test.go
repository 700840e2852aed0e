package iakcallback

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

var (
	progress = record.Outcome{Status: record.Process}
	success  = record.Outcome{Status: record.Success}
	late     = record.Outcome{Status: record.Success, Goods: [8]byte{'S'}}
	failed   = record.Outcome{Status: record.Failed}
)

// tested is a store on Redis, as the option makes it.
type tested struct {
	*store.Store
	warnings *observer.ObservedLogs
}

// testStore opens a store, with time enough for a busy machine.
func testStore(t testing.TB, cfg redisConfig) *tested {
	t.Helper()
	if cfg.timeout == 0 {
		cfg.timeout = 5 * time.Second
	}
	engine, err := cfg.engine()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Destruct() })
	core, warnings := observer.New(zapcore.WarnLevel)
	log := zap.New(core)
	return &tested{&store.Store{
		Engine: engine, Log: func() *zap.Logger { return log }, Hold: func() func() { return func() {} },
	}, warnings}
}

// claimed is a claim of one delivery, with everything that the tests below do not
// care about.
type claimed struct {
	key string
	record.Request
}

func claimOf(key, who string, o record.Outcome) *claimed {
	c := &claimed{key, record.Request{Outcome: o, Lease: time.Hour}}
	copy(c.Owner[:], who)
	return c
}

// granted is the answer to a claim.
type granted struct {
	record.Decision
	lease *store.Lease
}

func (s *tested) claim(c *claimed) (granted, error) {
	lease, d, err := s.Claim(store.Place{Key: c.key, Index: defaultKeyPrefix, Retention: 48 * time.Hour}, &c.Request)
	return granted{d, lease}, err
}

// mustClaim makes a claim that has to be forwarded.
func mustClaim(t testing.TB, s *tested, c *claimed) granted {
	t.Helper()
	return wantVerdict(t, s, c, record.Forwarded)
}

// mustSettle ends a claim; an accepted one with 200.
func mustSettle(t testing.TB, s *tested, d granted, ending record.Ending) {
	t.Helper()
	before := s.warnings.Len()
	if d.lease.Settle(ending, 200); s.warnings.Len() != before {
		t.Fatalf("%s: %v", ending, s.warnings.All()[before].ContextMap())
	}
}

// wantVerdict makes a claim and compares what it comes to.
func wantVerdict(t testing.TB, s *tested, c *claimed, want record.Verdict) granted {
	t.Helper()
	d, err := s.claim(c)
	if err != nil {
		t.Fatal(err)
	}
	if d.Verdict != want {
		t.Fatalf("the claim: %+v, want %s", d.Decision, want)
	}
	return d
}

// An accepted record takes at most 112 bytes of Redis's memory, with a key of
// 24 bytes.
func TestRedisMemory(t *testing.T) {
	server := redistest.Start(t)
	s := testStore(t, redisConfig{urls: []string{server.URL()}})
	key := record.Key("iak:", "shop", "order0123456789")
	if len(key) != 24 {
		t.Fatalf("the key has %d bytes", len(key))
	}
	c := claimOf(key, "A", late)
	mustSettle(t, s, mustClaim(t, s, c), record.Accepted)
	used, err := server.Client().MemoryUsage(context.Background(), key, 0).Result()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", used)
	if used > 112 {
		t.Errorf("an accepted record takes %d bytes, want at most 112", used)
	}
}

// A claim is one script call, and so is a settlement: nothing else goes over
// the wire.
func TestRedisOneCall(t *testing.T) {
	server := redistest.Start(t)
	s := testStore(t, redisConfig{urls: []string{server.URL()}})
	client := server.Client()
	ctx := context.Background()
	warm := claimOf("iak:shop:warm", "A", success) // connects, and loads the scripts
	mustSettle(t, s, mustClaim(t, s, warm), record.Accepted)

	c := claimOf("iak:shop:one", "A", success)
	var d granted
	for _, row := range []struct {
		name string
		run  func()
		want map[string]int
	}{
		{"claim", func() { d = mustClaim(t, s, c) }, map[string]int{"evalsha": 1, "time": 1, "get": 1, "set": 1}},
		{"settle", func() { mustSettle(t, s, d, record.Accepted) }, map[string]int{"evalsha": 1, "time": 1, "get": 1, "set": 1}},
		{"duplicate", func() { wantVerdict(t, s, c, record.Duplicate) }, map[string]int{"evalsha": 1, "time": 1, "get": 1, "pttl": 1}},
	} {
		if err := client.ConfigResetStat(ctx).Err(); err != nil {
			t.Fatal(err)
		}
		row.run()
		if got := server.Calls(client); !maps.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

// A Redis that has forgotten the scripts, by SCRIPT FLUSH or a restart, is told
// them again.
func TestRedisScriptsForgotten(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	s := testStore(t, redisConfig{urls: []string{server.URL()}})
	client := server.Client()
	forget := map[string]func(){
		"flush": func() {
			if err := client.ScriptFlush(context.Background()).Err(); err != nil {
				t.Fatal(err)
			}
		},
		"restart": func() { server.Kill(); server.Start() },
	}
	for name, forget := range forget {
		t.Run(name, func(t *testing.T) {
			c := claimOf("iak:shop:"+name, "A", success)
			forget()
			d := mustClaim(t, s, c)
			forget()
			mustSettle(t, s, d, record.Accepted)
			forget()
			wantVerdict(t, s, claimOf(c.key, "B", success), record.Duplicate)
		})
	}
}

// An operation that was carried out, but whose answer was lost, neither locks
// its own delivery out nor counts twice.
func TestRedisReplyLost(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr())
	s := testStore(t, redisConfig{urls: []string{proxy.URL()}})
	warm := claimOf("iak:shop:warm", "A", success)
	mustSettle(t, s, mustClaim(t, s, warm), record.Accepted)
	losing := func(t *testing.T, n int, run func()) {
		t.Helper()
		proxy.LoseReplies(n)
		run()
		if got := proxy.RepliesLost(); got != n {
			t.Fatalf("%d replies were lost, want %d: the test shows nothing", got, n)
		}
		proxy.LoseReplies(0)
	}

	t.Run("claim", func(t *testing.T) {
		c := claimOf("iak:shop:claim", "A", success)
		var d granted
		losing(t, 2, func() { d = mustClaim(t, s, c) })
		if d.Attempt != 1 {
			t.Errorf("attempt %d, want 1", d.Attempt)
		}
		wantVerdict(t, s, claimOf(c.key, "B", success), record.InFlight)
	})
	for verdict, want := range map[record.Ending]record.Decision{
		record.Accepted: {Verdict: record.Duplicate, Code: 200, Contradicts: -1},
		record.Released: {Verdict: record.Forwarded, Attempt: 2, Contradicts: -1},
		record.Unsent:   {Verdict: record.Forwarded, Attempt: 1, Contradicts: -1},
	} {
		t.Run(string(verdict), func(t *testing.T) {
			c := claimOf("iak:shop:"+string(verdict), "A", success)
			d := mustClaim(t, s, c)
			losing(t, 2, func() { mustSettle(t, s, d, verdict) })
			got := wantVerdict(t, s, claimOf(c.key, "B", success), want.Verdict)
			got.Wait = 0
			if got.Decision != want {
				t.Errorf("the next claim: %+v, want %+v", got, want)
			}
		})
	}
	t.Run("given back", func(t *testing.T) {
		c := claimOf("iak:shop:back", "A", success)
		losing(t, 4, func() { // more than are tried again
			if d, err := s.claim(c); err == nil {
				t.Fatalf("the claim: %+v, want an error", d)
			}
		})
		// The store gives it back by itself.
		eventually(t, "the next claim is forwarded", func() bool {
			d, err := s.claim(claimOf(c.key, "B", success))
			if err == nil && d.Verdict == record.Forwarded && d.Attempt != 1 {
				t.Errorf("attempt %d, want 1", d.Attempt)
			}
			return err == nil && d.Verdict == record.Forwarded
		})
	})
}

// A store that hangs answers every claim with an error within twice its
// timeout, however many come at once and whether or not it is connected.
func TestRedisHangs(t *testing.T) {
	const timeout = 500 * time.Millisecond
	for _, row := range []struct {
		name  string
		start func(t *testing.T) (server *redistest.Server, cfg redisConfig)
	}{
		{"single", func(t *testing.T) (*redistest.Server, redisConfig) {
			s := redistest.Start(t)
			return s, redisConfig{urls: []string{s.URL()}}
		}},
		{"a pool of one", func(t *testing.T) (*redistest.Server, redisConfig) {
			s := redistest.Start(t)
			return s, redisConfig{urls: []string{s.URL()}, poolSize: 1}
		}},
		{"cluster", func(t *testing.T) (*redistest.Server, redisConfig) {
			s := redistest.StartCluster(t)
			return s, redisConfig{urls: []string{s.URL()}, cluster: true}
		}},
		{"sentinel's master", func(t *testing.T) (*redistest.Server, redisConfig) {
			master, sentinel := redistest.StartWatchedServer(t)
			return master, redisConfig{urls: []string{sentinel.URL()}, masterName: "iak"}
		}},
		{"sentinel", func(t *testing.T) (*redistest.Server, redisConfig) {
			_, sentinel := redistest.StartWatchedServer(t)
			return sentinel, redisConfig{urls: []string{sentinel.URL()}, masterName: "iak"}
		}},
	} {
		for _, connected := range []bool{true, false} {
			if row.name == "sentinel" && connected {
				continue // only the way to the master needs it
			}
			t.Run(fmt.Sprintf("%s, connected %t", row.name, connected), func(t *testing.T) {
				server, cfg := row.start(t)
				cfg.timeout = timeout
				s := testStore(t, cfg)
				if connected {
					eventually(t, "the store is connected", func() bool {
						_, err := s.claim(claimOf("iak:shop:warm", "A", success))
						return err == nil
					})
				}
				server.Pause()
				defer server.Continue()
				var wg sync.WaitGroup
				for i := range 50 {
					wg.Go(func() {
						start := time.Now()
						d, err := s.claim(claimOf(fmt.Sprint("iak:shop:", i), "A", success))
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

// A Redis whose memory is full refuses new claims with an error, but takes the
// answer of an app that is at work, and still knows what was accepted.
func TestRedisMemoryFull(t *testing.T) {
	server := redistest.Start(t)
	s := testStore(t, redisConfig{urls: []string{server.URL()}})
	client := server.Client()
	ctx := context.Background()
	atWork, refusing, known := claimOf("iak:shop:work", "A", success), claimOf("iak:shop:refusing", "A", success), claimOf("iak:shop:known", "A", success)
	atWorkDecision, refusingDecision := mustClaim(t, s, atWork), mustClaim(t, s, refusing)
	mustSettle(t, s, mustClaim(t, s, known), record.Accepted)
	if err := client.ConfigSet(ctx, "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}

	if d, err := s.claim(claimOf("iak:shop:new", "B", success)); err == nil || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("a new claim: %+v, %v, want an error that says OOM", d, err)
	}
	mustSettle(t, s, atWorkDecision, record.Accepted)
	mustSettle(t, s, refusingDecision, record.Released)
	for _, c := range []*claimed{atWork, known} {
		wantVerdict(t, s, claimOf(c.key, "B", success), record.Duplicate)
		wantVerdict(t, s, claimOf(c.key, "B", progress), record.Stale)
		wantVerdict(t, s, claimOf(c.key, "B", failed), record.Conflict)
	}

	if err := client.ConfigSet(ctx, "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	if d := mustClaim(t, s, claimOf(refusing.key, "B", success)); d.Attempt != 2 {
		t.Errorf("attempt %d, want 2", d.Attempt)
	}
	mustClaim(t, s, claimOf("iak:shop:new", "C", success))
}

// A replica that cannot be written to is an error, not a decision.
func TestRedisReadOnlyReplica(t *testing.T) {
	master := redistest.Start(t)
	replica := redistest.Start(t, "--replicaof", "127.0.0.1 "+master.Port)
	client := replica.Client()
	eventually(t, "the replica follows its master", func() bool {
		info, err := client.Info(context.Background(), "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	})
	s := testStore(t, redisConfig{urls: []string{replica.URL()}})
	c := claimOf("iak:shop:order001", "A", success)
	if d, err := s.claim(c); err == nil || !strings.Contains(err.Error(), "READONLY") {
		t.Errorf("claim: %+v, %v, want an error that says READONLY", d, err)
	}
}

// Every kind of url leads to a store that claims and settles.
func TestRedisKinds(t *testing.T) {
	for _, row := range []struct {
		name  string
		start func(t *testing.T) (redisConfig, *redistest.Server)
	}{
		{"single, with a database", func(t *testing.T) (redisConfig, *redistest.Server) {
			s := redistest.Start(t)
			return redisConfig{urls: []string{s.URL() + "/3"}}, s
		}},
		{"single, with a user", func(t *testing.T) (redisConfig, *redistest.Server) {
			s := redistest.Start(t, "--user", "iak", "on", ">p%w", "~iak:*", "+@all")
			return redisConfig{urls: []string{"redis://iak:p%25w@" + s.Addr()}}, s
		}},
		{"RESP2", func(t *testing.T) (redisConfig, *redistest.Server) {
			s := redistest.Start(t)
			return redisConfig{urls: []string{s.URL() + "?protocol=2"}}, s
		}},
		{"unix socket", func(t *testing.T) (redisConfig, *redistest.Server) {
			s := redistest.Start(t, "--unixsocket", "redis.sock")
			return redisConfig{urls: []string{"unix://" + s.Socket() + "?db=1"}}, s
		}},
		{"cluster", func(t *testing.T) (redisConfig, *redistest.Server) {
			s := redistest.StartCluster(t)
			return redisConfig{urls: []string{s.URL()}, cluster: true}, s
		}},
		{"cluster, a seed that is down", func(t *testing.T) (redisConfig, *redistest.Server) {
			s := redistest.StartCluster(t)
			return redisConfig{urls: []string{"redis://127.0.0.1:" + freePort(t), s.URL()}, cluster: true}, s
		}},
		{"sentinel", func(t *testing.T) (redisConfig, *redistest.Server) {
			master, sentinel := redistest.StartWatchedServer(t)
			return redisConfig{urls: []string{sentinel.URL()}, masterName: "iak"}, master
		}},
		{"sentinel with a password, one that is down", func(t *testing.T) (redisConfig, *redistest.Server) {
			master, sentinel := redistest.StartWatchedServer(t, "requirepass se%cret")
			query := "/?sentinel_password=se%25cret"
			return redisConfig{urls: []string{"redis://127.0.0.1:" + freePort(t) + query, sentinel.URL() + query}, masterName: "iak"}, master
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg, server := row.start(t)
			cfg.timeout = 5 * time.Second
			s := testStore(t, cfg)
			c := claimOf("iak:shop:order001", "A", success)
			mustSettle(t, s, mustClaim(t, s, c), record.Accepted)
			wantVerdict(t, s, claimOf(c.key, "B", success), record.Duplicate)
			keyspace, err := server.Client().Info(context.Background(), "keyspace").Result()
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
			s, err := row.cfg.engine()
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
	server := redistest.Start(t)
	s := testStore(t, redisConfig{urls: []string{server.URL()}})
	mustClaim(t, s, claimOf("iak:shop:order001", "A", success))
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	if d, err := s.claim(claimOf("iak:shop:order002", "A", success)); !errors.Is(err, redis.ErrClosed) {
		t.Errorf("%+v, %v, want ErrClosed", d, err)
	}
}

// A node of a Cluster that hangs holds up the calls for its own slots only.
func TestClusterHungNode(t *testing.T) {
	cluster := redistest.StartShards(t)
	const timeout = 4 * time.Second
	s := testStore(t, redisConfig{urls: strings.Fields(cluster.URLs()), cluster: true, timeout: timeout})
	keys := make([][]string, 2) // of the first node, and of the others
	for i := range 200 {
		key := fmt.Sprint("iak:shop:", i)
		other := min(cluster.Slot(key)/(16384/3), 1)
		keys[other] = append(keys[other], key)
	}
	if _, err := s.claim(claimOf("iak:shop:warm", "A", success)); err != nil {
		t.Fatal(err)
	}
	cluster.Servers[0].Pause()
	defer cluster.Servers[0].Continue()
	var hung sync.WaitGroup
	for _, key := range keys[0] {
		hung.Go(func() { _, _ = s.claim(claimOf(key, "A", success)) })
	}
	eventually(t, "calls wait for the node that hangs", func() bool {
		trace := make([]byte, 16<<20)
		return strings.Count(string(trace[:runtime.Stack(trace, true)]), "redisstore.(*Store).run(") == len(keys[0])
	})
	for _, key := range keys[1] {
		start := time.Now()
		d, err := s.claim(claimOf(key, "A", success))
		if took := time.Since(start); err != nil || d.Verdict != record.Forwarded || took > timeout/2 {
			t.Errorf("%s, which is of another node: %+v, %v after %s", key, d, err, took)
		}
	}
	hung.Wait()
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

// A user with exactly the rights of the documentation can do all that the store
// does, also when Redis has forgotten the scripts; without any one of them
// Redis, or Sentinel, denies something.
func TestRedisRights(t *testing.T) {
	for _, row := range []struct {
		name  string
		acl   []string
		start func(t *testing.T) (guarded *redistest.Server, cfg redisConfig) // guarded is where the rights are needed
	}{
		{"single", aclSingle, func(t *testing.T) (*redistest.Server, redisConfig) {
			s := redistest.Start(t)
			return s, redisConfig{urls: []string{"redis://iak:pass@" + s.Addr()}}
		}},
		{"cluster", aclCluster, func(t *testing.T) (*redistest.Server, redisConfig) {
			s := redistest.StartCluster(t)
			return s, redisConfig{urls: []string{"redis://iak:pass@" + s.Addr()}, cluster: true}
		}},
		{"sentinel", aclSentinel, func(t *testing.T) (*redistest.Server, redisConfig) {
			master := redistest.Start(t)
			s := redistest.StartSentinel(t, freePort(t), "sentinel monitor iak 127.0.0.1 "+master.Port+" 1")
			return s, redisConfig{urls: []string{s.URL() + "?sentinel_username=iak&sentinel_password=pass"}, masterName: "iak"}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			server, cfg := row.start(t)
			cfg.timeout = 2 * time.Second
			client := server.Client()
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
				s := testStore(t, cfg)
				err := useAll(s, fmt.Sprintf("iak:shop:%02d", i))
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
func useAll(s *tested, key string) error {
	for _, ending := range []record.Ending{record.Unsent, record.Released, record.Accepted} {
		d, err := s.claim(claimOf(key, string(ending), success))
		if err != nil {
			return err
		}
		before := s.warnings.Len()
		if d.lease.Settle(ending, 200); s.warnings.Len() != before {
			return fmt.Errorf("%s: %v", ending, s.warnings.All()[before].ContextMap())
		}
	}
	if _, err := s.claim(claimOf(key, "B", success)); err != nil {
		return err
	}
	listed := 0
	if _, err := s.Record(key); err != nil {
		return err
	}
	err := s.List(context.Background(), key, func(string, record.Snapshot) error {
		listed++
		return nil
	})
	if err != nil {
		return err
	}
	if listed != 1 {
		return fmt.Errorf("%d records are listed, want 1", listed)
	}
	for _, result := range []record.Record{{Attempt: 3}, {}} { // set and del
		_, err := s.Change(store.Place{Key: key, Index: defaultKeyPrefix, Retention: 48 * time.Hour}, false, func(r *record.Record, _ int64) error {
			*r = result
			return nil
		})
		if err != nil {
			return err
		}
	}
	return useSpool(s, key+"-kept")
}

// useSpool does all that a store does with what is kept.
func useSpool(s *tested, key string) error {
	payload := "kept"
	c := claimOf(key, "K", success)
	c.Keep, c.Later = &payload, true
	if _, err := s.claim(c); err != nil {
		return err
	}
	page, err := s.Due(&store.DueQuery{Index: defaultKeyPrefix, Limit: 100, Head: record.HeadSize})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(page.Hints, func(h store.Hint) bool { return h.Key == key })
	if i < 0 {
		return errors.New("what is kept is not in the index")
	}
	if err := s.Correct(defaultKeyPrefix, page.Hints[i], page.Now+1); err != nil {
		return err
	}
	if err := s.Repair(context.Background(), defaultKeyPrefix); err != nil {
		return err
	}
	_, err = s.Change(store.Place{Key: key, Index: defaultKeyPrefix, Retention: 48 * time.Hour}, false, func(r *record.Record, _ int64) error {
		*r = record.Record{}
		return nil
	})
	return err
}
