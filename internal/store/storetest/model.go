package storetest

import (
	"strings"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
)

// model is section "Once for each outcome" of docs/semantics.md, written down
// once more as plainly as possible. The rules on every engine have to agree with
// it, whatever happens in whatever order.
type model struct {
	accepted *record.Outcome // what the app accepted last
	doubt    *record.Outcome // what it may have applied, before the claim
	claim    *modelClaim     // the delivery under way, or whose lease is over
	kept     *modelKept      // what is kept for the app
	assumed  bool
	attempt  int

	clock time.Duration // by which the engine tells the time; it can be set
	since time.Duration // what has passed; nobody sets it
}

type modelClaim struct {
	outcome record.Outcome // with the goods that the app may have, if the callback has none
	without bool           // the callback has none
	asking  bool           // IAK is asked, and the app has nothing
	owner   record.Owner
	clock   time.Duration // when it was made
	since   time.Duration
}

const modelLease = 40*time.Hour + 30*time.Minute + 17*time.Second

// alive tells whether somebody delivers. All deliveries are of this process, so
// none ends before its time, whatever the clock says; and behind its time one lasts
// only as long as the clock says that it can.
func (m *model) alive() bool {
	if m.claim == nil {
		return false
	}
	left := m.claim.clock + modelLease - m.clock
	return m.since < m.claim.since+modelLease || left > 0 && left <= modelLease
}

// inDoubt is the final outcome that the app may have applied, unless it turned
// out to be accepted.
func (m *model) inDoubt() *record.Outcome {
	doubt := m.doubt
	if m.claim != nil && !m.alive() && !m.claim.asking && m.claim.outcome.Status != record.Process {
		doubt = &m.claim.outcome
	}
	if doubt != nil && m.accepted != nil && (m.accepted.Same(*doubt) || lateGoods(doubt, *m.accepted)) {
		return nil
	}
	return doubt
}

// alike are two outcomes that are the same, but that one may lack its goods yet.
func alike(a *record.Outcome, b record.Outcome) bool {
	return a.Same(b) || lateGoods(a, b) || lateGoods(&b, *a)
}

// against is the final status that o contradicts, Process if none.
func (m *model) against(doubt *record.Outcome, o record.Outcome) record.Status {
	switch a := m.accepted; {
	case a != nil && a.Status != record.Process && !alike(a, o):
		return a.Status
	case doubt != nil && !alike(doubt, o):
		return doubt.Status
	}
	return record.Process
}

// ask is the first table: one case for each row.
func (m *model) ask(q *record.Request) record.Decision {
	o, who, forward, hold := q.Outcome, q.Owner, q.ForwardConflict, q.Hold
	doubt := m.inDoubt()
	against := m.against(doubt, o)
	switch a := m.accepted; {
	case m.claim != nil && m.claim.owner == who: // repeated
		return m.granted(forward)
	case a != nil && (a.Same(o) || lateGoods(&o, *a)):
		return record.Decision{Verdict: record.Duplicate, Code: a.Code, Contradicts: -1}
	case a != nil && o.Status == record.Process:
		return record.Decision{Verdict: record.Stale, Code: a.Code, Contradicts: -1}
	}
	if d, decided := m.meets(q); decided {
		return d
	}
	switch {
	case doubt != nil && o.Status == record.Process:
		return record.Decision{Verdict: record.Stale, Code: 200, Contradicts: -1}
	case doubt != nil && alike(doubt, o) && hold:
		return m.held(q)
	case doubt != nil && alike(doubt, o):
	case against != record.Process && !forward && !asksIAK(q):
		return record.Decision{Verdict: record.Conflict, Contradicts: int(against)}
	case doubt != nil && m.doubt != nil && alike(m.doubt, o) && hold: // in doubt behind a newer outcome
		return m.held(q)
	}
	if q.Keep != nil && q.Later {
		m.fold()
		m.kept = m.keeps(q, m.clock+q.Delay)
		m.kept.outcome.Contradicts = against
		return record.Decision{Verdict: record.Spooled, Changed: true, Contradicts: -1}
	}
	o.Contradicts = record.Process
	if m.kept != nil && !newer(m.kept.outcome, o) && !m.givesWay(q) {
		o.Contradicts = m.kept.outcome.Status
	}
	if q.Keep != nil {
		m.kept = m.keeps(q, never)
	}
	ask := q.Ask
	if q.Confirmed {
		ask = record.AskNothing
	}
	d := m.deliver(o, who, ask, forward)
	d.Confirmed = q.Confirmed
	return d
}

