package delivery

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
)

// Rewrite makes r the request that the app receives: the normalized body, and
// nothing left that belongs to the old one. It changes r in place, since
// Caddy's placeholders are bound to it (caddyhttp/server.go, prepareRequest).
//
// GetBody stays nil: with it, Go's transport would send a request that has an
// Idempotency-Key a second time by itself.
func Rewrite(r *http.Request, body []byte, headers []Header) {
	strip(r.Header)
	headers = append(headers, Header{"Content-Type", "application/json"}, Header{"Content-Length", strconv.Itoa(len(body))})
	values := make([]string, len(headers)) // of all headers, in one piece
	for i, h := range headers {
		values[i] = h.Value
		r.Header[h.Name] = values[i : i+1 : i+1]
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	r.GetBody = nil
	r.TransferEncoding = nil
	r.Trailer = nil
	r.Form, r.PostForm, r.MultipartForm = nil, nil, nil
}

// Empty makes r a request that can do no harm: without a body, what speaks of one,
// and the headers that only this module may set. An error route passes it on,
// perhaps to the app itself. Go's transport may still be reading r.Trailer, for a
// reverse_proxy that has returned (Caddy v2.11.9, reverseproxy.go,
// requestBodyWithTrailers): after Rewrite it is nil, and not written again.
//
// What was a copy of r before the module saw it keeps its body: tracing and a
// timeouts handler in front make one (Caddy v2.11.9, tracing/tracer.go, ServeHTTP;
// timeouts/timeouts.go, ServeHTTP). The headers are one map for all.
func Empty(r *http.Request) {
	strip(r.Header)
	delete(r.Header, "Content-Type")
	r.Header["Content-Length"] = []string{"0"} // FastCGI goes by it
	r.Body = http.NoBody
	r.ContentLength = 0
	r.GetBody = nil
	r.TransferEncoding = nil
	if r.Trailer != nil {
		r.Trailer = nil
	}
	r.Form, r.PostForm, r.MultipartForm = nil, nil, nil
}

// strip takes off what speaks of the body as it came, and what only this module
// may set.
func strip(h http.Header) {
	for name := range h {
		if plain := plainName(name); staleHeaders[plain] || reserved(plain) {
			delete(h, name)
		}
	}
}

// watchedBody is the body that the app receives. As long as nobody has read a
// byte of it, nothing was sent to the app.
type watchedBody struct {
	io.ReadCloser

	mu     sync.Mutex
	read   bool
	closed bool // by end: what has not begun must not begin
}

var errOver = errors.New("the time for the delivery is over")

func (b *watchedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.closed && !b.read {
		b.mu.Unlock()
		return 0, errOver
	}
	b.read = true
	b.mu.Unlock()
	return b.ReadCloser.Read(p)
}

// end tells whether the body was read. If not, it cannot be any more.
func (b *watchedBody) end() (read bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return b.read
}
