package iakcallback

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// recordStore keeps one record for each account and ref_id. An implementation does
// each operation in one atomic step, by the store's own clock, and answers
// within its timeout. After an error the operation may have been carried out,
// or may be later: both operations can be repeated without harm.
type recordStore interface {
	// claim takes the record for one delivery, or says why not.
	claim(ctx context.Context, c *claimRequest) (decision, error)
	// settle ends a claim by what the app answered.
	settle(ctx context.Context, s *settlement) error

	// What follows is for operators.

	// read returns a record, an empty one if there is none.
	read(ctx context.Context, key string) (snapshot, error)
	// change applies a change to a record, unless the change returns an error, and
	// returns the record as it is then. The change may be applied more than once,
	// to the record as it is by then. Two changes at the same time that make the
	// same of a record may count as one.
	change(ctx context.Context, key string, retention time.Duration, apply func(r *record, now int64) error) (snapshot, error)
	// list visits all records whose keys begin with prefix, in no order, one at a time;
	// those that come or go meanwhile may be missed. An error of visit ends it.
	list(ctx context.Context, prefix string, visit func(key string, s snapshot) error) error
	// String names the store, without secrets.
	String() string
}

// outcome is what a callback tells of its order.
type outcome struct {
	status status
	code   int // the app's status code, in an accepted outcome
	fingerprint
}

// same tells whether both outcomes are the same news: for status 0 whatever
// the goods are, since nothing was delivered yet.
func (o outcome) same(p outcome) bool {
	return o.status == p.status && (o.status == statusProcess || o.fingerprint == p.fingerprint)
}

// lateGoods tells whether later brings the goods that o, accepted as a success,
// still lacked.
func (o outcome) lateGoods(later outcome) bool {
	return o.status == statusSuccess && later.status == statusSuccess && o.fixed == later.fixed &&
		o.goods == [8]byte{} && later.goods != [8]byte{}
}

// owner is the random token of one delivery. Only the delivery that holds it
// can release its claim.
type owner [16]byte

// claimRequest asks for the record of one callback.
type claimRequest struct {
	key             string
	outcome         outcome
	owner           owner
	lease           time.Duration // how long the delivery may take
	retention       time.Duration // how long the record is kept after this change
	forwardConflict bool          // on_conflict forward
	hold            bool          // on_doubt hold
}

// verdict is what a claim comes to, named as the outcome that is logged.
type verdict string

const (
	verdictForwarded verdict = "forwarded"
	verdictInFlight  verdict = "in_flight"
	verdictDuplicate verdict = "duplicate"
	verdictStale     verdict = "stale"
	verdictHeld      verdict = "held"
	verdictConflict  verdict = "conflict"
)

// decision is the answer to a claim.
type decision struct {
	verdict verdict
	// attempt counts the deliveries since the last accepted outcome (verdictForwarded).
	attempt int
	// leaseEnd is when the claim's lease is over, by the store's clock in
	// milliseconds of Unix time (verdictForwarded: this claim's; verdictInFlight: the other's).
	leaseEnd int64
	// wait is what is left of the other delivery's lease (verdictInFlight).
	wait time.Duration
	// lateGoods: the callback brings the goods of a success that was accepted
	// without (verdictForwarded).
	lateGoods bool
	// contradicts is the status that the app was told before, or may have been
	// told (verdictForwarded with forwardConflict, verdictConflict); -1 when there is none.
	contradicts int
	// code is the app's status code of then (verdictDuplicate, verdictStale).
	code int
}

// settlement ends the claim of one delivery.
type settlement struct {
	key       string
	owner     owner
	leaseEnd  int64 // as the claim's decision told it
	retention time.Duration
	verdict   settleVerdict
	outcome   outcome // with the app's status code (settleAccepted)
}

// settleVerdict is how the app's answer settles a claim.
type settleVerdict string

const (
	// settleAccepted: the app answered 2xx. This is a fact; it is recorded even when
	// another delivery has taken the record over.
	settleAccepted settleVerdict = "accepted"
	// settleReleased: the app refused. The record is as before the claim, with the
	// attempt counted.
	settleReleased settleVerdict = "released"
	// settleUnsent: nothing reached the app. As settleReleased, the attempt not counted.
	settleUnsent settleVerdict = "unsent"
)

