package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisServer is the Redis of all rows, or one of a Cluster. It writes nothing
// to the disk.
type redisServer struct {
	*process
	addr   string
	client *redis.Client
}

// startRedis starts one in a new directory.
func startRedis(ctx context.Context, dir string, options ...string) (*redisServer, error) {
	if err := os.Mkdir(dir, 0o750); err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(addr, ":")
	options = append([]string{"--port", port, "--bind", "127.0.0.1",
		"--dir", dir, "--save", "", "--appendonly", "no", "--loglevel", "warning"}, options...)
	p, err := startProcess(ctx, dir, "redis-server", nil, options...)
	if err != nil {
		return nil, err
	}
	s := &redisServer{process: p, addr: addr, client: redis.NewClient(&redis.Options{Addr: addr})}
	if err := s.ready(ctx, addr); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

func (s *redisServer) stop() {
	if s != nil {
		_ = s.client.Close()
		s.process.stop()
	}
}

// ofConnections are the commands that come with a connection, or are the
// benchmark's own: no callback costs one.
var ofConnections = map[string]bool{
	"info": true, "config": true, "flushall": true, "hello": true, "client": true, "ping": true, "select": true, "auth": true,
	"script": true, "command": true, "readonly": true, "cluster": true,
}

// calls counts the commands since the last reset. Where scripts were called,
// only those calls count: Redis also counts the commands that run inside them.
func (s *redisServer) calls(ctx context.Context) (n int64, err error) {
	info, err := s.client.InfoMap(ctx, "commandstats").Result()
	if err != nil {
		return 0, err
	}
	var scripts, all int64
	for _, section := range info {
		for name, stats := range section {
			command, found := strings.CutPrefix(name, "cmdstat_")
			command, _, _ = strings.Cut(command, "|")
			if !found || ofConnections[command] {
				continue
			}
			count, _, _ := strings.Cut(strings.TrimPrefix(stats, "calls="), ",")
			calls, err := strconv.ParseInt(count, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("INFO commandstats: %w", err)
			}
			all += calls
			if strings.HasPrefix(command, "eval") || strings.HasPrefix(command, "fcall") {
				scripts += calls
			}
		}
	}
	if scripts > 0 {
		return scripts, nil
	}
	return all, nil
}

// memory is what Redis has allocated, without what its clients' connections
// take.
func (s *redisServer) memory(ctx context.Context) (int64, error) {
	info, err := s.client.InfoMap(ctx, "memory").Result()
	if err != nil {
		return 0, err
	}
	used, err := strconv.ParseInt(info["Memory"]["used_memory"], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("INFO memory: %w", err)
	}
	clients, err := strconv.ParseInt(info["Memory"]["mem_clients_normal"], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("INFO memory: %w", err)
	}
	return used - clients, nil
}

// app is the merchant's app behind all rows, an nginx that accepts everything.
type app struct {
	*process
	addr string
	own  int64 // the benchmark's own requests, which the app counts too
}

func (b *bench) startApp() (*app, error) {
	dir := filepath.Join(b.dir, "app")
	if err := os.Mkdir(dir, 0o750); err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	p, err := b.startNginx(dir, appConf, map[string]any{"Listen": addr})
	if err != nil {
		return nil, err
	}
	a := &app{process: p, addr: addr}
	if err := a.ready(b.ctx, addr); err != nil {
		a.stop()
		return nil, err
	}
	return a, nil
}

func (a *app) stop() {
	if a != nil {
		a.process.stop()
	}
}

// reached is how many callbacks have reached the app since it was started.
func (a *app) reached(ctx context.Context) (int64, error) {
	text, err := get(ctx, "http://"+a.addr+"/stub_status")
	if err != nil {
		return 0, err
	}
	a.own++
	// The third line is three numbers: accepts, handled, requests.
	lines := strings.Split(text, "\n")
	if len(lines) > 2 {
		if counts := strings.Fields(lines[2]); len(counts) == 3 {
			n, err := strconv.ParseInt(counts[2], 10, 64)
			return n - a.own, err
		}
	}
	return 0, fmt.Errorf("stub_status says %q", text)
}

// quiet waits until nothing more reaches the app: wrk drops its connections at
// the end, and what it had begun is still on its way.
func (a *app) quiet(ctx context.Context) (n int64, err error) {
	for last := int64(-1); last != n; {
		if err := sleep(ctx, 300*time.Millisecond); err != nil {
			return 0, err
		}
		last = n
		if n, err = a.reached(ctx); err != nil {
			return 0, err
		}
	}
	return n, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func get(ctx context.Context, url string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", url, answer.Status)
	}
	return string(text), err
}
