package iakcallback

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// place is where the records of one account are. Several handlers may share it.
type place struct {
	ref       *storeRef
	keyPrefix string
	account   string
	retention time.Duration // the longest of the handlers
	hold      bool          // all of the handlers have on_doubt hold
}

func (p *place) key(refID string) string { return recordKey(p.keyPrefix, p.account, refID) }

// with runs work on the place's store, which stays open meanwhile.
func (p *place) with(work func(store recordStore) error) (err error) {
	store, err := p.ref.acquire()
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, p.ref.release()) }()
	return work(store)
}

// handlerSet holds the handlers between Provision and Cleanup: those of the
// configuration in force and, for a moment, of the one before or after.
type handlerSet struct {
	mu       sync.Mutex
	handlers map[*Handler]bool
}

var inForce handlerSet

func (s *handlerSet) add(h *Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handlers == nil {
		s.handlers = make(map[*Handler]bool)
	}
	s.handlers[h] = true
}

func (s *handlerSet) remove(h *Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.handlers, h)
}

// places returns where the records of an account are, of all accounts if it is
// empty, each place once.
func (s *handlerSet) places(account string) []*place {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*place
	for h := range s.handlers {
		for _, a := range h.Accounts {
			if account != "" && a.Name != account {
				continue
			}
			p := &place{ref: h.store, keyPrefix: h.keyPrefix, account: a.Name, hold: true}
			i := slices.IndexFunc(found, func(q *place) bool {
				return q.ref.key == p.ref.key && q.keyPrefix == p.keyPrefix && q.account == p.account
			})
			if i < 0 {
				i = len(found)
				found = append(found, p)
			}
			found[i].retention = max(found[i].retention, time.Duration(h.Retention))
			found[i].hold = found[i].hold && h.OnDoubt == doubtHold
		}
	}
	slices.SortFunc(found, func(p, q *place) int {
		return cmp.Or(cmp.Compare(p.account, q.account), cmp.Compare(p.ref.key, q.ref.key), cmp.Compare(p.keyPrefix, q.keyPrefix))
	})
	return found
}
