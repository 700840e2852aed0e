//go:build unix

package redistest

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Slots is how many slots a Cluster has.
const Slots = 16384

// StartCluster starts a Redis Cluster of one node.
func StartCluster(t testing.TB, args ...string) *Server {
	t.Helper()
	// The default port of the cluster bus is out of range for many free ports.
	s := Start(t, append([]string{"--cluster-enabled", "yes", "--cluster-port", FreePort(t)}, args...)...)
	client := s.Client()
	ctx := context.Background()
	if err := client.ClusterAddSlotsRange(ctx, 0, Slots-1).Err(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the cluster is ready", func() bool {
		info, err := client.ClusterInfo(ctx).Result()
		return err == nil && strings.Contains(info, "cluster_state:ok")
	})
	return s
}

// Shards is a Redis Cluster of three masters, with a third of the slots each,
// and three replicas.
type Shards struct {
	Servers []*Server // server i+3 is the replica of i at the start
	Clients []*redis.Client
	IDs     []string

	t testing.TB
}

// StartShards starts a Shards, and waits until it is ready.
func StartShards(t testing.TB) *Shards {
	t.Helper()
	ctx := context.Background()
	c := &Shards{t: t}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 6 {
		bus := FreePort(t)
		s := Start(t, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "1000",
			"--repl-diskless-sync", "no")
		client := s.Client()
		id, err := client.ClusterMyID(ctx).Result()
		must(err)
		c.Servers, c.Clients, c.IDs = append(c.Servers, s), append(c.Clients, client), append(c.IDs, id)
		must(client.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err())
		if i < 3 {
			must(client.ClusterAddSlotsRange(ctx, Slots*i/3, Slots*(i+1)/3-1).Err())
		}
		if i > 0 {
			must(c.Clients[0].Do(ctx, "CLUSTER", "MEET", "127.0.0.1", s.Port, bus).Err())
		}
	}
	for i, client := range c.Clients {
		Eventually(t, "the nodes have met", func() bool {
			nodes, err := client.ClusterNodes(ctx).Result()
			return err == nil && !slices.ContainsFunc(c.IDs, func(id string) bool { return !strings.Contains(nodes, id) }) &&
				!strings.Contains(nodes, "handshake")
		})
		if i >= 3 {
			must(client.ClusterReplicate(ctx, c.IDs[i-3]).Err())
		}
	}
	for i, client := range c.Clients {
		Eventually(t, "the cluster is ready", func() bool {
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

// Addrs are the nodes' addresses.
func (c *Shards) Addrs() (addrs []string) {
	for _, s := range c.Servers {
		addrs = append(addrs, s.Addr())
	}
	return addrs
}

// URLs are the nodes' URLs, one word each.
func (c *Shards) URLs() string { return urls(c.Servers) }

// Client is one for the whole cluster.
func (c *Shards) Client() *redis.ClusterClient {
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs()})
	c.t.Cleanup(func() { _ = client.Close() })
	return client
}

// Slot is the slot of a key.
func (c *Shards) Slot(key string) int {
	c.t.Helper()
	slot, err := c.Clients[1].ClusterKeySlot(context.Background(), key).Result()
	if err != nil {
		c.t.Fatal(err)
	}
	return int(slot)
}

// MoveSlot moves a slot from one master to another, in the steps of Redis Cluster's
// documentation. meanwhile is called when the move has begun, and when the keys
// are moved. It returns how many keys were moved.
func (c *Shards) MoveSlot(slot, from, to int, meanwhile func()) (keys int) {
	c.t.Helper()
	ctx := context.Background()
	setSlot := func(node int, args ...any) {
		c.t.Helper()
		if err := c.Clients[node].Do(ctx, append([]any{"CLUSTER", "SETSLOT", slot}, args...)...).Err(); err != nil {
			c.t.Fatal(err)
		}
	}
	setSlot(to, "IMPORTING", c.IDs[from])
	setSlot(from, "MIGRATING", c.IDs[to])
	meanwhile()
	for {
		some, err := c.Clients[from].ClusterGetKeysInSlot(ctx, slot, 5).Result()
		if err != nil {
			c.t.Fatal(err)
		}
		if len(some) == 0 {
			break
		}
		keys += len(some)
		args := []any{"MIGRATE", "127.0.0.1", c.Servers[to].Port, "", 0, 5000, "KEYS"}
		for _, key := range some {
			args = append(args, key)
		}
		if err := c.Clients[from].Do(ctx, args...).Err(); err != nil {
			c.t.Fatal(err)
		}
	}
	meanwhile()
	setSlot(to, "NODE", c.IDs[to])
	setSlot(from, "NODE", c.IDs[to])
	return keys
}
