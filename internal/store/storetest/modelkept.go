package storetest

import (
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
)

// modelKept is a callback that is kept for the app.
type modelKept struct {
	outcome record.Outcome
	payload string
	came    time.Duration // by the clock of the Caddy that took it
	due     time.Duration // by the engine's clock; never for never
	pauses  int
	dead    bool

	confirmed bool // IAK says the same
}

const (
	never       = time.Duration(1<<63 - 1)
	modelMaxAge = 100 * time.Hour

	// modelLongest is the longest pause and delay. What is due later than that was
	// written before the clock was set back.
	modelLongest = 3 * time.Hour
)

// begin makes the tries begin anew.
func (k *modelKept) begin(came, due time.Duration) {
	k.came, k.due, k.pauses, k.dead = came, due, 0, false
}

func (m *model) keeps(q *record.Request, due time.Duration) *modelKept {
	return &modelKept{outcome: q.Outcome, payload: *q.Keep, came: time.Duration(q.Came) * time.Millisecond, due: due, confirmed: q.Confirmed}
}

// covers tells whether whoever knows a learns nothing from o.
func covers(a, o record.Outcome) bool { return a.Same(o) || lateGoods(&o, a) }

// newer tells whether o follows a.
func newer(a, o record.Outcome) bool {
	return a.Status == record.Process && o.Status != record.Process || lateGoods(&a, o)
}

// waitsForOperator tells whether nothing is delivered until one has said what has
// happened.
func (m *model) waitsForOperator(hold bool) bool {
	doubt := m.inDoubt()
	return hold && doubt != nil && (m.kept == nil || alike(doubt, m.kept.outcome))
}

func (m *model) fold() {
	m.nothingHanded()
	m.doubt, m.claim = m.inDoubt(), nil
}

// held is the answer to what waits for an operator: it is kept, if it was not.
func (m *model) held(q *record.Request) record.Decision {
	d := record.Decision{Verdict: record.Held, Contradicts: -1}
	if q.Keep != nil && m.kept == nil {
		m.fold()
		m.kept = m.keeps(q, never)
		d.Changed = true
	}
	d.Kept = m.kept != nil
	return d
}

// meets is what becomes of a callback that meets one which is delivered, or kept.
func (m *model) meets(q *record.Request) (d record.Decision, decided bool) {
	o, alive := q.Outcome, m.alive()
	d.Contradicts = -1
	var there record.Outcome
	switch {
	case m.kept != nil:
		there = m.kept.outcome
	case alive:
		there = m.claim.outcome
	default:
		return d, false
	}
	wait := func() record.Decision { // its sender waits
		return record.Decision{
			Verdict: record.InFlight, Contradicts: -1,
			Other: o.Status != record.Process && !covers(m.claim.outcome, o),
		}
	}
	switch {
	case m.kept == nil && (q.Keep == nil || covers(there, o)):
		return wait(), true
	case covers(there, o) && !alive && m.waitsForOperator(q.Hold):
		d.Verdict, d.Kept = record.Held, true
	case covers(there, o):
		d.Verdict = record.Spooled
		d.Changed = !alive && m.now(time.Duration(q.Came)*time.Millisecond)
	case o.Status == record.Process:
		d.Verdict, d.Code = record.Stale, 200
	case asksIAK(q) && there.Status != record.Process && (q.Ask == record.AskFinal || !newer(there, o)):
		d.Verdict, d.Contradicts = record.AskFirst, int(there.Status)
	case !newer(there, o) && !q.ForwardConflict && !m.givesWay(q):
		d.Verdict, d.Contradicts = record.Conflict, int(there.Status)
	case !alive:
		return d, false
	case q.Keep == nil:
		return wait(), true
	default: // it waits behind the delivery
		givesWay := m.givesWay(q)
		m.kept = m.keeps(q, never)
		if !newer(there, o) && !givesWay {
			m.kept.outcome.Contradicts = there.Status
		}
		d.Verdict, d.Changed = record.Spooled, true
	}
	return d, true
}

// now makes what is kept due, since it came again, unless its delay is not over, or it
// is due already.
func (m *model) now(came time.Duration) (changed bool) {
	switch k := m.kept; {
	case k.dead:
		k.begin(came, m.clock)
	case m.claim != nil, k.pauses > 0 && k.due > m.clock:
		k.due = m.clock
	default:
		return false
	}
	m.fold()
	return true
}

// redeliver is the table of section "Written ahead": what becomes of what is kept when a
// worker finds it.
func (m *model) redeliver(q *record.Redelivery) record.Decision {
	d := record.Decision{Contradicts: -1}
	switch {
	case m.claim != nil && m.claim.owner == q.Owner:
		d = m.granted(q.ForwardConflict)
		d.Confirmed = m.kept != nil && m.kept.confirmed
		return d
	case m.kept == nil:
		d.Verdict = record.Nothing
		return d
	case m.alive():
		d.Verdict = record.InFlight
		return d
	}
	if m.claim != nil {
		itself := alike(&m.claim.outcome, m.kept.outcome)
		m.fold()
		d.Changed = true
		switch {
		case itself && m.doubt != nil && q.Assume:
			o := record.Outcome{Status: m.kept.outcome.Status, Fixed: m.kept.outcome.Fixed, Goods: m.kept.outcome.Goods, Code: 200}
			m.accepted, m.assumed, m.doubt, m.kept, m.attempt = &o, true, nil, nil, 0
			d.Verdict = record.Settled
			return d
		case itself && m.doubt != nil && q.Hold:
			m.kept.due = never
		case !m.kept.dead:
			m.kept.due = m.clock
		}
	}
	switch {
	case m.waitsForOperator(q.Hold):
		d.Verdict = record.Held
	case m.kept.dead:
		d.Verdict = record.Died
	case m.kept.came < time.Duration(q.Oldest)*time.Millisecond:
		m.kept.dead, m.kept.due = true, never
		d.Verdict, d.Changed = record.Died, true
	case m.kept.due > m.clock && m.kept.due <= m.clock+modelLongest:
		d.Verdict = record.NotDue
	default:
		ask := q.Ask
		if m.kept.confirmed {
			ask = record.AskNothing
		}
		d = m.deliver(m.kept.outcome, q.Owner, ask, q.ForwardConflict)
		d.Confirmed = m.kept.confirmed
	}
	return d
}

// refused is what the end of a delivery makes of what is kept, if the app has not
// accepted it.
func (m *model) refused(pause time.Duration) {
	switch k := m.kept; {
	case k == nil:
	case covers(m.claim.outcome, k.outcome):
		k.pauses++
		k.due = m.clock + pause
	default: // it has waited behind that
		k.begin(k.came, m.clock)
	}
}

// drop drops what is kept when the app has accepted it, or newer news.
func (m *model) drop() {
	a, k := m.accepted, m.kept
	if k != nil && a != nil && (covers(*a, k.outcome) || a.Status != record.Process && k.outcome.Status == record.Process) {
		m.kept = nil
	}
}
