package iakcallback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store/batch"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// embeddedTimeout bounds the wait for the file's lock, and an operation. A
// variable, so that tests can be patient with a busy disk.
var embeddedTimeout = 500 * time.Millisecond

const (
	// commitWindow is how long a commit waits for more to share it, when the one
	// before was shared: a wait for the disk costs more than anything else.
	commitWindow = time.Millisecond

	// closeTimeout bounds the wait for the last commit.
	closeTimeout = 5 * time.Second
)

// recordsBucket holds, under each record's key, the time when it expires
// (8 bytes, milliseconds of Unix time) and the record's bytes.
var recordsBucket = []byte("records")

var errStoreClosed = errors.New("the embedded store is closed")

// embeddedStore keeps the records in one bbolt file, for one process. The file
// is opened on first use. Operations that wait for the disk together share one
// commit.
type embeddedStore struct {
	path    string
	timeout time.Duration
	now     func() time.Time

	mu      sync.Mutex
	opening chan struct{} // closed when the attempt to open is over; nil before the first
	db      *bbolt.DB
	openErr error
	damaged bool // found on opening: not opened again
	closed  bool

	writes batch.Queue[*write]
	done   chan struct{} // closed by Destruct
	ended  sync.WaitGroup
}

// write is one change to one record, made inside a commit that it shares.
type write struct {
	db        *bbolt.DB
	key       []byte
	apply     func(r *record, now int64) (changed bool)
	keep      time.Duration
	result    chan error
	abandoned atomic.Bool // nobody waits for the result: not made, if there is time
}

func newEmbeddedStore(path string) *embeddedStore {
	s := &embeddedStore{path: path, timeout: embeddedTimeout, now: time.Now, done: make(chan struct{})}
	s.writes = batch.Queue[*write]{Run: s.commit, Window: commitWindow}
	return s
}

func (s *embeddedStore) claim(ctx context.Context, c *claimRequest) (decision, error) {
	until := time.Now().Add(s.timeout)
	db, err := s.open(ctx, until)
	if err != nil {
		return decision{}, err
	}
	key := []byte(c.key)
	// Most repeats need no write, and reads do not wait for the disk.
	var d decision
	err = guard(func() error {
		return db.View(func(tx *bbolt.Tx) error {
			r, err := s.load(tx, key)
			if err == nil {
				d = r.decide(c, s.now().UnixMilli())
			}
			return err
		})
	})
	if err != nil || d.verdict != verdictForwarded {
		return d, s.wrap(err)
	}
	// The record may have changed since, so it is decided again.
	var decided decision
	err = s.write(ctx, until, &write{db: db, key: key, keep: c.retention, apply: func(r *record, now int64) bool {
		decided = r.decide(c, now)
		return decided.verdict == verdictForwarded
	}})
	if err != nil { // then the decision may be being made just now
		return decision{}, s.wrap(err)
	}
	return decided, nil
}

func (s *embeddedStore) settle(ctx context.Context, st *settlement) error {
	until := time.Now().Add(s.timeout)
	db, err := s.open(ctx, until)
	if err != nil {
		return err
	}
	return s.wrap(s.write(ctx, until, &write{db: db, key: []byte(st.key), keep: st.retention, apply: func(r *record, now int64) bool {
		return r.settle(st, now)
	}}))
}

// write hands a change to the writer and waits until it is on the disk. When
// the time is over or the context ends first, the change may still be made.
func (s *embeddedStore) write(ctx context.Context, until time.Time, w *write) error {
	w.result = make(chan error, 1)
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	s.writes.Add(w)
	err := context.DeadlineExceeded
	select {
	case done := <-w.result:
		return done
	case <-s.done:
		return errStoreClosed
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
	}
	w.abandoned.Store(true)
	s.writes.Remove(w)
	return fmt.Errorf("the disk is too slow: %w", err)
}

// commit makes changes in one transaction.
func (s *embeddedStore) commit(batch []*write) {
	results := make([]error, len(batch))
	err := guard(func() error {
		return batch[0].db.Update(func(tx *bbolt.Tx) error {
			for i, w := range batch {
				if !w.abandoned.Load() {
					results[i] = s.update(tx, w)
				}
			}
			return nil
		})
	})
	for i, w := range batch {
		if err != nil {
			results[i] = err
		}
		w.result <- results[i]
	}
}

