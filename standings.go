package iakcallback

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/inspect"
	"go.uber.org/zap"
)

// standings are how IAK has answered one handler's questions, by account: a key or an
// address that IAK does not know is told at once, and not by a pile of callbacks that wait.
type standings struct {
	logger *zap.Logger
	mu     sync.Mutex
	by     map[string]*standing
}

type standing struct {
	base    string
	asked   time.Time // the last time
	odd     int       // answers in a row that said nothing of an order
	since   time.Time // when the first of these came
	unknown bool      // all of these said that IAK does not know the order
	problem string    // what is wrong, empty if nothing is
	told    time.Time // when that was logged
}

const (
	tellEvery = time.Minute // that something is wrong with an account at IAK
	oddAnswer = 3           // in a row, or for a minute, are more than chance
)

// note keeps how IAK has answered a question of an account.
func (s *standings) note(account, base string, a *iak.Answer) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.by[account]
	if st == nil {
		st = &standing{base: base}
		s.by[account] = st
	}
	st.asked = now
	log := s.logger.With(zap.String("account", account), zap.String("base", base))
	if a.Standing == iak.StandingFinal || a.Standing == iak.StandingOpen {
		if st.problem != "" {
			log.Info("IAK answers again")
		}
		st.odd, st.problem, st.told = 0, "", time.Time{}
		return
	}
	if st.odd == 0 {
		st.since, st.unknown = now, true
	}
	st.odd++
	st.unknown = st.unknown && a.Standing == iak.StandingUnknown
	lasting := st.odd >= oddAnswer || now.Sub(st.since) >= tellEvery
	switch {
	case a.Standing == iak.StandingRefused:
		st.problem = a.Why.Error()
	case lasting && st.unknown:
		st.problem = fmt.Sprintf("IAK knows none of the last %d orders (rc 06): check that confirm's base, production or sandbox, is that of the account's key", st.odd)
	case lasting && a.Standing == iak.StandingSilent:
		st.problem = "IAK gives no answer that counts: " + a.Why.Error()
	}
	if st.problem != "" && now.Sub(st.told) >= tellEvery {
		st.told = now
		log.Error("IAK confirms no callback of this account: until it does, they are treated as confirm's on_error says; see docs/confirm.md",
			zap.String("error", st.problem))
	}
}

// view is what health tells, for accounts that have not asked yet too.
func (h *Handler) confirmHealth() (all []inspect.ConfirmHealth) {
	if h.Confirm == nil {
		return nil
	}
	names := make(map[string]bool)
	for _, a := range h.Accounts {
		names[a.Name] = true
	}
	h.standings.mu.Lock()
	defer h.standings.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(names)) {
		one := inspect.ConfirmHealth{Account: name, Base: h.Confirm.base(name), OK: true}
		if st := h.standings.by[name]; st != nil {
			asked := st.asked
			one.Asked, one.OK, one.Error = &asked, st.problem == "", st.problem
		}
		all = append(all, one)
	}
	return all
}

// resolveAsking prepares what IAK is asked by.
func (h *Handler) resolveAsking() error {
	h.client = iak.NewClient(defaultConfirmRate, defaultConfirmTimeout)
	h.standings = &standings{logger: h.logger, by: make(map[string]*standing)}
	if h.Confirm != nil {
		if err := h.Confirm.resolve(); err != nil {
			return err
		}
		if err := h.validateConfirm(); err != nil {
			return err
		}
		h.client = iak.NewClient(h.Confirm.Rate, time.Duration(h.Confirm.Timeout))
	}
	if h.CallbackURL == "" {
		return nil
	}
	text, err := resolve(h.CallbackURL, "callback_url")
	if err != nil {
		return err
	}
	h.callback, err = parseCallbackURL(text)
	return err
}