// record is what a store keeps. redis.go's scripts follow the same rules and
// keep the same bytes; a change here is a change in lua/ too, and the tests run
// every row of the rules on both.
type record struct {
	attempt  int
	accepted *outcome // the outcome that the app accepted last
	doubt    *outcome // the outcome of a claim whose lease ended unsettled, 1 or 2
	claim    *claimed // the delivery under way, or whose lease is over
}

type claimed struct {
	outcome
	owner owner
	end   int64 // when the lease is over, milliseconds of Unix time
}

// decide applies a claim to the record at the time now. The record is changed
// only if the verdict is verdictForwarded.
func (r *record) decide(c *claimRequest, now int64) decision {
	if r.claim != nil && r.claim.owner == c.owner {
		return r.granted(c) // carried out before; its answer was lost
	}
	if a := r.accepted; a != nil {
		switch {
		case a.same(c.outcome):
			return decision{verdict: verdictDuplicate, code: a.code, contradicts: -1}
		case c.outcome.status == statusProcess: // late news: accepted with 1 or 2
			return decision{verdict: verdictStale, code: a.code, contradicts: -1}
		}
	}
	if r.claim != nil && now < r.claim.end {
		wait := time.Duration(r.claim.end-now) * time.Millisecond
		return decision{verdict: verdictInFlight, leaseEnd: r.claim.end, wait: wait, contradicts: -1}
	}
	doubt := r.doubtful()
	if doubt != nil && c.outcome.status == statusProcess { // late news
		return decision{verdict: verdictStale, code: 200, contradicts: -1}
	}
	if against := r.contradicts(doubt, c.outcome); against >= 0 && !c.forwardConflict && (doubt == nil || !doubt.same(c.outcome)) {
		return decision{verdict: verdictConflict, contradicts: against}
	}
	// With on_conflict forward an outcome can be in doubt behind a newer one.
	if c.hold && doubt != nil && (doubt.same(c.outcome) || r.doubt != nil && r.doubt.same(c.outcome)) {
		return decision{verdict: verdictHeld, contradicts: -1}
	}
	r.doubt = doubt
	r.claim = &claimed{outcome: c.outcome, owner: c.owner, end: now + c.lease.Milliseconds()}
	r.attempt = min(r.attempt+1, math.MaxUint16)
	return r.granted(c)
}

// doubtful is the outcome of which it is not known whether the app has acted on
// it, 1 or 2, when no lease is alive; nil when there is none.
func (r *record) doubtful() *outcome {
	doubt := r.doubt
	if r.claim != nil && r.claim.status != statusProcess { // the lease is over
		doubt = &r.claim.outcome
	}
	if doubt != nil && r.accepted != nil && r.accepted.same(*doubt) {
		return nil // another delivery's fact has settled it
	}
	return doubt
}

func (r *record) granted(c *claimRequest) decision {
	return decision{
		verdict:     verdictForwarded,
		attempt:     r.attempt,
		leaseEnd:    r.claim.end,
		lateGoods:   r.accepted != nil && r.accepted.lateGoods(c.outcome),
		contradicts: r.contradicts(r.doubt, c.outcome),
	}
}

// contradicts returns the final status that the app accepted, or may have, and
// that o is at odds with; -1 when there is none.
func (r *record) contradicts(doubt *outcome, o outcome) int {
	if a := r.accepted; a != nil && a.status != statusProcess && !a.same(o) && !a.lateGoods(o) {
		return int(a.status)
	}
	if doubt != nil && !doubt.same(o) {
		return int(doubt.status)
	}
	return -1
}

// settle applies a settlement to the record at the time now, and tells whether
// the record has changed.
func (r *record) settle(s *settlement, now int64) (changed bool) {
	own := r.claim != nil && r.claim.owner == s.owner
	switch {
	case s.verdict == settleAccepted && own:
		r.claim, r.doubt = nil, nil
	case s.verdict == settleAccepted:
		// another delivery has taken over, or this settlement was carried out before
		if !r.takesFact(s, now) {
			return false
		}
		if r.doubt != nil && r.doubt.same(s.outcome) {
			r.doubt = nil
		}
	case own:
		r.claim = nil
		if s.verdict == settleUnsent {
			r.attempt = max(r.attempt-1, 0)
		}
		return true
	default:
		return false
	}
	if a := r.accepted; a == nil || a.status == statusProcess || s.outcome.status != statusProcess {
		accepted := s.outcome // 0 never replaces 1 or 2
		r.accepted = &accepted
	}
	if r.claim == nil && r.doubt == nil { // else a later delivery counts on
		r.attempt = 0
	}
	return true
}

