package record

import (
	"errors"
	"fmt"
	"time"
)

// State is what a record comes to, as an operator sees it.
type State string

// The states.
const (
	StateInFlight State = "in_flight" // a delivery waits for the app
	StateInDoubt  State = "in_doubt"  // nobody knows whether the app has acted; delivered again when IAK sends again
	StateHeld     State = "held"      // the same, and kept from the app until an operator settles it
	StateAccepted State = "accepted"  // the app has accepted an outcome
	StateAssumed  State = "assumed"   // the same, though it never said so (on_doubt accept)
	StateSpooled  State = "spooled"   // a callback is kept, and delivered again by itself
	StateDead     State = "dead"      // one is kept, and waits for an operator: it was tried for too long
	StateReleased State = "released"  // the app has accepted none; the next callback is delivered

	StateForgotten State = "forgotten" // there is no record, or none any more
)

// States are those of a record that is there.
var States = []State{StateInFlight, StateInDoubt, StateHeld, StateAccepted, StateAssumed, StateReleased, StateSpooled, StateDead}

// Snapshot is a record as it was at one moment. Its times are the store's, in
// milliseconds of Unix time.
type Snapshot struct {
	*Record
	Now     int64
	Expires int64 // 0 without a record
}

// State names what the record comes to. With hold, what is in doubt is held.
func (s Snapshot) State(hold bool) State {
	switch {
	case s.Empty():
		return StateForgotten
	case s.InFlight():
		return StateInFlight
	case s.Kept != nil && s.Kept.Dead:
		return StateDead
	case s.Doubtful() != nil && s.held(hold):
		return StateHeld
	case s.Kept != nil:
		return StateSpooled
	case s.Doubtful() != nil:
		return StateInDoubt
	case s.Accepted != nil && s.Assumed:
		return StateAssumed
	case s.Accepted != nil:
		return StateAccepted
	default:
		return StateReleased
	}
}

// InFlight tells whether a delivery is under way.
func (s Snapshot) InFlight() bool { return s.inFlight(s.Now) }

// Operation is what an operator does to one record.
type Operation string

// The operations.
const (
	OperationAccept  Operation = "accept"
	OperationRelease Operation = "release"
	OperationForget  Operation = "forget"

	// OperationRedeliver makes what is kept due now; what is in doubt is released.
	OperationRedeliver Operation = "redeliver"
)

// NotDoneError is an operation that the record does not allow.
type NotDoneError struct{ why string }

func (e NotDoneError) Error() string { return e.why }

var (
	// ErrNone is an operation on a record that is not there.
	ErrNone = errors.New("there is no record of this ref_id: no callback of it came with a right signature, or IAK denied it, or it was forgotten, or has expired; caddy iak-callback tail --ref-id shows what came lately")

	// ErrForgetsKept is OperationForget without evenAccepted on a callback that is kept.
	ErrForgetsKept = NotDoneError{"a callback is kept that the app has not accepted: if it is forgotten, it is lost unless IAK sends it again"}

	// ErrForgetsAccepted is OperationForget without evenAccepted on what the app has accepted.
	ErrForgetsAccepted = NotDoneError{"the app has accepted this ref_id: if it is forgotten, a repeat of the callback reaches the app again as new"}
)

// Operate applies an operation to the record at the time now, in milliseconds of
// Unix time; came is the same by the clock of this Caddy, from which a new max_age
// counts. One that is refused, with ErrNone or a NotDoneError, leaves the
// record as it is.
func (r *Record) Operate(what Operation, evenAccepted bool, now, came int64) error {
	doubt := r.Doubtful()
	switch {
	case r.Empty():
		return ErrNone
	case r.inFlight(now):
		return NotDoneError{fmt.Sprintf("a delivery is under way and may last until %s: wait until it has ended",
			time.UnixMilli(r.Claim.End).Format("2006-01-02 15:04:05 -07:00"))}
	case what == OperationForget && r.Accepted != nil && !evenAccepted:
		return ErrForgetsAccepted
	case what == OperationForget && r.Kept != nil && !evenAccepted:
		return ErrForgetsKept
	case what == OperationForget:
		*r = Record{}
	case what == OperationRedeliver && r.Kept == nil:
		return NotDoneError{"no callback is kept: there is nothing to deliver; after a release the next one that comes is delivered"}
	case what == OperationRedeliver:
		r.fold() // its end is one of the tries
		r.Doubt = nil
		r.Kept.anew(came, now)
	case doubt == nil:
		return NotDoneError{"nothing is in doubt: there is nothing to settle"}
	case what == OperationAccept:
		kept := r.Kept
		*r = Record{Accepted: &Outcome{Status: doubt.Status, Code: 200, Fixed: doubt.Fixed, Goods: doubt.Goods}, Kept: kept}
		if r.drop(); r.Kept != nil {
			r.Kept.anew(r.Kept.Came, now)
		}
	case what == OperationRelease:
		r.fold()
		r.Doubt = nil
		if r.Kept != nil { // it is delivered at once, however long it was held
			r.Kept.anew(came, now)
		}
	}
	r.Changed = now
	return nil
}

// Forever is the life of what waits for an operator: longer than anybody waits, and
// a time that every engine can keep.
const Forever = 100 * 365 * 24 * time.Hour

// Life is how long a record is kept after a change. One that holds a callback is
// kept until that is accepted; with hold, one that waits for an operator, or will when
// its lease is over, until he has settled it.
func (r *Record) Life(retention time.Duration, hold bool) time.Duration {
	if r.Kept != nil || hold && r.Doubtful() != nil {
		return Forever
	}
	return retention
}
