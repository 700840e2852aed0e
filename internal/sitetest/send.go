package sitetest

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Reply is an answer that IAK gets.
type Reply struct {
	Status int
	Header http.Header
	Body   string
}

// Expect checks the status.
func (r Reply) Expect(t *testing.T, what string, status int) {
	t.Helper()
	if r.Status != status {
		t.Errorf("%s: status %d, want %d; body %q", what, r.Status, status, r.Body)
	}
}

// Client makes a new connection for each request, so that tests do not meet
// one another's.
var Client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// ForgedRequest is a callback whose sender sets the headers that only the
// module may set.
func ForgedRequest(t testing.TB, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(Order("forged", "1")))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for _, name := range []string{"Iak-Account", "Iak-Attempt", "Iak-Conflict", "Iak-Deduplicated", "Iak-Anything", "Idempotency-Key"} {
		r.Header.Set(name, "forged")
	}
	return r
}

// CallbackOf is a JSON callback to any address.
func CallbackOf(t *testing.T, address, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	return r
}

// Is checks status and reason; only 405 has an Allow header.
func (r Reply) Is(t *testing.T, status int, reason string) {
	t.Helper()
	if r.Status != status || r.Body != reason {
		t.Errorf("answer %d %q, want %d %q", r.Status, r.Body, status, reason)
	}
	allow := ""
	if status == http.StatusMethodNotAllowed {
		allow = "POST"
	}
	if got := r.Header.Get("Allow"); got != allow {
		t.Errorf("Allow %q, want %q", got, allow)
	}
}

// RawReply reads one answer.
func RawReply(t *testing.T, r *bufio.Reader) Reply {
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
	return Reply{answer.StatusCode, answer.Header, string(body)}
}

// Head is the head of a raw callback.
func Head(lines ...string) string {
	return "POST /callback HTTP/1.1\r\nHost: 127.0.0.1\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
}