// takesFact tells whether an accepted outcome without its claim is recorded. 0
// never replaces 1 or 2. A final outcome that stands there is replaced only by
// one that is still in doubt: else it is this very settlement, repeated because
// its answer was lost, or the app has accepted something newer since, such as
// the goods of this success, which must not be delivered again.
func (r *record) takesFact(s *settlement, now int64) bool {
	a := r.accepted
	if a == nil {
		return true
	}
	if s.outcome.status == statusProcess {
		return a.status == statusProcess
	}
	return a.status == statusProcess || now >= s.leaseEnd && r.doubt != nil && r.doubt.same(s.outcome)
}

// empty tells that the record says no more than none would.
func (r *record) empty() bool {
	return r.attempt == 0 && r.accepted == nil && r.doubt == nil && r.claim == nil
}

// The record's bytes, big endian: version, flags, attempt (2), then what the
// flags name: accepted, doubt, claim. An outcome is status, code (2), fixed (8),
// goods (8); a claim adds owner (16) and lease end (8). An accepted record has
// 23 bytes: up to 28 fit in the 48-byte block that Redis allocates for a short
// string, which keeps the whole record within 112 bytes.
const (
	recordVersion = 1

	hasAccepted = 1 << 0
	hasDoubt    = 1 << 1
	hasClaim    = 1 << 2

	outcomeSize = 19
)

// errRecord is a record that this version cannot read. It is never taken for
// none: that would deliver again what was accepted.
var errRecord = errors.New("the record was written by another version of iak_callback, or the key is used by something else: " +
	"run one version on one store, or give it a key_prefix of its own")

func (r *record) encode() []byte {
	b := make([]byte, 0, 4+3*outcomeSize+24)
	b = append(b, recordVersion, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(r.attempt)) //nolint:gosec // decide keeps it within 16 bits
	if r.accepted != nil {
		b[1] |= hasAccepted
		b = r.accepted.append(b)
	}
	if r.doubt != nil {
		b[1] |= hasDoubt
		b = r.doubt.append(b)
	}
	if r.claim != nil {
		b[1] |= hasClaim
		b = r.claim.append(b)
		b = append(b, r.claim.owner[:]...)
		b = appendInt64(b, r.claim.end)
	}
	return b
}

func (o *outcome) append(b []byte) []byte {
	b = append(b, byte(o.status))
	b = binary.BigEndian.AppendUint16(b, uint16(o.code)) //nolint:gosec // an HTTP status code
	b = append(b, o.fixed[:]...)
	return append(b, o.goods[:]...)
}

// decodeRecord reads the bytes of encode; no bytes are no record.
func decodeRecord(b []byte) (*record, error) {
	r := new(record)
	if len(b) == 0 {
		return r, nil
	}
	if len(b) < 4 || b[0] != recordVersion {
		return nil, errRecord
	}
	flags := b[1]
	r.attempt = int(binary.BigEndian.Uint16(b[2:]))
	b = b[4:]
	ok := flags&^(hasAccepted|hasDoubt|hasClaim) == 0
	next := func() *outcome {
		if !ok || len(b) < outcomeSize || b[0] > byte(statusFailed) {
			ok = false
			return nil
		}
		o := &outcome{status: status(b[0]), code: int(binary.BigEndian.Uint16(b[1:]))}
		copy(o.fixed[:], b[3:])
		copy(o.goods[:], b[11:])
		b = b[outcomeSize:]
		return o
	}
	if flags&hasAccepted != 0 {
		r.accepted = next()
	}
	if flags&hasDoubt != 0 {
		r.doubt = next()
	}
	if flags&hasClaim != 0 {
		if o := next(); o != nil && len(b) >= 24 {
			r.claim = &claimed{outcome: *o}
			copy(r.claim.owner[:], b)
			r.claim.end = readInt64(b[16:])
			b = b[24:]
		} else {
			ok = false
		}
	}
	if !ok || len(b) != 0 {
		return nil, errRecord
	}
	return r, nil
}

func appendInt64(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(n)) //nolint:gosec // its bits
}

func readInt64(b []byte) int64 {
	return int64(binary.BigEndian.Uint64(b)) //nolint:gosec // its bits
}

// recordKey is the record's key: the ref_id comes last and may hold anything,
// the account's name holds no colon, so no two orders share a key.
func recordKey(prefix, account, refID string) string {
	return prefix + account + ":" + refID
}
