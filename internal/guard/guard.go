// Package guard keeps a panic from ending Caddy. net/http recovers what panics on
// the goroutine of a request, and nobody does on any other: each goroutine and timer of
// this project begins here.
package guard

import (
	"fmt"
	"net/http"
	"os"
	"runtime/debug"
	"time"
)

// Report is told what panicked, by Do. It may be replaced before anything begins.
var Report = func(what string, p *PanicError) {
	_, _ = fmt.Fprintf(os.Stderr, "iak_callback: panic in %s: %v\n%s", what, p.Cause, p.Stack)
}

// PanicError is a panic as an error.
type PanicError struct {
	Cause any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Cause) }

// Catch does work, and returns its error, or its panic as a PanicError.
func Catch(work func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = &PanicError{cause, debug.Stack()}
		}
	}()
	return work()
}

// Do does work. A panic is told, and ends no more than the work. It is what a
// goroutine runs. http.ErrAbortHandler is not told: a handler breaks a connection off
// by that.
func Do(what string, work func()) {
	err := Catch(func() error { work(); return nil })
	if err == nil {
		return
	}
	if p := err.(*PanicError); p.Cause != http.ErrAbortHandler { //nolint:errorlint // it has no other, and it is the very value
		Report(what, p)
	}
}

// WaitUntil does something that waits, and returns when that has ended, or the time is
// over.
func WaitUntil(what string, wait func(), until time.Time) {
	done := make(chan struct{})
	go Do(what, func() {
		defer close(done)
		wait()
	})
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}
