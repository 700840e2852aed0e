package record

// Ask says about which outcomes IAK is asked before the app gets them.
type Ask byte

// What IAK can be asked about. Of what is under way it is asked nothing.
const (
	AskNothing  Ask = iota
	AskConflict     // what contradicts the record
	AskFinal        // each success and each failure
)

// ask is about what IAK is still to be asked.
func (q *Request) ask() Ask {
	if q.Confirmed {
		return AskNothing
	}
	return q.Ask
}

// asks tells whether IAK is asked about what contradicts the record.
func (q *Request) asks() bool { return q.ask() != AskNothing && q.Outcome.Status != Process }

// unask takes back a claim that has ended before anything was handed to the app. No
// lease may be alive.
func (r *Record) unask() {
	if r.Claim != nil && r.Claim.Asking {
		r.Claim, r.Attempt = nil, max(r.Attempt-1, 0)
	}
}

// Handed is what IAK has said of an outcome before the app gets it.
type Handed struct {
	Owner     Owner
	Goods     [8]byte // with those that only IAK's answer has
	Payload   string  // the callback with them, for what is kept; empty for no change
	Confirmed bool    // or nobody knows, and it is delivered all the same
}

// Hand notes that the app gets what was claimed: from now on the claim may come into
// doubt. It tells whether the claim is still there.
func (r *Record) Hand(h *Handed) (own bool) {
	c := r.Claim
	if c == nil || c.Owner != h.Owner {
		return false
	}
	own = true
	before := c.Outcome
	c.Asking, c.Goods = false, h.Goods
	if doubt := r.Doubt; h.Goods == [8]byte{} && doubt != nil && before.lateGoods(*doubt) {
		c.Goods = doubt.Goods // they stay known
	}
	c.LateGoods = c.LateGoods || r.Accepted != nil && r.Accepted.lateGoods(c.Outcome)
	if k := r.Kept; k != nil && before.Covers(k.Outcome) {
		k.Goods, k.Confirmed = h.Goods, h.Confirmed
		if h.Payload != "" {
			k.Payload = h.Payload
		}
	}
	return own
}

// overruled tells whether what is kept gives way to a request without a conflict: IAK
// has confirmed that, and neither has the app been told of what is kept nor IAK
// confirmed it.
func (r *Record) overruled(q *Request, live bool) bool {
	k := r.Kept
	switch {
	case !q.Confirmed || k == nil || k.Confirmed:
		return false
	case live && !r.Claim.Asking && r.Claim.alike(k.Outcome):
		return false // the app is being told
	}
	doubt := r.Doubt
	if !live {
		doubt = r.Doubtful()
	}
	return doubt == nil || !doubt.alike(k.Outcome)
}
