package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
)

// Without All only what is due is told, in the order of the times, and of the keys at
// the same time, in pages, with as much of what stands there as was asked for.
func testDue(t *testing.T, e store.Engine) {
	now := read(t, e, "iak:none").Now
	in := func(d time.Duration) int64 { return now + d.Milliseconds() }
	var want []store.Hint
	for i := range 30 {
		want = append(want, store.Hint{Key: fmt.Sprintf("iak:past:%02d", i), At: in(time.Duration(i-40) * time.Hour)})
	}
	for i := range 10 {
		want = append(want, store.Hint{Key: fmt.Sprintf("iak:same:%02d", i), At: in(-time.Hour)})
	}
	n := len(want)
	want = append(want, store.Hint{Key: "iak:in a minute", At: in(time.Minute)}, store.Hint{Key: "iak:in a year", At: in(365 * 24 * time.Hour)},
		store.Hint{Key: "iak:never 1", At: never52}, store.Hint{Key: "iak:never 2", At: never52})
	values := map[string]string{}
	for i := range want { // not in their order
		hint := want[i*7%len(want)]
		values[hint.Key] = keep(t, e, hint.Key, "value of "+hint.Key, hint.At).Value
	}
	put(t, e, "iak:past:00:not kept", "", "value")
	for _, all := range []bool{false, true} {
		for _, page := range []struct{ skip, limit int }{{0, 1}, {0, 7}, {7, 7}, {33, 4}, {38, 4}, {0, 40}, {40, 4}, {0, 1000}, {44, 1}, {1000, 10}, {0, 0}} {
			for _, head := range []int{0, 1, 8, 1000} {
				q := store.DueQuery{Index: "iak:", Skip: page.skip, Limit: page.limit, All: all, Head: head}
				some := want[:n]
				if all {
					some = want
				}
				some = slices.Clone(some[min(page.skip, len(some)):min(page.skip+page.limit, len(some))])
				for i := range some {
					value := values[some[i].Key]
					some[i].Head = value[:min(head, len(value))]
				}
				got := ask(t, e, q)
				if !slices.Equal(got.Hints, some) {
					t.Errorf("%+v: %+v, want %+v", q, got.Hints, some)
				}
				if got.Waiting != len(want) {
					t.Errorf("%+v: %d wait, want %d", q, got.Waiting, len(want))
				}
				if after := read(t, e, "iak:none").Now; got.Now < now || got.Now > after {
					t.Errorf("%+v: the engine's time is %d, want %d to %d", q, got.Now, now, after)
				}
			}
		}
	}
	other := due("value", 1000)
	swap(t, e, store.Swap{Key: "iak2:key", New: other, Index: "iak2:", Is: true})
	if got := ask(t, e, store.DueQuery{Index: "iak:", Limit: 1000}); len(got.Hints) != n {
		t.Errorf("beside another index: %+v, want %d as before", got.Hints, n)
	}
	if got := ask(t, e, store.DueQuery{Index: "iak2:", Limit: 1000, Head: 100}); !slices.Equal(got.Hints, []store.Hint{{Key: "iak2:key", At: 1000, Head: other}}) {
		t.Errorf("in another index: %+v", got.Hints)
	}
	if got := ask(t, e, store.DueQuery{Index: "iak3:", Limit: 1000, All: true, Head: 100}); len(got.Hints) != 0 {
		t.Errorf("in an empty index: %+v", got.Hints)
	}
}

// What is to be done later is found when it is due, by the engine's time.
func testDueLater(t *testing.T, e store.Engine) {
	lease := swap(t, e, store.Swap{Key: "iak:lease", New: "value", Lease: 50 * time.Millisecond, Index: "iak:", Is: true, Claim: true})
	at := map[string]int64{"iak:lease": last8(lease.Value), "iak:time": lease.Now + 60}
	keep(t, e, "iak:time", "value", at["iak:time"])
	eventually(t, "both are due", func() bool {
		page := ask(t, e, store.DueQuery{Index: "iak:", Limit: 10})
		for _, hint := range page.Hints {
			if hint.At > page.Now {
				t.Errorf("%+v is told at %d", hint, page.Now)
			}
			if hint.At > at[hint.Key] || hint.At < at[hint.Key]-slack {
				t.Errorf("%+v, want %d", hint, at[hint.Key])
			}
		}
		return len(page.Hints) == 2
	})
}

