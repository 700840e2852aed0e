package iakcallback

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// The test account of testdata/README.md.
const (
	testUsername = "081234567890"
	testAPIKey   = "test-api-key-1"
	testAccount  = "account test " + testUsername + " " + testAPIKey
)

// sign is IAK's signature of a ref_id for the test account.
func sign(refID string) string {
	sum := md5.Sum([]byte(testUsername + testAPIKey + refID))
	return hex.EncodeToString(sum[:])
}

// order is a signed callback as JSON, a complete one of version 1. Each change
// is a name and its JSON value; an empty value leaves the field out.
func order(refID, status string, changes ...string) string {
	fields := []string{
		"ref_id", quote(refID), "status", quote(status), "code", `"xld25000"`, "hp", `"0817777215"`,
		"price", `"25000"`, "message", `"MESSAGE"`, "balance", `"997061249"`, "tr_id", `"3482"`, "rc", `"00"`,
		"sign", quote(sign(refID)),
	}
next:
	for i := 0; i < len(changes); i += 2 {
		for j := 0; j < len(fields); j += 2 {
			if fields[j] == changes[i] {
				fields[j+1] = changes[i+1]
				continue next
			}
		}
		fields = append(fields, changes[i], changes[i+1])
	}
	var members []string
	for j := 0; j < len(fields); j += 2 {
		if fields[j+1] != "" {
			members = append(members, quote(fields[j])+":"+fields[j+1])
		}
	}
	return `{"data":{` + strings.Join(members, ",") + `}}`
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// freePort returns a port that nobody listened on a moment ago, below those that
// systems give to outgoing connections, which could take it meanwhile.
func freePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(10000 + rand.IntN(20000)) // #nosec G404 -- no secret
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// eventually waits for an event that has no other signal, and fails the test
// when it does not come.
func eventually(t testing.TB, what string, happened func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !happened() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// redisServer is a real redis-server of one test.
type redisServer struct {
	t    testing.TB
	dir  string
	port string
	args []string
	cmd  *exec.Cmd
}

// startRedis starts a redis-server on a free port. It ends with the test.
func startRedis(t testing.TB, args ...string) *redisServer {
	t.Helper()
	s := &redisServer{t: t, dir: t.TempDir(), port: freePort(t), args: args}
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *redisServer) start() {
	s.t.Helper()
	args := append([]string{"--port", s.port, "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--loglevel", "warning"}, s.args...)
	s.cmd = exec.Command("redis-server", args...)
	var output bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &output, &output
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("redis-server cannot be started (make test installs it): %v", err)
	}
	eventually(s.t, "redis-server answers", func() bool {
		conn, err := net.Dial("tcp", s.addr())
		if err != nil {
			return false
		}
		defer conn.Close()
		fmt.Fprint(conn, "PING\r\n")
		reply := make([]byte, 5)
		_, err = io.ReadFull(conn, reply)
		return err == nil && (string(reply) == "+PONG" || string(reply) == "-NOAU")
	})
}

func (s *redisServer) addr() string { return "127.0.0.1:" + s.port }
func (s *redisServer) url() string  { return "redis://" + s.addr() }

func (s *redisServer) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *redisServer) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// delivered is one request as an app received it.
type delivered struct {
	method, path, body string
	header             http.Header
	contentLength      int64
	transferEncoding   []string
	trailer            http.Header
}

// app is a merchant's app: a real HTTP server that notes what it receives and
// answers by its handler.
type app struct {
	*httptest.Server
	mu       sync.Mutex
	requests []delivered
}

// startApp starts an app. A nil handler answers 200 to everything.
func startApp(t testing.TB, handler http.HandlerFunc) *app {
	t.Helper()
	a := new(app)
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		a.mu.Lock()
		a.requests = append(a.requests, delivered{
			r.Method, r.URL.RequestURI(), string(body), r.Header.Clone(), r.ContentLength, r.TransferEncoding, r.Trailer.Clone(),
		})
		a.mu.Unlock()
		if handler != nil {
			handler(w, r)
		}
	}))
	t.Cleanup(func() {
		a.CloseClientConnections()
		a.Close()
	})
	return a
}

func (a *app) addr() string { return strings.TrimPrefix(a.URL, "http://") }

// received returns all requests so far.
func (a *app) received() []delivered {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]delivered(nil), a.requests...)
}

// last returns the latest request.
func (a *app) last(t testing.TB) delivered {
	t.Helper()
	all := a.received()
	if len(all) == 0 {
		t.Fatal("the app has received nothing")
	}
	return all[len(all)-1]
}

// site is a running Caddy with one site.
type site struct {
	t       testing.TB
	url     string
	logFile string
	dir     string
}

// startSite runs Caddy in this process. block is what stands in the site's
// block: usually iak_callback { ... } and reverse_proxy. The embedded store's
// default place is a new directory. Only one Caddy can run at a time.
func startSite(t testing.TB, block string) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, url: "http://127.0.0.1:" + freePort(t), dir: dir, logFile: filepath.Join(dir, "caddy.log")}
	t.Setenv("XDG_DATA_HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	s.load(block)
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		// What is left to repeat would go on for an hour, in the next tests.
		eventually(t, "all stores are closed", func() bool {
			dropBacklogs()
			return openStores() == 0
		})
	})
	return s
}

