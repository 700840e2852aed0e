package inspect

import (
	"context"
	"errors"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
)

const spread = 20 * time.Millisecond // between the times at which two callbacks are due

var tellEvery = time.Second // a variable, so that tests need not wait

// errOther is a record that is not any more as it was found.
var errOther = refusedError{"it has changed meanwhile"}

// RedeliverAll makes the callbacks due that a filter selects, which names a state:
// each some time after the one before, so that an app that has just been mended is not
// flooded. It tells now and then how far it is, and returns how far it came, also with
// an error.
func RedeliverAll(ctx context.Context, all []Namespace, only Filter, tell func(Progress) error) (Progress, error) {
	began := time.Now()
	b := &bulk{state: only.State, began: began.UnixMilli()}
	told := began
	err := walk(ctx, all, only, func(s *store.Store, n Namespace, refID string, _ record.Snapshot) error {
		now := time.Now()
		err := b.redeliver(s, n, refID, now)
		if err != nil || now.Sub(told) < tellEvery {
			return err
		}
		told = now
		return tell(b.progress)
	})
	b.progress.Done = err == nil
	return b.progress, err
}

type bulk struct {
	state    record.State
	began    int64     // by our own clock, in milliseconds of Unix time
	next     time.Time // when the next is due
	progress Progress
}

// redeliver makes what is kept of one order due at the next time.
func (b *bulk) redeliver(s *store.Store, n Namespace, refID string, now time.Time) error {
	if b.next.Before(now) {
		b.next = now
	}
	wait := b.next.Sub(now)
	_, err := s.Change(n.place(refID), n.Hold, func(r *record.Record, at int64) error {
		k := r.Kept
		if k == nil || (record.Snapshot{Record: r, Now: at}).State(n.Hold) != b.state {
			return errOther
		}
		if k.Came >= b.began && k.Pauses == 0 { // done: Redis may show a record twice
			return errOther
		}
		// Its max_age begins when it is due.
		if err := n.redeliver(r, false, at, now.Add(wait).UnixMilli()); err != nil {
			return err
		}
		k.Due = at + wait.Milliseconds()
		return nil
	})
	switch {
	case err == nil:
		b.progress.Redelivered++
		b.next = b.next.Add(spread)
	case errors.Is(err, errHeld):
		b.progress.Held++
	case !errors.As(err, new(refusedError)) && !errors.As(err, new(record.NotDoneError)) && !errors.Is(err, record.ErrNone):
		return err
	}
	return nil
}
