// Package store keeps what is remembered of each order: it applies the rules of
// package record to an engine, which keeps bytes and knows no rule.
package store

import (
	"context"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
)

// Engine keeps bytes under keys. It knows no rule: what becomes of a record is
// decided by package record, and an engine does no more than put new bytes in
// the place of old ones, in one atomic step, by its own clock.
//
// Swap and Read answer within the engine's own timeout, counted from began: what
// cannot start by then is not started. After an error of Swap the swap may have
// been carried out, or may be later.
type Engine interface {
	// Swap puts s.New in the place of s.Old, if s.Old is what stands there, and
	// else changes nothing.
	Swap(s *Swap) (Found, error)

	// Read returns what stands under a key.
	Read(key string, began time.Time) (Found, error)

	// Scan visits what stands under all keys that begin with prefix, in no order, one at a
	// time, in constant memory; what comes or goes meanwhile may be missed, or be
	// visited twice. An error of visit, or the end of ctx, ends it.
	Scan(ctx context.Context, prefix string, visit func(key string, found Found) error) error

	// Due returns a page of an index, in the order of the times.
	Due(q *DueQuery) (DuePage, error)

	// Correct puts a hint right, if it is still as it was read: the key is found at the
	// time at from now on, or, with 0, leaves the index.
	Correct(index string, read Hint, at int64, began time.Time) error

	// Repair puts into an index what it lacks, or holds too late, of the keys that begin
	// with its name, in constant memory. belongs tells by a value's first byte
	// whether its key has to be found; the time is the value's last 8 bytes.
	Repair(ctx context.Context, index string, belongs func(first byte) bool) error

	// Destruct gives up what the engine holds. It does not wait for a server or a
	// disk that hangs.
	Destruct() error

	// Kind is the engine's word in the configuration and in metrics: redis or embedded.
	Kind() string

	// String names the store, without secrets.
	String() string
}

// Swap is one change of one key. Its bytes are held in strings: nobody may change them
// while they are under way.
type Swap struct {
	Key string

	// Old is what is expected to stand there, as Found.Value told it; empty for nothing.
	Old string

	// New is what stands there afterwards; empty removes the key.
	New string

	// Lease, if it is not zero, makes the engine append the time at which it is over to New:
	// its own time plus Lease, 8 bytes, milliseconds of Unix time, big endian.
	Lease time.Duration

	// Keep is how long the key lives from now on.
	Keep time.Duration

	// Index is the index that the key belongs into: its name is what the keys in it begin
	// with, nothing perhaps. Was and Is tell whether the key has to be found by its time, with Old and with
	// New: the last 8 bytes of what stands there then, as in Lease.
	Index   string
	Was, Is bool

	// Claim marks a swap that may be refused when the engine is short of memory. All
	// others settle what was claimed, and are carried out as long as that is possible.
	Claim bool

	// Began is when the operation that the swap is a part of began.
	Began time.Time
}

// Found is what stands under a key.
type Found struct {
	// Swapped tells that it is what Swap has put there now.
	Swapped bool

	// Value is what stands there, empty if nothing does; after a swap New with the
	// lease's end behind it.
	Value string

	// Now is the engine's time, in milliseconds of Unix time.
	Now int64

	// Expires is when the key's life ends, by the engine's time; 0 if nothing stands there.
	Expires int64

	// Waiting is how many keys are in the index now, or a moment ago, after a swap with Was
	// or Is.
	Waiting int
}

// Hint says that something is to be done about a key at a time. It may be wrong: what
// stands under the key is the truth. But what has to be found at a time has a hint that
// is not later, but for what an engine has lost, which Repair puts right.
type Hint struct {
	Key string
	At  int64 // by the engine's time, in milliseconds of Unix time

	// Head is the beginning of what stands there, if it was asked for.
	Head string
}

// DueQuery asks for a page of an index.
type DueQuery struct {
	Index string
	Skip  int  // how many hints are passed over; others that go meanwhile move those behind
	After Hint // the last of those, if it is known: an engine may go on from there instead
	Limit int  // of hints in the page
	All   bool // also those whose time is still to come
	Head  int  // how many bytes to return of what stands there
	Began time.Time
}

// DuePage is a page of an index.
type DuePage struct {
	Hints   []Hint
	Now     int64 // the engine's time
	Waiting int   // how many keys are in the index in all
}

// ErrUnreadable is returned for a key that holds something else than a record.
var ErrUnreadable = record.ErrUnreadable
