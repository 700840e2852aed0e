package spool

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Backoff is how long to wait between tries: doubling from the first pause to the
// longest, each a random part of that, so that what failed together does not come back
// together.
type Backoff struct {
	First, Longest time.Duration
}

// After is the pause after so many before it. retryAfter is what the app asked for: the
// pause is not shorter, but never longer than the longest.
func (b Backoff) After(pauses int, retryAfter time.Duration) time.Duration {
	full := b.Longest
	if pauses < 32 && b.First<<pauses > 0 { // beyond that it would overflow
		full = min(b.First<<pauses, b.Longest)
	}
	pause := time.Duration(rand.Int64N(int64(max(full, 1)))) + 1 //nolint:gosec // no secret
	return min(max(pause, retryAfter), b.Longest)
}

// RetryAfter reads the header of that name, seconds or a date; what is neither, or has
// passed, is 0.
func RetryAfter(header string, now time.Time) time.Duration {
	header = strings.TrimSpace(header)
	if seconds, err := strconv.ParseUint(header, 10, 63); err == nil {
		const most = 365 * 24 * 3600                           // seconds; nobody waits longer, and it does not overflow
		return time.Duration(min(seconds, most)) * time.Second //nolint:gosec // bounded
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
