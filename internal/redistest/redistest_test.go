//go:build unix

package redistest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func proxied(t *testing.T, p *Proxy) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1, DisableIdentity: true, ContextTimeoutEnabled: true})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A reply that is lost breaks the connection after the command was carried out;
// what is held back, hangs or is cut is not.
func TestProxy(t *testing.T) {
	server := Start(t)
	p := StartProxy(t, server.Addr())
	ctx := context.Background()
	direct, c := server.Client(), proxied(t, p)
	counter := func() int {
		t.Helper()
		n, err := direct.IncrBy(ctx, "n", 0).Result()
		if err != nil {
			t.Fatal(err)
		}
		return int(n)
	}
	if err := c.Incr(ctx, "n").Err(); err != nil {
		t.Fatal(err)
	}

	p.LoseReplies(1)
	if err := c.Incr(ctx, "n").Err(); err == nil || counter() != 2 || p.RepliesLost() != 1 {
		t.Errorf("a lost reply: %v, carried out %d times, %d lost, want an error, 2 and 1", err, counter(), p.RepliesLost())
	}

	release := p.HoldNext()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := c.Incr(short, "n").Err(); !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) || counter() != 2 {
		t.Errorf("held back: %v, carried out %d times, want a timeout and 2", err, counter())
	}
	release()

	resume := p.Hang()
	short, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	before := counter()
	if err := c.Incr(short, "n").Err(); err == nil || counter() != before {
		t.Errorf("hanging: %v, carried out %d times, want an error and %d", err, counter(), before)
	}
	resume()
	Eventually(t, "the proxy goes on", func() bool { return c.Incr(ctx, "n").Err() == nil })

	listening := c.Subscribe(ctx, "x")
	defer listening.Close()
	if _, err := listening.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	if m, err := listening.Receive(ctx); err == nil {
		t.Errorf("a cut connection received %v", m)
	}
	Eventually(t, "a new connection works", func() bool { return c.Incr(ctx, "n").Err() == nil })
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// The fake of an old Redis refuses what Redis 6 refuses, and nothing else.
func TestOld(t *testing.T) {
	c := proxied(t, StartOld(t, Start(t).Addr()))
	ctx := context.Background()
	if err := c.Eval(ctx, "#!lua\nreturn 1", nil).Err(); err == nil || !strings.HasPrefix(err.Error(), "ERR Error compiling script") {
		t.Errorf("a script with a shebang: %v", err)
	}
	if n, err := c.Eval(ctx, "return 1", nil).Int(); n != 1 || err != nil {
		t.Errorf("a script without one: %d, %v", n, err)
	}
}

// A server that is killed starts again on its port; one that hangs goes on.
func TestServer(t *testing.T) {
	s := Start(t, "--appendonly", "yes")
	c := s.Client()
	ctx := context.Background()
	if err := c.Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if err := c.Get(ctx, "k").Err(); err == nil {
		t.Error("a dead server answers")
	}
	s.Start()
	if v, err := c.Get(ctx, "k").Result(); v != "v" || err != nil {
		t.Errorf("after a restart: %q, %v", v, err)
	}
	s.Pause()
	short := redis.NewClient(&redis.Options{Addr: s.Addr(), MaxRetries: -1, ReadTimeout: 50 * time.Millisecond, DisableIdentity: true})
	defer short.Close()
	if err := short.Ping(ctx).Err(); !isTimeout(err) {
		t.Errorf("a server that hangs: %v, want a timeout", err)
	}
	s.Continue()
	if err := c.Get(ctx, "k").Err(); err != nil {
		t.Error(err)
	}
	if calls := s.Calls(c); calls["get"] == 0 {
		t.Errorf("%v were counted, want get", calls)
	}
}
