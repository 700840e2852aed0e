package iakcallback

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/caddyserver/caddy/v2"
	"net/http/httptest"
	"sync"
)

// reasonRoute makes handle_errors answer with the reason of a rejection.
const reasonRoute = `
handle_errors {
	respond "{http.iak_callback.reason}" {err.status_code}
}`

// rejectSite starts a site that answers a rejection with its reason, in front
// of an app.
func rejectSite(t *testing.T, options ...string) (*site, *app) {
	t.Helper()
	a := startApp(t, nil)
	s := startSite(t, rejectBlock(a, options...))
	return s, a
}

func rejectBlock(a *app, options ...string) string {
	return "iak_callback {\n" + testAccount + "\n" + strings.Join(options, "\n") + "\n}\nreverse_proxy " + a.addr() + reasonRoute
}

// callbackCase is one request and the step that ends its way. A status of 200
// means that the app receives it.
type callbackCase struct {
	name   string
	body   string
	status int
	reason reason
}

// run sends each case with its media type and checks its answer, and that the
// app is asked only for what passes every step.
func runCases(t *testing.T, s *site, a *app, contentType string, cases []callbackCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := len(a.received())
			got := s.send(contentType, c.body)
			got.is(t, c.status, c.reason)
			if forwarded := len(a.received()) - before; forwarded != btoi(c.status == 200) {
				t.Errorf("the app received %d requests", forwarded)
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// is checks status and reason; only 405 has an Allow header.
func (r reply) is(t *testing.T, status int, reason reason) {
	t.Helper()
	if r.status != status || r.body != string(reason) {
		t.Errorf("answer %d %q, want %d %q", r.status, r.body, status, reason)
	}
	allow := ""
	if status == http.StatusMethodNotAllowed {
		allow = "POST"
	}
	if got := r.header.Get("Allow"); got != allow {
		t.Errorf("Allow %q, want %q", got, allow)
	}
}

// fresh returns a function that makes a complete callback with a ref_id of its
// own at each call, so that no case meets the record of another.
func fresh(prefix string) func(changes ...string) string {
	n := 0
	return func(changes ...string) string {
		n++
		return order(fmt.Sprint(prefix, n), "1", changes...)
	}
}

// orderXML is a signed callback as XML without a declaration. Each change is a
// name and the markup inside its element.
func orderXML(refID string, changes ...string) string {
	fields := []string{
		"ref_id", refID, "status", "1", "code", "xld25000", "hp", "0817777215", "price", "25000",
		"message", "MESSAGE", "balance", "997061249", "tr_id", "3482", "rc", "00", "sign", sign(refID),
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
	var b strings.Builder
	b.WriteString("<mp>\n")
	for j := 0; j < len(fields); j += 2 {
		fmt.Fprintf(&b, "<%s>%s</%s>\n", fields[j], fields[j+1], fields[j])
	}
	b.WriteString("</mp>")
	return b.String()
}

// freshXML is fresh for orderXML.
func freshXML(prefix string) func(changes ...string) string {
	n := 0
	return func(changes ...string) string {
		n++
		return orderXML(fmt.Sprint(prefix, n), changes...)
	}
}

// Only POST passes, and 405 says so; the method is looked at before anything
// else.
func TestRejectMethod(t *testing.T) {
	s, a := rejectSite(t)
	for _, method := range []string{"GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post", "Post", "POSTS", "PROPFIND"} {
		t.Run(method, func(t *testing.T) {
			r, err := http.NewRequest(method, s.url, strings.NewReader(order("method", "1")))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "image/png")
			r.Header.Set("Content-Encoding", "gzip")
			s.do(r).is(t, 405, reasonMethod)
		})
	}
	t.Run("HEAD", func(t *testing.T) {
		r, _ := http.NewRequest("HEAD", s.url, nil)
		s.do(r).is(t, 405, "") // an answer to HEAD has no body
	})
	if n := len(a.received()); n != 0 {
		t.Errorf("the app received %d requests", n)
	}
}

// A compressed body is refused whatever the media type, and however the header
// is spelled; identity, which means no coding, is not.
func TestRejectContentEncoding(t *testing.T) {
	s, a := rejectSite(t)
	body := fresh("coding")
	for _, test := range []struct {
		codings []string
		status  int
	}{
		{[]string{"gzip"}, 415},
		{[]string{"GZIP"}, 415},
		{[]string{"deflate"}, 415},
		{[]string{"br"}, 415},
		{[]string{"zstd"}, 415},
		{[]string{"identity, gzip"}, 415},
		{[]string{"gzip, identity"}, 415},
		{[]string{"identity", "gzip"}, 415},
		{[]string{"gzip", "gzip"}, 415},
		{[]string{"", "gzip"}, 415},
		{[]string{"unknown"}, 415},
		{[]string{"identity"}, 200},
		{[]string{"IDENTITY"}, 200},
		{[]string{""}, 200},
		{[]string{"identity", "identity"}, 200},
	} {
		t.Run(strings.Join(test.codings, "|"), func(t *testing.T) {
			before := len(a.received())
			r, _ := http.NewRequest("POST", s.url, strings.NewReader(body()))
			r.Header.Set("Content-Type", "application/json")
			r.Header["Content-Encoding"] = test.codings
			var why reason
			if test.status == 415 {
				why = reasonMediaType
			}
			s.do(r).is(t, test.status, why)
			if test.status != 200 {
				return
			}
			if len(a.received()) != before+1 {
				t.Fatal("the app received nothing")
			}
			if got := a.last(t).header.Values("Content-Encoding"); len(got) > 0 {
				t.Errorf("the app received Content-Encoding %q", got)
			}
		})
	}
}

// A media type that can hold JSON or XML passes, and the body is decoded by
// what it is; a type that says nothing passes with a body that shows what it
// is; every other type is refused.
func TestRejectMediaType(t *testing.T) {
	s, a := rejectSite(t)
	const bom = "\xef\xbb\xbf"
	freshJSON, freshXML := fresh("media"), freshXML("mediaxml")

	declared := []string{
		"application/json", "application/json; charset=utf-8", "application/json;charset=ISO-8859-1", "application/json;",
		"application/json; charset", "Application/JSON", "text/json", "TEXT/JSON; x=y", "application/vnd.iak+json",
		"application/problem+JSON; v=1", "application/xml", "text/xml", "text/xml; charset=us-ascii", "APPLICATION/XML",
		"application/atom+xml", "image/svg+xml;charset=utf-8",
	}
	silent := []string{
		"", "text/plain", "TEXT/PLAIN", "text/plain; charset=utf-8", "application/octet-stream",
		"application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=UTF-8",
	}
	wrong := []string{
		"text/html", "application/javascript", "application/jsonx", "application/json-seq", "application/xhtml", "image/png",
		"multipart/form-data; boundary=x", "application/json+zip", "json", "xml", "application/", "*/*", "nonsense", ";charset=utf-8",
		"application/json, application/xml", "+json", "vendor+json", "vendor+xml",
	}
	for _, contentType := range declared {
		runCases(t, s, a, contentType, []callbackCase{
			{"declared " + contentType + "/JSON", freshJSON(), 200, ""},
			{"declared " + contentType + "/XML", freshXML(), 200, ""},
			{"declared " + contentType + "/JSON behind white space", bom + " \r\n\t" + freshJSON("message", `"ü"`), 200, ""},
			{"declared " + contentType + "/XML behind white space", bom + "\n" + freshXML("message", "ü"), 200, ""},
			{"declared " + contentType + "/text", "status=1", 400, reasonMalformed},
			{"declared " + contentType + "/nothing", "", 400, reasonMalformed},
		})
		if got := a.last(t).body; !strings.Contains(got, `"message":"ü"`) {
			t.Errorf("%s: the charset of the Content-Type was looked at: the app received %s", contentType, got)
		}
	}
	for _, contentType := range silent {
		runCases(t, s, a, contentType, []callbackCase{
			{"silent " + contentType + "/JSON", freshJSON(), 200, ""},
			{"silent " + contentType + "/XML", freshXML(), 200, ""},
			{"silent " + contentType + "/JSON behind a byte order mark", bom + " \r\n\t" + freshJSON(), 200, ""},
			{"silent " + contentType + "/XML behind a byte order mark", bom + " \r\n\t" + freshXML(), 200, ""},
			{"silent " + contentType + "/XML in UTF-16", utf16Text(true, freshXML()), 200, ""},
			{"silent " + contentType + "/form", "ref_id=1&status=1", 415, reasonMediaType},
			{"silent " + contentType + "/form with JSON", "data=" + freshJSON(), 415, reasonMediaType},
			{"silent " + contentType + "/list", "[" + freshJSON() + "]", 415, reasonMediaType},
			{"silent " + contentType + "/string", `"x"`, 415, reasonMediaType},
			{"silent " + contentType + "/nothing", "", 415, reasonMediaType},
			{"silent " + contentType + "/white space", bom + " \n", 415, reasonMediaType},
			{"silent " + contentType + "/two byte order marks", bom + bom + freshJSON(), 415, reasonMediaType},
			{"silent " + contentType + "/no-break space", "\u00a0" + freshJSON(), 415, reasonMediaType},
			{"silent " + contentType + "/NUL", "\x00" + freshJSON(), 415, reasonMediaType},
			{"silent " + contentType + "/broken JSON", "{", 400, reasonMalformed},
			{"silent " + contentType + "/broken XML", "<", 400, reasonMalformed},
		})
	}
	for _, contentType := range wrong {
		runCases(t, s, a, contentType, []callbackCase{
			{"wrong " + contentType + "/JSON", freshJSON(), 415, reasonMediaType},
			{"wrong " + contentType + "/XML", freshXML(), 415, reasonMediaType},
			{"wrong " + contentType + "/nothing", "", 415, reasonMediaType},
		})
	}
	t.Run("two Content-Types", func(t *testing.T) {
		for _, types := range [][]string{{"application/json", "text/html"}, {"application/json", "application/json"}} {
			r, _ := http.NewRequest("POST", s.url, strings.NewReader(freshJSON()))
			r.Header["Content-Type"] = types
			s.do(r).is(t, 415, reasonMediaType)
		}
	})
}

// utf16Text is a text in UTF-16 with a byte order mark.
func utf16Text(bigEndian bool, text string) string {
	var b strings.Builder
	for _, u := range append([]uint16{0xfeff}, utf16.Encode([]rune(text))...) {
		if bigEndian {
			b.WriteByte(byte(u >> 8))
		}
		b.WriteByte(byte(u))
		if !bigEndian {
			b.WriteByte(byte(u >> 8))
		}
	}
	return b.String()
}

// The steps end a callback's way in their order: nothing behind a step is told
// about. Above all, nothing behind the signature is.
func TestRejectOrder(t *testing.T) {
	s, a := rejectSite(t, "max_body_size 2KB")
	large := strings.Repeat(" ", 3000)
	for _, test := range []struct {
		name, contentType, coding, body string
		status                          int
		reason                          reason
	}{
		{"media type before size", "text/html", "", large + "{", 415, reasonMediaType},
		{"coding before size", "application/json", "gzip", large, 415, reasonMediaType},
		{"size before form", "application/json", "", large + "{", 413, reasonTooLarge},
		{"size before a silent media type", "text/plain", "", large + "x", 413, reasonTooLarge},
		{"form before ref_id", "application/json", "", order("", "9", "sign", "") + "x", 400, reasonMalformed},
		{"ref_id before signature and fields", "application/json", "", order("", "9", "sign", `"x"`), 422, reasonRefID},
		{"signature before status", "application/json", "", order("a", "9", "sign", `"x"`), 403, reasonSignature},
		{"signature before names", "application/json", "", order("a", "1", "sign", `"x"`, "STATUS", `"1"`), 403, reasonSignature},
		{"signature before missing fields", "application/json", "", order("a", "1", "sign", `"x"`, "price", ""), 403, reasonSignature},
		{"signature before contradictions", "application/json", "", order("a", "1", "sign", `"x"`, "product_code", `"x"`), 403, reasonSignature},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, _ := http.NewRequest("POST", s.url, strings.NewReader(test.body))
			r.Header.Set("Content-Type", test.contentType)
			if test.coding != "" {
				r.Header.Set("Content-Encoding", test.coding)
			}
			s.do(r).is(t, test.status, test.reason)
		})
	}
	if n := len(a.received()); n != 0 {
		t.Errorf("the app received %d requests", n)
	}
}