// A hint is put right only if it is still as it was read.
func testCorrect(t *testing.T, e store.Engine) {
	const index = "iak:"
	correct := func(key string, read, at int64, want hints) {
		t.Helper()
		if err := e.Correct(index, store.Hint{Key: key, At: read, Head: "any"}, at, time.Now()); err != nil {
			t.Errorf("Correct of %s: %v", key, err)
		}
		wantHints(t, e, index, want)
	}
	for _, key := range []string{"iak:a", "iak:b"} {
		keep(t, e, key, "value", 1000)
	}
	put(t, e, "iak:not kept", "", "value")
	correct("iak:a", 999, 2000, hints{"iak:a": 1000, "iak:b": 1000})
	correct("iak:a", 1001, 0, hints{"iak:a": 1000, "iak:b": 1000})
	correct("iak:a", 0, 0, hints{"iak:a": 1000, "iak:b": 1000})
	correct("iak:a", 1000, 2000, hints{"iak:a": 2000, "iak:b": 1000})
	correct("iak:a", 1000, 3000, hints{"iak:a": 2000, "iak:b": 1000})
	correct("iak:a", 2000, 500, hints{"iak:a": 500, "iak:b": 1000})
	correct("iak:b", 1000, never52, hints{"iak:a": 500, "iak:b": never52})
	correct("iak:b", never52-1, 0, hints{"iak:a": 500, "iak:b": never52})
	correct("iak:b", never52, never52-1, hints{"iak:a": 500, "iak:b": never52 - 1})
	correct("iak:none", 1000, 2000, hints{"iak:a": 500, "iak:b": never52 - 1})
	correct("iak:none", 0, 2000, hints{"iak:a": 500, "iak:b": never52 - 1})
	correct("iak:not kept", 0, 2000, hints{"iak:a": 500, "iak:b": never52 - 1})
	correct("iak:b", never52-1, 0, hints{"iak:a": 500})
	correct("iak:b", never52-1, 0, hints{"iak:a": 500})
	correct("iak:b", never52-1, 5, hints{"iak:a": 500})
	for _, key := range []string{"iak:a", "iak:b"} { // their values are as they were
		if got := read(t, e, key).Value; got != due("value", 1000) {
			t.Errorf("%s: %q stands there, want %q", key, got, due("value", 1000))
		}
	}
	if err := e.Correct("other:", store.Hint{Key: "other:a", At: 1}, 2, time.Now()); err != nil {
		t.Errorf("Correct in an index that there is not: %v", err)
	}
}

