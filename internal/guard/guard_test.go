package guard

import (
	"errors"
	"strings"
	"testing"
)

// A panic is told with its cause and its stack, and ends no more than the work.
func TestDo(t *testing.T) {
	type told struct {
		what string
		p    *PanicError
	}
	before, reports := Report, make(chan told, 1)
	t.Cleanup(func() { Report = before })
	Report = func(what string, p *PanicError) { reports <- told{what, p} }
	go Do("a test", func() { panic("broken") })
	got := <-reports
	if got.what != "a test" || got.p.Cause != "broken" || !strings.Contains(string(got.p.Stack), "TestDo") {
		t.Errorf("told %q, %v, %s", got.what, got.p.Cause, got.p.Stack)
	}
	Do("another", func() {})
	if len(reports) != 0 {
		t.Errorf("told %v without a panic", <-reports)
	}
}

// Catch keeps errors apart from panics, nil panics among these.
func TestCatch(t *testing.T) {
	wrong := errors.New("wrong")
	if err := Catch(func() error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("%v, want the work's own error", err)
	}
	if err := Catch(func() error { return nil }); err != nil {
		t.Errorf("%v, want none", err)
	}
	for _, cause := range []any{"broken", wrong, nil} {
		var p *PanicError
		if err := Catch(func() error { panic(cause) }); !errors.As(err, &p) || !strings.HasPrefix(err.Error(), "panic: ") {
			t.Errorf("panic %v: %v", cause, err)
		}
	}
}
