package iakcallback

import (
	"context"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

func (s *embeddedStore) read(ctx context.Context, key string) (snapshot, error) {
	db, err := s.open(ctx, time.Now().Add(s.timeout))
	if err != nil {
		return snapshot{}, err
	}
	shot := snapshot{record: new(record), now: s.now().UnixMilli()}
	err = guard(func() error {
		return db.View(func(tx *bbolt.Tx) error {
			bucket := tx.Bucket(recordsBucket)
			if bucket == nil {
				return nil
			}
			shot, err = s.snapshot(bucket.Get([]byte(key)))
			return err
		})
	})
	return shot, s.wrap(err)
}

// snapshot reads a record's value; none, or one that has expired, is an empty
// record.
func (s *embeddedStore) snapshot(v []byte) (snapshot, error) {
	shot := snapshot{record: new(record), now: s.now().UnixMilli()}
	if v == nil || s.expired(v) {
		return shot, nil
	}
	if len(v) < 8 {
		return shot, errRecord
	}
	var err error
	shot.record, err = decodeRecord(v[8:])
	shot.expires = readInt64(v)
	return shot, err
}

func (s *embeddedStore) change(ctx context.Context, key string, retention time.Duration, apply func(r *record, now int64) error) (snapshot, error) {
	until := time.Now().Add(s.timeout)
	db, err := s.open(ctx, until)
	if err != nil {
		return snapshot{}, err
	}
	var shot snapshot
	var refused error
	err = s.write(ctx, until, &write{db: db, key: []byte(key), keep: retention, apply: func(r *record, now int64) bool {
		refused = apply(r, now)
		shot = snapshot{record: r, now: now, expires: now + retention.Milliseconds()}
		return refused == nil
	}})
	if err != nil { // then the change may be being made just now
		return snapshot{}, s.wrap(err)
	}
	return shot, refused
}

// list reads the records in small transactions, so that the file does not grow
// while a slow reader looks at them.
func (s *embeddedStore) list(ctx context.Context, prefix string, visit func(key string, s snapshot) error) error {
	db, err := s.open(ctx, time.Now().Add(s.timeout))
	if err != nil {
		return err
	}
	for from := []byte(prefix); from != nil; {
		var page []keyed
		err := guard(func() error {
			return db.View(func(tx *bbolt.Tx) error {
				page, from = s.page(tx, from, prefix)
				return nil
			})
		})
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return s.wrap(err)
		}
		for _, r := range page {
			if err := visit(r.key, r.snapshot); err != nil {
				return err
			}
		}
	}
	return nil
}

// page reads the records from one key on, and tells where the next page begins,
// nil after the last. A record of another version is passed over.
func (s *embeddedStore) page(tx *bbolt.Tx, from []byte, prefix string) (records []keyed, next []byte) {
	bucket := tx.Bucket(recordsBucket)
	if bucket == nil {
		return nil, nil
	}
	cursor := bucket.Cursor()
	for k, v := cursor.Seek(from); k != nil && strings.HasPrefix(string(k), prefix); k, v = cursor.Next() {
		if len(records) == listPage {
			return records, slices.Clone(k)
		}
		if shot, err := s.snapshot(v); err == nil && !shot.record.empty() {
			records = append(records, keyed{string(k), shot})
		}
	}
	return records, nil
}

// String names the store by its file.
func (s *embeddedStore) String() string { return "embedded " + s.path }
