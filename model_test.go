package iakcallback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"
)

// model is section "Once for each outcome" of the README, written down once
// more as plainly as possible. Both stores have to agree with it, whatever
// happens in whatever order.
type model struct {
	accepted *outcome    // what the app accepted last
	doubt    *outcome    // what it may have applied, before the claim
	claim    *modelClaim // the delivery under way, or whose lease is over
	attempt  int
}

type modelClaim struct {
	outcome outcome
	owner   owner
	over    bool // the lease
}

// inDoubt is the final outcome that the app may have applied, unless it turned
// out to be accepted.
func (m *model) inDoubt() *outcome {
	doubt := m.doubt
	if m.claim != nil && m.claim.over && m.claim.outcome.status != statusProcess {
		doubt = &m.claim.outcome
	}
	if doubt != nil && m.accepted != nil && m.accepted.same(*doubt) {
		return nil
	}
	return doubt
}

// against is the final status that o contradicts, -1 if none.
func (m *model) against(doubt *outcome, o outcome) int {
	switch a := m.accepted; {
	case a != nil && a.status != statusProcess && !a.same(o) && !a.lateGoods(o):
		return int(a.status)
	case doubt != nil && !doubt.same(o):
		return int(doubt.status)
	}
	return -1
}

// ask is the first table of the README: one case for each row.
func (m *model) ask(o outcome, who owner, forward, hold bool) decision {
	doubt := m.inDoubt()
	switch a := m.accepted; {
	case m.claim != nil && m.claim.owner == who: // repeated
		return m.granted()
	case a != nil && a.same(o):
		return decision{verdict: verdictDuplicate, code: a.code, contradicts: -1}
	case a != nil && o.status == statusProcess:
		return decision{verdict: verdictStale, code: a.code, contradicts: -1}
	case m.claim != nil && !m.claim.over:
		return decision{verdict: verdictInFlight, contradicts: -1}
	case doubt != nil && o.status == statusProcess:
		return decision{verdict: verdictStale, code: 200, contradicts: -1}
	case doubt != nil && doubt.same(o) && hold:
		return decision{verdict: verdictHeld, contradicts: -1}
	case doubt != nil && doubt.same(o):
	case m.against(doubt, o) >= 0 && !forward:
		return decision{verdict: verdictConflict, contradicts: m.against(doubt, o)}
	case doubt != nil && m.doubt != nil && m.doubt.same(o) && hold: // in doubt behind a newer outcome
		return decision{verdict: verdictHeld, contradicts: -1}
	}
	m.doubt, m.claim = doubt, &modelClaim{outcome: o, owner: who}
	m.attempt++
	return m.granted()
}

func (m *model) granted() decision {
	o := m.claim.outcome
	return decision{
		verdict: verdictForwarded, attempt: m.attempt,
		lateGoods: m.accepted != nil && m.accepted.lateGoods(o), contradicts: m.against(m.doubt, o),
	}
}

// answer is the second table: what the app's answer makes of the record. late
// says that the lease of this delivery is over.
func (m *model) answer(o outcome, who owner, verdict settleVerdict, late bool) {
	own := m.claim != nil && m.claim.owner == who
	final := m.accepted != nil && m.accepted.status != statusProcess
	switch {
	case verdict != settleAccepted && own:
		m.claim = nil
		if verdict == settleUnsent {
			m.attempt = max(m.attempt-1, 0)
		}
	case verdict != settleAccepted:
	case own:
		m.claim, m.doubt, m.attempt = nil, nil, 0
		if !final || o.status != statusProcess { // 0 never replaces 1 or 2
			m.accepted = &o
		}
	case final && o.status == statusProcess:
	case final && (!late || m.doubt == nil || !m.doubt.same(o)): // recorded before, or something newer since
	default: // a fact that comes late
		m.accepted = &o
		if m.doubt != nil && m.doubt.same(o) {
			m.doubt = nil
		}
		if m.claim == nil && m.doubt == nil {
			m.attempt = 0
		}
	}
}

