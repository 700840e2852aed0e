package integration

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// reasonRoute makes handle_errors answer with the reason of a rejection.
const reasonRoute = `
handle_errors {
	respond "{http.iak_callback.reason}" {err.status_code}
}`

// rejectSite starts a site that answers a rejection with its reason, in front
// of an app.
func rejectSite(t *testing.T, options ...string) (*sitetest.Site, *sitetest.App) {
	t.Helper()
	a := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, rejectBlock(a, options...))
	return s, a
}

func rejectBlock(a *sitetest.App, options ...string) string {
	return "iak_callback {\n" + sitetest.Account + "\n" + strings.Join(options, "\n") + "\n}\nreverse_proxy " + a.Addr() + reasonRoute
}

// callbackCase is one request and the step that ends its way. A status of 200
// means that the app receives it.
type callbackCase struct {
	name   string
	body   string
	status int
	reason string
}

// run sends each case with its media type and checks its answer, and that the
// app is asked only for what passes every step.
func runCases(t *testing.T, s *sitetest.Site, a *sitetest.App, contentType string, cases []callbackCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := len(a.Received())
			got := s.Send(contentType, c.body)
			got.Is(t, c.status, c.reason)
			if forwarded := len(a.Received()) - before; forwarded != btoi(c.status == 200) {
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

// fresh returns a function that makes a complete callback with a ref_id of its
// own at each call, so that no case meets the record of another.
func fresh(prefix string) func(changes ...string) string {
	n := 0
	return func(changes ...string) string {
		n++
		return sitetest.Order(fmt.Sprint(prefix, n), "1", changes...)
	}
}

// freshXML is fresh for orderXML.
func freshXML(prefix string) func(changes ...string) string {
	n := 0
	return func(changes ...string) string {
		n++
		return sitetest.OrderXML(fmt.Sprint(prefix, n), changes...)
	}
}

// Only POST passes, and 405 says so; the method is looked at before anything
// else.
func TestRejectMethod(t *testing.T) {
	s, a := rejectSite(t)
	for _, method := range []string{"GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post", "Post", "POSTS", "PROPFIND"} {
		t.Run(method, func(t *testing.T) {
			r, err := http.NewRequest(method, s.URL, strings.NewReader(sitetest.Order("method", "1")))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "image/png")
			r.Header.Set("Content-Encoding", "gzip")
			s.Do(r).Is(t, 405, "method")
		})
	}
	t.Run("HEAD", func(t *testing.T) {
		r, _ := http.NewRequest("HEAD", s.URL, nil)
		s.Do(r).Is(t, 405, "") // an answer to HEAD has no body
	})
	if n := len(a.Received()); n != 0 {
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
			before := len(a.Received())
			r, _ := http.NewRequest("POST", s.URL, strings.NewReader(body()))
			r.Header.Set("Content-Type", "application/json")
			r.Header["Content-Encoding"] = test.codings
			var why string
			if test.status == 415 {
				why = "media_type"
			}
			s.Do(r).Is(t, test.status, why)
			if test.status != 200 {
				return
			}
			if len(a.Received()) != before+1 {
				t.Fatal("the app received nothing")
			}
			if got := a.Last(t).Header.Values("Content-Encoding"); len(got) > 0 {
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
		"application/json; charset=utf-8; charset=iso-8859-1", "text/xml; charset=utf-8; charset=utf-8", `application/json; charset="utf-8`,
		"application/json; =;; x y z; \xff", "application/json ; boundary=a,b",
	}
	silent := []string{
		"", "text/plain", "TEXT/PLAIN", "text/plain; charset=utf-8", "application/octet-stream",
		"application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=UTF-8",
		"text/plain; charset=utf-8; charset=us-ascii",
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
			{"declared " + contentType + "/text", "status=1", 400, "malformed"},
			{"declared " + contentType + "/nothing", "", 400, "malformed"},
		})
		if got := a.Last(t).Body; !strings.Contains(got, `"message":"ü"`) {
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
			{"silent " + contentType + "/form", "ref_id=1&status=1", 415, "media_type"},
			{"silent " + contentType + "/form with JSON", "data=" + freshJSON(), 415, "media_type"},
			{"silent " + contentType + "/list", "[" + freshJSON() + "]", 415, "media_type"},
			{"silent " + contentType + "/string", `"x"`, 415, "media_type"},
			{"silent " + contentType + "/nothing", "", 415, "media_type"},
			{"silent " + contentType + "/white space", bom + " \n", 415, "media_type"},
			{"silent " + contentType + "/two byte order marks", bom + bom + freshJSON(), 415, "media_type"},
			{"silent " + contentType + "/no-break space", "\u00a0" + freshJSON(), 415, "media_type"},
			{"silent " + contentType + "/NUL", "\x00" + freshJSON(), 415, "media_type"},
			{"silent " + contentType + "/broken JSON", "{", 400, "malformed"},
			{"silent " + contentType + "/broken XML", "<", 400, "malformed"},
		})
	}
	for _, contentType := range wrong {
		runCases(t, s, a, contentType, []callbackCase{
			{"wrong " + contentType + "/JSON", freshJSON(), 415, "media_type"},
			{"wrong " + contentType + "/XML", freshXML(), 415, "media_type"},
			{"wrong " + contentType + "/nothing", "", 415, "media_type"},
		})
	}
	t.Run("two Content-Types", func(t *testing.T) {
		for _, types := range [][]string{{"application/json", "text/html"}, {"application/json", "application/json"}} {
			r, _ := http.NewRequest("POST", s.URL, strings.NewReader(freshJSON()))
			r.Header["Content-Type"] = types
			s.Do(r).Is(t, 415, "media_type")
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
		reason                          string
	}{
		{"media type before size", "text/html", "", large + "{", 415, "media_type"},
		{"coding before size", "application/json", "gzip", large, 415, "media_type"},
		{"size before form", "application/json", "", large + "{", 413, "too_large"},
		{"size before a silent media type", "text/plain", "", large + "x", 413, "too_large"},
		{"form before ref_id", "application/json", "", sitetest.Order("", "9", "sign", "") + "x", 400, "malformed"},
		{"ref_id before signature and fields", "application/json", "", sitetest.Order("", "9", "sign", `"x"`), 422, "ref_id"},
		{"signature before status", "application/json", "", sitetest.Order("a", "9", "sign", `"x"`), 403, "signature"},
		{"signature before names", "application/json", "", sitetest.Order("a", "1", "sign", `"x"`, "STATUS", `"1"`), 403, "signature"},
		{"signature before missing fields", "application/json", "", sitetest.Order("a", "1", "sign", `"x"`, "price", ""), 403, "signature"},
		{"signature before contradictions", "application/json", "", sitetest.Order("a", "1", "sign", `"x"`, "product_code", `"x"`), 403, "signature"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, _ := http.NewRequest("POST", s.URL, strings.NewReader(test.body))
			r.Header.Set("Content-Type", test.contentType)
			if test.coding != "" {
				r.Header.Set("Content-Encoding", test.coding)
			}
			s.Do(r).Is(t, test.status, test.reason)
		})
	}
	if n := len(a.Received()); n != 0 {
		t.Errorf("the app received %d requests", n)
	}
}