// raw sends bytes over a connection of its own and returns it, with a reader
// for the answers.
func (s *site) raw(t *testing.T, request string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
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

// rawReply reads one answer.
func rawReply(t *testing.T, r *bufio.Reader) reply {
	t.Helper()
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	defer answer.Body.Close()
	var body []byte
	if answer.StatusCode >= 200 {
		body, _ = io.ReadAll(answer.Body)
	}
	return reply{answer.StatusCode, answer.Header, string(body)}
}

// head is the head of a raw callback.
func head(lines ...string) string {
	return "POST /callback HTTP/1.1\r\nHost: 127.0.0.1\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// padded is a callback of exactly size bytes.
func padded(refID string, size int) string {
	body := order(refID, "1", "padding", `""`)
	return strings.Replace(body, `"padding":"`, `"padding":"`+strings.Repeat("x", size-len(body)), 1)
}

// A body of max_body_size passes and one byte more does not, declared or
// streamed; the end of an endless one is not waited for.
func TestRejectTooLarge(t *testing.T) {
	const limit = 64 << 10
	t.Run("default", func(t *testing.T) {
		s, a := rejectSite(t)
		testLimit(t, s, a, limit)
	})
	t.Run("configured", func(t *testing.T) {
		s, a := rejectSite(t, "max_body_size 1000")
		testLimit(t, s, a, 1000)
	})
	t.Run("larger", func(t *testing.T) {
		s, a := rejectSite(t, "max_body_size 1MiB")
		testLimit(t, s, a, 1<<20)
	})
}

// upload sends a body, by its length or in one chunk, and reads the answer
// meanwhile: it may come, and the connection end, before all is sent.
func (s *site) upload(t *testing.T, body string, chunked bool) reply {
	t.Helper()
	conn, answers := s.raw(t, "")
	lines := head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body)))
	if chunked {
		lines = head("Content-Type: application/json", "Transfer-Encoding: chunked")
		body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	go func() { _, _ = io.WriteString(conn, lines+body) }()
	return rawReply(t, answers)
}

func testLimit(t *testing.T, s *site, a *app, limit int) {
	t.Helper()
	for _, test := range []struct {
		name    string
		size    int
		chunked bool
		status  int
		reason  reason
	}{
		{"the limit", limit, false, 200, ""},
		{"the limit in chunks", limit, true, 200, ""},
		{"one byte more", limit + 1, false, 413, reasonTooLarge},
		{"one byte more in chunks", limit + 1, true, 413, reasonTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(a.received())
			s.upload(t, padded(test.name, test.size), test.chunked).is(t, test.status, test.reason)
			if forwarded := len(a.received()) - before; forwarded != btoi(test.status == 200) {
				t.Errorf("the app received %d requests", forwarded)
			}
		})
	}
	t.Run("declared, never sent", func(t *testing.T) {
		_, answers := s.raw(t, head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(limit+1)))
		rawReply(t, answers).is(t, 413, reasonTooLarge)
	})
	t.Run("endless", func(t *testing.T) {
		chunk := strings.Repeat(" ", limit+1)
		_, answers := s.raw(t, head("Content-Type: application/json", "Transfer-Encoding: chunked")+
			fmt.Sprintf("%x\r\n%s\r\n", len(chunk), chunk))
		rawReply(t, answers).is(t, 413, reasonTooLarge)
	})
}

// A request_body directive in front may be stricter: what it cuts off is too
// large, not incomplete.
func TestRejectRequestBodyLimit(t *testing.T) {
	a := startApp(t, nil)
	s := startSite(t, "request_body {\nmax_size 1000\n}\n"+rejectBlock(a))
	for _, test := range []struct {
		size   int
		status int
		reason reason
	}{{1000, 200, ""}, {1001, 413, reasonTooLarge}, {100_000, 413, reasonTooLarge}} {
		s.upload(t, padded("a", test.size), true).is(t, test.status, test.reason)
	}
	// With a declared length it answers by itself, before this module is asked.
	if got := s.upload(t, padded("b", 1001), false); got.status != 413 {
		t.Errorf("declared: status %d", got.status)
	}
	if n := len(a.received()); n != 1 {
		t.Errorf("the app received %d requests, want 1", n)
	}
}

// What the header is enough to refuse is refused before the body is asked for
// with 100 Continue; what it is not, is asked for.
func TestRejectBeforeContinue(t *testing.T) {
	s, a := rejectSite(t)
	body := order("continue", "1")
	length := "Content-Length: " + strconv.Itoa(len(body))
	for _, test := range []struct {
		name   string
		head   string
		status int
		reason reason
	}{
		{"method", strings.Replace(head("Content-Type: application/json", length, "Expect: 100-continue"), "POST", "PUT", 1), 405, reasonMethod},
		{"media type", head("Content-Type: text/html", length, "Expect: 100-continue"), 415, reasonMediaType},
		{"coding", head("Content-Type: application/json", "Content-Encoding: gzip", length, "Expect: 100-continue"), 415, reasonMediaType},
		{"too large", head("Content-Type: application/json", "Content-Length: 65537", "Expect: 100-continue"), 413, reasonTooLarge},
		{"no objection", head("Content-Type: application/json", length, "Expect: 100-continue"), 100, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, answers := s.raw(t, test.head)
			rawReply(t, answers).is(t, test.status, test.reason)
			if test.status != 100 {
				return
			}
			if n := len(a.received()); n != 0 {
				t.Errorf("the app received %d requests before the body", n)
			}
			if _, err := io.WriteString(conn, body); err != nil {
				t.Fatal(err)
			}
			rawReply(t, answers).is(t, 200, "")
			if got := a.last(t).header.Values("Expect"); len(got) > 0 {
				t.Errorf("the app received Expect %q", got)
			}
		})
	}
}

// A body that ends too early is 400: nothing of it reaches the app, even when
// what came is a whole callback.
func TestRejectCutOff(t *testing.T) {
	s, a := rejectSite(t)
	body := order("cut", "1")
	chunk := fmt.Sprintf("%x\r\n%s\r\n", len(body), body)
	for _, test := range []struct{ name, request string }{
		{"nothing came", head("Content-Type: application/json", "Content-Length: 500")},
		{"half of it", head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body))) + body[:len(body)/2]},
		{"all but the last byte", head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body))) + body[:len(body)-1]},
		{"a whole document, more declared", head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body)+1)) + body},
		{"a silent media type", head("Content-Length: 500") + "{"},
		{"chunks without an end", head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunk},
		{"in the middle of a chunk", head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunk[:len(chunk)/2]},
		{"before the first chunk", head("Content-Type: application/json", "Transfer-Encoding: chunked")},
		{"the last chunk without its end", head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunk + "0\r\n"},
		{"a broken chunk", head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunk + "zz\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, answers := s.raw(t, test.request)
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			rawReply(t, answers).is(t, 400, reasonIncomplete)
		})
	}
	t.Run("nobody waits for the answer", func(t *testing.T) {
		before := len(s.callbackLines())
		conn, _ := s.raw(t, head("Content-Type: application/json", "Content-Length: 500")+body)
		conn.Close()
		eventually(t, "the cut-off callback is logged", func() bool { return len(s.callbackLines()) > before })
		if line := s.callbackLines()[before]; line["outcome"] != "rejected" || line["reason"] != "incomplete" {
			t.Errorf("logged as %v %v", line["outcome"], line["reason"])
		}
	})
	if n := len(a.received()); n != 0 {
		t.Errorf("the app received %d requests", n)
	}
}

