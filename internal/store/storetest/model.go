package storetest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
	"go.uber.org/zap"
	"pgregory.net/rapid"
)

// model is section "Once for each outcome" of docs/semantics.md, written down
// once more as plainly as possible. The rules on every engine have to agree with
// it, whatever happens in whatever order.
type model struct {
	accepted *record.Outcome // what the app accepted last
	doubt    *record.Outcome // what it may have applied, before the claim
	claim    *modelClaim     // the delivery under way, or whose lease is over
	attempt  int

	clock time.Duration // by which the engine tells the time; it can be set
	since time.Duration // what has passed; nobody sets it
}

type modelClaim struct {
	outcome record.Outcome // with the goods that the app may have, if the callback has none
	without bool           // the callback has none
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
	if m.claim != nil && !m.alive() && m.claim.outcome.Status != record.Process {
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
func (m *model) ask(o record.Outcome, who record.Owner, forward, hold bool) record.Decision {
	doubt := m.inDoubt()
	against := m.against(doubt, o)
	switch a := m.accepted; {
	case m.claim != nil && m.claim.owner == who: // repeated
		return m.granted()
	case a != nil && (a.Same(o) || lateGoods(&o, *a)):
		return record.Decision{Verdict: record.Duplicate, Code: a.Code, Contradicts: -1}
	case a != nil && o.Status == record.Process:
		return record.Decision{Verdict: record.Stale, Code: a.Code, Contradicts: -1}
	case m.alive():
		known := m.claim.outcome
		other := o.Status != record.Process && !known.Same(o) && !lateGoods(&o, known)
		return record.Decision{Verdict: record.InFlight, Other: other, Contradicts: -1}
	case doubt != nil && o.Status == record.Process:
		return record.Decision{Verdict: record.Stale, Code: 200, Contradicts: -1}
	case doubt != nil && alike(doubt, o) && hold:
		return record.Decision{Verdict: record.Held, Contradicts: -1}
	case doubt != nil && alike(doubt, o):
	case against != record.Process && !forward:
		return record.Decision{Verdict: record.Conflict, Contradicts: int(against)}
	case doubt != nil && m.doubt != nil && alike(m.doubt, o) && hold: // in doubt behind a newer outcome
		return record.Decision{Verdict: record.Held, Contradicts: -1}
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
	m.doubt, m.claim = doubt, &modelClaim{outcome: claimed, without: without, owner: who, clock: m.clock, since: m.since}
	m.attempt++
	return m.granted()
}

func (m *model) granted() record.Decision {
	c := m.claim
	d := record.Decision{Verdict: record.Forwarded, Attempt: m.attempt, Contradicts: -1}
	d.LateGoods = c.outcome.LateGoods && !c.without && c.outcome.Goods != [8]byte{}
	if c.outcome.Contradicts != record.Process {
		d.Contradicts = int(c.outcome.Contradicts)
	}
	return d
}

// answer is the second table: what the app's answer makes of the record. late
// says that the lease of this delivery is over.
func (m *model) answer(o record.Outcome, who record.Owner, verdict record.Ending, late bool) {
	own := m.claim != nil && m.claim.owner == who
	final := m.accepted != nil && m.accepted.Status != record.Process
	switch {
	case verdict != record.Accepted && own:
		m.claim = nil
		if verdict == record.Unsent {
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
			m.accepted = &o
		}
		if claimed.without && !known { // the goods are in doubt as before
			m.doubt = &claimed.outcome
		}
		if m.doubt == nil {
			m.attempt = 0
		}
	case final && o.Status == record.Process:
	case final && lateGoods(&o, *m.accepted): // the goods have come meanwhile
	case final && (!late || m.doubt == nil || !m.doubt.Same(o) && !lateGoods(&o, *m.doubt)): // recorded before, or something newer since
	default: // a fact that comes late
		m.accepted = &o
		if m.doubt != nil && (m.doubt.Same(o) || lateGoods(m.doubt, o)) {
			m.doubt = nil
		}
		if m.claim == nil && m.doubt == nil {
			m.attempt = 0
		}
	}
}

// operate is what the commands of an operator say that they do.
func (m *model) operate(what record.Operation, evenAccepted bool) string {
	doubt := m.inDoubt()
	switch {
	case m.accepted == nil && m.doubt == nil && m.claim == nil && m.attempt == 0:
		return toldNone
	case m.alive():
		return toldInFlight
	case what == record.OperationForget && m.accepted != nil && !evenAccepted:
		return toldAccepted
	case what == record.OperationForget:
		*m = model{clock: m.clock, since: m.since}
		return toldDone
	case doubt == nil:
		return toldNoDoubt
	}
	m.claim, m.doubt = nil, nil
	if what == record.OperationAccept { // as if the app had answered 200
		m.accepted = &record.Outcome{Status: doubt.Status, Code: 200, Fixed: doubt.Fixed, Goods: doubt.Goods}
		m.attempt = 0
	}
	return toldDone
}

// state is what an operator sees, by the words of caddy iak-callback show.
func (m *model) state(hold bool) string {
	switch {
	case m.alive():
		return "in_flight"
	case m.inDoubt() != nil && hold:
		return "held"
	case m.inDoubt() != nil:
		return "in_doubt"
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
)

// told reads it off an error.
func told(err error) string {
	if err == nil {
		return toldDone
	}
	for _, what := range []string{toldNone, toldInFlight, toldAccepted, toldNoDoubt} {
		if strings.HasPrefix(err.Error(), what) {
			return what
		}
	}
	return err.Error()
}

// clock shifts an engine's time, which cannot be set.
type clock struct {
	store.Engine
	ahead time.Duration
}

func (c *clock) Swap(s *store.Swap) (store.Found, error) {
	shifted := *s
	if s.Lease != 0 {
		shifted.Lease += c.ahead
	}
	found, err := c.Engine.Swap(&shifted)
	found.Now += c.ahead.Milliseconds()
	return found, err
}

func (c *clock) Read(key string, began time.Time) (store.Found, error) {
	found, err := c.Engine.Read(key, began)
	found.Now += c.ahead.Milliseconds()
	return found, err
}

// delivery is one claim that was asked for.
type delivery struct {
	request *record.Request
	lease   *store.Lease  // when it was granted
	clock   time.Duration // when it was claimed
	ending  record.Ending // when it is settled
	code    int
}

// Model tests the rules on an engine against the model: several owners claim,
// settle, repeat and die in any order, operators accept, release and forget at
// any time, and the clock goes on, and is set forward and back.
func Model(t *testing.T, open Open) {
	engine := &clock{Engine: open(t)}
	t.Cleanup(func() { destruct(t, engine) })
	var since time.Duration
	now := func() time.Time { return time.Now().Add(since) }
	s := &store.Store{Engine: engine, Now: now, Log: zap.NewNop, Hold: func() func() { return func() {} }}
	outcomes := []record.Outcome{
		{Status: record.Process, Fixed: [8]byte{'F'}}, {Status: record.Success, Fixed: [8]byte{'F'}},
		{Status: record.Success, Fixed: [8]byte{'F'}, Goods: [8]byte{'S'}}, {Status: record.Success, Fixed: [8]byte{'F'}, Goods: [8]byte{'T'}},
		{Status: record.Success, Fixed: [8]byte{'G'}}, {Status: record.Failed, Fixed: [8]byte{'F'}}, {Status: record.Failed, Fixed: [8]byte{'G'}},
	}
	const keep = 1000 * time.Hour
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		key := fmt.Sprint("model:", runs)
		engine.ahead = 0
		m := &model{since: since}
		var deliveries []*delivery
		owners := 0

		ask := func(d *delivery) {
			lease, got, err := s.Claim(key, d.request, keep)
			if err != nil {
				rt.Fatal(err)
			}
			got.Wait = 0
			want := m.ask(d.request.Outcome, d.request.Owner, d.request.ForwardConflict, d.request.Hold)
			if got != want {
				rt.Fatalf("the decision is %+v, the model's %+v", got, want)
			}
			if want.Verdict == record.Forwarded {
				if d.lease == nil {
					d.clock = m.clock
					deliveries = append(deliveries, d)
				}
				d.lease = lease
			}
		}
		settle := func(d *delivery) {
			d.lease.Settle(d.ending, d.code)
			o := d.request.Outcome
			o.Code = d.code
			m.answer(o, d.request.Owner, d.ending, m.clock > d.clock+modelLease)
		}
		pick := func(rt *rapid.T) *delivery {
			if len(deliveries) == 0 {
				rt.Skip("nothing was delivered yet")
			}
			return rapid.SampledFrom(deliveries).Draw(rt, "delivery")
		}
		endings := rapid.SampledFrom([]record.Ending{record.Accepted, record.Accepted, record.Released, record.Unsent})

		rt.Repeat(map[string]func(*rapid.T){
			"claim": func(rt *rapid.T) {
				owners++
				d := &delivery{request: &record.Request{
					Outcome: rapid.SampledFrom(outcomes).Draw(rt, "outcome"), Lease: modelLease,
					ForwardConflict: rapid.Bool().Draw(rt, "forward"), Hold: rapid.Bool().Draw(rt, "hold"),
				}}
				copy(d.request.Owner[:], fmt.Sprint(owners))
				ask(d)
			},
			"the latest claim again, its answer was lost": func(rt *rapid.T) {
				d := pick(rt)
				if m.claim == nil || m.claim.owner != d.request.Owner || m.since > m.claim.since {
					rt.Skip("only a live delivery asks again")
				}
				ask(d)
			},
			"settle": func(rt *rapid.T) {
				d := pick(rt)
				if d.ending != "" {
					rt.Skip("a delivery is settled once")
				}
				d.ending, d.code = endings.Draw(rt, "ending"), rapid.IntRange(200, 299).Draw(rt, "code")
				settle(d)
			},
			"settle again, the answer was lost": func(rt *rapid.T) {
				if d := pick(rt); d.ending != "" {
					settle(d)
				}
			},
			"an operator": func(rt *rapid.T) {
				what := rapid.SampledFrom([]record.Operation{record.OperationAccept, record.OperationRelease, record.OperationForget}).Draw(rt, "operation")
				evenAccepted := rapid.Bool().Draw(rt, "even accepted")
				want := m.operate(what, evenAccepted)
				_, err := s.Change(key, keep, false, func(r *record.Record, now int64) error { return r.Operate(what, evenAccepted, now) })
				if got := told(err); got != want {
					rt.Fatalf("an operator who wants to %s is told %q, the model says %q", what, got, want)
				}
			},
			"": func(rt *rapid.T) { // after every step
				hold := rapid.Bool().Draw(rt, "the operator sees hold")
				shot, err := s.Record(key)
				if err != nil {
					rt.Fatal(err)
				}
				if got, want := string(shot.State(hold)), m.state(hold); got != want {
					rt.Fatalf("the state is %s, the model says %s", got, want)
				}
			},
			"the lease ends": func(rt *rapid.T) {
				if !m.alive() {
					rt.Skip("no lease")
				}
				since, m.since = since+41*time.Hour, m.since+41*time.Hour
				engine.ahead, m.clock = engine.ahead+41*time.Hour, m.clock+41*time.Hour
			},
			"the clock is set": func(rt *rapid.T) {
				by := rapid.SampledFrom([]time.Duration{1500 * time.Millisecond, time.Hour, 24 * time.Hour, 365 * 24 * time.Hour}).Draw(rt, "by")
				if rapid.Bool().Draw(rt, "back") {
					by = -by
				}
				engine.ahead, m.clock = engine.ahead+by, m.clock+by
			},
		})
	})
}
