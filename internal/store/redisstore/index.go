package redisstore

import (
	"context"
	_ "embed" // the script
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/redis/go-redis/v9"
)

var (
	//go:embed index.lua
	indexLua string

	// As with the swap: a claim's hint may be refused, and what only reads is answered
	// all the same; what settles and corrects is carried out on a full memory too.
	hintScript = redis.NewScript(indexLua)
	fullLua    = "#!lua flags=allow-oom\n" + indexLua
	fullScript = redis.NewScript(fullLua)
)

// indexKey is where an index is: a sorted set. No account has an empty name, so it is
// no record's key.
func indexKey(index string) string { return index + ":due" }

// onIndex makes a call of the index's script, which may be refused on a full memory, or
// not.
func onIndex(index string, refusable bool, began time.Time, what string, more ...any) *call {
	script, text := fullScript, fullLua
	if refusable {
		script, text = hintScript, indexLua
	}
	c := &call{text: text, key: indexKey(index), began: began}
	c.args = append([]any{"evalsha", script.Hash(), "1", &c.key, what}, more...)
	return c
}

// hint writes a hint before the record, in a Cluster, where both are on different
// servers: what dies between them leaves a hint too much.
func (s *Store) hint(swap *store.Swap) (waiting int, err error) {
	at, relative := swap.Lease.Milliseconds(), "1" // not later than the record's
	if swap.Lease == 0 {
		at, relative = last8(swap.New), "0"
	}
	reply, err := s.run(onIndex(swap.Index, swap.Claim, swap.Began, "hint", swap.Key, at, relative))
	if err != nil {
		return 0, err
	}
	n, ok := reply.(int64)
	if !ok {
		return 0, errAnswer
	}
	s.waiting.Store(swap.Index, int(n))
	return int(n), nil
}

// drop removes the hint of a record that needs none any more, in a Cluster. Nobody waits
// for it: one that stays is dropped when it is looked at. So how many keys are in the
// index is what was told last.
func (s *Store) drop(swap *store.Swap) (waiting int) {
	go guard.Do("dropping a hint", func() {
		reply, err := s.run(onIndex(swap.Index, false, time.Now(), "drop", swap.Key, last8(swap.Old)))
		if n, ok := reply.(int64); ok && err == nil {
			s.waiting.Store(swap.Index, int(n))
		}
	})
	told, _ := s.waiting.Load(swap.Index)
	waiting, _ = told.(int)
	return waiting
}

func last8(value string) int64 {
	return int64(binary.BigEndian.Uint64([]byte(value[len(value)-8:]))) // #nosec G115 -- the same bits
}

var errAnswer = errors.New("unexpected answer from Redis")

// Due is that of store.Engine.
func (s *Store) Due(q *store.DueQuery) (store.DuePage, error) {
	all := "0"
	if q.All {
		all = "1"
	}
	var page store.DuePage
	reply, err := s.run(onIndex(q.Index, true, q.Began, "due", q.Skip, q.Limit, all))
	if err != nil {
		return page, err
	}
	fields, ok := reply.([]any)
	if !ok || len(fields) < 2 || len(fields)%2 != 0 {
		return page, errAnswer
	}
	page.Now, _ = fields[0].(int64)
	waiting, _ := fields[1].(int64)
	page.Waiting = int(waiting)
	s.waiting.Store(q.Index, page.Waiting)
	for pair := range slices.Chunk(fields[2:], 2) {
		key, _ := pair[0].(string)
		at, ok := pair[1].(int64)
		if !ok {
			return page, errAnswer
		}
		page.Hints = append(page.Hints, store.Hint{Key: key, At: at})
	}
	if q.Head > 0 {
		err = s.heads(page.Hints, q.Head)
	}
	return page, err
}

// heads reads the beginning of what stands under each key.
func (s *Store) heads(hints []store.Hint, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*s.timeout)
	defer cancel()
	pipe := s.client.Pipeline()
	replies := make([]*redis.StringCmd, len(hints))
	for i, hint := range hints {
		replies[i] = pipe.GetRange(ctx, hint.Key, 0, int64(n-1))
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for i, reply := range replies {
		text, err := reply.Result()
		if err != nil && !redis.HasErrorPrefix(err, "WRONGTYPE") {
			return redisError(err)
		}
		hints[i].Head = text
	}
	return nil
}

// Correct is that of store.Engine.
func (s *Store) Correct(index string, read store.Hint, at int64, began time.Time) error {
	_, err := s.run(onIndex(index, false, began, "correct", read.Key, read.At, at))
	return err
}

// Repair is that of store.Engine. It reads a byte of each value, and rests as long as it
// works, so that it takes Redis from nobody. In a Cluster belongs is asked by several
// goroutines at a time.
func (s *Store) Repair(ctx context.Context, index string, belongs func(first byte) bool) error {
	if s.closed.Load() {
		return redisError(redis.ErrClosed)
	}
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return s.repair(ctx, s.client, index, belongs)
	}
	return cluster.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error {
		return s.repair(ctx, master, index, belongs)
	})
}

func (s *Store) repair(ctx context.Context, client redis.Cmdable, index string, belongs func(first byte) bool) error {
	for cursor := uint64(0); ; {
		began := time.Now()
		next, err := s.repairPage(ctx, client, index, cursor, belongs)
		if err != nil {
			return redisError(err)
		}
		if cursor = next; cursor == 0 {
			return nil
		}
		select {
		case <-time.After(time.Since(began)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Store) repairPage(ctx context.Context, client redis.Cmdable, index string, cursor uint64, belongs func(first byte) bool) (next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 4*s.timeout)
	defer cancel()
	keys, next, err := client.Scan(ctx, cursor, globs.Replace(index)+"*", page).Result()
	if err != nil {
		return 0, err
	}
	first, err := ranges(ctx, client, keys, 0, 0)
	if err != nil {
		return 0, err
	}
	keys = slices.DeleteFunc(keys, func(key string) bool { return first[key] == "" || !belongs(first[key][0]) })
	ends, err := ranges(ctx, client, keys, -8, -1)
	if err != nil {
		return 0, err
	}
	var hints []redis.Z
	for _, key := range keys {
		if len(ends[key]) == 8 { // else it is gone
			hints = append(hints, redis.Z{Score: float64(last8(ends[key])), Member: key})
		}
	}
	if len(hints) == 0 {
		return next, nil
	}
	// By itself the client of a Cluster would ask for all commands first, a right more to
	// be given (v9.23.0, osscluster_router.go, routeAndRun).
	pipe := s.client.Pipeline()
	pipe.ZAddLT(ctx, indexKey(index), hints...)
	_, err = pipe.Exec(ctx)
	return next, err
}

// ranges reads the same bytes of several values, those that there are.
func ranges(ctx context.Context, client redis.Cmdable, keys []string, from, to int64) (map[string]string, error) {
	found := make(map[string]string, len(keys))
	if len(keys) == 0 {
		return found, nil
	}
	pipe := client.Pipeline()
	replies := make([]*redis.StringCmd, len(keys))
	for i, key := range keys {
		replies[i] = pipe.GetRange(ctx, key, from, to)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for i, key := range keys {
		text, err := replies[i].Result()
		if err != nil && !redis.HasErrorPrefix(err, "WRONGTYPE") {
			return nil, err
		}
		found[key] = text
	}
	return found, nil
}
