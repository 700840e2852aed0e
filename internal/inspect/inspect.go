package inspect

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
)

// Show returns the records of a ref_id in all namespaces.
func Show(all []Namespace, refID string) (Answer, error) {
	return answer(all, refID, func(s *store.Store, n Namespace) (record.Snapshot, error) {
		shot, err := s.Record(n.key(refID))
		if err == nil && shot.Empty() {
			err = record.ErrNone
		}
		return shot, err
	})
}

// refusedError is an operation that is not done on what is there.
type refusedError struct{ why string }

func (e refusedError) Error() string { return e.why }

var (
	errHeld = refusedError{"it is held: nobody knows whether the app has acted on it, so look at the order in the app first; " +
		"if it is redelivered, the app gets it again"}
	errNothingKept = refusedError{"no callback is kept: there is nothing to show of it"}
)

// elsewhereError is a refusal that counts only if the operation was done nowhere.
type elsewhereError struct{ error }

func (e elsewhereError) Unwrap() error { return e.error }

// Operate does to the records of a ref_id what an operator asks for. He has to be sure
// of it to forget what the app has accepted or what is kept, and to redeliver what is held.
func Operate(all []Namespace, refID string, what record.Operation, sure bool) (Answer, error) {
	return answer(all, refID, func(s *store.Store, n Namespace) (record.Snapshot, error) {
		return s.Change(n.place(refID), n.Hold, func(r *record.Record, now int64) error {
			if what == record.OperationRedeliver {
				return n.redeliver(r, sure, now, time.Now().UnixMilli())
			}
			return r.Operate(what, sure, now, time.Now().UnixMilli())
		})
	})
}

// redeliver makes what is kept due now.
func (n Namespace) redeliver(r *record.Record, evenHeld bool, now, came int64) error {
	nothing, inFlight := r.Kept == nil, record.Snapshot{Record: r, Now: now}.InFlight()
	if n.Hold && r.Doubtful() != nil && !evenHeld && !nothing && !inFlight {
		return errHeld
	}
	err := r.Operate(record.OperationRedeliver, false, now, came)
	if nothing && errors.As(err, new(record.NotDoneError)) { // another store may keep it
		return elsewhereError{err}
	}
	return err
}

// Reveal returns the callbacks that are kept of a ref_id, as decode reads them.
func Reveal(all []Namespace, refID string, decode func(payload string) (Callback, error)) (Revealed, error) {
	done, errs, err := each(all, func(s *store.Store, n Namespace) (c Callback, err error) {
		shot, err := s.Record(n.key(refID))
		switch {
		case err != nil:
		case shot.Empty():
			err = record.ErrNone
		case shot.Kept == nil:
			err = elsewhereError{errNothingKept}
		default:
			c, err = decode(shot.Kept.Payload)
		}
		c.Account, c.RefID, c.Store = n.Account, refID, s.String()
		return c, err
	})
	return Revealed{Callbacks: done, Errors: errs}, err
}

// UnavailableError tells of stores that could not be asked.
type UnavailableError struct{ error }

func answer(all []Namespace, refID string, work func(s *store.Store, n Namespace) (record.Snapshot, error)) (Answer, error) {
	done, errs, err := each(all, func(s *store.Store, n Namespace) (v Record, err error) {
		shot, err := work(s, n)
		if err == nil {
			v = view(n, s, refID, shot)
		}
		return v, err
	})
	return Answer{Records: done, Errors: errs}, err
}

// each does work in every namespace and returns what came of it where it was done, and
// the errors of the others. If it was done nowhere, the error is record.ErrNone if that
// is the only reason, the first refusal if each record refused, and else an
// UnavailableError: the record may be in the store that does not answer.
func each[T any](all []Namespace, work func(s *store.Store, n Namespace) (T, error)) (done []T, texts []string, err error) {
	var errs []error
	var refused, failed error
	for _, n := range all {
		err := n.with(func(s *store.Store) error {
			came, err := work(s, n)
			if err == nil {
				done = append(done, came)
			}
			return err
		})
		elsewhere := errors.As(err, new(elsewhereError))
		switch {
		case err == nil, errors.Is(err, record.ErrNone):
			continue
		case !elsewhere && !errors.As(err, new(record.NotDoneError)) && !errors.As(err, new(refusedError)):
			failed = err
		case refused == nil:
			refused = err
		}
		if !elsewhere {
			errs = append(errs, err)
		}
	}
	switch {
	case len(done) > 0:
		for _, err := range errs {
			texts = append(texts, err.Error())
		}
		return done, texts, nil
	case failed != nil:
		return nil, nil, UnavailableError{errors.Join(errs...)}
	case refused != nil:
		return nil, nil, refused
	default:
		return nil, nil, record.ErrNone
	}
}

// Filter selects records; the zero Filter selects all.
type Filter struct {
	State record.State
	Since time.Duration // changed within it
}

func (f Filter) selects(n Namespace, shot record.Snapshot) bool {
	changed := time.Duration(shot.Now-shot.Changed) * time.Millisecond
	return (f.State == "" || shot.State(n.Hold) == f.State) && (f.Since <= 0 || changed <= f.Since)
}

// List visits the records of all namespaces, in no order, one at a time. An error
// of visit, or the end of ctx, ends it.
func List(ctx context.Context, all []Namespace, only Filter, visit func(Record) error) error {
	return walk(ctx, all, only, func(s *store.Store, n Namespace, refID string, shot record.Snapshot) error {
		return visit(view(n, s, refID, shot))
	})
}

func walk(ctx context.Context, all []Namespace, only Filter, visit func(s *store.Store, n Namespace, refID string, shot record.Snapshot) error) error {
	for _, n := range all {
		err := n.with(func(s *store.Store) error {
			return s.List(ctx, n.key(""), func(key string, shot record.Snapshot) error {
				if !only.selects(n, shot) {
					return nil
				}
				return visit(s, n, strings.TrimPrefix(key, n.key("")), shot)
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}
