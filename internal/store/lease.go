package store

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/record"
	"go.uber.org/zap"
)

// Margin is how much longer than the delivery may take its record is claimed,
// so that it has settled before anybody takes over. A variable, so that tests need
// not wait as long.
var Margin = 5 * time.Second

// underWay are the deliveries of this process, each until its lease is over by a clock
// that nobody sets. It is one for all stores: after a reload with other settings the same
// records are reached through another.
var underWay = deliveries{leases: make(map[string][]*Lease)}

type deliveries struct {
	mu     sync.Mutex
	leases map[string][]*Lease // by the record's key
}

func (d *deliveries) begin(l *Lease) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leases[l.Key] = append(d.without(l), l)
}

func (d *deliveries) end(l *Lease) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leases[l.Key] = d.without(l); len(d.leases[l.Key]) == 0 {
		delete(d.leases, l.Key)
	}
}

// without returns the others under the key of a delivery.
func (d *deliveries) without(l *Lease) []*Lease {
	return slices.DeleteFunc(d.leases[l.Key], func(other *Lease) bool { return other.settlement.Owner == l.settlement.Owner })
}

// hand replaces what a delivery's claim has put into the store.
func (d *deliveries) hand(l *Lease, r *record.Record, value string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l.record, l.value = r, value
}

// of returns the claims of the deliveries that are under way for a key, with the store
// that each was made in.
func (d *deliveries) of(key string, now time.Time) (claims []record.Claim, stores []*Store) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.leases[key] {
		if now.Before(l.until) {
			claims, stores = append(claims, *l.record.Claim), append(stores, l.store)
		}
	}
	return claims, stores
}

// Lease is a claim of one delivery, which has to be settled.
type Lease struct {
	Place

	store      *Store
	hold       bool // on_doubt hold
	settlement record.Settlement
	until      time.Time // the lease's end by our own clock, counted from before the claim: never later

	value  string         // what the claim has put into the store
	record *record.Record // the same
	now    int64          // the store's time then
	then   time.Time      // and our own

	dead atomic.Bool
}

// Dead tells, after Settle, that what is kept is not delivered any more by itself.
func (l *Lease) Dead() bool { return l.dead.Load() }

func (l *Lease) claimed(r *record.Record, found Found) {
	l.value, l.record, l.now, l.then = found.Value, r, found.Now, time.Now()
	r.Claim.End = record.End(found.Value)
	l.settlement.End = r.Claim.End
	underWay.begin(l)
}

// Kept is the callback that the record keeps, nil without a spool.
func (l *Lease) Kept() *record.Kept { return l.record.Kept }

// Tried tells of the delivery of what is kept, before Settle: what it took, how long to
// wait with the next if the app has not accepted it, and whether a handler panicked
// before the app answered.
func (l *Lease) Tried(took, pause time.Duration, panicked bool) {
	l.settlement.Took, l.settlement.Pause, l.settlement.Panicked = took, pause, panicked
}

var errTaken = errors.New("IAK's answer came when the claim was over: another delivery has taken the record")

// Hand notes, before the app gets a callback about which IAK was asked, what IAK has
// said. Without an error the claim may come into doubt from now on. goods are the digest
// of what is delivered; payload is the callback with goods that only IAK's answer has,
// empty if it has no more.
func (l *Lease) Hand(goods [8]byte, payload string, confirmed bool) (err error) {
	s, began := l.store, time.Now()
	defer func() { observe(s.Kind(), "hand", began, err) }()
	h := &record.Handed{Owner: l.settlement.Owner, Goods: goods, Payload: payload, Confirmed: confirmed}
	found := Found{Value: l.value}
	for range tries {
		r, err := record.Decode(found.Value)
		if err != nil {
			return err
		}
		kept := r.Kept != nil
		if !r.Hand(h) {
			return errTaken
		}
		change := &Swap{Key: l.Key, Old: found.Value, New: r.Encode(), Keep: r.Life(l.Retention, l.hold), Began: began}
		if found, err = s.swap(change, l.Index, kept, r); err != nil {
			return err
		}
		if found.Swapped || found.Value == change.New { // now, or before and its answer was lost
			l.settlement.Outcome.Goods = goods
			underWay.hand(l, r, change.New)
			return nil
		}
	}
	return errBusy
}

