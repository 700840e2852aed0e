package record

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"
)

// The record's bytes, big endian: version, flags, attempt (2), the time of the
// last change in seconds of Unix time (4) unless there is a claim, then what the
// flags name: accepted, doubt, claim. An outcome is status, with how it was delivered
// in the upper bits, code (2), fixed (8), goods (8); a claim adds owner (16), the lease
// in milliseconds (8) and, always the last bytes, its end (8). An accepted record has 27
// bytes: up to 28 fit in the 48-byte block that Redis allocates for a short string,
// which keeps the whole record within 112 bytes.
//
// A record that keeps a callback has another version, so that a program that knows of
// no spool answers 503 and never drops it. What is kept stands before the claim:
// outcome, came (8), pauses, panics, whether it is dead or confirmed, the number of tries, each try as time (4),
// ending, status (2), took (4), and then the length of the payload (4) and the payload.
// Without a claim, when it is due (8) are the last bytes: with a claim or without, these
// are when a store has to find the record again.
const (
	version     = 1
	versionKept = 2

	hasAccepted = 1 << 0
	hasDoubt    = 1 << 1
	hasClaim    = 1 << 2
	isAssumed   = 1 << 3
	isAsking    = 1 << 4 // the claim's

	// In the byte behind a kept callback's panics.
	isDead      = 1 << 0
	isConfirmed = 1 << 1

	// In an outcome's first byte.
	statusMask       = 1<<2 - 1
	isLateGoods      = 1 << 2
	contradictsShift = 3

	headSize    = 4
	changedSize = 4
	outcomeSize = 19
	claimSize   = outcomeSize + 16 + 8 + 8
	keptSize    = outcomeSize + 8 + 4 + 4 // beside the tries and the payload
	trySize     = 4 + 1 + 2 + 4
	dueSize     = 8
)

// endings are those of a try, by their number in its bytes.
var endings = []Ending{Released, Unsent, Lapsed, NotConfirmed}

// HeadSize is how many of a record's first bytes Peek looks at, at most.
const HeadSize = headSize + changedSize + 2*outcomeSize + outcomeSize + 8 + 3

// Keeps tells by a record's first byte whether a callback is kept in it.
func Keeps(first byte) bool { return first == versionKept }

// Peek tells of what is kept in a record when it came first and its state, by the
// record's first bytes and by its last 8, at the time now. Ok is false if nothing is kept.
func Peek(head string, due, now int64) (came int64, state State, ok bool) {
	if len(head) < headSize || !Keeps(head[0]) {
		return 0, "", false
	}
	flags, at := head[1], headSize+outcomeSize
	for _, part := range []struct {
		there bool
		size  int
	}{{flags&hasClaim == 0, changedSize}, {flags&hasAccepted != 0, outcomeSize}, {flags&hasDoubt != 0, outcomeSize}} {
		if part.there {
			at += part.size
		}
	}
	if len(head) < at+11 {
		return 0, "", false
	}
	switch {
	case head[at+10]&isDead != 0:
		state = StateDead
	case flags&hasClaim != 0 && due > now:
		state = StateInFlight
	case due == Never:
		state = StateHeld
	default:
		state = StateSpooled
	}
	return readInt64([]byte(head[at:])), state, true
}

// ErrUnreadable is a record that this version cannot read. It is never taken for
// none: that would deliver again what was accepted.
var ErrUnreadable = errors.New("the record was written by another version of iak_callback, or the key is used by something else: " +
	"run one version on one store, or give it a key_prefix of its own")

// Encode returns the record's bytes. Without the end of its claim, when Decide
// has just made it, and without the time when what is kept is due, when Settle has said
// how long to wait: the store puts that behind. An empty record has no bytes.
func (r *Record) Encode() string {
	if r.Empty() {
		return ""
	}
	b := make([]byte, 0, headSize+2*outcomeSize+claimSize)
	b = append(b, version, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Attempt)) //nolint:gosec // Decide keeps it within 16 bits
	if r.Claim == nil {
		b = binary.BigEndian.AppendUint32(b, uint32(r.Changed/1000)) //nolint:gosec // until 2106
	}
	if r.Assumed {
		b[1] |= isAssumed
	}
	if r.Accepted != nil {
		b[1] |= hasAccepted
		b = r.Accepted.append(b)
	}
	if r.Doubt != nil {
		b[1] |= hasDoubt
		b = r.Doubt.append(b)
	}
	if r.Kept != nil {
		b[0] = versionKept
		b = r.Kept.append(b)
	}
	if r.Claim != nil {
		b[1] |= hasClaim
		if r.Claim.Asking {
			b[1] |= isAsking
		}
		b = r.Claim.append(b)
		b = append(b, r.Claim.Owner[:]...)
		b = appendInt64(b, r.Claim.Lease.Milliseconds())
		if r.Claim.End != 0 {
			b = appendInt64(b, r.Claim.End)
		}
	} else if r.Kept != nil && r.Kept.Due != 0 {
		b = appendInt64(b, r.Kept.Due)
	}
	return string(b)
}

func (k *Kept) append(b []byte) []byte {
	b = k.Outcome.append(b)
	b = appendInt64(b, k.Came)
	flags := byte(0)
	if k.Dead {
		flags |= isDead
	}
	if k.Confirmed {
		flags |= isConfirmed
	}
	b = append(b, byte(k.Pauses), byte(k.Panics), flags, byte(len(k.Tries))) //nolint:gosec // all are bounded
	for _, t := range k.Tries {
		b = binary.BigEndian.AppendUint32(b, uint32(t.At/1000))                                  //nolint:gosec // until 2106
		b = append(b, byte(max(slices.Index(endings, t.Ending), 0)))                             //nolint:gosec // one of four
		b = binary.BigEndian.AppendUint16(b, uint16(t.Status))                                   //nolint:gosec // an HTTP status code
		b = binary.BigEndian.AppendUint32(b, uint32(min(t.Took.Milliseconds(), math.MaxUint32))) //nolint:gosec // bounded
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(k.Payload))) //nolint:gosec // a body is at most 1 GiB
	return append(b, k.Payload...)
}

