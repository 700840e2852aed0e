package storetest

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
)

// Index is where an engine keeps the index of what is due.
type Index int

const (
	// InStep changes with the record, in one step, but may be lost without it.
	InStep Index = iota

	// Within is a part of the record, and cannot be lost without it.
	Within

	// Apart is on another server perhaps: a hint is written before the record, and is
	// only made earlier by that, and one that is not needed any more goes some time later.
	Apart
)

// never52 is the latest time that there can be: record.Never.
const never52 = int64(1) << 52

// slack is how much earlier than the lease's end a hint may be that was written before.
const slack = int64(10_000)

// due is a value that has to be found at a time.
func due(value string, at int64) string {
	return string(binary.BigEndian.AppendUint64([]byte(value), uint64(at))) // #nosec G115 -- positive
}

func last8(value string) int64 {
	return int64(binary.BigEndian.Uint64([]byte(value[len(value)-8:]))) // #nosec G115 -- the same bits
}

// keep puts a value that has to be found at a time where nothing stands.
func keep(t testing.TB, e store.Engine, key, value string, at int64) store.Found {
	t.Helper()
	value = due(value, at)
	found := swap(t, e, store.Swap{Key: key, New: value, Index: "iak:", Is: true})
	if !found.Swapped || found.Value != value {
		t.Fatalf("Swap of %.40q: swapped %t, %.40q stands there, want %.40q", key, found.Swapped, found.Value, value)
	}
	return found
}

// wantHint expects a key in the index, by when it has to be found and when it was to be
// found before, or, with 0, not there.
func (i Index) wantHint(t testing.TB, e store.Engine, key string, at, before int64, lease bool) {
	t.Helper()
	if i == Apart && at == 0 {
		eventually(t, key+" leaves the index", func() bool { return indexed(t, e, "iak:")[key] == 0 })
		return
	}
	least := at
	if i == Apart {
		if before != 0 {
			at = min(at, before)
		}
		if least = at; lease {
			least -= slack
		}
	}
	if got := indexed(t, e, "iak:")[key]; got < least || got > at {
		t.Errorf("the index has %q at %d, want %d", key, got, at)
	}
}

// A swap that is carried out sets and removes the hint by the last 8 bytes of what stands
// there then; another does not touch it.
func (i Index) testSwap(t *testing.T, e store.Engine) {
	const at = int64(1_700_000_000_000)
	for _, claim := range []bool{false, true} {
		key := fmt.Sprint("iak:claim ", claim)
		there, hint := "", int64(0) // by the steps before
		do := func(what string, s store.Swap) {
			t.Helper()
			s.Key, s.Index, s.Claim = key, "iak:", claim
			carriedOut := s.Old == there
			found := swap(t, e, s)
			if found.Swapped != carriedOut {
				t.Fatalf("%s: swapped is %t, want %t", what, found.Swapped, carriedOut)
			}
			before := hint
			switch {
			case !carriedOut && i == Apart && s.Is: // it has been written before
				if s.Lease != 0 {
					t.Fatal("its time is not known")
				}
				if hint = last8(s.New); before != 0 {
					hint = min(hint, before)
				}
			case !carriedOut:
			case s.Is:
				hint = last8(found.Value)
			case s.Was:
				hint = 0
			}
			there = found.Value
			i.wantHint(t, e, key, hint, before, s.Lease != 0)
			if hint = indexed(t, e, "iak:")[key]; t.Failed() {
				t.Fatalf("after: %s", what)
			}
		}
		do("not in the index", store.Swap{New: "accepted"})
		do("removed", store.Swap{Old: "accepted"})
		do("new", store.Swap{New: due("a", at), Is: true})
		do("not carried out, later", store.Swap{Old: "other", New: due("b", at+5), Was: true, Is: true})
		do("not carried out, gone", store.Swap{Old: "other", New: "accepted", Was: true})
		do("not carried out, new", store.Swap{New: due("b", at+5), Is: true})
		do("earlier", store.Swap{Old: there, New: due("b", at-1), Was: true, Is: true})
		do("later", store.Swap{Old: there, New: due("c", at+1), Was: true, Is: true})
		do("at the same time", store.Swap{Old: there, New: due("c2", at+1), Was: true, Is: true})
		do("a lease", store.Swap{Old: there, New: "lease", Lease: 30 * time.Second, Was: true, Is: true})
		do("a longer lease", store.Swap{Old: there, New: "lease", Lease: 2 * time.Hour, Was: true, Is: true})
		do("never", store.Swap{Old: there, New: due("d", never52), Was: true, Is: true})
		do("out of the index", store.Swap{Old: there, New: "accepted", Was: true})
		do("never, and nothing before", store.Swap{Old: there, New: due("d", never52), Is: true})
		do("almost never", store.Swap{Old: there, New: due("d", never52-1), Was: true, Is: true})
		do("removed", store.Swap{Old: there, Was: true})
		do("a lease of what was not kept", store.Swap{New: "lease", Lease: 35 * time.Second, Is: true})
		do("a value like a time", store.Swap{Old: there, New: due("", at), Was: true, Is: true})
		do("a lease out of the index", store.Swap{Old: there, New: "lease", Lease: 35 * time.Second, Was: true})
		do("not in the index again", store.Swap{Old: there, New: due("e", at)})
		do("removed", store.Swap{Old: there})
		if i != Apart {
			do("new", store.Swap{New: due("a", at), Is: true})
			do("not carried out, earlier", store.Swap{Old: "other", New: due("b", at-5), Was: true, Is: true})
			do("not carried out, a lease", store.Swap{Old: "other", New: "b", Lease: time.Second, Was: true, Is: true})
			do("not carried out, removed", store.Swap{Old: "other", Was: true})
			do("removed", store.Swap{Old: there, Was: true})
		}
	}
}

