// Package batch lets operations that wait at the same time share one trip to a
// server, or one commit to a disk.
package batch

import (
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
)

// Max bounds how many operations share one trip or one commit.
const Max = 256

// Queue runs the operations that wait at the same time together: while one
// batch is under way, the next fills. Its goroutine lives while there is
// something to do.
type Queue[T comparable] struct {
	// Run carries out one batch; only one runs at a time. It may change the slice, not
	// keep it.
	Run func([]T)

	// Window is how long a batch that follows a shared one waits for more.
	Window time.Duration

	mu      sync.Mutex
	waiting []T
	working bool
}

// Add hands over an operation and does not wait for it.
func (b *Queue[T]) Add(operation T) {
	b.mu.Lock()
	b.waiting = append(b.waiting, operation)
	start := !b.working
	b.working = true
	b.mu.Unlock()
	if start {
		go guard.Do("a queue", b.work)
	}
}

// Remove takes back an operation that still waits: nobody wants it any more, and
// a batch that hangs must not let those behind it grow in number.
func (b *Queue[T]) Remove(operation T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, operation); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	}
}

// Waiting is how many operations wait for the next batch.
func (b *Queue[T]) Waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting)
}

func (b *Queue[T]) work() {
	var batch []T
	for {
		if len(batch) > 1 && b.Window > 0 {
			time.Sleep(b.Window)
		} else {
			runtime.Gosched() // those that can run now may have something to add
		}
		if batch = b.next(batch); len(batch) == 0 {
			return
		}
		guard.Do("a batch", func() { b.Run(batch) }) // their callers do not wait for ever
	}
}

// next takes the first operations that wait, into the memory of the last batch.
// Without one, the work is over.
func (b *Queue[T]) next(batch []T) []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(batch)
	n := min(len(b.waiting), Max)
	batch = append(batch[:0], b.waiting[:n]...)
	rest := copy(b.waiting, b.waiting[n:])
	clear(b.waiting[rest:])
	b.waiting = b.waiting[:rest]
	b.working = n > 0
	return batch
}
