package sqlitestore

import (
	"errors"
	"os"
	"testing"
	"time"
)

// A record lives by whichever reading of the clock in the last hour keeps it longer.
// Each step sets the wall clock by some jump, lets time pass, reads once a minute,
// and looks at what has expired, and until when a record is kept that is written
// then, both as distances from the true time. What belongs to this kind: a clock
// that jumps for a moment, for good, forward, back, again and again, by a second or
// a year; a store that nobody used for hours; a file that is newer than the clock.
func TestClock(t *testing.T) {
	const year = 365 * day
	type step struct {
		jump, passes time.Duration
		expired      time.Duration // before the true time; never for a clock that is not believed
		from         time.Duration // behind the true time
	}
	const never = -1
	for name, steps := range map[string][]step{
		"right":                    {{passes: 59 * time.Minute, expired: never}, {passes: 2 * time.Minute}, {passes: 30 * day}},
		"an hour ahead, a moment":  {{passes: 3 * time.Hour}, {jump: time.Hour, passes: 1 * time.Minute, from: time.Hour}, {jump: -time.Hour, passes: time.Minute, from: time.Hour}, {passes: 3 * time.Hour}},
		"a year ahead, 50 minutes": {{passes: 3 * time.Hour}, {jump: year, passes: 50 * time.Minute, from: year}, {jump: -year, passes: time.Minute, from: year}, {passes: 3 * time.Hour}},
		"a year ahead, for good":   {{passes: 3 * time.Hour}, {jump: year, passes: 59 * time.Minute, from: year}, {passes: 2 * time.Hour, expired: -year, from: year}},
		"a day back, for good":     {{passes: 3 * time.Hour}, {jump: -day, passes: 59 * time.Minute, expired: day}, {passes: 2 * time.Hour, expired: day, from: -day}},
		"back and forth":           {{passes: 3 * time.Hour}, {jump: -year, passes: time.Minute, expired: year}, {jump: year, passes: time.Minute, expired: year}, {passes: 3 * time.Hour}},
		"wrong when it is opened":  {{jump: -year, passes: 30 * time.Minute, expired: never, from: -year}, {jump: year, passes: 40 * time.Minute, expired: year}, {passes: 2 * time.Hour}},
		"a second ahead":           {{passes: 3 * time.Hour}, {jump: time.Second, passes: time.Minute, from: time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.UnixMilli(1_800_000_000_000)
			var passed, set time.Duration
			c := newClock()
			c.wall = func() time.Time { return begin.Add(passed + set) }
			c.steady = func() time.Duration { return passed }
			for i, s := range steps {
				set += s.jump
				var at moment
				for end := passed + s.passes; passed < end; passed += time.Minute {
					at = c.read()
				}
				at = c.read()
				right := begin.Add(passed)
				if at.now != right.Add(set).UnixMilli() {
					t.Errorf("step %d: now is %s, want %s", i, time.UnixMilli(at.now), right.Add(set))
				}
				past := right.Add(-s.expired).UnixMilli()
				if s.expired == never {
					past = 0
				}
				if at.past != past {
					t.Errorf("step %d: what ends by %s has expired, want %s", i, time.UnixMilli(at.past), time.UnixMilli(past))
				}
				if want := right.Add(s.from).UnixMilli(); at.from != want {
					t.Errorf("step %d: a life begins at %s, want %s", i, time.UnixMilli(at.from), time.UnixMilli(want))
				}
			}
		})
	}
}

// After hours without a callback, the first one does not trust a clock that may have
// been set meanwhile.
func TestClockAfterIdling(t *testing.T) {
	passed := time.Duration(0)
	c := newClock()
	c.steady = func() time.Duration { return passed }
	c.wall = func() time.Time { return time.UnixMilli(1_800_000_000_000).Add(passed) }
	c.read()
	passed = 5 * time.Hour
	if at := c.read(); at.past != 0 {
		t.Errorf("what ends by %s has expired, want nothing", time.UnixMilli(at.past))
	}
}

// A clock that is behind the file's own time was set back since: what is written is
// kept from that time on, else it would be forgotten when the clock is put right.
func TestFileNewerThanClock(t *testing.T) {
	path := newPath(t)
	s := open(t, path)
	mustPut(t, s, "a", "", "1")
	if err := s.Destruct(); err != nil {
		t.Fatal(err)
	}
	ahead := time.Now().Add(365 * day)
	if err := errors.Join(os.Chtimes(path, ahead, ahead)); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	mustPut(t, s, "b", "", "1")
	found, err := s.Read("b", time.Now())
	if err != nil || found.Expires < ahead.Add(day).UnixMilli() {
		t.Errorf("kept until %s, %v, want %s or later", time.UnixMilli(found.Expires), err, ahead.Add(day))
	}
}
