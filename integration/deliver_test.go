package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddyserver/caddy/v2"
)

// Every 2xx accepts; a repeat is answered with the app's status code of then,
// an empty body and Idempotent-Replayed, and does not reach the app.
func TestAppAccepts(t *testing.T) {
	var answer int
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-App", "yes")
		w.WriteHeader(answer)
		if answer != http.StatusNoContent {
			fmt.Fprint(w, "the app's own words")
		}
	})
	s := sitetest.Start(t, sitetest.Block()+"reverse_proxy "+app.Addr())
	for _, answer = range []int{200, 201, 202, 204, 299} {
		ref := "order-" + strconv.Itoa(answer)
		first := s.Post(sitetest.Order(ref, "1"))
		first.Expect(t, "first", answer)
		if first.Header.Get("X-App") != "yes" || answer != 204 && first.Body != "the app's own words" {
			t.Errorf("the app's answer %d was changed: %v %q", answer, first.Header, first.Body)
		}
		if first.Header.Get("Idempotent-Replayed") != "" {
			t.Error("the app's own answer is marked as a replay")
		}
		before := len(app.Received())
		again := s.Post(sitetest.Order(ref, "1"))
		again.Expect(t, "repeat", answer)
		if again.Body != "" || again.Header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("repeat: body %q, header %v", again.Body, again.Header)
		}
		if len(app.Received()) != before {
			t.Error("the repeat reached the app")
		}
	}
}

// A refusal by the app itself releases the claim and counts the attempt: the
// next delivery is made, with the same Idempotency-Key.
func TestAppRefuses(t *testing.T) {
	var answer int
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(answer) })
	s := sitetest.Start(t, sitetest.Block()+"reverse_proxy "+app.Addr())
	for _, answer = range []int{302, 400, 404, 422, 500, 502, 503, 504} {
		ref := "order-" + strconv.Itoa(answer)
		for attempt := 1; attempt <= 3; attempt++ {
			s.Post(sitetest.Order(ref, "2")).Expect(t, "refused", answer)
			got := app.Last(t).Header
			if got.Get("Iak-Attempt") != strconv.Itoa(attempt) || got.Get("Idempotency-Key") != "test:"+ref+":2" {
				t.Errorf("delivery %d after %d: %v", attempt, answer, got)
			}
		}
		answer = 200
		s.Post(sitetest.Order(ref, "2")).Expect(t, "accepted at last", 200)
		if got := app.Last(t).Header.Get("Iak-Attempt"); got != "4" {
			t.Errorf("Iak-Attempt %s, want 4", got)
		}
	}
}

// What never reached the app counts no attempt.
func TestNothingSent(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	closed := "127.0.0.1:" + sitetest.FreePort(t)
	for name, tc := range map[string]struct {
		behind string
		status int
	}{
		"connection refused": {"reverse_proxy " + closed, 502},
		"no upstream left":   {"reverse_proxy " + closed + " {\nfail_duration 1m\n}", 503},
		"fastcgi refused":    {"php_fastcgi " + closed + " {\ntry_files index.php\n}", 502},
		"basic_auth":         {"basic_auth {\nBob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\nreverse_proxy " + app.Addr(), 401},
		"error":              {"error 403", 403},
		"no handler":         {"", 502},
	} {
		t.Run(name, func(t *testing.T) {
			s := sitetest.Start(t, sitetest.Block()+tc.behind)
			if name == "no upstream left" { // the first failure marks it down
				s.Post(sitetest.Order("first", "1")).Expect(t, "first", 502)
			}
			s.Post(sitetest.Order("order", "1")).Expect(t, "refused", tc.status)
			s.Post(sitetest.Order("order", "1")).Expect(t, "refused again", tc.status)
			lines := s.CallbackLines()
			if got := lines[len(lines)-1]["outcome"]; got != "app_failed" {
				t.Errorf("outcome %v, want app_failed", got)
			}
			s.Load(sitetest.Block() + "reverse_proxy " + app.Addr())
			s.PostAgain(sitetest.Order("order", "1")).Expect(t, "delivered", 200)
			want := "1"
			if name == "no handler" { // released; whether something acted is not known
				want = "3"
			}
			if got := app.Last(t).Header.Get("Iak-Attempt"); got != want {
				t.Errorf("Iak-Attempt %s, want %s", got, want)
			}
		})
	}
}