// What takes the place of a key whose life is over is in the index, and what lives on is
// not in it for that.
func testIndexExpired(t *testing.T, e store.Engine) {
	want := hints{}
	for n := range 5 {
		key := fmt.Sprint("iak:", n)
		swap(t, e, store.Swap{Key: key, New: "short", Keep: time.Millisecond})
		eventually(t, key+" is over", func() bool { return read(t, e, key).Value == "" })
		if n%2 == 0 {
			want[key] = int64(1000 + n)
			keep(t, e, key, "value", want[key])
		} else {
			put(t, e, key, "", "value")
		}
	}
	wantHints(t, e, "iak:", want)
}

// A swap tells how many keys are in the index.
func (i Index) testCount(t *testing.T, e store.Engine) {
	values := map[string]string{}
	for n := range 20 {
		key := fmt.Sprint("iak:", n)
		found := keep(t, e, key, "value", int64(1000+n))
		if values[key] = found.Value; found.Waiting != n+1 {
			t.Errorf("%d wait, want %d", found.Waiting, n+1)
		}
	}
	put(t, e, "iak:other", "", "value")
	for n := range 20 {
		key := fmt.Sprint("iak:", n)
		found := swap(t, e, store.Swap{Key: key, Old: values[key], New: due("moved", 5000), Index: "iak:", Was: true, Is: true})
		if found.Waiting != 20 {
			t.Errorf("%d wait, want 20", found.Waiting)
		}
		values[key] = found.Value
	}
	left := hints{}
	for n := range 20 {
		key := fmt.Sprint("iak:", n)
		s := store.Swap{Key: key, Old: values[key], Index: "iak:", Was: true}
		if n%2 == 0 {
			s.New = "accepted"
		}
		if n%5 == 0 {
			if s.Old, left[key] = "other", 5000; i == Apart {
				left[key] = int64(1000 + n)
			}
		}
		found := swap(t, e, s)
		if i == Apart {
			// The hint goes when it was told already how many there are: that was a moment ago.
			if found.Swapped && (found.Waiting > 20 || found.Waiting < 4) {
				t.Errorf("%d wait, want what was told a moment ago", found.Waiting)
			}
		} else if want := 20 - n - 1 + len(left); found.Swapped && found.Waiting != want {
			t.Errorf("%d wait, want %d", found.Waiting, want)
		}
	}
	eventually(t, "the others are gone", func() bool { return len(indexed(t, e, "iak:")) == len(left) })
	wantHints(t, e, "iak:", left)
}