// What an index has lost, or holds too late, is put right by what stands under the keys
// that begin with its name, and nothing else is changed.
func (i Index) testRepair(t *testing.T, e store.Engine, index string) {
	belongs := func(first byte) bool { return first == 'k' || first == 0xff }
	want := hints{}
	var lost, late, early []string
	for n := range 350 { // more than a page
		key := fmt.Sprintf("%sshop:%d\x00{%d}", index, n, n)
		value := "kept " + key
		if n%5 == 4 {
			value = "\xff" + strings.Repeat("x", 80<<(n%7))
		}
		if want[key] = int64(1_000_000 + n); n < 8 && n%4 == 0 {
			want[key] = never52 - int64(n)
		}
		swap(t, e, store.Swap{Key: key, New: due(value, want[key]), Index: index, Is: true})
		switch n % 4 {
		case 0:
			lost = append(lost, key)
		case 1:
			late = append(late, key)
		case 2:
			early = append(early, key)
		}
	}
	put(t, e, index+"not kept", "", due("accepted", 5))
	put(t, e, index+"of another kind", "", due("\x00kept", 5))
	put(t, e, index+"short", "", "kept")
	put(t, e, index+"shorter", "", "k")
	for _, other := range []string{"other:kept", "i{x}k:kept", "i:"} {
		put(t, e, other, "", due("kept", 5))
	}
	correct := func(keys []string, at int64) {
		for n, key := range keys {
			to := at
			if at > 0 {
				to += int64(n)
			}
			if err := e.Correct(index, store.Hint{Key: key, At: want[key]}, to, time.Now()); err != nil {
				t.Fatal(err)
			}
			if i != Within && at != 1 {
				continue // it is put right
			}
			if want[key] = to; to == 0 {
				delete(want, key)
			}
		}
	}
	correct(lost, 0)
	correct(late, 2_000_000)
	correct(early, 1)
	for range 2 {
		if err := e.Repair(context.Background(), index, belongs); err != nil {
			t.Fatal(err)
		}
		wantHints(t, e, index, want)
	}
	for key := range want {
		if got := read(t, e, key).Value; !belongs(got[0]) {
			t.Errorf("%q: %q stands there", key, got)
		}
	}
	if err := e.Repair(context.Background(), index, func(byte) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if err := e.Repair(context.Background(), "none:", func(byte) bool { return true }); err != nil {
		t.Fatal(err)
	}
	wantHints(t, e, index, want)
	if got := indexed(t, e, "none:"); len(got) > 0 {
		t.Errorf("in an empty index there is %v", got)
	}
}

// The end of its context ends a repair.
func (i Index) testRepairEnds(t *testing.T, e store.Engine) {
	if i == Within {
		t.Skip("it has nothing to do")
	}
	for n := range 900 {
		put(t, e, fmt.Sprint("iak:", n), "", due("kept", 5))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var seen atomic.Int32 // by several at a time, in a Cluster
	for range 2 {
		err := e.Repair(ctx, "iak:", func(byte) bool {
			seen.Add(1)
			cancel()
			return true
		})
		if n := seen.Load(); !errors.Is(err, context.Canceled) || n == 0 || n > 450 {
			t.Errorf("the context ends at the first value: %v after %d of 900, want an error and a page of each server at most", err, n)
		}
	}
}

// ask asks for a page and fails the test on an error.
func ask(t testing.TB, e store.Engine, q store.DueQuery) store.DuePage {
	t.Helper()
	q.Began = time.Now()
	page, err := e.Due(&q)
	if err != nil {
		t.Fatalf("Due of %q: %v", q.Index, err)
	}
	return page
}

// hints are keys in an index, and when they are to be found.
type hints map[string]int64

// indexed reads a whole index, in pages.
func indexed(t testing.TB, e store.Engine, index string) hints {
	t.Helper()
	found := hints{}
	var after store.Hint
	for last := int64(0); ; {
		page := ask(t, e, store.DueQuery{Index: index, Skip: len(found), After: after, Limit: 100, All: true})
		for _, hint := range page.Hints {
			if _, twice := found[hint.Key]; twice || hint.At < last {
				t.Errorf("in the index %q: %+v comes after %d, twice: %t", index, hint, last, twice)
			}
			found[hint.Key], last = hint.At, hint.At
		}
		if len(page.Hints) < 100 {
			return found
		}
		after = page.Hints[99]
	}
}

// wantHints expects an index to hold exactly some hints.
func wantHints(t testing.TB, e store.Engine, index string, want hints) {
	t.Helper()
	if got := indexed(t, e, index); !maps.Equal(got, want) {
		t.Errorf("in the index %q there is %v, want %v", index, got, want)
	}
	if page := ask(t, e, store.DueQuery{Index: index, Limit: 1}); page.Waiting != len(want) {
		t.Errorf("in the index %q are %d, want %d", index, page.Waiting, len(want))
	}
}
