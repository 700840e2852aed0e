// Package record is what is remembered of one order, and its rules: which callback
// is delivered, which one is answered from memory, and how the app's answer settles a
// delivery. It is pure: the time comes from the store, and the bytes go there.
package record

import (
	"math"
	"time"
)

// Status is what a callback says of its order.
type Status byte

// The statuses.
const (
	Process Status = 0 // under way
	Success Status = 1
	Failed  Status = 2
)

// Digit is the status as IAK writes it.
func (s Status) Digit() string { return string('0' + rune(s)) }

// String is the word that body flat, logs and placeholders use. It panics for
// another status than the three.
func (s Status) String() string {
	return [...]string{"process", "success", "failed"}[s]
}

// Outcome is what a callback tells of its order. Fixed and Goods are digests:
// equal ones are equal news.
type Outcome struct {
	Status Status
	Code   int     // the app's status code, in an accepted outcome
	Fixed  [8]byte // of tr_id, product, customer, price, rc
	Goods  [8]byte // of sn, pin, activation_code; zero when all three are empty

	// How it was delivered, in a claim or in doubt. What is delivered again keeps it,
	// and so its Idempotency-Key.
	LateGoods   bool   // the app was told of the success before, without its goods
	Contradicts Status // what the app was told before, Success or Failed; Process for no conflict
}

// Same tells whether both outcomes are the same news: for Process whatever the
// goods are, since nothing was delivered yet.
func (o Outcome) Same(p Outcome) bool {
	return o.Status == p.Status && (o.Status == Process || o.Fixed == p.Fixed && o.Goods == p.Goods)
}

// lateGoods tells whether later brings the goods that the success o still lacked.
func (o Outcome) lateGoods(later Outcome) bool {
	return o.Status == Success && later.Status == Success && o.Fixed == later.Fixed &&
		o.Goods == [8]byte{} && later.Goods != [8]byte{}
}

// Covers tells whether whoever knows o learns nothing from p: the same news, or
// an older form of a success, still without its goods.
func (o Outcome) Covers(p Outcome) bool { return o.Same(p) || p.lateGoods(o) }

// alike tells whether one of both covers the other.
func (o Outcome) alike(p Outcome) bool { return o.Covers(p) || p.Covers(o) }

// Owner is the random token of one delivery. Only the delivery that holds it
// can release its claim.
type Owner [16]byte

// Record is what is remembered of one order. The zero Record says no more than
// none would.
type Record struct {
	Attempt  int      // deliveries since the last accepted outcome
	Accepted *Outcome // the outcome that the app accepted last
	Assumed  bool     // the app never said so: on_doubt accept
	Doubt    *Outcome // the outcome of a claim whose lease ended unsettled, 1 or 2
	Claim    *Claim   // the delivery under way, or whose lease is over
	Kept     *Kept    // the callback that the app has not accepted yet, with a spool

	// Changed is when the record changed last, by the store's clock in milliseconds
	// of Unix time. It is kept in seconds; while there is a claim, since when that is.
	Changed int64
}

// Claim is one delivery's hold on a record.
type Claim struct {
	Outcome
	Owner Owner
	Lease time.Duration // how long it may last, kept in milliseconds

	// End is when the lease is over, by the store's clock in milliseconds of Unix
	// time; 0 in a claim that the store has yet to make.
	End int64

	// Asking says that IAK is asked first, and that nothing was handed to the app. It is
	// taken back by Hand.
	Asking bool

	// UnderWay says that the delivery is one of this process, and not over by a clock
	// that nobody sets. It is not among the record's bytes.
	UnderWay bool
}

// Request asks for the record of one callback.
type Request struct {
	Outcome         Outcome
	Owner           Owner
	Lease           time.Duration // how long the delivery may take
	ForwardConflict bool          // on_conflict forward
	Hold            bool          // on_doubt hold
	Ask             Ask           // about what IAK is to be asked
	Confirmed       bool          // it was asked, and says the same

	// With a spool:
	Keep  *string       // the callback as it came; nil when nothing more can be kept
	Came  int64         // when, by the Caddy's own clock, in milliseconds of Unix time
	Later bool          // it is kept, and not delivered now
	Delay time.Duration // when then
}

