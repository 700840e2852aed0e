package iakcallback

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store/batch"
	"go.etcd.io/bbolt"
)

func writeFile(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// testEmbedded is a store on a file of its own, closed with the test.
func testEmbedded(t testing.TB, path string) *embeddedStore {
	t.Helper()
	s := newEmbeddedStore(path)
	t.Cleanup(func() {
		select {
		case <-s.done: // the test has closed it
		default:
			if err := s.Destruct(); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func newPath(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "new", "dir", "records.db")
}

// The file is made on first use, in directories that are made too, nobody else
// may read it, and every commit waits for the disk.
func TestEmbeddedFile(t *testing.T) {
	path := newPath(t)
	s := testEmbedded(t, path)
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("before the first use: %v, want no directory", err)
	}
	mustClaim(t, s, claimOf("shop:order001", "A", success, alive))
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700 | os.ModeDir} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %s, want %s", filepath.Base(name), info.Mode(), want)
		}
	}
	db, err := s.open(context.Background(), time.Now().Add(s.timeout))
	if err != nil {
		t.Fatal(err)
	}
	if db.NoSync || db.NoGrowSync {
		t.Error("commits do not wait for the disk")
	}
}

// A store that was never used is closed without making a file.
func TestEmbeddedUnused(t *testing.T) {
	path := newPath(t)
	s := newEmbeddedStore(path)
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want no file", err)
	}
	if d, err := s.claim(context.Background(), claimOf("shop:order001", "A", success, alive)); !errors.Is(err, errStoreClosed) {
		t.Errorf("a claim on a closed store: %+v, %v, want errStoreClosed", d, err)
	}
	if err := s.settle(context.Background(), &settlement{verdict: settleUnsent}); !errors.Is(err, errStoreClosed) {
		t.Errorf("a settlement on a closed store: %v, want errStoreClosed", err)
	}
}

// lockFile holds a store's file as another process would.
func lockFile(t testing.TB, path string) (unlock func()) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

// contractTimeout is the bound of an operation; TestMain makes other tests
// more patient.
const contractTimeout = 500 * time.Millisecond

func TestEmbeddedTimeout(t *testing.T) {
	if embeddedTimeout != 10*contractTimeout {
		t.Errorf("an operation may take %s, want %s", embeddedTimeout/10, contractTimeout)
	}
}

// While another process holds the file, every caller is told so in time,
// however many come at once; once it is free, the store works without a
// restart.
func TestEmbeddedLocked(t *testing.T) {
	path := newPath(t)
	unlock := lockFile(t, path)
	defer unlock()
	s := testEmbedded(t, path)
	s.timeout = contractTimeout
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			start := time.Now()
			d, err := s.claim(context.Background(), claimOf(fmt.Sprint("shop:", i), "A", success, alive))
			if took := time.Since(start); took > 2*contractTimeout {
				t.Errorf("answered after %s, want about %s", took, contractTimeout)
			}
			switch {
			case err == nil:
				t.Errorf("claimed: %+v", d)
			case !strings.Contains(err.Error(), path), !strings.Contains(err.Error(), "another process"), !strings.Contains(err.Error(), "redis"):
				t.Errorf("%q does not tell the file, and what to do", err)
			}
		})
	}
	wg.Wait()
	start := time.Now()
	if err := s.settle(context.Background(), &settlement{key: "shop:0", verdict: settleUnsent}); err == nil || time.Since(start) > 2*contractTimeout {
		t.Errorf("a settlement: %v after %s", err, time.Since(start))
	}
	unlock()
	mustClaim(t, s, claimOf("shop:0", "B", success, alive))
}

// A file that is free again while callers wait for it serves them.
func TestEmbeddedLockedForAMoment(t *testing.T) {
	path := newPath(t)
	unlock := lockFile(t, path)
	defer unlock()
	s := testEmbedded(t, path)
	result := make(chan error)
	go func() {
		_, err := s.claim(context.Background(), claimOf("shop:order001", "A", success, alive))
		result <- err
	}()
	eventually(t, "the store opens its file", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.opening != nil
	})
	unlock()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// What cannot be a store's file is an error that names it, and nothing is
