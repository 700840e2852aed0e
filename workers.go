package iakcallback

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddy-iak/iakcallback/internal/store"
	"go.uber.org/zap"
)

// redeliverers are the handlers with a spool of one configuration whose records are in
// one place, which one worker serves.
type redeliverers []*Handler

// with are those that have an account.
func (all redeliverers) with(account string) []*Handler { return withAccount(all, account) }

// withAccount are the handlers that have an account.
func withAccount(all []*Handler, account string) (found []*Handler) {
	for _, h := range all {
		if h.hasAccount(account) {
			found = append(found, h)
		}
	}
	return found
}

// split takes a record's key apart.
func (all redeliverers) split(key string) (account, refID string) {
	account, refID, _ = strings.Cut(strings.TrimPrefix(key, all[0].keyPrefix), ":")
	return account, refID
}

func (all redeliverers) account(key string) string {
	account, _ := all.split(key)
	return account
}

// latest is the longest that anything has to wait.
func (all redeliverers) latest() (latest time.Duration) {
	for _, h := range all {
		latest = max(latest, h.latest())
	}
	return latest
}

// worker makes the worker of what is kept in the handlers' store.
func (all redeliverers) worker() *spool.Worker {
	first := all[0]
	return &spool.Worker{
		Open:    first.store.Open,
		Close:   func() { first.store.Close() },
		Index:   first.keyPrefix,
		Account: all.account,
		Longest: time.Duration(first.Spool.Backoff.Longest),
		Latest:  all.latest(),
		Ready: func() bool {
			now := time.Now()
			return slices.ContainsFunc(all, func(h *Handler) bool { return h.gate.Ready(now) })
		},
		Enter: func(key string) (spool.Slot, func()) {
			found := all.with(all.account(key))
			if len(found) == 0 {
				return spool.Unknown, nil
			}
			for _, h := range found { // which of them it comes to, its route says
				if h.gate.Enter(time.Now()) {
					return spool.Go, h.gate.Leave
				}
			}
			return spool.Busy, nil
		},
		Holds: func(key string) bool {
			return slices.ContainsFunc(all.with(all.account(key)), func(h *Handler) bool { return h.OnDoubt == doubtHold })
		},
		Deliver: func(key string, kept *record.Kept) spool.Done {
			account, refID := all.split(key)
			return lead(all.with(account), &mark{storeID: first.store.ID(), keyPrefix: first.keyPrefix, account: account, refID: refID}, kept)
		},
		Unrouted: all.unrouted,
		Failed:   all.failed,
	}
}

// unrouted tells of what nobody takes, the second time that nobody did: it may have been
// between two configurations.
func (all redeliverers) unrouted(key string, times int) {
	if times != 2 {
		return
	}
	o := all[0].observeKept(all.split(key))
	o.result, o.event, o.err = resultUnrouted, eventUnrouted, errUnrouted
	o.end()
}

// observeKept begins an observation of what is kept, without a request.
func (h *Handler) observeKept(account, refID string) *observation {
	return &observation{
		logger: h.logger, emit: h.emit, start: time.Now(), message: "redelivery", redelivered: true, account: account, refID: refID,
	}
}

func (all redeliverers) failed(err error) { all[0].tellStore(all[0].store, err) }

// tellStore tells that a store fails a worker, or, with nil, that it answers again.
func (h *Handler) tellStore(store *storeUse, err error) {
	log := h.logger.With(zap.String("store", store.Kind()))
	if err == nil {
		log.Info("the store answers again: what is kept is delivered")
		return
	}
	log.Error("the store does not answer: what is kept is delivered when it does", zap.Error(err))
}

// tellBreaker tells that the app does not answer any more, or answers again.
func (h *Handler) tellBreaker(open bool) {
	log := h.logger.With(zap.Stringer("handler", h))
	if open {
		log.Error("the app does not answer: until it does, new callbacks are kept at once, and one delivery a pause tries whether it is back")
		return
	}
	log.Info("the app answers again: what is kept is delivered")
}

