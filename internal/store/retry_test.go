package store

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
)

var errStillDown = errors.New("still down")

// endings collects how a task ends.
type endings struct {
	mu   sync.Mutex
	errs []error
}

func (e *endings) add(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.errs = append(e.errs, err)
}

func (e *endings) all() []error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.errs)
}

// succeeded tells whether it has ended once, without an error.
func (e *endings) succeeded() bool { return slices.Equal(e.all(), []error{nil}) }

// A task is tried again, at growing distances, until it succeeds; then it ends
// once, without an error, and the worker ends with it.
func TestRetryRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // fails if the worker does not end
		var b retry
		var ends endings
		var tries []time.Duration
		start := time.Now()
		b.add(&task{
			try: func() error {
				tries = append(tries, time.Since(start))
				if len(tries) < 9 {
					return errStillDown
				}
				return nil
			},
			successes: 1, until: start.Add(time.Hour), end: ends.add,
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(tries) != 9 || !ends.succeeded() {
			t.Fatalf("%d tries, ends %v, want 9 and one without an error", len(tries), ends.all())
		}
		for i := 1; i < len(tries); i++ {
			pause, want := tries[i]-tries[i-1], min(minRetryPause<<(i-1), maxRetryPause)
			if pause != want {
				t.Errorf("pause %d is %s, want %s", i, pause, want)
			}
		}
		if b.idle != nil || len(b.tasks) != 0 {
			t.Errorf("working %t with %d tasks, want the worker to have ended", b.idle != nil, len(b.tasks))
		}
	})
}

// The worker starts again for a task that comes after it has ended.
func TestRetryStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b retry
		for i := range 3 {
			var ends endings
			b.add(&task{try: func() error { return nil }, successes: 1, until: time.Now().Add(time.Minute), end: ends.add})
			synctest.Wait()
			if !ends.succeeded() {
				t.Fatalf("task %d ends %v, want once without an error", i, ends.all())
			}
			if b.idle != nil {
				t.Fatal("the worker has not ended")
			}
		}
	})
}

// A task that needs two successes gets them at some distance, failures between
// them do not count, and others are not held up by it.
func TestRetryTwoSuccesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b retry
		var ends, others endings
		var successes []time.Time
		answers := []error{errStillDown, nil, errStillDown, nil}
		b.add(&task{
			try: func() error {
				err := answers[0]
				answers = answers[1:]
				if err == nil {
					successes = append(successes, time.Now())
				}
				return err
			},
			successes: 2, until: time.Now().Add(time.Hour), end: ends.add,
		})
		b.add(&task{try: func() error { return nil }, successes: 1, until: time.Now().Add(time.Hour), end: others.add})
		time.Sleep(maxRetryPause / 2)
		synctest.Wait()
		if !others.succeeded() {
			t.Errorf("the other task ends %v, want once, without an error, before the second success", others.all())
		}
		if all := ends.all(); len(all) != 0 {
			t.Errorf("ends %v after one success", all)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if !ends.succeeded() || len(successes) != 2 {
			t.Fatalf("ends %v after %d successes, want once after 2", ends.all(), len(successes))
		}
		if apart := successes[1].Sub(successes[0]); apart < maxRetryPause {
			t.Errorf("the successes are %s apart, want at least %s", apart, maxRetryPause)
		}
	})
}

// After a success the pauses begin anew: the next failure is another outage.
func TestRetryPausesAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b retry
		var ends endings
		answers := []error{errStillDown, errStillDown, errStillDown, errStillDown, nil, errStillDown, nil}
		var tries []time.Time
		b.add(&task{
			try: func() error {
				err := answers[len(tries)]
				tries = append(tries, time.Now())
				return err
			},
			successes: 2, until: time.Now().Add(time.Hour), end: ends.add,
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		if !ends.succeeded() || len(tries) != len(answers) {
			t.Fatalf("ends %v after %d tries, want once after %d", ends.all(), len(tries), len(answers))
		}
		if pause := tries[6].Sub(tries[5]); pause != minRetryPause {
			t.Errorf("the pause after a success and a failure is %s, want %s", pause, minRetryPause)
		}
	})
}

// A task is given up after its time, with the last error, once.
func TestRetryGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b retry
		var ends endings
		tries := 0
		start := time.Now()
		var ended time.Time
		b.add(&task{
			try:       func() error { tries++; return fmt.Errorf("try %d: %w", tries, errStillDown) },
			successes: 1, until: start.Add(35 * time.Second),
			end: func(err error) { ends.add(err); ended = time.Now() },
		})
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		all := ends.all()
		if len(all) != 1 || !errors.Is(all[0], errStillDown) {
			t.Fatalf("ends %v, want once with the error", all)
		}
		if want := fmt.Sprintf("try %d: still down", tries); all[0].Error() != want {
			t.Errorf("ends with %q, want the last error, %q", all[0], want)
		}
		if took := ended.Sub(start); took < 35*time.Second || took > 35*time.Second+maxRetryPause {
			t.Errorf("given up after %s, want 35s", took)
		}
	})
}

// In an outage each task is given up at its own time, however many wait: an
// operator learns of a lost answer when it is lost.
func TestRetryGivesUpInACrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b retry
		const n = 200
		start := time.Now()
		var took []time.Duration
		for range n {
			b.add(&task{
				try:       func() error { time.Sleep(500 * time.Millisecond); return errStillDown }, // a timeout
				successes: 1, until: start.Add(35 * time.Second),
				end: func(error) { took = append(took, time.Since(start)) },
			})
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(took) != n {
			t.Fatalf("%d tasks ended, want %d", len(took), n)
		}
		if last := took[n-1]; last > 40*time.Second {
			t.Errorf("the last task was given up after %s, want 35s", last)
		}
	})
}

