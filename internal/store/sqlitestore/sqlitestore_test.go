package sqlitestore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/ncruces/go-sqlite3"
)

const (
	contractTimeout = 500 * time.Millisecond

	// A test machine's disk may be busy; a test of the timeout sets its own.
	patient = 20 * time.Second

	day = 24 * time.Hour
)

// reports is what a store has told.
type reports struct {
	mu    sync.Mutex
	texts []string
}

func (r *reports) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.texts = append(r.texts, err.Error())
}

func (r *reports) all() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.texts, "\n")
}

func newPath(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "new", "dir", "records.sqlite")
}

// open is a store on a file, closed with the test.
func open(t testing.TB, path string) *Store {
	t.Helper()
	s, _ := openReporting(t, path, patient)
	return s
}

func openReporting(t testing.TB, path string, timeout time.Duration) (*Store, *reports) {
	t.Helper()
	told := new(reports)
	s := New(path, timeout, told.add)
	t.Cleanup(func() {
		if err := s.Destruct(); err != nil {
			t.Error(err)
		}
	})
	return s, told
}

func put(s *Store, key, old, value string) (store.Found, error) {
	return s.Swap(&store.Swap{Key: key, Old: old, New: value, Keep: day, Began: time.Now()})
}

func mustPut(t testing.TB, s *Store, key, old, value string) {
	t.Helper()
	found, err := put(s, key, old, value)
	if err != nil || !found.Swapped || found.Value != value {
		t.Fatalf("%s: %+v, %v, want %q swapped", key, found, err, value)
	}
}

func wantValue(t testing.TB, s *Store, key, value string) {
	t.Helper()
	found, err := s.Read(key, time.Now())
	if err != nil || found.Value != value {
		t.Errorf("%s: %+v, %v, want %q", key, found, err, value)
	}
}

func wantError(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not tell %q", err, word)
		}
	}
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 seconds: %s", what)
		}
	}
}

// inside does something with the open file, in the goroutine that may.
func inside(t testing.TB, s *Store, work func(f *file) error) {
	t.Helper()
	if _, err := s.await(&operation{work: work}, time.Now()); err != nil {
		t.Fatal(err)
	}
}

// goroutines counts those that are in this package's code.
func goroutines() (n int) {
	stacks := make([]byte, 8<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, "sqlitestore.(*Store)") {
			n++
		}
	}
	return n
}

// A swap changes what it expects and nothing else, and tells what stands there.
func TestSwap(t *testing.T) {
	s := open(t, newPath(t))
	clock := time.UnixMilli(1_700_000_000_000)
	s.clock.wall, s.clock.after = func() time.Time { return clock }, 0
	now := clock.UnixMilli()
	const key = "iak:shop:order001"
	blob := string([]byte{0, 1, 0xff, 0, '\'', ';'}) + strings.Repeat("x", 80<<10)
	for i, step := range []struct {
		swap store.Swap
		want store.Found
	}{
		{store.Swap{Old: "a", New: "b", Keep: day}, store.Found{Now: now}},
		{store.Swap{Old: "a", Keep: day}, store.Found{Now: now}},
		{store.Swap{Keep: day}, store.Found{Swapped: true, Now: now}},
		{store.Swap{New: blob, Keep: day}, store.Found{Swapped: true, Value: blob, Now: now, Expires: now + day.Milliseconds()}},
		{store.Swap{New: "b", Keep: 2 * day}, store.Found{Value: blob, Now: now, Expires: now + day.Milliseconds()}},
		{store.Swap{Keep: day}, store.Found{Value: blob, Now: now, Expires: now + day.Milliseconds()}},
		{store.Swap{Old: blob[:1], New: "b", Keep: day}, store.Found{Value: blob, Now: now, Expires: now + day.Milliseconds()}},
		{store.Swap{Old: blob, New: "b", Keep: 2 * day}, store.Found{Swapped: true, Value: "b", Now: now, Expires: now + 2*day.Milliseconds()}},
		{store.Swap{Old: "b", New: "c", Keep: day, Lease: 35 * time.Second},
			store.Found{Swapped: true, Value: "c" + milliseconds(now+35_000), Now: now, Expires: now + day.Milliseconds()}},
		{store.Swap{Old: "c", Keep: day}, store.Found{Value: "c" + milliseconds(now+35_000), Now: now, Expires: now + day.Milliseconds()}},
		{store.Swap{Old: "c" + milliseconds(now+35_000)}, store.Found{Swapped: true, Now: now}},
	} {
		step.swap.Key, step.swap.Began = key, time.Now()
		found, err := s.Swap(&step.swap)
		if err != nil || found != step.want {
			t.Errorf("step %d: %.60q, %v, want %.60q", i, fmt.Sprintf("%+v", found), err, fmt.Sprintf("%+v", step.want))
		}
		found, err = s.Read(key, time.Now())
		want := step.want
		want.Swapped = false
		if err != nil || found != want {
			t.Errorf("after step %d: %.60q, %v, want %.60q", i, fmt.Sprintf("%+v", found), err, fmt.Sprintf("%+v", want))
		}
	}
}

