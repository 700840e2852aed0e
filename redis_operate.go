package iakcallback

import (
	"context"
	_ "embed" // the scripts
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed lua/read.lua
	readLua string
	//go:embed lua/replace.lua
	replaceLua string

	readScript    = redis.NewScript(readLua)
	replaceScript = redis.NewScript(replaceLua)
)

// replaceTries is how often a change is begun again because the record has
// changed between reading and writing.
const replaceTries = 10

// listPage is how many records are read in one trip.
const listPage = 500

func (s *redisStore) read(_ context.Context, key string) (snapshot, error) {
	shot, _, err := s.readBytes(key)
	return shot, err
}

func (s *redisStore) readBytes(key string) (snapshot, string, error) {
	const fixed = 16
	reply, err := s.run(readScript, key, "").Text()
	if err != nil {
		return snapshot{}, "", redisError(err)
	}
	if len(reply) < fixed {
		return snapshot{}, "", errors.New("unexpected answer from Redis to a question for a record")
	}
	times, b := []byte(reply[:fixed]), reply[fixed:]
	r, err := decodeRecord([]byte(b))
	if err != nil {
		return snapshot{}, "", err
	}
	now := readInt64(times)
	return snapshot{record: r, now: now, expires: now + max(readInt64(times[8:]), 0)}, b, nil
}

func (s *redisStore) change(_ context.Context, key string, retention time.Duration, apply func(r *record, now int64) error) (snapshot, error) {
	for range replaceTries {
		shot, old, err := s.readBytes(key)
		if err != nil {
			return shot, err
		}
		if err := apply(shot.record, shot.now); err != nil {
			return shot, err
		}
		packed := appendInt64(nil, retention.Milliseconds())
		packed = binary.BigEndian.AppendUint16(packed, uint16(len(old))) //nolint:gosec // a record has some hundred bytes
		packed = append(packed, old...)
		if !shot.record.empty() {
			packed = append(packed, shot.record.encode()...)
		}
		replaced, err := s.run(replaceScript, key, string(packed)).Int()
		if err != nil {
			return shot, redisError(err)
		}
		if replaced == 1 {
			shot.expires = shot.now + retention.Milliseconds()
			return shot, nil
		}
	}
	return snapshot{}, errors.New("the record changes all the time: try again")
}

// list scans every master. What it reads of a server comes in trips of the
// store's timeout each.
func (s *redisStore) list(ctx context.Context, prefix string, visit func(key string, s snapshot) error) error {
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return redisError(s.scan(ctx, s.client, prefix, visit))
	}
	var mu sync.Mutex // the masters are scanned side by side
	var refused error // by visit: it ends the other scans too
	return redisError(cluster.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error {
		return s.scan(ctx, master, prefix, func(key string, shot snapshot) error {
			mu.Lock()
			defer mu.Unlock()
			if refused == nil {
				refused = visit(key, shot)
			}
			return refused
		})
	}))
}

func (s *redisStore) scan(ctx context.Context, client redis.Cmdable, prefix string, visit func(key string, s snapshot) error) error {
	for cursor := uint64(0); ; {
		keys, next, err := s.scanPage(ctx, client, prefix, cursor)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if err := visit(k.key, k.snapshot); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

type keyed struct {
	key string
	snapshot
}

// scanPage reads some records in two trips: SCAN gives the keys, and a pipeline
// what they hold. A key of another type, or of another version, is passed over.
func (s *redisStore) scanPage(ctx context.Context, client redis.Cmdable, prefix string, cursor uint64) (records []keyed, next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*s.timeout)
	defer cancel()
	keys, next, err := client.Scan(ctx, cursor, globs.Replace(prefix)+"*", listPage).Result()
	if err != nil || len(keys) == 0 {
		return nil, next, err
	}
	pipe := client.Pipeline()
	now := pipe.Time(ctx)
	values, left := make([]*redis.StringCmd, len(keys)), make([]*redis.DurationCmd, len(keys))
	for i, key := range keys {
		values[i], left[i] = pipe.Get(ctx, key), pipe.PTTL(ctx, key)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	if err := now.Err(); err != nil {
		return nil, 0, err
	}
	for i, key := range keys {
		b, err := values[i].Bytes()
		if errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "WRONGTYPE") {
			continue
		}
		if err == nil {
			err = left[i].Err()
		}
		if err != nil {
			return nil, 0, err
		}
		if r, err := decodeRecord(b); err == nil {
			at := now.Val().UnixMilli()
			records = append(records, keyed{key, snapshot{record: r, now: at, expires: at + left[i].Val().Milliseconds()}})
		}
	}
	return records, next, nil
}

// globs are the characters that SCAN's MATCH does not take by themselves.
var globs = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)

// String names the store by its servers, without user and password.
func (s *redisStore) String() string {
	switch client := s.client.(type) {
	case *redis.Client:
		if s.sentinel {
			return "redis, through Sentinel"
		}
		return "redis " + client.Options().Addr
	case *redis.ClusterClient:
		return "redis cluster " + strings.Join(client.Options().Addrs, " ")
	default:
		return fmt.Sprintf("redis %T", client)
	}
}