// padded is a callback of exactly size bytes.
func padded(refID string, size int) string {
	body := sitetest.Order(refID, "1", "padding", `""`)
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

func testLimit(t *testing.T, s *sitetest.Site, a *sitetest.App, limit int) {
	t.Helper()
	for _, test := range []struct {
		name    string
		size    int
		chunked bool
		status  int
		reason  string
	}{
		{"the limit", limit, false, 200, ""},
		{"the limit in chunks", limit, true, 200, ""},
		{"one byte more", limit + 1, false, 413, "too_large"},
		{"one byte more in chunks", limit + 1, true, 413, "too_large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(a.Received())
			s.Upload(t, padded(test.name, test.size), test.chunked).Is(t, test.status, test.reason)
			if forwarded := len(a.Received()) - before; forwarded != btoi(test.status == 200) {
				t.Errorf("the app received %d requests", forwarded)
			}
		})
	}
	t.Run("declared, never sent", func(t *testing.T) {
		_, answers := s.Raw(t, sitetest.Head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(limit+1)))
		sitetest.RawReply(t, answers).Is(t, 413, "too_large")
	})
	t.Run("endless", func(t *testing.T) {
		chunk := strings.Repeat(" ", limit+1)
		_, answers := s.Raw(t, sitetest.Head("Content-Type: application/json", "Transfer-Encoding: chunked")+
			fmt.Sprintf("%x\r\n%s\r\n", len(chunk), chunk))
		sitetest.RawReply(t, answers).Is(t, 413, "too_large")
	})
}

