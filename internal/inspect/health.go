package inspect

import (
	"fmt"
	"slices"

	"github.com/caddy-iak/iakcallback/internal/store"
)

// Ask asks the stores of all namespaces, each once, whether they answer, and how much
// is kept in them that nobody here delivers.
func Ask(all []Namespace) Health {
	health := Health{OK: true, Stores: []StoreHealth{}}
	asked := make(map[string]bool)
	for _, n := range all {
		if asked[n.Store.ID()] {
			continue
		}
		asked[n.Store.ID()] = true
		h := StoreHealth{Store: n.Store.Kind(), OK: true}
		err := n.with(func(s *store.Store) error {
			h.Store = s.String()
			_, err := s.Record(n.key("")) // no order has an empty ref_id
			if err == nil {
				h.Undelivered = undelivered(all, n.Store.ID(), s)
			}
			return err
		})
		if err != nil {
			h.OK, h.Error, health.OK = false, err.Error(), false
		}
		h.Warning = warning(h.Undelivered)
		health.Stores = append(health.Stores, h)
	}
	return health
}

// undelivered counts what is kept in the places of one store that no spool serves. What
// cannot be counted is not told: a Redis user for a site without a spool may lack the
// right.
func undelivered(all []Namespace, id string, s *store.Store) (count int) {
	for i, n := range all {
		if n.Store.ID() != id || slices.ContainsFunc(all[:i], n.sharesPlace) ||
			slices.ContainsFunc(all, func(m Namespace) bool { return m.Spool && n.sharesPlace(m) }) {
			continue
		}
		if page, err := s.Due(&store.DueQuery{Index: n.KeyPrefix, Limit: 1}); err == nil {
			count += page.Waiting
		}
	}
	return count
}

func warning(undelivered int) string {
	kept := "1 callback is"
	switch {
	case undelivered == 0:
		return ""
	case undelivered > 1:
		kept = fmt.Sprintf("%d callbacks are", undelivered)
	}
	return kept + " kept here, and this Caddy has no spool that delivers what is kept: unless another Caddy on the same store has one, " +
		"give an iak_callback with this store a spool; caddy iak-callback list shows what waits, in the states spooled, held and dead"
}
