// Package inspect is what an operator sees of the records and does to them, and the
// paths and JSON in which the admin API and its clients say it.
package inspect

import (
	"cmp"
	"slices"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
)

// Namespace is where the records of one account are. Several handlers may share
// it.
type Namespace struct {
	Store     Use
	KeyPrefix string
	Account   string
	Retention time.Duration // the longest of the handlers
	Hold      bool          // all of the handlers have on_doubt hold
	Spool     bool          // one of them has a spool
	Outage    bool          // it is where callbacks wait until Redis answers again

	// Unrouted tells whether no route of this process leads to what is kept under a key of
	// the store; nil for never.
	Unrouted func(s *store.Store, key string) bool
}

// Use is a store that may be open or not.
type Use interface {
	// ID tells one store from another. It holds no secret.
	ID() string

	// Kind is the store's word in the configuration.
	Kind() string

	// Open returns the store, which stays open until Close is called. Close tells
	// whether the user was the last.
	Open() (*store.Store, error)
	Close() (last bool)
}

// Merge adds a handler's namespace to those of others, each once.
func Merge(all []Namespace, n Namespace) []Namespace {
	i := slices.IndexFunc(all, func(m Namespace) bool { return m.compare(n) == 0 })
	if i < 0 {
		return append(all, n)
	}
	all[i].Retention = max(all[i].Retention, n.Retention)
	all[i].Hold = all[i].Hold && n.Hold
	all[i].Spool = all[i].Spool || n.Spool
	return all
}

// Sort puts namespaces in the order in which they are told of.
func Sort(all []Namespace) {
	slices.SortFunc(all, Namespace.compare)
}

func (n Namespace) compare(m Namespace) int {
	return cmp.Or(cmp.Compare(n.Account, m.Account), cmp.Compare(n.Store.ID(), m.Store.ID()), cmp.Compare(n.KeyPrefix, m.KeyPrefix))
}

// sharesPlace tells whether two accounts' records are in one place, which has one index
// of what is kept.
func (n Namespace) sharesPlace(m Namespace) bool {
	return n.Store.ID() == m.Store.ID() && n.KeyPrefix == m.KeyPrefix
}

func (n Namespace) key(refID string) string { return record.Key(n.KeyPrefix, n.Account, refID) }

func (n Namespace) place(refID string) store.Place {
	return store.Place{Key: n.key(refID), Index: n.KeyPrefix, Retention: n.Retention}
}

// with runs work on the store, which stays open meanwhile.
func (n Namespace) with(work func(s *store.Store) error) error {
	s, err := n.Store.Open()
	if err != nil {
		return err
	}
	defer n.Store.Close()
	return work(s)
}