// What an operator is told about an operation.
const (
	toldDone     = "done"
	toldNone     = "there is no record"
	toldInFlight = "in flight"
	toldAccepted = "the app has accepted it"
	toldNoDoubt  = "nothing is in doubt"
)

// told reads it off a store's answer.
func told(err error) string {
	notDone := errNotDone{}
	switch {
	case err == nil:
		return toldDone
	case errors.Is(err, errNoRecord):
		return toldNone
	case !errors.As(err, &notDone):
		return err.Error()
	}
	for part, what := range map[string]string{
		"a delivery is under way": toldInFlight, "the app has accepted": toldAccepted, "nothing is in doubt": toldNoDoubt,
	} {
		if strings.HasPrefix(notDone.why, part) {
			return what
		}
	}
	return notDone.why
}

// operate is what the commands of an operator say that they do.
func (m *model) operate(what operation, evenAccepted bool) string {
	doubt := m.inDoubt()
	switch {
	case m.accepted == nil && m.doubt == nil && m.claim == nil && m.attempt == 0:
		return toldNone
	case m.claim != nil && !m.claim.over:
		return toldInFlight
	case what == operationForget && m.accepted != nil && !evenAccepted:
		return toldAccepted
	case what == operationForget:
		*m = model{}
		return toldDone
	case doubt == nil:
		return toldNoDoubt
	}
	m.claim, m.doubt = nil, nil
	if what == operationAccept { // as if the app had answered 200
		m.accepted = &outcome{status: doubt.status, code: 200, fingerprint: doubt.fingerprint}
		m.attempt = 0
	}
	return toldDone
}

