package redisstore

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/storetest"
	"github.com/redis/go-redis/v9"
)

const patient = 10 * time.Second // a timeout that leaves a busy machine time

func client(addrs ...string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: addrs[0], ContextTimeoutEnabled: true, OnConnect: CheckVersion, DisableIdentity: true})
}

// What every engine has to do, on a single server and on a cluster.
func TestEngine(t *testing.T) {
	storetest.Run(t, storetest.InStep, func(t testing.TB) storetest.Open {
		server := redistest.Start(t)
		return func(testing.TB) store.Engine { return New(client(server.Addr()), patient, false) }
	})
}

// Of three masters, so that a record and its hint are on different ones.
func TestEngineCluster(t *testing.T) {
	shards := redistest.StartShards(t)
	storetest.Run(t, storetest.Apart, func(t testing.TB) storetest.Open {
		for _, master := range shards.Clients[:3] {
			if err := master.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		return func(testing.TB) store.Engine { return newCluster(patient, shards.Addrs()...) }
	})
}

func newCluster(timeout time.Duration, addrs ...string) *Store {
	return New(redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: addrs, ContextTimeoutEnabled: true, OnConnect: CheckVersion, DisableIdentity: true,
	}), timeout, false)
}

// A Redis older than 7.0 is refused before anything is claimed.
func TestRedisBefore7(t *testing.T) {
	server := redistest.Start(t)
	old := redistest.StartOld(t, server.Addr())
	s := New(client(old.Addr()), patient, false)
	defer s.Destruct()
	_, err := s.Swap(&store.Swap{Key: "iak:shop:1", New: "x", Keep: time.Hour, Claim: true, Began: time.Now()})
	if err == nil || !strings.Contains(err.Error(), "Redis 7.0 or later") {
		t.Errorf("error %v, want one that names the version that is needed", err)
	}
	found, err := New(client(server.Addr()), patient, false).Read("iak:shop:1", time.Now())
	if err != nil || found.Value != "" {
		t.Errorf("%q, %v stands there, want nothing", found.Value, err)
	}
}

// A server that denies the question for its version is not taken for a new one,
// nor for an old one.
func TestVersionDenied(t *testing.T) {
	server := redistest.Start(t, "--user", "iak", "on", ">pass", "~iak:*", "+@all", "-eval")
	if err := server.Client().ScriptLoad(t.Context(), swapLua).Err(); err != nil { // EVALSHA alone would do for a claim
		t.Fatal(err)
	}
	s := New(redis.NewClient(&redis.Options{
		Addr: server.Addr(), Username: "iak", Password: "pass", ContextTimeoutEnabled: true, OnConnect: CheckVersion, DisableIdentity: true,
	}), patient, false)
	defer s.Destruct()
	found, err := s.Swap(&store.Swap{Key: "iak:shop:1", New: "x", Keep: time.Hour, Claim: true, Began: time.Now()})
	if err == nil || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("%+v, %v, want an error that says NOPERM", found, err)
	}
}

// The late answer to the question for the version is not taken for that to a
// command: the connection is closed.
func TestVersionLate(t *testing.T) {
	server := redistest.Start(t)
	hung := false
	c := redis.NewClient(&redis.Options{
		Addr: server.Addr(), ReadTimeout: 100 * time.Millisecond, MaxRetries: -1, DisableIdentity: true, PoolSize: 1,
		OnConnect: func(ctx context.Context, conn *redis.Conn) error {
			if !hung {
				hung = true
				server.Pause()
				defer server.Continue()
			}
			return CheckVersion(ctx, conn)
		},
	})
	defer c.Close()
	if n, err := c.Incr(t.Context(), "n").Result(); err == nil {
		t.Errorf("the answer is %d, want an error", n)
	}
	for want := range int64(3) {
		if n, err := c.IncrBy(t.Context(), "m", 10).Result(); n != 10*(want+1) || err != nil {
			t.Errorf("the answer is %d, %v, want %d", n, err, 10*(want+1))
		}
	}
}

func TestModel(t *testing.T) {
	server := redistest.Start(t)
	storetest.Model(t, func(testing.TB) store.Engine { return New(client(server.Addr()), patient, false) })
}
