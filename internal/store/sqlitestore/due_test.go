package sqlitestore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
)

// keep is a swap of what has to be found at a time, which may be refused.
func keep(s *Store, key, old string, at int64) (store.Found, error) {
	return s.Swap(&store.Swap{Key: key, Old: old, New: "kept" + milliseconds(at), Keep: day, Index: "iak:", Was: old != "", Is: true, Began: time.Now()})
}

// wantWaiting expects so many records in the index, as it is told, and as it is in the file.
func wantWaiting(t testing.TB, s *Store, want int) {
	t.Helper()
	page, err := s.Due(&store.DueQuery{Index: "iak:", Limit: 1, Began: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	inside(t, s, func(f *file) error {
		n, err := f.number(waitingSQL)
		if page.Waiting != want || int(n) != want {
			t.Errorf("%d are said to wait, and %d are in the file, want %d", page.Waiting, n, want)
		}
		return err
	})
}

// What is due is found by its index, in its order, however many records there are beside it.
func TestDuePlan(t *testing.T) {
	s := open(t, newPath(t))
	for _, sql := range []string{dueSQL, waitingSQL} {
		inside(t, s, func(f *file) error {
			stmt, _, err := f.conn.Prepare("EXPLAIN QUERY PLAN " + sql)
			if err != nil {
				return err
			}
			defer stmt.Close()
			var plan []string
			for stmt.Step() {
				plan = append(plan, stmt.ColumnText(3))
			}
			if len(plan) != 1 || !strings.Contains(plan[0], "INDEX due") {
				t.Errorf("%s is done by %q, want the index alone", sql, plan)
			}
			return stmt.Err()
		})
	}
}

// How many records wait is right after a transaction that was not carried out, or of
// which that is not known.
func TestWaiting(t *testing.T) {
	path := newPath(t)
	s, g := gated(t, path)
	for i := range 5 {
		if _, err := keep(s, fmt.Sprint("iak:", i), "", int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	mustPut(t, s, "iak:other", "", "1")
	wantWaiting(t, s, 5)

	inside(t, s, func(f *file) error {
		return f.conn.Exec("CREATE TRIGGER refuse BEFORE INSERT ON records WHEN NEW.key = CAST('iak:refused' AS BLOB) BEGIN SELECT RAISE(FAIL, 'refused'); END")
	})
	inside(t, s, func(f *file) error {
		swap := func(key, old string, is bool) *operation {
			o := &operation{key: key, swap: &store.Swap{Key: key, Old: old, Keep: day, Index: "iak:", Was: old != "", Is: is}}
			if is {
				o.swap.New = "kept" + milliseconds(9)
			}
			return o
		}
		for _, ops := range [][]*operation{
			{swap("iak:new", "", true), swap("iak:refused", "", true)},
			{swap("iak:1", "kept"+milliseconds(1), false), swap("iak:2", "kept"+milliseconds(2), true), swap("iak:refused", "", true)},
		} {
			if err := f.transact(ops, s.clock.read()); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("%v, want that it is refused", err)
			}
		}
		return f.conn.Exec("DROP TRIGGER refuse")
	})
	wantWaiting(t, s, 5)

	for i := range 3 {
		g.mu.Lock()
		g.fails = 2 // that of the commit, and then that of the file's closing
		g.mu.Unlock()
		if _, err := keep(s, fmt.Sprint("iak:unknown ", i), "", 1); err == nil {
			t.Fatal("the commit did not fail")
		}
		found, err := s.Read(fmt.Sprint("iak:unknown ", i), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if found.Value != "" {
			if _, err := s.Swap(&store.Swap{Key: fmt.Sprint("iak:unknown ", i), Old: found.Value, Index: "iak:", Was: true, Began: time.Now()}); err != nil {
				t.Fatal(err)
			}
		}
		wantWaiting(t, s, 5)
	}

	if found, err := keep(s, "iak:1", "kept"+milliseconds(1), 7); err != nil || found.Waiting != 5 {
		t.Errorf("%+v, %v, want 5 that wait", found, err)
	}
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	wantWaiting(t, open(t, path), 5)
}

// What is kept stays in the index when others expire, and are swept away.
func TestWaitingSweep(t *testing.T) {
	s := open(t, newPath(t))
	s.clock.after = 0
	for i := range sweepStep + 10 {
		key := fmt.Sprintf("iak:%03d", i)
		if i%2 == 0 {
			if _, err := keep(s, key, "", 1); err != nil {
				t.Fatal(err)
			}
		} else if _, err := s.Swap(&store.Swap{Key: key, New: "accepted", Keep: 1, Began: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(2 * time.Millisecond)
	s.sweep()
	wantWaiting(t, s, (sweepStep+10)/2)
	if got := count(t, s); got != (sweepStep+10)/2 {
		t.Errorf("%d records are left, want those that are kept", got)
	}
}

// A look that nobody waits for any more harms nobody: it is made, and not told.
func TestDueAbandoned(t *testing.T) {
	s := open(t, newPath(t))
	if _, err := keep(s, "iak:1", "", 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first sweep is over", func() bool { return s.queue.Waiting() == 0 })
	block := func(work func()) {
		if err := s.add(&operation{done: make(chan struct{}), work: func(*file) error { work(); return nil }}); err != nil {
			t.Fatal(err)
		}
	}
	began, end := make(chan struct{}), make(chan struct{})
	block(func() { close(began); <-end })
	<-began
	const left = 200 * time.Millisecond
	block(func() { time.Sleep(2 * left) }) // and the look comes with it, so that it begins late
	told := make(chan error)
	go func() {
		page, err := s.Due(&store.DueQuery{Index: "iak:", Limit: 1, Began: time.Now().Add(left - patient)})
		if err != nil && len(page.Hints) > 0 {
			err = fmt.Errorf("%w, and %+v", err, page)
		}
		told <- err
	}()
	eventually(t, "the look waits", func() bool { return s.queue.Waiting() == 2 })
	close(end)
	if err := <-told; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the deadline", err)
	}
	time.Sleep(3 * left) // it is made now; a lock that is taken before would hide a race
	wantWaiting(t, s, 1)
}