// A directive without a handler behind it is a mistake in the Caddyfile: it is
// never taken for an accepted callback, and the log says what to do.
func TestNobodyAnswers(t *testing.T) {
	s := sitetest.Start(t, sitetest.Block())
	s.Post(sitetest.Order("order", "1")).Expect(t, "nobody", 502)
	line := s.CallbackLines()[0]
	if line["level"] != "error" || !strings.Contains(fmt.Sprint(line["error"]), "reverse_proxy") {
		t.Errorf("log line %v", line)
	}
}

// Nothing written and no error is never taken for Caddy's implicit 200, even
// when some upstream has answered: a forward_auth with no app behind it, or an
// app that switches protocols unasked.
func TestNothingWritten(t *testing.T) {
	auth := sitetest.StartApp(t, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
			}
			conn.Close()
		}
	}()
	for name, tc := range map[string]struct{ behind, outcome string }{
		"forward_auth alone": {"forward_auth " + auth.Addr() + " {\nuri /auth\n}", "app_failed"},
		"101":                {"reverse_proxy " + listener.Addr().String(), "app_unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			s := sitetest.Start(t, sitetest.Block()+tc.behind)
			s.Post(sitetest.Order("order", "1")).Expect(t, "first", 502)
			if got := s.Post(sitetest.Order("order", "1")); got.Status < 400 {
				t.Errorf("repeat: status %d", got.Status)
			}
			if line := s.CallbackLines()[0]; line["outcome"] != tc.outcome {
				t.Errorf("log line %v", line)
			}
		})
	}
}

// What a forward_auth in front was answered is not taken for the app's answer:
// nobody behind the directive is nobody, and the record is released.
func TestForwardAuthInFront(t *testing.T) {
	auth := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, "route {\nforward_auth "+auth.Addr()+" {\nuri /auth\n}\n"+sitetest.Block()+"request_header X-Seen yes\n}")
	for range 2 { // the second is no 409
		s.Post(sitetest.Order("order", "1")).Expect(t, "nobody", 502)
	}
	if n := len(auth.Received()); n != 2 {
		t.Errorf("forward_auth asked %d times, want 2", n)
	}
	for _, line := range s.CallbackLines() {
		if line["outcome"] != "app_failed" {
			t.Errorf("log line %v", line)
		}
	}
}

// When upstream_timeout passes, IAK gets 504. Until the lease is over the
// ref_id is in flight; then the same outcome is delivered again with a higher
// attempt, late news is stale, and another outcome a conflict.
func TestAppTimesOut(t *testing.T) {
	shortLease(t)
	var hang sync.Map
	hang.Store("hang", true)
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		if _, ok := hang.Load("hang"); ok {
			<-r.Context().Done()
		}
	})
	s := sitetest.Start(t, sitetest.Block("upstream_timeout 500ms")+"reverse_proxy "+app.Addr())
	s.Post(sitetest.Order("order", "1")).Expect(t, "timeout", 504)
	flying := s.Post(sitetest.Order("order", "1"))
	flying.Expect(t, "in flight", 409)
	if flying.Header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q, want 1", flying.Header.Get("Retry-After"))
	}
	sitetest.Eventually(t, "the lease is over", func() bool { return s.Post(sitetest.Order("order", "0")).Status == 200 }) // stale
	conflict := s.Post(sitetest.Order("order", "2"))
	conflict.Expect(t, "conflict", 409)
	if conflict.Header.Get("Retry-After") != "" {
		t.Error("a conflict asks to be sent again")
	}
	hang.Delete("hang")
	s.Post(sitetest.Order("order", "1")).Expect(t, "delivered again", 200)
	got := app.Last(t).Header
	if got.Get("Iak-Attempt") != "2" || got.Get("Idempotency-Key") != "test:order:1" {
		t.Errorf("second delivery: %v", got)
	}
	if n := len(app.Received()); n != 2 {
		t.Errorf("the app received %d requests, want 2", n)
	}
}

