// Package storetest is what every engine of package store has to do: each
// engine's own tests call Run.
package storetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
)

// Open opens an engine on one place. It is called again only after the engine
// that it opened before was given up.
type Open func(t testing.TB) store.Engine

// Run tests an engine. place makes a new and empty place, as a server or a file,
// and returns what opens an engine there; what it starts it ends with the test.
// The engine's timeout should leave a busy machine some seconds.
func Run(t *testing.T, index Index, place func(t testing.TB) Open) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, e store.Engine)
	}{
		{"Swap", testSwap},
		{"Lease", testLease},
		{"Keep", testKeep},
		{"Bytes", testBytes},
		{"OneWins", testOneWins},
		{"Counter", testCounter},
		{"ManyKeys", testManyKeys},
		{"ScanPrefix", testScanPrefix},
		{"ScanEnds", testScanEnds},
		{"ScanMeanwhile", testScanMeanwhile},
		{"TooLate", testTooLate},
		{"Names", testNames},
		{"IndexSwap", index.testSwap},
		{"IndexExpired", testIndexExpired},
		{"IndexCount", index.testCount},
		{"IndexKeys", index.testKeys},
		{"IndexConcurrent", index.testConcurrent},
		{"Due", testDue},
		{"DueLater", testDueLater},
		{"Correct", testCorrect},
		{"Repair", func(t *testing.T, e store.Engine) { index.testRepair(t, e, "iak:") }},
		{"RepairPattern", func(t *testing.T, e store.Engine) { index.testRepair(t, e, "i{*}k:") }}, // in a Cluster all of one server
		{"RepairEnds", index.testRepairEnds},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := place(t)(t)
			defer destruct(t, e)
			test.run(t, e)
		})
	}
	t.Run("Destruct", func(t *testing.T) { index.testDestruct(t, place(t)) })
}

const long = 48 * time.Hour

func destruct(t testing.TB, e store.Engine) {
	t.Helper()
	if err := e.Destruct(); err != nil {
		t.Errorf("Destruct: %v", err)
	}
}

// swap swaps and fails the test on an error.
func swap(t testing.TB, e store.Engine, s store.Swap) store.Found {
	t.Helper()
	if s.Keep == 0 {
		s.Keep = long
	}
	s.Began = time.Now()
	found, err := e.Swap(&s)
	if err != nil {
		t.Fatalf("Swap of %.40q: %v", s.Key, err)
	}
	return found
}

// put swaps, and fails the test if something else stands there.
func put(t testing.TB, e store.Engine, key, old, value string) {
	t.Helper()
	if found := swap(t, e, store.Swap{Key: key, Old: old, New: value}); !found.Swapped || found.Value != value {
		t.Fatalf("Swap of %.40q: swapped %t, %.40q stands there, want %.40q", key, found.Swapped, found.Value, value)
	}
}

// read reads and fails the test on an error.
func read(t testing.TB, e store.Engine, key string) store.Found {
	t.Helper()
	found, err := e.Read(key, time.Now())
	if err != nil {
		t.Fatalf("Read of %.40q: %v", key, err)
	}
	if found.Swapped {
		t.Errorf("Read of %.40q says that it has swapped", key)
	}
	return found
}

// eventually waits for an event that has no other signal.
func eventually(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// New bytes take the place of exactly those that are expected, and else nothing
// changes, and what stands there is told.
func testSwap(t *testing.T, e store.Engine) {
	for _, row := range []struct {
		name, there, old, new string
		swapped               bool
	}{
		{"nothing on nothing", "", "", "", true},
		{"new", "", "", "new", true},
		{"expected, but nothing there", "", "old", "new", false},
		{"nothing expected, but something there", "old", "", "new", false},
		{"match", "old", "old", "new", true},
		{"match, the same again", "old", "old", "old", true},
		{"the beginning", "old", "ol", "new", false},
		{"more", "old", "old\x00", "new", false},
		{"another last byte", "old\x00", "old\x01", "new", false},
		{"other case", "old", "OLD", "new", false},
		{"the new bytes are there already", "new", "old", "new", false},
		{"a number that is written in another way", "1", "1.0", "new", false},
		{"removed", "old", "old", "", true},
		{"not removed", "old", "other", "", false},
	} {
		for _, claim := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, claim %t", row.name, claim), func(t *testing.T) {
				key := fmt.Sprintf("iak:%s:%t", row.name, claim)
				if row.there != "" {
					put(t, e, key, "", row.there)
				}
				found := swap(t, e, store.Swap{Key: key, Old: row.old, New: row.new, Claim: claim})
				want := row.there
				if row.swapped {
					want = row.new
				}
				if found.Swapped != row.swapped || found.Value != want {
					t.Errorf("swapped %t, %q stands there, want %t and %q", found.Swapped, found.Value, row.swapped, want)
				}
				wantLife(t, found, long)
				found = read(t, e, key)
				if found.Value != want {
					t.Errorf("%q stands there, want %q", found.Value, want)
				}
				wantLife(t, found, long)
			})
		}
	}
}

