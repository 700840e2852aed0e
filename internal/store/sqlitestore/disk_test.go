package sqlitestore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/ncruces/go-sqlite3/vfs"
)

const childEnv = "SQLITESTORE_TEST_CHILD"

// TestMain runs the tests, or what a test wants done in a process of its own.
func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		child(path)
		return
	}
	os.Exit(m.Run())
}

// child uses a store until it is killed, and tells what it was told is done.
func child(path string) {
	s := New(path, patient, func(err error) { fmt.Println(err) })
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d:%d-%d", os.Getpid(), worker, i)
				_, err := put(s, key, "", "claimed")
				if err == nil {
					_, err = put(s, key, "claimed", "accepted")
				}
				if err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
				fmt.Printf("accepted %s\n", key) // one write each, so lines stay whole
			}
		})
	}
	wg.Wait()
}

func startChild(t testing.TB, path string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, bufio.NewScanner(out)
}

// A process that is killed has lost nothing that it was told is done, and its
// file is whole and opens at once, again and again.
func TestKilled(t *testing.T) {
	path := newPath(t)
	var accepted []string
	for round := range 4 {
		cmd, lines := startChild(t, path)
		for n := 0; lines.Scan(); {
			key, ok := strings.CutPrefix(lines.Text(), "accepted ")
			if !ok {
				t.Fatal(lines.Text())
			}
			accepted = append(accepted, key)
			if n++; n == 100+round*600 { // also while the log is moved into the file
				_ = cmd.Process.Kill() // and read what it still said
			}
		}
		_ = cmd.Wait()
		s := New(path, patient, nil)
		for _, key := range accepted {
			wantValue(t, s, key, "accepted")
		}
		inside(t, s, func(f *file) error {
			stmt, _, err := f.conn.Prepare("PRAGMA integrity_check")
			if err != nil || !stmt.Step() || stmt.ColumnText(0) != "ok" {
				t.Errorf("the file is damaged: %v", err)
			}
			return stmt.Close()
		})
		if round%2 == 0 { // else the next process finds it as this one leaves it
			if err := s.Destruct(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		inside(t, s, func(f *file) error { return f.disk.close() }) // as a process that dies does
		_ = s.Destruct()
	}
	if len(accepted) < 100 {
		t.Fatalf("%d were accepted", len(accepted))
	}
}

// While another process holds the file every caller is told so in time, however
// many come at once; those who wait when it dies are served.
func TestAnotherProcess(t *testing.T) {
	path := newPath(t)
	cmd, lines := startChild(t, path)
	if !lines.Scan() {
		t.Fatal("the other process says nothing")
	}
	go func() {
		for lines.Scan() {
		}
	}()
	s, _ := openReporting(t, path, contractTimeout)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			began := time.Now()
			_, err := put(s, fmt.Sprint("shop:", i), "", "1")
			if took := time.Since(began); took > 2*contractTimeout {
				t.Errorf("answered after %s, want about %s", took, contractTimeout)
			}
			wantError(t, err, path, "another process holds the file", "redis")
		})
	}
	wg.Wait()
	waiting := open(t, path)
	result := make(chan error)
	go func() {
		_, err := put(waiting, "shop:waits", "", "1")
		result <- err
	}()
	eventually(t, "the store opens its file", func() bool {
		held.Lock()
		defer held.Unlock()
		return len(held.files) > 0
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := <-result; err != nil {
		t.Error(err)
	}
	if err := waiting.Destruct(); err != nil {
		t.Error(err)
	}
	mustPut(t, s, "shop:0", "", "1")
}

// mount mounts something for the test, or skips it.
func mount(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Skipf("cannot mount (%s): %v: %s", args, err, out)
	}
	dir := args[len(args)-1]
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
}

// bindfs is a file system in a process, which a test can stop and kill.
type bindfs struct {
	dir, real string
	cmd       *exec.Cmd
}

func startBindfs(t testing.TB) *bindfs {
	t.Helper()
	b := &bindfs{dir: t.TempDir(), real: t.TempDir()}
	t.Cleanup(func() {
		b.signal(syscall.SIGCONT)
		_ = exec.Command("umount", "-l", b.dir).Run()
		b.kill()
	})
	b.start(t)
	return b
}

