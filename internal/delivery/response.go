package delivery

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// response passes the app's answer on and notes its status.
//
// It swallows the errors of writing to the caller: the app finishes its work
// and its answer counts, whether or not IAK still listens. So a handler behind
// that breaks off has lost the app, not the caller, which
// caddyhttp.ResponseRecorder could not tell apart.
//
// The caller may be taken from a handler that is still at work, so the handler gets
// a header map of its own until it sends it.
type response struct {
	caddyhttp.ResponseWriterWrapper

	// noFinal tells that the app has ended without a final status.
	noFinal func() bool

	mu     sync.Mutex
	header http.Header
	status int  // the final status that was sent, 0 before
	gone   bool // the caller does not listen, or was taken from the handlers
}

func newResponse(w http.ResponseWriter, noFinal func() bool) *response {
	return &response{
		noFinal:               noFinal,
		ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w},
		header:                w.Header().Clone(),
	}
}

// Header is the handler's own map until the status is sent, then the real one,
// where trailers belong.
func (w *response) Header() http.Header {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 || w.gone {
		return w.header
	}
	return w.ResponseWriter.Header()
}

func (w *response) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(status)
}

func (w *response) writeHeader(status int) {
	if w.status != 0 {
		return
	}
	if status >= 200 { // 1xx is no answer yet
		w.status = status
	}
	if w.gone {
		return
	}
	header := w.ResponseWriter.Header()
	if status < 200 { // what is answered in the end has headers of its own
		before := maps.Clone(header)
		defer func() {
			clear(header)
			maps.Copy(header, before)
		}()
	}
	clear(header)
	maps.Copy(header, w.header)
	w.ResponseWriter.WriteHeader(status)
}

// implyOK is the 200 of a handler that writes without a status, as net/http has
// it. Behind an app that ended without a final status nobody means it: what
// it writes is dropped, and the handlers have answered nothing.
func (w *response) implyOK() (dropped bool) {
	if w.status == 0 && w.noFinal() {
		return true
	}
	w.writeHeader(http.StatusOK)
	return false
}

func (w *response) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if dropped := w.implyOK(); !dropped && !w.gone {
		_, err := w.ResponseWriter.Write(p)
		w.gone = err != nil
	}
	return len(p), nil
}

// ReadFrom keeps the errors of reading, which are the app's, apart from those of
// writing.
func (w *response) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{w}, r)
}

// FlushError flushes to a caller that still listens.
func (w *response) FlushError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if dropped := w.implyOK(); !dropped && !w.gone {
		err := http.NewResponseController(w.ResponseWriter).Flush()
		w.gone = err != nil && !errors.Is(err, http.ErrNotSupported)
	}
	return nil
}

// sent returns the status that the handlers behind sent, 0 if none.
func (w *response) sent() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

// take takes the caller from a handler that does not return, and tells whether
// that was still possible. Whatever the handler writes from then on is dropped,
// its status noted.
func (w *response) take() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status != 0 || w.gone {
		return false
	}
	w.gone = true
	return true
}

// cutIn answers the caller who was taken. The connection is closed, since it
// stays busy until the handler returns.
func (w *response) cutIn(status int) {
	w.ResponseWriter.Header().Set("Connection", "close")
	w.ResponseWriter.Header().Set("Content-Length", "0")
	w.ResponseWriter.WriteHeader(status)
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

// Interface guards
var (
	_ http.ResponseWriter = (*response)(nil)
	_ io.ReaderFrom       = (*response)(nil)
)
