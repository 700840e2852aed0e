package sitetest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile" // the adapter
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// Block is iak_callback with the test account and more options.
func Block(options ...string) string {
	return "iak_callback {\n" + Account + "\n" + strings.Join(options, "\n") + "\n}\n"
}

// Site is a running Caddy with one site.
type Site struct {
	T       testing.TB
	URL     string // http://host:port
	LogFile string
	Dir     string // Caddy's data and configuration, the log, the default store
}

// Start runs Caddy in this process. block is what stands in the site's
// block: usually iak_callback { ... } and reverse_proxy. The embedded store's
// default place is a new directory. Only one Caddy can run at a time.
func Start(t testing.TB, block string) *Site {
	t.Helper()
	dir := t.TempDir()
	s := &Site{T: t, URL: "http://127.0.0.1:" + FreePort(t), Dir: dir, LogFile: filepath.Join(dir, "caddy.log")}
	t.Setenv("XDG_DATA_HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", dir)
	s.Load(block)
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Caddyfile is the whole Caddyfile of a site: log lines of every level go to
// the log file as JSON.
func (s *Site) Caddyfile(block string) string {
	return `{
	admin off
	persist_config off
	metrics
	grace_period 1s
	log {
		output file ` + s.LogFile + ` {
			mode 0600
		}
		format json
		level DEBUG
	}
}
` + s.URL + ` {
	` + block + `
}
`
}

// Load replaces the configuration, as a reload does.
func (s *Site) Load(block string) {
	s.T.Helper()
	if err := s.TryLoad(block); err != nil {
		s.T.Fatal(err)
	}
}

// TryLoad is Load for what may not load.
func (s *Site) TryLoad(block string) error {
	s.T.Helper()
	config, err := Adapt(s.Caddyfile(block))
	if err != nil {
		return err
	}
	return s.LoadConfig(config)
}

// LoadConfig replaces the configuration by one that is adapted already.
func (s *Site) LoadConfig(config []byte) error {
	s.T.Helper()
	if err := caddy.Load(config, true); err != nil {
		return err
	}
	// The old server may still listen, and drops the connections that it gets
	// (Caddy v2.11.9, modules/caddyhttp/app.go, Stop, "unlikely").
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "http://"), ":")
	Eventually(s.T, "the old server listens no more", func() bool { return Listeners(port) <= 1 })
	return nil
}

// Adapt turns a Caddyfile into JSON.
func Adapt(text string) ([]byte, error) {
	adapter := caddyconfig.GetAdapter("caddyfile")
	config, _, err := adapter.Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	return config, err
}

// Log returns all log lines so far.
func (s *Site) Log() string {
	s.T.Helper()
	b, err := os.ReadFile(s.LogFile)
	if err != nil {
		s.T.Fatal(err)
	}
	return string(b)
}

// CallbackLines returns the module's own log lines so far, one for each
// callback.
func (s *Site) CallbackLines() (lines []map[string]any) {
	s.T.Helper()
	for line := range strings.Lines(s.Log()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			s.T.Fatalf("log line %q: %v", line, err)
		}
		if m["logger"] == "http.handlers.iak_callback" && m["msg"] == "callback" {
			lines = append(lines, m)
		}
	}
	return lines
}

// Post sends a JSON callback, as IAK does.
func (s *Site) Post(body string) Reply {
	s.T.Helper()
	return s.Send("application/json", body)
}

// Send sends a callback with a Content-Type, or with none.
func (s *Site) Send(contentType, body string) Reply {
	s.T.Helper()
	r, err := http.NewRequest(http.MethodPost, s.URL+"/callback?a=b", strings.NewReader(body))
	if err != nil {
		s.T.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return s.Do(r)
}

// PostAgain sends until there is an answer: Caddy breaks a connection now and
// then that meets the old listener during a reload.
func (s *Site) PostAgain(body string) (got Reply) {
	s.T.Helper()
	Eventually(s.T, "an answer after the reload", func() bool {
		answer, err := Client.Post(s.URL+"/callback", "application/json", strings.NewReader(body))
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		got = Reply{answer.StatusCode, answer.Header, string(text)}
		return err == nil
	})
	return got
}

// Do makes a request.
func (s *Site) Do(r *http.Request) Reply {
	s.T.Helper()
	answer, err := Client.Do(r)
	if err != nil {
		s.T.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		s.T.Fatal(err)
	}
	return Reply{answer.StatusCode, answer.Header, string(body)}
}

// LinesAfter waits for n log lines of callbacks, and returns all there are.
func (s *Site) LinesAfter(n int) []map[string]any {
	s.T.Helper()
	var lines []map[string]any
	Eventually(s.T, fmt.Sprintf("%d log lines of callbacks", n), func() bool {
		lines = s.CallbackLines()
		return len(lines) >= n
	})
	return lines
}

// Metrics returns the samples that Caddy's metrics handler shows of this module,
// by their name and labels.
func (s *Site) Metrics() map[string]float64 {
	s.T.Helper()
	r, err := http.NewRequest(http.MethodGet, s.URL+"/metrics", nil)
	if err != nil {
		s.T.Fatal(err)
	}
	got := s.Do(r)
	if got.Status != 200 {
		s.T.Fatalf("/metrics answers %d: %s", got.Status, got.Body)
	}
	samples := make(map[string]float64)
	for line := range strings.Lines(got.Body) {
		series, text, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "} ")
		if !ok {
			series, text, ok = strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		} else {
			series += "}"
		}
		if !ok || !strings.HasPrefix(series, "caddy_iak_callback_") {
			continue
		}
		if samples[series], err = strconv.ParseFloat(text, 64); err != nil {
			s.T.Fatalf("metrics line %q: %v", line, err)
		}
	}
	return samples
}

// Raw sends bytes over a connection of its own and returns it, with a reader
// for the answers.
func (s *Site) Raw(t *testing.T, request string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn), bufio.NewReader(conn)
}

// Upload sends a body, by its length or in one chunk, and reads the answer
// meanwhile: it may come, and the connection end, before all is sent.
func (s *Site) Upload(t *testing.T, body string, chunked bool) Reply {
	t.Helper()
	conn, answers := s.Raw(t, "")
	lines := Head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body)))
	if chunked {
		lines = Head("Content-Type: application/json", "Transfer-Encoding: chunked")
		body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	go func() { _, _ = io.WriteString(conn, lines+body) }()
	return RawReply(t, answers)
}

// Reopen starts the site anew on another port, with more global options: on the
// same one, connections could still meet the server before.
func (s *Site) Reopen(t *testing.T, options, block string) {
	t.Helper()
	s.URL = "http://127.0.0.1:" + FreePort(t)
	text := strings.Replace(s.Caddyfile(block), "{\n", "{\n"+options+"\n", 1)
	config, err := Adapt(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
}
