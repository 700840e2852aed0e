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

var (
	errRetryFull = errors.New("too many store operations wait to be repeated")
	errEnding    = errors.New("Caddy ends") //nolint:revive,staticcheck // a name
)

// retry repeats in the background what a store could not carry out when it
// was asked. One goroutine works on it while there is something to do, so an
// outage meets one caller and not a crowd.
type retry struct {
	mu      sync.Mutex
	tasks   []*task
	current *task         // is being tried
	idle    chan struct{} // closed when the goroutine ends; nil without one
	ended   bool          // nothing is taken any more
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
	once      sync.Once
}

// over ends a task. What it tells may end in another module's code.
func (t *task) over(err error) {
	t.once.Do(func() {
		guard.Do("the end of a store operation", func() { t.end(err) })
	})
}

// drain waits until nothing is left to do, and gives up then what is: Caddy ends.
func (b *retry) drain(until time.Time) {
	b.mu.Lock()
	idle := b.idle
	b.mu.Unlock()
	if idle != nil {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		select {
		case <-idle:
		case <-timer.C:
		}
	}
	b.mu.Lock()
	given := make(map[*task]error)
	for _, t := range b.tasks {
		given[t] = cmp.Or(t.err, errEnding)
	}
	if t := b.current; t != nil {
		given[t] = cmp.Or(t.err, errEnding)
	}
	b.tasks, b.ended = nil, true
	b.mu.Unlock()
	for t, err := range given {
		t.over(err)
	}
}

func (b *retry) add(t *task) {
	b.mu.Lock()
	if b.ended {
		b.mu.Unlock()
		t.over(cmp.Or(t.err, errEnding))
		return
	}
	var dropped *task
	if len(b.tasks) >= maxRetries {
		i := max(slices.IndexFunc(b.tasks, func(t *task) bool { return t.minor }), 0)
		dropped = b.tasks[i]
		b.tasks = slices.Delete(b.tasks, i, i+1)
	}
	b.tasks = append(b.tasks, t)
	start := b.idle == nil
	if start {
		b.idle = make(chan struct{})
	}
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
		b.again(t, err)
		if err != nil { // the next task would most likely fail too
			for _, t := range b.expired(now) {
				t.over(cmp.Or(t.err, err))
			}
			time.Sleep(pause)
			pause = min(2*pause, maxRetryPause)
		}
	}
}

// again puts a task back that was tried.
func (b *retry) again(t *task, err error) {
	b.mu.Lock()
	t.err = err
	b.mu.Unlock()
	b.add(t)
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
	b.current = nil
	now := time.Now()
	for i, t := range b.tasks {
		if left := t.notBefore.Sub(now); left > 0 {
			if wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		b.tasks = append(b.tasks[:i], b.tasks[i+1:]...)
		b.current = t
		return t, 0
	}
	if len(b.tasks) == 0 {
		close(b.idle)
		b.idle = nil
	}
	return nil, wait
}
