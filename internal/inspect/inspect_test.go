package inspect

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/storetest"
	"go.uber.org/zap"
)

// memoryUse is a store in memory, or one that cannot be opened.
type memoryUse struct {
	id    string
	store *store.Store
	fails error
	uses  int
}

func newUse(id string) (*memoryUse, *storetest.Memory) {
	engine := storetest.NewMemory()
	return &memoryUse{id: id, store: &store.Store{Engine: engine, Log: zap.NewNop, Hold: func() func() { return func() {} }}}, engine
}

func (u *memoryUse) ID() string   { return u.id }
func (u *memoryUse) Kind() string { return "memory" }

func (u *memoryUse) Open() (*store.Store, error) {
	if u.fails != nil {
		return nil, u.fails
	}
	u.uses++
	return u.store, nil
}

func (u *memoryUse) Close() bool {
	u.uses--
	return u.uses == 0
}

// doubtful is a record with an outcome in doubt, accepted one with an outcome
// that the app has accepted.
var (
	doubtful = &record.Record{Attempt: 2, Doubt: &record.Outcome{Status: record.Success}, Changed: 1_000_000}
	accepted = &record.Record{Accepted: &record.Outcome{Status: record.Failed, Code: 204}, Changed: 1_000_000}
)

// An operation on an account of several stores is done where it can be, and the
// answer tells of the places where it was not. Done nowhere, it comes to the error
// that tells most: a store that failed may have had the record.
func TestOperate(t *testing.T) {
	down := errors.New("the disk is gone")
	for _, tc := range []struct {
		name        string
		one, other  *record.Record // nil: none
		fails       bool           // the other store cannot be opened
		what        record.Operation
		done        int
		errs        int
		none        bool
		unavailable bool
		refused     bool
	}{
		{name: "done in one, none in the other", one: doubtful, what: record.OperationAccept, done: 1},
		{name: "done in both", one: doubtful, other: doubtful, what: record.OperationRelease, done: 2},
		{name: "done in one, refused by the other", one: doubtful, other: accepted, what: record.OperationAccept, done: 1, errs: 1},
		{name: "done in one, the other down", one: doubtful, fails: true, what: record.OperationForget, done: 1, errs: 1},
		{name: "none in both", what: record.OperationForget, none: true},
		{name: "none in one, the other down", fails: true, what: record.OperationForget, unavailable: true},
		{name: "refused by both", one: accepted, other: accepted, what: record.OperationRelease, refused: true},
		{name: "refused by one, none in the other", one: accepted, what: record.OperationForget, refused: true},
		{name: "refused by one, the other down", one: accepted, fails: true, what: record.OperationAccept, unavailable: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			one, first := newUse("a")
			other, second := newUse("b")
			for engine, r := range map[*storetest.Memory]*record.Record{first: tc.one, second: tc.other} {
				if r != nil {
					engine.Put("iak:shop:order1", r.Encode())
				}
			}
			if tc.fails {
				other.fails = down
			}
			all := []Namespace{{Store: one, KeyPrefix: "iak:", Account: "shop", Retention: time.Hour}, {Store: other, KeyPrefix: "iak:", Account: "shop", Retention: time.Hour}}
			answer, err := Operate(all, "order1", tc.what, false)
			if len(answer.Records) != tc.done || len(answer.Errors) != tc.errs {
				t.Errorf("done %v, errors %v, want %d and %d", answer.Records, answer.Errors, tc.done, tc.errs)
			}
			if none := errors.Is(err, record.ErrNone); none != tc.none {
				t.Errorf("error %v: there is none is %t, want %t", err, none, tc.none)
			}
			if unavailable := errors.As(err, new(UnavailableError)); unavailable != tc.unavailable {
				t.Errorf("error %v: unavailable is %t, want %t", err, unavailable, tc.unavailable)
			}
			if refused := errors.As(err, new(record.NotDoneError)); refused != tc.refused {
				t.Errorf("error %v: refused is %t, want %t", err, refused, tc.refused)
			}
			if tc.unavailable && !strings.Contains(err.Error(), down.Error()) {
				t.Errorf("error %v does not say what is wrong with the store", err)
			}
			if one.uses != 0 || other.uses != 0 {
				t.Errorf("the stores are held %d and %d times afterwards", one.uses, other.uses)
			}
		})
	}
}

// A record is shown as it stands; one that is in no store is said to be in none.
func TestShow(t *testing.T) {
	use, engine := newUse("a")
	engine.Put("iak:shop:order1", doubtful.Encode())
	all := []Namespace{{Store: use, KeyPrefix: "iak:", Account: "shop", Hold: true}}
	answer, err := Show(all, "order1")
	if err != nil || len(answer.Records) != 1 {
		t.Fatalf("%v, %v, want one record", answer, err)
	}
	got := answer.Records[0]
	if got.State != record.StateHeld || got.InDoubt != "success" || got.Attempt != 2 || got.Account != "shop" || got.RefID != "order1" {
		t.Errorf("got %+v", got)
	}
	if _, err := Show(all, "order2"); !errors.Is(err, record.ErrNone) {
		t.Errorf("error %v of an order without a record", err)
	}
}

// What several handlers say of one namespace comes together: the longest
// retention, and held only if all hold.
func TestMerge(t *testing.T) {
	one, _ := newUse("a")
	other, _ := newUse("b")
	var all []Namespace
	for _, n := range []Namespace{
		{Store: one, KeyPrefix: "iak:", Account: "shop", Retention: time.Hour, Hold: true},
		{Store: one, KeyPrefix: "iak:", Account: "shop", Retention: 2 * time.Hour, Spool: true},
		{Store: one, KeyPrefix: "x:", Account: "shop", Retention: time.Hour, Hold: true},
		{Store: other, KeyPrefix: "iak:", Account: "shop"},
		{Store: other, KeyPrefix: "iak:", Account: "bar"},
	} {
		all = Merge(all, n)
	}
	Sort(all)
	var got []string
	for _, n := range all {
		got = append(got, n.Account+" "+n.Store.ID()+" "+n.KeyPrefix)
	}
	if want := []string{"bar b iak:", "shop a iak:", "shop a x:", "shop b iak:"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := all[1]; n.Retention != 2*time.Hour || n.Hold || !n.Spool {
		t.Errorf("two handlers came to %+v", n)
	}
}

// Each store is asked once, whoever uses it, and one that fails is told with its
// error.
func TestAsk(t *testing.T) {
	one, engine := newUse("a")
	other, _ := newUse("b")
	other.fails = errors.New("the disk is gone")
	health := Ask([]Namespace{
		{Store: one, KeyPrefix: "iak:", Account: "shop"}, {Store: one, KeyPrefix: "iak:", Account: "bar", Spool: true}, {Store: other, KeyPrefix: "iak:", Account: "shop"},
	})
	if trips := engine.Trips(); trips != 1 {
		t.Errorf("the store was asked %d times", trips)
	}
	if health.OK || len(health.Stores) != 2 || !health.Stores[0].OK || health.Stores[1].OK || health.Stores[1].Error != "the disk is gone" {
		t.Errorf("got %+v", health)
	}
}
