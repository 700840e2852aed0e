// Package sqlitestore keeps records in one SQLite file, for one process: the
// embedded store.
//
// One goroutine at a time, that of the queue, touches the file: a disk that
// hangs holds up one thread and whoever waits for an answer, who has it within
// the store's timeout. Nothing of the file is mapped into memory, so nothing
// else in the process can meet the disk by chance.
package sqlitestore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/batch"
	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
)

// closeTimeout is how long Destruct waits for the disk: a reload, or the end of
// Caddy, must not hang with it.
const closeTimeout = time.Second

// ErrClosed is what a store answers after Destruct.
var ErrClosed = errors.New("the embedded store is closed")

// Store keeps records in a file. It is a store.Engine.
type Store struct {
	path    string
	timeout time.Duration
	report  func(error)
	disk    func(vfs.VFSFilename) vfs.VFSFilename // replaced by tests, for what a real disk cannot be made to do
	queue   batch.Queue[*operation]               // of what waits for the file
	done    chan struct{}                         // closed by Destruct

	mu     sync.Mutex
	closed bool

	// Only the queue's goroutine uses these.
	clock    *clock
	file     *file
	sweeping bool
}

var _ store.Engine = (*Store)(nil)

// New returns a store on a file, which is opened, and made if there is none, by
// the first operation: New itself touches no disk. An operation is answered
// within the timeout. What is found out about the file between operations, or
// mended, is told to report (nil: nobody), in the goroutine that runs the
// operations.
func New(path string, timeout time.Duration, report func(error)) *Store {
	if report == nil {
		report = func(error) {}
	}
	s := &Store{
		path: path, timeout: timeout, report: report, clock: newClock(), done: make(chan struct{}),
		disk: func(os vfs.VFSFilename) vfs.VFSFilename { return os },
	}
	s.queue.Run = s.run
	return s
}

// operation is what waits in the queue: a swap, a read, or other work.
type operation struct {
	key  string
	swap *store.Swap // nil for a read

	// work is done by itself, after the swaps and reads that were taken from the queue
	// with it have been answered. It gets no file when closing is set.
	work    func(*file) error
	closing bool

	until time.Time     // then nobody waits for it any more; zero for never
	done  chan struct{} // closed when found and err are set
	found store.Found
	err   error
}

func (o *operation) answer(err error) {
	o.err = err
	close(o.done)
}

// Swap puts new bytes in the place of old ones. It returns when that is on the
// disk, or has failed, or the time is over: then it may still be carried out.
func (s *Store) Swap(swap *store.Swap) (store.Found, error) {
	return s.await(&operation{key: swap.Key, swap: swap}, swap.Began)
}

// Read returns what stands under a key.
func (s *Store) Read(key string, began time.Time) (store.Found, error) {
	return s.await(&operation{key: key}, began)
}

// await hands over an operation and waits for its answer, as long as there is time.
func (s *Store) await(o *operation, began time.Time) (store.Found, error) {
	o.until = began.Add(s.timeout)
	o.done = make(chan struct{})
	left := time.Until(o.until)
	if left <= 0 {
		return store.Found{}, s.wrap(errSlow)
	}
	if err := s.add(o); err != nil {
		return store.Found{}, err
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-o.done:
	case <-timer.C:
		// Those that nobody waits for any more must not grow in number behind a batch that hangs.
		s.queue.Remove(o)
		select {
		case <-o.done:
		default:
			return store.Found{}, s.wrap(errSlow)
		}
	}
	if o.err != nil {
		return store.Found{}, s.wrap(o.err)
	}
	return o.found, nil
}

// add puts an operation into the queue. Nothing comes after Destruct's.
func (s *Store) add(o *operation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.closed = o.closing
	s.queue.Add(o)
	return nil
}

