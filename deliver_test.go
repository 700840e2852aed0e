package iakcallback

import (
	"bufio"
	"errors"
	"fmt"
	"io"
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
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// shortLease lets a claim be in doubt soon after upstream_timeout.
func shortLease(t *testing.T) {
	t.Helper()
	margin, grace := leaseMargin, returnGrace
	leaseMargin, returnGrace = 200*time.Millisecond, 50*time.Millisecond
	t.Cleanup(func() { leaseMargin, returnGrace = margin, grace })
}

// handlerBlock is iak_callback with the test account and more options.
func handlerBlock(options ...string) string {
	return "iak_callback {\n" + testAccount + "\n" + strings.Join(options, "\n") + "\n}\n"
}

func (r reply) expect(t *testing.T, what string, status int) {
	t.Helper()
	if r.status != status {
		t.Errorf("%s: status %d, want %d; body %q", what, r.status, status, r.body)
	}
}

// Every 2xx accepts; a repeat is answered with the app's status code of then,
// an empty body and Idempotent-Replayed, and does not reach the app.
func TestAppAccepts(t *testing.T) {
	var answer int
	app := startApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-App", "yes")
		w.WriteHeader(answer)
		if answer != http.StatusNoContent {
			fmt.Fprint(w, "the app's own words")
		}
	})
	s := startSite(t, handlerBlock()+"reverse_proxy "+app.addr())
	for _, answer = range []int{200, 201, 202, 204, 299} {
		ref := "order-" + strconv.Itoa(answer)
		first := s.post(order(ref, "1"))
		first.expect(t, "first", answer)
		if first.header.Get("X-App") != "yes" || answer != 204 && first.body != "the app's own words" {
			t.Errorf("the app's answer %d was changed: %v %q", answer, first.header, first.body)
		}
		if first.header.Get("Idempotent-Replayed") != "" {
			t.Error("the app's own answer is marked as a replay")
		}
		before := len(app.received())
		again := s.post(order(ref, "1"))
		again.expect(t, "repeat", answer)
		if again.body != "" || again.header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("repeat: body %q, header %v", again.body, again.header)
		}
		if len(app.received()) != before {
			t.Error("the repeat reached the app")
		}
	}
}

// A refusal by the app itself releases the claim and counts the attempt: the
// next delivery is made, with the same Idempotency-Key.
func TestAppRefuses(t *testing.T) {
	var answer int
	app := startApp(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(answer) })
	s := startSite(t, handlerBlock()+"reverse_proxy "+app.addr())
	for _, answer = range []int{302, 400, 404, 422, 500, 502, 503, 504} {
		ref := "order-" + strconv.Itoa(answer)
		for attempt := 1; attempt <= 3; attempt++ {
			s.post(order(ref, "2")).expect(t, "refused", answer)
			got := app.last(t).header
			if got.Get("Iak-Attempt") != strconv.Itoa(attempt) || got.Get("Idempotency-Key") != "test:"+ref+":2" {
				t.Errorf("delivery %d after %d: %v", attempt, answer, got)
			}
		}
		answer = 200
		s.post(order(ref, "2")).expect(t, "accepted at last", 200)
		if got := app.last(t).header.Get("Iak-Attempt"); got != "4" {
			t.Errorf("Iak-Attempt %s, want 4", got)
		}
	}
}

