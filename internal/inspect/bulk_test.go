package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/storetest"
	"go.uber.org/zap"
)

func quiet(Progress) error { return nil }

// All that is dead is due, no more than fifty in a second, and nothing else is.
func TestRedeliverAll(t *testing.T) {
	n := inFile(t)
	other := n
	other.Account = "bar"
	const dying = 130
	for i := range dying {
		put(t, n, fmt.Sprint("dead", i), &record.Record{Attempt: 9, Changed: time.Now().UnixMilli(), Kept: kept(dead)})
	}
	others := map[string]*record.Record{
		"spooled": {Kept: kept(nil)}, "held": {Doubt: &success, Kept: kept(never)}, "accepted": {Accepted: &success},
		"flies": {Claim: claim(success, time.Hour), Kept: kept(dead)},
	}
	before := make(map[string]string)
	for refID, r := range others {
		put(t, n, refID, r)
		before[refID] = get(t, n, refID).Encode()
	}
	put(t, n, "old", &record.Record{Changed: time.Now().Add(-2 * time.Hour).UnixMilli(), Kept: kept(dead)})
	put(t, n, "doubtful", &record.Record{Changed: time.Now().UnixMilli(), Doubt: &success, Kept: kept(dead)})
	put(t, other, "dead", &record.Record{Changed: time.Now().UnixMilli(), Kept: kept(dead)})

	only := Filter{State: Dead, Since: time.Hour}
	got, err := RedeliverAll(t.Context(), []Namespace{n}, only, quiet)
	if err != nil || got != (Progress{Redelivered: dying, Held: 1, Done: true}) {
		t.Fatalf("%+v, %v", got, err)
	}
	var due []int64
	for i := range dying {
		shot := get(t, n, fmt.Sprint("dead", i))
		if shot.State(true) != Spooled || shot.Kept.Payload != secret || shot.Attempt != 9 {
			t.Fatalf("it is %+v, %+v", shot.Record, shot.Kept)
		}
		if late := shot.Kept.Due - shot.Kept.Came; late < -100 || late > 1000 {
			t.Errorf("its max_age begins %d ms before it is due", late)
		}
		due = append(due, shot.Kept.Due)
	}
	slices.Sort(due)
	for i := range due[50:] {
		if took := due[i+50] - due[i]; took < 995 {
			t.Errorf("51 are due within %d ms", took)
		}
	}
	if now := time.Now().UnixMilli(); due[0] > now || due[dying-1] > now+dying*spread.Milliseconds() {
		t.Errorf("the first is due in %d ms, the last in %d ms", due[0]-now, due[dying-1]-now)
	}
	for refID, want := range before {
		if get(t, n, refID).Encode() != want {
			t.Errorf("%s is %+v now", refID, get(t, n, refID).Record)
		}
	}
	for _, shot := range []record.Snapshot{get(t, n, "old"), get(t, n, "doubtful"), get(t, other, "dead")} {
		if shot.State(true) != Dead {
			t.Errorf("%+v was touched", shot.Record)
		}
	}
	if got, err = RedeliverAll(t.Context(), []Namespace{n}, only, quiet); err != nil || got.Redelivered != 0 {
		t.Errorf("again: %+v, %v", got, err)
	}
}

