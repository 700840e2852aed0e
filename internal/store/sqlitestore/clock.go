package sqlitestore

import "time"

// believeAfter is how long a clock must have been ahead until records expire by it.
const believeAfter = time.Hour

// clock tells the time by which leases end and records expire.
//
// The wall clock can be set, also by mistake and for a moment: a virtual machine
// that resumes, a board without a battery, a time server that lies. A record that
// is forgotten too early is delivered again, so its life goes by whichever reading of
// the last hour or two keeps it longer: it expires by the clock that was furthest
// behind, and is kept from the one that was furthest ahead. A clock that was set
// forward is believed when it has been so for an hour, or two at most; until a store
// has been open for an hour, nothing expires.
type clock struct {
	wall   func() time.Time     // replaced by tests
	steady func() time.Duration // since some moment, by a clock that nobody sets; replaced by tests
	after  time.Duration        // believeAfter; tests may believe at once, by 0

	readings [2]readings // the hour before, and this one
	since    time.Duration
}

// readings are how far the wall clock was ahead of the steady one.
type readings struct {
	some        bool
	least, most time.Duration
}

func (r *readings) add(ahead time.Duration) {
	if !r.some {
		*r = readings{some: true, least: ahead, most: ahead}
	}
	r.least, r.most = min(r.least, ahead), max(r.most, ahead)
}

// moment is the time in milliseconds of Unix time.
type moment struct {
	now  int64 // as the wall clock has it
	past int64 // what expires by then has expired
	from int64 // the life of what is written now begins
}

func newClock() *clock {
	begin := time.Now()
	return &clock{wall: time.Now, steady: func() time.Duration { return time.Since(begin) }, after: believeAfter}
}

// read is to be called by one goroutine at a time.
func (c *clock) read() moment {
	wall, steady := c.wall(), c.steady()
	now := wall.UnixMilli()
	if c.after == 0 {
		return moment{now: now, past: now, from: now}
	}
	c.add(steady, time.Duration(wall.UnixNano())-steady)
	before, current := c.readings[0], c.readings[1]
	at := func(ahead time.Duration) int64 { return (steady + ahead).Milliseconds() }
	if !before.some {
		return moment{now: now, past: 0, from: at(current.most)}
	}
	return moment{now: now, past: at(min(before.least, current.least)), from: at(max(before.most, current.most))}
}

// add notes a reading, and begins a new hour when one is over. After an hour without
// any nothing is known.
func (c *clock) add(steady, ahead time.Duration) {
	switch age := steady - c.since; {
	case age >= 2*c.after:
		c.readings, c.since = [2]readings{}, steady
	case age >= c.after:
		c.readings, c.since = [2]readings{c.readings[1]}, steady
	}
	c.readings[1].add(ahead)
}

// wrote notes when the file was last written, by the clock of then: a clock that is
// behind that was set back since.
func (c *clock) wrote(at time.Time) {
	c.readings[1].add(time.Duration(c.wall().UnixNano()) - c.steady())
	c.readings[1].most = max(c.readings[1].most, time.Duration(at.UnixNano())-c.steady())
}
