package delivery

import (
	"maps"
	"net/http"
	"sync"
	"time"
)

// Recorder is a response of which the caller learns later, or never: its request may
// be over before the handlers are. It holds the first 64 KiB of the body.
type Recorder struct {
	mu     sync.Mutex
	header http.Header
	sent   http.Header // as it was with the status
	status int
	body   []byte
	longer bool
}

// NewRecorder returns a recorder that begins with the headers that the caller would get
// already.
func NewRecorder(header http.Header) *Recorder {
	r := &Recorder{header: make(http.Header)}
	maps.Copy(r.header, header.Clone())
	return r
}

// Header is the headers to be sent.
func (r *Recorder) Header() http.Header { return r.header }

// WriteHeader notes a final status.
func (r *Recorder) WriteHeader(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeHeader(status)
}

func (r *Recorder) writeHeader(status int) {
	if r.status == 0 && status >= 200 {
		r.status, r.sent = status, r.header.Clone()
	}
}

// Write notes the body's beginning.
func (r *Recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writeHeader(http.StatusOK)
	room := lookAt - len(r.body)
	r.longer = r.longer || len(p) > room
	r.body = append(r.body, p[:min(len(p), room)]...)
	return len(p), nil
}

// FlushError has nobody to flush to, as the others have no connection: Caddy would warn
// of a writer without them (Caddy v2.11.9, caddyhttp/server.go, ServeHTTP).
func (r *Recorder) FlushError() error { return nil }

// SetReadDeadline does nothing.
func (r *Recorder) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (r *Recorder) SetWriteDeadline(time.Time) error { return nil }

// EnableFullDuplex does nothing.
func (r *Recorder) EnableFullDuplex() error { return nil }

// Status is what was sent, 0 if nothing.
func (r *Recorder) Status() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// Replay answers the caller with what was recorded, when the handlers are done. A body
// of more than 64 KiB is left out: IAK wants the status.
func (r *Recorder) Replay(w http.ResponseWriter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	header := w.Header()
	clear(header)
	maps.Copy(header, r.sent)
	if r.longer {
		header.Del("Content-Length")
		r.body = nil
	}
	w.WriteHeader(max(r.status, http.StatusOK))
	_, _ = w.Write(r.body) // he may have hung up
}

// Interface guard
var _ http.ResponseWriter = (*Recorder)(nil)