// reopen starts the site anew on another port, with more global options: on the
// same one, connections could still meet the server before.
func (s *site) reopen(t *testing.T, options, block string) {
	t.Helper()
	s.url = "http://127.0.0.1:" + freePort(t)
	text := strings.Replace(s.caddyfile(block), "{\n", "{\n"+options+"\n", 1)
	config, err := adapt(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
}

// A body that comes too slowly for the server's timeouts is 408, whether it
// pauses or trickles.
func TestRejectTooSlow(t *testing.T) {
	s, a := rejectSite(t)
	body := order("slow", "1")
	for _, timeouts := range []string{"read_body_idle 150ms", "read_body 150ms"} {
		s.reopen(t, "servers {\ntimeouts {\n"+timeouts+"\n}\n}", rejectBlock(a))
		for _, test := range []struct{ name, request string }{
			{"nothing comes", head("Content-Type: application/json", "Content-Length: 500")},
			{"it pauses", head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body))) + body[:10]},
			{"it pauses after a whole document", head("Content-Type: application/json", "Content-Length: 500") + body},
			{"a chunk does not come", head("Content-Type: application/json", "Transfer-Encoding: chunked") + "5\r\n{\"dat\r\n"},
			{"a silent media type", head("Content-Length: 500") + "x"},
		} {
			t.Run(timeouts+"/"+test.name, func(t *testing.T) {
				_, answers := s.raw(t, test.request)
				rawReply(t, answers).is(t, 408, reasonIncomplete)
			})
		}
	}
	if n := len(a.received()); n != 0 {
		t.Errorf("the app received %d requests", n)
	}
}

// nest is n levels of lists.
func nest(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// nestObjects is n levels of objects.
func nestObjects(n int) string {
	return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1)
}

// nestXML is n levels of elements.
func nestXML(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "<e%d>", i)
	}
	for i := range n {
		fmt.Fprintf(&b, "</e%d>", n-1-i)
	}
	return b.String()
}

// One well-formed JSON document with an object under data is accepted, and
// nothing else.
func TestRejectJSON(t *testing.T) {
	s, a := rejectSite(t)
	ok := fresh("json")
	inData := func(members string) string { return strings.Replace(ok(), `{"data":{`, `{"data":{`+members+`,`, 1) }
	beside := func(members string) string { return strings.Replace(ok(), `{`, `{`+members+`,`, 1) }
	data := ok()
	data = data[len(`{"data":`) : len(data)-1]

	var cases []callbackCase
	malformed := func(name, body string) {
		cases = append(cases, callbackCase{name, body, 400, reasonMalformed})
	}
	accepted := func(name, body string) { cases = append(cases, callbackCase{name, body, 200, ""}) }

	accepted("as documented", ok())
	accepted("white space around", " \t\r\n"+ok()+"\r\n\t ")
	accepted("other top-level keys", beside(`"rc":"00","Data":{"status":"2"},"DATA":1,"list":[1,{"a":null}],"n":null`))
	accepted("escaped top-level name", strings.Replace(ok(), `"data"`, `"d\u0061ta"`, 1))
	accepted("escaped names and values", strings.Replace(ok(), `"status":"1"`, `"st\u0061tus":"\u0031"`, 1))
	accepted("escaped control characters outside ref_id", ok("message", `"\u0000\u001f\u007f\u0085\b\f\n\r\t"`, "sn", `"\u0000"`))
	accepted("a surrogate pair", ok("message", `"\ud83d\ude00"`))
	accepted("noncharacters", ok("message", `"\uffff\ufffe"`))
	accepted("a replacement character", ok("message", `"\ufffd"`))
	accepted("a byte order mark inside", ok("message", `"\ufeff"`))

	malformed("nothing", "")
	malformed("white space", " \n")
	malformed("a byte order mark", "\xef\xbb\xbf")
	malformed("two byte order marks", "\xef\xbb\xbf\xef\xbb\xbf"+ok())
	malformed("null", "null")
	malformed("a number", "1")
	malformed("a string", `"x"`)
	malformed("a list", "["+ok()+"]")
	malformed("an empty object", "{}")
	malformed("no data", data)
	malformed("data is null", `{"data":null}`)
	malformed("data is a list", `{"data":[`+data+`]}`)
	malformed("data is a string", `{"data":"`+`x"}`)
	malformed("data is a number", `{"data":1}`)
	malformed("data is true", `{"data":true}`)
	malformed("data in another case", `{"Data":`+data+`}`)
	malformed("data one level down", `{"a":{"data":`+data+`}}`)

	malformed("garbage behind", ok()+"x")
	malformed("a bracket behind", ok()+"}")
	malformed("a comma behind", ok()+",")
	malformed("NUL behind", ok()+"\x00")
	malformed("a vertical tab behind", ok()+"\v")
	malformed("a comment behind", ok()+"// x")
	malformed("a number behind", ok()+" 1")
	malformed("twice", ok()+ok())
	malformed("twice, by line", ok()+"\n"+ok())
	malformed("XML behind", ok()+"<mp/>")
	malformed("garbage before", "x"+ok())

	malformed("a trailing comma", inData(`"a":1,`))
	malformed("a comment", inData(`/* x */ "a":1`))
	malformed("single quotes", inData(`'a':1`))
	malformed("no quotes", inData(`a:1`))
	malformed("no colon", inData(`"a" 1`))
	malformed("NaN", inData(`"a":NaN`))
	malformed("a hexadecimal number", inData(`"a":0x10`))
	malformed("leading zeros", inData(`"a":007`))
	malformed("a plus sign", inData(`"a":+5`))
	malformed("a bare point before", inData(`"a":.5`))
	malformed("a bare point behind", inData(`"a":5.`))
	malformed("a bare exponent", inData(`"a":5e`))
	malformed("a wrong literal", inData(`"a":True`))
	malformed("a raw tab in a string", inData("\"a\":\"\t\""))
	malformed("a raw newline in a string", inData("\"a\":\"\n\""))
	malformed("a raw NUL in a string", inData("\"a\":\"\x00\""))
	malformed("an unknown escape", inData(`"a":"\x41"`))
	malformed("a short escape", inData(`"a":"\u12"`))

	for name, broken := range map[string]string{
		"an invalid byte":          "\xff",
		"a lone continuation byte": "\x80",
		"a cut-off character":      "\xc3",
		"an overlong NUL":          "\xc0\x80",
		"an overlong slash":        "\xc0\xaf",
		"a surrogate in UTF-8":     "\xed\xa0\x80",
		"above U+10FFFF":           "\xf4\x90\x80\x80",
		"a lone high surrogate":    `\ud800`,
		"a lone low surrogate":     `\udc00`,
		"two high surrogates":      `\ud800\ud800`,
		"a reversed pair":          `\ude00\ud83d`,
		"a high surrogate and A":   `\ud800A`,
		"upper-case escapes":       `\uD800\u0041`,
	} {
		malformed(name+" in a value", ok("message", `"`+broken+`"`))
		malformed(name+" in ref_id", ok("ref_id", `"`+broken+`"`))
		malformed(name+" in an unknown value", inData(`"a":["`+broken+`"]`))
		malformed(name+" in a name", inData(`"`+broken+`":1`))
		malformed(name+" in a dropped value", beside(`"a":{"b":"`+broken+`"}`))
		malformed(name+" in a dropped name", beside(`"`+broken+`":1`))
	}

	malformed("a repeated field", inData(`"status":"1"`))
	malformed("a repeated field with the same value", inData(`"rc":"00"`))
	malformed("a repeated field, once null", inData(`"sign":null`))
	malformed("a repeated field, once escaped", inData(`"st\u0061tus":"2"`))
	malformed("a repeated field, all escaped", inData(`"\u0073\u0074\u0061\u0074\u0075\u0073":"1"`))
	malformed("a repeated unknown field", inData(`"a":1,"a":1`))
	malformed("a repeated empty name", inData(`"":1,"":2`))
	malformed("a repeated name in an unknown object", inData(`"a":{"b":1,"b":2}`))
	malformed("a repeated name in a list of objects", inData(`"a":[[{"b":1,"\u0062":2}]]`))
	malformed("data twice", strings.TrimSuffix(ok(), "}")+`,"data":`+data+`}`)
	malformed("data twice, once null", beside(`"data":null`))
	malformed("data twice, once escaped", beside(`"d\u0061ta":{}`))
	malformed("a repeated name beside data", beside(`"a":1,"a":1`))
	malformed("a repeated name in a dropped object", beside(`"a":{"b":{"c":1,"c":1}}`))
	accepted("the same name in two objects", beside(`"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]`))

	// The document's object is level 1, data level 2.
	accepted("lists down to level 16", inData(`"a":`+nest(14)))
	malformed("lists down to level 17", inData(`"a":`+nest(15)))
	accepted("objects down to level 16", inData(`"a":`+nestObjects(14)))
	malformed("objects down to level 17", inData(`"a":`+nestObjects(15)))
	accepted("dropped lists down to level 16", beside(`"a":`+nest(15)))
	malformed("dropped lists down to level 17", beside(`"a":`+nest(16)))
	malformed("dropped objects down to level 17", beside(`"a":`+nestObjects(16)))
	malformed("data at level 17", beside(`"a":`+nest(16)))
	malformed("a body of brackets", strings.Repeat("[", 60_000))
	malformed("a body of brackets in data", `{"data":{"a":`+strings.Repeat("[", 60_000))
	malformed("a body of names", strings.Repeat(`{"data":`, 8000))

	malformed("UTF-16, big endian", utf16Text(true, ok()))
	malformed("UTF-16, little endian", utf16Text(false, ok()))
	malformed("Latin-1", ok("message", "\"\xfc\""))

	runCases(t, s, a, "application/json", cases)
}