// Verdict is what a request comes to, named as the outcome that is logged.
type Verdict string

// The verdicts.
const (
	Forwarded Verdict = "forwarded"
	InFlight  Verdict = "in_flight"
	Duplicate Verdict = "duplicate"
	Stale     Verdict = "stale"
	Held      Verdict = "held"
	Conflict  Verdict = "conflict"
	Spooled   Verdict = "spooled" // it is kept, and delivered later

	// AskFirst: it would take the place of a final outcome that waits for the app, so IAK
	// has to be asked before. Nothing has changed; the request is made again, Confirmed.
	AskFirst Verdict = "ask_first"
)

// Decision is the answer to a request.
type Decision struct {
	Verdict Verdict

	// Changed: the record is not as it was, though nothing was claimed.
	Changed bool

	// Attempt counts the deliveries since the last accepted outcome (Forwarded).
	Attempt int

	// Wait is what is left of the other delivery's lease (InFlight).
	Wait time.Duration

	// Other: this is a final outcome, and the delivery under way is of another, so
	// that it is lost unless IAK sends it again (InFlight).
	Other bool

	// LateGoods: the callback brings the goods of a success that the app was told of
	// without (Forwarded).
	LateGoods bool

	// Contradicts is the status that the app was told before, or may have been
	// told (Forwarded with ForwardConflict, Conflict); -1 when there is none.
	Contradicts int

	// Code is the app's status code of then (Duplicate, Stale).
	Code int

	// Kept: a callback is kept, this one or one of the same order (Held).
	Kept bool

	// Asking: IAK has to be asked before the app gets it (Forwarded). Confirmed: it was.
	Asking, Confirmed bool

	// Refused: if IAK confirms it, it is a reversal that on_conflict keeps from the app
	// (Forwarded with Asking).
	Refused bool
}

// Decide applies a request to the record at the time now, in milliseconds of
// Unix time. The record is changed only if the verdict is Forwarded, when the new
// claim's End is for the store to set, or if the decision says Changed.
func (r *Record) Decide(q *Request, now int64) Decision {
	if r.Claim != nil && r.Claim.Owner == q.Owner {
		return r.granted(q.Outcome, q.ForwardConflict) // carried out before; its answer was lost
	}
	if a := r.Accepted; a != nil {
		switch {
		case a.Covers(q.Outcome):
			return Decision{Verdict: Duplicate, Code: a.Code, Contradicts: -1}
		case q.Outcome.Status == Process: // late news: accepted with 1 or 2
			return Decision{Verdict: Stale, Code: a.Code, Contradicts: -1}
		}
	}
	if d, decided := r.decideWaiting(q, now); decided {
		return d
	}
	doubt := r.Doubtful()
	if doubt != nil && q.Outcome.Status == Process { // late news
		return Decision{Verdict: Stale, Code: 200, Contradicts: -1}
	}
	against := r.contradicts(doubt, q.Outcome)
	if against != Process && !q.ForwardConflict && !q.asks() && (doubt == nil || !doubt.alike(q.Outcome)) {
		return Decision{Verdict: Conflict, Contradicts: int(against)}
	}
	// With on_conflict forward an outcome can be in doubt behind a newer one.
	if q.Hold && doubt != nil && (doubt.alike(q.Outcome) || r.Doubt != nil && r.Doubt.alike(q.Outcome)) {
		d := Decision{Verdict: Held, Contradicts: -1}
		if q.Keep != nil && r.Kept == nil { // in doubt from before there was a spool
			r.fold()
			r.Kept = q.kept(Never)
			r.Changed, d.Changed = now, true
		}
		d.Kept = r.Kept != nil
		return d
	}
	if q.Keep != nil && q.Later {
		r.fold()
		r.Kept = q.kept(now + q.Delay.Milliseconds())
		r.Kept.Contradicts, r.Changed = against, now
		return Decision{Verdict: Spooled, Changed: true, Contradicts: -1}
	}
	o := q.Outcome
	if k := r.Kept; k != nil && !k.newer(o) && !r.overruled(q, false) {
		o.Contradicts = k.Status
	}
	if q.Keep != nil {
		r.Kept = q.kept(Never)
	}
	d := r.claim(o, q.Owner, q.Lease, q.ask(), q.ForwardConflict)
	d.Confirmed = q.Confirmed
	return d
}

