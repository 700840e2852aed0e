// Package redisstore is the engine of package store that keeps its bytes in
// Redis 7.0 or later: one key a record, and one call of one script for each
// operation, which operations that wait at the same time send together.
package redisstore

import (
	"context"
	_ "embed" // the script
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/batch"
	"github.com/redis/go-redis/v9"
)

var (
	//go:embed swap.lua
	swapLua string

	// Without a shebang, Redis refuses a script at its first write, on a full memory
	// as on a replica. So what only reads is answered all the same, a claim of what
	// is known already among it.
	claimScript = redis.NewScript(swapLua)
	// What was claimed is settled on a full memory too (Redis documentation, "Eval
	// scripts", script flags, since 7.0).
	settleLua    = "#!lua flags=allow-oom\n" + swapLua
	settleScript = redis.NewScript(settleLua)
)

// Store is the engine. It is safe for concurrent use.
type Store struct {
	client   redis.UniversalClient
	timeout  time.Duration
	sentinel bool
	closed   atomic.Bool
	lanes    sync.Map // from a server's address to its *batch.Queue[*call]
	waiting  sync.Map // in a Cluster: from an index to how many keys it had by the last answer
}

var _ store.Engine = (*Store)(nil)

// New makes an engine of a client, which it closes. The client's contexts have to
// bound its commands (ContextTimeoutEnabled), and CheckVersion has to be its
// OnConnect. timeout is the whole budget of one operation. sentinel tells that
// the client finds its server through Sentinel.
func New(client redis.UniversalClient, timeout time.Duration, sentinel bool) *Store {
	return &Store{client: client, timeout: timeout, sentinel: sentinel}
}

// Kind is redis.
func (s *Store) Kind() string { return "redis" }

// String names the store by its servers, without user and password.
func (s *Store) String() string {
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

// Destruct closes the connections, when the last user is gone. With Sentinel it
// does not wait: Close waits for a question to a sentinel that is under way, and
// the last user may be a request or a reload.
func (s *Store) Destruct() error {
	if s.closed.Swap(true) {
		return nil
	}
	if s.sentinel {
		go guard.Do("closing connections to Redis", func() { _ = s.client.Close() })
		return nil
	}
	return s.client.Close()
}

// Swap is that of store.Engine. If go-redis sends the call again, because the
// connection broke before the answer came, and it had been carried out, it is
// answered with what it has put there itself, and Swapped is false.
func (s *Store) Swap(swap *store.Swap) (store.Found, error) {
	script, text := settleScript, settleLua
	if swap.Claim {
		script, text = claimScript, swapLua
	}
	c := &call{
		text: text, key: swap.Key, began: swap.Began, old: swap.Old, new: swap.New,
		lease: swap.Lease.Milliseconds(), keep: max(swap.Keep.Milliseconds(), 1), // Redis takes no 0
	}
	if c.lease == 0 && swap.Lease != 0 { // 0 is none
		c.lease = 1
	}
	indexed := swap.Was || swap.Is
	waiting := 0
	switch cluster := s.cluster(); {
	case indexed && !cluster:
		c.args = []any{"evalsha", script.Hash(), "2", &c.key, indexKey(swap.Index), &c.old, &c.new, &c.lease, &c.keep, swap.Is}
	case indexed && swap.Is:
		var err error
		if waiting, err = s.hint(swap); err != nil {
			return store.Found{}, err
		}
		fallthrough
	default:
		c.args = []any{"evalsha", script.Hash(), "1", &c.key, &c.old, &c.new, &c.lease, &c.keep}
	}
	reply, err := s.run(c)
	if err != nil {
		return store.Found{}, err
	}
	if both, ok := reply.([]any); ok && len(both) == 2 {
		n, _ := both[1].(int64)
		reply, waiting = both[0], int(n)
	}
	now, swapped := reply.(int64)
	if !swapped {
		return found(reply)
	}
	if indexed && !swap.Is && s.cluster() {
		waiting = s.drop(swap)
	}
	f := store.Found{Swapped: true, Value: swap.New, Now: now, Waiting: waiting}
	if swap.New != "" {
		f.Expires = now + c.keep
		if c.lease != 0 {
			f.Value = string(binary.BigEndian.AppendUint64([]byte(swap.New), uint64(now+c.lease))) // #nosec G115 -- the same bits
		}
	}
	return f, nil
}

func (s *Store) cluster() bool {
	_, ok := s.client.(*redis.ClusterClient)
	return ok
}

// Read is that of store.Engine.
func (s *Store) Read(key string, began time.Time) (store.Found, error) {
	c := &call{text: swapLua, key: key, began: began}
	c.args = []any{"evalsha", claimScript.Hash(), "1", &c.key}
	reply, err := s.run(c)
	if err != nil {
		return store.Found{}, err
	}
	return found(reply)
}

// found reads what the script says about bytes that it has not put there.
func found(reply any) (store.Found, error) {
	const fixed = 16
	text, ok := reply.(string)
	if !ok || len(text) < fixed {
		return store.Found{}, errors.New("unexpected answer from Redis to a swap")
	}
	times := []byte(text[:fixed])
	f := store.Found{Value: text[fixed:], Now: int64(binary.BigEndian.Uint64(times))} // #nosec G115 -- the same bits
	if f.Value != "" {
		f.Expires = f.Now + max(int64(binary.BigEndian.Uint64(times[8:])), 0) // #nosec G115 -- the same bits
	}
	return f, nil
}

// call is one call of the script on one key. Once it waits in a lane only the
// trip changes it, until done is closed; a caller who goes before does not look
// at it again.
type call struct {
	text        string // of the script
	key         string
	old, new    string
	lease, keep int64 // milliseconds
	args        []any // of EVALSHA
	began       time.Time
	done        chan struct{}
	reply       *redis.Cmd
}

// eval is the call with the script's text, for a server that does not know it.
func (c *call) eval(ctx context.Context, pipe redis.Pipeliner) {
	args := slices.Clone(c.args)
	args[0], args[1] = "eval", c.text
	c.reply = pipe.Do(ctx, args...)
}

// run makes a call and waits for its answer, until the timeout is over. A call
// that still waits for its trip then is not made; one that is under way may be
// carried out.
func (s *Store) run(c *call) (any, error) {
	c.done = make(chan struct{})
	until := c.began.Add(s.timeout)
	lane := s.lane(c.key, until)
	lane.Add(c)
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-c.done:
		reply, err := c.reply.Result()
		return reply, redisError(err)
	case <-timer.C:
		lane.Remove(c)
		return nil, redisError(context.DeadlineExceeded)
	}
}

