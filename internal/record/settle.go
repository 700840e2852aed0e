package record

import "time"

// Ending is how what became of a delivery ends its claim.
type Ending string

const (
	// Accepted says that the app answered 2xx. This is a fact; it is recorded even when
	// another delivery has taken the record over.
	Accepted Ending = "accepted"

	// Assumed says that the app did not answer, and is taken to have accepted.
	Assumed Ending = "assumed"

	// Released says that the app refused. The record is as before the claim, with the
	// attempt counted.
	Released Ending = "released"

	// Unsent says that nothing reached the app. As Released, the attempt not counted.
	Unsent Ending = "unsent"

	// NotConfirmed says that IAK could not say yet whether it says the same. As Unsent.
	NotConfirmed Ending = "not_confirmed"

	// Denied says that nothing is delivered: IAK says another thing, or confirms what
	// on_conflict keeps from the app. As Unsent, and nothing of it is kept.
	Denied Ending = "denied"

	// Lapsed says that nobody has told what became of it until its lease was over: the
	// app did not answer, or its Caddy died. No delivery ends its claim so.
	Lapsed Ending = "lapsed"
)

// Settlement ends the claim of one delivery.
type Settlement struct {
	Owner   Owner
	End     int64 // of the claim
	Ending  Ending
	Outcome Outcome // with the app's status code

	// Of a delivery of what is kept, which the app has not accepted:
	Pause    time.Duration // until the next
	Took     time.Duration // what it took
	Panicked bool          // a handler behind did, before the app answered
}

// Settle applies a settlement to the record at the time now, in milliseconds of
// Unix time, and tells whether the record has changed.
func (r *Record) Settle(s *Settlement, now int64) (changed bool) {
	own := r.Claim != nil && r.Claim.Owner == s.Owner
	accepted := s.Ending == Accepted || s.Ending == Assumed
	switch {
	case accepted && own:
		claimed := r.Claim.Outcome
		r.Claim, r.Doubt = nil, nil
		if !s.Outcome.Covers(claimed) && (r.Accepted == nil || !r.Accepted.Covers(claimed)) {
			r.Doubt = &claimed // accepted without the goods of an earlier delivery
		}
	case accepted:
		// another delivery has taken over, or this settlement was carried out before
		if !r.takesFact(s, now) {
			return false
		}
		if r.Doubt != nil && s.Outcome.Covers(*r.Doubt) {
			r.Doubt = nil
		}
	case own:
		if s.Ending == Denied && r.Kept != nil && r.Claim.Covers(r.Kept.Outcome) {
			r.Kept = nil
		}
		if r.Kept != nil {
			r.Kept.ended(r.Claim.Outcome, s, now)
		}
		r.Claim, r.Changed = nil, now
		if s.Ending != Released {
			r.Attempt = max(r.Attempt-1, 0)
		}
		return true
	default:
		return false
	}
	r.Changed = now
	if a := r.Accepted; a == nil || a.Same(s.Outcome) || !a.Covers(s.Outcome) && (a.Status == Process || s.Outcome.Status != Process) {
		outcome := s.Outcome // Process never replaces Success or Failed
		r.Accepted, r.Assumed = &outcome, s.Ending == Assumed
	}
	if r.Claim == nil && r.Doubt == nil { // else a later delivery counts on
		r.Attempt = 0
	}
	r.drop()
	if own && r.Kept != nil {
		r.Kept.behind()
	}
	return true
}

// takesFact tells whether an accepted outcome without its claim is recorded.
// Process never replaces Success or Failed. A final outcome that stands there is
// replaced only by one that is still in doubt: else it is this very settlement,
// repeated because its answer was lost, or the app has accepted something newer
// since, such as the goods of this success, which must not be delivered again.
func (r *Record) takesFact(s *Settlement, now int64) bool {
	a := r.Accepted
	if a == nil {
		return true
	}
	if s.Ending == Assumed && a.Same(s.Outcome) {
		return false // the app has said so itself
	}
	if s.Outcome.Status == Process {
		return a.Status == Process
	}
	if a.Covers(s.Outcome) && !a.Same(s.Outcome) {
		return false // the goods have come meanwhile
	}
	return a.Status == Process || now >= s.End && r.Doubt != nil && r.Doubt.Covers(s.Outcome)
}
