package record

import (
	"math"
	"time"
)

// Kept is a callback that is kept until the app has accepted it, in the record's own
// value. Either it is what the claim delivers, or it waits behind the claim.
type Kept struct {
	Outcome
	Payload string // as it came, for whoever delivers it
	Came    int64  // when it came first, by the clock of the Caddy that took it, in milliseconds of Unix time
	Due     int64  // when it is delivered next, by the store's clock; Never while it waits for an operator; 0: see Wait
	Pauses  int    // that were made since it came, or was to begin anew
	Panics  int    // of the handlers behind, in a row
	Dead    bool   // it is not delivered any more by itself
	Tries   []Try  // the last ten, the latest last

	Confirmed bool // IAK says the same

	// Wait is how long to wait until it is delivered next, with Due 0, which is for the
	// store to set: whoever settles a delivery has not asked for the time since the claim.
	Wait time.Duration
}

// Try is one delivery of what is kept, as it ended.
type Try struct {
	At     int64 // by the store's clock, in milliseconds of Unix time; kept in seconds
	Ending Ending
	Status int           // what the app answered, 0 if nothing
	Took   time.Duration // kept in milliseconds
}

const (
	atOnce    = -time.Millisecond // since 0 would be none
	maxTries  = 10
	maxPanics = 3 // in a row; then it is dead

	// Never is a time at which nothing is due: 140,000 years from now, and a whole number in
	// floating point too, as in Redis.
	Never = 1 << 52
)

// News is what an outcome tells, without how it is delivered.
func (o Outcome) News() Outcome {
	return Outcome{Status: o.Status, Fixed: o.Fixed, Goods: o.Goods}
}

// anew makes the tries begin anew.
func (k *Kept) anew(came, due int64) {
	k.Came, k.Due, k.Pauses, k.Panics, k.Dead = came, due, 0, 0, false
}

// behind begins with what has waited behind a delivery that has ended now.
func (k *Kept) behind() {
	k.anew(k.Came, 0)
	k.Wait = atOnce
}

// again is for the same callback, which came again: what is kept is delivered now, but
// not before its delay is over. No lease may be alive.
func (r *Record) again(q *Request, now int64) (changed bool) {
	k := r.Kept
	switch {
	case k.Dead:
		k.anew(q.Came, now)
	case r.Claim != nil, k.Pauses > 0 && k.Due > now:
		k.Due = now
	default: // before its delay, or due
		return false
	}
	r.fold()
	r.Changed = now
	return true
}

// waiting is the newest outcome that the app is still to accept: what is kept, or
// else what is being delivered; nil without.
func (r *Record) waiting(live bool) *Outcome {
	switch {
	case r.Kept != nil:
		return &r.Kept.Outcome
	case live:
		return &r.Claim.Outcome
	default:
		return nil
	}
}

// newer tells whether later, of the same order, follows o: a final status after
// Process, or the goods of a success.
func (o Outcome) newer(later Outcome) bool {
	return o.Status == Process && later.Status != Process || o.lateGoods(later)
}

// decideWaiting answers a callback that meets one which waits for the app, and tells
// whether it has: else it may be claimed.
func (r *Record) decideWaiting(q *Request, now int64) (d Decision, decided bool) {
	d.Contradicts = -1
	live := r.inFlight(now)
	there := r.waiting(live)
	switch {
	case there == nil:
		return d, false
	case r.Kept == nil && (q.Keep == nil || there.Covers(q.Outcome)): // nobody keeps it: its sender waits for the app
		return r.meetsDelivery(q, now), true
	case there.Covers(q.Outcome):
		d.Verdict = Spooled
		if !live && r.held(q.Hold) {
			d.Verdict, d.Kept = Held, true
		} else if !live {
			d.Changed = r.again(q, now)
		}
	case q.Outcome.Status == Process: // late news
		d.Verdict, d.Code = Stale, 200
	case q.asks() && there.Status != Process && (q.Ask == AskFinal || !there.newer(q.Outcome)):
		d.Verdict, d.Contradicts = AskFirst, int(there.Status)
	case !there.newer(q.Outcome) && !q.ForwardConflict && !r.overruled(q, live):
		d.Verdict, d.Contradicts = Conflict, int(there.Status)
	case !live:
		return d, false
	case q.Keep == nil:
		return r.meetsDelivery(q, now), true
	default: // it waits behind the delivery under way
		kept := q.kept(Never) // until that has ended
		if !there.newer(q.Outcome) && !r.overruled(q, live) {
			kept.Contradicts = there.Status
		}
		r.Kept = kept
		d.Verdict, d.Changed = Spooled, true
	}
	return d, true
}

// kept is what a request wants to be kept.
func (q *Request) kept(due int64) *Kept {
	return &Kept{Outcome: q.Outcome, Payload: *q.Keep, Came: q.Came, Due: due, Confirmed: q.Confirmed}
}

// held tells whether what is kept waits for an operator. No lease may be alive.
func (r *Record) held(hold bool) bool {
	doubt := r.Doubtful()
	return hold && doubt != nil && (r.Kept == nil || doubt.alike(r.Kept.Outcome))
}