// claim takes the record for the delivery of an outcome. No lease may be alive.
func (r *Record) claim(o Outcome, owner Owner, lease time.Duration, ask Ask, forwardConflict bool) Decision {
	r.unask()
	doubt := r.Doubtful()
	against := r.contradicts(doubt, o)
	if against == Process {
		against = o.Contradicts
	}
	claim := &Claim{Outcome: o, Owner: owner, Lease: lease}
	claim.LateGoods = r.Accepted != nil && r.Accepted.lateGoods(o)
	claim.Contradicts = against
	if doubt != nil && doubt.alike(o) {
		claim.LateGoods = claim.LateGoods || doubt.LateGoods || doubt.lateGoods(o)
		if against == Process {
			claim.Contradicts = doubt.Contradicts
		}
		if o.lateGoods(*doubt) {
			claim.Goods = doubt.Goods // they stay known
		}
	}
	claim.Asking = o.Status != Process && (ask == AskFinal || ask == AskConflict && claim.Contradicts != Process)
	r.Doubt, r.Claim = doubt, claim
	r.Attempt = min(r.Attempt+1, math.MaxUint16)
	return r.granted(o, forwardConflict)
}

// inFlight tells whether the record is claimed and the lease alive. A lease that
// ends later than it can if it began now is over: the clock was set back.
func (r *Record) inFlight(now int64) bool {
	c := r.Claim
	return c != nil && (c.UnderWay || now < c.End && c.End-now <= c.Lease.Milliseconds())
}

// Doubtful is the outcome of which it is not known whether the app has acted on
// it, 1 or 2, when no lease is alive; nil when there is none.
func (r *Record) Doubtful() *Outcome {
	doubt := r.Doubt
	if r.Claim != nil && r.Claim.Status != Process && !r.Claim.Asking { // the lease is over
		doubt = &r.Claim.Outcome
	}
	if doubt != nil && r.Accepted != nil && r.Accepted.Covers(*doubt) {
		return nil // another delivery's fact has settled it
	}
	return doubt
}

func (r *Record) granted(o Outcome, forwardConflict bool) Decision {
	d := Decision{Verdict: Forwarded, Attempt: r.Attempt, Contradicts: -1, Asking: r.Claim.Asking}
	d.Refused = r.Claim.Asking && r.Claim.Contradicts != Process && !forwardConflict
	d.LateGoods = r.Claim.LateGoods && o.Goods != [8]byte{}
	if r.Claim.Contradicts != Process {
		d.Contradicts = int(r.Claim.Contradicts)
	}
	return d
}

// contradicts returns the final status that the app accepted, or may have, and
// that o is at odds with; Process when there is none.
func (r *Record) contradicts(doubt *Outcome, o Outcome) Status {
	if a := r.Accepted; a != nil && a.Status != Process && !a.alike(o) {
		return a.Status
	}
	if doubt != nil && !doubt.alike(o) {
		return doubt.Status
	}
	return Process
}

// Empty tells that the record says no more than none would.
func (r *Record) Empty() bool {
	return r.Attempt == 0 && r.Accepted == nil && r.Doubt == nil && r.Claim == nil && r.Kept == nil
}

// Key is the record's key: the ref_id comes last and may hold anything, the
// account's name holds no colon, so no two orders share a key.
func Key(prefix, account, refID string) string {
	return prefix + account + ":" + refID
}