// A request_body directive in front may be stricter: what it cuts off is too
// large, not incomplete.
func TestRejectRequestBodyLimit(t *testing.T) {
	a := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, "request_body {\nmax_size 1000\n}\n"+rejectBlock(a))
	for _, test := range []struct {
		size   int
		status int
		reason string
	}{{1000, 200, ""}, {1001, 413, "too_large"}, {100_000, 413, "too_large"}} {
		s.Upload(t, padded("a", test.size), true).Is(t, test.status, test.reason)
	}
	// With a declared length it answers by itself, before this module is asked.
	if got := s.Upload(t, padded("b", 1001), false); got.Status != 413 {
		t.Errorf("declared: status %d", got.Status)
	}
	if n := len(a.Received()); n != 1 {
		t.Errorf("the app received %d requests, want 1", n)
	}
}

// What the header is enough to refuse is refused before the body is asked for
// with 100 Continue; what it is not, is asked for.
func TestRejectBeforeContinue(t *testing.T) {
	s, a := rejectSite(t)
	body := sitetest.Order("continue", "1")
	length := "Content-Length: " + strconv.Itoa(len(body))
	for _, test := range []struct {
		name   string
		head   string
		status int
		reason string
	}{
		{"method", strings.Replace(sitetest.Head("Content-Type: application/json", length, "Expect: 100-continue"), "POST", "PUT", 1), 405, "method"},
		{"media type", sitetest.Head("Content-Type: text/html", length, "Expect: 100-continue"), 415, "media_type"},
		{"coding", sitetest.Head("Content-Type: application/json", "Content-Encoding: gzip", length, "Expect: 100-continue"), 415, "media_type"},
		{"too large", sitetest.Head("Content-Type: application/json", "Content-Length: 65537", "Expect: 100-continue"), 413, "too_large"},
		{"no objection", sitetest.Head("Content-Type: application/json", length, "Expect: 100-continue"), 100, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, answers := s.Raw(t, test.head)
			sitetest.RawReply(t, answers).Is(t, test.status, test.reason)
			if test.status != 100 {
				return
			}
			if n := len(a.Received()); n != 0 {
				t.Errorf("the app received %d requests before the body", n)
			}
			if _, err := io.WriteString(conn, body); err != nil {
				t.Fatal(err)
			}
			sitetest.RawReply(t, answers).Is(t, 200, "")
			if got := a.Last(t).Header.Values("Expect"); len(got) > 0 {
				t.Errorf("the app received Expect %q", got)
			}
		})
	}
}

// A body that ends too early is 400: nothing of it reaches the app, even when
// what came is a whole callback.
func TestRejectCutOff(t *testing.T) {
	s, a := rejectSite(t)
	body := sitetest.Order("cut", "1")
	chunk := fmt.Sprintf("%x\r\n%s\r\n", len(body), body)
	for _, test := range []struct{ name, request string }{
		{"nothing came", sitetest.Head("Content-Type: application/json", "Content-Length: 500")},
		{"half of it", sitetest.Head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body))) + body[:len(body)/2]},
		{"all but the last byte", sitetest.Head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body))) + body[:len(body)-1]},
		{"a whole document, more declared", sitetest.Head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body)+1)) + body},
		{"a silent media type", sitetest.Head("Content-Length: 500") + "{"},
		{"chunks without an end", sitetest.Head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunk},
		{"in the middle of a chunk", sitetest.Head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunk[:len(chunk)/2]},
		{"before the first chunk", sitetest.Head("Content-Type: application/json", "Transfer-Encoding: chunked")},
		{"the last chunk without its end", sitetest.Head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunk + "0\r\n"},
		{"a broken chunk", sitetest.Head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunk + "zz\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			conn, answers := s.Raw(t, test.request)
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			sitetest.RawReply(t, answers).Is(t, 400, "incomplete")
		})
	}
	t.Run("nobody waits for the answer", func(t *testing.T) {
		before := len(s.CallbackLines())
		conn, _ := s.Raw(t, sitetest.Head("Content-Type: application/json", "Content-Length: 500")+body)
		conn.Close()
		sitetest.Eventually(t, "the cut-off callback is logged", func() bool { return len(s.CallbackLines()) > before })
		if line := s.CallbackLines()[before]; line["outcome"] != "rejected" || line["reason"] != "incomplete" {
			t.Errorf("logged as %v %v", line["outcome"], line["reason"])
		}
	})
	if n := len(a.Received()); n != 0 {
		t.Errorf("the app received %d requests", n)
	}
}

