package sqlitestore

import (
	"context"
	"math"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
)

// The index of what is due is a column of the record's own row, written with it: it
// is never wrong. How many records are in it is counted when the file is opened.
const (
	dueSQL = "SELECT key, due, substr(value, 1, ?1) FROM records WHERE due IS NOT NULL AND due <= ?2 AND substr(key, 1, ?3) = ?4 " +
		"AND (due, key) > (?7, ?8) ORDER BY due, key LIMIT ?5 OFFSET ?6"
	waitingSQL = "SELECT count(*) FROM records WHERE due IS NOT NULL"
	correctSQL = "UPDATE records SET due = nullif(?3, 0) WHERE key = ?1 AND due = ?2"
)

// Due is that of store.Engine.
func (s *Store) Due(q *store.DueQuery) (store.DuePage, error) {
	asked := *q // the work may begin when its caller is gone
	var page store.DuePage
	o := &operation{work: func(f *file) (err error) {
		page, err = f.due(&asked, s.clock.read().now)
		return err
	}}
	if _, err := s.await(o, q.Began); err != nil {
		return store.DuePage{}, err
	}
	return page, nil
}

func (f *file) due(q *store.DueQuery, now int64) (store.DuePage, error) {
	page := store.DuePage{Now: now, Waiting: f.waiting}
	until := now
	if q.All {
		until = math.MaxInt64
	}
	stmt, _, err := f.conn.Prepare(dueSQL)
	if err != nil {
		return page, err
	}
	defer func() { _ = stmt.Close() }()
	skip, after := int64(q.Skip), int64(math.MinInt64)
	if q.After.Key != "" { // SQLite would walk over all that is skipped
		skip, after = 0, q.After.At
	}
	for i, n := range map[int]int64{1: int64(q.Head), 2: until, 3: int64(len(q.Index)), 5: int64(q.Limit), 6: skip, 7: after} {
		if err := stmt.BindInt64(i, n); err != nil {
			return page, err
		}
	}
	for i, text := range map[int]string{4: q.Index, 8: q.After.Key} {
		if err := stmt.BindBlob(i, []byte(text)); err != nil {
			return page, err
		}
	}
	for stmt.Step() {
		page.Hints = append(page.Hints, store.Hint{
			Key: string(stmt.ColumnRawBlob(0)), At: stmt.ColumnInt64(1), Head: string(stmt.ColumnRawBlob(2)),
		})
	}
	return page, finish(stmt)
}

// Correct is that of store.Engine.
func (s *Store) Correct(_ string, read store.Hint, at int64, began time.Time) error {
	_, err := s.await(&operation{work: func(f *file) error { return f.correct(read, at) }}, began)
	return err
}

func (f *file) correct(read store.Hint, at int64) error {
	stmt, _, err := f.conn.Prepare(correctSQL)
	if err != nil {
		return err
	}
	defer func() { _ = stmt.Close() }()
	if err := stmt.BindBlob(1, []byte(read.Key)); err != nil {
		return err
	}
	for i, n := range map[int]int64{2: read.At, 3: at} {
		if err := stmt.BindInt64(i, n); err != nil {
			return err
		}
	}
	if err := stmt.Exec(); err != nil {
		return err
	}
	if at == 0 {
		f.waiting -= int(f.conn.Changes())
	}
	return nil
}

// Repair has nothing to do: a hint is in the row of its record, and written by the same
// statement, so it is neither lost nor late.
func (s *Store) Repair(context.Context, string, func(first byte) bool) error { return nil }