// wantLife checks the times of what stands under a key that was written with Keep
// a moment ago.
func wantLife(t testing.TB, found store.Found, keep time.Duration) {
	t.Helper()
	const slack = int64(10_000)
	if now := time.Now().UnixMilli(); found.Now < now-slack || found.Now > now+slack {
		t.Errorf("the engine's time is %d, want one near %d", found.Now, now)
	}
	if found.Value == "" {
		if found.Expires != 0 {
			t.Errorf("nothing stands there, and expires at %d, want 0", found.Expires)
		}
		return
	}
	if end := found.Now + keep.Milliseconds(); found.Expires < end-slack || found.Expires > end+10 || found.Swapped && found.Expires != end {
		t.Errorf("expires at %d, want %d", found.Expires, end)
	}
}

// The end of a lease is the last 8 bytes: the engine's time and the lease, in
// milliseconds, big endian. It is part of the bytes. It may have passed, and be less than
// a millisecond away.
func testLease(t *testing.T, e store.Engine) {
	for _, lease := range []time.Duration{time.Nanosecond, 999 * time.Microsecond, -time.Nanosecond, -time.Millisecond, -time.Hour} {
		key := fmt.Sprint("iak:", lease)
		found := swap(t, e, store.Swap{Key: key, New: "kept", Lease: lease})
		if len(found.Value) != len("kept")+8 || !strings.HasPrefix(found.Value, "kept") {
			t.Fatalf("a lease of %s: %q stands there", lease, found.Value)
		}
		at := int64(binary.BigEndian.Uint64([]byte(found.Value[len("kept"):]))) // #nosec G115 -- the same bits
		if diff := at - found.Now - lease.Milliseconds(); diff < 0 || diff > 1 {
			t.Errorf("a lease of %s ends %d ms after now", lease, at-found.Now)
		}
		if got := read(t, e, key); got.Value != found.Value {
			t.Errorf("%q stands there, want %q, as was told", got.Value, found.Value)
		}
	}
	for _, lease := range []time.Duration{time.Millisecond, 35 * time.Second, 24 * time.Hour} {
		key := fmt.Sprint("iak:", lease)
		value := "claim\x00" + strings.Repeat("\xff", 40)
		old := ""
		for range 2 { // of nothing, and of another
			found := swap(t, e, store.Swap{Key: key, Old: old, New: value, Lease: lease, Claim: true})
			end := binary.BigEndian.AppendUint64(nil, uint64(found.Now+lease.Milliseconds())) // #nosec G115 -- positive
			if !found.Swapped || found.Value != value+string(end) {
				t.Errorf("swapped %t, %q stands there, want the bytes with %x behind them", found.Swapped, found.Value, end)
			}
			if got := read(t, e, key); got.Value != found.Value {
				t.Errorf("%q stands there, want %q, as was told", got.Value, found.Value)
			}
			again := swap(t, e, store.Swap{Key: key, Old: value, New: "other", Lease: lease})
			if again.Swapped || again.Value != found.Value {
				t.Errorf("without the lease's end it was swapped %t, %q stands there", again.Swapped, again.Value)
			}
			old = found.Value
		}
		put(t, e, key, old, "settled")
	}
}

// A key whose life is over is nothing; each swap begins its life anew.
func testKeep(t *testing.T, e store.Engine) {
	const short = 50 * time.Millisecond
	put(t, e, "iak:kept", "", "kept")
	swap(t, e, store.Swap{Key: "iak:short", New: "short", Keep: short})
	swap(t, e, store.Swap{Key: "iak:longer", New: "short", Keep: short})
	longer := swap(t, e, store.Swap{Key: "iak:longer", Old: "short", New: "longer"})
	swap(t, e, store.Swap{Key: "iak:shorter", New: "long"})
	swap(t, e, store.Swap{Key: "iak:shorter", Old: "long", New: "shorter", Keep: short})
	for _, key := range []string{"iak:short", "iak:shorter"} {
		eventually(t, key+" is over", func() bool {
			found := read(t, e, key)
			if found.Value != "" && found.Expires > found.Now+short.Milliseconds() {
				t.Fatalf("%s expires %d ms from now, want at most %s", key, found.Expires-found.Now, short)
			}
			return found.Value == "" && found.Expires == 0
		})
	}
	if !longer.Swapped { // its first life was over before the second began
		put(t, e, "iak:longer", "", "longer")
	}
	want := map[string]string{"iak:kept": "kept", "iak:longer": "longer"}
	wantScan(t, e, "iak:", want)
	for key, value := range want {
		if got := read(t, e, key).Value; got != value {
			t.Errorf("%s: %q stands there, want %q", key, got, value)
		}
	}
	if found := swap(t, e, store.Swap{Key: "iak:short", Old: "short", New: "x"}); found.Swapped || found.Value != "" {
		t.Errorf("what is over was swapped %t, %q stands there", found.Swapped, found.Value)
	}
	put(t, e, "iak:short", "", "again")
}