// A body that comes too slowly for the server's timeouts is 408, whether it
// pauses or trickles.
func TestRejectTooSlow(t *testing.T) {
	s, a := rejectSite(t)
	body := sitetest.Order("slow", "1")
	for _, timeouts := range []string{"read_body_idle 150ms", "read_body 150ms"} {
		s.Reopen(t, "servers {\ntimeouts {\n"+timeouts+"\n}\n}", rejectBlock(a))
		for _, test := range []struct{ name, request string }{
			{"nothing comes", sitetest.Head("Content-Type: application/json", "Content-Length: 500")},
			{"it pauses", sitetest.Head("Content-Type: application/json", "Content-Length: "+strconv.Itoa(len(body))) + body[:10]},
			{"it pauses after a whole document", sitetest.Head("Content-Type: application/json", "Content-Length: 500") + body},
			{"a chunk does not come", sitetest.Head("Content-Type: application/json", "Transfer-Encoding: chunked") + "5\r\n{\"dat\r\n"},
			{"a silent media type", sitetest.Head("Content-Length: 500") + "x"},
		} {
			t.Run(timeouts+"/"+test.name, func(t *testing.T) {
				_, answers := s.Raw(t, test.request)
				sitetest.RawReply(t, answers).Is(t, 408, "incomplete")
			})
		}
	}
	if n := len(a.Received()); n != 0 {
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
		cases = append(cases, callbackCase{name, body, 400, "malformed"})
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
		cases = append(cases, callbackCase{name, body, 400, "malformed"})
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
		malformed("a reference to "+name+" in ref_id", ok("ref_id", reference, "sign", sitetest.Sign("\ufffd")))
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
			before := len(a.Received())
			got := s.Send("application/xml; charset=us-ascii", test.body)
			if test.want == "" {
				got.Is(t, 400, "malformed")
				if len(a.Received()) != before {
					t.Errorf("the app received %s", a.Last(t).Body)
				}
				return
			}
			got.Is(t, 200, "")
			if len(a.Received()) == before {
				return
			}
			if body := a.Last(t).Body; !strings.Contains(body, `"message":`+sitetest.Quote(test.want)) {
				t.Errorf("the app received %s", body)
			}
		})
	}
}

// The ref_id is a string or a number of 1 to 255 bytes without control
// characters, in the form that the signature covers.
func TestRejectRefID(t *testing.T) {
	s, a := rejectSite(t)
	withRefID := func(json, text string) string {
		return sitetest.Order("", "1", "ref_id", json, "sign", sitetest.Quote(sitetest.Sign(text)))
	}
	str := func(text string) string { return withRefID(sitetest.Quote(text), text) }
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

		{"missing", withRefID("", ""), 422, "ref_id"},
		{"missing, another case there", strings.Replace(str("case"), `"ref_id"`, `"REF_ID"`, 1), 422, "ref_id"},
		{"null", withRefID("null", ""), 422, "ref_id"},
		{"empty", str(""), 422, "ref_id"},
		{"true", withRefID("true", "true"), 422, "ref_id"},
		{"a list", withRefID(`["x"]`, "x"), 422, "ref_id"},
		{"an object", withRefID(`{"x":"x"}`, "x"), 422, "ref_id"},
		{"256 bytes", str(strings.Repeat("r", 256)), 422, "ref_id"},
		{"256 bytes in two-byte characters", str(strings.Repeat("ü", 128)), 422, "ref_id"},
		{"a number of 256 digits", withRefID(digits[:256], digits[:256]), 422, "ref_id"},
		{"NUL", str("a\x00b"), 422, "ref_id"},
		{"only NUL", str("\x00"), 422, "ref_id"},
		{"a newline behind", str("a\n"), 422, "ref_id"},
		{"a carriage return", str("a\rb"), 422, "ref_id"},
		{"a tab", str("a\tb"), 422, "ref_id"},
		{"U+001F", str("\x1f"), 422, "ref_id"},
		{"U+007F", str("\x7f"), 422, "ref_id"},
		{"U+0080", str("\u0080"), 422, "ref_id"},
		{"U+0085", str("\u0085"), 422, "ref_id"},
		{"U+009F", str("\u009f"), 422, "ref_id"},
	})
	runCases(t, s, a, "application/xml", []callbackCase{
		{"XML", sitetest.OrderXML("xml"), 200, ""},
		{"XML with white space around", sitetest.OrderXML("xml2", "ref_id", "\n  <![CDATA[ xml2 ]]>\t"), 200, ""},
		{"XML empty", sitetest.OrderXML(""), 422, "ref_id"},
		{"XML white space", sitetest.OrderXML("", "ref_id", " \n "), 422, "ref_id"},
		{"XML with children", sitetest.OrderXML("", "ref_id", "<a>x</a>"), 422, "ref_id"},
		{"XML missing", strings.Replace(sitetest.OrderXML("x"), "ref_id>", "refid>", 2), 422, "ref_id"},
		{"XML with a newline inside", sitetest.OrderXML("", "ref_id", "a\nb", "sign", sitetest.Sign("a\nb")), 422, "ref_id"},
		{"XML with a control character", sitetest.OrderXML("", "ref_id", "a&#x7f;b", "sign", sitetest.Sign("a\x7fb")), 422, "ref_id"},
	})
}