// What never reached the app counts no attempt.
func TestNothingSent(t *testing.T) {
	app := startApp(t, nil)
	closed := "127.0.0.1:" + freePort(t)
	for name, tc := range map[string]struct {
		behind string
		status int
	}{
		"connection refused": {"reverse_proxy " + closed, 502},
		"no upstream left":   {"reverse_proxy " + closed + " {\nfail_duration 1m\n}", 503},
		"fastcgi refused":    {"php_fastcgi " + closed + " {\ntry_files index.php\n}", 502},
		"basic_auth":         {"basic_auth {\nBob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\nreverse_proxy " + app.addr(), 401},
		"error":              {"error 403", 403},
		"no handler":         {"", 502},
	} {
		t.Run(name, func(t *testing.T) {
			s := startSite(t, handlerBlock()+tc.behind)
			if name == "no upstream left" { // the first failure marks it down
				s.post(order("first", "1")).expect(t, "first", 502)
			}
			s.post(order("order", "1")).expect(t, "refused", tc.status)
			s.post(order("order", "1")).expect(t, "refused again", tc.status)
			lines := s.callbackLines()
			if got := lines[len(lines)-1]["outcome"]; got != "app_failed" {
				t.Errorf("outcome %v, want app_failed", got)
			}
			s.load(handlerBlock() + "reverse_proxy " + app.addr())
			s.postAgain(order("order", "1")).expect(t, "delivered", 200)
			want := "1"
			if name == "no handler" { // released; whether something acted is not known
				want = "3"
			}
			if got := app.last(t).header.Get("Iak-Attempt"); got != want {
				t.Errorf("Iak-Attempt %s, want %s", got, want)
			}
		})
	}
}

// A directive without a handler behind it is a mistake in the Caddyfile: it is
// never taken for an accepted callback, and the log says what to do.
func TestNobodyAnswers(t *testing.T) {
	s := startSite(t, handlerBlock())
	s.post(order("order", "1")).expect(t, "nobody", 502)
	line := s.callbackLines()[0]
	if line["level"] != "error" || !strings.Contains(fmt.Sprint(line["error"]), "reverse_proxy") {
		t.Errorf("log line %v", line)
	}
}

// Nothing written and no error is never taken for Caddy's implicit 200, even
// when some upstream has answered: a forward_auth with no app behind it, or an
// app that switches protocols unasked.
func TestNothingWritten(t *testing.T) {
	auth := startApp(t, nil)
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
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
			}
			conn.Close()
		}
	}()
	for name, behind := range map[string]string{
		"forward_auth alone": "forward_auth " + auth.addr() + " {\nuri /auth\n}",
		"101":                "reverse_proxy " + listener.Addr().String(),
	} {
		t.Run(name, func(t *testing.T) {
			s := startSite(t, handlerBlock()+behind)
			s.post(order("order", "1")).expect(t, "first", 502)
			if got := s.post(order("order", "1")); got.status < 400 {
				t.Errorf("repeat: status %d", got.status)
			}
			if line := s.callbackLines()[0]; line["outcome"] != "app_unknown" {
				t.Errorf("log line %v", line)
			}
		})
	}
}

// What a forward_auth in front was answered is not taken for the app's answer:
// nobody behind the directive is nobody, and the record is released.
func TestForwardAuthInFront(t *testing.T) {
	auth := startApp(t, nil)
	s := startSite(t, "route {\nforward_auth "+auth.addr()+" {\nuri /auth\n}\n"+handlerBlock()+"request_header X-Seen yes\n}")
	for range 2 { // the second is no 409
		s.post(order("order", "1")).expect(t, "nobody", 502)
	}
	if n := len(auth.received()); n != 2 {
		t.Errorf("forward_auth asked %d times, want 2", n)
	}
	for _, line := range s.callbackLines() {
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
	app := startApp(t, func(w http.ResponseWriter, r *http.Request) {
		if _, ok := hang.Load("hang"); ok {
			<-r.Context().Done()
		}
	})
	s := startSite(t, handlerBlock("upstream_timeout 100ms")+"reverse_proxy "+app.addr())
	s.post(order("order", "1")).expect(t, "timeout", 504)
	flying := s.post(order("order", "1"))
	flying.expect(t, "in flight", 409)
	if flying.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q, want 1", flying.header.Get("Retry-After"))
	}
	eventually(t, "the lease is over", func() bool { return s.post(order("order", "0")).status == 200 }) // stale
	conflict := s.post(order("order", "2"))
	conflict.expect(t, "conflict", 409)
	if conflict.header.Get("Retry-After") != "" {
		t.Error("a conflict asks to be sent again")
	}
	hang.Delete("hang")
	s.post(order("order", "1")).expect(t, "delivered again", 200)
	got := app.last(t).header
	if got.Get("Iak-Attempt") != "2" || got.Get("Idempotency-Key") != "test:order:1" {
		t.Errorf("second delivery: %v", got)
	}
	if n := len(app.received()); n != 2 {
		t.Errorf("the app received %d requests, want 2", n)
	}
}

