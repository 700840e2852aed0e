package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// rawApp is an app on a bare TCP port, which sees the very bytes of each
// request.
type rawApp struct {
	l net.Listener

	mu       sync.Mutex
	requests []rawRequest
}

// rawRequest is one request as it was written.
type rawRequest struct {
	connection int // the number of its connection, from 1
	line       string
	header     []string // the lines of the header
	body       string
}

// values are the values of one header, whatever the case of its name.
func (r rawRequest) values(name string) (values []string) {
	for _, line := range r.header {
		key, value, _ := strings.Cut(line, ":")
		if strings.EqualFold(key, name) {
			values = append(values, strings.TrimSpace(value))
		}
	}
	return values
}

const rawOK = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

// startRawApp starts an app that answers the n-th request, from 1, by answer;
// an empty answer breaks the connection off.
func startRawApp(t *testing.T, answer func(n int) string) *rawApp {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &rawApp{l: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 1; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go a.serve(conn, n, answer)
		}
	}()
	return a
}

func (a *rawApp) serve(conn net.Conn, number int, answer func(n int) string) {
	defer conn.Close()
	r := textproto.NewReader(bufio.NewReader(conn))
	for {
		line, err := r.ReadLine()
		if err != nil {
			return
		}
		request := rawRequest{connection: number, line: line}
		for {
			if line, err = r.ReadLine(); err != nil {
				return
			}
			if line == "" {
				break
			}
			request.header = append(request.header, line)
		}
		if lengths := request.values("Content-Length"); len(lengths) == 1 {
			n, _ := strconv.Atoi(lengths[0])
			body := make([]byte, n)
			if _, err := io.ReadFull(r.R, body); err != nil {
				return
			}
			request.body = string(body)
		}
		a.mu.Lock()
		a.requests = append(a.requests, request)
		n := len(a.requests)
		a.mu.Unlock()
		reply := answer(n)
		if reply == "" {
			return
		}
		if _, err := io.WriteString(conn, reply); err != nil {
			return
		}
	}
}

func (a *rawApp) received() []rawRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.requests)
}

func (a *rawApp) block() string {
	return "iak_callback {\n" + sitetest.Account + "\n}\nreverse_proxy " + a.l.Addr().String()
}