// The sign is a string of 32 hex digits in either case, and right.
func TestRejectSign(t *testing.T) {
	for _, validate := range []string{"strict", "lenient"} {
		t.Run(validate, func(t *testing.T) {
			s, a := rejectSite(t, "validate "+validate, "account other 0899 other-key")
			const refID = "signed"
			right := sitetest.Sign(refID)
			n := 0
			signed := func(json string) string { return sitetest.Order(refID, "1", "sign", json) }
			accepted := func(transform func(string) string) string {
				n++
				r := fmt.Sprint(refID, n)
				return sitetest.Order(r, "1", "sign", sitetest.Quote(transform(sitetest.Sign(r))))
			}
			runCases(t, s, a, "application/json", []callbackCase{
				{"lower case", accepted(strings.ToLower), 200, ""},
				{"upper case", accepted(strings.ToUpper), 200, ""},
				{"mixed case", accepted(func(s string) string { return strings.ToUpper(s[:9]) + s[9:] }), 200, ""},
				{"the other account", sitetest.Order("other", "1", "sign", sitetest.Quote(sitetest.SignedBy("0899", "other-key", "other"))), 200, ""},

				{"missing", signed(""), 403, "signature"},
				{"missing, another case there", strings.Replace(signed(sitetest.Quote(right)), `"sign"`, `"Sign"`, 1), 403, "signature"},
				{"null", signed("null"), 403, "signature"},
				{"empty", signed(`""`), 403, "signature"},
				{"true", signed("true"), 403, "signature"},
				{"a list", signed("[" + sitetest.Quote(right) + "]"), 403, "signature"},
				{"an object", signed(`{"sign":` + sitetest.Quote(right) + `}`), 403, "signature"},
				{"a number", signed("12345678901234567890123456789012"), 403, "signature"},
				{"31 digits", signed(sitetest.Quote(right[:31])), 403, "signature"},
				{"33 digits", signed(sitetest.Quote(right + "0")), 403, "signature"},
				{"no hex digit", signed(sitetest.Quote(right[:31] + "g")), 403, "signature"},
				{"white space around", signed(sitetest.Quote(" " + right + " ")), 403, "signature"},
				{"one digit off", signed(sitetest.Quote(sitetest.FlipLast(right))), 403, "signature"},
				{"of another ref_id", signed(sitetest.Quote(sitetest.Sign("another"))), 403, "signature"},
				{"of another key", signed(sitetest.Quote(sitetest.SignedBy(sitetest.Username, "test-api-key-2", refID))), 403, "signature"},
				{"of two accounts at once", signed(sitetest.Quote(sitetest.SignedBy(sitetest.Username, "other-key", refID))), 403, "signature"},
				{"of nothing", signed(sitetest.Quote(sitetest.Sign(""))), 403, "signature"},
			})
		})
	}
}