// With on_doubt accept, an app that acts but never answers has accepted.
func TestOnDoubtAccept(t *testing.T) {
	shortLease(t)
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := sitetest.StartOperated(t, sitetest.Block("upstream_timeout 500ms", "on_doubt accept")+"reverse_proxy "+app.Addr())
	s.Post(sitetest.Order("order", "1")).Expect(t, "accepted", 200)
	if line := s.LinesAfter(1)[0]; line["outcome"] != "assumed" || line["level"] != "warn" || line["app_status"] != nil {
		t.Errorf("logged %v, want assumed as a warning", line)
	}
	s.ExpectState("order", "assumed")
	if out := s.Must("list", "--state", "assumed"); !strings.Contains(out, "order") || !strings.Contains(out, "success") {
		t.Errorf("list --state assumed: %s", out)
	}
	if out := s.Must("list", "--state", "accepted"); strings.Contains(out, "order") {
		t.Errorf("list --state accepted: %s", out)
	}
	again := s.Post(sitetest.Order("order", "1"))
	again.Expect(t, "repeat", 200)
	if again.Header.Get("Idempotent-Replayed") != "true" || len(app.Received()) != 1 {
		t.Errorf("repeat: %v, the app received %d", again.Header, len(app.Received()))
	}
}

// An app that pauses in its answer, for longer than a caller may hold it up, is no
// slow caller: the answer arrives whole.
func TestAppPausesInItsAnswer(t *testing.T) {
	app := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, strings.Repeat("first", 2000))
		_ = http.NewResponseController(w).Flush()
		time.Sleep(2 * time.Second) // the pause itself
		_, _ = fmt.Fprint(w, "second")
	})
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2", "HTTP/3"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			url := "https://localhost:" + sitetest.FreePort(t)
			sitetest.StartProcess(t, t.TempDir(), "respond ok\n}\n"+url+" {\ntls internal\n"+sitetest.Block("upstream_timeout 3s")+"reverse_proxy "+app.Addr(),
				"skip_install_trust", "grace_period 1s")
			client := clientFor(t, protocol)
			sendForging(t, client, protocol, http.MethodGet, url, "", [2]string{}) // when it is answered, Caddy has its certificate
			answer, err := client.RoundTrip(sitetest.CallbackOf(t, url, sitetest.Order("order", "1")))
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if err != nil || !strings.HasSuffix(string(body), "second") {
				t.Errorf("%d bytes, %v, want the whole answer", len(body), err)
			}
		})
	}
}

