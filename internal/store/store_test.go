package store_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/storetest"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

const (
	key  = "iak:shop:order001"
	keep = 48 * time.Hour
)

var place = store.Place{Key: key, Index: "iak:", Retention: keep}

// tested is a store in memory, its log, and how often the background holds it.
type tested struct {
	*store.Store
	memory *storetest.Memory
	log    *observer.ObservedLogs
	held   *atomic.Int64
}

func newStore() *tested {
	core, logs := observer.New(zapcore.WarnLevel)
	log, held, memory := zap.New(core), new(atomic.Int64), storetest.NewMemory()
	return &tested{&store.Store{
		Engine: memory, Log: func() *zap.Logger { return log },
		Hold: func() func() { held.Add(1); return func() { held.Add(-1) } },
	}, memory, logs, held}
}

func request(who string, status record.Status) *record.Request {
	q := &record.Request{Outcome: record.Outcome{Status: status}, Lease: 35 * time.Second}
	copy(q.Owner[:], who)
	return q
}

// claims makes a claim and compares what it comes to.
func (s *tested) claims(t *testing.T, q *record.Request, want record.Verdict, attempt int) *store.Lease {
	t.Helper()
	lease, d, err := s.Claim(place, q)
	if err != nil || d.Verdict != want || d.Attempt != attempt || (lease != nil) != (want == record.Forwarded) {
		t.Fatalf("%+v, %v, want %s, attempt %d", d, err, want, attempt)
	}
	return lease
}

func (s *tested) trips(t *testing.T, what string, want int) {
	t.Helper()
	if n := s.memory.Trips(); n != want {
		t.Errorf("%s took %d trips, want %d", what, n, want)
	}
}

// A new callback, a settlement and a repeat of what was accepted are one trip
// each; what has to look first is two.
func TestStoreTrips(t *testing.T) {
	s := newStore()
	lease := s.claims(t, request("A", record.Process), record.Forwarded, 1)
	s.trips(t, "a new callback", 1)
	s.claims(t, request("B", record.Process), record.InFlight, 0)
	s.trips(t, "one in flight", 1)
	lease.Settle(record.Accepted, 200)
	s.trips(t, "a settlement", 1)
	s.claims(t, request("B", record.Process), record.Duplicate, 0)
	s.trips(t, "a duplicate", 1)
	lease = s.claims(t, request("C", record.Success), record.Forwarded, 1)
	s.trips(t, "progress", 2)
	lease.Settle(record.Unsent, 0)
	s.trips(t, "its settlement", 1)
	if _, err := s.Record(key); err != nil {
		t.Error(err)
	}
	s.trips(t, "a look", 1)
}

// What is kept without a claim is kept once, also when the answer was lost, and is due
// by the store's clock.
func TestStoreKeeps(t *testing.T) {
	payload := "the callback"
	for name, fault := range map[string]storetest.Fault{"at once": 0, "the answer was lost": storetest.Again} {
		s := newStore()
		q := request("A", record.Success)
		q.Keep, q.Later, q.Delay = &payload, true, time.Minute
		if fault != 0 {
			s.memory.Next(0, fault)
		}
		s.claims(t, q, record.Spooled, 0)
		shot, err := s.Record(key)
		if err != nil || shot.Kept == nil || shot.Kept.Payload != payload || shot.Kept.Due-shot.Now > time.Minute.Milliseconds() || shot.Kept.Due < shot.Now {
			t.Errorf("%s: %+v, %v, want it to be due in a minute", name, shot.Kept, err)
		}
		s.claims(t, request("B", record.Success), record.Spooled, 0)
		s.claims(t, request("C", record.Failed), record.Conflict, 0)
	}
}

// What is kept is claimed by one of those who find it due, also when the answer was
// lost; refused, it is kept on, and accepted it is dropped.
func TestStoreRedelivers(t *testing.T) {
	payload := "the callback"
	for name, fault := range map[string]storetest.Fault{"at once": storetest.None, "the answer was lost": storetest.Again} {
		s := newStore()
		q := request("A", record.Success)
		q.Keep, q.Later = &payload, true
		s.claims(t, q, record.Spooled, 0)
		redeliver := func(who string, want record.Verdict, attempt int) *store.Lease {
			t.Helper()
			again := &record.Redelivery{Lease: 35 * time.Second, Longest: 24 * time.Hour}
			copy(again.Owner[:], who)
			lease, d, err := s.Redeliver(place, again)
			if err != nil || d.Verdict != want || d.Attempt != attempt || (lease != nil) != (want == record.Forwarded) {
				t.Fatalf("%s: %+v, %v, want %s, attempt %d", name, d, err, want, attempt)
			}
			return lease
		}
		s.memory.Next(storetest.None, fault)
		lease := redeliver("B", record.Forwarded, 1)
		if lease.Kept().Payload != payload {
			t.Errorf("%s: %+v is delivered", name, lease.Kept())
		}
		redeliver("C", record.InFlight, 0)
		lease.Tried(time.Second, time.Hour, false)
		lease.Settle(record.Released, 500)
		redeliver("D", record.NotDue, 0)
		s.claims(t, q, record.Spooled, 0) // it came again
		lease = redeliver("D", record.Forwarded, 2)
		if tries := lease.Kept().Tries; len(tries) != 1 || tries[0].Status != 500 || tries[0].Took != time.Second {
			t.Errorf("%s: the tries are %+v", name, tries)
		}
		if n := s.Waiting("iak:"); n != 1 {
			t.Errorf("%s: %d are kept, want 1", name, n)
		}
		lease.Settle(record.Released, 500)
		lease = redeliver("E", record.Forwarded, 3)
		lease.Settle(record.Accepted, 200)
		if n := s.Waiting("iak:"); n != 0 {
			t.Errorf("%s: %d are kept, want none", name, n)
		}
		redeliver("F", record.Nothing, 0)
		s.claims(t, request("G", record.Success), record.Duplicate, 0)
	}
}

