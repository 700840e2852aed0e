package integration

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// An app that answers 2xx whatever happened: accept_when tells which of its answers
// count. Those that do are passed on whole and unchanged; for the others the sender
// gets 502, the record is released, and the callback is delivered again. What belongs
// to this kind: 200 and "not found", 200 with a login page, 200 with an error in JSON, a
// header that says it, an answer that is encoded, long, empty, cut off, in pieces.
func TestAcceptWhen(t *testing.T) {
	long := strings.Repeat("x", 64<<10)
	write := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) }
	}
	header := func(name, value string, next http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.Header().Add(name, value); next(w, r) }
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	pieces := func(w http.ResponseWriter, _ *http.Request) {
		for _, b := range []byte(`{"status":"ok"}`) {
			_, _ = w.Write([]byte{b})
			_ = http.NewResponseController(w).Flush()
		}
	}
	zipped := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write([]byte("ok"))
		_ = z.Close()
	}
	// Go's transport asks for gzip by itself, and takes it off again.
	plainWhenAsked := func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Accept-Encoding"), "br") {
			w.Header().Set("Content-Encoding", "br")
		}
		_, _ = w.Write([]byte("ok"))
	}
	brokeOff := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("ok"))
		panic(http.ErrAbortHandler)
	}
	for _, row := range []struct {
		name    string
		when    string // ; between lines
		app     http.HandlerFunc
		counts  bool
		status  int // that IAK gets, if not 200 or 502
		body    string
		outcome string // if not forwarded or app_failed
		says    string // the log's error
	}{
		{name: "body matches", when: `body "\"ok\""`, app: pieces, counts: true, body: `{"status":"ok"}`},
		{name: "body does not", when: `body ^ok`, app: write("not found"), says: "the app answered 200, but accept_when body ^ok does not hold"},
		{name: "not body, and it does not match", when: `not body "(?i)<html"`, app: write("fine"), counts: true, body: "fine"},
		{name: "not body, and it matches", when: `not body "(?i)<html"`, app: header("Content-Type", "text/html", write("<!doctype html><HTML>login")), says: "accept_when not body (?i)<html does not hold"},
		{name: "empty, body", when: "body ok", app: status(204), says: "does not hold"},
		{name: "empty, not body", when: "not body error", app: status(204), counts: true, status: 204},
		{name: "header is there", when: "header X-Done", app: header("X-Done", "", status(201)), counts: true, status: 201},
		{name: "header is not there", when: "header X-Done", app: write("ok"), says: "accept_when header X-Done does not hold"},
		{name: "one of a header's values matches", when: "header X-Done ^yes$", app: header("X-Done", "no", header("X-Done", "yes", write("ok"))), counts: true, body: "ok"},
		{name: "no value matches", when: "header X-Done ^yes$", app: header("X-Done", "yesterday", write("ok")), says: "accept_when header X-Done ^yes$ does not hold"},
		{name: "not header", when: "not header X-Error", app: write("ok"), counts: true, body: "ok"},
		{name: "not header, and it is there", when: "not header X-Error", app: header("X-Error", "1", write("ok")), says: "accept_when not header X-Error does not hold"},
		{name: "all hold", when: "header Content-Type json; body ok; not body error", app: header("Content-Type", "application/json", pieces), counts: true, body: `{"status":"ok"}`},
		{name: "one does not", when: "header Content-Type json; body ok; not body status", app: header("Content-Type", "application/json", pieces), says: "accept_when not body status does not hold"},
		{name: "a match in 64 KiB, and more behind", when: "body ^ok", app: write("ok" + long), counts: true, body: "ok" + long},
		{name: "64 KiB", when: "not body ok", app: write(long), counts: true, body: long},
		{name: "a match behind 64 KiB", when: "body ok", app: write(long + "ok"), says: "longer than 64 KiB"},
		{name: "longer than 64 KiB, not body", when: "not body ok", app: write(long + "x"), says: "longer than 64 KiB"},
		{name: "encoded", when: "body ok", app: header("Content-Encoding", "br", write("ok")), says: "Content-Encoding"},
		{name: "encoded, not body", when: "not body error", app: header("Content-Encoding", "br", write("ok")), says: "Content-Encoding"},
		{name: "encoded, header", when: "header X-Done", app: header("X-Done", "1", header("Content-Encoding", "br", write("ok"))), counts: true, body: "ok"},
		{name: "gzip that the proxy asked for", when: "body ok", app: zipped, counts: true, body: "ok"},
		{name: "the sender's Accept-Encoding is not passed on", when: "body ok", app: plainWhenAsked, counts: true, body: "ok"},
		{name: "refused", when: "body ok", app: status(500), status: 500, outcome: "app_failed"},
		{name: "redirected", when: "not body error", app: status(302), status: 302, outcome: "app_failed"},
		{name: "cut off", when: "body ok", app: brokeOff, status: 502, outcome: "app_unknown"},
	} {
		t.Run(row.name, func(t *testing.T) {
			app := sitetest.StartApp(t, row.app)
			var options []string
			for when := range strings.SplitSeq(row.when, "; ") {
				options = append(options, "accept_when "+when)
			}
			s := sitetest.StartOperated(t, sitetest.Block(options...)+"reverse_proxy "+app.Addr())
			want, outcome := row.status, row.outcome
			switch {
			case row.counts && want == 0:
				want = 200
			case want == 0:
				want = 502
			}
			switch {
			case outcome != "":
			case row.counts:
				outcome = "forwarded"
			default:
				outcome = "app_failed"
			}
			sitetest.Eventually(t, "the site takes connections", func() bool { // the row before has just ended another
				conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
				if err == nil {
					conn.Close()
				}
				return err == nil
			})
			r := sitetest.CallbackOf(t, s.URL, sitetest.Order("order", "1"))
			r.Header.Set("Accept-Encoding", "br")
			if got := s.Do(r); got.Status != want || row.counts && got.Body != row.body {
				t.Errorf("status %d, %d bytes, want %d and %d", got.Status, len(got.Body), want, len(row.body))
			}
			line := s.LinesAfter(1)[0]
			if line["outcome"] != outcome || row.says != "" && !strings.Contains(fmt.Sprint(line["error"]), row.says) {
				t.Errorf("logged %v, want outcome %s and an error with %q", line, outcome, row.says)
			}
			switch {
			case row.counts:
				s.ExpectState("order", "accepted")
				return
			case outcome == "app_unknown":
				s.ExpectState("order", "in_flight")
				return
			}
			s.ExpectState("order", "released")
			if line["level"] != "warn" {
				t.Errorf("logged at level %v, want warn", line["level"])
			}
			s.Post(sitetest.Order("order", "1"))
			if attempt := app.Last(t).Header.Get("Iak-Attempt"); attempt != "2" {
				t.Errorf("the repeat reaches the app as attempt %q, want 2", attempt)
			}
		})
	}
}