// No answer tells how near a signature came, or to which account: status,
// headers and body are the same for all.
func TestRejectSignAlike(t *testing.T) {
	a := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\naccount other 0899 other-key\n}\nreverse_proxy "+a.Addr())
	right := sitetest.Sign("alike")
	var first sitetest.Reply
	for i, sent := range []string{
		sitetest.Quote(strings.Repeat("0", 32)), sitetest.Quote(sitetest.FlipLast(right)), sitetest.Quote(sitetest.FlipFirst(right)), sitetest.Quote(right[:31]), sitetest.Quote(right + "0"),
		sitetest.Quote(sitetest.Sign("other")), sitetest.Quote(sitetest.SignedBy("0899", "other-key", "alik")), "", "null", "true", "1", "{}", `"g"`,
	} {
		got := s.Post(sitetest.Order("alike", "1", "sign", sent))
		got.Header.Del("Date")
		if i == 0 {
			first = got
		}
		if got.Status != 403 || got.Body != first.Body || !maps.EqualFunc(got.Header, first.Header, slices.Equal) {
			t.Errorf("sign %s: answer %v, want %v", sent, got, first)
		}
	}
	if n := len(a.Received()); n != 0 {
		t.Errorf("the app received %d requests", n)
	}
}

// The fields that IAK documents, and those of them that strict validation asks
// for beside ref_id, status and sign.
var (
	fieldNames = []string{
		"ref_id", "status", "code", "hp", "product_code", "customer_id", "price", "message", "sn", "pin", "activation_code",
		"balance", "tr_id", "rc", "sign",
	}
	mandatoryNames = []string{"code", "hp", "price", "message", "balance", "tr_id", "rc"}
)