// A delivery of this process keeps its claim when the store's clock is set, also for
// another store on the same records, as a reload with other settings makes one; and in
// its own store when the record is gone. When it has died, the lease is over.
func TestStoreClockIsSet(t *testing.T) {
	s := newStore()
	other := &store.Store{Engine: s.memory, Log: s.Log, Hold: s.Hold}
	lease := s.claims(t, request("A", record.Success), record.Forwarded, 1)
	ahead, err := record.Decode(s.memory.Get(key))
	if err != nil {
		t.Fatal(err)
	}
	ahead.Claim.End -= time.Hour.Milliseconds() // as after a jump of the clock
	s.memory.Put(key, ahead.Encode())
	for _, through := range []*store.Store{s.Store, other} {
		if _, d, err := through.Claim(place, request("B", record.Success)); err != nil || d.Verdict != record.InFlight {
			t.Errorf("%+v, %v, want it to be in flight", d, err)
		}
	}
	s.memory.Put(key, "")
	if _, d, err := s.Claim(place, request("C", record.Success)); err != nil || d.Verdict != record.InFlight {
		t.Errorf("the record is gone: %+v, %v, want it to be in flight", d, err)
	}
	s.memory.Put(key, ahead.Encode())
	lease.Settle(record.Accepted, 200)
	s.claims(t, request("D", record.Success), record.Duplicate, 0)
}

// An operation that was carried out, but whose answer was lost, is recognized
// when it is repeated, by the client or in the background.
func TestStoreReplyLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for ending, want := range map[record.Ending]record.Decision{
			record.Accepted: {Verdict: record.Duplicate}, record.Released: {Verdict: record.Forwarded, Attempt: 2}, record.Unsent: {Verdict: record.Forwarded, Attempt: 1},
		} {
			for _, fault := range []storetest.Fault{storetest.Again, storetest.Lost} {
				s := newStore()
				s.memory.Next(storetest.Again, fault)
				lease := s.claims(t, request("A", record.Success), record.Forwarded, 1)
				lease.Settle(ending, 200)
				time.Sleep(time.Minute)
				if s.held.Load() != 0 {
					t.Error("the store is still held")
				}
				s.claims(t, request("B", record.Success), want.Verdict, want.Attempt)
			}
		}
	})
}

// A claim of which it is not known whether it was made is given back, also when
// it is carried out after the first try to do so.
func TestStoreGivesBack(t *testing.T) {
	for name, fault := range map[string]storetest.Fault{"made": storetest.Lost, "not made": storetest.Dropped, "made later": storetest.Executed} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore()
				s.memory.Next(fault)
				if _, _, err := s.Claim(place, request("A", record.Success)); !errors.Is(err, storetest.ErrLost) {
					t.Fatal(err)
				}
				if s.held.Load() != 1 {
					t.Error("nobody holds the store while it has something to do")
				}
				time.Sleep(time.Second) // the first try is over
				s.memory.Thaw()
				time.Sleep(time.Minute)
				if s.held.Load() != 0 {
					t.Error("the store is still held")
				}
				s.claims(t, request("B", record.Success), record.Forwarded, 1)
			})
		})
	}
}

// What the store cannot record is tried again until the lease is over, and then
// told.
func TestStoreSettleLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore()
		lease := s.claims(t, request("A", record.Success), record.Forwarded, 1)
		faults := make([]storetest.Fault, 1000)
		for i := range faults {
			faults[i] = storetest.Dropped
		}
		s.memory.Next(faults...)
		lease.Settle(record.Accepted, 200)
		time.Sleep(time.Minute)
		if s.held.Load() != 0 {
			t.Error("the store is still held after the lease")
		}
		var told []string
		for _, line := range s.log.All() {
			told = append(told, line.Level.String()+": "+line.Message)
		}
		if text := strings.Join(told, "\n"); len(told) != 2 || !strings.Contains(text, "warn: the store failed after the app's answer") ||
			!strings.Contains(text, "error: the app's answer could not be recorded") {
			t.Errorf("the log says\n%s", text)
		}
	})
}