// With on_doubt accept, an app that acts but never answers has accepted.
func TestOnDoubtAccept(t *testing.T) {
	shortLease(t)
	app := startApp(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := startSite(t, handlerBlock("upstream_timeout 100ms", "on_doubt accept")+"reverse_proxy "+app.addr())
	s.post(order("order", "1")).expect(t, "accepted", 200)
	again := s.post(order("order", "1"))
	again.expect(t, "repeat", 200)
	if again.header.Get("Idempotent-Replayed") != "true" || len(app.received()) != 1 {
		t.Errorf("repeat: %v, the app received %d", again.header, len(app.received()))
	}
}

// An endless answer ends with upstream_timeout; it is in doubt although its
// header said 200.
func TestEndlessAnswer(t *testing.T) {
	shortLease(t)
	app := startApp(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1024)); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	s := startSite(t, handlerBlock("upstream_timeout 100ms")+"reverse_proxy "+app.addr())
	answer, err := client.Post(s.url, "application/json", strings.NewReader(order("order", "1")))
	if err == nil {
		if _, err = io.Copy(io.Discard, answer.Body); err == nil {
			t.Error("the endless answer ended well")
		}
		answer.Body.Close()
	}
	eventually(t, "the callback's line", func() bool { return len(s.callbackLines()) == 1 })
	if line := s.callbackLines()[0]; line["outcome"] != "app_unknown" || line["app_status"] != 200.0 {
		t.Errorf("log line %v", line)
	}
}

// A panicking handler leaves the claim in doubt, never accepted or released,
// and the panic goes on.
func TestHandlerPanics(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	var settled []delivery
	defer func() {
		if recover() != "broken handler" {
			t.Error("the panic was swallowed")
		}
		if len(settled) != 1 || settled[0].answer != answerBroken {
			t.Errorf("settled as %+v", settled)
		}
		if err := r.Context().Err(); err != nil {
			t.Errorf("the request keeps a context that has ended: %v", err)
		}
	}()
	_, _ = deliver(httptest.NewRecorder(), r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		w.WriteHeader(http.StatusOK)
		panic("broken handler")
	}), time.Minute, nil, func(d delivery) { settled = append(settled, d) })
}