// Without a condition about the body an answer is passed on as it comes.
func TestAcceptWhenStreams(t *testing.T) {
	for _, option := range []string{"", "accept_when header X-Done"} {
		t.Run(option, func(t *testing.T) {
			goOn := make(chan bool)
			app := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Done", "1")
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = fmt.Fprintln(w, "first")
				_ = http.NewResponseController(w).Flush()
				<-goOn
				_, _ = fmt.Fprintln(w, "second")
			})
			s := sitetest.Start(t, sitetest.Block(option)+"reverse_proxy "+app.Addr())
			answer, err := sitetest.Client.Do(sitetest.CallbackOf(t, s.URL, sitetest.Order("order", "1")))
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			lines := bufio.NewScanner(answer.Body)
			if !lines.Scan() || lines.Text() != "first" {
				t.Errorf("%q, %v, want the first line", lines.Text(), lines.Err())
			}
			close(goOn)
			if !lines.Scan() || lines.Text() != "second" {
				t.Errorf("%q, %v, want the second line", lines.Text(), lines.Err())
			}
		})
	}
}

// An app that never ends its 2xx is in doubt, and its sender gets an answer or a
// broken connection, not silence.
func TestAcceptWhenNeverEnds(t *testing.T) {
	shortLease(t)
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, "ok")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	s := sitetest.StartOperated(t, sitetest.Block("upstream_timeout 500ms", "accept_when body ok")+"reverse_proxy "+app.Addr())
	start := time.Now()
	answer, err := sitetest.Client.Do(sitetest.CallbackOf(t, s.URL, sitetest.Order("order", "1")))
	if err == nil {
		answer.Body.Close()
		if answer.StatusCode < 500 {
			t.Errorf("status %d", answer.StatusCode)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("answered after %s", took)
	}
	s.ComesTo("order", "in_doubt")
}

// A page of HTML that counts as accepted is a warning: it may be a login page.
// With accept_when somebody has said what counts.
func TestAcceptedHTML(t *testing.T) {
	app := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "Text/HTML; charset=utf-8")
		_, _ = fmt.Fprint(w, "<h1>Please log in</h1>")
	})
	for option, level := range map[string]string{"": "warn", "accept_when header Content-Type": "info"} {
		s := sitetest.Start(t, sitetest.Block(option)+"reverse_proxy "+app.Addr())
		s.Post(sitetest.Order("order"+level, "1")).Expect(t, "a page", 200)
		line := s.LinesAfter(1)[0]
		if line["level"] != level || (line["error"] != nil) != (level == "warn") {
			t.Errorf("%q: logged %v, want level %s", option, line, level)
		}
	}
}
