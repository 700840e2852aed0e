package iakcallback

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/caddy-iak/iakcallback/internal/iak"
)

// reason is why a callback was rejected before its claim.
type reason string

const (
	reasonMethod     reason = "method"
	reasonMediaType  reason = "media_type"
	reasonTooLarge   reason = "too_large"
	reasonIncomplete reason = "incomplete"
	reasonMalformed  reason = "malformed"
	reasonRefID      reason = "ref_id"
	reasonSignature  reason = "signature"
	reasonField      reason = "field"
)

// rejection ends a callback's way with an error status.
type rejection struct {
	status int
	reason reason
	err    error
	unread bool // the body was not read to its end
}

func reject(status int, reason reason, err error) *rejection {
	return &rejection{status: status, reason: reason, err: err}
}

// beforeEnd marks a rejection that left some of the body unread.
func (r *rejection) beforeEnd() *rejection {
	r.unread = true
	return r
}

// bodies keeps the memory of received bodies. What is forwarded never comes
// from here: Go's transport may still read it after the answer has come.
var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// receive reads and decodes a callback. Whatever can be refused by the header
// is refused before the first read, so that a client that waits for 100
// Continue sends no body in vain. With keep, raw is the body as it came.
func receive(r *http.Request, limit int64, keep bool) (c *iak.Callback, raw []byte, rejected *rejection) {
	if r.Method != http.MethodPost {
		return nil, nil, reject(http.StatusMethodNotAllowed, reasonMethod, errors.New("IAK sends callbacks by POST")).beforeEnd()
	}
	for _, coding := range r.Header.Values("Content-Encoding") {
		if coding != "" && !strings.EqualFold(coding, "identity") {
			return nil, nil, reject(http.StatusUnsupportedMediaType, reasonMediaType, errors.New("a compressed body is not accepted")).beforeEnd()
		}
	}
	sniff, err := checkMediaType(r.Header.Values("Content-Type"))
	if err != nil {
		return nil, nil, reject(http.StatusUnsupportedMediaType, reasonMediaType, err).beforeEnd()
	}
	buffer := bodies.Get().(*bytes.Buffer)
	defer func() {
		if buffer.Cap() <= 2*defaultMaxBodySize {
			buffer.Reset()
			bodies.Put(buffer)
		}
	}()
	if rejected := readBody(buffer, r, limit); rejected != nil {
		return nil, nil, rejected.beforeEnd()
	}
	body := buffer.Bytes()
	if sniff && !iak.Sniff(body) {
		return nil, nil, reject(http.StatusUnsupportedMediaType, reasonMediaType,
			errors.New("the body is neither JSON nor XML, and no Content-Type says so"))
	}
	if c, err = iak.Decode(body); err != nil {
		return nil, nil, reject(http.StatusBadRequest, reasonMalformed, err)
	}
	if keep {
		raw = bytes.Clone(body)
	}
	return c, raw, nil
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
	kind, _, _ := strings.Cut(contentTypes[0], ";") // parameters are not looked at, however odd
	mediaType, _, err := mime.ParseMediaType(kind)
	if err != nil {
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
