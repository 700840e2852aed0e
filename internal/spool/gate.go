package spool

import (
	"sync"
	"time"
)

// openAfter is how many deliveries in a row must not have reached the app, or have got
// no answer in time, until nothing more is sent to it but one probe a pause.
const openAfter = 5

// Result is what a delivery tells of the app.
type Result int

// What a delivery can tell.
const (
	Accepted Result = iota // it has accepted a callback
	Answered               // it answers
	Silent                 // it could not be reached, or did not answer
)

// Gate lets the redeliveries of one handler through: a few at once, and hardly any to
// an app that does not answer. It is safe for concurrent use.
type Gate struct {
	pauses Backoff
	limit  int             // redeliveries at once
	told   func(open bool) // when the breaker opens or closes

	mu      sync.Mutex
	running int
	allowed int       // at once, until the app has accepted as many
	round   int       // accepted since allowed was set
	silent  int       // in a row
	opened  int       // probes since the breaker opened
	probe   time.Time // when the next may be sent
	sent    time.Time // when the last was, as long as it has shown nothing of the app
	closed  bool      // by Close
}

// NewGate returns a gate for at most limit redeliveries at once. pauses are those
// between the probes. told is called when the app does not answer any more, and when it
// answers again.
func NewGate(limit int, pauses Backoff, told func(open bool)) *Gate {
	return &Gate{limit: limit, pauses: pauses, told: told, allowed: 1}
}

// Enter tells whether a redelivery may begin, which then has to Leave.
func (g *Gate) Enter(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.ready(now) {
		return false
	}
	if g.silent >= openAfter { // this is the probe
		g.probe, g.sent = now.Add(g.pauses.Longest), now
	}
	g.running++
	return true
}

// Ready tells whether Enter would let a redelivery through.
func (g *Gate) Ready(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ready(now)
}

func (g *Gate) ready(now time.Time) bool {
	if g.silent >= openAfter {
		return g.running == 0 && !now.Before(g.probe)
	}
	return g.running < g.allowed
}

// Leave ends what Enter has let through. A probe that did not get to the app, since IAK
// has not confirmed it perhaps, is followed by another after the first pause.
func (g *Gate) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if !g.sent.IsZero() {
		g.probe, g.sent = g.sent.Add(g.pauses.First), time.Time{}
	}
}

// Open tells whether the app does not answer: what comes now is better kept at once.
func (g *Gate) Open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.silent >= openAfter
}

// Tell takes in what any delivery to the app has shown.
func (g *Gate) Tell(result Result, now time.Time) {
	if open, changed := g.tell(result, now); changed {
		g.told(open)
	}
}

func (g *Gate) tell(result Result, now time.Time) (open, changed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.silent >= openAfter
	g.sent = time.Time{}
	switch result {
	case Silent:
		g.silent++
		g.allowed, g.round = 1, 0
		if g.silent >= openAfter {
			g.probe = now.Add(g.pauses.After(g.opened, 0))
			g.opened++
		}
	case Accepted:
		g.silent, g.opened = 0, 0
		if g.round++; g.round >= g.allowed {
			g.allowed, g.round = min(2*g.allowed, g.limit), 0
		}
	default:
		g.silent, g.opened, g.round = 0, 0, 0
	}
	if open = g.silent >= openAfter; open == was || g.closed {
		return open, false
	}
	breakers.count(open)
	return open, true
}

// Close ends the gate of a handler that is gone.
func (g *Gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.silent >= openAfter && !g.closed {
		breakers.count(false)
	}
	g.closed = true
}