// However a callback was sent, the app receives a plain POST of JSON, with a
// length and without anything that speaks of the old body, of how it was sent,
// or that pretends to come from this module.
func TestForward(t *testing.T) {
	a := startRawApp(t, func(int) string { return rawOK })
	s := sitetest.Start(t, a.block())
	n := 0
	for _, test := range []struct {
		name    string
		header  []string
		xml     bool
		chunked bool
		trailer []string
	}{
		{name: "plain", header: []string{"Content-Type: application/json"}},
		{name: "parameters", header: []string{"Content-Type: application/json; charset=utf-8"}},
		{name: "no type", header: nil},
		{name: "another type", header: []string{"Content-Type: text/plain"}},
		{name: "a form", header: []string{"Content-Type: application/x-www-form-urlencoded"}},
		{name: "XML", header: []string{"Content-Type: text/xml; charset=iso-8859-1"}, xml: true},
		{name: "chunked", header: []string{"Content-Type: application/json"}, chunked: true},
		{name: "chunked XML", header: []string{"Content-Type: application/xml"}, xml: true, chunked: true},
		{
			name: "trailers", chunked: true,
			header:  []string{"Content-Type: application/json", "Trailer: X-Check, Iak-Attempt, Idempotency-Key", "TE: trailers"},
			trailer: []string{"X-Check: 1", "Iak-Attempt: 7", "Idempotency-Key: forged"},
		},
		{
			name: "trailers that were not announced", chunked: true,
			header:  []string{"Content-Type: application/json"},
			trailer: []string{"X-Check: 1", "Iak-Conflict: 2"},
		},
		{name: "digests", header: []string{
			"Content-Type: application/json", "Content-MD5: Q2hlY2s=", "Digest: sha-256=x", "digest: md5=y", "Content-Digest: sha-256=:x:",
			"Repr-Digest: sha-512=:x:", "Content-Range: bytes 0-1/2", `Signature-Input: sig=("content-digest")`, "Signature: sig=:x:",
		}},
		{name: "identity", header: []string{"Content-Type: application/json", "Content-Encoding: identity"}},
		{name: "forged", header: []string{
			"Content-Type: application/json", "Iak-Account: other", "Iak-Attempt: 9", "iak-conflict: 1", "IAK-DEDUPLICATED: false", "Iak-Anything: x",
			"Idempotency-Key: forged", "idempotency-key: forged-too", "X-Idempotency-Key: forged", "x-idempotency-key: forged",
		}},
		{name: "forged by other spellings", header: []string{
			"Content-Type: application/json", "Iak_Account: other", "iak_attempt: 9", "Iak.Conflict: 1", "Idempotency_Key: forged", "X_Idempotency_Key: forged", "X-Idempotency.Key: forged",
		}},
		{name: "upgrade", header: []string{
			"Content-Type: application/json", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
		}},
		{name: "upgrade to h2c", header: []string{"Content-Type: application/json", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"}},
		{name: "connection options that name our headers", header: []string{
			"Content-Type: application/json", "Connection: Idempotency-Key, Iak-Account", "Connection: iak-attempt, content-type, content-length",
		}},
		{name: "connection options of HTTP/1.0 proxies", header: []string{
			"Content-Type: application/json", "Connection: keep-alive", "Keep-Alive: timeout=5", "Proxy-Connection: Idempotency-Key",
		}},
		{name: "a length in another notation", header: []string{"Content-Type: application/json", "X-Content-Length: 3", "Content-Language: id"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n++
			refID := fmt.Sprint("forward", n)
			body := sitetest.Order(refID, "1")
			if test.xml {
				body = sitetest.OrderXML(refID)
			}
			lines := append([]string{"POST /cb/%2Fx%20y//z?a=b&c=%20d&e HTTP/1.1", "Host: 127.0.0.1"}, test.header...)
			if test.chunked {
				lines = append(lines, "Transfer-Encoding: chunked")
				body = fmt.Sprintf("5\r\n%s\r\n%x\r\n%s\r\n0\r\n%s\r\n", body[:5], len(body)-5, body[5:], crlf(test.trailer))
			} else {
				lines = append(lines, "Content-Length: "+strconv.Itoa(len(body)))
			}
			_, answers := s.Raw(t, crlf(lines)+"\r\n"+body)
			if got := sitetest.RawReply(t, answers); got.Status != 200 {
				t.Fatalf("status %d", got.Status)
			}
			all := a.received()
			if len(all) != n {
				t.Fatalf("the app received %d requests, want %d", len(all), n)
			}
			checkForwarded(t, all[n-1], refID)
		})
	}
}

// checkForwarded checks a complete success that was delivered once.
func checkForwarded(t *testing.T, got rawRequest, refID string) {
	t.Helper()
	if want := "POST /cb/%2Fx%20y//z?a=b&c=%20d&e HTTP/1.1"; got.line != want {
		t.Errorf("the app received %q, want %q", got.line, want)
	}
	want := fmt.Sprintf(`{"data":{"ref_id":"%s","status":"1","code":"xld25000","hp":"0817777215","product_code":"xld25000","customer_id":"0817777215",`+
		`"price":"25000","message":"MESSAGE","balance":"997061249","tr_id":"3482","rc":"00","sign":"%s"}}`, refID, sitetest.Sign(refID))
	if got.body != want {
		t.Errorf("the app received\n%s\nwant\n%s", got.body, want)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Content-Length": strconv.Itoa(len(want)),
		"Idempotency-Key": "test:" + refID + ":1", "Iak-Account": "test", "Iak-Attempt": "1",
	} {
		if values := got.values(name); !slices.Equal(values, []string{want}) {
			t.Errorf("%s %q, want %q", name, values, want)
		}
	}
	for _, line := range got.header {
		name, _, _ := strings.Cut(strings.ToLower(line), ":")
		switch plain := strings.NewReplacer("_", "-", ".", "-").Replace(name); plain {
		case "transfer-encoding", "trailer", "expect", "upgrade", "connection", "content-encoding", "content-md5", "digest", "content-digest",
			"repr-digest", "content-range", "signature", "signature-input", "x-idempotency-key":
			t.Errorf("the app received %q", line)
		case "idempotency-key", "iak-account", "iak-attempt":
			if name != plain {
				t.Errorf("the app received %q", line)
			}
		default:
			if strings.HasPrefix(plain, "iak-") {
				t.Errorf("the app received %q", line)
			}
		}
	}
}

func crlf(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(line + "\r\n")
	}
	return b.String()
}

// Names with underscores or dots, which FastCGI and WSGI cannot tell from
// hyphens, are removed even where Caddy was told to let them pass.
func TestForwardAliases(t *testing.T) {
	a := startRawApp(t, func(int) string { return rawOK })
	s := sitetest.Start(t, a.block())
	s.Reopen(t, "servers {\n"+
		"expected_underscore_headers Iak_Account Iak_Attempt Iak-Deduplicated_ Iak_Conflict Idempotency_Key X_Idempotency_Key X-Idempotency_Key Other_Header\n"+
		"expected_dot_headers Iak.Status Idempotency.Key\n}", a.block())
	body := sitetest.Order("aliases", "1")
	_, answers := s.Raw(t, crlf([]string{
		"POST /cb/%2Fx%20y//z?a=b&c=%20d&e HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Content-Length: " + strconv.Itoa(len(body)),
		"Iak_Account: other", "iak_attempt: 9", "IAK_CONFLICT: 2", "Iak-Deduplicated_: x", "Idempotency_Key: forged", "X_Idempotency_Key: forged", "X-Idempotency_Key: forged",
		"Iak.Status: 2", "idempotency.key: forged", "Other_Header: stays",
	})+"\r\n"+body)
	if got := sitetest.RawReply(t, answers); got.Status != 200 {
		t.Fatalf("status %d", got.Status)
	}
	got := a.received()[0]
	checkForwarded(t, got, "aliases")
	if values := got.values("Other_Header"); !slices.Equal(values, []string{"stays"}) {
		t.Errorf("Other_Header %q: the test shows nothing when Caddy drops such names by itself", values)
	}
}

// The Idempotency-Key names account, order and outcome; the ref_id is
// percent-encoded, so that a key is a valid header and belongs to one order
// only.
func TestForwardIdempotencyKey(t *testing.T) {
	a := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\naccount shop_2-b 0899 other-key\n}\nreverse_proxy "+a.Addr())
	for _, test := range []struct{ refID, want string }{
		{"order001", "order001"},
		{"AZaz09-._~", "AZaz09-._~"},
		{"a b", "a%20b"},
		{"a+b", "a%2Bb"},
		{"100%", "100%25"},
		{"%20", "%2520"},
		{"a/b", "a%2Fb"},
		{"ü", "%C3%BC"},
		{"😀", "%F0%9F%98%80"},
		{"a:1", "a%3A1"},
		{"a:1:goods", "a%3A1%3Agoods"},
		{`"quoted", \ <&>`, "%22quoted%22%2C%20%5C%20%3C%26%3E"},
		{"!*'();@=$,?#[]|{}^`", "%21%2A%27%28%29%3B%40%3D%24%2C%3F%23%5B%5D%7C%7B%7D%5E%60"},
		{" ", "%20"},
		{"{http.request.host}", "%7Bhttp.request.host%7D"},
		{"\u00a0\u2028", "%C2%A0%E2%80%A8"},
		{strings.Repeat("ü", 127), strings.Repeat("%C3%BC", 127)},
	} {
		t.Run(abbreviate(test.refID), func(t *testing.T) {
			for i, status := range []string{"0", "2"} {
				if got := s.Post(sitetest.Order(test.refID, status)); got.Status != 200 {
					t.Fatalf("status %d: %s", got.Status, got.Body)
				}
				if got, want := a.Last(t).Header.Get("Idempotency-Key"), "test:"+test.want+":"+status; got != want {
					t.Errorf("delivery %d: Idempotency-Key %q, want %q", i+1, got, want)
				}
			}
			var sent struct{ Data map[string]string }
			if err := json.Unmarshal([]byte(a.Last(t).Body), &sent); err != nil || sent.Data["ref_id"] != test.refID {
				t.Errorf("the app received ref_id %q, want %q", sent.Data["ref_id"], test.refID)
			}
		})
	}
	t.Run("another account", func(t *testing.T) {
		if got := s.Post(sitetest.Order("order001", "1", "sign", sitetest.Quote(sitetest.SignedBy("0899", "other-key", "order001")))); got.Status != 200 {
			t.Fatalf("status %d", got.Status)
		}
		h := a.Last(t).Header
		if h.Get("Idempotency-Key") != "shop_2-b:order001:1" || h.Get("Iak-Account") != "shop_2-b" || h.Get("Iak-Attempt") != "1" {
			t.Errorf("the app received %v", h)
		}
	})
}