// One well-formed XML document with the root mp is accepted, in the charset
// that it declares, and nothing that could mean something else to another
// parser.
func TestRejectXML(t *testing.T) {
	s, a := rejectSite(t)
	ok := freshXML("xml")
	inside := func(markup string) string { return strings.Replace(ok(), "<mp>", "<mp>"+markup, 1) }
	const declaration = `<?xml version="1.0" encoding="UTF-8"?>`

	var cases []callbackCase
	malformed := func(name, body string) {
		cases = append(cases, callbackCase{name, body, 400, reasonMalformed})
	}
	accepted := func(name, body string) { cases = append(cases, callbackCase{name, body, 200, ""}) }

	accepted("without a declaration", ok())
	accepted("with a declaration", declaration+"\n"+ok())
	accepted("white space around", "\n "+declaration+" "+ok()+" \r\n\t")
	accepted("a declaration without charset", `<?xml version="1.0"?>`+ok())
	accepted("a standalone declaration", `<?xml version='1.0' encoding='utf-8' standalone='yes'?>`+ok())
	accepted("comments", "<!-- a --><!---->"+inside("<!-- <status>2</status> -->")+"<!-- b -->")
	accepted("a comment in a value", ok("message", "MES<!-- x -->SAGE"))
	accepted("processing instructions", `<?php echo 1 ?>`+inside(`<?x y?>`)+`<?x?>`)
	accepted("attributes", strings.Replace(inside(`<a b="c" d='e'/>`), "<mp>", `<mp version="1" xml:lang="id">`, 1))
	accepted("namespace prefixes", strings.NewReplacer("</", "</x:", "<", "<x:").Replace(ok()))
	accepted("a default namespace", strings.Replace(ok(), "<mp>", `<mp xmlns="urn:iak" xmlns:y="urn:y">`, 1))
	accepted("CDATA", ok("message", "<![CDATA[<&>]]>"))
	accepted("predefined entities", ok("message", "&lt;&gt;&amp;&quot;&apos;&#65;&#x1F600;"))
	accepted("white space in a value", ok("status", "\n 1\t", "price", " <![CDATA[ 25000 ]]> "))

	malformed("nothing", "<")
	malformed("only a declaration", declaration)
	malformed("only a comment", "<!-- x -->")
	malformed("another root", strings.ReplaceAll(ok(), "mp>", "data>"))
	malformed("the root in another case", strings.ReplaceAll(ok(), "mp>", "MP>"))
	malformed("the root one level down", "<r>"+ok()+"</r>")
	malformed("HTML", "<html><body>Bad gateway</body></html>")

	malformed("text behind", ok()+"x")
	malformed("text before", "<!-- x -->x"+ok())
	malformed("an element behind", ok()+"<a/>")
	malformed("twice", ok()+ok())
	malformed("twice with declarations", declaration+ok()+declaration+ok())
	malformed("NUL behind", ok()+"\x00")
	malformed("a no-break space behind", ok()+"\u00a0")
	malformed("a no-break space before", "<!-- -->\u00a0"+ok())
	malformed("a line separator behind", ok()+"\u2028")
	malformed("a character reference behind", ok()+"&#32;")
	malformed("CDATA behind", ok()+"<![CDATA[ ]]>")
	malformed("JSON behind", ok()+"{}")

	malformed("a missing end tag", strings.TrimSuffix(ok(), "</mp>"))
	malformed("a wrong end tag", strings.Replace(ok(), "</rc>", "</cr>", 1))
	malformed("an end tag in another case", strings.Replace(ok(), "</rc>", "</RC>", 1))
	malformed("an end tag with another prefix", strings.Replace(strings.Replace(ok(), "<rc>", "<a:rc>", 1), "</rc>", "</b:rc>", 1))
	malformed("an attribute without quotes", inside("<a b=c/>"))
	malformed("an attribute without value", inside("<a b/>"))
	malformed("an attribute with a bracket", inside(`<a b="<"/>`))
	malformed("a repeated attribute", inside(`<a b="1" b="2"/>`))
	malformed("a bare ampersand", ok("message", "A&B"))
	malformed("a bare bracket", ok("message", "1<2"))
	malformed("a CDATA end in text", ok("message", "]]>"))
	malformed("two hyphens in a comment", inside("<!-- -- -->"))
	malformed("XML 1.1", `<?xml version="1.1"?>`+ok())

	malformed("a DOCTYPE", `<!DOCTYPE mp>`+ok())
	malformed("a DOCTYPE behind a declaration", declaration+"<!DOCTYPE mp SYSTEM \"http://127.0.0.1/x.dtd\">"+ok())
	malformed("a DOCTYPE behind the root", ok()+"<!DOCTYPE mp>")
	malformed("a DOCTYPE inside", inside("<!DOCTYPE mp>"))
	malformed("an entity", `<!DOCTYPE mp [<!ENTITY x "1">]>`+ok("message", "&x;"))
	malformed("an entity inside", inside(`<!ENTITY x "1">`))
	malformed("an external entity", `<!DOCTYPE mp [<!ENTITY x SYSTEM "file:///etc/passwd">]>`+ok("message", "&x;"))
	malformed("a parameter entity", `<!DOCTYPE mp [<!ENTITY % x SYSTEM "http://127.0.0.1/"> %x;]>`+ok())
	laughs := `<!DOCTYPE mp [<!ENTITY a0 "ha">`
	for i := range 20 {
		laughs += fmt.Sprintf(`<!ENTITY a%d "%s">`, i+1, strings.Repeat(fmt.Sprintf("&a%d;", i), 10))
	}
	malformed("a billion laughs", laughs+"]>"+ok("message", "&a20;"))
	malformed("an undefined entity", ok("message", "&nbsp;"))
	malformed("an undefined entity in an attribute", inside(`<a b="&x;"/>`))
	malformed("an entity without semicolon", ok("message", "&amp"))

	malformed("a second declaration", declaration+declaration+ok())
	malformed("a declaration behind a comment", "<!-- x -->"+declaration+ok())
	malformed("a declaration inside", inside(declaration))
	malformed("a declaration inside a field", ok("message", `<?xml version="1.0" encoding="ISO-8859-1"?>x`))
	malformed("a declaration behind", ok()+declaration)
	malformed("a declaration in upper case inside", inside(`<?XML version="1.0"?>`))

	for name, broken := range map[string]string{
		"an invalid byte":      "\xff",
		"a cut-off character":  "\xc3",
		"an overlong slash":    "\xc0\xaf",
		"a surrogate in UTF-8": "\xed\xa0\x80",
		"NUL":                  "\x00",
		"a control character":  "\x0b",
		"a noncharacter":       "\uffff",
	} {
		malformed(name+" in a value", ok("message", broken))
		malformed(name+" in CDATA", ok("message", "<![CDATA["+broken+"]]>"))
		malformed(name+" in an attribute", inside(`<a b="`+broken+`"/>`))
		malformed(name+" in a name", inside("<a"+broken+"/>"))
		malformed(name+" in a comment", inside("<!-- "+broken+" -->"))
		malformed(name+" in a processing instruction", inside("<?a "+broken+"?>"))
	}
	for name, reference := range map[string]string{
		"NUL":                             "&#0;",
		"a control character":             "&#x1f;",
		"a lone high surrogate":           "&#xD800;",
		"a lone low surrogate":            "&#56320;",
		"a surrogate pair":                "&#xD83D;&#xDE00;",
		"a surrogate with leading zeros":  "&#x00000d83d;",
		"a noncharacter":                  "&#xFFFF;",
		"a character above U+10FFFF":      "&#x110000;",
		"a character beyond every number": "&#99999999999999999999999;",
		"no character":                    "&#;",
	} {
		malformed("a reference to "+name, ok("message", reference))
		malformed("a reference to "+name+" in ref_id", ok("ref_id", reference, "sign", sign("\ufffd")))
	}

	malformed("a repeated field", inside("<status>1</status>"))
	malformed("a repeated empty field", inside("<sn/><sn/>"))
	malformed("a repeated unknown field", inside("<a>1</a><a>1</a>"))
	malformed("a repeated field under another prefix", inside("<x:status>2</x:status>"))
	malformed("a repeated field under another namespace", inside(`<status xmlns="urn:x">2</status>`))
	malformed("a repeated name in an unknown element", inside("<a><b/><b/></a>"))
	malformed("a repeated name further down", inside("<a><b><c>1</c><c>2</c></b></a>"))
	accepted("the same name at two depths", inside("<a><a><a/></a></a>"))

	// mp is level 1.
	accepted("elements down to level 16", inside(nestXML(15)))
	malformed("elements down to level 17", inside(nestXML(16)))
	malformed("a body of start tags", strings.Repeat("<mp>", 15_000))
	malformed("a body of attributes", "<mp "+strings.Repeat("a='b' ", 10_000))

	runCases(t, s, a, "application/xml", cases)
}

