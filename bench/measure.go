package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// bench is the benchmark and what all of its rows share.
type bench struct {
	settings
	ctx          context.Context
	dir          string
	caddy        string // the built binary
	redis        *redisServer
	cluster      []*redisServer // started when a row first needs it
	app          *app
	preparations int
}

// newBench builds Caddy and starts Redis and the app. What it returns is to be
// closed, also after an error.
func newBench(ctx context.Context, s settings) (b *bench, err error) {
	b = &bench{settings: s, ctx: ctx}
	if b.dir, err = os.MkdirTemp(s.dir, "bench-"); err != nil {
		return b, err
	}
	fmt.Fprintln(os.Stderr, "building Caddy")
	b.caddy = filepath.Join(b.dir, "caddy")
	build := exec.CommandContext(ctx, "go", "build", "-o", b.caddy, "./cmd/caddy") //nolint:gosec // a file of our own
	if output, err := build.CombinedOutput(); err != nil {
		return b, fmt.Errorf("building cmd/caddy (the benchmark runs in the repository's root): %w\n%s", err, output)
	}
	if b.redis, err = startRedis(ctx, filepath.Join(b.dir, "redis")); err != nil {
		return b, err
	}
	b.app, err = b.startApp()
	return b, err
}

func (b *bench) close() {
	b.app.stop()
	b.redis.stop()
	for _, node := range b.cluster {
		node.stop()
	}
	_ = os.RemoveAll(b.dir)
}

// result is one run of a row.
type result struct {
	load
	CPU        float64 `json:"cpu_us"`       // of the server, a request
	RedisCPU   float64 `json:"redis_cpu_us"` // of Redis, a request
	Allocs     float64 `json:"allocs"`       // a request; 0 where there is no telling
	RedisCalls float64 `json:"redis_calls"`  // for each callback that was begun
	Reached    int64   `json:"reached"`      // callbacks that reached the app

	// Of Caddy, at the end of the run.
	Resident      int64 `json:"resident_bytes"`
	ResidentFiles int64 `json:"resident_file_bytes"` // among them, pages of files
}

// subject is a row with its running server.
type subject struct {
	row
	*server
	dir    string
	known  callbacks // what the app has accepted before, if the row sends that
	stored *stored   // what was put into the store before, if the row wants that
}

// open starts the servers of all rows, each with an empty store of its own,
// and loads each for a while without counting. They all run until the end, so
// that the measurements can take turns within seconds: nothing but those that
// wait for their turn runs beside the one that is measured.
func (b *bench) open(rows []row) (subjects []*subject, err error) {
	for _, r := range rows {
		fmt.Fprintln(os.Stderr, "starting", r.name)
		s := &subject{row: r}
		if s.dir, err = os.MkdirTemp(b.dir, "row-"); err != nil {
			return subjects, err
		}
		if s.server, err = b.start(r, s.dir); err != nil {
			return subjects, fmt.Errorf("%s: %w", r.name, err)
		}
		subjects = append(subjects, s)
		load := b.warmUp
		if r.records > 0 {
			load = b.fill
		}
		if err := load(s); err != nil {
			return subjects, fmt.Errorf("%s, before the measurement: %w", r.name, err)
		}
	}
	return subjects, nil
}

// measure loads a row's server and counts. With the name of a file, it has
// Caddy write a CPU profile into it.
func (b *bench) measure(s *subject, profile string) (result, error) {
	c := s.known
	if s.traffic != known {
		var err error
		if c, err = b.prepare(s.dir, s.traffic, b.seconds*b.maxRate); err != nil {
			return result{}, err
		}
		defer c.forget()
	}
	if profile == "" {
		return b.count(s.row, s.server, c)
	}
	written := s.profile(b.ctx, profile, b.seconds)
	counted, err := b.count(s.row, s.server, c)
	return counted, errors.Join(err, written())
}

func (b *bench) warmUp(s *subject) error {
	c, err := b.prepare(s.dir, s.traffic, b.warmup*b.maxRate)
	if err != nil {
		return err
	}
	l, err := b.send(s.addr, s.row, c, b.warmup)
	if err != nil {
		return err
	}
	if s.traffic != known {
		c.forget()
		return nil
	}
	// wrk has gone through them, and the app has accepted them.
	s.known = c
	if l.Begun < 2*knownCallbacks {
		return fmt.Errorf("only %d of %d callbacks are known: give a longer -warmup", l.Begun/2, knownCallbacks)
	}
	return nil
}

// count loads the server and looks at all counters before and after.
func (b *bench) count(r row, s *server, c callbacks) (result, error) {
	for _, redis := range s.redis {
		if err := redis.client.ConfigResetStat(b.ctx).Err(); err != nil {
			return result{}, err
		}
	}
	before, err := b.look(s)
	if err != nil {
		return result{}, err
	}
	l, err := b.send(s.addr, r, c, b.seconds)
	if err != nil {
		return result{}, err
	}
	after, err := b.look(s)
	if err != nil {
		return result{}, err
	}
	var calls int64
	for _, redis := range s.redis {
		n, err := redis.calls(b.ctx)
		if err != nil {
			return result{}, err
		}
		calls += n
	}
	if l.Requests == 0 {
		return result{}, errors.New("no request was answered")
	}
	n := float64(l.Requests)
	return result{
		load:       l,
		CPU:        float64((after.cpu - before.cpu).Microseconds()) / n,
		RedisCPU:   float64((after.redisCPU - before.redisCPU).Microseconds()) / n,
		Allocs:     (after.allocs - before.allocs) / n,
		RedisCalls: float64(calls) / float64(l.Begun),
		Reached:    after.reached - before.reached,

		Resident: after.resident, ResidentFiles: after.residentFiles,
	}, nil
}

// counters are what is looked at before and after a run.
type counters struct {
	cpu, redisCPU time.Duration
	allocs        float64
	reached       int64

	resident, residentFiles int64
}

// look waits until the app has nothing more to do, and reads all counters.
func (b *bench) look(s *server) (c counters, err error) {
	if c.reached, err = b.app.quiet(b.ctx); err != nil {
		return c, err
	}
	if c.cpu, err = s.cpu(); err != nil {
		return c, err
	}
	for _, redis := range s.redis {
		used, err := redis.cpu()
		if err != nil {
			return c, err
		}
		c.redisCPU += used
	}
	if s.admin == "" {
		return c, nil // a peer
	}
	if c.resident, c.residentFiles, err = s.resident(); err != nil {
		return c, err
	}
	c.allocs, err = s.allocations(b.ctx)
	return c, err
}

// allocations is how often Caddy has allocated memory since its start.
func (s *server) allocations(ctx context.Context) (float64, error) {
	text, err := get(ctx, "http://"+s.admin+"/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, found := strings.CutPrefix(line, "go_memstats_mallocs_total "); found {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, errors.New("no go_memstats_mallocs_total among the metrics of Caddy")
}

// profile begins a CPU profile of Caddy. What it returns waits for its end.
func (s *server) profile(ctx context.Context, file string, seconds int) func() error {
	done := make(chan error, 1)
	go func() {
		text, err := get(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", s.admin, seconds))
		if err == nil {
			err = os.WriteFile(file, []byte(text), 0o600)
		}
		done <- err
	}()
	return func() error { return <-done }
}
