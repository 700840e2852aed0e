package redisstore

import (
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
	storetest.Run(t, func(t testing.TB) storetest.Open {
		server := redistest.Start(t)
		return func(testing.TB) store.Engine { return New(client(server.Addr()), patient, false) }
	})
}

func TestEngineCluster(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Open {
		server := redistest.StartCluster(t)
		return func(testing.TB) store.Engine {
			return New(redis.NewClusterClient(&redis.ClusterOptions{
				Addrs: []string{server.Addr()}, ContextTimeoutEnabled: true, OnConnect: CheckVersion, DisableIdentity: true,
			}), patient, false)
		}
	})
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

func TestModel(t *testing.T) {
	server := redistest.Start(t)
	storetest.Model(t, func(testing.TB) store.Engine { return New(client(server.Addr()), patient, false) })
}