// An XML document is decoded by the charset that it declares or by the byte
// order mark of UTF-16, and refused when it is not in that charset, or in two.
func TestRejectCharset(t *testing.T) {
	s, a := rejectSite(t)
	ok := freshXML("charset")
	declared := func(charset, message string) string {
		return `<?xml version="1.0" encoding="` + charset + `"?>` + ok("message", message)
	}
	for _, test := range []struct {
		name string
		body string
		want string // the message that the app receives; empty: malformed
	}{
		{"UTF-8", declared("UTF-8", "Größe €"), "Größe €"},
		{"UTF-8 in lower case", declared("utf-8", "Größe €"), "Größe €"},
		{"UTF8 without hyphen", declared("utf8", "Größe €"), "Größe €"},
		{"UTF-8 with a byte order mark", "\xef\xbb\xbf" + declared("UTF-8", "Größe €"), "Größe €"},
		{"ISO-8859-1", declared("ISO-8859-1", "Gr\xf6\xdfe"), "Größe"},
		{"ISO-8859-1 in lower case and single quotes", `<?xml version='1.0' encoding='iso-8859-1' ?>` + ok("message", "Gr\xf6\xdfe"), "Größe"},
		{"ISO-8859-1 with white space at =", `<?xml version = "1.0" encoding = "ISO-8859-1"?>` + ok("message", "Gr\xf6\xdfe"), "Größe"},
		{"ISO-8859-15", declared("ISO-8859-15", "\xa4"), "€"},
		{"windows-1252", declared("windows-1252", "\x80 \x93x\x94"), "€ “x”"},
		{"Shift_JIS", declared("Shift_JIS", "\x83e\x83X\x83g"), "テスト"},
		{"GBK", declared("GBK", "\xb2\xe2\xca\xd4"), "测试"},
		{"UTF-16 big endian", utf16Text(true, declared("UTF-16", "Größe 😀")), "Größe 😀"},
		{"UTF-16 little endian", utf16Text(false, declared("UTF-16", "Größe 😀")), "Größe 😀"},
		{"UTF-16 without a declaration", utf16Text(false, ok("message", "Größe")), "Größe"},
		{"UTF-16 with white space before", utf16Text(true, "\r\n "+ok("message", "Größe")), "Größe"},

		{"unknown", declared("x-unknown", "x"), ""},
		{"not a charset for text", declared("HZ-GB-2312", "x"), ""},
		{"UTF-7", declared("UTF-7", "+ADw-"), ""},
		{"EBCDIC", declared("IBM037", "x"), ""},
		{"UTF-8 declared, Latin-1 sent", declared("UTF-8", "Gr\xf6\xdfe"), ""},
		{"nothing declared, Latin-1 sent", ok("message", "Gr\xf6\xdfe"), ""},
		{"UTF-16 declared, ASCII sent", declared("UTF-16", "x"), ""},
		{"UTF-16LE declared, ASCII sent", declared("UTF-16LE", "x"), ""},
		{"windows-1252, undefined byte", declared("windows-1252", "\x81"), ""},
		{"GBK, cut-off character", declared("GBK", "\xb2"), ""},
		{"Shift_JIS, invalid byte", declared("Shift_JIS", "\xff"), ""},
		{"UTF-16, ISO-8859-1 declared", utf16Text(true, declared("ISO-8859-1", "Größe")), ""},
		{"UTF-16, UTF-8 declared", utf16Text(true, declared("UTF-8", "Größe")), ""},
		{"UTF-8 byte order mark, ISO-8859-1 declared", "\xef\xbb\xbf" + declared("ISO-8859-1", "Größe"), ""},
		{"UTF-16 without a byte order mark", utf16Text(false, ok())[2:], ""},
		{"UTF-16 big endian without a byte order mark", utf16Text(true, ok())[2:], ""},
		{"UTF-16, odd length", utf16Text(true, ok()) + "\x00", ""},
		{"UTF-16, lone surrogate", utf16Text(true, ok()+"<!--") + "\xd8\x00" + utf16Text(true, "-->")[2:], ""},
		{"UTF-16, lone surrogate in a value", strings.Replace(utf16Text(true, ok()), "\x00M\x00E", "\xd8\x00\x00E", 1), ""},
		{"UTF-16, em space behind", utf16Text(true, ok()+"\u2003"), ""},
		{"UTF-32", "\xff\xfe\x00\x00<\x00\x00\x00", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(a.received())
			got := s.send("application/xml; charset=us-ascii", test.body)
			if test.want == "" {
				got.is(t, 400, reasonMalformed)
				if len(a.received()) != before {
					t.Errorf("the app received %s", a.last(t).body)
				}
				return
			}
			got.is(t, 200, "")
			if len(a.received()) == before {
				return
			}
			if body := a.last(t).body; !strings.Contains(body, `"message":`+quote(test.want)) {
				t.Errorf("the app received %s", body)
			}
		})
	}
}

// The ref_id is a string or a number of 1 to 255 bytes without control
// characters, in the form that the signature covers.
func TestRejectRefID(t *testing.T) {
	s, a := rejectSite(t)
	withRefID := func(json, text string) string { return order("", "1", "ref_id", json, "sign", quote(sign(text))) }
	str := func(text string) string { return withRefID(quote(text), text) }
	digits := strings.Repeat("1234567890", 26)
	runCases(t, s, a, "application/json", []callbackCase{
		{"one byte", str("x"), 200, ""},
		{"255 bytes", str(strings.Repeat("r", 255)), 200, ""},
		{"255 bytes in two-byte characters", str(strings.Repeat("ü", 127) + "r"), 200, ""},
		{"a space", str(" "), 200, ""},
		{"spaces around", str(" a "), 200, ""},
		{"printable Unicode", str("ü\u00a0\u2028\u200b😀\ufeff"), 200, ""},
		{"colons and slashes", str("a:b/c%20?#"), 200, ""},
		{"escaped", withRefID(`"or\u0064er\/1"`, "order/1"), 200, ""},
		{"a number", withRefID("12345", "12345"), 200, ""},
		{"a number of 255 digits", withRefID(digits[:255], digits[:255]), 200, ""},
		{"a number in its own notation", withRefID("-1.50E+3", "-1.50E+3"), 200, ""},

		{"missing", withRefID("", ""), 422, reasonRefID},
		{"missing, another case there", strings.Replace(str("case"), `"ref_id"`, `"REF_ID"`, 1), 422, reasonRefID},
		{"null", withRefID("null", ""), 422, reasonRefID},
		{"empty", str(""), 422, reasonRefID},
		{"true", withRefID("true", "true"), 422, reasonRefID},
		{"a list", withRefID(`["x"]`, "x"), 422, reasonRefID},
		{"an object", withRefID(`{"x":"x"}`, "x"), 422, reasonRefID},
		{"256 bytes", str(strings.Repeat("r", 256)), 422, reasonRefID},
		{"256 bytes in two-byte characters", str(strings.Repeat("ü", 128)), 422, reasonRefID},
		{"a number of 256 digits", withRefID(digits[:256], digits[:256]), 422, reasonRefID},
		{"NUL", str("a\x00b"), 422, reasonRefID},
		{"only NUL", str("\x00"), 422, reasonRefID},
		{"a newline behind", str("a\n"), 422, reasonRefID},
		{"a carriage return", str("a\rb"), 422, reasonRefID},
		{"a tab", str("a\tb"), 422, reasonRefID},
		{"U+001F", str("\x1f"), 422, reasonRefID},
		{"U+007F", str("\x7f"), 422, reasonRefID},
		{"U+0080", str("\u0080"), 422, reasonRefID},
		{"U+0085", str("\u0085"), 422, reasonRefID},
		{"U+009F", str("\u009f"), 422, reasonRefID},
	})
	runCases(t, s, a, "application/xml", []callbackCase{
		{"XML", orderXML("xml"), 200, ""},
		{"XML with white space around", orderXML("xml2", "ref_id", "\n  <![CDATA[ xml2 ]]>\t"), 200, ""},
		{"XML empty", orderXML(""), 422, reasonRefID},
		{"XML white space", orderXML("", "ref_id", " \n "), 422, reasonRefID},
		{"XML with children", orderXML("", "ref_id", "<a>x</a>"), 422, reasonRefID},
		{"XML missing", strings.Replace(orderXML("x"), "ref_id>", "refid>", 2), 422, reasonRefID},
		{"XML with a newline inside", orderXML("", "ref_id", "a\nb", "sign", sign("a\nb")), 422, reasonRefID},
		{"XML with a control character", orderXML("", "ref_id", "a&#x7f;b", "sign", sign("a\x7fb")), 422, reasonRefID},
	})
}

// The sign is a string of 32 hex digits in either case, and right.
func TestRejectSign(t *testing.T) {
	for _, validate := range []string{"strict", "lenient"} {
		t.Run(validate, func(t *testing.T) {
			s, a := rejectSite(t, "validate "+validate, "account other 0899 other-key")
			const refID = "signed"
			right := sign(refID)
			n := 0
			signed := func(json string) string { return order(refID, "1", "sign", json) }
			accepted := func(transform func(string) string) string {
				n++
				r := fmt.Sprint(refID, n)
				return order(r, "1", "sign", quote(transform(sign(r))))
			}
			runCases(t, s, a, "application/json", []callbackCase{
				{"lower case", accepted(strings.ToLower), 200, ""},
				{"upper case", accepted(strings.ToUpper), 200, ""},
				{"mixed case", accepted(func(s string) string { return strings.ToUpper(s[:9]) + s[9:] }), 200, ""},
				{"the other account", order("other", "1", "sign", quote(signedBy("0899", "other-key", "other"))), 200, ""},

				{"missing", signed(""), 403, reasonSignature},
				{"missing, another case there", strings.Replace(signed(quote(right)), `"sign"`, `"Sign"`, 1), 403, reasonSignature},
				{"null", signed("null"), 403, reasonSignature},
				{"empty", signed(`""`), 403, reasonSignature},
				{"true", signed("true"), 403, reasonSignature},
				{"a list", signed("[" + quote(right) + "]"), 403, reasonSignature},
				{"an object", signed(`{"sign":` + quote(right) + `}`), 403, reasonSignature},
				{"a number", signed("12345678901234567890123456789012"), 403, reasonSignature},
				{"31 digits", signed(quote(right[:31])), 403, reasonSignature},
				{"33 digits", signed(quote(right + "0")), 403, reasonSignature},
				{"no hex digit", signed(quote(right[:31] + "g")), 403, reasonSignature},
				{"white space around", signed(quote(" " + right + " ")), 403, reasonSignature},
				{"one digit off", signed(quote(flipLast(right))), 403, reasonSignature},
				{"of another ref_id", signed(quote(sign("another"))), 403, reasonSignature},
				{"of another key", signed(quote(signedBy(testUsername, "test-api-key-2", refID))), 403, reasonSignature},
				{"of two accounts at once", signed(quote(signedBy(testUsername, "other-key", refID))), 403, reasonSignature},
				{"of nothing", signed(quote(sign(""))), 403, reasonSignature},
			})
		})
	}
}

