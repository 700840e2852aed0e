package iakcallback

import (
	"bufio"
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
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
	return "iak_callback {\n" + testAccount + "\n}\nreverse_proxy " + a.l.Addr().String()
}

// However a callback was sent, the app receives a plain POST of JSON, with a
// length and without anything that speaks of the old body, of how it was sent,
// or that pretends to come from this module.
func TestForward(t *testing.T) {
	a := startRawApp(t, func(int) string { return rawOK })
	s := startSite(t, a.block())
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
			body := order(refID, "1")
			if test.xml {
				body = orderXML(refID)
			}
			lines := append([]string{"POST /cb/%2Fx%20y//z?a=b&c=%20d&e HTTP/1.1", "Host: 127.0.0.1"}, test.header...)
			if test.chunked {
				lines = append(lines, "Transfer-Encoding: chunked")
				body = fmt.Sprintf("5\r\n%s\r\n%x\r\n%s\r\n0\r\n%s\r\n", body[:5], len(body)-5, body[5:], crlf(test.trailer))
			} else {
				lines = append(lines, "Content-Length: "+strconv.Itoa(len(body)))
			}
			_, answers := s.raw(t, crlf(lines)+"\r\n"+body)
			if got := rawReply(t, answers); got.status != 200 {
				t.Fatalf("status %d", got.status)
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
		`"price":"25000","message":"MESSAGE","balance":"997061249","tr_id":"3482","rc":"00","sign":"%s"}}`, refID, sign(refID))
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
	s := startSite(t, a.block())
	s.reopen(t, "servers {\n"+
		"expected_underscore_headers Iak_Account Iak_Attempt Iak-Deduplicated_ Iak_Conflict Idempotency_Key X_Idempotency_Key X-Idempotency_Key Other_Header\n"+
		"expected_dot_headers Iak.Status Idempotency.Key\n}", a.block())
	body := order("aliases", "1")
	_, answers := s.raw(t, crlf([]string{
		"POST /cb/%2Fx%20y//z?a=b&c=%20d&e HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Content-Length: " + strconv.Itoa(len(body)),
		"Iak_Account: other", "iak_attempt: 9", "IAK_CONFLICT: 2", "Iak-Deduplicated_: x", "Idempotency_Key: forged", "X_Idempotency_Key: forged", "X-Idempotency_Key: forged",
		"Iak.Status: 2", "idempotency.key: forged", "Other_Header: stays",
	})+"\r\n"+body)
	if got := rawReply(t, answers); got.status != 200 {
		t.Fatalf("status %d", got.status)
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
	a := startApp(t, nil)
	s := startSite(t, "iak_callback {\n"+testAccount+"\naccount shop_2-b 0899 other-key\n}\nreverse_proxy "+a.addr())
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
				if got := s.post(order(test.refID, status)); got.status != 200 {
					t.Fatalf("status %d: %s", got.status, got.body)
				}
				if got, want := a.last(t).header.Get("Idempotency-Key"), "test:"+test.want+":"+status; got != want {
					t.Errorf("delivery %d: Idempotency-Key %q, want %q", i+1, got, want)
				}
			}
			var sent struct{ Data map[string]string }
			if err := json.Unmarshal([]byte(a.last(t).body), &sent); err != nil || sent.Data["ref_id"] != test.refID {
				t.Errorf("the app received ref_id %q, want %q", sent.Data["ref_id"], test.refID)
			}
		})
	}
	t.Run("another account", func(t *testing.T) {
		if got := s.post(order("order001", "1", "sign", quote(signedBy("0899", "other-key", "order001")))); got.status != 200 {
			t.Fatalf("status %d", got.status)
		}
		h := a.last(t).header
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
	a := startApp(t, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.WriteHeader(status)
	})
	s := startSite(t, "iak_callback {\n"+testAccount+"\non_conflict forward\n}\nreverse_proxy "+a.addr())
	seen := 0
	for _, step := range []struct {
		name   string
		app    int
		body   string
		key    string
		ownSet map[string]string // beside Idempotency-Key and Iak-Account
	}{
		{"process", 200, order("h", "0"), "test:h:0", map[string]string{"Iak-Attempt": "1"}},
		{"success, refused", 500, order("h", "1"), "test:h:1", map[string]string{"Iak-Attempt": "1"}},
		{"success again, refused", 404, order("h", "1"), "test:h:1", map[string]string{"Iak-Attempt": "2"}},
		{"success, accepted", 200, order("h", "1"), "test:h:1", map[string]string{"Iak-Attempt": "3"}},
		{"late goods, refused", 503, order("h", "1", "sn", `"S"`), "test:h:1:goods", map[string]string{"Iak-Attempt": "1"}},
		{"late goods, accepted", 200, order("h", "1", "sn", `"S"`), "test:h:1:goods", map[string]string{"Iak-Attempt": "2"}},
		{"failed after success", 200, order("h", "2"), "test:h:2", map[string]string{"Iak-Attempt": "1", "Iak-Conflict": "1"}},
		{"success after failed", 200, order("h", "1"), "test:h:1", map[string]string{"Iak-Attempt": "1", "Iak-Conflict": "2"}},
		{"other goods", 200, order("h", "1", "price", `"1"`), "test:h:1", map[string]string{"Iak-Attempt": "1", "Iak-Conflict": "1"}},
		{"goods at once", 200, order("i", "1", "sn", `"S"`), "test:i:1", map[string]string{"Iak-Attempt": "1"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			answer(step.app)
			if got := s.post(step.body); got.status != step.app {
				t.Fatalf("status %d, want the app's %d", got.status, step.app)
			}
			seen++
			if n := len(a.received()); n != seen {
				t.Fatalf("the app received %d requests, want %d", n, seen)
			}
			want := maps.Clone(step.ownSet)
			want["Idempotency-Key"], want["Iak-Account"] = step.key, "test"
			if got := ownHeaders(a.last(t).header); !maps.Equal(got, want) {
				t.Errorf("the app received %v, want %v", got, want)
			}
		})
	}
}

