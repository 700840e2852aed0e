package iakcallback

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
)

// bodies keeps the memory of received bodies. What is forwarded never comes
// from here: Go's transport may still read it after the answer has come.
var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// receive reads and decodes a callback. Whatever can be refused by the header
// is refused before the first read, so that a client that waits for 100
// Continue sends no body in vain.
func receive(r *http.Request, limit int64) (*callback, *rejection) {
	if r.Method != http.MethodPost {
		return nil, reject(http.StatusMethodNotAllowed, reasonMethod, errors.New("IAK sends callbacks by POST")).beforeEnd()
	}
	for _, coding := range r.Header.Values("Content-Encoding") {
		if coding != "" && !strings.EqualFold(coding, "identity") {
			return nil, reject(http.StatusUnsupportedMediaType, reasonMediaType, errors.New("a compressed body is not accepted")).beforeEnd()
		}
	}
	sniff, err := checkMediaType(r.Header.Values("Content-Type"))
	if err != nil {
		return nil, reject(http.StatusUnsupportedMediaType, reasonMediaType, err).beforeEnd()
	}
	buffer := bodies.Get().(*bytes.Buffer)
	defer func() {
		if buffer.Cap() <= 2*defaultMaxBodySize {
			buffer.Reset()
			bodies.Put(buffer)
		}
	}()
	if rejected := readBody(buffer, r, limit); rejected != nil {
		return nil, rejected.beforeEnd()
	}
	body := buffer.Bytes()
	if first := firstByte(body); sniff && first != '{' && first != '<' {
		return nil, reject(http.StatusUnsupportedMediaType, reasonMediaType,
			errors.New("the body is neither JSON nor XML, and no Content-Type says so"))
	}
	c, err := decode(body)
	if err != nil {
		return nil, reject(http.StatusBadRequest, reasonMalformed, err)
	}
	return c, nil
}

// checkMediaType tells whether the body can be JSON or XML. With a type that
// says nothing, sniff is true: the body has to show it.
func checkMediaType(contentTypes []string) (sniff bool, err error) {
	if len(contentTypes) > 1 {
		return false, errors.New("more than one Content-Type")
	}
	if len(contentTypes) == 0 || strings.TrimSpace(contentTypes[0]) == "" {
		return true, nil
	}
	mediaType, _, err := mime.ParseMediaType(contentTypes[0])
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
		return false, errors.New("the Content-Type is not a media type")
	}
	switch mediaType {
	case "application/json", "text/json", "application/xml", "text/xml":
		return false, nil
	case "text/plain", "application/octet-stream", "application/x-www-form-urlencoded":
		return true, nil
	}
	_, subtype, _ := strings.Cut(mediaType, "/")
	if strings.HasSuffix(subtype, "+json") || strings.HasSuffix(subtype, "+xml") {
		return false, nil
	}
	return false, errors.New("the Content-Type is neither JSON nor XML")
}

// readBody reads at most limit bytes. The declared length is not trusted with
// memory: the buffer grows with what arrives.
func readBody(to *bytes.Buffer, r *http.Request, limit int64) *rejection {
	tooLarge := func() *rejection {
		return reject(http.StatusRequestEntityTooLarge, reasonTooLarge,
			fmt.Errorf("the body is larger than max_body_size, %d bytes", limit))
	}
	if r.ContentLength > limit {
		return tooLarge()
	}
	n, err := to.ReadFrom(io.LimitReader(r.Body, limit+1))
	if n > limit {
		return tooLarge()
	}
	if err == nil {
		return nil
	}
	// A request_body directive in front may have a lower limit than ours.
	if maxBytes := new(http.MaxBytesError); errors.As(err, &maxBytes) {
		return reject(http.StatusRequestEntityTooLarge, reasonTooLarge,
			fmt.Errorf("the body is larger than the limit of a request_body directive, %d bytes", maxBytes.Limit))
	}
	var timeout interface{ Timeout() bool }
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return reject(http.StatusRequestTimeout, reasonIncomplete, errors.New("the body came too slowly"))
	}
	return reject(http.StatusBadRequest, reasonIncomplete, errors.New("the body was cut off"))
}

// staleHeaders speak of the body as it came, or of how it was sent.
var staleHeaders = map[string]bool{
	"Content-Encoding": true, "Transfer-Encoding": true, "Trailer": true, "Expect": true, "Upgrade": true,
	"Connection":  true, // reverse_proxy drops every header that it names, ours too
	"Incremental": true, // keeps reverse_proxy from buffering, which FastCGI needs
	"Content-Md5": true, "Digest": true, "Content-Digest": true, "Repr-Digest": true, "Content-Range": true,
	"Signature": true, "Signature-Input": true, // RFC 9421, may cover the digest
}

// header is one header of the request that the app receives, its name in
// canonical form.
type header struct{ name, value string }

// rewrite makes r the request that the app receives: the normalized body, and
// nothing left that belongs to the old one. It changes r in place, since
// Caddy's placeholders are bound to it (caddyhttp/server.go, prepareRequest).
//
// GetBody stays nil: with it, Go's transport would send a request that has an
// Idempotency-Key a second time by itself.
func rewrite(r *http.Request, body []byte, headers []header) {
	for name := range r.Header {
		if plain := plainName(name); staleHeaders[plain] || reserved(plain) {
			delete(r.Header, name)
		}
	}
	headers = append(headers, header{"Content-Type", "application/json"}, header{"Content-Length", strconv.Itoa(len(body))})
	values := make([]string, len(headers)) // of all headers, in one piece
	for i, h := range headers {
		values[i] = h.value
		r.Header[h.name] = values[i : i+1 : i+1]
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	r.GetBody = nil
	r.TransferEncoding = nil
	r.Trailer = nil
	r.Form, r.PostForm, r.MultipartForm = nil, nil, nil
}

// plainName is a header's name in canonical form, with hyphens. FastCGI and WSGI
// turn hyphens into underscores, so an alias that Caddy was told to let pass
// (expected_underscore_headers) would arrive under the name itself.
func plainName(name string) string {
	return http.CanonicalHeaderKey(hyphens.Replace(name))
}

var hyphens = strings.NewReplacer("_", "-", ".", "-")

// reserved tells whether a plain name is one that only this module may set.
func reserved(plain string) bool {
	return strings.HasPrefix(plain, "Iak-") || plain == "Idempotency-Key" || plain == "X-Idempotency-Key"
}