// No answer tells how near a signature came, or to which account: status,
// headers and body are the same for all.
func TestRejectSignAlike(t *testing.T) {
	a := startApp(t, nil)
	s := startSite(t, "iak_callback {\n"+testAccount+"\naccount other 0899 other-key\n}\nreverse_proxy "+a.addr())
	right := sign("alike")
	var first reply
	for i, sent := range []string{
		quote(strings.Repeat("0", 32)), quote(flipLast(right)), quote(flipFirst(right)), quote(right[:31]), quote(right + "0"),
		quote(sign("other")), quote(signedBy("0899", "other-key", "alik")), "", "null", "true", "1", "{}", `"g"`,
	} {
		got := s.post(order("alike", "1", "sign", sent))
		got.header.Del("Date")
		if i == 0 {
			first = got
		}
		if got.status != 403 || got.body != first.body || !maps.EqualFunc(got.header, first.header, slices.Equal) {
			t.Errorf("sign %s: answer %v, want %v", sent, got, first)
		}
	}
	if n := len(a.received()); n != 0 {
		t.Errorf("the app received %d requests", n)
	}
}

// The fields behind the signature, under validate strict.
func TestRejectField(t *testing.T) {
	s, a := rejectSite(t)
	ok := fresh("field")
	var cases []callbackCase
	refused := func(name string, changes ...string) {
		cases = append(cases, callbackCase{name, ok(changes...), 422, reasonField})
	}
	accepted := func(name string, changes ...string) {
		cases = append(cases, callbackCase{name, ok(changes...), 200, ""})
	}

	for _, status := range []string{
		`"0"`, `"1"`, `"2"`, "0", "1", "2", "1.0", "2.000", "0.0", "-0", "-0.0e5", "1e0", "1E+0", "1e-0", "10e-1", "0.1e1", "0.002E3", "0e999999999999",
		"20000e-4", "1" + strings.Repeat("0", 1000) + "e-1000", "0." + strings.Repeat("0", 999) + "1e1000", "0.1e0000000001",
	} {
		accepted("status "+abbreviate(status), "status", status)
	}
	for _, status := range []string{
		"", "null", "true", "false", "[1]", "{}", `""`, `"3"`, `"01"`, `" 1"`, `"1 "`, `"1.0"`, `"+1"`, `"-0"`, `"1e0"`, `"success"`, `"\u0661"`, `"１"`, `"1\u0000"`, "3", "-1", "12", "10", "1.5", "0.1",
		"1.00000000000000000001", "0.99999999999999999999", "2.0000000000000000000000001", "1e1", "1e-1", "10e1", "-1e0",
		"1e99999999999999999999", "1e-99999999999999999999", "0.1e10000000000000000000001", "1" + strings.Repeat("0", 1000) + "e-999",
		"1" + strings.Repeat("0", 1000) + "e-1001",
	} {
		refused("status "+abbreviate(status), "status", status)
	}

	for _, d := range documented {
		upper := strings.ToUpper(d.name)
		for _, variant := range []string{upper, upper[:1] + d.name[1:], d.name[:1] + upper[1:]} {
			refused("the name "+variant, variant, `"x"`)
		}
		if d.name == "ref_id" || d.name == "sign" {
			continue // the steps before
		}
		for _, wrong := range []string{"true", "false", "[]", "{}", `["x"]`} {
			refused(d.name+" "+wrong, d.name, wrong)
		}
	}
	refused("a name with a long s", "\u017ftatus", `"1"`)
	refused("a name with a long s in another field", "\u017fn", `"1"`)
	refused("a name in another case with null", "STATUS", "null")
	refused("a name in another case with a list", "Pin", "[]")
	accepted("a name with a Kelvin sign, no field's", "\u212aey", `"1"`)
	accepted("a name with a dotless i, no field's", "p\u0131n", `"1"`)
	accepted("a name with white space", "status ", `"2"`, " sn", `"2"`)
	accepted("names in another case elsewhere", "a", `{"STATUS":1,"Status":2}`)

	for _, f := range mandatory {
		refused(f.String()+" missing", f.String(), "")
		refused(f.String()+" null", f.String(), "null")
	}
	for _, name := range []string{"message", "tr_id", "rc", "code", "hp", "sn", "pin", "activation_code"} {
		accepted(name+" empty", name, `""`)
	}
	for _, name := range []string{"sn", "pin", "activation_code"} {
		accepted(name+" null", name, "null")
	}

	for _, name := range []string{"price", "balance"} {
		for _, amount := range []string{
			`"0"`, `"1.50"`, `"1e5"`, `"1E-5"`, `"-1"`, `"-0"`, "16500", "16500.00", "1e5", "-1", strings.Repeat("9", 1000), quote(strings.Repeat("9", 1000)),
		} {
			accepted(name+" "+abbreviate(amount), name, amount)
		}
		for _, amount := range []string{
			`"007"`, `"00"`, `"+5"`, `""`, `" 1"`, `"1 "`, `"1\n"`, `"1 2"`, `"1,000"`, `"1.000.000"`, `"Rp 5"`, `".5"`, `"5."`, `"1e"`, `"e5"`, `"-"`, `"--1"`, `"0x10"`,
			`"NaN"`, `"Infinity"`, `"null"`, `"true"`, `"{}"`, `"[1]"`, `"\"1\""`, `"１"`, `"1_000"`, `"1,2"`, `"1}"`, `"-1 -1"`,
		} {
			refused(name+" "+amount, name, amount)
		}
	}

	accepted("version 2", "code", "", "hp", "", "product_code", `"p"`, "customer_id", `"c"`)
	accepted("both versions agree", "product_code", `"xld25000"`, "customer_id", `"0817777215"`)
	accepted("versions mixed", "code", "", "product_code", `"p"`)
	accepted("both agree as text", "hp", "817", "customer_id", `"817"`)
	accepted("one version null", "code", "null", "product_code", `"p"`, "customer_id", "null")
	accepted("both empty", "code", `""`, "product_code", `""`)
	refused("versions disagree on the product", "product_code", `"xld50000"`)
	refused("versions disagree on the customer", "customer_id", `"0817777216"`)
	refused("versions differ in case", "product_code", `"XLD25000"`)
	refused("versions differ in white space", "product_code", `"xld25000 "`)
	refused("one version empty", "product_code", `""`)
	refused("one version a list", "product_code", `["xld25000"]`)
	refused("numbers in two notations", "hp", "817", "customer_id", "817.0")
	refused("both versions null", "code", "null", "product_code", "null")

	accepted("unknown fields", "a", `"x"`, "b", "1", "c", "true", "d", "null", "e", "[1]", "f", `{"a":1}`, "", `"empty name"`, "data", `"x"`)

	runCases(t, s, a, "application/json", cases)

	runCases(t, s, a, "application/xml", []callbackCase{
		{"XML", orderXML("fx1"), 200, ""},
		{"XML status with white space", orderXML("fx2", "status", " 2\n"), 200, ""},
		{"XML price with white space", orderXML("fx3", "price", " 1 "), 200, ""},
		{"XML status 1.0", orderXML("fx4", "status", "1.0"), 422, reasonField},
		{"XML status empty", orderXML("fx5", "status", ""), 422, reasonField},
		{"XML name in another case", orderXML("fx6", "Status", "1"), 422, reasonField},
		{"XML name in another case under a prefix", orderXML("fx7", "x:STATUS", "1"), 422, reasonField},
		{"XML field with children", orderXML("fx8", "sn", "x<b/>y"), 422, reasonField},
		{"XML unknown field with children", orderXML("fx9", "a", "x<b>c</b>y"), 200, ""},
		{"XML price empty", orderXML("fx10", "price", ""), 422, reasonField},
		{"XML message empty", orderXML("fx11", "message", ""), 200, ""},
		{"XML versions disagree", orderXML("fx12", "product_code", "x"), 422, reasonField},
		{"XML versions agree", orderXML("fx13", "product_code", "xld25000"), 200, ""},
		{"XML missing field", strings.NewReplacer("<rc>", "<rd>", "</rc>", "</rd>").Replace(orderXML("fx14")), 422, reasonField},
	})
}

func abbreviate(s string) string {
	if len(s) > 40 {
		return fmt.Sprintf("%s... (%d bytes)", s[:20], len(s))
	}
	return s
}

