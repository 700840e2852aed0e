package store

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"go.uber.org/zap"
)

// tries is how often a change is begun again because the record has changed
// between reading and writing.
const tries = 10

var errBusy = errors.New("the record changes all the time: try again")

// Store keeps one record for each key, in an engine. Its operations answer
// within the engine's timeout, and can be repeated without harm: what was carried
// out while its answer was lost is recognized.
type Store struct {
	Engine

	// Now tells the time by which a delivery of this process is still under way; nil is
	// time.Now, whose monotonic part nobody sets.
	Now func() time.Time

	// Log returns the logger for what may outlive the configuration that asked.
	Log func() *zap.Logger

	// Hold keeps the store open until release is called. The caller of an operation
	// holds it meanwhile; this is for what goes on in the background.
	Hold func() (release func())

	retry retry

	repaired sync.Map // from an index to when it was put right last

	waiting sync.Map // from an index to how many keys were in it by the last answer, *atomic.Int64
}

// Place is where an order's record is.
type Place struct {
	Key       string
	Index     string        // of what is kept: what the key begins with
	Retention time.Duration // how long the record is kept after each change, unless it waits for an operator or for the app
}

// Waiting is how many callbacks are kept in an index, by the store's last answer.
func (s *Store) Waiting(index string) int {
	if n, ok := s.waiting.Load(index); ok {
		return int(n.(*atomic.Int64).Load())
	}
	return 0
}

// Due returns a page of an index, and notes how many keys are in it.
func (s *Store) Due(q *DueQuery) (page DuePage, err error) {
	q.Began = time.Now()
	defer func() { observe(s.Kind(), "due", q.Began, err) }()
	if page, err = s.Engine.Due(q); err == nil {
		s.count(q.Index, page.Waiting)
	}
	return page, err
}

// Correct puts a hint right that was read, if it is still the same; 0 drops it.
func (s *Store) Correct(index string, read Hint, at int64) error {
	return s.Engine.Correct(index, read, at, time.Now())
}

// RepairEvery is how often an index is put right, beside once for each opened store.
const RepairEvery = time.Hour

// Repair puts into an index what it lacks, unless that was done within RepairEvery: a
// reload shares the store, and would go over all keys again.
func (s *Store) Repair(ctx context.Context, index string) error {
	now := time.Now()
	if last, done := s.repaired.Swap(index, now); done && now.Sub(last.(time.Time)) < RepairEvery {
		s.repaired.Store(index, last)
		return nil
	}
	err := s.Engine.Repair(ctx, index, record.Keeps)
	if err != nil {
		s.repaired.Delete(index)
	}
	return err
}

// swap makes a change of a record that had kept something before, or not.
func (s *Store) swap(change *Swap, index string, was bool, r *record.Record) (Found, error) {
	change.Index, change.Was, change.Is = index, was, r.Kept != nil
	found, err := s.Swap(change)
	if err == nil && found.Swapped && (change.Was || change.Is) {
		s.count(index, found.Waiting)
	}
	return found, err
}

func (s *Store) count(index string, waiting int) {
	n, ok := s.waiting.Load(index)
	if !ok {
		n, _ = s.waiting.LoadOrStore(index, new(atomic.Int64))
	}
	n.(*atomic.Int64).Store(int64(waiting))
}

// Claim takes the record at a place for one delivery, or says why not. A lease
// comes with the verdict record.Forwarded only, and has to be settled. After an error the
// claim may have been made all the same: then it is given back in the background.
func (s *Store) Claim(at Place, q *record.Request) (*Lease, record.Decision, error) {
	l := &Lease{store: s, Place: at, hold: q.Hold, settlement: record.Settlement{Owner: q.Owner, Outcome: q.Outcome}}
	// Without a look, on the guess that there is no record. But when something is due, the
	// store's clock says.
	return l.take(q.Lease, q.Later, func(r *record.Record, now int64) record.Decision { return r.Decide(q, now) })
}

// Redeliver is Claim for what is kept at a place, if that is due; the lease has it.
func (s *Store) Redeliver(at Place, q *record.Redelivery) (*Lease, record.Decision, error) {
	l := &Lease{store: s, Place: at, hold: q.Hold, settlement: record.Settlement{Owner: q.Owner}}
	asked := false
	return l.take(q.Lease, true, func(r *record.Record, now int64) record.Decision {
		own := r.Claim != nil && r.Claim.Owner == q.Owner
		switch k := r.Kept; {
		case own && asked: // it was claimed before, and newer news may wait behind it by now
		case k != nil && (!own || r.Claim.Covers(k.Outcome)): // what is known of its goods is not its news
			l.settlement.Outcome = k.News()
		case own:
			l.settlement.Outcome = r.Claim.News()
		}
		asked = true
		return r.Redeliver(q, now)
	})
}