// What is spooled is due at once; what a scan shows twice is counted once.
func TestRedeliverAllSpooled(t *testing.T) {
	n := inFile(t)
	for _, refID := range []string{"order1", "order2"} {
		put(t, n, refID, &record.Record{Kept: kept(func(k *record.Kept) { k.Due = time.Now().Add(time.Hour).UnixMilli() })})
	}
	s := n.Store.(*memoryUse).store
	s.Engine = twice{s.Engine}
	got, err := RedeliverAll(t.Context(), []Namespace{n}, Filter{State: Spooled}, quiet)
	if err != nil || got != (Progress{Redelivered: 2, Done: true}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, refID := range []string{"order1", "order2"} {
		if shot := get(t, n, refID); shot.Kept.Due > shot.Now+spread.Milliseconds() {
			t.Errorf("%s is due in %d ms", refID, shot.Kept.Due-shot.Now)
		}
	}
}

// twice shows each record twice, as Redis may.
type twice struct{ store.Engine }

func (e twice) Scan(ctx context.Context, prefix string, visit func(key string, found store.Found) error) error {
	return e.Engine.Scan(ctx, prefix, func(key string, found store.Found) error {
		return errors.Join(visit(key, found), visit(key, found))
	})
}

// What becomes of an order after it was seen is left as it is.
func TestRedeliverAllMeanwhile(t *testing.T) {
	n := inFile(t)
	put(t, n, "order", &record.Record{Kept: kept(dead)})
	s := n.Store.(*memoryUse).store
	engine := s.Engine
	for name, r := range map[string]*record.Record{
		"accepted": {Accepted: &success}, "delivered": {Claim: claim(success, time.Hour), Kept: kept(dead)}, "redelivered": {Kept: kept(nil)}, "forgotten": {},
	} {
		put(t, n, "order", &record.Record{Kept: kept(dead)})
		s.Engine = meanwhile{engine, func() { put(t, n, "order", r) }}
		got, err := RedeliverAll(t.Context(), []Namespace{n}, Filter{State: Dead}, quiet)
		if err != nil || got != (Progress{Done: true}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if after := get(t, n, "order"); after.Encode() != r.Encode() && after.Claim == nil {
			t.Errorf("%s: it is %+v now", name, after.Record)
		}
	}
}

// meanwhile lets something happen after a record was seen.
type meanwhile struct {
	store.Engine
	happens func()
}

func (e meanwhile) Scan(ctx context.Context, prefix string, visit func(key string, found store.Found) error) error {
	return e.Engine.Scan(ctx, prefix, func(key string, found store.Found) error {
		e.happens()
		return visit(key, found)
	})
}

// An operator is told how far it is; one who has gone, or a store that fails, ends it
// there, and what was done stays done.
func TestRedeliverAllEnds(t *testing.T) {
	every := tellEvery
	tellEvery = 0
	t.Cleanup(func() { tellEvery = every })
	gone := errors.New("he has gone")
	for _, tc := range []struct {
		name  string
		end   func(n Namespace, cancel context.CancelFunc) func(Progress) error
		words string
	}{
		{"he has gone", func(Namespace, context.CancelFunc) func(Progress) error {
			return func(p Progress) error {
				if p.Redelivered == 3 {
					return gone
				}
				return nil
			}
		}, gone.Error()},
		{"his request is over", func(_ Namespace, cancel context.CancelFunc) func(Progress) error {
			return func(p Progress) error {
				if p.Redelivered == 3 {
					cancel()
				}
				return nil
			}
		}, context.Canceled.Error()},
		{"the store fails", func(n Namespace, _ context.CancelFunc) func(Progress) error {
			s := n.Store.(*memoryUse).store
			f := &fails{Engine: s.Engine}
			s.Engine = f
			return func(p Progress) error {
				f.now = p.Redelivered == 3
				return nil
			}
		}, storetest.ErrLost.Error()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := inFile(t)
			for i := range 5 {
				put(t, n, fmt.Sprint("order", i), &record.Record{Kept: kept(dead)})
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			tell, told := tc.end(n, cancel), 0
			got, err := RedeliverAll(ctx, []Namespace{n}, Filter{State: Dead}, func(p Progress) error {
				told++
				if p.Done || p.Redelivered != told {
					t.Errorf("told %+v as number %d", p, told)
				}
				return tell(p)
			})
			if err == nil || !strings.Contains(err.Error(), tc.words) || got != (Progress{Redelivered: 3}) {
				t.Errorf("%+v, %v", got, err)
			}
			if f, ok := n.Store.(*memoryUse).store.Engine.(*fails); ok {
				f.now = false
			}
			left := 0
			for i := range 5 {
				if get(t, n, fmt.Sprint("order", i)).State(true) == Dead {
					left++
				}
			}
			if left != 2 {
				t.Errorf("%d are dead still, want 2", left)
			}
		})
	}
}

// fails is a store that fails from some time on.
type fails struct {
	store.Engine
	now bool
}

func (e *fails) Swap(s *store.Swap) (store.Found, error) {
	if e.now {
		return store.Found{}, storetest.ErrLost
	}
	return e.Engine.Swap(s)
}

// What is kept while nobody here delivers it is told with the store, which answers all
// the same.
func TestAskUndelivered(t *testing.T) {
	n := inFile(t)
	n.Spool = false
	bar, elsewhere := n, n
	bar.Account, elsewhere.KeyPrefix = "bar", "x:"
	for i := range 3 {
		put(t, n, fmt.Sprint("order", i), &record.Record{Kept: kept(nil)})
	}
	put(t, n, "accepted", &record.Record{Accepted: &success})
	health := Ask([]Namespace{n, bar})
	if h := health.Stores[0]; !health.OK || !h.OK || h.Undelivered != 3 || !strings.HasPrefix(h.Warning, "3 callbacks are kept here, and this Caddy has no spool") {
		t.Errorf("got %+v", health)
	}
	bar.Spool = true
	elsewhere.Spool = true
	if h := Ask([]Namespace{n, bar, elsewhere}).Stores[0]; h.Undelivered != 0 || h.Warning != "" {
		t.Errorf("with a spool in the same place: %+v", h)
	}

	// Each place by itself: another prefix has another index.
	engine := &places{Memory: storetest.NewMemory(), waiting: map[string]int{"iak:": 1, "x:": 5}}
	use := &memoryUse{id: "places", store: &store.Store{Engine: engine, Log: zap.NewNop}}
	n.Store, elsewhere.Store, bar.Store, bar.Spool = use, use, use, false
	if h := Ask([]Namespace{n, bar, elsewhere}).Stores[0]; h.Undelivered != 1 || !strings.HasPrefix(h.Warning, "1 callback is kept here") {
		t.Errorf("beside a place with a spool: %+v", h)
	}
	elsewhere.Spool = false
	if h := Ask([]Namespace{n, bar, elsewhere}).Stores[0]; h.Undelivered != 6 {
		t.Errorf("two places without: %+v", h)
	}
	engine.refuses = true // as Redis does when its user lacks the right
	if health := Ask([]Namespace{n}); !health.OK || health.Stores[0].Undelivered != 0 {
		t.Errorf("what cannot be counted: %+v", health)
	}
}

// places has an index for each prefix.
type places struct {
	*storetest.Memory
	waiting map[string]int
	refuses bool
}

func (e *places) Due(q *store.DueQuery) (store.DuePage, error) {
	if e.refuses {
		return store.DuePage{}, storetest.ErrLost
	}
	return store.DuePage{Waiting: e.waiting[q.Index]}, nil
}