// validate lenient asks for ref_id, sign and status alone; what a documented
// field may hold, and that names are unambiguous, it does not change.
func TestRejectLenient(t *testing.T) {
	s, a := rejectSite(t, "validate lenient")
	ok := fresh("lenient")
	cases := []callbackCase{
		{"nothing else", ok("code", "", "hp", "", "price", "", "message", "", "balance", "", "tr_id", "", "rc", ""), 200, ""},
		{"all null", ok("code", "null", "hp", "null", "price", "null", "message", "null", "balance", "null", "tr_id", "null", "rc", "null"), 200, ""},
		{"no status", ok("status", ""), 422, reasonField},
		{"status null", ok("status", "null"), 422, reasonField},
		{"status 3", ok("status", `"3"`), 422, reasonField},
		{"status 1.00000000000000000001", ok("status", "1.00000000000000000001"), 422, reasonField},
		{"no ref_id", ok("ref_id", ""), 422, reasonRefID},
		{"no sign", ok("sign", ""), 403, reasonSignature},
		{"a list", ok("sn", "[]"), 422, reasonField},
		{"a boolean", ok("price", "true"), 422, reasonField},
		{"a name in another case", ok("SN", `"x"`), 422, reasonField},
		{"versions that disagree", ok("product_code", `"x"`), 422, reasonField},
	}
	for _, f := range mandatory {
		cases = append(cases, callbackCase{f.String() + " missing", ok(f.String(), ""), 200, ""})
	}
	for _, amount := range []string{`"007"`, `"+5"`, `""`, `"1e5"`, `"-1"`, `" 1"`, `"abc"`, `"1,000"`} {
		cases = append(cases,
			callbackCase{"price " + amount, ok("price", amount), 200, ""},
			callbackCase{"balance " + amount, ok("balance", amount), 200, ""})
	}
	runCases(t, s, a, "application/json", cases)
}

// rejectedBodies is a body for each step that rejects one.
func rejectedBodies() map[reason]string {
	return map[reason]string{
		reasonTooLarge:  padded("rejected", 64<<10+1),
		reasonMalformed: order("rejected", "1") + "x",
		reasonRefID:     order("", "1"),
		reasonSignature: order("rejected", "1", "sign", quote(flipLast(sign("rejected")))),
		reasonField:     order("rejected", "7"),
	}
}

// What is rejected reaches no store: not one byte is sent to Redis, not even to
// connect.
func TestRejectedReachNoRedis(t *testing.T) {
	redis := startRedis(t)
	conn, err := net.Dial("tcp", redis.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	// counters are the connections so far and all calls but those of INFO.
	counters := func() (connections string, commands []string) {
		t.Helper()
		if _, err := io.WriteString(conn, "INFO everything\r\n"); err != nil {
			t.Fatal(err)
		}
		length, err := answers.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(length[1:]))
		if err != nil {
			t.Fatal(err)
		}
		info := make([]byte, n+2)
		if _, err := io.ReadFull(answers, info); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			line = strings.TrimSpace(line)
			switch {
			case strings.HasPrefix(line, "total_connections_received:"):
				connections = line
			case strings.HasPrefix(line, "cmdstat_") && !strings.HasPrefix(line, "cmdstat_info"):
				calls, _, _ := strings.Cut(line, ",")
				commands = append(commands, calls)
			}
		}
		return connections, commands
	}
	connections, commands := counters()
	s, a := rejectSite(t, "redis "+redis.url())
	for reason, body := range rejectedBodies() {
		if got := s.post(body); got.status == 200 || got.body != string(reason) {
			t.Errorf("answer %d %q, want %q", got.status, got.body, reason)
		}
	}
	if c, calls := counters(); c != connections || !slices.Equal(calls, commands) {
		t.Errorf("rejected callbacks reached Redis: %s %v, before %s %v", c, calls, connections, commands)
	}
	s.post(order("rejected", "1")).is(t, 200, "") // and it is the store that is asked
	if c, calls := counters(); c == connections || slices.Equal(calls, commands) {
		t.Error("an accepted callback did not reach Redis")
	}
	if n := len(a.received()); n != 1 {
		t.Errorf("the app received %d requests, want 1", n)
	}
}

// What is rejected does not even create the embedded store's file.
func TestRejectedReachNoFile(t *testing.T) {
	s, _ := rejectSite(t)
	file := filepath.Join(s.dir, "caddy", "iak_callback", "records.db")
	for reason, body := range rejectedBodies() {
		if got := s.post(body); got.status == 200 || got.body != string(reason) {
			t.Errorf("answer %d %q, want %q", got.status, got.body, reason)
		}
	}
	if _, err := os.Stat(filepath.Dir(file)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a rejected callback opened the store: %v", err)
	}
	s.post(order("rejected", "1")).is(t, 200, "")
	if _, err := os.Stat(file); err != nil {
		t.Errorf("an accepted callback did not: %v", err)
	}
}

// references are all inputs of IAK's reference.
func references(t testing.TB) map[string]string {
	t.Helper()
	inputs := make(map[string]string)
	for _, example := range []string{"game", "esim", "other", "failed"} {
		for _, input := range []string{"v1.json", "v1.xml", "v2.json", "v2.xml"} {
			inputs[example+"."+input] = reference(t, example+"."+input)
		}
	}
	return inputs
}