// Each header of this module is there when its reason is, and only then.
func TestForwardHeaders(t *testing.T) {
	var mu sync.Mutex
	status := 200
	answer := func(code int) {
		mu.Lock()
		defer mu.Unlock()
		status = code
	}
	a := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.WriteHeader(status)
	})
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\non_conflict forward\n}\nreverse_proxy "+a.Addr())
	seen := 0
	for _, step := range []struct {
		name   string
		app    int
		body   string
		key    string
		ownSet map[string]string // beside Idempotency-Key and Iak-Account
	}{
		{"process", 200, sitetest.Order("h", "0"), "test:h:0", map[string]string{"Iak-Attempt": "1"}},
		{"success, refused", 500, sitetest.Order("h", "1"), "test:h:1", map[string]string{"Iak-Attempt": "1"}},
		{"success again, refused", 404, sitetest.Order("h", "1"), "test:h:1", map[string]string{"Iak-Attempt": "2"}},
		{"success, accepted", 200, sitetest.Order("h", "1"), "test:h:1", map[string]string{"Iak-Attempt": "3"}},
		{"late goods, refused", 503, sitetest.Order("h", "1", "sn", `"S"`), "test:h:1:goods", map[string]string{"Iak-Attempt": "1"}},
		{"late goods, accepted", 200, sitetest.Order("h", "1", "sn", `"S"`), "test:h:1:goods", map[string]string{"Iak-Attempt": "2"}},
		// What contradicts has a key of its own, the same for each delivery: under the first
		// outcome's key the app would refuse it as misuse, or answer 200 and do nothing.
		{"failed after success, refused", 409, sitetest.Order("h", "2"), "test:h:2:conflict-a381fa24", map[string]string{"Iak-Attempt": "1", "Iak-Conflict": "1"}},
		{"failed after success", 200, sitetest.Order("h", "2"), "test:h:2:conflict-a381fa24", map[string]string{"Iak-Attempt": "2", "Iak-Conflict": "1"}},
		{"success after failed", 200, sitetest.Order("h", "1"), "test:h:1:conflict-8cf41d91", map[string]string{"Iak-Attempt": "1", "Iak-Conflict": "2"}},
		{"other goods", 200, sitetest.Order("h", "1", "price", `"1"`), "test:h:1:conflict-d00edcb7", map[string]string{"Iak-Attempt": "1", "Iak-Conflict": "1"}},
		{"goods at once", 200, sitetest.Order("i", "1", "sn", `"S"`), "test:i:1", map[string]string{"Iak-Attempt": "1"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			answer(step.app)
			if got := s.Post(step.body); got.Status != step.app {
				t.Fatalf("status %d, want the app's %d", got.Status, step.app)
			}
			seen++
			if n := len(a.Received()); n != seen {
				t.Fatalf("the app received %d requests, want %d", n, seen)
			}
			want := maps.Clone(step.ownSet)
			want["Idempotency-Key"], want["Iak-Account"] = step.key, "test"
			if got := ownHeaders(a.Last(t).Header); !maps.Equal(got, want) {
				t.Errorf("the app received %v, want %v", got, want)
			}
		})
	}
}

