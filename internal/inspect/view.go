package inspect

import (
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
)

// view is a record as an operator sees it.
func view(n Namespace, s *store.Store, refID string, shot record.Snapshot) Record {
	v := Record{
		Account: n.Account, RefID: refID, State: shot.State(n.Hold), Attempt: shot.Attempt, Store: s.String(),
		Changed: time.UnixMilli(shot.Changed), Outage: n.Outage && !shot.Empty(),
	}
	switch left := time.Duration(shot.Expires-shot.Now) * time.Millisecond; {
	case shot.Empty(): // just forgotten
		v.Expires = v.Changed
	case left < record.Forever/2:
		v.Expires = time.UnixMilli(shot.Expires)
	}
	if shot.Accepted != nil {
		v.Accepted, v.Code = shot.Accepted.Status.String(), shot.Accepted.Code
	}
	if shot.InFlight() {
		end := time.UnixMilli(shot.Claim.End)
		v.InFlight, v.Until = shot.Claim.Status.String(), &end
	} else if doubt := shot.Doubtful(); doubt != nil {
		v.InDoubt = doubt.Status.String()
		if shot.Doubt != nil && !shot.Doubt.Same(*doubt) {
			v.InDoubtBefore = shot.Doubt.Status.String()
		}
	}
	if shot.Kept != nil {
		v.Kept = viewKept(shot, v.State)
		v.Kept.Unrouted = n.Unrouted != nil && n.Unrouted(s, n.key(refID))
	}
	return v
}

// viewKept is what is kept as an operator sees it: without what it says.
func viewKept(shot record.Snapshot, state record.State) *Kept {
	k := shot.Kept
	v := &Kept{Status: k.Status.String(), Came: time.UnixMilli(k.Came), Dead: k.Dead, Confirmed: k.Confirmed}
	due := k.Due
	if shot.Claim != nil { // its lease is over: it is looked at now
		due = shot.Claim.End
	}
	if state == record.StateSpooled && due < record.Never {
		at := time.UnixMilli(due)
		v.Due = &at
	}
	for _, t := range k.Tries {
		v.Tries = append(v.Tries, Try{Time: time.UnixMilli(t.At), Result: results[t.Ending], AppStatus: t.Status, Duration: t.Took.Seconds()})
	}
	return v
}

var results = map[record.Ending]string{record.Released: Refused, record.Unsent: Unsent, record.Lapsed: Unknown, record.NotConfirmed: NotConfirmed}