// dropBacklogs gives up whatever waits to be repeated.
func dropBacklogs() {
	var tasks []*task
	stores.Range(func(_, value any) bool {
		b := &value.(*sharedStore).backlog
		b.mu.Lock()
		tasks, b.tasks = append(tasks, b.tasks...), nil
		b.mu.Unlock()
		return true
	})
	for _, t := range tasks {
		t.end(errors.New("the test is over"))
	}
}

// openStores counts the stores that are open.
func openStores() (n int) {
	stores.Range(func(any, any) bool {
		n++
		return true
	})
	return n
}

// caddyfile is the whole Caddyfile of a site: log lines of every level go to
// the log file as JSON.
func (s *site) caddyfile(block string) string {
	return `{
	admin off
	persist_config off
	metrics
	grace_period 1s
	log {
		output file ` + s.logFile + ` {
			mode 0600
		}
		format json
		level DEBUG
	}
}
` + s.url + ` {
	` + block + `
}
`
}

// load replaces the configuration, as a reload does.
func (s *site) load(block string) {
	s.t.Helper()
	if err := s.tryLoad(block); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) tryLoad(block string) error {
	s.t.Helper()
	config, err := adapt(s.caddyfile(block))
	if err != nil {
		return err
	}
	return s.loadConfig(config)
}

// loadConfig replaces the configuration by one that is adapted already.
func (s *site) loadConfig(config []byte) error {
	s.t.Helper()
	if err := caddy.Load(config, true); err != nil {
		return err
	}
	// The old server may still listen, and drops the connections that it gets
	// (Caddy v2.11.9, modules/caddyhttp/app.go, Stop, "unlikely").
	_, port, _ := strings.Cut(strings.TrimPrefix(s.url, "http://"), ":")
	eventually(s.t, "the old server listens no more", func() bool { return listeners(port) <= 1 })
	return nil
}

// listeners counts the sockets that listen on a port of IPv4, where the system
// tells (Linux, proc(5)).
func listeners(port string) (n int) {
	table, _ := os.ReadFile("/proc/net/tcp")
	number, _ := strconv.Atoi(port)
	for line := range strings.Lines(string(table)) {
		const listen = "0A"
		if field := strings.Fields(line); strings.HasSuffix(field[1], fmt.Sprintf(":%04X", number)) && field[3] == listen {
			n++
		}
	}
	return n
}

// adapt turns a Caddyfile into JSON.
func adapt(text string) ([]byte, error) {
	adapter := caddyconfig.GetAdapter("caddyfile")
	config, _, err := adapter.Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	return config, err
}

var _ = httpcaddyfile.ServerType{} // the adapter is registered by this package

// log returns all log lines so far.
func (s *site) log() string {
	s.t.Helper()
	b, err := os.ReadFile(s.logFile)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// callbackLines returns the module's own log lines so far, one for each
// callback.
func (s *site) callbackLines() (lines []map[string]any) {
	s.t.Helper()
	for line := range strings.Lines(s.log()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			s.t.Fatalf("log line %q: %v", line, err)
		}
		if m["logger"] == "http.handlers.iak_callback" && m["msg"] == "callback" {
			lines = append(lines, m)
		}
	}
	return lines
}

// reply is an answer that IAK gets.
type reply struct {
	status int
	header http.Header
	body   string
}

// post sends a JSON callback, as IAK does.
func (s *site) post(body string) reply {
	s.t.Helper()
	return s.send("application/json", body)
}

func (s *site) send(contentType, body string) reply {
	s.t.Helper()
	r, err := http.NewRequest(http.MethodPost, s.url+"/callback?a=b", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return s.do(r)
}

// postAgain sends until there is an answer: Caddy breaks a connection now and
// then that meets the old listener during a reload.
func (s *site) postAgain(body string) (got reply) {
	s.t.Helper()
	eventually(s.t, "an answer after the reload", func() bool {
		answer, err := client.Post(s.url+"/callback", "application/json", strings.NewReader(body))
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		got = reply{answer.StatusCode, answer.Header, string(text)}
		return err == nil
	})
	return got
}

// client makes a new connection for each request, so that tests do not meet
// one another's.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func (s *site) do(r *http.Request) reply {
	s.t.Helper()
	answer, err := client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply{answer.StatusCode, answer.Header, string(body)}
}

// reference reads a file of testdata/reference.
func reference(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "reference", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// forgedRequest is a callback whose sender sets the headers that only the
// module may set.
func forgedRequest(t testing.TB, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(order("forged", "1")))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for _, name := range []string{"Iak-Account", "Iak-Attempt", "Iak-Conflict", "Iak-Deduplicated", "Iak-Anything", "Idempotency-Key"} {
		r.Header.Set(name, "forged")
	}
	return r
}
