package iakcallback

import (
	"context"
	"fmt"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/redis/go-redis/v9"
)

func init() {
	// go-redis prints to stderr by itself, a line for each failed dial. What
	// matters of it comes back as an error.
	redis.SetLogger(redisLog{})
}

// stores holds every open store, by what shapes its connection, so that
// handlers and reloads with the same settings share it.
var stores = caddy.NewUsagePool()

// openStore is a recordStore that can be closed.
type openStore interface {
	recordStore
	caddy.Destructor
}

// sharedStore is a store and what it has still to do.
type sharedStore struct {
	openStore
	backlog backlog
}

// storeRef is a handler's use of a shared store. A reload does not wait for
// requests (Caddy v2.11.9, caddyhttp/app.go, Stop), so the handler's Cleanup may
// come while requests are still at work, and even before one begins. Each of
// them holds the store by itself; the last one lets it go.
type storeRef struct {
	kind string // redis or embedded, the label in metrics
	key  string // a hash: the pool prints it when it panics
	open func() (openStore, error)

	mu    sync.Mutex
	users int
	store *sharedStore
}

// acquire returns the store and holds it until release.
func (s *storeRef) acquire() (*sharedStore, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		value, _, err := stores.LoadOrNew(s.key, func() (caddy.Destructor, error) {
			store, err := s.open()
			if err != nil {
				return nil, err
			}
			return &sharedStore{openStore: store}, nil
		})
		if err != nil {
			return nil, err
		}
		s.store = value.(*sharedStore)
	}
	s.users++
	return s.store, nil
}

// release closes the store when nobody uses it any more.
func (s *storeRef) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
	if s.users > 0 {
		return nil
	}
	s.store = nil
	_, err := stores.Delete(s.key)
	return err
}

// redisLog takes go-redis's own messages into Caddy's log, at debug level.
type redisLog struct{}

func (redisLog) Printf(_ context.Context, format string, v ...any) {
	logger().Named("redis").Debug(fmt.Sprintf(format, v...))
}