// readKept reads what is kept, and returns the bytes behind it.
func readKept(b []byte, readable *bool) (*Kept, []byte) {
	fail := func() (*Kept, []byte) {
		*readable = false
		return nil, nil
	}
	if len(b) < keptSize {
		return fail()
	}
	k := &Kept{Outcome: *readOutcome(b, readable), Came: readInt64(b[outcomeSize:])}
	b = b[outcomeSize+8:]
	k.Pauses, k.Panics, k.Dead, k.Confirmed = int(b[0]), int(b[1]), b[2]&isDead != 0, b[2]&isConfirmed != 0
	tries := int(b[3])
	if b[2]&^(isDead|isConfirmed) != 0 || tries > maxTries || len(b) < 4+tries*trySize+4 {
		return fail()
	}
	b = b[4:]
	for range tries {
		if int(b[4]) >= len(endings) {
			return fail()
		}
		k.Tries = append(k.Tries, Try{
			At: int64(binary.BigEndian.Uint32(b)) * 1000, Ending: endings[b[4]], Status: int(binary.BigEndian.Uint16(b[5:])),
			Took: time.Duration(binary.BigEndian.Uint32(b[7:])) * time.Millisecond,
		})
		b = b[trySize:]
	}
	size := binary.BigEndian.Uint32(b)
	if b = b[4:]; uint64(len(b)) < uint64(size) {
		return fail()
	}
	k.Payload = string(b[:size])
	return k, b[size:]
}

// readOutcome reads the outcome that b begins with.
func readOutcome(b []byte, readable *bool) *Outcome {
	o := &Outcome{
		Status: Status(b[0] & statusMask), Code: int(binary.BigEndian.Uint16(b[1:])),
		LateGoods: b[0]&isLateGoods != 0, Contradicts: Status(b[0] >> contradictsShift),
	}
	copy(o.Fixed[:], b[3:])
	copy(o.Goods[:], b[11:])
	*readable = *readable && o.Status <= Failed && o.Contradicts <= Failed
	return o
}

func (o *Outcome) append(b []byte) []byte {
	head := byte(o.Status) | byte(o.Contradicts)<<contradictsShift
	if o.LateGoods {
		head |= isLateGoods
	}
	b = append(b, head)
	b = binary.BigEndian.AppendUint16(b, uint16(o.Code)) //nolint:gosec // an HTTP status code
	b = append(b, o.Fixed[:]...)
	return append(b, o.Goods[:]...)
}

// Decode reads the bytes of Encode, with the end of a claim behind them; no bytes
// are an empty record. All else is ErrUnreadable.
func Decode(value string) (*Record, error) {
	r := new(Record)
	if value == "" {
		return r, nil
	}
	b := []byte(value)
	if len(b) < headSize || b[0] != version && b[0] != versionKept || b[1]&^(hasAccepted|hasDoubt|hasClaim|isAssumed|isAsking) != 0 {
		return nil, ErrUnreadable
	}
	kept, flags := b[0] == versionKept, b[1]
	r.Attempt = int(binary.BigEndian.Uint16(b[2:]))
	r.Assumed = flags&isAssumed != 0
	readable := flags&(isAssumed|hasAccepted) != isAssumed && flags&(isAsking|hasClaim) != isAsking
	b = b[headSize:]
	// take returns the next bytes, or zeros when there are not so many.
	take := func(n int) []byte {
		if len(b) < n {
			readable, b = false, nil
			return make([]byte, n)
		}
		next := b[:n]
		b = b[n:]
		return next
	}
	if flags&hasClaim == 0 {
		r.Changed = int64(binary.BigEndian.Uint32(take(changedSize))) * 1000
	}
	if flags&hasAccepted != 0 {
		r.Accepted = readOutcome(take(outcomeSize), &readable)
	}
	if flags&hasDoubt != 0 {
		r.Doubt = readOutcome(take(outcomeSize), &readable)
	}
	if kept {
		r.Kept, b = readKept(b, &readable)
	}
	switch {
	case flags&hasClaim != 0:
		claim := take(claimSize)
		r.Claim = &Claim{Outcome: *readOutcome(claim, &readable), Asking: flags&isAsking != 0}
		claim = claim[outcomeSize:]
		copy(r.Claim.Owner[:], claim)
		lease := readInt64(claim[16:])
		readable = readable && lease >= 0 && lease <= Forever.Milliseconds()
		r.Claim.Lease = time.Duration(lease) * time.Millisecond
		r.Claim.End = readInt64(claim[24:])
		r.Changed = r.Claim.End - r.Claim.Lease.Milliseconds()
	case kept && readable:
		r.Kept.Due = readInt64(take(dueSize))
	}
	if !readable || len(b) != 0 {
		return nil, ErrUnreadable
	}
	return r, nil
}

// End is when the claim in a record's bytes is over, by the store's clock in
// milliseconds of Unix time.
func End(value string) int64 {
	return readInt64([]byte(value[len(value)-8:]))
}

func appendInt64(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(n)) //nolint:gosec // its bits
}

func readInt64(b []byte) int64 {
	return int64(binary.BigEndian.Uint64(b)) //nolint:gosec // its bits
}
