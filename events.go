package iakcallback

import (
	"context"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"go.uber.org/zap/zapcore"
)

// The events, which Caddy's events app tells its subscribers.
const (
	eventConflict         = "iak_callback.conflict"
	eventHeld             = "iak_callback.held"
	eventStoreUnavailable = "iak_callback.store_unavailable"
	eventDead             = "iak_callback.dead"
	eventUnrouted         = "iak_callback.unrouted"
	eventSpoolFull        = "iak_callback.spool_full"
	eventUnconfirmed      = "iak_callback.unconfirmed"
)

// emit tells Caddy's events app, also when the configuration has been replaced
// meanwhile.
func (h *Handler) emit(event string, facts map[string]any) {
	ctx := h.ctx
	ctx.Context = context.WithoutCancel(ctx.Context)
	guard.Do("a subscriber of "+event, func() { h.events.Emit(ctx, event, facts) })
}

// tell emits the callback's event, with the fields of its log line.
func (o *observation) tell() {
	if o.event == "" || o.told {
		return
	}
	if o.event != eventStoreUnavailable && o.event != eventSpoolFull && !emitted.first(o.event+" "+o.account+":"+o.refID, time.Now()) {
		return
	}
	facts := zapcore.NewMapObjectEncoder()
	_ = o.MarshalLogObject(facts) // always nil
	o.emit(o.event, facts.Fields)
}

const (
	eventPause = time.Minute // between two events of one kind for one ref_id, or one store
	maxEmitted = 10_000      // that are remembered for that
)

// emitted are the events of the last minute. A subscriber may start a process for
// each: a sender who repeats a callback a thousand times must not start a thousand.
var emitted = &recently{at: make(map[string]time.Time)}

type recently struct {
	mu sync.Mutex
	at map[string]time.Time
}

// first tells whether something happens for the first time in eventPause. When too
// much is remembered, nothing is: a thousand orders in conflict within a minute are
// told by then.
func (r *recently) first(what string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, there := r.at[what]; there && now.Sub(at) < eventPause {
		return false
	}
	if len(r.at) >= maxEmitted {
		for what, at := range r.at {
			if now.Sub(at) >= eventPause {
				delete(r.at, what)
			}
		}
		if len(r.at) >= maxEmitted {
			return false
		}
	}
	r.at[what] = now
	return true
}

// storesDown are the stores that did not answer the last callback, by their ids.
var storesDown sync.Map

// storeFailed makes an event of it if the store answered until now. One that fails now
// and then makes one a minute at most.
func (o *observation) storeFailed(id string) {
	if _, before := storesDown.LoadOrStore(id, true); !before && emitted.first(eventStoreUnavailable+" "+id, time.Now()) {
		o.event = eventStoreUnavailable
	}
}

// storeAnswered is for each callback, and most often there is nothing to do.
func storeAnswered(id string) {
	if _, down := storesDown.Load(id); down {
		storesDown.Delete(id)
	}
}

// spoolsFull are the places in which no more callbacks can be kept, by store and index.
var spoolsFull sync.Map

// spoolIsFull makes an event of it if there was room until now.
func (o *observation) spoolIsFull(place string) {
	if _, before := spoolsFull.LoadOrStore(place, true); !before && emitted.first(eventSpoolFull+" "+place, time.Now()) {
		o.event, o.level, o.err = eventSpoolFull, zapcore.ErrorLevel, errSpoolFull
	}
}

func spoolHasRoom(place string) {
	if _, full := spoolsFull.Load(place); full {
		spoolsFull.Delete(place)
	}
}
