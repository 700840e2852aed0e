package iakcallback

import (
	"runtime"
	"slices"
	"sync"
	"time"
)

// maxBatch bounds how many store operations share one trip or one commit.
const maxBatch = 256

// batches runs the operations that wait at the same time together: while one
// batch is under way, the next fills. Its goroutine lives while there is
// something to do.
type batches[T comparable] struct {
	run    func([]T)     // one batch at a time; it may change the slice, not keep it
	window time.Duration // how long a batch that follows a shared one waits for more

	mu      sync.Mutex
	waiting []T
	working bool
}

// add hands over an operation and does not wait for it.
func (b *batches[T]) add(operation T) {
	b.mu.Lock()
	b.waiting = append(b.waiting, operation)
	start := !b.working
	b.working = true
	b.mu.Unlock()
	if start {
		go b.work()
	}
}

// remove takes back an operation that still waits: nobody wants it any more, and
// a batch that hangs must not let those behind it grow in number.
func (b *batches[T]) remove(operation T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, operation); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	}
}

func (b *batches[T]) work() {
	var batch []T
	for {
		if len(batch) > 1 && b.window > 0 {
			time.Sleep(b.window)
		} else {
			runtime.Gosched() // those that can run now may have something to add
		}
		if batch = b.next(batch); len(batch) == 0 {
			return
		}
		b.run(batch)
	}
}

// next takes the first operations that wait, into the memory of the last batch.
// Without one, the work is over.
func (b *batches[T]) next(batch []T) []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(batch)
	n := min(len(b.waiting), maxBatch)
	batch = append(batch[:0], b.waiting[:n]...)
	rest := copy(b.waiting, b.waiting[n:])
	clear(b.waiting[rest:])
	b.waiting = b.waiting[:rest]
	b.working = n > 0
	return batch
}
