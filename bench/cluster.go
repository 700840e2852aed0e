package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
)

// redisOf returns the Redis of a row: the one, or the masters of the Cluster.
func (b *bench) redisOf(r row) ([]*redisServer, error) {
	if !strings.Contains(r.options, "{{cluster}}") {
		return []*redisServer{b.redis}, nil
	}
	if b.cluster == nil {
		if err := b.startCluster(); err != nil {
			return nil, fmt.Errorf("the Cluster: %w", err)
		}
	}
	return b.cluster, nil
}

// urlsOf are the urls of a Caddyfile.
func urlsOf(servers []*redisServer) string {
	var urls []string
	for _, s := range servers {
		urls = append(urls, "redis://"+s.addr)
	}
	return strings.Join(urls, " ")
}

// startCluster starts a Cluster of three masters, each with a third of the
// slots.
func (b *bench) startCluster() error {
	const masters = 3
	for i := range masters {
		bus, err := freeAddr()
		if err != nil {
			return err
		}
		_, busPort, err := net.SplitHostPort(bus)
		if err != nil {
			return err
		}
		dir := filepath.Join(b.dir, fmt.Sprintf("cluster-%d", i+1))
		s, err := startRedis(b.ctx, dir, "--cluster-enabled", "yes", "--cluster-port", busPort)
		if err != nil {
			return err
		}
		b.cluster = append(b.cluster, s)
		host, port, err := net.SplitHostPort(s.addr)
		if err != nil {
			return err
		}
		err = errors.Join(
			s.client.Do(b.ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(), // each has another
			s.client.ClusterAddSlotsRange(b.ctx, 16384*i/masters, 16384*(i+1)/masters-1).Err(),
			b.cluster[0].client.Do(b.ctx, "CLUSTER", "MEET", host, port, busPort).Err(),
		)
		if err != nil {
			return err
		}
	}
	return eventually(b.ctx, "the Cluster is ready", func() bool {
		return !slices.ContainsFunc(b.cluster, func(s *redisServer) bool {
			info, err := s.client.ClusterInfo(b.ctx).Result()
			return err != nil || !strings.Contains(info, "cluster_state:ok") ||
				!strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d\r\n", masters))
		})
	})
}

// emptyRedis removes all records, so that none finds those of the point before.
func (b *bench) emptyRedis() error {
	for _, s := range append([]*redisServer{b.redis}, b.cluster...) {
		if err := s.client.FlushAll(b.ctx).Err(); err != nil {
			return err
		}
	}
	return nil
}