// What the handlers behind did, and what it means for the claim.
func TestClassify(t *testing.T) {
	dial := caddyhttp.Error(502, reverseproxy.NewDialError(errors.New("refused")))
	for _, tc := range []struct {
		name     string
		returned bool
		err      error
		status   int
		timedOut bool
		upstream int
		want     answer
	}{
		{"2xx", true, nil, 200, false, 200, answerAccepted},
		{"2xx in the last moment", true, nil, 204, true, 204, answerAccepted},
		{"redirect", true, nil, 301, false, 301, answerRefused},
		{"the app's own 502", true, nil, 502, false, 502, answerRefused},
		{"nobody", true, nil, 0, false, 0, answerNobody},
		{"an answer that is none, 101", true, nil, 0, false, 101, answerBroken},
		{"an answer that swallowed the app's", true, nil, 0, false, 204, answerBroken},
		{"a swallowed timeout", true, nil, 0, true, 0, answerTimeout},
		{"cancelled", true, nil, 499, false, 0, answerBroken},
		{"cancelled after the timeout", true, nil, 499, true, 0, answerTimeout},
		{"dial error", true, dial, 0, false, 0, answerUnsent},
		{"dial error after the timeout", true, dial, 0, true, 0, answerUnsent},
		{"no upstream", true, caddyhttp.Error(503, errors.New("no upstreams")), 0, false, 0, answerUnsent},
		{"a handler refused", true, caddyhttp.Error(401, nil), 0, false, 0, answerUnsent},
		{"an error that is no HandlerError", true, errors.New("x"), 0, false, 0, answerUnsent},
		{"an error made of the app's answer", true, caddyhttp.Error(500, nil), 0, false, 500, answerRefused},
		{"broke off", true, caddyhttp.Error(502, errors.New("EOF")), 0, false, 0, answerBroken},
		{"a transport's own timeout", true, caddyhttp.Error(504, nil), 0, false, 0, answerBroken},
		{"timeout", true, caddyhttp.Error(504, nil), 0, true, 0, answerTimeout},
		{"error after the header", true, caddyhttp.Error(400, nil), 200, false, 200, answerBroken},
		{"panic", false, nil, 200, false, 200, answerBroken},
		{"panic after the timeout", false, nil, 200, true, 200, answerTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := classify(tc.returned, tc.err, tc.status, tc.timedOut, tc.upstream); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
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
	addr = "127.0.0.1:" + freePort(t)
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
	eventually(t, "php-cgi answers", func() bool {
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
	s := startSite(t, "root "+root+"\n"+handlerBlock()+"php_fastcgi "+addr)
	r, _ := http.NewRequest(http.MethodPost, s.url+"/iak/callback?a=b", strings.NewReader(reference(t, "game.v1.xml")))
	r.Header.Set("Content-Type", "application/xml; charset=utf-8")
	got := s.do(r)
	got.expect(t, "php", 200)
	want := "POST\n/iak/callback?a=b\napplication/json\ntest:order001:1\n" + reference(t, "game.iak.json")
	if got.body != want {
		t.Errorf("PHP received\n%s\nwant\n%s", got.body, want)
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
		s := startSite(t, "root "+root+"\n"+handlerBlock("upstream_timeout 300ms", "on_doubt "+onDoubt)+
			"php_fastcgi "+addr+" {\nread_timeout 300ms\n}\nhandle_errors {\nrespond shaped\n}")
		got := s.post(order("order", "1"))
		got.expect(t, onDoubt, status)
		if onDoubt == "retry" && got.body != "shaped" {
			t.Errorf("body %q", got.body)
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
			s := startSite(t, "root "+root+"\n"+handlerBlock("upstream_timeout 100ms", "on_doubt "+name)+"php_fastcgi "+addr)
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			body := order("order", "1")
			fmt.Fprintf(conn, "POST /index.php HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
				strings.TrimPrefix(s.url, "http://"), len(body), body)
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if answer.StatusCode != status || !answer.Close || answer.ContentLength != 0 {
				t.Errorf("status %d, close %v, length %d", answer.StatusCode, answer.Close, answer.ContentLength)
			}
			// It is told while PHP is still at work, which may be for hours.
			want := map[string]string{"retry": "app_unknown", "accept": "forwarded"}[name]
			if lines := s.callbackLines(); len(lines) != 1 || lines[0]["outcome"] != want || !strings.Contains(fmt.Sprint(lines[0]["error"]), "upstream_timeout") {
				t.Errorf("the log says %v, want one line with %s", lines, want)
			}
			if name == "accept" {
				s.post(order("order", "1")).expect(t, "repeat", 200)
			}
			if err := os.WriteFile(filepath.Join(root, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			eventually(t, "PHP's end is told", func() bool {
				return strings.Contains(s.log(), `"msg":"the app came back after upstream_timeout","outcome":"forwarded"`)
			})
			again := s.post(strings.Replace(body, "MESSAGE", "AGAIN", 1))
			if again.header.Get("Idempotent-Replayed") != "true" {
				t.Errorf("the late answer did not settle the record: %d %v", again.status, again.header)
			}
			lines := len(s.callbackLines())
			if want := map[string]int{"retry": 2, "accept": 3}[name]; lines != want {
				t.Errorf("%d lines of callbacks, want %d: one for each request", lines, want)
			}
		})
	}
}