// take makes of the record what decide makes of it, and returns the lease if it is
// claimed by that.
func (l *Lease) take(lease time.Duration, look bool, decide func(r *record.Record, now int64) record.Decision) (claimed *Lease, d record.Decision, err error) {
	s, began := l.store, time.Now()
	defer func() { observe(s.Kind(), "claim", began, err) }()
	l.until = s.now().Add(lease)
	var found Found
	if _, stores := underWay.of(l.Key, s.now()); look || slices.Contains(stores, s) { // else its record may be gone
		if found, err = s.Read(l.Key, began); err != nil {
			return nil, d, err
		}
	}
	for range tries {
		r, err := s.decode(l.Key, found)
		if err != nil {
			return nil, d, err
		}
		kept := r.Kept != nil
		d = decide(r, found.Now)
		claims := d.Verdict == record.Forwarded
		switch {
		case !claims && !d.Changed:
			return nil, d, nil
		case claims && r.Claim.End != 0: // made before; its answer was lost
			l.claimed(r, found)
			return l, d, nil
		}
		change := &Swap{Key: l.Key, Old: found.Value, New: r.Encode(), Keep: r.Life(l.Retention, l.hold), Claim: true, Began: began}
		if claims {
			change.Lease = lease
		}
		found, err = s.swap(change, l.Index, kept, r)
		switch {
		case errors.Is(err, ErrUnreadable):
			return nil, d, err // nothing was claimed, nor will be
		case err != nil && claims:
			s.giveBack(l)
			return nil, d, err
		case err != nil:
			return nil, d, err
		case !claims && (found.Swapped || found.Value == change.New): // now, or before and its answer was lost
			return nil, d, nil
		case found.Swapped:
			l.claimed(r, found)
			return l, d, nil
		}
	}
	return nil, d, errBusy
}

// Record returns the record under a key, an empty one if there is none.
func (s *Store) Record(key string) (record.Snapshot, error) {
	found, err := s.Read(key, time.Now())
	if err != nil {
		return record.Snapshot{}, err
	}
	return s.snapshot(key, found)
}

// Change applies a change to a record, unless the change returns an error, and
// returns the record as it is then, or as it was found. The change may be
// applied more than once, each time to the record as it is by then.
func (s *Store) Change(at Place, hold bool, apply func(r *record.Record, now int64) error) (record.Snapshot, error) {
	began := time.Now()
	found, err := s.Read(at.Key, began)
	if err != nil {
		return record.Snapshot{}, err
	}
	for range tries {
		shot, err := s.snapshot(at.Key, found)
		if err != nil {
			return shot, err
		}
		kept := shot.Kept != nil
		if err := apply(shot.Record, shot.Now); err != nil {
			return shot, err
		}
		change := &Swap{Key: at.Key, Old: found.Value, New: shot.Encode(), Keep: shot.Life(at.Retention, hold), Began: began}
		if found, err = s.swap(change, at.Index, kept, shot.Record); err != nil {
			return record.Snapshot{}, err
		}
		if found.Swapped || found.Value == change.New {
			shot.Now, shot.Expires = found.Now, found.Expires
			return shot, nil
		}
	}
	return record.Snapshot{}, errBusy
}

// List visits all records whose keys begin with prefix, in no order, one at a
// time; those that come or go meanwhile may be missed. One that cannot be read is
// passed over. An error of visit, or the end of ctx, ends it.
func (s *Store) List(ctx context.Context, prefix string, visit func(key string, shot record.Snapshot) error) error {
	return s.Scan(ctx, prefix, func(key string, found Found) error {
		if shot, err := s.snapshot(key, found); err == nil && !shot.Empty() {
			return visit(key, shot)
		}
		return nil
	})
}

func (s *Store) snapshot(key string, f Found) (record.Snapshot, error) {
	r, err := s.decode(key, f)
	if err != nil {
		r = new(record.Record)
	}
	return record.Snapshot{Record: r, Now: f.Now, Expires: f.Expires}, err
}

// decode reads a record that was found, and what this process knows of it: its own
// delivery that is under way keeps the claim, though the store may say by its clock that
// the lease is over, or the record has expired.
func (s *Store) decode(key string, f Found) (*record.Record, error) {
	r, err := record.Decode(f.Value)
	if err != nil {
		return nil, err
	}
	claims, stores := underWay.of(key, s.now())
	for i := range claims {
		if r.Claim == nil && stores[i] == s { // of another store it could be another record
			r.Claim = &claims[i]
		}
		if r.Claim != nil && r.Claim.Owner == claims[i].Owner {
			r.Claim.UnderWay = true
		}
	}
	return r, nil
}

func (s *Store) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}