// ownHeaders are the headers that only this module sets.
func ownHeaders(h http.Header) map[string]string {
	own := make(map[string]string)
	for name, values := range h {
		if reserved(plainName(name)) {
			own[name] = strings.Join(values, "|")
		}
	}
	return own
}

// Without a store, on_store_error forward says so to the app, each time.
func TestForwardWithoutStore(t *testing.T) {
	a := startApp(t, nil)
	s := startSite(t, "iak_callback {\n"+testAccount+"\nredis redis://127.0.0.1:"+freePort(t)+"\non_store_error forward\n}\nreverse_proxy "+a.addr())
	for i := range 2 {
		if got := s.post(order("nostore", "1")); got.status != 200 {
			t.Fatalf("status %d", got.status)
		}
		want := map[string]string{"Idempotency-Key": "test:nostore:1", "Iak-Account": "test", "Iak-Attempt": "1", "Iak-Deduplicated": "false"}
		if got := ownHeaders(a.last(t).header); !maps.Equal(got, want) || len(a.received()) != i+1 {
			t.Errorf("the app received %v in request %d, want %v", got, len(a.received()), want)
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
			s := startSite(t, a.block())
			for i := range test.before {
				if got := s.post(order(fmt.Sprint("before", i), "1")); got.status != 200 {
					t.Fatalf("status %d", got.status)
				}
			}
			body := order("once", "1")
			_, answers := s.raw(t, head("Content-Type: application/json", "Idempotency-Key: client", "X-Idempotency-Key: client",
				"Content-Length: "+strconv.Itoa(len(body)))+body)
			if got := rawReply(t, answers); got.status != 502 {
				t.Errorf("status %d, want 502", got.status)
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

// A request that rewrite has changed is the same request, so that what is bound
// to it sees the change, and nothing of the old body is left in it.
func TestRewrite(t *testing.T) {
	const body = `{"data":{}}`
	r := httptest.NewRequest("POST", "/callback?a=b", strings.NewReader("old"))
	same := r
	r.Header = http.Header{
		"Content-Type": {"text/xml; charset=x", "text/plain"}, "Content-Length": {"3"}, "Content-Encoding": {"identity"}, "Transfer-Encoding": {"chunked"},
		"Trailer": {"X-Check"}, "Expect": {"100-continue"}, "Upgrade": {"websocket"}, "Connection": {"Idempotency-Key, Upgrade"}, "Content-Md5": {"x"}, "Digest": {"x"},
		"Content-Digest": {"x"}, "Repr-Digest": {"x"}, "Idempotency-Key": {"forged"}, "X-Idempotency-Key": {"forged"}, "X_idempotency_key": {"forged"},
		"idempotency-key": {"forged"}, "Idempotency.Key": {"forged"}, "Iak-Account": {"forged", "twice"}, "iak_attempt": {"forged"}, "Iak-Conflict": {"forged"},
		"Iak-Deduplicated": {"false"}, "Iak-": {"forged"},
		"User-Agent": {"IAK"}, "X-Forwarded-For": {"52.220.38.194"}, "Authorization": {"Basic eA=="}, "Accept": {"*/*"}, "Iakonic": {"stays"}, "X-Iak-Request": {"stays"},
	}
	r.Trailer = http.Header{"X-Check": {"1"}}
	r.TransferEncoding = []string{"chunked"}
	r.ContentLength = -1
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("old")), nil }
	r.Form, r.PostForm = map[string][]string{"a": {"b"}}, map[string][]string{"c": {"d"}}

	rewrite(r, []byte(body), []header{{"Idempotency-Key", "test:x:1"}, {"Iak-Account", "test"}, {"Iak-Attempt", "1"}})

	wantHeader := http.Header{
		"Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(body))}, "Idempotency-Key": {"test:x:1"}, "Iak-Account": {"test"}, "Iak-Attempt": {"1"},
		"User-Agent": {"IAK"}, "X-Forwarded-For": {"52.220.38.194"}, "Authorization": {"Basic eA=="}, "Accept": {"*/*"}, "Iakonic": {"stays"}, "X-Iak-Request": {"stays"},
	}
	if !maps.EqualFunc(r.Header, wantHeader, slices.Equal) {
		t.Errorf("header\n%v\nwant\n%v", r.Header, wantHeader)
	}
	if r != same || r.Method != "POST" || r.URL.String() != "/callback?a=b" {
		t.Errorf("the request is %s %s", r.Method, r.URL)
	}
	if r.GetBody != nil {
		t.Error("GetBody is set: Go's transport would send the request again by itself")
	}
	if r.ContentLength != int64(len(body)) || r.TransferEncoding != nil || r.Trailer != nil {
		t.Errorf("length %d, transfer encoding %v, trailer %v", r.ContentLength, r.TransferEncoding, r.Trailer)
	}
	if r.Form != nil || r.PostForm != nil || r.MultipartForm != nil {
		t.Error("a form that was parsed from the old body is left")
	}
	if got, err := io.ReadAll(r.Body); err != nil || string(got) != body {
		t.Errorf("body %q, %v", got, err)
	}
}

// normalized leads a body through every step before the claim.
func normalized(t *testing.T, body string, lenient bool) *callback {
	t.Helper()
	c, err := decode([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.checkRefID(); err != nil {
		t.Fatal(err)
	}
	if err := c.checkFields(lenient); err != nil {
		t.Fatal(err)
	}
	return c
}

// The exact bytes of both bodies, for odd values.
func TestBodies(t *testing.T) {
	const id = "o1"
	signed := quote(sign(id))
	// iak and flat are the bodies of a complete callback with other members: old
	// and new text in pairs.
	iak := func(changes ...string) string {
		return strings.NewReplacer(changes...).Replace(`{"data":{"ref_id":"o1","status":"1","code":"xld25000","hp":"0817777215","product_code":"xld25000","customer_id":"0817777215",` +
			`"price":"25000","message":"MESSAGE","balance":"997061249","tr_id":"3482","rc":"00","sign":` + signed + `}}`)
	}
	flat := func(changes ...string) string {
		return strings.NewReplacer(changes...).Replace(`{"ref_id":"o1","tr_id":"3482","status":"success","rc":"00","message":"MESSAGE","product_code":"xld25000",` +
			`"customer_id":"0817777215","price":25000,"balance":997061249,"sn":null,"pin":null,"activation_code":null}`)
	}
	const (
		signKey = `"sign":`
		flatEnd = `"activation_code":null}`
	)
	for _, test := range []struct {
		name    string
		body    string
		lenient bool
		iak     string
		flat    string
	}{
		{name: "complete", body: order(id, "1"), iak: iak(), flat: flat()},
		{name: "process", body: order(id, "0"), iak: iak(`"status":"1"`, `"status":"0"`), flat: flat("success", "process")},
		{name: "failed", body: order(id, "2"), iak: iak(`"status":"1"`, `"status":"2"`), flat: flat("success", "failed")},
		{name: "status as a number", body: order(id, "", "status", "10.0e-1"), iak: iak(), flat: flat()},
		{name: "version 2", body: order(id, "1", "code", "", "hp", "", "product_code", `"p"`, "customer_id", `"c|1"`),
			iak: iak(`"xld25000"`, `"p"`, `"0817777215"`, `"c|1"`), flat: flat(`"xld25000"`, `"p"`, `"0817777215"`, `"c|1"`)},
		{name: "an escaped slash", body: order(id, "1", "message", `"a\/b"`), iak: iak("MESSAGE", "a/b"), flat: flat("MESSAGE", "a/b")},
		{name: "escaped letters", body: order(id, "1", "message", `"\u00e9\u0041\ud83d\ude00"`), iak: iak("MESSAGE", "éA😀"), flat: flat("MESSAGE", "éA😀")},
		{name: "quotes and backslashes", body: order(id, "1", "message", `"\"a\\b\u0022\u005c"`),
			iak: iak("MESSAGE", `\"a\\b\"\\`), flat: flat("MESSAGE", `\"a\\b\"\\`)},
		{name: "no HTML escaping", body: order(id, "1", "message", `"\u003cb\u003e&'"`), iak: iak("MESSAGE", "<b>&'"), flat: flat("MESSAGE", "<b>&'")},
		{name: "line separators", body: order(id, "1", "message", `"\u2028\u2029"`), iak: iak("MESSAGE", "\u2028\u2029"), flat: flat("MESSAGE", "\u2028\u2029")},
		{name: "control characters", body: order(id, "1", "message", `"\n\t\u0000\u001f\u007f\u0085"`),
			iak: iak("MESSAGE", `\n\t\u0000\u001f`+"\x7f\u0085"), flat: flat("MESSAGE", `\n\t\u0000\u001f`+"\x7f\u0085")},
		{name: "white space around", body: order(id, "1", "message", `" a "`), iak: iak("MESSAGE", " a "), flat: flat("MESSAGE", " a ")},
		{name: "placeholders", body: order(id, "1", "message", `"{env.HOME}{http.request.host}"`),
			iak: iak("MESSAGE", "{env.HOME}{http.request.host}"), flat: flat("MESSAGE", "{env.HOME}{http.request.host}")},
		{name: "goods", body: order(id, "1", "sn", `"S"`, "pin", `"007"`, "activation_code", `"LPA:1$x$y"`),
			iak:  iak(`"balance"`, `"sn":"S","pin":"007","activation_code":"LPA:1$x$y","balance"`),
			flat: flat(`"sn":null,"pin":null,"activation_code":null`, `"sn":"S","pin":"007","activation_code":"LPA:1$x$y"`)},
		{name: "goods as numbers", body: order(id, "1", "sn", "0.10", "pin", "12345678901234567890"),
			iak: iak(`"balance"`, `"sn":"0.10","pin":"12345678901234567890","balance"`), flat: flat(`"sn":null,"pin":null`, `"sn":"0.10","pin":"12345678901234567890"`)},
		{name: "empty goods", body: order(id, "1", "sn", `""`, "pin", `""`), iak: iak(`"balance"`, `"sn":"","pin":"","balance"`), flat: flat()},
		{name: "null goods", body: order(id, "1", "sn", "null", "pin", "null", "activation_code", "null"), iak: iak(), flat: flat()},
		{name: "an empty message", body: order(id, "1", "message", `""`), iak: iak("MESSAGE", ""), flat: flat("MESSAGE", "")},
		{name: "digits", body: order(id, "1", "price", "16500.00", "balance", `"-1.50E+3"`),
			iak: iak(`"25000"`, `"16500.00"`, "997061249", "-1.50E+3"), flat: flat(":25000", ":16500.00", "997061249", "-1.50E+3")},
		{name: "numbers everywhere", body: order(id, "1", "tr_id", "3482", "rc", "0", "code", "1e2", "hp", "817", "message", "-0"),
			iak:  iak(`"rc":"00"`, `"rc":"0"`, "xld25000", "1e2", "0817777215", "817", "MESSAGE", "-0"),
			flat: flat(`"rc":"00"`, `"rc":"0"`, "xld25000", "1e2", "0817777215", "817", "MESSAGE", "-0")},
		{name: "an upper-case sign", body: order(id, "1", "sign", strings.ToUpper(signed)), iak: iak(), flat: flat()},
		{name: "unknown fields", body: order(id, "1", "z", `"Z"`, "a", "1.50", "t", "true", "f", "false", "n", "null", "l", "[1]", "o", `{"a":1}`, "e", `""`, "A", `"x"`, `q"`, `"\/"`),
			iak:  iak(signKey, `"z":"Z","a":"1.50","t":"true","f":"false","e":"","A":"x","q\"":"/",`+signKey),
			flat: flat(flatEnd, `"activation_code":null,"extra":{"z":"Z","a":"1.50","t":"true","f":"false","e":"","A":"x","q\"":"/"}}`)},
		{name: "an unknown field called extra", body: order(id, "1", "extra", `"x"`), iak: iak(signKey, `"extra":"x",`+signKey), flat: flat(flatEnd, `"activation_code":null,"extra":{"extra":"x"}}`)},
		{name: "unknown fields in the order they came", body: strings.Replace(order(id, "1", "y", "1", "x", "2"), `{"ref_id"`, `{"zz":"3","ref_id"`, 1),
			iak: iak(signKey, `"zz":"3","y":"1","x":"2",`+signKey), flat: flat(flatEnd, `"activation_code":null,"extra":{"zz":"3","y":"1","x":"2"}}`)},
		{name: "only dropped unknown fields", body: order(id, "1", "n", "null", "l", "[]"), iak: iak(), flat: flat()},
		{name: "lenient: nothing else", lenient: true,
			body: order(id, "1", "code", "", "hp", "", "price", "", "message", "", "balance", "", "tr_id", "", "rc", ""),
			iak:  `{"data":{"ref_id":"o1","status":"1","sign":` + signed + `}}`,
			flat: `{"ref_id":"o1","tr_id":null,"status":"success","rc":null,"message":null,"product_code":null,"customer_id":null,"price":null,"balance":null,"sn":null,"pin":null,"activation_code":null}`},
		{name: "lenient: no numbers", lenient: true, body: order(id, "1", "price", `"007"`, "balance", `"Rp 5"`),
			iak: iak(`"25000"`, `"007"`, "997061249", "Rp 5"), flat: flat(":25000", ":null", "997061249", "null")},
		{name: "lenient: other numbers", lenient: true, body: order(id, "1", "price", `"1e5"`, "balance", `""`),
			iak: iak(`"25000"`, `"1e5"`, "997061249", ""), flat: flat(":25000", ":1e5", "997061249", "null")},
		{name: "XML", body: orderXML(id, "message", " a &lt;&amp;\r\nb<![CDATA[<c> ]]>", "sn", "", "z", " Z ", "n", "<a/>", "e", ""),
			iak:  iak("MESSAGE", `a <&\nb<c>`, `"balance"`, `"sn":"","balance"`, signKey, `"z":"Z","e":"",`+signKey),
			flat: flat("MESSAGE", `a <&\nb<c>`, flatEnd, `"activation_code":null,"extra":{"z":"Z","e":""}}`)},
		{name: "a number as ref_id", body: order("", "1", "ref_id", "1.50", "sign", quote(sign("1.50"))),
			iak: iak(`"o1"`, `"1.50"`, signed, quote(sign("1.50"))), flat: flat(`"o1"`, `"1.50"`)},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := normalized(t, test.body, test.lenient)
			if got := string(c.appendIAK(nil)); got != test.iak {
				t.Errorf("body iak\n%s\nwant\n%s", got, test.iak)
			}
			if got := string(c.appendFlat(nil)); got != test.flat {
				t.Errorf("body flat\n%s\nwant\n%s", got, test.flat)
			}
			if problem := checkOutput(c, test.lenient); problem != "" {
				t.Error(problem)
			}
		})
	}
}

// The JSON and the XML of the same fields are the same callback: the same bytes
// for the app and the same fingerprint.
func TestFormatsAgree(t *testing.T) {
	random := rand.New(rand.NewSource(2))
	alphabet := []rune("abcXYZ019 -_/:|.,\"\\<>&'{}[]%$éß\u00a0\u2028測😀\ufffd")
	word := func() string {
		runes := make([]rune, random.Intn(12))
		for i := range runes {
			runes[i] = alphabet[random.Intn(len(alphabet))]
		}
		return strings.Trim(string(runes), " ") // XML knows no outer white space
	}
	number := func() string {
		return fmt.Sprint(random.Intn(1e9)) + []string{"", ".50", "e3", ".00"}[random.Intn(4)]
	}
	for range 2000 {
		refID := "r" + word()
		fields := [][2]string{
			{"ref_id", refID}, {"status", fmt.Sprint(random.Intn(3))}, {"price", number()}, {"message", word()}, {"balance", number()}, {"tr_id", word()}, {"rc", word()},
			{"sign", sign(refID)},
		}
		if random.Intn(2) == 0 {
			fields = append(fields, [2]string{"code", word()}, [2]string{"customer_id", word()})
		} else {
			fields = append(fields, [2]string{"product_code", word()}, [2]string{"hp", word()})
		}
		for _, name := range []string{"sn", "pin", "activation_code", "x", "y-1"} {
			if random.Intn(2) == 0 {
				fields = append(fields, [2]string{name, word()})
			}
		}
		random.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
		var asJSON, asXML bytes.Buffer
		for i, f := range fields {
			if i > 0 {
				asJSON.WriteByte(',')
			}
			value := quote(f[1])
			if (f[0] == "price" || f[0] == "balance" || f[0] == "status") && random.Intn(2) == 0 {
				value = f[1] // as a number
			}
			asJSON.WriteString(quote(f[0]) + ":" + value)
			fmt.Fprintf(&asXML, "<%s>", f[0])
			if err := xml.EscapeText(&asXML, []byte(f[1])); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&asXML, "</%s>", f[0])
		}
		j := normalized(t, `{"data":{`+asJSON.String()+`}}`, false)
		x := normalized(t, `<?xml version="1.0"?><mp>`+asXML.String()+`</mp>`, false)
		if got, want := string(x.appendIAK(nil)), string(j.appendIAK(nil)); got != want {
			t.Fatalf("body iak from XML\n%s\nfrom JSON\n%s", got, want)
		}
		if got, want := string(x.appendFlat(nil)), string(j.appendFlat(nil)); got != want {
			t.Fatalf("body flat from XML\n%s\nfrom JSON\n%s", got, want)
		}
		if x.fingerprint("test") != j.fingerprint("test") {
			t.Fatalf("the fingerprints differ for %s", j.appendIAK(nil))
		}
		if problem := checkOutput(j, false); problem != "" {
			t.Fatal(problem)
		}
	}
}

// The fingerprint covers what a customer receives or pays, by value and by
// place, and nothing else.
func TestFingerprint(t *testing.T) {
	base := []string{"sn", `"S"`, "pin", `"P"`, "activation_code", `"A"`}
	of := func(account, refID string, changes ...string) fingerprint {
		return normalized(t, order(refID, "1", append(slices.Clone(base), changes...)...), true).fingerprint(account)
	}
	first := of("test", "f")
	for _, test := range []struct {
		name    string
		changes []string
		same    bool
	}{
		{"nothing", nil, true},
		{"balance", []string{"balance", `"1"`}, true},
		{"message", []string{"message", `"other"`}, true},
		{"an unknown field", []string{"x", `"1"`}, true},
		{"the names of version 2", []string{"code", "", "hp", "", "product_code", `"xld25000"`, "customer_id", `"0817777215"`}, true},
		{"a number for a string", []string{"price", "25000"}, true},
		{"tr_id", []string{"tr_id", `"3483"`}, false},
		{"product", []string{"code", `"xld25001"`}, false},
		{"customer", []string{"hp", `"0817777216"`}, false},
		{"price", []string{"price", `"25001"`}, false},
		{"price in other digits", []string{"price", `"25000.0"`}, false},
		{"rc", []string{"rc", `"0"`}, false},
		{"sn", []string{"sn", `"s"`}, false},
		{"no sn", []string{"sn", ""}, false},
		{"pin", []string{"pin", `"p"`}, false},
		{"activation_code", []string{"activation_code", `"a"`}, false},
		{"goods that changed places", []string{"sn", `"P"`, "pin", `"S"`}, false},
		{"goods cut elsewhere", []string{"sn", `"SP"`, "pin", `""`}, false},
	} {
		if got := of("test", "f", test.changes...); (got == first) != test.same {
			t.Errorf("%s: same is %t, want %t", test.name, got == first, test.same)
		}
	}
	if of("other", "f") == first || of("test", "g") == first {
		t.Error("the fingerprint is the same for another account or ref_id")
	}
	for _, empty := range []string{"", "null", `""`} {
		if got := of("test", "f", "sn", empty, "pin", empty, "activation_code", empty); got.goods != [8]byte{} {
			t.Errorf("goods %s count as goods", empty)
		}
		if of("test", "f", "tr_id", empty) != of("test", "f", "tr_id", "") {
			t.Errorf("tr_id %s is not like absent", empty)
		}
	}
}

// What stands behind the directive sees the normalized request, wherever it
// looks: placeholders, request_header, templates, respond.
func TestForwardToHandlers(t *testing.T) {
	a := startApp(t, nil)
	for _, test := range []struct {
		name, behind string
		check        func(t *testing.T, got reply, body string)
	}{
		{"request_header", "request_header X-Body {http.request.body}\nrequest_header X-Length {http.request.header.Content-Length}\nreverse_proxy " + a.addr(),
			func(t *testing.T, _ reply, body string) {
				got := a.last(t)
				if h := got.header; got.body != body || h.Get("X-Body") != body || h.Get("X-Length") != strconv.Itoa(len(body)) {
					t.Errorf("the app received %q with X-Body %q and X-Length %q", got.body, h.Get("X-Body"), h.Get("X-Length"))
				}
			}},
		{"respond", `respond "{http.request.body}|{http.request.header.Content-Type}|{http.request.header.Iak-Account}|{http.request.method}"`,
			func(t *testing.T, got reply, body string) {
				if want := body + "|application/json|test|POST"; got.body != want {
					t.Errorf("answer %q, want %q", got.body, want)
				}
			}},
		{"templates", "templates\nheader Content-Type text/html\nrespond `{{.Req.Header.Get \"Idempotency-Key\"}}|{{placeholder \"http.request.body\"}}|{{.Req.ContentLength}}`",
			func(t *testing.T, got reply, body string) {
				if want := "test:behind:1|" + body + "|" + strconv.Itoa(len(body)); got.body != want {
					t.Errorf("answer %q, want %q", got.body, want)
				}
			}},
		{"a matcher", "@ours `{http.request.body}.contains('\"code\":\"xld25000\"') && {http.request.header.Iak-Attempt} == '1'`\nrespond @ours ours",
			func(t *testing.T, got reply, _ string) {
				if got.body != "ours" {
					t.Errorf("answer %q", got.body)
				}
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startSite(t, "iak_callback {\n"+testAccount+"\n}\n"+test.behind)
			r, err := http.NewRequest("POST", s.url, struct{ io.Reader }{strings.NewReader(orderXML("behind"))}) // chunked
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/xml")
			got := s.do(r)
			if got.status != 200 {
				t.Fatalf("status %d: %s", got.status, got.body)
			}
			test.check(t, got, string(normalized(t, orderXML("behind"), false).appendIAK(nil)))
		})
	}
}
