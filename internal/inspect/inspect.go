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
	return each(all, refID, func(s *store.Store, n Namespace) (record.Snapshot, error) {
		shot, err := s.Record(n.key(refID))
		if err == nil && shot.Empty() {
			err = record.ErrNone
		}
		return shot, err
	})
}

// Operate does to the records of a ref_id what an operator asks for.
func Operate(all []Namespace, refID string, what record.Operation, evenAccepted bool) (Answer, error) {
	return each(all, refID, func(s *store.Store, n Namespace) (record.Snapshot, error) {
		return s.Change(n.place(refID), n.Hold, func(r *record.Record, now int64) error {
			return r.Operate(what, evenAccepted, now, time.Now().UnixMilli())
		})
	})
}

// UnavailableError tells of stores that could not be asked.
type UnavailableError struct{ error }

// each does work in every namespace and returns the records that it was done on.
// If it was done on none, the error is record.ErrNone if that is the only
// reason, a record.NotDoneError if each record refused, and else an
// UnavailableError: the record may be in the store that does not answer.
func each(all []Namespace, refID string, work func(s *store.Store, n Namespace) (record.Snapshot, error)) (Answer, error) {
	var done Answer
	var errs []error
	var refused, failed error
	for _, n := range all {
		err := n.with(func(s *store.Store) error {
			shot, err := work(s, n)
			if err == nil {
				done.Records = append(done.Records, view(n, s, refID, shot))
			}
			return err
		})
		switch {
		case err == nil, errors.Is(err, record.ErrNone):
			continue
		case !errors.As(err, new(record.NotDoneError)):
			failed = err
		case refused == nil:
			refused = err
		}
		errs = append(errs, err)
	}
	switch {
	case len(done.Records) > 0:
		for _, err := range errs {
			done.Errors = append(done.Errors, err.Error())
		}
		return done, nil
	case failed != nil:
		return done, UnavailableError{errors.Join(errs...)}
	case refused != nil:
		return done, refused
	default:
		return done, record.ErrNone
	}
}

// Filter selects records; the zero Filter selects all.
type Filter struct {
	State record.State
	Since time.Duration // changed within it
}

// List visits the records of all namespaces, in no order, one at a time. An error
// of visit, or the end of ctx, ends it.
func List(ctx context.Context, all []Namespace, only Filter, visit func(Record) error) error {
	for _, n := range all {
		err := n.with(func(s *store.Store) error {
			return s.List(ctx, n.key(""), func(key string, shot record.Snapshot) error {
				v := view(n, s, strings.TrimPrefix(key, n.key("")), shot)
				changed := time.Duration(shot.Now-shot.Changed) * time.Millisecond
				if only.State != "" && v.State != only.State || only.Since > 0 && changed > only.Since {
					return nil
				}
				return visit(v)
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Ask asks the stores of all namespaces, each once, whether they answer.
func Ask(all []Namespace) Health {
	health := Health{OK: true, Stores: []StoreHealth{}}
	asked := make(map[string]bool)
	for _, n := range all {
		if asked[n.Store.ID()] {
			continue
		}
		asked[n.Store.ID()] = true
		h := StoreHealth{Store: n.Store.Kind(), OK: true}
		err := n.with(func(s *store.Store) error {
			h.Store = s.String()
			_, err := s.Record(n.key("")) // no order has an empty ref_id
			return err
		})
		if err != nil {
			h.OK, h.Error, health.OK = false, err.Error(), false
		}
		health.Stores = append(health.Stores, h)
	}
	return health
}

func view(n Namespace, s *store.Store, refID string, shot record.Snapshot) Record {
	v := Record{
		Account: n.Account, RefID: refID, State: shot.State(n.Hold), Attempt: shot.Attempt, Store: s.String(),
		Changed: time.UnixMilli(shot.Changed),
	}
	switch left := time.Duration(shot.Expires-shot.Now) * time.Millisecond; {
	case shot.Empty(): // just forgotten
		v.Expires = v.Changed
	case left < record.Forever/2:
		v.Expires = time.UnixMilli(shot.Expires)
	}
	if shot.Accepted != nil {
		v.Accepted, v.Code = shot.Accepted.Status.String(), shot.Accepted.Code
	}
	if shot.InFlight() {
		end := time.UnixMilli(shot.Claim.End)
		v.InFlight, v.Until = shot.Claim.Status.String(), &end
	} else if doubt := shot.Doubtful(); doubt != nil {
		v.InDoubt = doubt.Status.String()
		if shot.Doubt != nil && !shot.Doubt.Same(*doubt) {
			v.InDoubtBefore = shot.Doubt.Status.String()
		}
	}
	return v
}
