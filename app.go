package iakcallback

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-iak/iakcallback/internal/delivery"
	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/spool"
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
	stopped    atomic.Bool               // the same, or it never started
	drainUntil func() time.Time          // of all stores together
	delivered  func()                    // waits for deliveries, once
	delivering sync.WaitGroup            // deliveries whose request is over, perhaps

	endWork context.CancelFunc // ends the workers
	workers []*spool.Worker
	began   sync.Once

	asking sync.Map // the keys of records about which IAK is asked without a claim

	mu       sync.Mutex
	handlers []*Handler
	warnings []string // of lookOver
	ended    bool     // no delivery that begins now is waited for
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
	a.ctx, a.drainUntil, a.delivered = ctx, sync.OnceValue(a.endOfDrain), sync.OnceFunc(a.waitForDeliveries)
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("the events app: %w", err)
	}
	for _, event := range []string{"started", "stopping"} {
		if err := events.(*caddyevents.App).On(event, a); err != nil {
			return err
		}
	}
	return nil
}

// Handle notes when all apps of the configuration have started, and when it is stopped.
func (a *App) Handle(_ context.Context, event caddy.Event) error {
	if event.Name() == "started" {
		a.began.Do(a.work)
		return nil
	}
	now := time.Now()
	a.stopping.CompareAndSwap(nil, &now)
	a.stopWork()
	return nil
}

// maxDrain is how long the end of Caddy waits for what a store could not record yet.
const maxDrain = 10 * time.Second

// endOfDrain is when Caddy, which ends, waits no longer for a store.
func (a *App) endOfDrain() time.Time { return a.patience(maxDrain) }

// patience is when Caddy, which ends, waits no longer for what needs so long: its grace
// period, which began when it was told to stop, is over before perhaps.
func (a *App) patience(need time.Duration) time.Time {
	end := time.Now().Add(need)
	stopping := a.stopping.Load()
	if app, err := a.ctx.AppIfConfigured("http"); err == nil && stopping != nil {
		if grace := time.Duration(app.(*caddyhttp.App).GracePeriod); grace > 0 { // 0 is as long as it takes
			if over := stopping.Add(grace); over.Before(end) {
				return over
			}
		}
	}
	return end
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
// before (Caddy v2.11.9, caddy.go, unsyncedDecodeAndRun). It waits for nothing: the
// servers may be stopped after it, and take callbacks until then.
func (a *App) Stop() error {
	inForce.CompareAndSwap(a, nil)
	a.stopWork()
	return nil
}

// work starts the workers. A redelivery may be sent to a server of this very
// configuration, so all apps have to be there.
func (a *App) work() {
	ctx, cancel := context.WithCancel(context.Background())
	a.mu.Lock()
	a.endWork = cancel
	a.workers = a.makeWorkers()
	a.mu.Unlock()
	for _, w := range a.workers {
		go guard.Do("the worker of a spool", func() { w.Run(ctx) })
	}
}

// makeWorkers makes one for each place in which callbacks are kept.
func (a *App) makeWorkers() (workers []*spool.Worker) {
	places, outages := make(map[string]redeliverers), make(map[string]redeliverers)
	for _, h := range a.handlers {
		if h.Spool == nil {
			continue
		}
		place := h.store.ID() + " " + h.keyPrefix
		places[place] = append(places[place], h)
		if h.outage != nil {
			outages[h.keyPrefix] = append(outages[h.keyPrefix], h)
		}
	}
	for _, handlers := range places {
		workers = append(workers, handlers.worker())
	}
	for _, handlers := range outages {
		workers = append(workers, handlers.outageWorker())
	}
	return workers
}

func (a *App) stopWork() {
	a.stopped.Store(true)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.endWork != nil {
		a.endWork()
	}
}

// waitForDeliveries is what the end of Caddy waits for when all servers are stopped:
// deliveries go on without a request, and nothing else waits for those. A reload waits
// for none.
func (a *App) waitForDeliveries() {
	longest := time.Duration(0)
	for _, h := range a.handlers {
		longest = max(longest, time.Duration(h.UpstreamTimeout))
	}
	until := a.patience(longest + delivery.ReturnGrace)
	for _, w := range a.workers {
		w.Wait(until)
	}
	a.mu.Lock()
	a.ended = true // requests may go on when the grace period is over
	a.mu.Unlock()
	guard.WaitUntil("waiting for deliveries", a.delivering.Wait, until)
}

// delivers notes a delivery that may outlive its request, until done is called.
func (a *App) delivers() (done func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return func() {}
	}
	a.delivering.Add(1)
	return a.delivering.Done
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
					Spool: h.Spool != nil, Unrouted: a.unrouted,
				})
				if outage, err := outageUse(); err == nil && h.Redis != nil && outage.exists() { // also without keep: it may be left from before
					found = inspect.Merge(found, inspect.Namespace{
						Store: outage, KeyPrefix: h.keyPrefix, Account: acc.Name, Retention: time.Duration(h.Retention),
						Spool: h.outage != nil, Outage: true, Unrouted: a.unrouted,
					})
				}
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
		health := inspect.Ask(slices.DeleteFunc(slices.Clone(all), func(n inspect.Namespace) bool { return n.Store.ID() != id })).Stores[0]
		log := logger().With(zap.String("store", health.Store), zap.String("accounts", strings.Join(accounts, ", ")))
		switch {
		case health.Warning != "":
			log.Warn("the store answers; " + health.Warning)
		case health.OK:
			log.Info("the store answers")
		default:
			log.Error("the store does not answer: until it does, callbacks are treated as on_store_error says; "+
				"see docs/troubleshooting.md, or ask again with a GET of "+inspect.PathHealth+" at the admin API", zap.String("error", health.Error))
		}
		all = slices.DeleteFunc(all, func(n inspect.Namespace) bool { return n.Store.ID() == id })
	}
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
)
