package iakcallback

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// App is what the iak_callback handlers of one configuration share. It needs no
// configuration: the first handler makes it appear.
type App struct {
	ctx        caddy.Context
	stopping   atomic.Pointer[time.Time] // when Caddy began to stop the configuration
	drainUntil func() time.Time          // of all stores together

	mu       sync.Mutex
	handlers []*Handler
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "iak_callback",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision keeps the configuration's context, and wants to know when it is stopped:
// apps are stopped in no order, and that of the servers may take the whole grace period
// (Caddy v2.11.9, caddy.go, unsyncedStop).
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx, a.drainUntil = ctx, sync.OnceValue(a.endOfDrain)
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("the events app: %w", err)
	}
	return events.(*caddyevents.App).On("stopping", a)
}

// Handle notes when the configuration is stopped.
func (a *App) Handle(context.Context, caddy.Event) error {
	now := time.Now()
	a.stopping.CompareAndSwap(nil, &now)
	return nil
}

// maxDrain is how long the end of Caddy waits for what a store could not record yet.
const maxDrain = 10 * time.Second

// endOfDrain is when Caddy, which ends, waits no longer: its grace period is over.
func (a *App) endOfDrain() time.Time {
	begin, wait := time.Now(), maxDrain
	if stopping := a.stopping.Load(); stopping != nil {
		begin = *stopping
	}
	if app, err := a.ctx.AppIfConfigured("http"); err == nil {
		if grace := time.Duration(app.(*caddyhttp.App).GracePeriod); grace > 0 { // 0 is as long as it takes
			return begin.Add(min(grace, wait))
		}
		begin = time.Now()
	}
	return begin.Add(wait)
}

// inForce is the app of the configuration that was started last. The admin API,
// which outlives configurations, asks it.
var inForce atomic.Pointer[App]

// Start announces the stores. It waits for none of them: one that is down
// stops neither start nor reload.
func (a *App) Start() error {
	inForce.Store(a)
	guard.Do("looking over the routes", a.lookOver)
	go guard.Do("announcing the stores", a.announce)
	return nil
}

// Stop leaves the place to the app of the next configuration, which was started
// before (Caddy v2.11.9, caddy.go, unsyncedDecodeAndRun).
func (a *App) Stop() error {
	inForce.CompareAndSwap(a, nil)
	return nil
}

func (a *App) add(h *Handler) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handlers = append(a.handlers, h)
}

// namespaces returns where the records of an account are, of all accounts if it
// is empty, each once. Without a configuration there are none.
func (a *App) namespaces(account string) (found []inspect.Namespace) {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.handlers {
		for _, acc := range h.Accounts {
			if account == "" || acc.Name == account {
				found = inspect.Merge(found, inspect.Namespace{
					Store: h.store, KeyPrefix: h.keyPrefix, Account: acc.Name,
					Retention: time.Duration(h.Retention), Hold: h.OnDoubt == doubtHold,
				})
			}
		}
	}
	inspect.Sort(found)
	return found
}

// announce writes one line for each store: what is wrong with it is seen when
// Caddy starts, and not by the first callback.
func (a *App) announce() {
	all := a.namespaces("")
	for len(all) > 0 {
		id := all[0].Store.ID()
		var accounts []string
		for _, n := range all {
			if n.Store.ID() == id && !slices.Contains(accounts, n.Account) {
				accounts = append(accounts, n.Account)
			}
		}
		health := inspect.Ask(all[:1]).Stores[0]
		log := logger().With(zap.String("store", health.Store), zap.String("accounts", strings.Join(accounts, ", ")))
		if health.OK {
			log.Info("the store answers")
		} else {
			log.Error("the store does not answer: until it does, callbacks are treated as on_store_error says; "+
				"see docs/troubleshooting.md, or ask again with a GET of "+inspect.PathHealth+" at the admin API", zap.String("error", health.Error))
		}
		all = slices.DeleteFunc(all, func(n inspect.Namespace) bool { return n.Store.ID() == id })
	}
}

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

// logger is the logger of the configuration in force, for what may outlive the
// handler's own.
func logger() *zap.Logger {
	return caddy.Log().Named("http.handlers.iak_callback")
}

// Interface guards
var (
	_ caddy.App         = (*App)(nil)
	_ caddy.Provisioner = (*App)(nil)

	_ caddyevents.Handler = (*App)(nil)
	_ inspect.Use         = (*storeUse)(nil)
)
