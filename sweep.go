package iakcallback

import (
	"time"

	"go.etcd.io/bbolt"
)

const (
	sweepInterval = time.Hour
	sweepChunk    = 1000 // records looked at in one transaction
)

// sweeper removes expired records, on opening and then every hour.
func (s *embeddedStore) sweeper(db *bbolt.DB) {
	defer s.ended.Done()
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		// A failed sweep loses nothing: the next one comes.
		_ = guard(func() error { return s.sweep(db) })
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
