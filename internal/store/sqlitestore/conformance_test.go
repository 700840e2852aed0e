package sqlitestore

import (
	"testing"

	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/storetest"
)

// The store does what every engine has to do.
func TestEngine(t *testing.T) {
	storetest.Run(t, storetest.Within, func(t testing.TB) storetest.Open {
		path := newPath(t)
		return func(testing.TB) store.Engine {
			s := New(path, patient, nil)
			s.clock.after = 0 // what expires does so at once
			return s
		}
	})
}

// The rules on this store agree with the model, whatever happens in whatever order.
func TestModel(t *testing.T) {
	path := newPath(t)
	storetest.Model(t, func(testing.TB) store.Engine { return New(path, patient, nil) })
}