func (s *embeddedStore) update(tx *bbolt.Tx, w *write) error {
	r, err := s.load(tx, w.key)
	if err != nil {
		return err
	}
	now := s.now()
	if !w.apply(r, now.UnixMilli()) {
		return nil
	}
	bucket, err := tx.CreateBucketIfNotExists(recordsBucket)
	if err != nil {
		return err
	}
	if r.empty() {
		return bucket.Delete(w.key)
	}
	v := appendInt64(make([]byte, 0, 128), now.Add(w.keep).UnixMilli())
	return bucket.Put(w.key, append(v, r.encode()...))
}

// load reads a record; one that has expired is none.
func (s *embeddedStore) load(tx *bbolt.Tx, key []byte) (*record, error) {
	bucket := tx.Bucket(recordsBucket)
	if bucket == nil {
		return new(record), nil
	}
	shot, err := s.snapshot(bucket.Get(key))
	return shot.record, err
}

func (s *embeddedStore) expired(v []byte) bool {
	return len(v) >= 8 && readInt64(v) <= s.now().UnixMilli()
}

// open opens the file, if it is not open yet. Callers that come while it is
// being opened share the attempt, so all are answered within its time; a
// caller after a failed attempt makes a new one.
func (s *embeddedStore) open(ctx context.Context, until time.Time) (*bbolt.DB, error) {
	s.mu.Lock()
	if s.db != nil || s.closed {
		defer s.mu.Unlock()
		if s.closed {
			return nil, errStoreClosed
		}
		return s.db, nil
	}
	if s.damaged {
		defer s.mu.Unlock()
		return nil, s.openErr
	}
	attempt := s.opening
	if attempt == nil {
		attempt = make(chan struct{})
		s.opening = attempt
		go s.openFile(attempt)
	}
	s.mu.Unlock()
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	select {
	case <-attempt:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, errStoreClosed
	case s.db != nil:
		return s.db, nil
	case s.openErr != nil:
		return nil, s.openErr
	default:
		return nil, s.wrap(ctx.Err())
	}
}

func (s *embeddedStore) openFile(attempt chan struct{}) {
	db, err := s.openBolt()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(attempt)
	s.opening = nil
	s.openErr = err
	s.damaged = errors.Is(err, errDamaged) // bbolt keeps the file's lock
	if err != nil {
		return
	}
	if s.closed {
		_ = db.Close()
		return
	}
	s.db = db
	s.ended.Add(1)
	go s.sweeper(db)
}

func (s *embeddedStore) openBolt() (*bbolt.DB, error) {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil { //nolint:gosec // the path is the operator's own
		return nil, s.wrap(err)
	}
	// Slightly less than the operation's own timeout, so that the callers get
	// this error and not their own.
	var db *bbolt.DB
	err := guard(func() (err error) {
		db, err = bbolt.Open(s.path, 0o600, &bbolt.Options{
			Timeout:      s.timeout * 8 / 10,
			FreelistType: bbolt.FreelistMapType,
		})
		return err
	})
	switch {
	case errors.Is(err, errDamaged):
		return nil, s.wrap(err)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum):
		return nil, s.wrap(fmt.Errorf("%w (%w)", errDamaged, err))
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("embedded store %s: another process holds the file; "+
			"stop it, give each process a file of its own, or use redis to share records", s.path)
	case err != nil:
		return nil, s.wrap(err)
	}
	return db, nil
}

// errDamaged is a file that bbolt cannot work with.
var errDamaged = errors.New("the file is damaged: stop Caddy, move the file away or bring back a copy, " +
	"and expect repeats of what it remembered to reach the app again")

// guard turns a panic of bbolt, or a fault in the mapped file, into an error: a
// damaged file must not end Caddy.
func guard(work func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%w (%v)", errDamaged, cause)
		}
	}()
	return work()
}

func (s *embeddedStore) wrap(err error) error {
	if err == nil || errors.Is(err, errRecord) {
		return err
	}
	return fmt.Errorf("embedded store %s: %w", s.path, err)
}

// Destruct closes the file, when the last user is gone.
func (s *embeddedStore) Destruct() error {
	s.mu.Lock()
	s.closed = true
	db := s.db
	s.db = nil
	s.mu.Unlock()
	close(s.done)
	if db == nil {
		return nil
	}
	closed := make(chan error, 1)
	go func() {
		s.ended.Wait()
		closed <- db.Close()
	}()
	select {
	case err := <-closed:
		return err
	case <-time.After(closeTimeout): // a reload must not hang with the disk
		return s.wrap(errors.New("the disk does not answer; the file is closed when it does"))
	}
}