// Settle ends the claim by what became of the delivery; code is the app's status
// code, for record.Accepted and record.Assumed. What the store cannot record now
// is tried again in the background until the lease is over. A second Settle, when
// the app's answer came later than it was given up, makes of the record what that
// answer says.
func (l *Lease) Settle(ending record.Ending, code int) {
	s := l.settlement
	s.Ending, s.Outcome.Code = ending, code
	err := l.settle(s)
	if err == nil {
		underWay.end(l)
		return
	}
	log := func() *zap.Logger {
		return l.store.Log().With(zap.String("key", l.Key), zap.String("verdict", string(ending)))
	}
	log().Warn("the store failed after the app's answer; recording it is tried again until the lease is over", zap.Error(err))
	try := func() error { return l.settle(s) }
	l.store.later(&task{try: try, successes: 1, until: l.until, end: func(err error) {
		underWay.end(l)
		if err != nil {
			storeErrors.WithLabelValues(l.store.Kind(), "settle_lost").Inc()
			log().Error("the app's answer could not be recorded in time; the callback may be delivered again", zap.Error(err))
		}
	}})
}

// Leave leaves the claim to the end of its lease, because nobody knows what became
// of the delivery. Until then it may still be settled.
func (l *Lease) Leave() {
	time.AfterFunc(l.until.Sub(l.store.now()), func() {
		guard.Do("the end of a lease", func() { underWay.end(l) })
	})
}

// settle is one try to settle, which is measured.
func (l *Lease) settle(by record.Settlement) error {
	began := time.Now()
	claimed := Found{Value: l.value, Now: l.now + time.Since(l.then).Milliseconds()}
	err := l.store.settle(claimed, l, &by, began)
	observe(l.store.Kind(), "settle", began, err)
	return err
}

// settle makes of what stands there what a settlement comes to, if it does, and what
// it comes to by then if something else stands there.
func (s *Store) settle(found Found, l *Lease, by *record.Settlement, began time.Time) error {
	for range tries {
		r, err := record.Decode(found.Value)
		if err != nil {
			return err
		}
		kept := r.Kept != nil
		if !r.Settle(by, found.Now) {
			return nil
		}
		l.dead.Store(r.Kept != nil && r.Kept.Dead)
		change := &Swap{Key: l.Key, Old: found.Value, New: r.Encode(), Keep: r.Life(l.Retention, l.hold), Began: began}
		if r.Claim == nil && r.Kept != nil && r.Kept.Due == 0 {
			change.Lease = r.Kept.Wait
		}
		found, err = s.swap(change, l.Index, kept, r)
		if err != nil {
			return err
		}
		if found.Swapped || found.Value == change.New { // now, or before and its answer was lost
			return nil
		}
	}
	return errBusy
}

// giveBackFor is how long a claim with an unknown outcome is pursued: a frozen
// Redis carries it out when it thaws.
const giveBackFor = time.Hour

// giveBack releases a claim of which it is not known whether it was, or will
// be, carried out. Two successes are needed: a thawing Redis may run the first
// try before the claim that waits on another connection.
func (s *Store) giveBack(l *Lease) {
	by := l.settlement
	by.Ending = record.Unsent
	s.later(&task{
		try: func() error {
			began := time.Now()
			found, err := s.Read(l.Key, began)
			if err != nil {
				return err
			}
			return s.settle(found, l, &by, began)
		},
		successes: 2,
		minor:     true,
		until:     time.Now().Add(giveBackFor),
		end: func(err error) {
			if err != nil {
				s.Log().Error("a claim of unknown outcome could not be given back; its ref_id may be locked until the lease is over",
					zap.String("key", l.Key), zap.Error(err))
			}
		},
	})
}

// Drain waits until what was left to the background is done, and tells what is given
// up then: Caddy ends.
func (s *Store) Drain(until time.Time) { s.retry.drain(until) }

// later hands a task to the background, which holds the store meanwhile.
func (s *Store) later(t *task) {
	release, end := s.Hold(), t.end
	t.end = func(err error) {
		defer release()
		end(err)
	}
	s.retry.add(t)
}