func milliseconds(at int64) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(at)))
}

// What has expired is nothing, for each way to look at it, though it is still in the file.
func TestExpired(t *testing.T) {
	s := open(t, newPath(t))
	var clock atomic.Int64
	clock.Store(time.Now().UnixMilli())
	s.clock.wall, s.clock.after = func() time.Time { return time.UnixMilli(clock.Load()) }, 0
	for _, key := range []string{"a", "b", "c", "d"} {
		mustPut(t, s, key, "", "old")
	}
	clock.Add(day.Milliseconds() - 1)
	wantValue(t, s, "a", "old")
	clock.Add(1)
	wantValue(t, s, "a", "")
	mustPut(t, s, "a", "", "new")
	wantValue(t, s, "a", "new")
	for _, swap := range []*store.Swap{{Key: "b", Old: "old", New: "new", Keep: day}, {Key: "c", Old: "old"}} {
		swap.Began = time.Now()
		if found, err := s.Swap(swap); err != nil || found.Swapped || found.Value != "" || found.Expires != 0 {
			t.Errorf("%s: %+v, %v, want nothing there", swap.Key, found, err)
		}
	}
	visited := 0
	if err := s.Scan(context.Background(), "", func(key string, _ store.Found) error {
		visited++
		if key != "a" {
			t.Errorf("the scan visits %s", key)
		}
		return nil
	}); err != nil || visited != 1 {
		t.Errorf("the scan visits %d, %v, want 1", visited, err)
	}
}

// The file is made by the first operation, in directories that are made too, and
// nobody else may read it or its companions, whatever the umask allows. Each
// commit waits for the disk, there is no -shm file, and nothing of it is mapped.
func TestFile(t *testing.T) {
	path := newPath(t)
	s := open(t, path)
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("before the first use: %v, want no directory", err)
	}
	mustPut(t, s, "a", "", "1")
	for name, want := range map[string]os.FileMode{path: 0o600, path + "-wal": 0o600, filepath.Dir(path): 0o700 | os.ModeDir} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want mode %s", filepath.Base(name), info.Mode(), err, want)
		}
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 2 {
		t.Errorf("%v, %v, want the file and its -wal", files, err)
	}
	inside(t, s, func(f *file) error {
		for pragma, want := range map[string]int64{"synchronous": 2, "mmap_size": 0, "application_id": applicationID, "user_version": schemaVersion} {
			if got, err := f.number("PRAGMA " + pragma); err != nil || got != want {
				t.Errorf("%s is %d, %v, want %d", pragma, got, err, want)
			}
		}
		for pragma, want := range map[string]string{"journal_mode": "wal", "locking_mode": "exclusive"} {
			stmt, _, err := f.conn.Prepare("PRAGMA " + pragma)
			if err != nil || !stmt.Step() || stmt.ColumnText(0) != want {
				t.Errorf("%s is not %s: %v", pragma, want, err)
			}
			stmt.Close()
		}
		return nil
	})
	if runtime.GOOS != "linux" {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(maps), filepath.Base(path)) {
		t.Error("the file is mapped into memory")
	}
}

