package iakcallback

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// stores holds every open store, by what shapes its connection, so that
// handlers and reloads with the same settings share it. It alone counts who uses
// one: a reload does not wait for requests (Caddy v2.11.9, caddyhttp/app.go,
// Stop), so a handler's Cleanup may come while requests are still at work, and
// even before one begins. Each of them holds the store by itself.
var stores = caddy.NewUsagePool()

// storeUse is a handler's way to its store.
type storeUse struct {
	kind string
	id   string // a hash: the pool prints its keys when it panics
	open func() (store.Engine, error)
	path string // of the file, of an embedded store
}

// exists tells whether the file is there: a look at it would make it.
func (u *storeUse) exists() bool {
	_, err := os.Stat(u.path)
	return !errors.Is(err, os.ErrNotExist)
}

// ID tells one store from another.
func (u *storeUse) ID() string { return u.id }

// Kind is redis or embedded.
func (u *storeUse) Kind() string { return u.kind }

// Open returns the store, which stays open until Close.
func (u *storeUse) Open() (*store.Store, error) {
	opened, err := u.load()
	if err != nil {
		return nil, err
	}
	return &opened.Store, nil
}

func (u *storeUse) load() (*openStore, error) {
	value, _, err := stores.LoadOrNew(u.id, func() (caddy.Destructor, error) {
		engine, err := u.open()
		if err != nil {
			return nil, err
		}
		return &openStore{
			Store:  store.Store{Engine: engine, Log: logger, Hold: u.hold},
			closed: make(chan struct{}),
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return value.(*openStore), nil
}

// Close lets the store go, and tells whether its user was the last. Nobody waits
// while it is being closed.
func (u *storeUse) Close() (last bool) {
	last, _ = stores.Delete(u.id) // Destruct returns no error
	return last
}

// hold keeps an open store open for what goes on in the background.
func (u *storeUse) hold() (release func()) {
	_, _ = u.load() // cannot fail: the caller holds it
	return func() { u.Close() }
}

// storeID hashes what shapes a store's connection, a password perhaps.
func storeID(kind, settings string) string {
	sum := sha256.Sum256([]byte(settings))
	return kind + ":" + hex.EncodeToString(sum[:])
}

// openStore is a store in the pool.
type openStore struct {
	store.Store
	closed chan struct{}
}

// Destruct closes the store behind the back of its last user, which may be a
// request.
func (s *openStore) Destruct() error {
	go guard.Do("closing a store", func() {
		defer close(s.closed)
		if err := s.Engine.Destruct(); err != nil {
			logger().Error("closing the store", zap.String("store", s.String()), zap.Error(err))
		}
	})
	return nil
}

// Interface guard
var _ inspect.Use = (*storeUse)(nil)
