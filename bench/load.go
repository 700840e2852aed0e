package main

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/md5" //nolint:gosec // IAK signs with it
	_ "embed"    // wrk's script
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

//go:embed wrk.lua
var wrkScript string

// load is what wrk says about a run.
type load struct {
	Requests      int64 `json:"requests"` // that were answered
	Begun         int64 `json:"begun"`    // that were sent, at least in part
	Microseconds  int64 `json:"microseconds"`
	ConnectErrors int64 `json:"connect_errors"`
	ReadErrors    int64 `json:"read_errors"`
	WriteErrors   int64 `json:"write_errors"`
	Timeouts      int64 `json:"timeouts"`
	Status1xx     int64 `json:"status_1xx"`
	Status2xx     int64 `json:"status_2xx"`
	Status3xx     int64 `json:"status_3xx"`
	Status4xx     int64 `json:"status_4xx"`
	Status5xx     int64 `json:"status_5xx"`
	P50           int64 `json:"p50_us"`
	P90           int64 `json:"p90_us"`
	P99           int64 `json:"p99_us"`
	Max           int64 `json:"max_us"`
}

// knownCallbacks is how many callbacks the app has accepted before duplicates
// are measured.
const knownCallbacks = 1024

// callbacks are prepared lines "ref_id sign", a file for each of wrk's threads.
type callbacks struct {
	prefix string
	order  string // once or repeat
	limit  int    // after how many answers wrk ends the run; 0 is never
}

// prepare writes so many callbacks. Those of known are few, and sent again and
// again; all others are never sent twice: their names begin with a number that
// no other preparation has.
func (b *bench) prepare(dir string, t traffic, count int) (callbacks, error) {
	b.preparations++
	c := callbacks{prefix: filepath.Join(dir, fmt.Sprintf("callbacks-%d-", b.preparations)), order: "once"}
	each, key := count/b.threads, apiKey
	switch t {
	case known:
		each, c.order = knownCallbacks/b.threads, "repeat"
	case forged:
		key = "not-the-key"
	}
	for thread := range b.threads {
		first := thread * each
		if err := writeLines(c.prefix+strconv.Itoa(thread), b.preparations, first, first+each, key); err != nil {
			return c, err
		}
	}
	return c, nil
}

func writeLines(name string, preparation, from, to int, key string) error {
	file, err := os.Create(name) //nolint:gosec // in the benchmark's own directory
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, 1<<16)
	signed := []byte(username + key)
	for i := from; i < to; i++ {
		refID := fmt.Sprintf("%06x%09d", preparation, i) // a key of 24 bytes in Redis
		sum := md5.Sum(append(signed, refID...))         //nolint:gosec // IAK signs with it
		_, _ = w.WriteString(refID + " " + hex.EncodeToString(sum[:]) + "\n")
	}
	return errors.Join(w.Flush(), file.Close())
}

// forget removes the files.
func (c callbacks) forget() {
	files, _ := filepath.Glob(c.prefix + "*")
	for _, file := range files {
		_ = os.Remove(file)
	}
}

// send lets wrk send a row's callbacks for some seconds.
func (b *bench) send(addr string, r row, c callbacks, seconds int) (l load, err error) {
	script := filepath.Join(b.dir, "wrk.lua")
	if err := os.WriteFile(script, []byte(wrkScript), 0o600); err != nil {
		return l, err
	}
	connections := cmp.Or(r.connections, b.connections)
	threads := min(b.threads, connections)   // wrk wants a connection for each
	cmd := exec.CommandContext(b.ctx, "wrk", //nolint:gosec // the arguments are the benchmark's own
		"--threads", strconv.Itoa(threads), "--connections", strconv.Itoa(connections),
		"--duration", strconv.Itoa(seconds)+"s", "--timeout", "10s", "--script", script,
		"http://"+addr, "--", c.prefix, r.format, c.order, strconv.Itoa(r.size), strconv.Itoa(c.limit/threads))
	var problems bytes.Buffer
	cmd.Stderr = &problems
	output, err := cmd.Output()
	if err != nil {
		return l, fmt.Errorf("wrk: %w: %s", err, problems.Bytes())
	}
	for line := range strings.Lines(string(output)) {
		if text, found := strings.CutPrefix(line, "BENCH "); found {
			return l, json.Unmarshal([]byte(text), &l)
		}
	}
	return l, fmt.Errorf("wrk has not printed its numbers but %q, %q", output, problems.Bytes())
}
