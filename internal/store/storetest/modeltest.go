package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
	"go.uber.org/zap"
	"pgregory.net/rapid"
)

// clock shifts an engine's time, which cannot be set.
type clock struct {
	store.Engine
	ahead time.Duration
}

func (c *clock) Swap(s *store.Swap) (store.Found, error) {
	shifted := *s
	if s.Lease != 0 {
		if shifted.Lease += c.ahead; shifted.Lease == 0 { // which would be none
			shifted.Lease = -time.Millisecond
		}
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

// delivery is one claim that was asked for, by a callback that came or by a worker.
type delivery struct {
	request *record.Request
	again   *record.Redelivery // by a worker
	outcome record.Outcome     // what is delivered
	owner   record.Owner
	lease   *store.Lease  // when it was granted
	clock   time.Duration // when it was claimed
	ending  record.Ending // when it is settled
	code    int
	pause   time.Duration
	asking  bool // IAK, before the app gets it
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
		index := fmt.Sprint("model:", runs, ":")
		key := index + "order"
		place := store.Place{Key: key, Index: index, Retention: keep}
		engine.ahead = 0
		m := &model{since: since}
		var deliveries []*delivery
		owners := 0

		ask := func(d *delivery) {
			var lease *store.Lease
			var got, want record.Decision
			var err error
			if d.again != nil {
				if m.kept != nil && d.lease == nil {
					d.outcome = m.kept.outcome
					d.outcome.LateGoods, d.outcome.Contradicts = false, record.Process
				}
				lease, got, err = s.Redeliver(place, d.again)
				want = m.redeliver(d.again)
			} else {
				lease, got, err = s.Claim(place, d.request)
				want = m.ask(d.request)
			}
			if err != nil {
				rt.Fatal(err)
			}
			got.Wait = 0
			if got != want {
				rt.Fatalf("the decision is %+v, the model's %+v", got, want)
			}
			if want.Verdict == record.Forwarded {
				if d.lease == nil {
					d.asking = want.Asking
					d.clock = m.clock
					deliveries = append(deliveries, d)
				}
				d.lease = lease
			}
		}
		settle := func(d *delivery) {
			d.lease.Tried(time.Second, d.pause, false)
			d.lease.Settle(d.ending, d.code)
			o := d.outcome
			o.Code = d.code
			m.answer(o, d.owner, d.ending, m.clock > d.clock+modelLease, d.pause.Truncate(time.Millisecond))
		}
		pick := func(rt *rapid.T) *delivery {
			if len(deliveries) == 0 {
				rt.Skip("nothing was delivered yet")
			}
			return rapid.SampledFrom(deliveries).Draw(rt, "delivery")
		}
		endings := rapid.SampledFrom([]record.Ending{record.Accepted, record.Accepted, record.Released, record.Unsent})
		unasked := rapid.SampledFrom([]record.Ending{record.Unsent, record.NotConfirmed, record.Denied})
		asks := rapid.SampledFrom([]record.Ask{record.AskNothing, record.AskConflict, record.AskFinal})
		digests := rapid.SampledFrom([][8]byte{{}, {'S'}, {'T'}})

		rt.Repeat(map[string]func(*rapid.T){
			"claim": func(rt *rapid.T) {
				owners++
				q := &record.Request{
					Outcome: rapid.SampledFrom(outcomes).Draw(rt, "outcome"), Lease: modelLease,
					ForwardConflict: rapid.Bool().Draw(rt, "forward"), Hold: rapid.Bool().Draw(rt, "hold"),
					Came: m.since.Milliseconds(), Ask: asks.Draw(rt, "ask"),
				}
				q.Confirmed = q.Ask != record.AskNothing && rapid.Bool().Draw(rt, "confirmed")
				if rapid.Bool().Draw(rt, "keep") {
					payload := fmt.Sprint("callback ", owners)
					q.Keep = &payload
					if q.Later = rapid.Bool().Draw(rt, "later"); q.Later {
						q.Delay = rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(rt, "delay")
					}
				}
				copy(q.Owner[:], fmt.Sprint(owners))
				ask(&delivery{request: q, outcome: q.Outcome, owner: q.Owner})
			},
			"a worker": func(rt *rapid.T) {
				owners++
				q := &record.Redelivery{
					Lease: modelLease, Hold: rapid.Bool().Draw(rt, "hold"), Oldest: (m.since - modelMaxAge).Milliseconds(),
					Longest: modelLongest, Ask: asks.Draw(rt, "ask"), ForwardConflict: rapid.Bool().Draw(rt, "forward"),
				}
				q.Assume = !q.Hold && rapid.Bool().Draw(rt, "assume")
				copy(q.Owner[:], fmt.Sprint(owners))
				ask(&delivery{again: q, owner: q.Owner})
			},
			"the latest claim again, its answer was lost": func(rt *rapid.T) {
				d := pick(rt)
				if m.claim == nil || m.claim.owner != d.owner || m.since > m.claim.since {
					rt.Skip("only a live delivery asks again")
				}
				ask(d)
			},
			"IAK has answered": func(rt *rapid.T) {
				d := pick(rt)
				if !d.asking || d.ending != "" {
					rt.Skip("IAK is not asked")
				}
				goods := d.outcome.Goods
				if goods == [8]byte{} && d.outcome.Status == record.Success {
					goods = digests.Draw(rt, "goods")
				}
				payload := ""
				if goods != d.outcome.Goods {
					payload = "with goods"
				}
				confirmed := rapid.Bool().Draw(rt, "confirmed")
				err := d.lease.Hand(goods, payload, confirmed)
				if handed := m.hand(d.owner, goods, payload, confirmed); handed != (err == nil) {
					rt.Fatalf("%v, the model says that the claim is there: %t", err, handed)
				}
				if err == nil {
					d.asking, d.outcome.Goods = false, goods
				}
			},
			"settle": func(rt *rapid.T) {
				d, endings := pick(rt), endings
				if d.ending != "" {
					rt.Skip("a delivery is settled once")
				}
				if d.asking {
					endings = unasked
				}
				d.ending, d.code = endings.Draw(rt, "ending"), rapid.IntRange(200, 299).Draw(rt, "code")
				d.pause = rapid.SampledFrom([]time.Duration{0, 300 * time.Microsecond, time.Minute, 3 * time.Hour}).Draw(rt, "pause")
				settle(d)
			},
			"settle again, the answer was lost": func(rt *rapid.T) {
				if d := pick(rt); d.ending != "" {
					settle(d)
				}
			},
			"an operator": func(rt *rapid.T) {
				what := rapid.SampledFrom([]record.Operation{record.OperationAccept, record.OperationRelease, record.OperationForget, record.OperationRedeliver}).Draw(rt, "operation")
				evenAccepted := rapid.Bool().Draw(rt, "even accepted")
				want := m.operate(what, evenAccepted)
				_, err := s.Change(place, false, func(r *record.Record, now int64) error {
					return r.Operate(what, evenAccepted, now, m.since.Milliseconds())
				})
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
				kept, want := "", ""
				if shot.Kept != nil {
					kept = shot.Kept.Payload
				}
				if m.kept != nil {
					want = m.kept.payload
				}
				if kept != want {
					rt.Fatalf("%q is kept, the model says %q", kept, want)
				}
				hinted(rt, s, place, shot)
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

// hinted expects the index to name what is kept, and nothing else, with a time that is
// not later than that of the record.
func hinted(rt *rapid.T, s *store.Store, at store.Place, shot record.Snapshot) {
	page, err := s.Due(&store.DueQuery{Index: at.Index, Limit: 1000, All: true})
	if err != nil {
		rt.Fatal(err)
	}
	var found *store.Hint
	for i := range page.Hints {
		if page.Hints[i].Key == at.Key {
			found = &page.Hints[i]
		}
	}
	switch {
	case shot.Kept == nil: // a hint that is too much is dropped when it is looked at
	case found == nil:
		rt.Fatal("what is kept is not in the index")
	case shot.Claim != nil && found.At > shot.Claim.End, shot.Claim == nil && found.At > shot.Kept.Due:
		rt.Fatalf("the index has it at %d, the record is %+v, claim %+v, kept %+v", found.At, shot.Record, shot.Claim, shot.Kept)
	}
}