// overwritten.
func TestEmbeddedNotAStore(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "notes.txt")
	content := strings.Repeat("not a database\n", 2000)
	writeFile(t, text, []byte(content))
	for name, path := range map[string]string{
		"another file": text, "a directory": dir, "below a file": filepath.Join(text, "records.db"),
	} {
		t.Run(name, func(t *testing.T) {
			s := testEmbedded(t, path)
			d, err := s.claim(context.Background(), claimOf("shop:order001", "A", success, alive))
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%+v, %v, want an error that names the file", d, err)
			}
		})
	}
	if b, err := os.ReadFile(text); err != nil || string(b) != content {
		t.Errorf("the other file has changed: %d bytes, %v", len(b), err)
	}
}

// Records outlive a restart.
func TestEmbeddedReopen(t *testing.T) {
	path := newPath(t)
	s := testEmbedded(t, path)
	done, open := claimOf("shop:done", "A", success, alive), claimOf("shop:open", "A", success, alive)
	mustSettle(t, s, settlementOf(done, mustClaim(t, s, done), settleAccepted))
	d := mustClaim(t, s, open)
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	s = testEmbedded(t, path)
	wantVerdict(t, s, claimOf(done.key, "B", success, alive), verdictDuplicate)
	wantVerdict(t, s, claimOf(open.key, "B", success, alive), verdictInFlight)
	mustSettle(t, s, settlementOf(open, d, settleAccepted))
	wantVerdict(t, s, claimOf(open.key, "B", success, alive), verdictDuplicate)
}

// What has been answered is in the file: a copy of it, taken while the store
// runs, knows it.
func TestEmbeddedCopy(t *testing.T) {
	path := newPath(t)
	s := testEmbedded(t, path)
	for i := range 20 {
		c := claimOf(fmt.Sprint("shop:", i), "A", success, alive)
		d := mustClaim(t, s, c)
		atWork := testEmbedded(t, copyFile(t, path))
		wantVerdict(t, atWork, claimOf(c.key, "B", success, alive), verdictInFlight)
		mustSettle(t, s, settlementOf(c, d, settleAccepted))
		settled := testEmbedded(t, copyFile(t, path))
		wantVerdict(t, settled, claimOf(c.key, "B", success, alive), verdictDuplicate)
	}
}

func copyFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "copy.db")
	writeFile(t, name, b)
	return name
}

// TestEmbeddedVictim is no test of its own: TestEmbeddedKilled runs it in
// another process, and kills that.
func TestEmbeddedVictim(t *testing.T) {
	path := os.Getenv("IAK_TEST_VICTIM")
	if path == "" {
		t.Skip("run by TestEmbeddedKilled")
	}
	s := newEmbeddedStore(path)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				c := claimOf(fmt.Sprintf("shop:%d-%d", worker, i), "A", success, alive)
				d, err := s.claim(context.Background(), c)
				if err != nil || d.verdict != verdictForwarded {
					continue // a busy disk
				}
				if s.settle(context.Background(), settlementOf(c, d, settleAccepted)) == nil {
					fmt.Printf("settled %s\n", c.key) // one write each, so lines stay whole
				}
			}
		})
	}
	wg.Wait()
}

// A process that is killed has lost nothing that it was told is recorded, and
// its file opens at once.
func TestEmbeddedKilled(t *testing.T) {
	path := newPath(t)
	var settled []string
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestEmbeddedVictim$")
		cmd.Env = append(os.Environ(), "IAK_TEST_VICTIM="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if key, ok := strings.CutPrefix(lines.Text(), "settled "); ok {
				settled = append(settled, key)
				if n++; n == 100 {
					_ = cmd.Process.Kill() // and read what it still said
				}
			}
		}
		_ = cmd.Wait()
		if n < 100 {
			t.Fatalf("the other process settled %d records", n)
		}
		s := testEmbedded(t, path)
		for _, key := range settled {
			wantVerdict(t, s, claimOf(key, "B", success, alive), verdictDuplicate)
		}
		// The next process starts from an empty file: its keys are the same.
		if err := s.Destruct(); err != nil {
			t.Fatal(err)
		}
		path, settled = newPath(t), nil
	}
}