// A caller who does not read holds up the app's answer for half of upstream_timeout,
// and does not put it in doubt. What belongs to this kind: a caller who reads a byte
// now and then, one whose window is shut, over each version of HTTP; an app behind
// reverse_proxy and one behind FastCGI, which has no timeout of its own.
func TestSlowCaller(t *testing.T) {
	const size = 64 << 20 // more than the buffers of a connection hold
	large := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
		for range size >> 16 {
			_, _ = w.Write(make([]byte, 1<<16))
		}
	})
	php, root := startPHP(t, map[string]string{"index.php": "<?php for ($i = 0; $i < 1024; $i++) echo str_repeat('x', 65536);"})
	for name, behind := range map[string]string{
		"reverse_proxy": "reverse_proxy " + large.Addr(),
		"php_fastcgi":   "root * " + root + "\nphp_fastcgi " + php,
	} {
		// In HTTP/1.1 Go waits another 5 s for such a caller when it closes the connection.
		for protocol, timeout := range map[string]string{"HTTP/1.1": "12s", "HTTP/2": "3s", "HTTP/3": "3s"} {
			for _, reads := range []string{"nothing", "a little"} {
				t.Run(name+", "+protocol+", "+reads, func(t *testing.T) {
					// In a process of its own: Caddy's TLS app and its HTTP/3 race when it starts.
					url := "https://localhost:" + sitetest.FreePort(t)
					sitetest.StartProcess(t, t.TempDir(), "respond ok\n}\n"+url+" {\ntls internal\n"+sitetest.Block("upstream_timeout "+timeout)+behind,
						"skip_install_trust", "grace_period 1s")
					client := clientFor(t, protocol)
					sendForging(t, client, protocol, http.MethodGet, url, "", [2]string{}) // when it is answered, Caddy has its certificate
					r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(sitetest.Order("order", "1")))
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("Content-Type", "application/json")
					answer, err := client.RoundTrip(r)
					if err != nil {
						t.Fatal(err)
					}
					defer answer.Body.Close()
					done := make(chan bool)
					defer close(done)
					if reads == "a little" {
						go func() {
							for tick := time.NewTicker(20 * time.Millisecond); ; {
								select {
								case <-done:
									return
								case <-tick.C:
									_, _ = answer.Body.Read(make([]byte, 1000))
								}
							}
						}()
					}
					other := clientFor(t, "HTTP/1.1")
					sitetest.Eventually(t, "the repeat is a duplicate", func() bool {
						again, err := other.RoundTrip(sitetest.CallbackOf(t, url, sitetest.Order("order", "1")))
						if err != nil {
							t.Fatal(err)
						}
						again.Body.Close()
						if again.StatusCode == http.StatusOK && again.Header.Get("Idempotent-Replayed") == "" {
							t.Fatal("the app got it again: its 2xx was in doubt")
						}
						return again.StatusCode == http.StatusOK
					})
				})
			}
		}
	}
}

// An endless answer ends with upstream_timeout; it is in doubt although its
// header said 200.
func TestEndlessAnswer(t *testing.T) {
	shortLease(t)
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	s := sitetest.Start(t, sitetest.Block("upstream_timeout 500ms")+"reverse_proxy "+app.Addr())
	answer, err := sitetest.Client.Post(s.URL, "application/json", strings.NewReader(sitetest.Order("order", "1")))
	if err == nil {
		if _, err = io.Copy(io.Discard, answer.Body); err == nil {
			t.Error("the endless answer ended well")
		}
		answer.Body.Close()
	}
	sitetest.Eventually(t, "the callback's line", func() bool { return len(s.CallbackLines()) == 1 })
	if line := s.CallbackLines()[0]; line["outcome"] != "app_unknown" || line["app_status"] != 200.0 {
		t.Errorf("log line %v", line)
	}
}