// ownHeaders are the headers that only this module sets.
func ownHeaders(h http.Header) map[string]string {
	own := make(map[string]string)
	for name, values := range h {
		plain := http.CanonicalHeaderKey(strings.NewReplacer("_", "-", ".", "-").Replace(name))
		if strings.HasPrefix(plain, "Iak-") || plain == "Idempotency-Key" || plain == "X-Idempotency-Key" {
			own[name] = strings.Join(values, "|")
		}
	}
	return own
}

// Without a store, on_store_error forward says so to the app, each time.
func TestForwardWithoutStore(t *testing.T) {
	a := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\nredis redis://127.0.0.1:"+sitetest.FreePort(t)+"\non_store_error forward\n}\nreverse_proxy "+a.Addr())
	for i := range 2 {
		if got := s.Post(sitetest.Order("nostore", "1")); got.Status != 200 {
			t.Fatalf("status %d", got.Status)
		}
		want := map[string]string{"Idempotency-Key": "test:nostore:1", "Iak-Account": "test", "Iak-Attempt": "1", "Iak-Deduplicated": "false"}
		if got := ownHeaders(a.Last(t).Header); !maps.Equal(got, want) || len(a.Received()) != i+1 {
			t.Errorf("the app received %v in request %d, want %v", got, len(a.Received()), want)
		}
	}
}