// When the store works again all that waits is done at once, the order kept.
func TestRetryAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b retry
		var down atomic.Bool
		down.Store(true)
		start := time.Now()
		var done []int
		for i := range 1000 {
			b.add(&task{
				try: func() error {
					if down.Load() {
						return errStillDown
					}
					return nil
				},
				successes: 1, until: start.Add(35 * time.Second),
				end: func(err error) {
					if err != nil {
						t.Errorf("task %d: %v", i, err)
					}
					done = append(done, i)
				},
			})
		}
		time.Sleep(20 * time.Second)
		down.Store(false)
		time.Sleep(maxRetryPause)
		synctest.Wait()
		if len(done) != 1000 {
			t.Errorf("%d of 1000 tasks were done %s after the outage", len(done), maxRetryPause)
		}
	})
}

// What is repeated is bounded: the oldest task makes room for a new one, and is told
// so once.
func TestRetryFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b retry
		begin := make(chan struct{})
		var first endings
		b.add(&task{try: func() error { <-begin; return nil }, successes: 1, until: time.Now().Add(time.Hour), end: first.add})
		synctest.Wait() // the worker is busy with it
		const extra = 3
		ends := make([]endings, maxRetries+extra)
		for i := range ends {
			b.add(&task{try: func() error { return nil }, successes: 1, until: time.Now().Add(time.Hour), end: ends[i].add})
			if len(b.tasks) > maxRetries {
				t.Fatalf("%d tasks, want at most %d", len(b.tasks), maxRetries)
			}
		}
		for i := range extra {
			if all := ends[i].all(); len(all) != 1 || !errors.Is(all[0], errRetryFull) {
				t.Errorf("task %d ends %v, want errRetryFull at once", i, all)
			}
		}
		close(begin)
		synctest.Wait()
		if !first.succeeded() {
			t.Errorf("the task at work ends %v, want once without an error", first.all())
		}
		for i := extra; i < len(ends); i++ {
			if !ends[i].succeeded() {
				t.Fatalf("task %d ends %v, want once without an error", i, ends[i].all())
			}
		}
	})
}

// A task may add another one when it ends, also when it had to make room.
func TestRetryAddsAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b retry
		var ends endings
		b.add(&task{
			try: func() error { return nil }, successes: 1, until: time.Now().Add(time.Minute),
			end: func(error) {
				b.add(&task{try: func() error { return nil }, successes: 1, until: time.Now().Add(time.Minute), end: ends.add})
			},
		})
		synctest.Wait()
		if !ends.succeeded() || b.idle != nil {
			t.Errorf("ends %v, working %t, want one end and no worker", ends.all(), b.idle != nil)
		}
	})
}

// A panic in a try is a failure of that try, and one in what is told at the end ends
// nothing else: the next task comes to its turn.
func TestRetryPanics(t *testing.T) {
	told := make(chan any, 2)
	report := guard.Report
	guard.Report = func(_ string, p *guard.PanicError) { told <- p.Cause }
	t.Cleanup(func() { guard.Report = report })
	synctest.Test(t, func(t *testing.T) {
		var b retry
		var ends endings
		tries := 0
		b.add(&task{
			try: func() error {
				if tries++; tries == 1 {
					panic("a broken engine")
				}
				return nil
			},
			successes: 1, until: time.Now().Add(time.Hour), end: func(err error) { ends.add(err); panic("a broken logger") },
		})
		b.add(&task{try: func() error { return nil }, successes: 1, until: time.Now().Add(time.Hour), end: ends.add})
		time.Sleep(time.Minute)
		synctest.Wait()
		if tries != 2 || len(ends.all()) != 2 || ends.all()[0] != nil || ends.all()[1] != nil {
			t.Errorf("%d tries, ends %v, want 2 and two without an error", tries, ends.all())
		}
	})
	if len(told) != 1 || <-told != "a broken logger" {
		t.Error("the panic at the end was not told")
	}
}

// When Caddy ends, what is left to do gets its time, and is given up then, each
// task once, also the one that is being tried, and what comes later.
func TestRetryDrain(t *testing.T) {
	for name, tc := range map[string]struct {
		back  time.Duration // when the store answers again
		fails bool
	}{
		"the store comes back":       {back: 5 * time.Second},
		"it stays away":              {back: time.Hour, fails: true},
		"it hangs while it is tried": {back: -1, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b retry
				start := time.Now()
				hang := make(chan bool)
				var ends [3]endings
				add := func(i int) {
					b.add(&task{
						try: func() error {
							if tc.back < 0 {
								<-hang
							}
							if time.Since(start) < tc.back {
								return errStillDown
							}
							return nil
						},
						successes: 1, until: start.Add(time.Hour), end: ends[i].add,
					})
				}
				add(0)
				add(1)
				time.Sleep(time.Millisecond)
				b.drain(start.Add(10 * time.Second))
				took := time.Since(start)
				add(2)
				for i := range ends {
					errs := ends[i].all()
					if len(errs) != 1 || (errs[0] != nil) != (tc.fails || i == 2) {
						t.Errorf("task %d ends as %v", i, errs)
					}
				}
				if tc.fails && took != 10*time.Second || !tc.fails && took >= 10*time.Second {
					t.Errorf("it took %s", took)
				}
				close(hang)
				time.Sleep(time.Minute)
				for i := range ends {
					if n := len(ends[i].all()); n != 1 {
						t.Errorf("task %d ends %d times", i, n)
					}
				}
			})
		})
	}
	var b retry
	b.drain(time.Now().Add(time.Hour)) // with nothing to do it does not wait
}
