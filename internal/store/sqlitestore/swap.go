package sqlitestore

import (
	"encoding/binary"
	"errors"

	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/ncruces/go-sqlite3"
)

// A record that has expired is none, whether the sweep has come by or not:
// ?4 is the time by which that is told.
const (
	insertSQL = "INSERT INTO records VALUES(?1, ?2, ?3, ?6) ON CONFLICT(key) DO UPDATE SET value = ?2, expires = ?3, due = ?6 WHERE expires <= ?4"
	updateSQL = "UPDATE records SET value = ?2, expires = ?3, due = ?6 WHERE key = ?1 AND value = ?5 AND expires > ?4"
	deleteSQL = "DELETE FROM records WHERE key = ?1 AND value = ?5 AND expires > ?4"
	selectSQL = "SELECT value, expires FROM records WHERE key = ?1 AND expires > ?4"
)

// transact carries out swaps and reads in one transaction, which writes nothing
// to the disk if nothing is changed. If it fails, nothing of it is told as done,
// though it may be found in the file later.
func (f *file) transact(ops []*operation, at moment) error {
	if err := f.begin.Exec(); err != nil {
		return err
	}
	err := f.each(ops, at)
	if err == nil {
		err = f.commit.Exec()
	}
	if err != nil {
		if !f.conn.GetAutocommit() {
			_ = f.rollback.Exec()
		}
		return err
	}
	f.waiting += f.more
	for _, o := range ops {
		o.found.Waiting = f.waiting
	}
	return nil
}

func (f *file) each(ops []*operation, at moment) error {
	f.more = 0
	for _, o := range ops {
		var err error
		if o.swap == nil {
			o.found, err = f.read(o.key, at)
		} else {
			o.found, err = f.swap(o.swap, at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *file) swap(s *store.Swap, at moment) (store.Found, error) {
	found := store.Found{Swapped: true, Now: at.now}
	var change *sqlite3.Stmt
	switch {
	case s.Old != "" && s.New != "":
		change = f.update
	case s.Old != "":
		change = f.delete
	case s.New != "":
		change = f.insert
	default: // nothing for nothing
		found, err := f.read(s.Key, at)
		found.Swapped = err == nil && found.Expires == 0
		return found, err
	}
	if s.New != "" {
		found.Value = s.New
		if s.Lease != 0 {
			end := binary.BigEndian.AppendUint64(make([]byte, 0, 8), uint64(at.now+s.Lease.Milliseconds())) //nolint:gosec // milliseconds since 1970
			found.Value += string(end)
		}
		found.Expires = at.from + s.Keep.Milliseconds()
	}
	err := bind(change, s.Key, at)
	if err == nil && s.New != "" {
		if err = change.BindBlob(2, []byte(found.Value)); err == nil {
			err = change.BindInt64(3, found.Expires)
		}
		if err == nil && s.Is {
			err = change.BindInt64(6, int64(binary.BigEndian.Uint64([]byte(found.Value[len(found.Value)-8:])))) //nolint:gosec // milliseconds since 1970
		} else if err == nil {
			err = change.BindNull(6)
		}
	}
	if err == nil && s.Old != "" {
		err = change.BindBlob(5, []byte(s.Old))
	}
	if err == nil {
		err = change.Exec()
	}
	if err != nil {
		return store.Found{}, err
	}
	if f.conn.Changes() == 0 {
		return f.read(s.Key, at)
	}
	if s.Was {
		f.more--
	}
	if s.Is {
		f.more++
	}
	return found, nil
}

func (f *file) read(key string, at moment) (store.Found, error) {
	found := store.Found{Now: at.now}
	if err := bind(f.sel, key, at); err != nil {
		return found, err
	}
	if f.sel.Step() {
		found.Value = string(f.sel.ColumnRawBlob(0))
		found.Expires = f.sel.ColumnInt64(1)
	}
	return found, finish(f.sel)
}

// finish ends a statement that returns rows, and tells what went wrong in it.
func finish(stmt *sqlite3.Stmt) error {
	err := stmt.Err()
	return errors.Join(err, stmt.Reset())
}

// bind sets what all statements have.
func bind(stmt *sqlite3.Stmt, key string, at moment) error {
	if err := stmt.BindBlob(1, []byte(key)); err != nil {
		return err
	}
	return stmt.BindInt64(4, at.past)
}
