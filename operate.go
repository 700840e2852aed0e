package iakcallback

import (
	"errors"
	"fmt"
	"time"
)

// The states of a record, as an operator sees them.
const (
	stateInFlight = "in_flight" // a delivery waits for the app
	stateInDoubt  = "in_doubt"  // nobody knows whether the app has acted; delivered again when IAK sends again
	stateHeld     = "held"      // the same, and kept from the app until an operator settles it
	stateAccepted = "accepted"  // the app has accepted an outcome
	stateReleased = "released"  // the app has accepted none; the next callback is delivered

	stateForgotten = "forgotten" // there is no record, or none any more
)

var recordStates = []string{stateInFlight, stateInDoubt, stateHeld, stateAccepted, stateReleased}

// snapshot is a record as it was at one moment, by the store's clock in
// milliseconds of Unix time.
type snapshot struct {
	record  *record
	now     int64
	expires int64
}

// state names what the record comes to. With hold, what is in doubt is held.
func (s snapshot) state(hold bool) string {
	switch r := s.record; {
	case r.empty():
		return stateForgotten
	case r.inFlight(s.now):
		return stateInFlight
	case r.doubtful() != nil && hold:
		return stateHeld
	case r.doubtful() != nil:
		return stateInDoubt
	case r.accepted != nil:
		return stateAccepted
	default:
		return stateReleased
	}
}

// inFlight tells whether the record is claimed and the lease alive.
func (r *record) inFlight(now int64) bool { return r.claim != nil && now < r.claim.end }

// operation is what an operator does to one record.
type operation string

const (
	operationAccept  operation = "accept"
	operationRelease operation = "release"
	operationForget  operation = "forget"
)

// errNotDone is an operation that the record does not allow.
type errNotDone struct{ why string }

func (e errNotDone) Error() string { return e.why }

var errNoRecord = errors.New("there is no record of this ref_id: it never came with a right signature, was forgotten, or has expired")

var errForgetsAccepted = errNotDone{"the app has accepted this ref_id: if it is forgotten, a repeat of the callback reaches the app again as new"}

// operate applies an operation to the record at the time now. One that is
// refused leaves the record as it is.
func (r *record) operate(what operation, evenAccepted bool, now int64) error {
	doubt := r.doubtful()
	switch {
	case r.empty():
		return errNoRecord
	case r.inFlight(now):
		return errNotDone{fmt.Sprintf("a delivery is under way and may last until %s: wait until it has ended",
			time.UnixMilli(r.claim.end).Format(time.TimeOnly))}
	case what == operationForget && r.accepted != nil && !evenAccepted:
		return errForgetsAccepted
	case what == operationForget:
		*r = record{}
	case doubt == nil:
		return errNotDone{"nothing is in doubt: there is nothing to settle"}
	case what == operationAccept:
		accepted := *doubt
		accepted.code = 200
		r.accepted, r.doubt, r.claim, r.attempt = &accepted, nil, nil, 0
	case what == operationRelease:
		r.doubt, r.claim = nil, nil
	}
	return nil
}