func (b *bindfs) start(t testing.TB) {
	t.Helper()
	b.cmd = exec.Command("bindfs", "-f", b.real, b.dir)
	var out strings.Builder
	b.cmd.Stdout, b.cmd.Stderr = &out, &out
	if err := b.cmd.Start(); err != nil {
		t.Skipf("no bindfs, which is needed for a disk that hangs: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- b.cmd.Wait() }()
	mark := filepath.Join(b.real, "mounted")
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(b.dir, "mounted")); err == nil {
			return
		}
		select {
		case err := <-ended:
			t.Skipf("cannot mount bindfs: %v: %s", err, out.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (b *bindfs) signal(signal os.Signal) { _ = b.cmd.Process.Signal(signal) }

func (b *bindfs) kill() { b.signal(os.Kill) }

func threads(t testing.TB) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Skip(err)
	}
	return len(tasks)
}

// A disk that hangs costs those who wait for it their timeout, one thread, and
// nothing else. When it answers again, so does the store.
func TestDiskHangs(t *testing.T) {
	b := startBindfs(t)
	path := filepath.Join(b.dir, "records.sqlite")
	s, _ := openReporting(t, path, contractTimeout)
	s.timeout = patient
	mustPut(t, s, "known", "", "1")
	eventually(t, "the first sweep is over", func() bool { return s.queue.Waiting() == 0 })
	s.timeout = contractTimeout
	before := threads(t)
	b.signal(syscall.SIGSTOP)
	var wg sync.WaitGroup
	for i := range 600 { // more than two batches
		wg.Go(func() {
			began := time.Now()
			_, err := put(s, fmt.Sprint("shop:", i), "", "1")
			if took := time.Since(began); took > 3*contractTimeout {
				t.Errorf("answered after %s, want %s", took, contractTimeout)
			}
			wantError(t, err, path, "the disk is too slow: context deadline exceeded")
		})
	}
	wg.Wait()
	if n := s.queue.Waiting(); n > 1 { // the sweep may wait
		t.Errorf("%d operations wait for the disk although nobody waits for them: their number would grow", n)
	}
	if n := threads(t) - before; n > 10 {
		t.Errorf("%d more threads", n)
	}
	b.signal(syscall.SIGCONT)
	s.timeout = patient
	mustPut(t, s, "after", "", "1")
	wantValue(t, s, "known", "1")
}

// Caddy stops, and reloads, although the disk hangs: closing does not wait for it.
// Who opens the file again in the same process is told why it must wait, costs
// no thread, and gets the file when the disk is back.
func TestDestructWhileDiskHangs(t *testing.T) {
	b := startBindfs(t)
	path := filepath.Join(b.dir, "records.sqlite")
	old := New(path, contractTimeout, nil)
	old.timeout = patient
	mustPut(t, old, "known", "", "1")
	old.timeout = contractTimeout
	b.signal(syscall.SIGSTOP)
	if _, err := put(old, "lost", "", "1"); err == nil {
		t.Error("the disk does not hang")
	}
	began := time.Now()
	wantError(t, old.Destruct(), path, "the disk does not answer")
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("closed after %s, want one second", took)
	}
	began = time.Now()
	if got := Resolve(path); got != path || time.Since(began) > 3*time.Second {
		t.Errorf("Resolve returns %s after %s, want the path after a second", got, time.Since(began))
	}
	b.signal(syscall.SIGCONT)
	next := open(t, path)
	mustPut(t, next, "next", "", "1")
	wantValue(t, next, "known", "1")
}

// gate is a disk that a test stops at a call, and makes fail.
type gate struct {
	vfs.VFSFilename
	mu      sync.Mutex
	stopped chan struct{} // while it is not nil, syncs and closes of files wait for it to be closed
	reached chan struct{} // one for each that waits
	fails   int           // so many of the next syncs fail
}

type gatedFile struct {
	vfs.File
	gate *gate
}

func (g *gate) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	file, flags, err := g.VFSFilename.OpenFilename(name, flags)
	return gatedFile{file, g}, flags, err
}

func (f gatedFile) Sync(flags vfs.SyncFlag) error {
	f.gate.mu.Lock()
	stopped, fails := f.gate.stopped, f.gate.fails > 0
	if fails {
		f.gate.fails--
	}
	f.gate.mu.Unlock()
	if stopped != nil {
		f.gate.reached <- struct{}{}
		<-stopped
	}
	if fails {
		return syscall.EIO
	}
	return f.File.Sync(flags)
}

func (g *gate) stop() (open func()) {
	stopped := make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped, g.reached = stopped, make(chan struct{}, 100)
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.stopped = nil
		close(stopped)
	})
}

func gated(t testing.TB, path string) (*Store, *gate) {
	t.Helper()
	g := new(gate)
	s := New(path, patient, nil)
	s.disk = func(os vfs.VFSFilename) vfs.VFSFilename { g.VFSFilename = os; return g }
	t.Cleanup(func() { _ = s.Destruct() })
	return s, g
}

// What nobody waits for any more is not carried out, if it has not begun.
func TestAbandoned(t *testing.T) {
	s, g := gated(t, newPath(t))
	mustPut(t, s, "warm", "", "1")
	open := g.stop()
	defer open()
	first := make(chan error)
	go func() { _, err := put(s, "first", "", "1"); first <- err }()
	<-g.reached
	s.timeout = 10 * time.Millisecond
	if _, err := put(s, "second", "", "1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the deadline", err)
	}
	if n := s.queue.Waiting(); n > 1 {
		t.Errorf("%d wait", n)
	}
	s.timeout = patient
	open()
	if err := <-first; err != nil {
		t.Error(err)
	}
	wantValue(t, s, "first", "1")
	wantValue(t, s, "second", "")
	if _, err := s.Read("first", time.Now().Add(-patient)); err == nil {
		t.Error("a read that began before the timeout is carried out")
	}
	// Its time may end between the queue and the file, too.
	late := &operation{key: "late", swap: &store.Swap{Key: "late", New: "1", Keep: day}, until: time.Now(), done: make(chan struct{})}
	if err := s.add(late); err != nil {
		t.Fatal(err)
	}
	if <-late.done; !errors.Is(late.err, context.DeadlineExceeded) {
		t.Errorf("%v, want the deadline", late.err)
	}
	wantValue(t, s, "late", "")
}