// state is what an operator sees, by the words of caddy iak-callback show.
func (m *model) state(hold bool) string {
	switch {
	case m.claim != nil && !m.claim.over:
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

// delivery of one claim that was granted, by its owner.
type modelDelivery struct {
	outcome             outcome
	owner               owner
	redisEnd, boltEnd   int64
	late                bool
	claim               *claimRequest
	settlement          *settlement
	settled, madeBefore bool
}

// Several owners claim, settle, repeat and die in any order, operators accept,
// release and forget at any time, and the clock goes on: the model, the Redis
// scripts and the embedded store agree at every step, and both stores keep the
// same bytes.
func TestModel(t *testing.T) {
	both := newBothStores(t)
	clock := time.Now()
	both.embedded.now = func() time.Time { return clock }
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		key := fmt.Sprint("model:", runs)
		ctx := context.Background()
		m := new(model)
		var deliveries []*modelDelivery
		owners := 0
		outcomes := []outcome{progress, success, late, late2, successOther, failed, failedOther}

		ask := func(d *modelDelivery) {
			fromRedis, err := both.redis.claim(ctx, d.claim)
			if err != nil {
				rt.Fatal(err)
			}
			fromBolt, err := both.embedded.claim(ctx, d.claim)
			if err != nil {
				rt.Fatal(err)
			}
			want := m.ask(d.outcome, d.owner, d.claim.forwardConflict, d.claim.hold)
			d.redisEnd, d.boltEnd = fromRedis.leaseEnd, fromBolt.leaseEnd
			for store, got := range map[string]decision{"redis": fromRedis, "embedded": fromBolt} {
				got.leaseEnd, got.wait = 0, 0
				if got != want {
					rt.Fatalf("%s decides %+v, the model %+v", store, got, want)
				}
			}
			if want.verdict == verdictForwarded && !d.madeBefore {
				d.madeBefore = true
				deliveries = append(deliveries, d)
			}
		}
		settle := func(d *modelDelivery, verdict settleVerdict, code int) {
			o := d.outcome
			o.code = code
			for store, end := range map[recordStore]int64{both.redis: d.redisEnd, both.embedded: d.boltEnd} {
				err := store.settle(ctx, &settlement{
					key: key, owner: d.owner, leaseEnd: end, retention: 100 * time.Hour, verdict: verdict, outcome: o,
				})
				if err != nil {
					rt.Fatal(err)
				}
			}
			m.answer(o, d.owner, verdict, d.late)
		}
		pick := func(rt *rapid.T) *modelDelivery {
			if len(deliveries) == 0 {
				rt.Skip("nothing was delivered yet")
			}
			return rapid.SampledFrom(deliveries).Draw(rt, "delivery")
		}
		verdicts := rapid.SampledFrom([]settleVerdict{settleAccepted, settleAccepted, settleReleased, settleUnsent})

		rt.Repeat(map[string]func(*rapid.T){
			"claim": func(rt *rapid.T) {
				o := rapid.SampledFrom(outcomes).Draw(rt, "outcome")
				owners++
				who := testOwner(fmt.Sprint(owners))
				ask(&modelDelivery{outcome: o, owner: who, claim: &claimRequest{
					key: key, outcome: o, owner: who, lease: 40 * time.Hour, retention: 100 * time.Hour,
					forwardConflict: rapid.Bool().Draw(rt, "forward"), hold: rapid.Bool().Draw(rt, "hold"),
				}})
			},
			"the latest claim again, its answer was lost": func(rt *rapid.T) {
				d := pick(rt)
				if m.claim == nil || m.claim.owner != d.owner {
					rt.Skip("only a live delivery asks again")
				}
				ask(d)
			},
			"settle": func(rt *rapid.T) {
				d := pick(rt)
				if d.settled {
					rt.Skip("a delivery is settled once")
				}
				d.settled = true
				d.settlement = &settlement{verdict: verdicts.Draw(rt, "verdict"), outcome: outcome{code: rapid.IntRange(200, 299).Draw(rt, "code")}}
				settle(d, d.settlement.verdict, d.settlement.outcome.code)
			},
			"settle again, the answer was lost": func(rt *rapid.T) {
				if d := pick(rt); d.settled {
					settle(d, d.settlement.verdict, d.settlement.outcome.code)
				}
			},
			"an operator": func(rt *rapid.T) {
				what := rapid.SampledFrom([]operation{operationAccept, operationRelease, operationForget}).Draw(rt, "operation")
				evenAccepted := rapid.Bool().Draw(rt, "even accepted")
				want := m.operate(what, evenAccepted)
				for _, store := range []recordStore{both.redis, both.embedded} {
					_, err := store.change(ctx, key, 100*time.Hour, func(r *record, now int64) error {
						return r.operate(what, evenAccepted, now)
					})
					if got := told(err); got != want {
						rt.Fatalf("%s: an operator who wants to %s is told %q, the model says %q", store, what, got, want)
					}
				}
			},
			"": func(rt *rapid.T) { // after every step
				hold := rapid.Bool().Draw(rt, "the operator sees hold")
				for _, store := range []recordStore{both.redis, both.embedded} {
					shot, err := store.read(ctx, key)
					if err != nil {
						rt.Fatal(err)
					}
					if got, want := shot.state(hold), m.state(hold); got != want {
						rt.Fatalf("%s: the state is %s, the model says %s", store, got, want)
					}
				}
				inRedis, _ := both.redisRecord(key)
				inFile, _ := embeddedRecord(t, both.embedded, key)
				if !bytes.Equal(masked(inRedis), masked(inFile)) {
					rt.Fatalf("the stores differ:\nredis    % x\nembedded % x", inRedis, inFile)
				}
			},
			"the lease ends": func(rt *rapid.T) {
				if m.claim == nil || m.claim.over {
					rt.Skip("no lease")
				}
				m.claim.over = true
				for _, d := range deliveries {
					d.late = true
				}
				endLease(rt, both.client, key, deliveries)
				clock = clock.Add(41 * time.Hour) // still within the retention
			},
		})
	})
}

// endLease lets the lease in Redis end, whose clock cannot be set: the record's
// lease and what its deliveries know of it are moved to the past.
func endLease(t *rapid.T, client *redis.Client, key string, deliveries []*modelDelivery) {
	ctx := context.Background()
	b, err := client.Get(ctx, key).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	r, err := decodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	r.claim.end = 1
	if err := client.Set(ctx, key, r.encode(), redis.KeepTTL).Err(); err != nil {
		t.Fatal(err)
	}
	for _, d := range deliveries {
		d.redisEnd = 1
	}
}
