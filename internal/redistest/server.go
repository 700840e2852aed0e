//go:build unix

// Package redistest starts real Redis servers for tests, as they are run: single,
// with replicas, watched by Sentinel, as a Cluster; and what can go wrong with
// them: killed, hung, cut off, a reply lost after the command was carried out.
//
// What it starts ends with the test. What cannot be started fails the test.
package redistest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// patience is how long an event may take on a busy machine.
const patience = 20 * time.Second

// Eventually waits for an event that has no other signal, and fails the test
// when it does not come.
func Eventually(t testing.TB, what string, happened func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !happened() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// FreePort returns a port that nobody listened on a moment ago, below those that
// systems give to outgoing connections, which could take it meanwhile.
func FreePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(10000 + rand.IntN(20000)) // #nosec G404 -- no secret
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// Server is a real redis-server of one test, or a Sentinel, which is one too.
type Server struct {
	Dir  string // where it runs: its files and its unix socket
	Port string // of 127.0.0.1

	t    testing.TB
	args []string
	env  []string // beside the test's own
	cmd  *exec.Cmd
}

// Start starts a redis-server on a free port, with further arguments as on its
// command line: "--requirepass", "secret".
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, nil, args)
}

func start(t testing.TB, env, args []string) *Server {
	t.Helper()
	s := &Server{t: t, Dir: t.TempDir(), Port: FreePort(t), env: env}
	s.args = append([]string{
		"--port", s.Port, "--bind", "127.0.0.1", "--dir", s.Dir, "--save", "", "--loglevel", "warning",
	}, args...)
	s.Start()
	t.Cleanup(s.Kill)
	return s
}

// Start starts a server again that was killed, on its port and with its files.
// It returns when the server answers.
func (s *Server) Start() {
	s.t.Helper()
	s.cmd = exec.Command("redis-server", s.args...) // #nosec G204 -- of tests
	s.cmd.Env = append(os.Environ(), s.env...)
	var output bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &output, &output
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("redis-server cannot be started (make test installs it): %v", err)
	}
	deadline := time.Now().Add(patience)
	for !s.answers() {
		if time.Now().After(deadline) {
			s.Kill() // or its output may still be written to
			s.t.Fatalf("redis-server %q does not answer: %s", s.args, &output)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// answers tells whether the server answers, be it with a refusal.
func (s *Server) answers() bool {
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprint(conn, "PING\r\n"); err != nil {
		return false
	}
	reply := make([]byte, 5)
	_, err = io.ReadFull(conn, reply)
	return err == nil && (string(reply) == "+PONG" || string(reply) == "-NOAU")
}

// Addr is host and port.
func (s *Server) Addr() string { return "127.0.0.1:" + s.Port }

// URL is redis://host:port.
func (s *Server) URL() string { return "redis://" + s.Addr() }

// Socket is where the unix socket of a server with the arguments "--unixsocket",
// "redis.sock" is.
func (s *Server) Socket() string { return filepath.Join(s.Dir, "redis.sock") }

// Client is a connection to look behind what is tested, as the default user.
func (s *Server) Client() *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.Addr()})
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Pause makes the server hang: its connections stay, and nothing is answered
// until Continue.
func (s *Server) Pause() {
	s.t.Helper()
	s.Signal(syscall.SIGSTOP)
}

// Continue ends a Pause.
func (s *Server) Continue() {
	s.t.Helper()
	s.Signal(syscall.SIGCONT)
}

// Signal sends a signal to the server.
func (s *Server) Signal(signal syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
}

// Kill ends the server at once (SIGKILL). It may be dead already.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

var statistic = regexp.MustCompile(`cmdstat_(\S+):calls=(\d+),usec=(\d+)`)

// Stat is what a server counted for one command.
type Stat struct {
	Calls        int
	Microseconds int // of the server's time, all calls together
}

// Stats returns what the server counted for each command since it was started
// or ResetStats, in lower case, but for those of this package.
func (s *Server) Stats(c *redis.Client) map[string]Stat {
	s.t.Helper()
	info, err := c.Info(context.Background(), "commandstats").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	stats := make(map[string]Stat)
	own := []string{"info", "config|resetstat", "hello", "client|setinfo", "ping"}
	for _, m := range statistic.FindAllStringSubmatch(info, -1) {
		if !slices.Contains(own, m[1]) {
			calls, _ := strconv.Atoi(m[2])
			microseconds, _ := strconv.Atoi(m[3])
			stats[m[1]] = Stat{calls, microseconds}
		}
	}
	return stats
}

// Calls returns how often each command ran, as Stats.
func (s *Server) Calls(c *redis.Client) map[string]int {
	s.t.Helper()
	calls := make(map[string]int)
	for name, stat := range s.Stats(c) {
		calls[name] = stat.Calls
	}
	return calls
}

// ResetStats makes the server count from zero.
func (s *Server) ResetStats(c *redis.Client) {
	s.t.Helper()
	if err := c.ConfigResetStat(context.Background()).Err(); err != nil {
		s.t.Fatal(err)
	}
}

// infoHas tells whether a server's INFO says all of it.
func infoHas(c *redis.Client, words ...string) bool {
	info, err := c.Info(context.Background()).Result()
	return err == nil && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(info, w) })
}
