package main

import (
	"cmp"
	"crypto/md5" //nolint:gosec // IAK signs with it
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// drain measures a spool: so many callbacks come while the app is down, and then it is
// back. What is measured is printed as lines for docs/performance.md.
func (b *bench) drainAll(count int) error {
	for _, r := range []row{
		{name: "redis", options: "redis {{redis}}", format: "json"},
		{name: "embedded", options: "embedded records.sqlite", format: "json"},
	} {
		// Pauses that are short for the run, and so many as are sent.
		r.options += fmt.Sprintf("\nspool {\nbackoff 1s 10s\nmax_pending %d\n}", 2*count)
		if err := b.drain(r, count); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

// merchant is an app that can be down, and counts.
type merchant struct {
	addr    string
	got     atomic.Int64 // but for live ones
	server  *http.Server
	started bool
}

func (m *merchant) up() error {
	listener, err := net.Listen("tcp", m.addr)
	if err != nil {
		return err
	}
	m.started = true
	m.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if !strings.Contains(r.Header.Get("Idempotency-Key"), ":live") {
			m.got.Add(1)
		}
	})}
	go func() { _ = m.server.Serve(listener) }()
	return nil
}

func (m *merchant) down() {
	if m.started {
		_ = m.server.Close()
	}
}

func (b *bench) drain(r row, count int) (err error) {
	dir, err := os.MkdirTemp(b.dir, "drain-")
	if err != nil {
		return err
	}
	m := new(merchant)
	if m.addr, err = freeAddr(); err != nil {
		return err
	}
	app := b.app.addr
	b.app.addr = m.addr
	defer func() { b.app.addr = app }()
	defer m.down()
	s, err := b.start(r, dir)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := m.up(); err != nil {
		return err
	}
	var live []time.Duration
	if live, err = b.live(s, 300, func() bool { return false }); err != nil {
		return err
	}
	calm := live
	m.down()
	before, err := b.weigh(r, s, dir)
	if err != nil {
		return err
	}
	c, err := b.prepare(dir, fresh, 2*count) // wrk sends some more before it ends
	if err != nil {
		return err
	}
	defer c.forget()
	c.limit = count
	start := time.Now()
	l, err := b.send(s.addr, r, c, 3600)
	if err != nil {
		return err
	}
	if l.Status2xx < int64(count) || l.Status2xx != l.Requests {
		return fmt.Errorf("of %d callbacks %d were answered 2xx, want %d", l.Requests, l.Status2xx, count)
	}
	count = int(l.Begun) // those that wrk did not wait for are kept too
	took := time.Since(start)
	fmt.Printf("%s: %d callbacks kept in %.1f s, %.0f a second, p99 %.1f ms\n", r.name, count, took.Seconds(), float64(count)/took.Seconds(), float64(l.P99)/1000)
	full, err := b.weigh(r, s, dir)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %.0f bytes a kept callback in the store; Caddy has %.1f MB in memory, %.1f MB before\n",
		r.name, float64(full.store-before.store)/float64(count), float64(full.caddy)/1e6, float64(before.caddy)/1e6)
	const idle = 10 * time.Second
	if before, err = b.weigh(r, s, dir); err != nil {
		return err
	}
	time.Sleep(idle) // the time that is measured
	if full, err = b.weigh(r, s, dir); err != nil {
		return err
	}
	fmt.Printf("%s: while the app is down Caddy uses %.1f ms a second of a processor, Redis %.1f ms\n",
		r.name, (full.cpu-before.cpu).Seconds()*1000/idle.Seconds(), (full.redis-before.redis).Seconds()*1000/idle.Seconds())
	got := m.got.Load()
	if err := m.up(); err != nil {
		return err
	}
	start = time.Now()
	drained := func() bool { return m.got.Load() >= got+int64(count) }
	if live, err = b.live(s, 1<<30, drained); err != nil {
		return err
	}
	took = time.Since(start)
	fmt.Printf("%s: drained in %.1f s, %.0f a second; live callbacks meanwhile: p50 %.1f ms, p99 %.1f ms; with nothing kept: p50 %.1f ms, p99 %.1f ms\n",
		r.name, took.Seconds(), float64(count)/took.Seconds(), ms(live, 50), ms(live, 99), ms(calm, 50), ms(calm, 99))
	if full, err = b.weigh(r, s, dir); err != nil {
		return err
	}
	fmt.Printf("%s: then Caddy has %.1f MB in memory; extra deliveries: %d\n", r.name, float64(full.caddy)/1e6, m.got.Load()-got-int64(count))
	return nil
}

// weight is what there is at one moment.
type weight struct {
	store, caddy int64
	cpu, redis   time.Duration
}

func (b *bench) weigh(r row, s *server, dir string) (w weight, err error) {
	w.caddy, _, err = s.resident()
	if err != nil {
		return w, err
	}
	if w.cpu, err = s.cpu(); err != nil {
		return w, err
	}
	if strings.Contains(r.options, "embedded") {
		files, _ := filepath.Glob(filepath.Join(dir, "records.sqlite*"))
		for _, file := range files {
			if info, err := os.Stat(file); err == nil {
				w.store += info.Size()
			}
		}
		return w, nil
	}
	if w.redis, err = b.redis.cpu(); err != nil {
		return w, err
	}
	text, err := b.redis.client.Info(b.ctx, "memory").Result()
	for line := range strings.Lines(text) {
		if number, found := strings.CutPrefix(strings.TrimSpace(line), "used_memory:"); found {
			_, err = fmt.Sscan(number, &w.store)
		}
	}
	return w, err
}

// live sends one callback after the other, until there are enough, and returns how long
// each took.
func (b *bench) live(s *server, count int, enough func() bool) (took []time.Duration, err error) {
	b.preparations++
	for i := 0; i < count && !enough(); i++ {
		refID := fmt.Sprintf("live%d-%d", b.preparations, i)
		sum := md5.Sum([]byte(username + apiKey + refID)) //nolint:gosec // IAK signs with it
		body := fmt.Sprintf(`{"data":{"ref_id":%q,"status":"1","code":"xld25000","hp":"0817777215","price":"25000","message":"SUCCESS",`+
			`"balance":"997061249","tr_id":"3482","rc":"00","sign":%q}}`, refID, hex.EncodeToString(sum[:]))
		start := time.Now()
		answer, err := http.Post("http://"+s.addr, "application/json", strings.NewReader(body)) //nolint:noctx // a local server
		if err != nil {
			return took, err
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return took, fmt.Errorf("a live callback is answered %d", answer.StatusCode)
		}
		took = append(took, time.Since(start))
		time.Sleep(10 * time.Millisecond) // a hundred a second at most
	}
	if len(took) == 0 {
		return took, errors.New("no live callback was sent")
	}
	return took, nil
}

func ms(all []time.Duration, percent int) float64 {
	sorted := slices.SortedFunc(slices.Values(all), cmp.Compare)
	return sorted[(len(sorted)-1)*percent/100].Seconds() * 1000
}