// lane is where the calls for one server wait: the one server, or the key's
// master in a cluster, so that one that hangs does not hold up the others.
func (s *Store) lane(key string, until time.Time) *batch.Queue[*call] {
	node := ""
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		ctx, cancel := context.WithDeadline(context.Background(), until)
		defer cancel()
		if master, err := cluster.MasterForKey(ctx, key); err == nil {
			node = master.Options().Addr
		}
	}
	if lane, ok := s.lanes.Load(node); ok {
		return lane.(*batch.Queue[*call])
	}
	lane, _ := s.lanes.LoadOrStore(node, &batch.Queue[*call]{Run: s.send})
	return lane.(*batch.Queue[*call])
}

// send makes the calls in one trip, within the timeout. One that has waited for
// three quarters of that is not made: its caller would be gone before the answer.
func (s *Store) send(calls []*call) {
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	pipe := s.client.Pipeline()
	calls = slices.DeleteFunc(calls, func(c *call) bool {
		if time.Since(c.began) < s.timeout*3/4 {
			c.reply = pipe.Do(ctx, c.args...)
			return false
		}
		c.reply = redis.NewCmd(ctx)
		c.reply.SetErr(context.DeadlineExceeded)
		close(c.done)
		return true
	})
	if len(calls) == 0 {
		return
	}
	err := carryOut(ctx, pipe)
	for _, c := range calls { // a server that was restarted does not know the script
		if err := c.reply.Err(); err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
			c.eval(ctx, pipe)
		}
	}
	if pipe.Len() > 0 {
		err = carryOut(ctx, pipe)
	}
	if cluster, ok := s.client.(*redis.ClusterClient); ok && err != nil {
		// A replica may have taken over. By itself go-redis looks once a minute, since
		// only redirections make it look at once (v9.23.0, osscluster.go, process).
		cluster.ReloadState(ctx)
	}
	for _, c := range calls {
		close(c.done)
	}
}

// carryOut sends a pipeline. go-redis leaves the commands without an error
// when Redis refuses the connection, for its password say (v9.23.0, redis.go,
// generalProcessPipelineFrom).
func carryOut(ctx context.Context, pipe redis.Pipeliner) error {
	calls, err := pipe.Exec(ctx)
	for _, c := range calls {
		if reply := c.(*redis.Cmd); err != nil && reply.Err() == nil && reply.Val() == nil {
			reply.SetErr(err)
		}
	}
	return err
}

// redisError adds what to do to the errors that an operator has to mend.
func redisError(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrOld):
		return err
	case redis.HasErrorPrefix(err, "WRONGTYPE"):
		return store.ErrUnreadable
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("redis: %w: is it running, and is its address right?", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("redis did not answer in time: %w", err)
	default:
		return fmt.Errorf("redis: %w", err)
	}
}

// ErrOld is a Redis that cannot keep records.
var ErrOld = errors.New("redis: this server is older than Redis 7.0 and could not record what the app answers on a full memory; " +
	"use Redis 7.0 or later, or Valkey")

// CheckVersion refuses a connection to a Redis that is older than 7.0, which
// does not know the flags of a script. It is for a client's OnConnect. A server
// that does not say is refused with its own error: it may be an old one that
// loads, and claims would follow when it has loaded. And a connection whose answer
// is still to come must not be used: the next command would get it, since go-redis
// closes it only for an error (v9.23.0, redis.go, initConn; pool_single.go, Remove).
func CheckVersion(ctx context.Context, conn *redis.Conn) error {
	// Older ones take the first line for Lua (Redis documentation, "Lua API
	// reference", script flags, since 7.0).
	err := conn.Eval(ctx, "#!lua flags=no-writes,allow-oom\nreturn 1", nil).Err()
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), "compiling script"):
		return ErrOld
	case strings.HasPrefix(err.Error(), "ERR unknown command"):
		return nil // a sentinel, on which go-redis calls OnConnect too (v9.23.0, sentinel.go, sentinelOptions)
	default:
		return err
	}
}
