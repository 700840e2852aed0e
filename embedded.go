package iakcallback

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	// embeddedTimeout bounds the wait for the file's lock, and an operation.
	embeddedTimeout = 500 * time.Millisecond

	// maxCommit bounds how many operations share one commit.
	maxCommit = 256

	sweepInterval = time.Hour
	sweepChunk    = 1000 // records looked at in one transaction
)

// recordsBucket holds, under each record's key, the time when it expires
// (8 bytes, milliseconds of Unix time) and the record's bytes.
var recordsBucket = []byte("records")

var errStoreClosed = errors.New("the embedded store is closed")

// embeddedStore keeps the records in one bbolt file, for one process. The file
// is opened on first use. One goroutine writes, so that operations that wait
// for the disk together share one commit.
type embeddedStore struct {
	path string
	now  func() time.Time

	mu      sync.Mutex
	opening chan struct{} // closed when the attempt to open is over; nil before the first
	db      *bbolt.DB
	openErr error
	closed  bool

	writes chan *write
	done   chan struct{} // closed by Destruct
	ended  sync.WaitGroup
}

// write is one change to one record, made inside a commit that it shares.
type write struct {
	ctx    context.Context
	key    []byte
	apply  func(r *record, now int64) (changed bool)
	keep   time.Duration
	result chan error
}

func newEmbeddedStore(path string) *embeddedStore {
	return &embeddedStore{
		path:   path,
		now:    time.Now,
		writes: make(chan *write, maxCommit),
		done:   make(chan struct{}),
	}
}

func (s *embeddedStore) claim(ctx context.Context, c *claimRequest) (decision, error) {
	ctx, cancel := context.WithTimeout(ctx, embeddedTimeout)
	defer cancel()
	db, err := s.open(ctx)
	if err != nil {
		return decision{}, err
	}
	// Most repeats need no write, and reads do not wait for the disk.
	var d decision
	err = db.View(func(tx *bbolt.Tx) error {
		r, err := s.load(tx, []byte(c.key))
		if err == nil {
			d = r.decide(c, s.now().UnixMilli())
		}
		return err
	})
	if err != nil || d.verdict != verdictForwarded {
		return d, s.wrap(err)
	}
	// The record may have changed since, so it is decided again.
	decided := make(chan decision, 1)
	err = s.write(ctx, &write{key: []byte(c.key), keep: c.retention, apply: func(r *record, now int64) bool {
		d := r.decide(c, now)
		decided <- d
		return d.verdict == verdictForwarded
	}})
	if err != nil {
		return decision{}, s.wrap(err)
	}
	return <-decided, nil
}

func (s *embeddedStore) settle(ctx context.Context, st *settlement) error {
	ctx, cancel := context.WithTimeout(ctx, embeddedTimeout)
	defer cancel()
	if _, err := s.open(ctx); err != nil {
		return err
	}
	return s.wrap(s.write(ctx, &write{key: []byte(st.key), keep: st.retention, apply: func(r *record, now int64) bool {
		return r.settle(st, now)
	}}))
}

// write hands a change to the writer and waits until it is on the disk. When
// the context ends first, the change may still be made.
func (s *embeddedStore) write(ctx context.Context, w *write) error {
	w.ctx, w.result = ctx, make(chan error, 1)
	select {
	case s.writes <- w:
	case <-ctx.Done():
		return fmt.Errorf("the disk is too slow: %w", ctx.Err())
	case <-s.done:
		return errStoreClosed
	}
	select {
	case err := <-w.result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the disk is too slow: %w", ctx.Err())
	case <-s.done:
		return errStoreClosed
	}
}

// writer makes the changes, those that wait together in one commit: while one
// commit waits for the disk, the next fills.
func (s *embeddedStore) writer(db *bbolt.DB) {
	defer s.ended.Done()
	for {
		var batch []*write
		select {
		case w := <-s.writes:
			batch = append(batch, w)
		case <-s.done:
			return
		}
		for more := true; more && len(batch) < maxCommit; {
			select {
			case w := <-s.writes:
				batch = append(batch, w)
			default:
				more = false
			}
		}
		s.commit(db, batch)
	}
}

func (s *embeddedStore) commit(db *bbolt.DB, batch []*write) {
	results := make([]error, len(batch))
	err := db.Update(func(tx *bbolt.Tx) error {
		for i, w := range batch {
			if results[i] = w.ctx.Err(); results[i] == nil { // nobody waits any more: not made
				results[i] = s.change(tx, w)
			}
		}
		return nil
	})
	for i, w := range batch {
		if err != nil {
			results[i] = err
		}
		w.result <- results[i]
	}
}