// Keys and the names of indexes may hold any byte.
func (i Index) testKeys(t *testing.T, e store.Engine) {
	for _, index := range []string{"iak:", "i{a}k:", "i{}k:{", "*", "[a-z]", "é\x00\xff:", "with space:", ""} {
		want := hints{}
		for n, rest := range []string{
			"shop:1", "{a}:b", "}{", "\x00", "\x00\x00", "\xff", "a b\r\n", "é", "*", "'\"\\", "%", "shop:{", "1", "1.5", "nil",
			strings.Repeat("k", 300), strings.Repeat("k", 301), "shop:due",
		} {
			key := index + rest
			want[key] = int64(1000 + n)
			swap(t, e, store.Swap{Key: key, New: due(key, want[key]), Index: index, Is: true})
		}
		wantHints(t, e, index, want)
		page := ask(t, e, store.DueQuery{Index: index, Limit: 100, Head: 1000})
		if len(page.Hints) != len(want) {
			t.Errorf("in the index %q are due %+v, want all", index, page.Hints)
		}
		for _, hint := range page.Hints {
			if hint.Head != due(hint.Key, hint.At) {
				t.Errorf("under %q stands %q, want %q", hint.Key, hint.Head, due(hint.Key, hint.At))
			}
			if err := e.Correct(index, hint, never52, time.Now()); err != nil {
				t.Error(err)
			}
			want[hint.Key] = never52
		}
		wantHints(t, e, index, want)
		for _, hint := range page.Hints {
			if i == Apart { // such a hint is later than the record, and does not go with it
				if err := e.Correct(index, store.Hint{Key: hint.Key, At: never52}, hint.At, time.Now()); err != nil {
					t.Error(err)
				}
			}
			swap(t, e, store.Swap{Key: hint.Key, Old: hint.Head, Index: index, Was: true})
		}
		eventually(t, "the index is empty", func() bool { return len(indexed(t, e, index)) == 0 })
		wantHints(t, e, index, hints{})
	}
}

// Swaps of one key at the same time leave index and record in agreement.
func (i Index) testConcurrent(t *testing.T, e store.Engine) {
	if i == Apart {
		t.Skip("the hint is a hint there")
	}
	const keys, workers, each = 3, 8, 60
	key := func(n int) string { return fmt.Sprint("iak:", n%keys) }
	// Each value says whether it is kept by its first byte.
	kept := func(value string) bool { return strings.HasPrefix(value, "k") }
	change := func(n, by int) error {
		found, err := e.Read(key(n), time.Now())
		for err == nil {
			s := store.Swap{Key: key(n), Old: found.Value, Keep: long, Index: "iak:", Was: kept(found.Value), Began: time.Now()}
			switch rand.IntN(4) { // #nosec G404 -- no secret
			case 0:
				s.New, s.Lease, s.Is = fmt.Sprint("k", by), time.Duration(1+rand.IntN(1000))*time.Second, true // #nosec G404 -- no secret
			case 1:
				s.New = fmt.Sprint("accepted ", by)
			case 2: // removed
			default:
				s.New, s.Is = due(fmt.Sprint("k", by), int64(by)), true
			}
			if found, err = e.Swap(&s); found.Swapped {
				return err
			}
		}
		return err
	}
	for range 3 {
		var all sync.WaitGroup
		for worker := range workers {
			all.Go(func() {
				for n := range each {
					if err := change(n, 1+worker*each+n); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		want := hints{}
		for n := range keys {
			if value := read(t, e, key(n)).Value; kept(value) {
				want[key(n)] = last8(value)
			}
		}
		if got := indexed(t, e, "iak:"); !maps.Equal(got, want) {
			t.Errorf("in the index is %v, want %v", got, want)
		}
		wantHints(t, e, "iak:", want)
	}
}
