package spool

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
)

const (
	pageSize    = 100
	maxPages    = 10          // that one look reads: the next goes on from there
	repairEvery = time.Minute // the store is asked; it does so once an hour
	leaveFor    = time.Second // what another delivers, or what failed here
)

// Tick is the time between two looks at the index. A variable, so that tests need not wait
// as long.
var Tick = time.Second

// Slot tells whether a redelivery may begin.
type Slot int

// What Enter can say.
const (
	Go      Slot = iota // it may; leave has to be called
	Busy                // not now
	Unknown             // nobody here has such an account
)

// Done is what became of a try to deliver.
type Done struct {
	Unrouted bool          // nobody took it
	Leave    time.Duration // for how long this worker leaves it alone
}

// Worker finds what is due in one index of a store, and has it delivered. Its fields
// are set before Run.
type Worker struct {
	// Open returns the store, which stays open until Close.
	Open  func() (*store.Store, error)
	Close func()
	Index string

	// Asleep tells that there is nothing to look at; nil for never.
	Asleep func() bool

	// Ready tells whether a redelivery of anybody may begin.
	Ready func() bool

	// Enter asks for the beginning of one.
	Enter func(key string) (slot Slot, leave func())

	// Holds tells whether what came into doubt under a key waits for an operator.
	Holds func(key string) bool

	// Deliver delivers what is kept under a key.
	Deliver func(key string, kept *record.Kept) Done

	// Longest is the longest pause: for that what is unrouted is left alone. Latest is the
	// longest that anything has to wait, a delay or a lease perhaps: what is due later than
	// that from now was written before the clock was set back.
	Longest, Latest time.Duration

	// Unrouted is told of a key that nobody has taken, and for the how many'th time.
	Unrouted func(key string, times int)

	// Account is the account that a key belongs to.
	Account func(key string) string

	// Failed is told of a store that fails, or of nil when it answers again.
	Failed func(error)

	mu      sync.Mutex
	stopped bool
	active  map[string]bool // what is being delivered here
	left    map[uint64]left // what is left alone, by the hash of its key
	running sync.WaitGroup
	wake    chan struct{}
	survey  time.Time // when all that is kept is counted next

	// Only Run uses these.
	failing bool
	hints   []store.Hint // due, and not begun
	more    bool         // there is more behind what was looked at
	from    cursor       // where the next look goes on
	repair  time.Time    // when the index is put right next
}

// cursor is a place in the index.
type cursor struct {
	skip  int
	after store.Hint // the last that is passed over
}

type left struct {
	until   time.Time
	times   int // unrouted
	account string
}

var seed = maphash.MakeSeed()

// Run works until ctx ends. What is being delivered then goes on.
func (w *Worker) Run(ctx context.Context) {
	w.mu.Lock()
	w.active, w.left, w.wake = make(map[string]bool), make(map[uint64]left), make(chan struct{}, 1)
	w.mu.Unlock()
	surveys.add(w)
	defer surveys.remove(w)
	ticker := time.NewTicker(Tick)
	defer ticker.Stop()
	for {
		guard.Do("a look at what is due", func() { w.look(ctx) })
		for woken := true; woken; {
			select {
			case <-ctx.Done():
				w.stop()
				return
			case <-ticker.C:
				woken = false
			case <-w.wake: // a delivery has ended
				w.hints, _ = w.begin(w.hints)
				woken = len(w.hints) > 0 || !w.more
			}
		}
	}
}

// stop keeps redeliveries from beginning.
func (w *Worker) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
}

// Wait waits until nothing is being delivered any more, or the time is over. Nothing begins
// from then on, though Run, whose context has ended, may still be at a look.
func (w *Worker) Wait(until time.Time) {
	w.stop()
	guard.WaitUntil("waiting for redeliveries", w.running.Wait, until)
}

// look reads what is due, from where the last look ended: behind what is left alone. It
// reads on until there is enough to do: a store walks over all that is skipped.
func (w *Worker) look(ctx context.Context) {
	if w.Asleep != nil && w.Asleep() {
		return
	}
	s, err := w.Open()
	if err != nil {
		w.tell(err)
		return
	}
	defer w.Close()
	w.forget()
	at := w.from
	for n := range maxPages {
		limit := pageSize
		if !w.Ready() {
			limit = 1 // to know how many wait
		} else if n == 0 {
			w.hints = nil
		}
		page, err := s.Due(&store.DueQuery{Index: w.Index, Skip: at.skip, After: at.after, Limit: limit})
		if err != nil {
			w.tell(err)
			return
		}
		w.tell(nil)
		w.maintain(ctx, s, page.Waiting)
		if limit == 1 {
			return
		}
		waiting, begun := w.begin(page.Hints)
		w.hints = append(w.hints, waiting...)
		if w.more = len(page.Hints) == limit; !w.more {
			w.from = cursor{}
			return
		}
		at = cursor{at.skip + len(page.Hints) - begun, page.Hints[limit-1]} // what has begun is not due any more then
		switch {
		case len(w.hints) == 0:
			w.from = at
		case len(w.hints) >= pageSize:
			return
		}
	}
}

// tell reports the store's failing, and its answering again, once each.
func (w *Worker) tell(err error) {
	if failing := err != nil; failing != w.failing {
		w.failing = failing
		w.Failed(err)
	}
}