// asksIAK tells whether IAK is to be asked about a callback, if anybody doubts it.
func asksIAK(q *record.Request) bool {
	return q.Ask != record.AskNothing && !q.Confirmed && q.Outcome.Status != record.Process
}

// givesWay tells whether what is kept gives way to what IAK has confirmed: IAK has not
// confirmed that, and the app has not got it and does not get it now.
func (m *model) givesWay(q *record.Request) bool {
	if !q.Confirmed || m.kept == nil || m.kept.confirmed {
		return false
	}
	if m.alive() && !m.claim.asking && alike(&m.claim.outcome, m.kept.outcome) {
		return false
	}
	doubt := m.doubt
	if !m.alive() {
		doubt = m.inDoubt()
	}
	return doubt == nil || !alike(doubt, m.kept.outcome)
}

// hand is when the app gets what IAK was asked about.
func (m *model) hand(who record.Owner, goods [8]byte, payload string, confirmed bool) bool {
	if m.claim == nil || m.claim.owner != who {
		return false
	}
	before := m.claim.outcome
	m.claim.asking, m.claim.without, m.claim.outcome.Goods = false, false, goods
	if m.doubt != nil && goods == [8]byte{} && lateGoods(&before, *m.doubt) {
		m.claim.outcome.Goods, m.claim.without = m.doubt.Goods, true
	}
	if m.accepted != nil && lateGoods(m.accepted, m.claim.outcome) {
		m.claim.outcome.LateGoods = true
	}
	if m.kept != nil && covers(before, m.kept.outcome) {
		m.kept.outcome.Goods, m.kept.confirmed = goods, confirmed
		if payload != "" {
			m.kept.payload = payload
		}
	}
	return true
}

// deliver claims the record for an outcome.
func (m *model) deliver(o record.Outcome, who record.Owner, ask record.Ask, forward bool) record.Decision {
	m.nothingHanded()
	doubt := m.inDoubt()
	against := m.against(doubt, o)
	if against == record.Process {
		against = o.Contradicts
	}
	claimed := o
	claimed.LateGoods = m.accepted != nil && lateGoods(m.accepted, o)
	claimed.Contradicts = against
	without := false
	if doubt != nil && alike(doubt, o) { // the key stays what it was
		claimed.LateGoods = claimed.LateGoods || doubt.LateGoods || lateGoods(doubt, o)
		if doubt.Contradicts != record.Process && against == record.Process {
			claimed.Contradicts = doubt.Contradicts
		}
		if without = lateGoods(&o, *doubt); without {
			claimed.Goods = doubt.Goods
		}
	}
	asking := o.Status != record.Process && (ask == record.AskFinal || ask == record.AskConflict && claimed.Contradicts != record.Process)
	m.doubt, m.claim = doubt, &modelClaim{outcome: claimed, without: without, asking: asking, owner: who, clock: m.clock, since: m.since}
	m.attempt++
	return m.granted(forward)
}

// nothingHanded takes a claim back whose owner died before the app got anything.
func (m *model) nothingHanded() {
	if m.claim != nil && m.claim.asking {
		m.claim, m.attempt = nil, max(m.attempt-1, 0)
	}
}

func (m *model) granted(forward bool) record.Decision {
	c := m.claim
	d := record.Decision{Verdict: record.Forwarded, Attempt: m.attempt, Contradicts: -1, Asking: c.asking}
	d.Refused = c.asking && c.outcome.Contradicts != record.Process && !forward
	d.LateGoods = c.outcome.LateGoods && !c.without && c.outcome.Goods != [8]byte{}
	if c.outcome.Contradicts != record.Process {
		d.Contradicts = int(c.outcome.Contradicts)
	}
	return d
}