// A store on a file that another store of this process is closing waits for it,
// and has it as soon as it is free.
func TestReopenWhileClosing(t *testing.T) {
	path := newPath(t)
	old, g := gated(t, path)
	mustPut(t, old, "known", "", "1")
	open := g.stop()
	defer open()
	go func() { _, _ = put(old, "last", "", "1") }()
	<-g.reached
	closed := make(chan error)
	go func() { closed <- old.Destruct() }()
	eventually(t, "the store is being closed", func() bool { old.mu.Lock(); defer old.mu.Unlock(); return old.closed })
	impatient, _ := openReporting(t, path, 50*time.Millisecond)
	_, err := put(impatient, "x", "", "1")
	wantError(t, err, path, "this process has not closed the file yet")
	next, _ := openReporting(t, path, patient)
	answered := make(chan error)
	go func() { _, err := put(next, "next", "", "1"); answered <- err }()
	open()
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	wantValue(t, next, "last", "1")
}

// A commit that the disk did not confirm is an error, and is never built upon
// before the disk has confirmed what is read.
func TestSyncFails(t *testing.T) {
	s, g := gated(t, newPath(t))
	mustPut(t, s, "a", "", "1")
	for i := range 3 {
		g.mu.Lock()
		g.fails = 2 // that of the commit, and then that of the file's closing
		g.mu.Unlock()
		_, err := put(s, "a", fmt.Sprint(i+1), "lost")
		wantError(t, err, "the disk has failed: look at the disk", "input/output error")
		inside(t, s, func(f *file) error {
			size, err := f.disk.wal.Size()
			if size != 0 {
				t.Errorf("%d bytes are in the log of a file that was just opened", size)
			}
			return err
		})
		found, err := s.Read("a", time.Now())
		if err != nil || found.Value != "lost" && found.Value != fmt.Sprint(i+1) {
			t.Fatalf("%+v, %v", found, err)
		}
		mustPut(t, s, "a", found.Value, fmt.Sprint(i+2))
	}
	if g.fails != 0 {
		t.Errorf("%d syncs did not fail", g.fails)
	}
}

// An error of the disk is told, and over when the disk is back.
func TestDiskFails(t *testing.T) {
	b := startBindfs(t)
	path := filepath.Join(b.dir, "records.sqlite")
	s := open(t, path)
	mustPut(t, s, "known", "", "1")
	b.kill()
	for range 3 {
		_, err := put(s, "new", "", "1")
		wantError(t, err, path, "transport endpoint is not connected")
	}
	_ = exec.Command("umount", "-l", b.dir).Run()
	b.start(t)
	wantValue(t, s, "known", "1")
	mustPut(t, s, "new", "", "1")
}

// On a full disk what needs room is refused with an error that says so, what is
// known is still known, and with room it goes on.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	mount(t, "-t", "tmpfs", "-o", "size=1m", "tmpfs", dir)
	path := filepath.Join(dir, "records.sqlite")
	filler := filepath.Join(dir, "filler")
	fill := func() {
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, err = io.Copy(f, zeros{})
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("%v, want a full disk", err)
		}
	}
	s := open(t, path)
	fill()
	_, err := put(s, "a", "", "1") // the first write of all
	wantError(t, err, path, "the disk is full", "make room")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "known", "", "1")
	fill()
	large := strings.Repeat("x", 80<<10)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if i%2 == 0 {
				_, err := put(s, fmt.Sprint("new", i), "", large)
				wantError(t, err, path, "the disk is full", "make room")
				return
			}
			if found, err := put(s, "known", "", "2"); err != nil || found.Swapped || found.Value != "1" {
				t.Errorf("what is known: %+v, %v", found, err)
			}
		})
	}
	wg.Wait()
	wantValue(t, s, "new0", "")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "new0", "", large)
	wantValue(t, s, "known", "1")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A disk that has become read-only is told, and over when it can be written to.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	mount(t, "-t", "tmpfs", "-o", "size=8m", "tmpfs", dir)
	path := filepath.Join(dir, "records.sqlite")
	s := New(path, patient, nil)
	mustPut(t, s, "known", "", "1")
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	remount := func(mode string) {
		if out, err := exec.Command("mount", "-o", "remount,"+mode, dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	remount("ro")
	s = open(t, path)
	_, err := put(s, "new", "", "1")
	wantError(t, err, path, "read-only", "make it writable")
	remount("rw")
	mustPut(t, s, "new", "", "1")
	wantValue(t, s, "known", "1")
}