// A connection that breaks after the app has received the request breaks the
// delivery: nothing sends it a second time by itself.
func TestForwardOnce(t *testing.T) {
	for _, test := range []struct {
		name   string
		before int // callbacks that were answered on the same connection
	}{{"a new connection", 0}, {"a kept connection", 1}} {
		t.Run(test.name, func(t *testing.T) {
			a := startRawApp(t, func(n int) string {
				if n <= test.before {
					return rawOK
				}
				return ""
			})
			s := sitetest.Start(t, a.block())
			for i := range test.before {
				if got := s.Post(sitetest.Order(fmt.Sprint("before", i), "1")); got.Status != 200 {
					t.Fatalf("status %d", got.Status)
				}
			}
			body := sitetest.Order("once", "1")
			_, answers := s.Raw(t, sitetest.Head("Content-Type: application/json", "Idempotency-Key: client", "X-Idempotency-Key: client",
				"Content-Length: "+strconv.Itoa(len(body)))+body)
			if got := sitetest.RawReply(t, answers); got.Status != 502 {
				t.Errorf("status %d, want 502", got.Status)
			}
			all := a.received()
			if len(all) != test.before+1 {
				t.Fatalf("the app received %d requests, want %d", len(all), test.before+1)
			}
			if all[0].connection != all[len(all)-1].connection {
				t.Error("the connection was not kept: the test shows nothing")
			}
		})
	}
}

// What stands behind the directive sees the normalized request, wherever it
// looks: placeholders, request_header, templates, respond.
func TestForwardToHandlers(t *testing.T) {
	const asIAK = `{"data":{"ref_id":"behind","status":"1","code":"xld25000","hp":"0817777215","product_code":"xld25000","customer_id":"0817777215",` +
		`"price":"25000","message":"MESSAGE","balance":"997061249","tr_id":"3482","rc":"00","sign":"3129fd0487908b30188585f82337f773"}}`
	a := sitetest.StartApp(t, nil)
	for _, test := range []struct {
		name, behind string
		check        func(t *testing.T, got sitetest.Reply, body string)
	}{
		{"request_header", "request_header X-Body {http.request.body}\nrequest_header X-Length {http.request.header.Content-Length}\nreverse_proxy " + a.Addr(),
			func(t *testing.T, _ sitetest.Reply, body string) {
				got := a.Last(t)
				if h := got.Header; got.Body != body || h.Get("X-Body") != body || h.Get("X-Length") != strconv.Itoa(len(body)) {
					t.Errorf("the app received %q with X-Body %q and X-Length %q", got.Body, h.Get("X-Body"), h.Get("X-Length"))
				}
			}},
		{"respond", `respond "{http.request.body}|{http.request.header.Content-Type}|{http.request.header.Iak-Account}|{http.request.method}"`,
			func(t *testing.T, got sitetest.Reply, body string) {
				if want := body + "|application/json|test|POST"; got.Body != want {
					t.Errorf("answer %q, want %q", got.Body, want)
				}
			}},
		{"templates", "templates\nheader Content-Type text/html\nrespond `{{.Req.Header.Get \"Idempotency-Key\"}}|{{placeholder \"http.request.body\"}}|{{.Req.ContentLength}}`",
			func(t *testing.T, got sitetest.Reply, body string) {
				if want := "test:behind:1|" + body + "|" + strconv.Itoa(len(body)); got.Body != want {
					t.Errorf("answer %q, want %q", got.Body, want)
				}
			}},
		{"a matcher", "@ours `{http.request.body}.contains('\"code\":\"xld25000\"') && {http.request.header.Iak-Attempt} == '1'`\nrespond @ours ours",
			func(t *testing.T, got sitetest.Reply, _ string) {
				if got.Body != "ours" {
					t.Errorf("answer %q", got.Body)
				}
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\n}\n"+test.behind)
			r, err := http.NewRequest("POST", s.URL, struct{ io.Reader }{strings.NewReader(sitetest.OrderXML("behind"))}) // chunked
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/xml")
			got := s.Do(r)
			if got.Status != 200 {
				t.Fatalf("status %d: %s", got.Status, got.Body)
			}
			test.check(t, got, asIAK)
		})
	}
}
