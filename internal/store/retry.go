package store

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
)

const (
	// maxRetries bounds the memory of an outage: 10,000 tasks of some 300 bytes.
	maxRetries = 10_000

	minRetryPause = 100 * time.Millisecond
	maxRetryPause = 2 * time.Second
)

var errRetryFull = errors.New("too many store operations wait to be repeated")

// retry repeats in the background what a store could not carry out when it
// was asked. One goroutine works on it while there is something to do, so an
// outage meets one caller and not a crowd.
type retry struct {
	mu      sync.Mutex
	tasks   []*task
	working bool
}

// task is one operation, which must be safe to repeat.
type task struct {
	try       func() error // one try, bounded in time by itself
	successes int          // how many are needed
	minor     bool         // to be dropped first when there are too many
	until     time.Time    // when to give up
	end       func(error)  // called once, with nil or the last error

	notBefore time.Time
	err       error // of the last try
}

// over ends a task. What it tells may end in another module's code.
func (t *task) over(err error) {
	guard.Do("the end of a store operation", func() { t.end(err) })
}

func (b *retry) add(t *task) {
	b.mu.Lock()
	var dropped *task
	if len(b.tasks) >= maxRetries {
		i := max(slices.IndexFunc(b.tasks, func(t *task) bool { return t.minor }), 0)
		dropped = b.tasks[i]
		b.tasks = slices.Delete(b.tasks, i, i+1)
	}
	b.tasks = append(b.tasks, t)
	start := !b.working
	b.working = true
	b.mu.Unlock()
	if dropped != nil {
		dropped.over(errRetryFull)
	}
	if start {
		go guard.Do("repeating store operations", b.work)
	}
}

func (b *retry) work() {
	pause := minRetryPause
	for {
		t, wait := b.next()
		switch {
		case t != nil:
		case wait > 0:
			time.Sleep(wait)
			continue
		default:
			return
		}
		err := guard.Catch(t.try)
		now := time.Now()
		if err == nil {
			pause = minRetryPause
			if t.successes--; t.successes <= 0 {
				t.over(nil)
				continue
			}
			t.notBefore = now.Add(maxRetryPause)
		}
		t.err = err
		b.add(t)
		if err != nil { // the next task would most likely fail too
			for _, t := range b.expired(now) {
				t.over(cmp.Or(t.err, err))
			}
			time.Sleep(pause)
			pause = min(2*pause, maxRetryPause)
		}
	}
}

// expired takes the tasks whose time is over.
func (b *retry) expired(now time.Time) (expired []*task) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tasks = slices.DeleteFunc(b.tasks, func(t *task) bool {
		over := now.After(t.until)
		if over {
			expired = append(expired, t)
		}
		return over
	})
	return expired
}

// next takes the first task that is due. Without one it says how long to wait;
// with no task at all the worker ends.
func (b *retry) next() (t *task, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for i, t := range b.tasks {
		if left := t.notBefore.Sub(now); left > 0 {
			if wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		b.tasks = append(b.tasks[:i], b.tasks[i+1:]...)
		return t, 0
	}
	if len(b.tasks) == 0 {
		b.working = false
	}
	return nil, wait
}