// fold makes a doubt of a claim whose lease is over: the record's last bytes tell when
// what is kept is due then.
func (r *Record) fold() {
	r.unask()
	if c := r.Claim; c != nil && r.Kept != nil && c.Covers(r.Kept.Outcome) {
		r.Kept.tried(Try{At: c.End, Ending: Lapsed, Took: c.Lease})
		r.Kept.Panics = 0
	}
	r.Doubt, r.Claim = r.Doubtful(), nil
}

// meetsDelivery is the answer to a callback whose sender has to wait for another
// delivery.
func (r *Record) meetsDelivery(q *Request, now int64) Decision {
	return Decision{
		Verdict: InFlight, Wait: time.Duration(r.Claim.End-now) * time.Millisecond, Contradicts: -1,
		Other: q.Outcome.Status != Process && !r.Claim.Covers(q.Outcome),
	}
}

// Redelivery asks to deliver what is kept.
type Redelivery struct {
	Owner  Owner
	Lease  time.Duration
	Hold   bool  // on_doubt hold
	Assume bool  // on_doubt accept
	Oldest int64 // what came before it is too old, by the same clock as Kept.Came

	Ask             Ask  // about what IAK is to be asked, unless it has confirmed it before
	ForwardConflict bool // on_conflict forward

	// Longest is the longest that anything has to wait: what is due later than that from
	// now is due, since the clock was set back.
	Longest time.Duration
}

// The verdicts of a redelivery, beside Forwarded, InFlight and Held.
const (
	Nothing Verdict = "nothing" // nothing is kept
	NotDue  Verdict = "not_due" // Wait says when it will be
	Died    Verdict = "dead"    // it is too old, or was dead before
	Settled Verdict = "assumed" // on_doubt accept has taken it for accepted
)

// Redeliver claims what is kept if it is due at the time now. What came into doubt is
// settled as on_doubt says.
func (r *Record) Redeliver(q *Redelivery, now int64) Decision {
	d := Decision{Contradicts: -1}
	switch {
	case r.Claim != nil && r.Claim.Owner == q.Owner:
		d = r.granted(r.Claim.Outcome, q.ForwardConflict) // carried out before; its answer was lost
		d.Confirmed = r.Kept != nil && r.Kept.Confirmed
		return d
	case r.Kept == nil:
		d.Verdict = Nothing
		return d
	case r.inFlight(now):
		d.Verdict, d.Wait = InFlight, time.Duration(r.Claim.End-now)*time.Millisecond
		return d
	}
	if r.Claim != nil { // its lease is over
		own := r.Claim.alike(r.Kept.Outcome)
		r.fold()
		d.Changed = true
		switch {
		case own && r.Doubt != nil && q.Assume:
			accepted := r.Kept.News()
			accepted.Code, r.Accepted = 200, &accepted
			r.Assumed, r.Doubt, r.Kept, r.Attempt, r.Changed = true, nil, nil, 0, now
			d.Verdict = Settled
			return d
		case own && r.Doubt != nil && q.Hold:
			r.Kept.Due = Never
		case !r.Kept.Dead:
			r.Kept.Due = now
		}
		r.Changed = now
	}
	switch {
	case r.held(q.Hold):
		d.Verdict = Held
	case r.Kept.Dead:
		d.Verdict = Died
	case r.Kept.Came < q.Oldest:
		r.Kept.Dead, r.Kept.Due, r.Changed = true, Never, now
		d.Verdict, d.Changed = Died, true
	case r.Kept.Due > now && r.Kept.Due <= now+q.Longest.Milliseconds():
		d.Verdict, d.Wait = NotDue, time.Duration(min(r.Kept.Due-now, math.MaxInt64/int64(time.Millisecond)))*time.Millisecond
	default:
		ask := q.Ask
		if r.Kept.Confirmed {
			ask = AskNothing
		}
		d = r.claim(r.Kept.Outcome, q.Owner, q.Lease, ask, q.ForwardConflict)
		d.Confirmed = r.Kept.Confirmed
	}
	return d
}

// ended notes how a delivery has ended which the app has not accepted, and when what is
// kept is due then.
func (k *Kept) ended(claimed Outcome, s *Settlement, now int64) {
	if !claimed.Covers(k.Outcome) { // it has waited behind that
		k.behind()
		return
	}
	k.tried(Try{At: now, Ending: s.Ending, Status: s.Outcome.Code, Took: s.Took})
	k.Pauses = min(k.Pauses+1, math.MaxUint8)
	k.Due, k.Wait = 0, s.Pause
	if s.Pause < time.Millisecond {
		k.Wait = atOnce
	}
	k.Panics++
	if !s.Panicked {
		k.Panics = 0
	}
	if k.Panics >= maxPanics {
		k.Dead, k.Due = true, Never
	}
}

func (k *Kept) tried(t Try) {
	k.Tries = append(k.Tries, t)
	k.Tries = k.Tries[max(len(k.Tries)-maxTries, 0):]
}

// drop drops what is kept when the app has accepted it, or newer news.
func (r *Record) drop() {
	if r.Kept != nil && r.Accepted != nil && (r.Accepted.Covers(r.Kept.Outcome) || r.Accepted.Status != Process && r.Kept.Status == Process) {
		r.Kept = nil
	}
}