// The fields behind the signature, under validate strict.
func TestRejectField(t *testing.T) {
	s, a := rejectSite(t)
	ok := fresh("field")
	var cases []callbackCase
	refused := func(name string, changes ...string) {
		cases = append(cases, callbackCase{name, ok(changes...), 422, "field"})
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

	for _, name := range fieldNames {
		upper := strings.ToUpper(name)
		for _, variant := range []string{upper, upper[:1] + name[1:], name[:1] + upper[1:]} {
			refused("the name "+variant, variant, `"x"`)
		}
		if name == "ref_id" || name == "sign" {
			continue // the steps before
		}
		for _, wrong := range []string{"true", "false", "[]", "{}", `["x"]`} {
			refused(name+" "+wrong, name, wrong)
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

	for _, name := range mandatoryNames {
		refused(name+" missing", name, "")
		refused(name+" null", name, "null")
	}
	for _, name := range []string{"message", "tr_id", "rc", "code", "hp", "sn", "pin", "activation_code"} {
		accepted(name+" empty", name, `""`)
	}
	for _, name := range []string{"sn", "pin", "activation_code"} {
		accepted(name+" null", name, "null")
	}

	for _, name := range []string{"price", "balance"} {
		for _, amount := range []string{
			`"0"`, `"1.50"`, `"1e5"`, `"1E-5"`, `"-1"`, `"-0"`, "16500", "16500.00", "1e5", "-1", strings.Repeat("9", 1000), sitetest.Quote(strings.Repeat("9", 1000)),
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
		{"XML", sitetest.OrderXML("fx1"), 200, ""},
		{"XML status with white space", sitetest.OrderXML("fx2", "status", " 2\n"), 200, ""},
		{"XML price with white space", sitetest.OrderXML("fx3", "price", " 1 "), 200, ""},
		{"XML status 1.0", sitetest.OrderXML("fx4", "status", "1.0"), 422, "field"},
		{"XML status empty", sitetest.OrderXML("fx5", "status", ""), 422, "field"},
		{"XML name in another case", sitetest.OrderXML("fx6", "Status", "1"), 422, "field"},
		{"XML name in another case under a prefix", sitetest.OrderXML("fx7", "x:STATUS", "1"), 422, "field"},
		{"XML field with children", sitetest.OrderXML("fx8", "sn", "x<b/>y"), 422, "field"},
		{"XML unknown field with children", sitetest.OrderXML("fx9", "a", "x<b>c</b>y"), 200, ""},
		{"XML price empty", sitetest.OrderXML("fx10", "price", ""), 422, "field"},
		{"XML message empty", sitetest.OrderXML("fx11", "message", ""), 200, ""},
		{"XML versions disagree", sitetest.OrderXML("fx12", "product_code", "x"), 422, "field"},
		{"XML versions agree", sitetest.OrderXML("fx13", "product_code", "xld25000"), 200, ""},
		{"XML missing field", strings.NewReplacer("<rc>", "<rd>", "</rc>", "</rd>").Replace(sitetest.OrderXML("fx14")), 422, "field"},
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
		{"no status", ok("status", ""), 422, "field"},
		{"status null", ok("status", "null"), 422, "field"},
		{"status 3", ok("status", `"3"`), 422, "field"},
		{"status 1.00000000000000000001", ok("status", "1.00000000000000000001"), 422, "field"},
		{"no ref_id", ok("ref_id", ""), 422, "ref_id"},
		{"no sign", ok("sign", ""), 403, "signature"},
		{"a list", ok("sn", "[]"), 422, "field"},
		{"a boolean", ok("price", "true"), 422, "field"},
		{"a name in another case", ok("SN", `"x"`), 422, "field"},
		{"versions that disagree", ok("product_code", `"x"`), 422, "field"},
	}
	for _, name := range mandatoryNames {
		cases = append(cases, callbackCase{name + " missing", ok(name, ""), 200, ""})
	}
	for _, amount := range []string{`"007"`, `"+5"`, `""`, `"1e5"`, `"-1"`, `" 1"`, `"abc"`, `"1,000"`} {
		cases = append(cases,
			callbackCase{"price " + amount, ok("price", amount), 200, ""},
			callbackCase{"balance " + amount, ok("balance", amount), 200, ""})
	}
	runCases(t, s, a, "application/json", cases)
}

// rejectedBodies is a body for each step that rejects one.
func rejectedBodies() map[string]string {
	return map[string]string{
		"too_large": padded("rejected", 64<<10+1),
		"malformed": sitetest.Order("rejected", "1") + "x",
		"ref_id":    sitetest.Order("", "1"),
		"signature": sitetest.Order("rejected", "1", "sign", sitetest.Quote(sitetest.FlipLast(sitetest.Sign("rejected")))),
		"field":     sitetest.Order("rejected", "7"),
	}
}

// What is rejected reaches no store: not one byte is sent to Redis, not even to
// connect.
func TestRejectedReachNoRedis(t *testing.T) {
	redis := redistest.Start(t)
	conn, err := net.Dial("tcp", redis.Addr())
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
	s, a := rejectSite(t, "redis "+redis.URL())
	announced()
	connections, commands := counters()
	for reason, body := range rejectedBodies() {
		if got := s.Post(body); got.Status == 200 || got.Body != reason {
			t.Errorf("answer %d %q, want %q", got.Status, got.Body, reason)
		}
	}
	if c, calls := counters(); c != connections || !slices.Equal(calls, commands) {
		t.Errorf("rejected callbacks reached Redis: %s %v, before %s %v", c, calls, connections, commands)
	}
	s.Post(sitetest.Order("rejected", "1")).Is(t, 200, "") // and it is the store that is asked
	if _, calls := counters(); slices.Equal(calls, commands) {
		t.Error("an accepted callback did not reach Redis")
	}
	if n := len(a.Received()); n != 1 {
		t.Errorf("the app received %d requests, want 1", n)
	}
}

// What is rejected does not touch the embedded store's file.
func TestRejectedReachNoFile(t *testing.T) {
	s, _ := rejectSite(t)
	announced()
	file := filepath.Join(s.Dir, "caddy", "iak_callback", "records.sqlite")
	content := func() (all string) {
		names, err := filepath.Glob(file + "*")
		if err != nil || len(names) == 0 {
			t.Fatalf("no file %s (%v)", file, err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all += string(b)
		}
		return all
	}
	before := content()
	for reason, body := range rejectedBodies() {
		if got := s.Post(body); got.Status == 200 || got.Body != reason {
			t.Errorf("answer %d %q, want %q", got.Status, got.Body, reason)
		}
	}
	if content() != before {
		t.Error("a rejected callback reached the store")
	}
	s.Post(sitetest.Order("rejected", "1")).Is(t, 200, "")
	if content() == before {
		t.Error("an accepted callback did not reach the store")
	}
}
