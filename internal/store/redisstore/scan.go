package redisstore

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/redis/go-redis/v9"
)

// page is how many keys Redis looks at in one trip, and about how many values,
// of at most 80 KiB each, are held at a time.
const page = 100

// Scan is that of store.Engine: it scans every master, in trips of twice the
// timeout each. Keys of another type are passed over.
func (s *Store) Scan(ctx context.Context, prefix string, visit func(key string, found store.Found) error) error {
	if s.closed.Load() {
		return redisError(redis.ErrClosed)
	}
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return s.scan(ctx, s.client, prefix, visit)
	}
	var mu sync.Mutex // the masters are scanned side by side
	var refused error // by visit: it ends the other scans too
	return cluster.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error {
		return s.scan(ctx, master, prefix, func(key string, found store.Found) error {
			mu.Lock()
			defer mu.Unlock()
			if refused == nil {
				refused = visit(key, found)
			}
			return refused
		})
	})
}

func (s *Store) scan(ctx context.Context, client redis.Cmdable, prefix string, visit func(key string, found store.Found) error) error {
	for cursor := uint64(0); ; {
		keys, next, err := s.scanPage(ctx, client, prefix, cursor)
		if err != nil {
			return redisError(err)
		}
		for _, k := range keys {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := visit(k.key, k.found); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

type keyed struct {
	key   string
	found store.Found
}

// scanPage reads some values in two trips: SCAN gives the keys, and a pipeline
// what they hold.
func (s *Store) scanPage(ctx context.Context, client redis.Cmdable, prefix string, cursor uint64) (values []keyed, next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*s.timeout)
	defer cancel()
	keys, next, err := client.Scan(ctx, cursor, globs.Replace(prefix)+"*", page).Result()
	if err != nil || len(keys) == 0 {
		return nil, next, err
	}
	pipe := client.Pipeline()
	now := pipe.Time(ctx)
	texts, left := make([]*redis.StringCmd, len(keys)), make([]*redis.DurationCmd, len(keys))
	for i, key := range keys {
		texts[i], left[i] = pipe.Get(ctx, key), pipe.PTTL(ctx, key)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	if err := now.Err(); err != nil {
		return nil, 0, err
	}
	for i, key := range keys {
		text, err := texts[i].Result()
		if errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "WRONGTYPE") {
			continue
		}
		if err == nil {
			err = left[i].Err()
		}
		if err != nil {
			return nil, 0, err
		}
		at := now.Val().UnixMilli()
		values = append(values, keyed{key, store.Found{Value: text, Now: at, Expires: at + max(left[i].Val().Milliseconds(), 0)}})
	}
	return values, next, nil
}

// globs are the characters that SCAN's MATCH does not take by themselves.
var globs = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)