// Keys and values may hold any byte; a value may have 80 KiB.
func testBytes(t *testing.T, e store.Engine) {
	var all strings.Builder
	for b := range 256 {
		all.WriteByte(byte(b)) // #nosec G115 -- below 256
	}
	values := map[string]string{}
	for i, key := range []string{
		"iak:\x00", "iak:\x00\x00", "iak:\xff", "iak:\xff\xff", "iak:", "iak:é", "iak:e", "iak:E",
		"iak:" + all.String(), "iak:" + strings.Repeat("k", 300), "iak:" + strings.Repeat("k", 301),
		"iak:*", "iak:?", "iak:[a-z]", `iak:\`, "iak:%", "iak:_", "iak:'", `iak:"`, "iak:{a}:b", "iak:a b\r\n",
		"123", "1.5", "NULL",
	} {
		values[key] = fmt.Sprintf("value %d %s", i, all.String())
	}
	values["iak:big"] = strings.Repeat(all.String(), 80<<10/256)
	values["iak:number"] = "12"
	values["iak:float"] = "1e2"
	for key, value := range values {
		put(t, e, key, "", value)
	}
	for key, value := range values {
		if found := read(t, e, key); found.Value != value {
			t.Errorf("%q: %d bytes stand there, %.40q, want %d, %.40q", key, len(found.Value), found.Value, len(value), value)
		}
	}
	wantScan(t, e, "", values)
	for key, value := range values {
		again := value[:len(value)-1] + "!"
		put(t, e, key, value, again)
		put(t, e, key, again, "")
	}
	wantScan(t, e, "", map[string]string{})
}

// An operation that began so long ago that nobody can wait for it is not
// carried out.
func testTooLate(t *testing.T, e store.Engine) {
	put(t, e, "iak:key", "", "old")
	for _, claim := range []bool{false, true} {
		for _, began := range []time.Time{time.Now().Add(-time.Hour), {}} {
			found, err := e.Swap(&store.Swap{Key: "iak:key", Old: "old", New: "new", Keep: long, Claim: claim, Began: began})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Swap, began at %s: %+v, %v, want DeadlineExceeded", began, found, err)
			}
			if found, err := e.Read("iak:key", began); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Read, began at %s: %+v, %v, want DeadlineExceeded", began, found, err)
			}
			if page, err := e.Due(&store.DueQuery{Index: "iak:", Limit: 1, Began: began}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Due, began at %s: %+v, %v, want DeadlineExceeded", began, page, err)
			}
			if err := e.Correct("iak:", store.Hint{Key: "iak:key", At: 1}, 2, began); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Correct, began at %s: %v, want DeadlineExceeded", began, err)
			}
		}
	}
	put(t, e, "iak:key", "old", "newer") // after all that came before
}

// An engine has a kind and a name.
func testNames(t *testing.T, e store.Engine) {
	if kind := e.Kind(); kind != "redis" && kind != "embedded" {
		t.Errorf("the kind is %q", kind)
	}
	if name := e.String(); !strings.HasPrefix(name, e.Kind()) {
		t.Errorf("the name is %q, want one that begins with the kind", name)
	}
}

// An engine that was given up answers with an error; what it held is still
// there for the next.
func (i Index) testDestruct(t *testing.T, open Open) {
	e := open(t)
	put(t, e, "iak:key", "", "value")
	keep(t, e, "iak:kept", "kept", 1234)
	destruct(t, e)
	if found, err := e.Swap(&store.Swap{Key: "iak:key", Old: "value", New: "new", Keep: long, Began: time.Now()}); err == nil {
		t.Errorf("Swap: %+v, want an error", found)
	}
	if found, err := e.Read("iak:key", time.Now()); err == nil {
		t.Errorf("Read: %+v, want an error", found)
	}
	if err := e.Scan(context.Background(), "", func(string, store.Found) error { return nil }); err == nil {
		t.Error("Scan: no error")
	}
	if page, err := e.Due(&store.DueQuery{Index: "iak:", Limit: 1, Began: time.Now()}); err == nil {
		t.Errorf("Due: %+v, want an error", page)
	}
	if err := e.Correct("iak:", store.Hint{Key: "iak:kept", At: 1234}, 1, time.Now()); err == nil {
		t.Error("Correct: no error")
	}
	if err := e.Repair(context.Background(), "iak:", func(byte) bool { return true }); err == nil && i != Within {
		t.Error("Repair: no error")
	}
	again := open(t)
	defer destruct(t, again)
	if got := read(t, again, "iak:key").Value; got != "value" {
		t.Errorf("%q stands there, want %q", got, "value")
	}
	wantHints(t, again, "iak:", hints{"iak:kept": 1234})
}