// run carries out what waited together: the swaps and reads in one transaction,
// then the other work.
func (s *Store) run(batch []*operation) {
	var together, alone []*operation
	for _, o := range inTime(batch) {
		if o.work != nil || o.closing {
			alone = append(alone, o)
		} else {
			together = append(together, o)
		}
	}
	s.together(together)
	for _, o := range alone {
		if o.closing {
			_ = guarded(s.look) // a log that is left beside another file would damage that
			o.answer(s.closeFile(true))
			continue
		}
		o.answer(s.use(o.until, o.work))
	}
	s.checkpoint()
}

// together carries out swaps and reads in one transaction, and answers them when
// it is on the disk.
func (s *Store) together(ops []*operation) {
	if len(ops) == 0 {
		return
	}
	until := ops[0].until
	for _, o := range ops {
		if o.until.Before(until) {
			until = o.until
		}
	}
	err := s.use(until, func(f *file) error { return f.transact(ops, s.clock.read()) })
	if len(ops) > 1 && isFull(err) {
		// What needs no room still works: repeats of what is known.
		for _, o := range ops {
			s.together(inTime([]*operation{o}))
		}
		return
	}
	for _, o := range ops {
		o.answer(err)
	}
}

// inTime answers those whose time is over, and returns the others.
func inTime(ops []*operation) (rest []*operation) {
	now := time.Now()
	for _, o := range ops {
		if o.until.IsZero() || o.until.After(now) {
			rest = append(rest, o)
		} else {
			o.answer(errSlow)
		}
	}
	return rest
}

// use does something with the open file. After an error the file is closed, and
// opened again by the next use, since what is in memory may not be what is on
// the disk. For want of room nothing was written, and it stays open: repeats of
// what is known need none.
func (s *Store) use(until time.Time, work func(*file) error) error {
	err := s.openFile(until)
	if err != nil {
		return err
	}
	err = guarded(func() error { return work(s.file) })
	if err != nil && (!isFull(err) || errors.Is(err, sqlite3.IOERR_FSYNC)) {
		s.giveUp(err)
	}
	return describe(err)
}

// checkpoint moves what is in the write-ahead log into the file, when there is
// enough. Nobody waits for an answer then; those who come meanwhile wait.
func (s *Store) checkpoint() {
	if s.file == nil || s.file.frames < checkpointFrames {
		return
	}
	err := guarded(s.look)
	if err == nil && s.file != nil {
		err = guarded(s.file.checkpoint)
	}
	if err == nil || isFull(err) { // then the log grows instead, as long as that has room
		return
	}
	s.giveUp(err)
	s.report(s.wrap(describe(err)))
}

// giveUp closes a file with which something went wrong. If that was the engine
// itself, it gets no chance to write.
func (s *Store) giveUp(err error) {
	var panicked *guard.PanicError
	failed := errors.As(err, &panicked)
	if failed {
		s.report(s.wrap(fmt.Errorf("%w\n%s", err, panicked.Stack)))
	}
	_ = s.closeFile(!failed)
}

// Destruct closes the file, after what waits for it. It waits for a second at
// most: a disk that hangs is left behind, and the file is closed when it
// answers. A store that is opened on the same file waits for that.
func (s *Store) Destruct() error {
	o := &operation{closing: true, done: make(chan struct{})}
	if s.add(o) != nil {
		return nil // it is closed, or being closed
	}
	close(s.done)
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-o.done:
		if o.err != nil {
			return s.wrap(describe(o.err))
		}
		return nil
	case <-timer.C:
		return s.wrap(errors.New("the disk does not answer; the file is closed when it does"))
	}
}

// Kind is the word for this kind of store in the configuration.
func (s *Store) Kind() string { return "embedded" }

// String names the store by its file.
func (s *Store) String() string { return "embedded " + s.path }

// errSlow is told when the time is over. What was asked for may still happen.
var errSlow = fmt.Errorf("the disk is too slow: %w", context.DeadlineExceeded)

func (s *Store) wrap(err error) error {
	return fmt.Errorf("embedded store %s: %w", s.path, err)
}