// maintain puts the index right now and then, and counts what is kept.
func (w *Worker) maintain(ctx context.Context, s *store.Store, waiting int) {
	now := time.Now()
	if !now.Before(w.repair) {
		w.repair = now.Add(repairEvery)
		w.background("putting the index of what is due right", func() error { return s.Repair(ctx, w.Index) })
	}
	w.mu.Lock()
	count := !now.Before(w.survey) && waiting > 0
	if count {
		w.survey = now.Add(24 * time.Hour) // until this one has ended
	}
	w.mu.Unlock()
	if waiting == 0 {
		surveys.set(w, nil)
	} else if count {
		w.background("counting what is kept", func() error {
			err := w.count(ctx, s)
			w.mu.Lock()
			defer w.mu.Unlock()
			// A fiftieth of the time at most.
			w.survey = time.Now().Add(max(surveyEvery, 50*time.Since(now)))
			return err
		})
	}
}

// background does something beside the looks, with the store held open.
func (w *Worker) background(what string, work func() error) {
	if _, err := w.Open(); err != nil {
		return
	}
	go guard.Do(what, func() {
		defer w.Close()
		_ = work() // what fails is done again
	})
}

// forget drops what was to be left alone until now, and is not asked for.
func (w *Worker) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for key, l := range w.left {
		if now.Sub(l.until) > max(w.Longest, time.Minute) {
			delete(w.left, key)
		}
	}
}

// begin begins to deliver what it can, and returns what has to wait, and how many have
// begun.
func (w *Worker) begin(hints []store.Hint) (waiting []store.Hint, begun int) {
	for _, hint := range hints {
		if !w.reserve(hint.Key) {
			continue
		}
		slot, leave := w.Enter(hint.Key)
		switch slot {
		case Busy:
			waiting = append(waiting, hint)
		case Unknown:
			w.unrouted(hint.Key)
		default:
			begun++
			go guard.Do("a redelivery", func() {
				defer w.ended(hint.Key)
				defer leave()
				w.deliver(hint)
			})
			continue
		}
		w.unreserve(hint.Key)
	}
	return waiting, begun
}

// reserve tells whether a key is neither being delivered nor left alone.
func (w *Worker) reserve(key string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped || w.active[key] || time.Now().Before(w.left[maphash.String(seed, key)].until) {
		return false
	}
	w.active[key] = true
	w.running.Add(1)
	return true
}

func (w *Worker) unreserve(key string) {
	w.mu.Lock()
	delete(w.active, key)
	w.mu.Unlock()
	w.running.Done()
}

func (w *Worker) ended(key string) {
	w.unreserve(key)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// leave leaves a key alone for some time, which nobody has taken so many times now.
func (w *Worker) leave(key string, d time.Duration, times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if hash := maphash.String(seed, key); d > 0 {
		w.left[hash] = left{time.Now().Add(d), times, w.Account(key)}
	} else {
		delete(w.left, hash)
	}
}

// countUnrouted adds how many callbacks of each account nobody has taken.
func (w *Worker) countUnrouted(to map[string]int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.left {
		if l.times > 0 {
			to[l.account]++
		}
	}
}

// unrouted leaves what nobody has taken to others, and asks again after the longest
// pause.
func (w *Worker) unrouted(key string) {
	w.mu.Lock()
	times := w.left[maphash.String(seed, key)].times + 1
	w.mu.Unlock()
	w.leave(key, w.Longest, times)
	w.Unrouted(key, times)
}

// deliver looks at what a hint names, and has it delivered if that is due.
func (w *Worker) deliver(hint store.Hint) {
	s, err := w.Open()
	if err != nil {
		w.leave(hint.Key, leaveFor, 0)
		return
	}
	defer w.Close()
	shot, err := s.Record(hint.Key)
	if err != nil {
		w.leave(hint.Key, leaveFor, 0)
		return
	}
	if at, due := w.due(hint.Key, shot); !due {
		_ = s.Correct(w.Index, hint, at) // or it is looked at again
		return
	}
	done := Done{Leave: leaveFor}
	guard.Do("a redelivery", func() { done = w.Deliver(hint.Key, shot.Kept) })
	if done.Unrouted {
		w.unrouted(hint.Key)
		return
	}
	w.leave(hint.Key, min(done.Leave, w.Longest), 0)
}

// IsUnrouted tells whether this worker has looked for somebody to take what is kept
// under a key of a store, and found nobody.
func (w *Worker) IsUnrouted(s *store.Store, key string) bool {
	w.mu.Lock()
	times := w.left[maphash.String(seed, key)].times
	w.mu.Unlock()
	if times == 0 {
		return false
	}
	mine, err := w.Open()
	if err != nil {
		return false
	}
	defer w.Close()
	return mine == s
}

// due tells whether what is kept of a record is to be delivered, and else the hint that
// it asks for.
func (w *Worker) due(key string, shot record.Snapshot) (at int64, due bool) {
	switch {
	case shot.Kept == nil:
		return 0, false
	case shot.Claim != nil:
		at = shot.Claim.End
	default:
		at = shot.Kept.Due
	}
	if at == record.Never {
		return at, !shot.Kept.Dead && !w.Holds(key) // held from before hold was switched off
	}
	return at, at <= shot.Now || at-shot.Now > w.Latest.Milliseconds()
}
