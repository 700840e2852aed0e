// Package guard keeps a panic from ending Caddy. net/http recovers what panics on
// the goroutine of a request, and nobody does on any other: each goroutine and timer of
// this project begins here.
package guard

import (
	"fmt"
	"os"
	"runtime/debug"
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
// goroutine runs.
func Do(what string, work func()) {
	err := Catch(func() error { work(); return nil })
	if err != nil {
		Report(what, err.(*PanicError)) //nolint:errorlint // it has no other
	}
}