// A late answer of the app counts after the delivery was given up, and a
// settlement never touches what another delivery has claimed since.
func TestStoreSettlesTwice(t *testing.T) {
	s := newStore()
	lease := s.claims(t, request("A", record.Success), record.Forwarded, 1)
	lease.Settle(record.Unsent, 0)
	other := s.claims(t, request("B", record.Success), record.Forwarded, 1)
	lease.Settle(record.Released, 0)
	s.claims(t, request("C", record.Success), record.InFlight, 0)
	lease.Settle(record.Accepted, 202) // a fact
	if shot, err := s.Record(key); err != nil || shot.Accepted == nil || shot.Accepted.Code != 202 || shot.Claim == nil {
		t.Errorf("%+v, %v, want the fact recorded beside the other claim", shot.Record, err)
	}
	other.Settle(record.Released, 0)
	s.claims(t, request("D", record.Success), record.Duplicate, 0)

	s = newStore()
	lease = s.claims(t, request("A", record.Success), record.Forwarded, 1)
	lease.Settle(record.Assumed, 200)
	if shot, _ := s.Record(key); !shot.Assumed {
		t.Errorf("%+v, want it assumed", shot.Record)
	}
	lease.Settle(record.Accepted, 200)
	s.claims(t, request("B", record.Success), record.Duplicate, 0)
}

// What cannot be read is never overwritten, and nothing is given back.
func TestStoreUnreadable(t *testing.T) {
	s := newStore()
	s.memory.Put(key, "another version")
	if _, _, err := s.Claim(place, request("A", record.Success)); !errors.Is(err, store.ErrUnreadable) {
		t.Errorf("claim: %v", err)
	}
	if _, err := s.Record(key); !errors.Is(err, store.ErrUnreadable) {
		t.Errorf("look: %v", err)
	}
	_, err := s.Change(place, false, func(r *record.Record, _ int64) error { r.Attempt = 5; return nil })
	if !errors.Is(err, store.ErrUnreadable) {
		t.Errorf("change: %v", err)
	}
	if s.held.Load() != 0 || s.memory.Get(key) != "another version" {
		t.Errorf("%d tasks, and %q stands there", s.held.Load(), s.memory.Get(key))
	}
}

// A change is applied to the record as it is: what came between looking and
// writing is seen, and one whose answer was lost counts as made.
func TestStoreChange(t *testing.T) {
	s := newStore()
	add := func(n int, meet func()) error {
		_, err := s.Change(place, false, func(r *record.Record, now int64) error {
			meet()
			meet = func() {} // once
			r.Attempt += n
			r.Changed = now
			return nil
		})
		return err
	}
	if err := add(1, func() {}); err != nil {
		t.Fatal(err)
	}
	if err := add(1, func() { _ = add(10, func() {}) }); err != nil {
		t.Fatal(err)
	}
	if shot, err := s.Record(key); err != nil || shot.Attempt != 12 {
		t.Errorf("%+v, %v, want all three changes", shot.Record, err)
	}
	refused := errors.New("no")
	before := s.memory.Get(key)
	if _, err := s.Change(place, false, func(r *record.Record, _ int64) error { r.Attempt = 9; return refused }); !errors.Is(err, refused) || s.memory.Get(key) != before {
		t.Errorf("a change that is refused: %v", err)
	}
	restless := func(r *record.Record, _ int64) error {
		s.memory.Put(key, (&record.Record{Attempt: r.Attempt + 1}).Encode())
		r.Attempt = 100
		return nil
	}
	if _, err := s.Change(place, false, restless); err == nil || !strings.Contains(err.Error(), "changes all the time") {
		t.Errorf("a record that never stands still: %v", err)
	}
}

// An index is put right once for each opened store, and again when that failed; a reload
// that shares the store does not go over all keys again.
func TestStoreRepairsOnce(t *testing.T) {
	s := newStore()
	repair := func() {
		t.Helper()
		if err := s.Repair(context.Background(), "iak:"); err != nil && !errors.Is(err, storetest.ErrLost) {
			t.Fatal(err)
		}
	}
	s.memory.Next(storetest.Lost)
	repair()
	repair()
	s.memory.Trips()
	repair()
	if n := s.memory.Trips(); n != 0 {
		t.Errorf("put right again, in %d trips", n)
	}
	if err := s.Repair(context.Background(), "other:"); err != nil || s.memory.Trips() != 1 {
		t.Errorf("another index is not put right: %v", err)
	}
}