// A store that was never used is closed without making a file, and refuses what
// comes after.
func TestUnused(t *testing.T) {
	path := newPath(t)
	s := New(path, patient, nil)
	for range 2 {
		if err := s.Destruct(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want no file", err)
	}
	if _, err := put(s, "a", "", "1"); !errors.Is(err, ErrClosed) {
		t.Errorf("a swap: %v, want ErrClosed", err)
	}
	if _, err := s.Read("a", time.Now()); !errors.Is(err, ErrClosed) {
		t.Errorf("a read: %v, want ErrClosed", err)
	}
	if err := s.Scan(context.Background(), "", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a scan: %v, want ErrClosed", err)
	}
}

// What was answered is in the file and its -wal: a copy of both, taken while the
// store runs, has it. Without the -wal the copy is older, not broken.
func TestCopy(t *testing.T) {
	path := newPath(t)
	s := open(t, path)
	for i := range 20 {
		key := fmt.Sprint("shop:", i)
		mustPut(t, s, key, "", "claimed")
		mustPut(t, s, key, "claimed", "accepted")
		dir := t.TempDir()
		for _, suffix := range []string{"", "-wal"} {
			b, err := os.ReadFile(path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "copy"+suffix), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		wantValue(t, open(t, filepath.Join(dir, "copy")), key, "accepted")
	}
}

// Operations that come together share commits, and each gets its own answer; what
// changes nothing writes nothing.
func TestSharedCommits(t *testing.T) {
	s := open(t, newPath(t))
	mustPut(t, s, "warm", "", "1")
	const n = 200
	commits := 0
	inside(t, s, func(f *file) error {
		f.conn.WALHook(func(*sqlite3.Conn, string, int) error { commits++; return nil })
		return nil
	})
	together := func(run func(i int)) int {
		before := 0
		inside(t, s, func(*file) error { before = commits; return nil })
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for i := range n {
			wg.Go(func() { <-begin; run(i) })
		}
		close(begin)
		wg.Wait()
		after := 0
		inside(t, s, func(*file) error { after = commits; return nil })
		return after - before
	}
	if got := together(func(i int) { mustPut(t, s, fmt.Sprint("shop:", i), "", fmt.Sprint("claim ", i)) }); got > n/4 {
		t.Errorf("%d commits for %d claims, want well fewer", got, n)
	}
	if got := together(func(i int) {
		mustPut(t, s, fmt.Sprint("shop:", i), fmt.Sprint("claim ", i), fmt.Sprint("accepted ", i))
	}); got > n/4 {
		t.Errorf("%d commits for %d settlements, want well fewer", got, n)
	}
	if got := together(func(i int) {
		found, err := put(s, fmt.Sprint("shop:", i), "", "claim")
		if err != nil || found.Swapped || found.Value != fmt.Sprint("accepted ", i) {
			t.Errorf("repeat %d: %+v, %v", i, found, err)
		}
	}); got != 0 {
		t.Errorf("%d commits for %d repeats, want none", got, n)
	}
}

// Of many swaps of one record that come together one wins, also in a shared commit.
func TestOneWins(t *testing.T) {
	s := open(t, newPath(t))
	for round := range 10 {
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				found, err := put(s, fmt.Sprint("shop:", round), "", fmt.Sprint("owner ", i))
				switch {
				case err != nil:
					t.Error(err)
				case found.Swapped:
					won.Add(1)
				case !strings.HasPrefix(found.Value, "owner "):
					t.Errorf("%+v, want the winner's", found)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d swaps won, want 1", won.Load())
		}
	}
}

// A scan visits what has the prefix, whatever bytes it has, in small pages; its
// visitor may use the store, and ends it with an error.
func TestScan(t *testing.T) {
	s := open(t, newPath(t))
	want := make(map[string]bool)
	for i := range 2*scanRecords + 7 {
		key := fmt.Sprintf("iak:shop:%03d", i)
		want[key] = true
		mustPut(t, s, key, "", "v"+key)
	}
	mustPut(t, s, "iak:sho", "", "1")
	mustPut(t, s, "iak:shop2:1", "", "1")
	mustPut(t, s, "iak:shop;", "", "1")
	for prefix, more := range map[string]int{"iak:shop:": 0, "": 3} {
		seen := 0
		err := s.Scan(context.Background(), prefix, func(key string, found store.Found) error {
			seen++
			if want[key] && found.Value != "v"+key || found.Expires == 0 || found.Now == 0 || found.Swapped {
				t.Errorf("%s: %+v", key, found)
			}
			_, err := s.Read(key, time.Now())
			return err
		})
		if err != nil || seen != len(want)+more {
			t.Errorf("%q: %d visited, %v, want %d", prefix, seen, err, len(want)+more)
		}
	}
	stop := errors.New("stop")
	if err := s.Scan(context.Background(), "", func(string, store.Found) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want the visitor's error", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	seen := 0
	if err := s.Scan(ctx, "", func(string, store.Found) error { seen++; cancel(); return nil }); !errors.Is(err, context.Canceled) || seen != 1 {
		t.Errorf("%d visited, %v, want one and context.Canceled", seen, err)
	}
	// A page is bounded by its bytes too.
	for i := range 10 {
		mustPut(t, s, fmt.Sprint("large", i), "", strings.Repeat("x", 80<<10))
	}
	inside(t, s, func(f *file) error {
		p, err := f.page("large", "large", s.clock.read())
		if err != nil || len(p.keys) != 4 || p.last || p.next != "large4" {
			t.Errorf("a page of %d large records, next %q, %v, want 4", len(p.keys), p.next, err)
		}
		return nil
	})
}

// The sweep removes what has expired and nothing else, over any number of steps.
func TestSweep(t *testing.T) {
	path := newPath(t)
	s := open(t, path)
	const n = 3*sweepStep + 7
	fill := func(f *file) error {
		now := time.Now().UnixMilli()
		if err := f.begin.Exec(); err != nil {
			return err
		}
		for i := range n {
			expires := now + 3_600_000
			if i%3 == 0 {
				expires = now - 3_600_000
			}
			if err := f.conn.Exec(fmt.Sprintf("INSERT INTO records VALUES(CAST('shop:%06d' AS BLOB), x'01', %d, NULL)", i, expires)); err != nil {
				return err
			}
		}
		return f.commit.Exec()
	}
	inside(t, s, fill)
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	s.sweep()
	if got := count(t, s); got != n {
		t.Errorf("the clock is not believed yet, and %d records are left, want %d", got, n)
	}
	s.clock.after = 0
	s.sweep()
	want := int64(n - (n+2)/3)
	if got := count(t, s); got != want {
		t.Errorf("%d records are left, want %d", got, want)
	}
	s.sweep()
	if got := count(t, s); got != want {
		t.Errorf("after another sweep %d records are left, want %d", got, want)
	}
}

func count(t testing.TB, s *Store) (n int64) {
	t.Helper()
	inside(t, s, func(f *file) (err error) {
		n, err = f.number("SELECT count(*) FROM records")
		return err
	})
	return n
}

// A step of the sweep that finds nothing to do writes nothing, and no step looks at more
// than its part.
func TestSweepStep(t *testing.T) {
	s := open(t, newPath(t))
	for i := range sweepStep + 1 {
		mustPut(t, s, fmt.Sprintf("shop:%06d", i), "", "1")
	}
	inside(t, s, func(f *file) error {
		before := f.conn.TotalChanges()
		next, more, err := f.sweep(nil, time.Now().UnixMilli())
		if want := fmt.Sprintf("shop:%06d", sweepStep-1); err != nil || !more || string(next) != want {
			t.Errorf("the first step ends at %s, %v, %v, want %s", next, more, err, want)
		}
		next, more, err = f.sweep(next, time.Now().UnixMilli())
		if err != nil || !more {
			t.Errorf("the second step: %v, %v", more, err)
		}
		if next, more, err = f.sweep(next, time.Now().UnixMilli()); err != nil || more {
			t.Errorf("the third step ends at %s, %v, %v, want the end", next, more, err)
		}
		if after := f.conn.TotalChanges(); after != before {
			t.Errorf("%d changes", after-before)
		}
		return nil
	})
}

// The write-ahead log is bounded: it is moved into the file now and then.
func TestLogIsBounded(t *testing.T) {
	path := newPath(t)
	s := open(t, path)
	large := strings.Repeat("x", 60<<10)
	for i := range 300 {
		mustPut(t, s, fmt.Sprint("shop:", i), "", large)
	}
	info, err := os.Stat(path + "-wal")
	if limit := int64(checkpointFrames+100) * (pageSize + frameHeader); err != nil || info.Size() > limit {
		t.Errorf("the log has %d bytes, %v, want %d at most", info.Size(), err, limit)
	}
	if info, err := os.Stat(path); err != nil || info.Size() < 200*int64(len(large)) {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
}

// A panic in the engine is an error, the engine writes nothing after it, and the
// store works on with what was on the disk.
func TestEnginePanics(t *testing.T) {
	path := newPath(t)
	s, told := openReporting(t, path, patient)
	mustPut(t, s, "a", "", "1")
	_, err := s.await(&operation{work: func(*file) error { panic("out of memory") }}, time.Now())
	wantError(t, err, "engine has failed", "out of memory")
	if info, err := os.Stat(path + "-wal"); err != nil || info.Size() == 0 { // else it was written into the file
		t.Errorf("the log is not as it was: %v", err)
	}
	if !strings.Contains(told.all(), "TestEnginePanics") {
		t.Errorf("told %q, want where it failed", told.all())
	}
	wantValue(t, s, "a", "1")
	mustPut(t, s, "a", "1", "2")
}

// Closing a store under load answers every caller, and what was answered is there.
func TestDestructUnderLoad(t *testing.T) {
	for range 5 {
		path := newPath(t)
		s := New(path, patient, nil)
		var wg, started sync.WaitGroup
		var mu sync.Mutex
		var done []string
		for worker := range 16 {
			started.Add(1)
			wg.Go(func() {
				for i := 0; ; i++ {
					key := fmt.Sprintf("shop:%d-%d", worker, i)
					_, err := put(s, key, "", "claimed")
					if err == nil {
						_, err = put(s, key, "claimed", "accepted")
					}
					if i == 0 {
						started.Done()
					}
					if err != nil {
						if !errors.Is(err, ErrClosed) {
							t.Error(err)
						}
						return
					}
					mu.Lock()
					done = append(done, key)
					mu.Unlock()
				}
			})
		}
		started.Wait()
		if err := s.Destruct(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		s = open(t, path)
		for _, key := range done {
			wantValue(t, s, key, "accepted")
		}
	}
}

// A closed store leaves no goroutine, and one file.
func TestDestruct(t *testing.T) {
	before := goroutines()
	path := newPath(t)
	s := New(path, patient, nil)
	mustPut(t, s, "a", "", "1")
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the goroutines end", func() bool { return goroutines() <= before })
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("%v, %v, want the file alone", files, err)
	}
	c, err := sqlite3.Open("file:" + path) // as any other program
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Exec("SELECT * FROM records"); err != nil {
		t.Error(err)
	}
}

func BenchmarkSwap(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			s := open(b, newPath(b))
			mustPut(b, s, "warm", "", "1")
			claim, accepted := strings.Repeat("c", 60), strings.Repeat("a", 40)
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						key := fmt.Sprintf("iak:shop:order%010d", i)
						found, err := s.Swap(&store.Swap{Key: key, New: claim, Lease: 35 * time.Second, Keep: day, Claim: true, Began: time.Now()})
						if err == nil {
							_, err = s.Swap(&store.Swap{Key: key, Old: found.Value, New: accepted, Keep: 30 * day, Began: time.Now()})
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