// commits returns how many transactions have been committed to the file.
func commits(t testing.TB, s *embeddedStore) (n int) {
	t.Helper()
	db, err := s.open(context.Background(), time.Now().Add(s.timeout))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.View(func(tx *bbolt.Tx) error { n = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// Operations that come together share commits, and each gets its own answer.
func TestEmbeddedGroupsCommits(t *testing.T) {
	s := testEmbedded(t, newPath(t))
	mustClaim(t, s, claimOf("shop:warm", "A", success, alive))
	const n = 200
	together := func(run func(i int)) int {
		before := commits(t, s)
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for i := range n {
			wg.Go(func() { <-begin; run(i) })
		}
		close(begin)
		wg.Wait()
		return commits(t, s) - before
	}
	var decisions [n]decision
	claimed := func(i int) *claimRequest { return claimOf(fmt.Sprint("shop:", i), "A", success, alive) }
	for name, run := range map[string]func(i int){"claims": func(i int) {
		d, err := s.claim(context.Background(), claimed(i))
		if err != nil || d.verdict != verdictForwarded {
			t.Errorf("claim %d: %+v, %v", i, d, err)
		}
		decisions[i] = d
	}} {
		if got := together(run); got > n/4 {
			t.Errorf("%d commits for %d %s, want well fewer", got, n, name)
		}
	}
	if got := together(func(i int) {
		if err := s.settle(context.Background(), settlementOf(claimed(i), decisions[i], settleAccepted)); err != nil {
			t.Errorf("settlement %d: %v", i, err)
		}
	}); got > n/4 {
		t.Errorf("%d commits for %d settlements, want well fewer", got, n)
	}
	if got := together(func(i int) {
		if d, err := s.claim(context.Background(), claimed(i)); err != nil || d.verdict != verdictDuplicate {
			t.Errorf("duplicate %d: %+v, %v", i, d, err)
		}
	}); got != 0 {
		t.Errorf("%d commits for %d duplicates, want none", got, n)
	}
}

// Of many claims on one record that come together, one is forwarded, also when
// they share a commit.
func TestEmbeddedOneWins(t *testing.T) {
	s := testEmbedded(t, newPath(t))
	for round := range 10 {
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				d, err := s.claim(context.Background(), claimOf(fmt.Sprint("shop:", round), fmt.Sprint("owner", i), success, alive))
				switch {
				case err != nil:
					t.Error(err)
				case d.verdict == verdictForwarded:
					won.Add(1)
				case d.verdict != verdictInFlight:
					t.Errorf("%+v, want in_flight", d)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d claims were forwarded, want 1", won.Load())
		}
	}
}

// A record that cannot be read spoils only its own operation, not those that
// share its commit.
func TestEmbeddedUnreadableAmongOthers(t *testing.T) {
	s := testEmbedded(t, newPath(t))
	putEmbedded(t, s, "shop:bad", []byte{recordVersion + 1, 0, 0, 0})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if i%10 == 0 {
				if err := s.settle(context.Background(), &settlement{key: "shop:bad", verdict: settleUnsent}); !errors.Is(err, errRecord) {
					t.Errorf("the bad record: %v, want errRecord", err)
				}
				return
			}
			c := claimOf(fmt.Sprint("shop:", i), "A", success, alive)
			d, err := s.claim(context.Background(), c)
			if err != nil || d.verdict != verdictForwarded {
				t.Errorf("claim %d: %+v, %v", i, d, err)
				return
			}
			if err := s.settle(context.Background(), settlementOf(c, d, settleAccepted)); err != nil {
				t.Errorf("settlement %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// A change that nobody waits for any more is not made.
func TestEmbeddedAbandoned(t *testing.T) {
	s := testEmbedded(t, newPath(t))
	mustClaim(t, s, claimOf("shop:warm", "A", success, alive))
	db, err := s.open(context.Background(), time.Now().Add(s.timeout))
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin(true) // the disk is busy
	if err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	go func() { // keeps the writer waiting
		_, err := s.claim(context.Background(), claimOf("shop:first", "A", success, alive))
		first <- err
	}()
	eventually(t, "the writer takes the first claim", func() bool {
		return goroutines("(*embeddedStore).commit") == 1
	})
	ctx, cancel := context.WithCancel(context.Background())
	second := make(chan error, 1)
	go func() {
		_, err := s.claim(ctx, claimOf("shop:second", "A", success, alive))
		second <- err
	}()
	eventually(t, "the second claim waits", func() bool {
		return s.writes.Waiting() == 1
	})
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("the abandoned claim: %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	<-first // in time or not
	mustClaim(t, s, claimOf("shop:third", "A", success, alive))
	if b, _ := embeddedRecord(t, s, "shop:second"); b != nil {
		t.Errorf("the abandoned claim was made: % x", b)
	}
}

// A disk that hangs is an error in time.
func TestEmbeddedDiskHangs(t *testing.T) {
	s := testEmbedded(t, newPath(t))
	known := claimOf("shop:known", "A", success, alive)
	mustSettle(t, s, settlementOf(known, mustClaim(t, s, known), settleAccepted))
	db, err := s.open(context.Background(), time.Now().Add(s.timeout))
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	s.timeout = contractTimeout
	var wg sync.WaitGroup
	for i := range 2 * batch.Max { // more than one commit takes
		wg.Go(func() {
			start := time.Now()
			d, err := s.claim(context.Background(), claimOf(fmt.Sprint("shop:", i), "A", success, alive))
			if took := time.Since(start); err == nil || took > 2*contractTimeout {
				t.Errorf("%+v, %v after %s, want an error after %s", d, err, took, contractTimeout)
			}
		})
	}
	wg.Wait()
	if n := s.writes.Waiting(); n != 0 {
		t.Errorf("%d writes wait for the disk although nobody waits for them: their number would grow", n)
	}
	wantVerdict(t, s, claimOf(known.key, "B", success, alive), verdictDuplicate) // reads do not wait for the disk
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store works again", func() bool {
		_, err := s.claim(context.Background(), claimOf("shop:after", "A", success, alive))
		return err == nil
	})
}

// clock is a time that a test sets.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.at.Store(time.Now().UnixMilli())
	return c
}

func (c *clock) now() time.Time          { return time.UnixMilli(c.at.Load()) }
func (c *clock) forward(d time.Duration) { c.at.Add(d.Milliseconds()) }

// recordKeys returns the keys in the file, expired or not.
func recordKeys(t testing.TB, s *embeddedStore) (n int) {
	t.Helper()
	db, err := s.open(context.Background(), time.Now().Add(s.timeout))
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		if bucket := tx.Bucket(recordsBucket); bucket != nil {
			n = bucket.Stats().KeyN
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A record whose retention is over is none, and is removed from the file; one
// that was changed since, or lives longer, stays.
func TestEmbeddedExpires(t *testing.T) {
	time0 := newClock()
	s := testEmbedded(t, newPath(t))
	s.now = time0.now
	settle := func(key, who string, retention time.Duration) {
		t.Helper()
		c := claimOf(key, who, success, time.Second)
		c.retention = retention
		mustSettle(t, s, settlementOf(c, mustClaim(t, s, c), settleAccepted))
	}
	for i := range 5 {
		settle(fmt.Sprint("shop:short", i), "A", 48*time.Hour)
		settle(fmt.Sprint("shop:long", i), "A", 96*time.Hour)
	}
	time0.forward(48*time.Hour - time.Millisecond)
	wantVerdict(t, s, claimOf("shop:short0", "B", success, alive), verdictDuplicate)
	time0.forward(time.Millisecond)
	if d := mustClaim(t, s, claimOf("shop:short0", "B", success, alive)); d.attempt != 1 {
		t.Errorf("attempt %d, want 1: an expired record is none", d.attempt)
	}
	wantVerdict(t, s, claimOf("shop:long0", "B", success, alive), verdictDuplicate)

	db, err := s.open(context.Background(), time.Now().Add(s.timeout))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(db); err != nil {
		t.Fatal(err)
	}
	if n := recordKeys(t, s); n != 6 {
		t.Errorf("%d records are left, want 6: five long ones and the claimed one", n)
	}
	// The sweep found the records before it removes them: what was written
	// again, or is gone, in between is left alone.
	err = db.Update(func(tx *bbolt.Tx) error {
		return s.remove(tx, [][]byte{[]byte("shop:short0"), []byte("shop:short1"), []byte("shop:long1")})
	})
	if err != nil {
		t.Fatal(err)
	}
	wantVerdict(t, s, claimOf("shop:short0", "C", success, alive), verdictInFlight)
	for i := range 5 {
		wantVerdict(t, s, claimOf(fmt.Sprint("shop:long", i), "B", success, alive), verdictDuplicate)
	}
}

// The sweep goes over any number of records, finds nothing in an empty file,
// and runs when the file is opened.
func TestEmbeddedSweepsOnOpening(t *testing.T) {
	path := newPath(t)
	s := testEmbedded(t, path)
	db, err := s.open(context.Background(), time.Now().Add(s.timeout))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(db); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	const n = 3*sweepChunk + 7
	now := time.Now()
	r := testRecords()[1].encode()
	err = db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists(recordsBucket)
		if err != nil {
			return err
		}
		for i := range n {
			until := now.Add(time.Hour)
			if i%3 == 0 {
				until = now.Add(-time.Hour)
			}
			v := append(binary.BigEndian.AppendUint64(nil, uint64(until.UnixMilli())), r...)
			if err := bucket.Put(fmt.Appendf(nil, "shop:%06d", i), v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	s = testEmbedded(t, path)
	mustClaim(t, s, claimOf("shop:new", "A", success, alive))
	want := n - (n+2)/3 + 1
	eventually(t, "the expired records are removed", func() bool { return recordKeys(t, s) <= want })
	if got := recordKeys(t, s); got != want {
		t.Errorf("%d records are left, want %d", got, want)
	}
}

// goroutines counts those that are in a function of this name.
func goroutines(name string) (n int) {
	stacks := make([]byte, 8<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, name) {
			n++
		}
	}
	return n
}

// Closing a store ends its goroutines and frees the file, however it was left.
func TestEmbeddedDestruct(t *testing.T) {
	before := goroutines("(*embeddedStore)")
	for name, use := range map[string]func(t *testing.T, s *embeddedStore){
		"unused": func(*testing.T, *embeddedStore) {},
		"used": func(t *testing.T, s *embeddedStore) {
			mustClaim(t, s, claimOf("shop:order001", "A", success, alive))
		},
		"locked": func(t *testing.T, s *embeddedStore) {
			unlock := lockFile(t, s.path)
			defer unlock()
			if d, err := s.claim(context.Background(), claimOf("shop:order001", "A", success, alive)); err == nil {
				t.Errorf("claimed: %+v", d)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			s := newEmbeddedStore(path)
			use(t, s)
			if err := s.Destruct(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the goroutines end", func() bool { return goroutines("(*embeddedStore)") <= before })
			lockFile(t, path)()
		})
	}
}

// A store that is closed while its file is being opened does not keep it.
func TestEmbeddedDestructWhileOpening(t *testing.T) {
	before := goroutines("(*embeddedStore)")
	path := newPath(t)
	unlock := lockFile(t, path)
	s := newEmbeddedStore(path)
	result := make(chan error, 1)
	go func() {
		_, err := s.claim(context.Background(), claimOf("shop:order001", "A", success, alive))
		result <- err
	}()
	eventually(t, "the store opens its file", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.opening != nil
	})
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-result; !errors.Is(err, errStoreClosed) {
		t.Errorf("the claim: %v, want errStoreClosed", err)
	}
	eventually(t, "the goroutines end", func() bool { return goroutines("(*embeddedStore)") <= before })
	lockFile(t, path)()
}

// Closing a store under load answers every caller, and what was answered as
// recorded is recorded.
func TestEmbeddedDestructUnderLoad(t *testing.T) {
	for range 5 {
		path := newPath(t)
		s := newEmbeddedStore(path)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var settled []string
		var started sync.WaitGroup
		for worker := range 16 {
			started.Add(1)
			wg.Go(func() {
				for i := 0; ; i++ {
					c := claimOf(fmt.Sprintf("shop:%d-%d", worker, i), "A", success, alive)
					d, err := s.claim(context.Background(), c)
					if err == nil {
						err = s.settle(context.Background(), settlementOf(c, d, settleAccepted))
					}
					if i == 0 {
						started.Done()
					}
					if err != nil {
						return
					}
					mu.Lock()
					settled = append(settled, c.key)
					mu.Unlock()
				}
			})
		}
		started.Wait()
		if err := s.Destruct(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		s = testEmbedded(t, path)
		for _, key := range settled {
			wantVerdict(t, s, claimOf(key, "B", success, alive), verdictDuplicate)
		}
	}
}

// Handlers, reloads and requests at work share one open file. Whoever comes
// while the last user closes it opens it again, and nobody is told that it is
// closed or held by another process.
func TestEmbeddedShared(t *testing.T) {
	path := newPath(t)
	newRef := func() *storeRef {
		return &storeRef{kind: "embedded", key: poolKey("embedded", path), open: func() (openStore, error) { return newEmbeddedStore(path), nil }}
	}
	shared := newRef()
	first, err := shared.acquire()
	if err != nil {
		t.Fatal(err)
	}
	if second, err := shared.acquire(); err != nil || second != first {
		t.Fatalf("the second user gets %p, %v, want the same store", second, err)
	}
	if err := shared.release(); err != nil {
		t.Fatal(err)
	}
	mustClaim(t, first, claimOf("shop:held", "A", success, alive)) // one user is left
	if err := shared.release(); err != nil {
		t.Fatal(err)
	}
	lockFile(t, path)()

	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 20 {
				ref := shared // a request's
				if worker%2 == 0 {
					ref = newRef() // a handler's of another configuration
				}
				s, err := ref.acquire()
				if err != nil {
					t.Error(err)
					return
				}
				c := claimOf(fmt.Sprintf("shop:%d-%d", worker, i), "A", success, alive)
				d, err := s.claim(context.Background(), c)
				if err != nil || d.verdict != verdictForwarded {
					t.Errorf("claim: %+v, %v", d, err)
				} else if err := s.settle(context.Background(), settlementOf(c, d, settleAccepted)); err != nil {
					t.Errorf("settle: %v", err)
				}
				if err := ref.release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n, open := stores.References(poolKey("embedded", path)); open {
		t.Errorf("the store is still open with %d references", n)
	}
	lockFile(t, path)()
}

// A damaged file costs the callbacks that need it, with an error that says what
// to do, and never the process: wherever bbolt finds the damage.
func TestEmbeddedDamaged(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"zeroed":    func(b []byte) []byte { clear(b[8192:]); return b },
		"truncated": func(b []byte) []byte { return b[:8192+100] },
		"random": func(b []byte) []byte {
			for i := 8192; i < len(b); i++ {
				b[i] = byte(i*7 + i/256)
			}
			return b
		},
		"meta pages": func(b []byte) []byte { clear(b[:8192]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "records.db")
			ask := func(s *embeddedStore, i int) (decision, error) {
				return s.claim(context.Background(), &claimRequest{
					key: fmt.Sprint("shop:", i), outcome: success, owner: testOwner(fmt.Sprint(i)), lease: alive, retention: alive,
				})
			}
			s := newEmbeddedStore(path)
			for i := range 150 {
				if _, err := ask(s, i); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Destruct(); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			s = newEmbeddedStore(path)
			defer func() { _ = s.Destruct() }()
			for i := range 3 {
				d, err := ask(s, i)
				if err == nil {
					t.Errorf("claim %d of a damaged file: %+v", i, d)
				} else if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "the file is damaged: stop Caddy") {
					t.Errorf("the error does not name the file and say what to do: %v", err)
				}
			}
		})
	}
}
