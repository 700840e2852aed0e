package sqlitestore

import (
	"time"

	"github.com/ncruces/go-sqlite3"
)

const (
	sweepInterval = time.Hour
	sweepStep     = 128 // records looked at in one transaction
)

// sweeper removes expired records every hour. Before that nothing has expired.
func (s *Store) sweeper() {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.sweep()
		case <-s.done:
			return
		}
	}
}

// sweep walks over all records in small steps, between those that wait for the
// file. Its memory does not grow with the number of records. A sweep that
// fails loses nothing: the next one comes.
func (s *Store) sweep() {
	var from []byte
	for more := true; more; {
		began := time.Now()
		o := &operation{done: make(chan struct{}), work: func(f *file) (err error) {
			from, more, err = f.sweep(from, s.clock.read().past)
			return err
		}}
		if s.add(o) != nil {
			return
		}
		select {
		case <-o.done:
			if o.err != nil {
				return
			}
		case <-s.done:
			return
		}
		// Half of the time at most, so that it takes the disk from nobody.
		select {
		case <-time.After(time.Since(began)):
		case <-s.done:
			return
		}
	}
}

// sweep removes what has expired of the next records from a key on, and tells
// where the next step begins.
func (f *file) sweep(from []byte, past int64) (next []byte, more bool, err error) {
	next, expired, err := f.beyond(from, past)
	if err != nil || expired == 0 {
		return next, next != nil, err
	}
	stmt, _, err := f.conn.Prepare("DELETE FROM records WHERE key > ?1 AND key <= ?2 AND expires <= ?3")
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = stmt.Close() }()
	if err := bindRange(stmt, from, past); err != nil {
		return nil, false, err
	}
	if err := stmt.BindBlob(2, next); err != nil {
		return nil, false, err
	}
	return next, true, stmt.Exec()
}

// beyond finds the last key of the next step, nil at the end, and how many
// of the step's records have expired.
func (f *file) beyond(from []byte, past int64) (last []byte, expired int64, err error) {
	stmt, _, err := f.conn.Prepare("SELECT max(key), sum(expires <= ?3) FROM (SELECT key, expires FROM records WHERE key > ?1 ORDER BY key LIMIT ?2)")
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = stmt.Close() }()
	if err := bindRange(stmt, from, past); err != nil {
		return nil, 0, err
	}
	if err := stmt.BindInt64(2, sweepStep); err != nil {
		return nil, 0, err
	}
	if stmt.Step() && stmt.ColumnType(0) != sqlite3.NULL {
		last = stmt.ColumnBlob(0, []byte{})
		expired = stmt.ColumnInt64(1)
	}
	return last, expired, finish(stmt)
}

func bindRange(stmt *sqlite3.Stmt, from []byte, past int64) error {
	if err := stmt.BindBlob(1, append([]byte{}, from...)); err != nil {
		return err
	}
	return stmt.BindInt64(3, past)
}