// A document that is cut off at any byte, or comes twice, is malformed.
func TestDecodeCutOff(t *testing.T) {
	for name, body := range references(t) {
		body = strings.TrimSpace(body)
		if _, err := decode([]byte(body)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for n := range len(body) {
			if _, err := decode([]byte(body[:n])); err == nil {
				t.Errorf("%s: the first %d bytes are accepted", name, n)
			}
		}
		for _, between := range []string{"", "\n", ",", "\x00"} {
			if _, err := decode([]byte(body + between + body)); err == nil {
				t.Errorf("%s: accepted twice with %q between", name, between)
			}
		}
	}
}

// Errors say what is wrong and never quote the document, which holds goods.
func TestDecodeErrorsQuoteNothing(t *testing.T) {
	const secret = "5ECRET"
	for _, body := range []string{
		`{"data":{"sn":"` + secret + `","sn":"` + secret + `"}}`,
		`{"data":{"` + secret + `":1,"` + secret + `":1}}`,
		`{"data":{"sn":"` + secret + `\x"}}`,
		`{"data":{"sn":` + secret + `}}`,
		`{"data":{"sn":"` + secret,
		`{"data":{}}` + secret,
		`{"` + secret + `":{"a":[}`,
		`<mp><sn>` + secret + `</sm></mp>`,
		`<mp><` + secret + `>`,
		`<mp>` + secret + `</mp>`,
		`<` + secret + `/>`,
		`<mp><sn>&` + secret + `;</sn></mp>`,
		`<mp><a ` + secret + `></mp>`,
		`<mp><` + secret + `/><` + secret + `/></mp>`,
		`<?xml version="1.0" encoding="` + secret + `"?><mp/>`,
		`<?xml version="` + secret + `"?><mp/>`,
		`<!DOCTYPE ` + secret + `><mp/>`,
		`<mp/>` + secret,
	} {
		_, err := decode([]byte(body))
		if err == nil {
			t.Errorf("%s is accepted", body)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("the error %q quotes the document", err)
		}
	}
}

// Numbers keep the digits that were sent, at any length.
func TestDecodeNumbers(t *testing.T) {
	for _, digits := range []string{
		"0", "-0", "1.0", "1.50", "1e5", "1E+05", "12345678901234567890", "0.1000000000000000055511151231257827",
		strings.Repeat("1234567890", 100), "0." + strings.Repeat("1234567890", 100), "1e" + strings.Repeat("9", 100),
	} {
		c, err := decode([]byte(order("n", "1", "price", digits, "tr_id", digits, "unknown", digits)))
		if err != nil {
			t.Fatal(err)
		}
		c.refID = "n"
		if err := c.checkFields(false); err != nil {
			t.Fatalf("%s: %v", abbreviate(digits), err)
		}
		for _, name := range []string{"price", "tr_id", "unknown"} {
			if got := c.find(name); got != (value{number, digits}) {
				t.Errorf("%s is %q, want %q", name, got.text, digits)
			}
			if iak := string(c.appendIAK(nil)); !strings.Contains(iak, quote(name)+":"+quote(digits)) {
				t.Errorf("body iak has not %s %q: %s", name, digits, iak)
			}
		}
		if flat := string(c.appendFlat(nil)); !strings.Contains(flat, `"price":`+digits+`,`) {
			t.Errorf("body flat has not the price %s: %s", digits, flat)
		}
	}
}

// Hostile bodies leave no memory behind.
func TestDecodeMemory(t *testing.T) {
	const size = 64 << 10
	fill := func(s string) string { return strings.Repeat(s, size/len(s)) }
	var names, elements strings.Builder
	for i := 0; names.Len() < size-100; i++ {
		fmt.Fprintf(&names, `"%x":%d,`, i, i)
	}
	for i := 0; elements.Len() < size-100; i++ {
		fmt.Fprintf(&elements, `<a%x/>`, i)
	}
	bodies := []string{
		fill("["), fill(`{"data":`), fill(`{"a":`), `{"data":{"a":` + fill("["), `{"data":{` + names.String(), `{"data":{` + names.String() + `"x":1}}`,
		`{"data":{"a":"` + fill(`\u0041`), `{"data":{"a":` + fill("1"), `{"data":{"a":[` + fill("1,"), fill(" "), fill("{"), "{" + fill("\x00"),
		fill("<mp>"), "<mp>" + elements.String(), "<mp>" + elements.String() + "</mp>", "<mp " + fill("a='b' "), "<mp " + fill("xmlns:a='b' ") + ">",
		"<mp>" + fill("&#65;"), "<mp>" + fill("<![CDATA[x]]>"), "<mp><!--" + fill("-"), "<!DOCTYPE mp [" + fill("<!ENTITY a 'b'>"),
		"<?xml " + fill("encoding='GBK' ") + "?>", `<?xml version="1.0" encoding="GBK"?><mp>` + fill("\xb2\xe2"), fill("<"), utf16Text(true, fill("<a>")[:size/2]),
		fill("<?xml version='1.0' encoding='ISO-8859-1'?>"),
	}
	round := func() {
		for _, body := range bodies {
			_, _ = decode([]byte(body))
		}
	}
	inUse := func() uint64 {
		runtime.GC()
		runtime.GC() // empties sync.Pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	round() // fills what is filled once
	before := inUse()
	for range 2000/len(bodies) + 1 {
		round()
	}
	const bound = 8 << 20
	if after := inUse(); after > before+bound {
		t.Errorf("2,000 hostile bodies leave %d bytes behind", after-before)
	}
}

// passed leads a body through all steps before the claim but the comparison of
// the signature, which no mutation would pass: a sign of 32 hex digits is taken
// for right.
func passed(body []byte, lenient bool) (*callback, error) {
	c, err := decode(body)
	if err != nil {
		return nil, err
	}
	if err := c.checkRefID(); err != nil {
		return nil, err
	}
	given := c.find("sign")
	if given.kind != text || len(given.text) != 32 || strings.Trim(given.text, "0123456789abcdefABCDEF") != "" {
		return nil, errSignature
	}
	return c, c.checkFields(lenient)
}

// Whatever is done to the reference's examples, nothing panics, and what is
// accepted comes out as valid JSON that says the same, and that the module, fed
// with it again, leaves as it is.
func TestMutations(t *testing.T) {
	inputs := references(t)
	names := slices.Sorted(maps.Keys(inputs))
	random := rand.New(rand.NewSource(1))
	accepted := 0
	for i := range 40_000 {
		name := names[random.Intn(len(names))]
		body := []byte(inputs[name])
		for range 1 + random.Intn(4) {
			body = mutate(random, body, inputs[names[random.Intn(len(names))]])
		}
		lenient := i%2 == 0
		c, err := passed(body, lenient)
		if err != nil {
			continue
		}
		accepted++
		if problem := checkOutput(c, lenient); problem != "" {
			t.Fatalf("mutation %d of %s: %s\nfrom %q", i, name, problem, body)
		}
	}
	if accepted < 4_000 {
		t.Errorf("only %d mutations were accepted: the mutator is too coarse to show anything", accepted)
	}
}

// checkOutput says what is wrong with the output for an accepted callback.
func checkOutput(c *callback, lenient bool) string {
	iak, flat := c.appendIAK(nil), c.appendFlat(nil)
	if !json.Valid(iak) {
		return fmt.Sprintf("body iak is not JSON: %q", iak)
	}
	if !json.Valid(flat) {
		return fmt.Sprintf("body flat is not JSON: %q", flat)
	}
	again, err := passed(iak, lenient)
	if err != nil {
		return fmt.Sprintf("body iak is rejected: %v: %s", err, iak)
	}
	if again.refID != c.refID || again.status != c.status {
		return fmt.Sprintf("ref_id and status %q %s became %q %s", c.refID, c.status, again.refID, again.status)
	}
	for f, v := range c.fields {
		got, want := again.fields[f], v.text
		switch field(f) {
		case fieldStatus:
			want = c.status.digit()
		case fieldSign:
			want = strings.ToLower(want)
		}
		if got.text != want || (got.kind == absent) != (v.kind == absent) {
			return fmt.Sprintf("%s %q became %q", field(f), v.text, got.text)
		}
	}
	if !slices.EqualFunc(c.extra, again.extra, func(a, b member) bool { return a.name == b.name && a.value.text == b.value.text }) {
		return fmt.Sprintf("unknown fields %q became %q", c.extra, again.extra)
	}
	if again.fingerprint("test") != c.fingerprint("test") || again.idempotencyKey("test", false) != c.idempotencyKey("test", false) {
		return "the fingerprint or the Idempotency-Key changes"
	}
	if twice := again.appendIAK(nil); !bytes.Equal(twice, iak) {
		return fmt.Sprintf("body iak is not the same the second time:\n%s\n%s", iak, twice)
	}
	if twice := again.appendFlat(nil); !bytes.Equal(twice, flat) {
		return fmt.Sprintf("body flat is not the same the second time:\n%s\n%s", flat, twice)
	}
	return ""
}

// mutate changes a document a little.
func mutate(random *rand.Rand, body []byte, other string) []byte {
	at := func() int { return random.Intn(len(body) + 1) }
	pick := func(from []string) string { return from[random.Intn(len(from))] }
	insert := func(i int, s string) []byte { return slices.Concat(body[:i], []byte(s), body[i:]) }
	switch random.Intn(9) {
	case 0: // one byte becomes another
		if len(body) > 0 {
			body = slices.Clone(body)
			body[random.Intn(len(body))] = byte(random.Intn(256))
		}
		return body
	case 1: // one bit flips
		if len(body) > 0 {
			body = slices.Clone(body)
			body[random.Intn(len(body))] ^= 1 << random.Intn(8)
		}
		return body
	case 2: // something special anywhere
		return insert(at(), pick(special))
	case 3: // something special inside a value
		i := bytes.Index(body, []byte(pick(insideValues)))
		if i < 0 {
			return body
		}
		return insert(i, pick(special))
	case 4: // a piece is lost
		i := at()
		return slices.Concat(body[:i], body[min(len(body), i+random.Intn(8)):])
	case 5: // a piece comes twice
		i := at()
		piece := string(body[i:min(len(body), i+random.Intn(40))])
		return insert(at(), piece)
	case 6: // a piece of another document
		i := random.Intn(len(other))
		return insert(at(), other[i:min(len(other), i+random.Intn(40))])
	case 7: // a new field
		if i := bytes.Index(body, []byte("<ref_id>")); i >= 0 {
			return insert(i, pick(newElements))
		}
		if i := bytes.Index(body, []byte(`"ref_id"`)); i >= 0 {
			return insert(i, pick(newMembers))
		}
		return body
	default: // another value
		return bytes.Replace(body, []byte(pick(insideValues)), []byte(pick(special)), 1)
	}
}

var (
	insideValues = []string{"order00", "SUCCESS", "FAILED", "ABCD", "123456789", "hsteam12000", "0817777215", "3487", "16500", "00", "996994749"}
	special      = []string{
		"", " ", "\t", "\n", "\r\n", "\x00", "\x7f", "\u0085", "\u00a0", "\u2028", "\ufeff", "\ufffd", "\uffff", "ü", "😀", "\xff", "\xed\xa0\x80", `"`, `\`, `\"`, `\\`, `\/`,
		`\u0000`, `\u0041`, `\u00e9`, `\ud83d\ude00`, `\ud800`, `\ufffd`, `\n`, "'", "<", ">", "&", "&amp;", "&lt;", "&#13;", "&#xD800;", "&#x1F600;", "&#0;", "<![CDATA[ x ]]>", "]]>",
		"<!-- x -->", "<a/>", "<?a b?>", "{", "}", "[", "]", ",", ":", "null", "true", "1", "-1", "1e5", "007", "0.10", "1.00000000000000000001", "+5", "{}", "[]", `<?xml version="1.0" encoding="GBK"?>`,
		"ISO-8859-1", "windows-1252", "GBK", "UTF-16",
	}
	newMembers = []string{
		`"a":"x",`, `"a":1.50,`, `"b":true,`, `"c":null,`, `"d":[1,{"e":2}],`, `"":"x",`, `"\u0000":"\u0001",`, `"a\"b":"\/",`, `"\u2028":"<&>",`, `"STATUS":"1",`, `"status":1.0,`,
		`"sn":"x",`, `"pin":5,`, `"activation_code":"",`, `"product_code":"hsteam12000",`, `"code":"hsteam12000",`, `"customer_id":817777215,`, `"sign":"x",`, `"extra":{},`, `"data":"x",`,
	}
	newElements = []string{
		"<a>x</a>", "<a/>", "<b><c/></b>", "<x:a> y </x:a>", "<d>&#13;</d>", "<e><![CDATA[<]]></e>", "<STATUS>1</STATUS>", "<sn>x</sn>", "<pin> 5 </pin>", "<activation_code/>",
		"<product_code>hsteam12000</product_code>", "<code>hsteam12000</code>", "<ü>ü</ü>", "<data>x</data>", "<extra/>", "<f>\u0085</f>",
	}
)

// The memory that callbacks share one after the other holds nothing of another
// callback, nor does what a callback has given away change with the next.
func TestMemoryOfCallbacks(t *testing.T) {
	type kept struct{ got, want string }
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			var all []kept
			for i := range 200 {
				name := fmt.Sprintf("order-%d-%d", worker, i)
				members := []string{}
				if i%3 == 0 { // more members than documented, and one that is escaped
					for n := range 10 * (i % 7) {
						members = append(members, fmt.Sprint("note", n), quote(name+"\n"))
					}
				}
				body := order(name, fmt.Sprint(i%2+1), members...)
				want, err := decode([]byte(body)) // memory of its own, since it is never given back
				if err == nil {
					err = want.checkFields(false)
				}
				if err != nil {
					t.Error(err)
					return
				}
				r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
				c, rejected := receive(r, defaultMaxBodySize)
				if rejected != nil {
					t.Error(rejected.err)
					return
				}
				if err := errors.Join(c.checkRefID(), c.checkFields(false)); err != nil {
					t.Error(err)
				}
				all = append(all,
					kept{c.refID, name},
					kept{string(c.appendIAK(nil)), string(want.appendIAK(nil))},
					kept{string(c.appendFlat(nil)), strings.Replace(string(want.appendFlat(nil)), `"ref_id":""`, `"ref_id":"`+name+`"`, 1)})
				c.done()
			}
			for _, k := range all {
				if k.got != k.want {
					t.Errorf("%s\nwant\n%s", k.got, k.want)
				}
			}
		})
	}
	wg.Wait()
}
