package record

import (
	"encoding/binary"
	"errors"
	"time"
)

// The record's bytes, big endian: version, flags, attempt (2), the time of the
// last change in seconds of Unix time (4) unless there is a claim, then what the
// flags name: accepted, doubt, claim. An outcome is status, with how it was delivered
// in the upper bits, code (2), fixed (8), goods (8); a claim adds owner (16), the lease
// in milliseconds (8) and, always the last bytes, its end (8). An accepted record has 27
// bytes: up to 28 fit in the 48-byte block that Redis allocates for a short string,
// which keeps the whole record within 112 bytes.
const (
	version = 1

	hasAccepted = 1 << 0
	hasDoubt    = 1 << 1
	hasClaim    = 1 << 2
	isAssumed   = 1 << 3

	// In an outcome's first byte.
	statusMask       = 1<<2 - 1
	isLateGoods      = 1 << 2
	contradictsShift = 3

	headSize    = 4
	changedSize = 4
	outcomeSize = 19
	claimSize   = outcomeSize + 16 + 8 + 8
)

// ErrUnreadable is a record that this version cannot read. It is never taken for
// none: that would deliver again what was accepted.
var ErrUnreadable = errors.New("the record was written by another version of iak_callback, or the key is used by something else: " +
	"run one version on one store, or give it a key_prefix of its own")

// Encode returns the record's bytes. Without the end of its claim, when Decide
// has just made it: the store puts that behind. An empty record has no bytes.
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
	if r.Claim != nil {
		b[1] |= hasClaim
		b = r.Claim.append(b)
		b = append(b, r.Claim.Owner[:]...)
		b = appendInt64(b, r.Claim.Lease.Milliseconds())
		if r.Claim.End != 0 {
			b = appendInt64(b, r.Claim.End)
		}
	}
	return string(b)
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
	if len(b) < headSize || b[0] != version || b[1]&^(hasAccepted|hasDoubt|hasClaim|isAssumed) != 0 {
		return nil, ErrUnreadable
	}
	flags := b[1]
	size := headSize
	for _, part := range []struct {
		there bool
		size  int
	}{
		{flags&hasAccepted != 0, outcomeSize},
		{flags&hasDoubt != 0, outcomeSize},
		{flags&hasClaim != 0, claimSize},
		{flags&hasClaim == 0, changedSize},
	} {
		if part.there {
			size += part.size
		}
	}
	if len(b) != size || flags&(isAssumed|hasAccepted) == isAssumed {
		return nil, ErrUnreadable
	}
	r.Attempt = int(binary.BigEndian.Uint16(b[2:]))
	r.Assumed = flags&isAssumed != 0
	b = b[headSize:]
	if flags&hasClaim == 0 {
		r.Changed = int64(binary.BigEndian.Uint32(b)) * 1000
		b = b[changedSize:]
	}
	readable := true
	next := func() *Outcome {
		o := &Outcome{
			Status: Status(b[0] & statusMask), Code: int(binary.BigEndian.Uint16(b[1:])),
			LateGoods: b[0]&isLateGoods != 0, Contradicts: Status(b[0] >> contradictsShift),
		}
		copy(o.Fixed[:], b[3:])
		copy(o.Goods[:], b[11:])
		readable = readable && o.Status <= Failed && o.Contradicts <= Failed
		b = b[outcomeSize:]
		return o
	}
	if flags&hasAccepted != 0 {
		r.Accepted = next()
	}
	if flags&hasDoubt != 0 {
		r.Doubt = next()
	}
	if flags&hasClaim != 0 {
		r.Claim = &Claim{Outcome: *next()}
		copy(r.Claim.Owner[:], b)
		r.Claim.Lease = time.Duration(readInt64(b[16:])) * time.Millisecond
		r.Claim.End = readInt64(b[24:])
		r.Changed = r.Claim.End - r.Claim.Lease.Milliseconds()
	}
	if !readable {
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
