package delivery

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

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

	accept      Conditions    // that let a 2xx count
	patience    time.Duration // for how long the caller may still hold up the app's answer
	multiplexed bool          // HTTP/2 or later

	mu     sync.Mutex
	header http.Header
	status int    // the final status that the handlers sent, 0 before
	held   []byte // the beginning of a 2xx's body, while holding
	unmet  error  // why a 2xx does not count

	begun   bool // the body has begun
	markup  bool // with <, as a page does: PHP calls any answer text/html
	holding bool // it is not known yet whether the 2xx counts
	passed  bool // the caller has the status
	gone    bool // the caller does not listen, or was taken from the handlers
}

func newResponse(w http.ResponseWriter, r *http.Request, d *Delivery, noFinal func() bool) *response {
	return &response{
		noFinal:               noFinal,
		accept:                d.Accept,
		multiplexed:           r.ProtoMajor > 1,
		patience:              patience(r, d.Timeout),
		ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w},
		header:                w.Header().Clone(),
	}
}

// patience is for how long all in all the caller may hold up the app's answer: half
// of timeout, a second at least.
//
// In HTTP/1.1 over TLS net/http closes the connection when a write has failed, and
// crypto/tls then waits up to 5 s to say so to a caller who does not read (Go 1.26,
// net/http/server.go, chunkWriter.Write; crypto/tls/conn.go, closeNotify). They count.
func patience(r *http.Request, timeout time.Duration) time.Duration {
	half := timeout / 2
	if r.TLS != nil && r.ProtoMajor == 1 {
		half -= 5 * time.Second
	}
	return max(half, time.Second)
}

// Header is the handler's own map until the status is passed on, then the real one,
// where trailers belong.
func (w *response) Header() http.Header {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.passed || w.gone {
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
		if status < 300 {
			w.holding, w.unmet = w.accept.begin(w.header)
		}
		if w.holding || w.unmet != nil {
			return
		}
	}
	w.pass(status)
}

// pass passes a status on to the caller.
func (w *response) pass(status int) {
	w.passed = status >= 200
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
	return w.unmet != nil
}

func (w *response) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.look(p)
	switch {
	case w.implyOK():
	case w.holding && len(w.held)+len(p) <= lookAt:
		w.held = append(w.held, p...)
	case w.holding:
		seen := len(w.held)
		w.held = append(w.held, p[:lookAt-seen]...)
		w.decide(false)
		w.send(p[lookAt-seen:])
	default:
		w.send(p)
	}
	return len(p), nil
}

// look notes how the body begins.
func (w *response) look(p []byte) {
	if w.begun {
		return
	}
	if text := bytes.TrimLeft(p, " \t\r\n\ufeff"); len(text) > 0 {
		w.begun, w.markup = true, text[0] == '<'
	}
}

// finish says that the answer is whole.
func (w *response) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holding {
		w.decide(true)
	}
}

// decide ends the holding. whole tells that what is held is all of the body.
func (w *response) decide(whole bool) {
	held := w.held
	w.holding, w.held = false, nil
	if w.unmet = w.accept.end(held, whole); w.unmet == nil {
		w.pass(w.status)
		w.send(held)
	}
}

// send writes to a caller that still listens.
func (w *response) send(p []byte) {
	if len(p) > 0 && w.unmet == nil {
		w.toCaller(func() error {
			_, err := w.ResponseWriter.Write(p)
			return err
		})
	}
}

// toCaller does what may have to wait for the caller, who may be slow, or may not
// read at all. He may hold up the app's answer for half of upstream_timeout (a second at
// least), all in all; then he is given up, and the app's answer is read to its end without him.
func (w *response) toCaller(write func() error) {
	if w.gone {
		return
	}
	begin := time.Now()
	// Without the support of the writer below there is no bound.
	caller := http.NewResponseController(w.ResponseWriter)
	_ = caller.SetWriteDeadline(begin.Add(w.patience))
	w.gone = write() != nil
	w.patience -= time.Since(begin)
	// In HTTP/2 a deadline resets the stream when it comes, whether something is written
	// then or not: the app may pause. In HTTP/1.1 it holds for the end of the answer too,
	// and net/http takes it off then (Go 1.26, h2_bundle.go, onWriteTimeout; server.go, serve).
	if w.multiplexed {
		_ = caller.SetWriteDeadline(time.Time{})
	}
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
	if dropped := w.implyOK(); dropped || w.holding {
		return nil
	}
	w.toCaller(func() error {
		err := http.NewResponseController(w.ResponseWriter).Flush()
		if errors.Is(err, http.ErrNotSupported) {
			return nil
		}
		return err
	})
	return nil
}

// seen returns the status that the handlers behind sent, 0 if none, why it does
// not count if it is a 2xx, and whether it came with a page of HTML.
func (w *response) seen() (status int, unmet error, html bool) { //nolint:revive // unmet is no error of seen
	w.mu.Lock()
	defer w.mu.Unlock()
	kind, _, _ := strings.Cut(w.header.Get("Content-Type"), ";")
	return w.status, w.unmet, w.markup && strings.EqualFold(strings.TrimSpace(kind), "text/html")
}

// sent returns a header of what the handlers behind sent.
func (w *response) sent(name string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.header.Get(name)
}

// take takes the caller from a handler that does not return, and tells whether
// that was still possible. Whatever the handler writes from then on is dropped,
// its status noted.
func (w *response) take() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.passed || w.gone {
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