// startPHP serves a directory by php-cgi, a real FastCGI server.
func startPHP(t *testing.T, files map[string]string) (addr, root string) {
	t.Helper()
	root = t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addr = "127.0.0.1:" + sitetest.FreePort(t)
	cmd := exec.Command("php-cgi", "-b", addr)
	cmd.Env = append(os.Environ(), "PHP_FCGI_CHILDREN=4")
	if err := cmd.Start(); err != nil {
		t.Fatalf("php-cgi cannot be started (make test installs it): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it ends its workers too
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
	})
	sitetest.Eventually(t, "php-cgi answers", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return addr, root
}

const phpEcho = `<?php
header('Content-Type: text/plain');
echo $_SERVER['REQUEST_METHOD'], "\n", $_SERVER['REQUEST_URI'], "\n", $_SERVER['CONTENT_TYPE'] ?? '', "\n",
	$_SERVER['HTTP_IDEMPOTENCY_KEY'] ?? '', "\n", file_get_contents('php://input');
`

// PHP behind php_fastcgi reads the normalized body, and REQUEST_URI is what IAK
// requested.
func TestPHP(t *testing.T) {
	addr, root := startPHP(t, map[string]string{"index.php": phpEcho})
	s := sitetest.Start(t, "root "+root+"\n"+sitetest.Block()+"php_fastcgi "+addr)
	r, _ := http.NewRequest(http.MethodPost, s.URL+"/iak/callback?a=b", strings.NewReader(sitetest.Reference(t, "game.v1.xml")))
	r.Header.Set("Content-Type", "application/xml; charset=utf-8")
	got := s.Do(r)
	got.Expect(t, "php", 200)
	want := "POST\n/iak/callback?a=b\napplication/json\ntest:order001:1\n" + sitetest.Reference(t, "game.iak.json")
	if got.Body != want {
		t.Errorf("PHP received\n%s\nwant\n%s", got.Body, want)
	}
}

// With read_timeout as long as upstream_timeout, FastCGI's end is told from the
// app's breaking off, and goes through error routes.
func TestPHPReadTimeout(t *testing.T) {
	addr, root := startPHP(t, map[string]string{"index.php": `<?php
for ($i = 0; $i < 100 && !file_exists(__DIR__ . '/go'); $i++) { usleep(20000); clearstatcache(); }
`})
	t.Cleanup(func() { _ = os.WriteFile(filepath.Join(root, "go"), nil, 0o600) })
	for onDoubt, status := range map[string]int{"retry": 504, "accept": 200} {
		s := sitetest.Start(t, "root "+root+"\n"+sitetest.Block("upstream_timeout 500ms", "on_doubt "+onDoubt)+
			"php_fastcgi "+addr+" {\nread_timeout 500ms\n}\nhandle_errors {\nrespond shaped\n}")
		got := s.Post(sitetest.Order("order", "1"))
		got.Expect(t, onDoubt, status)
		if onDoubt == "retry" && got.Body != "shaped" {
			t.Errorf("body %q", got.Body)
		}
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// FastCGI does not notice that its time is over. IAK gets its answer all the
// same, on a connection that is then closed, and the app's late 2xx counts.
func TestPHPNeverAnswers(t *testing.T) {
	shortLease(t)
	addr, root := startPHP(t, map[string]string{"index.php": `<?php
ignore_user_abort(true);
for ($i = 0; $i < 200 && !file_exists(__DIR__ . '/go'); $i++) { usleep(20000); clearstatcache(); }
http_response_code(201);
`})
	for name, status := range map[string]int{"retry": 504, "accept": 200} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(filepath.Join(root, "go"))
			s := sitetest.Start(t, "root "+root+"\n"+sitetest.Block("upstream_timeout 500ms", "on_doubt "+name)+"php_fastcgi "+addr)
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			body := sitetest.Order("order", "1")
			fmt.Fprintf(conn, "POST /index.php HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
				strings.TrimPrefix(s.URL, "http://"), len(body), body)
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if answer.StatusCode != status || !answer.Close || answer.ContentLength != 0 {
				t.Errorf("status %d, close %v, length %d", answer.StatusCode, answer.Close, answer.ContentLength)
			}
			// It is told while PHP is still at work, which may be for hours.
			want := map[string]string{"retry": "app_unknown", "accept": "assumed"}[name]
			if lines := s.CallbackLines(); len(lines) != 1 || lines[0]["outcome"] != want || !strings.Contains(fmt.Sprint(lines[0]["error"]), "upstream_timeout") {
				t.Errorf("the log says %v, want one line with %s", lines, want)
			}
			if name == "accept" {
				s.Post(sitetest.Order("order", "1")).Expect(t, "repeat", 200)
			}
			if err := os.WriteFile(filepath.Join(root, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			sitetest.Eventually(t, "PHP's end is told", func() bool {
				return strings.Contains(s.Log(), `"msg":"the app came back after upstream_timeout","outcome":"forwarded"`)
			})
			again := s.Post(strings.Replace(body, "MESSAGE", "AGAIN", 1))
			if again.Header.Get("Idempotent-Replayed") != "true" {
				t.Errorf("the late answer did not settle the record: %d %v", again.Status, again.Header)
			}
			lines := len(s.CallbackLines())
			if want := map[string]int{"retry": 2, "accept": 3}[name]; lines != want {
				t.Errorf("%d lines of callbacks, want %d: one for each request", lines, want)
			}
		})
	}
}