func (s *embeddedStore) change(tx *bbolt.Tx, w *write) error {
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
	v := binary.BigEndian.AppendUint64(nil, uint64(now.Add(w.keep).UnixMilli())) //nolint:gosec // a time after 1970
	return bucket.Put(w.key, append(v, r.encode()...))
}

// load reads a record; one that has expired is none.
func (s *embeddedStore) load(tx *bbolt.Tx, key []byte) (*record, error) {
	bucket := tx.Bucket(recordsBucket)
	if bucket == nil {
		return new(record), nil
	}
	v := bucket.Get(key)
	if v == nil || s.expired(v) {
		return new(record), nil
	}
	if len(v) < 8 {
		return nil, errRecord
	}
	return decodeRecord(v[8:])
}

func (s *embeddedStore) expired(v []byte) bool {
	return len(v) >= 8 && int64(binary.BigEndian.Uint64(v)) <= s.now().UnixMilli() //nolint:gosec // a time after 1970
}

// open opens the file, if it is not open yet. Callers that come while it is
// being opened share the attempt, so all are answered within its time; a
// caller after a failed attempt makes a new one.
func (s *embeddedStore) open(ctx context.Context) (*bbolt.DB, error) {
	s.mu.Lock()
	if s.db != nil || s.closed {
		defer s.mu.Unlock()
		if s.closed {
			return nil, errStoreClosed
		}
		return s.db, nil
	}
	attempt := s.opening
	if attempt == nil {
		attempt = make(chan struct{})
		s.opening = attempt
		go s.openFile(attempt)
	}
	s.mu.Unlock()
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
	if err != nil {
		return
	}
	if s.closed {
		_ = db.Close()
		return
	}
	s.db = db
	s.ended.Add(2)
	go s.writer(db)
	go s.sweeper(db)
}

func (s *embeddedStore) openBolt() (*bbolt.DB, error) {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil { //nolint:gosec // the path is the operator's own
		return nil, s.wrap(err)
	}
	// Slightly less than the operation's own timeout, so that the callers get
	// this error and not their own.
	db, err := bbolt.Open(s.path, 0o600, &bbolt.Options{
		Timeout:      embeddedTimeout * 8 / 10,
		FreelistType: bbolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("embedded store %s: another process holds the file; "+
			"stop it, give each process a file of its own, or use redis to share records", s.path)
	case err != nil:
		return nil, s.wrap(err)
	}
	return db, nil
}

func (s *embeddedStore) wrap(err error) error {
	if err == nil || errors.Is(err, errRecord) {
		return err
	}
	return fmt.Errorf("embedded store %s: %w", s.path, err)
}

// sweeper removes expired records, on opening and then every hour.
func (s *embeddedStore) sweeper(db *bbolt.DB) {
	defer s.ended.Done()
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		// A failed sweep loses nothing: the next one comes.
		_ = s.sweep(db)
		select {
		case <-ticker.C:
		case <-s.done:
			return
		}
	}
}

// sweep walks over all records in small transactions, so that no claim waits
// for it, and its memory does not grow with the number of records.
func (s *embeddedStore) sweep(db *bbolt.DB) error {
	var from []byte
	for {
		var expired [][]byte
		err := db.View(func(tx *bbolt.Tx) error {
			bucket := tx.Bucket(recordsBucket)
			if bucket == nil {
				from = nil
				return nil
			}
			cursor := bucket.Cursor()
			k, v := cursor.Seek(from)
			for n := 0; k != nil && n < sweepChunk; n++ {
				if s.expired(v) {
					expired = append(expired, append([]byte(nil), k...))
				}
				k, v = cursor.Next()
			}
			from = append([]byte(nil), k...)
			return nil
		})
		if err == nil && len(expired) > 0 {
			err = db.Update(func(tx *bbolt.Tx) error { return s.remove(tx, expired) })
		}
		if err != nil || len(from) == 0 {
			return err
		}
		select {
		case <-s.done:
			return nil
		default:
		}
	}
}

func (s *embeddedStore) remove(tx *bbolt.Tx, keys [][]byte) error {
	bucket := tx.Bucket(recordsBucket)
	for _, k := range keys {
		if s.expired(bucket.Get(k)) { // it may have been written again since
			if err := bucket.Delete(k); err != nil {
				return err
			}
		}
	}
	return nil
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
	s.ended.Wait()
	return db.Close()
}
