package delivery

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A request that Rewrite has changed is the same request, so that what is bound
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

	Rewrite(r, []byte(body), []Header{{"Idempotency-Key", "test:x:1"}, {"Iak-Account", "test"}, {"Iak-Attempt", "1"}})

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

// A body that nobody has begun to read when the delivery has ended cannot be read
// any more; one that was begun can be read to its end.
func TestWatchedBody(t *testing.T) {
	fresh := &watchedBody{ReadCloser: io.NopCloser(strings.NewReader("body"))}
	if fresh.end() {
		t.Error("a body that nobody has read counts as read")
	}
	if n, err := fresh.Read(make([]byte, 4)); n != 0 || err == nil {
		t.Errorf("%d bytes, %v are read after the end", n, err)
	}
	begun := &watchedBody{ReadCloser: io.NopCloser(strings.NewReader("body"))}
	_, _ = begun.Read(make([]byte, 1))
	if !begun.end() {
		t.Error("a body that was read does not count as read")
	}
	if rest, err := io.ReadAll(begun); string(rest) != "ody" || err != nil {
		t.Errorf("%q, %v are left", rest, err)
	}
}
