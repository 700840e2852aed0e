package sqlitestore

import (
	"context"
	"strings"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
)

// A page of a scan ends with one of these.
const (
	scanRecords = 100
	scanBytes   = 256 << 10
)

// Scan visits what stands under all keys that begin with prefix, in the order of
// their keys. It reads pages, each within the store's timeout, and holds nothing
// up between them, however slow the visitor.
func (s *Store) Scan(ctx context.Context, prefix string, visit func(key string, found store.Found) error) error {
	for from := prefix; ; {
		var page page
		o := &operation{work: func(f *file) (err error) {
			page, err = f.page(from, prefix, s.clock.read())
			return err
		}}
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := s.await(o, time.Now()); err != nil {
			return err
		}
		for i, key := range page.keys {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := visit(key, page.found[i]); err != nil {
				return err
			}
		}
		if page.last {
			return nil
		}
		from = page.next
	}
}

// page is a part of a scan.
type page struct {
	keys  []string
	found []store.Found
	next  string // where the next page begins
	last  bool
}

// page reads the records from a key on. Those that have expired count, but are
// not returned.
func (f *file) page(from, prefix string, at moment) (p page, err error) {
	stmt, _, err := f.conn.Prepare("SELECT key, value, expires FROM records WHERE key >= ?1 ORDER BY key")
	if err != nil {
		return p, err
	}
	defer func() { _ = stmt.Close() }()
	if err := stmt.BindBlob(1, []byte(from)); err != nil {
		return p, err
	}
	for seen, size := 0, 0; ; seen++ {
		if !stmt.Step() {
			p.last = true
			return p, finish(stmt)
		}
		key := string(stmt.ColumnRawBlob(0))
		if !strings.HasPrefix(key, prefix) {
			p.last = true
			return p, finish(stmt)
		}
		if seen == scanRecords || size >= scanBytes {
			p.next = key
			return p, finish(stmt)
		}
		if expires := stmt.ColumnInt64(2); expires > at.past {
			value := string(stmt.ColumnRawBlob(1))
			size += len(key) + len(value)
			p.keys = append(p.keys, key)
			p.found = append(p.found, store.Found{Value: value, Now: at.now, Expires: expires})
		}
	}
}