// outageWorker makes the worker that hands in what was kept in a file while Redis did
// not answer.
func (all redeliverers) outageWorker() *spool.Worker {
	first := all[0]
	pauses := first.Spool.Backoff.pauses()
	gate := spool.NewGate(first.Spool.Concurrency, pauses, func(bool) {}) // the other worker tells of Redis
	return &spool.Worker{
		Open:    first.outage.Open,
		Close:   func() { first.outage.Close() },
		Asleep:  func() bool { return !first.outage.exists() },
		Index:   first.keyPrefix,
		Account: all.account,
		Longest: pauses.Longest,
		Latest:  all.latest(),
		Ready:   func() bool { return gate.Ready(time.Now()) },
		Holds:   func(string) bool { return false },
		Enter: func(key string) (spool.Slot, func()) {
			switch {
			case len(all.with(all.account(key))) == 0:
				return spool.Unknown, nil
			case !gate.Enter(time.Now()):
				return spool.Busy, nil
			default:
				return spool.Go, gate.Leave
			}
		},
		Deliver: func(key string, kept *record.Kept) spool.Done {
			account, refID := all.split(key)
			err := all.with(account)[0].handIn(account, refID, kept)
			if err != nil {
				gate.Tell(spool.Silent, time.Now())
				return spool.Done{Leave: pauses.First}
			}
			gate.Tell(spool.Accepted, time.Now())
			return spool.Done{}
		},
		Unrouted: all.unrouted,
		Failed: func(err error) {
			first.logger.Info("the file of callbacks that were kept without Redis", zap.Error(err))
		},
	}
}

// errNewer is a callback that came while an older one of the same order was handed in.
var errNewer = errors.New("a newer callback came meanwhile")

// handIn gives Redis a callback that was kept in a file, as if it had just come, and
// then removes it there.
func (h *Handler) handIn(account, refID string, kept *record.Kept) error {
	s, err := h.store.Open()
	if err != nil {
		return err
	}
	defer h.store.Close()
	if s.Waiting(h.keyPrefix) >= h.Spool.MaxPending {
		return errSpoolFull
	}
	q := &record.Request{
		Outcome: kept.News(), Lease: time.Duration(h.UpstreamTimeout) + store.Margin,
		ForwardConflict: h.OnConflict == conflictForward, Hold: h.OnDoubt == doubtHold,
		Keep: &kept.Payload, Came: kept.Came, Later: true, Delay: time.Duration(h.Spool.Delay), Ask: h.ask(),
	}
	_, _ = rand.Read(q.Owner[:])
	o := h.observeKept(account, refID)
	o.message = "a callback that was kept without Redis is handed in"
	var refused *refusedError
	_, d, err := s.Claim(h.place(account, refID), q)
	if err == nil && d.Verdict == record.AskFirst {
		if refused = h.askFirstKept(kept, o, q); refused == nil {
			_, d, err = s.Claim(h.place(account, refID), q)
		} else if refused.status != http.StatusConflict {
			err = refused
		}
	}
	switch {
	case err != nil:
		return err
	case d.Verdict == record.InFlight: // by a handler without a spool
		return errors.New("a delivery is under way that is not kept")
	}
	o.result, o.status = string(d.Verdict), kept.Status.String()
	if refused != nil {
		refused.tell(o)
	}
	if d.Verdict == record.Conflict {
		o.event, o.err = eventConflict, fmt.Errorf("it contradicts the outcome %q that the app has, or may have, accepted, and is dropped: "+
			"ask IAK for the order's status", statusWord(d.Contradicts))
	}
	o.end()
	here, err := h.outage.Open()
	if err != nil {
		return err
	}
	defer h.outage.Close()
	_, err = here.Change(h.place(account, refID), false, func(r *record.Record, _ int64) error {
		if r.Kept == nil || r.Kept.Payload != kept.Payload {
			return errNewer
		}
		*r = record.Record{}
		return nil
	})
	if errors.Is(err, errNewer) {
		return nil
	}
	return err
}