// answer is the second table: what the app's answer makes of the record. late
// says that the lease of this delivery is over.
func (m *model) answer(o record.Outcome, who record.Owner, verdict record.Ending, late bool, pause time.Duration) {
	own := m.claim != nil && m.claim.owner == who
	final := m.accepted != nil && m.accepted.Status != record.Process
	switch {
	case verdict != record.Accepted && own:
		if verdict == record.Denied && m.kept != nil && covers(m.claim.outcome, m.kept.outcome) {
			m.kept = nil
		}
		m.refused(pause)
		m.claim = nil
		if verdict != record.Released {
			m.attempt = max(m.attempt-1, 0)
		}
	case verdict != record.Accepted:
	case own:
		claimed := m.claim
		known := m.accepted != nil && m.accepted.Same(claimed.outcome)
		m.claim, m.doubt = nil, nil
		switch {
		case final && o.Status == record.Process: // 0 never replaces 1 or 2
		case m.accepted != nil && lateGoods(&o, *m.accepted): // the goods have come meanwhile
		default:
			m.accepted, m.assumed = &o, false
		}
		if claimed.without && !known { // the goods are in doubt as before
			m.doubt = &claimed.outcome
		}
		if m.doubt == nil {
			m.attempt = 0
		}
		if m.drop(); m.kept != nil { // it has waited behind that
			m.kept.begin(m.kept.came, m.clock)
		}
	case final && o.Status == record.Process:
	case final && lateGoods(&o, *m.accepted): // the goods have come meanwhile
	case final && (!late || m.doubt == nil || !m.doubt.Same(o) && !lateGoods(&o, *m.doubt)): // recorded before, or something newer since
	default: // a fact that comes late
		m.accepted, m.assumed = &o, false
		if m.doubt != nil && (m.doubt.Same(o) || lateGoods(m.doubt, o)) {
			m.doubt = nil
		}
		if m.claim == nil && m.doubt == nil {
			m.attempt = 0
		}
		m.drop()
	}
}

// operate is what the commands of an operator say that they do.
func (m *model) operate(what record.Operation, evenAccepted bool) string {
	doubt := m.inDoubt()
	switch {
	case m.accepted == nil && m.doubt == nil && m.claim == nil && m.attempt == 0 && m.kept == nil:
		return toldNone
	case m.alive():
		return toldInFlight
	case what == record.OperationForget && m.accepted != nil && !evenAccepted:
		return toldAccepted
	case what == record.OperationForget && m.kept != nil && !evenAccepted:
		return toldKept
	case what == record.OperationForget:
		*m = model{clock: m.clock, since: m.since}
		return toldDone
	case what == record.OperationRedeliver && m.kept == nil:
		return toldNotKept
	case what == record.OperationRedeliver:
		m.nothingHanded()
		m.claim, m.doubt = nil, nil
		m.kept.begin(m.since, m.clock)
		return toldDone
	case doubt == nil:
		return toldNoDoubt
	}
	m.nothingHanded()
	m.claim, m.doubt = nil, nil
	if what == record.OperationAccept { // as if the app had answered 200
		m.accepted = &record.Outcome{Status: doubt.Status, Code: 200, Fixed: doubt.Fixed, Goods: doubt.Goods}
		m.assumed, m.attempt = false, 0
		m.drop()
	}
	switch {
	case m.kept == nil:
	case what == record.OperationRelease:
		m.kept.begin(m.since, m.clock)
	default:
		m.kept.begin(m.kept.came, m.clock)
	}
	return toldDone
}

// state is what an operator sees, by the words of caddy iak-callback show.
func (m *model) state(hold bool) string {
	switch {
	case m.alive():
		return "in_flight"
	case m.kept != nil && m.kept.dead:
		return "dead"
	case m.waitsForOperator(hold):
		return "held"
	case m.kept != nil:
		return "spooled"
	case m.inDoubt() != nil:
		return "in_doubt"
	case m.accepted != nil && m.assumed:
		return "assumed"
	case m.accepted != nil:
		return "accepted"
	case m.claim != nil || m.doubt != nil || m.attempt > 0:
		return "released"
	default:
		return "forgotten"
	}
}

func lateGoods(a *record.Outcome, o record.Outcome) bool {
	return a.Status == record.Success && o.Status == record.Success && a.Fixed == o.Fixed && a.Goods == [8]byte{} && o.Goods != [8]byte{}
}

// What an operator is told about an operation.
const (
	toldDone     = "done"
	toldNone     = "there is no record"
	toldInFlight = "a delivery is under way"
	toldAccepted = "the app has accepted"
	toldNoDoubt  = "nothing is in doubt"
	toldKept     = "a callback is kept"
	toldNotKept  = "no callback is kept"
)

// told reads it off an error.
func told(err error) string {
	if err == nil {
		return toldDone
	}
	for _, what := range []string{toldNone, toldInFlight, toldAccepted, toldNoDoubt, toldKept, toldNotKept} {
		if strings.HasPrefix(err.Error(), what) {
			return what
		}
	}
	return err.Error()
}
