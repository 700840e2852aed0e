package batch

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
)

// Every operation is run once, those of one adder in their order, never two
// batches at a time and never more than Max together; what comes while a
// batch is under way shares the next. With nothing to do there is no goroutine.
func TestBatches(t *testing.T) {
	var mu sync.Mutex
	var sizes []int
	var ran []string
	var all sync.WaitGroup
	started, finish := make(chan bool), make(chan bool)
	running := false
	b := &Queue[string]{Run: func(batch []string) {
		mu.Lock()
		if running {
			t.Error("two batches at a time")
		}
		running = true
		first := len(sizes) == 0
		sizes = append(sizes, len(batch))
		ran = append(ran, batch...)
		mu.Unlock()
		if first {
			started <- true
			<-finish
		}
		mu.Lock()
		running = false
		mu.Unlock()
		for range batch {
			all.Done()
		}
	}}
	const adders, each = 10, 2*Max/10 + 10
	all.Add(1 + adders*each)
	b.Add("first")
	<-started
	var adding sync.WaitGroup
	for adder := range adders {
		adding.Go(func() {
			for i := range each {
				b.Add(fmt.Sprintf("%d-%d", adder, i))
			}
		})
	}
	adding.Wait()
	close(finish)
	all.Wait()
	if want := fmt.Sprint([]int{1, Max, Max, adders*each - 2*Max}); fmt.Sprint(sizes) != want {
		t.Errorf("batches of %v, want %s", sizes, want)
	}
	next := make(map[int]int)
	for _, name := range ran[1:] {
		var adder, i int
		if _, err := fmt.Sscanf(name, "%d-%d", &adder, &i); err != nil || i != next[adder] {
			t.Fatalf("%q was run, want number %d of adder %d", name, next[adder], adder)
		}
		next[adder]++
	}
	for deadline := time.Now().Add(10 * time.Second); b.busy(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the goroutine does not end")
		}
	}
	all.Add(1)
	b.Add("later")
	all.Wait()
}

// busy tells whether the goroutine lives.
func (b *Queue[T]) busy() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.working
}

// A batch that panics is told, and those behind it are run.
func TestBatchPanics(t *testing.T) {
	told, ran := make(chan any, 1), make(chan string, 1)
	report := guard.Report
	guard.Report = func(_ string, p *guard.PanicError) { told <- p.Cause }
	t.Cleanup(func() { guard.Report = report })
	b := &Queue[string]{Run: func(batch []string) {
		if batch[0] == "broken" {
			panic("a broken batch")
		}
		ran <- batch[0]
	}}
	b.Add("broken")
	if cause := <-told; cause != "a broken batch" {
		t.Errorf("told %v", cause)
	}
	b.Add("next")
	if next := <-ran; next != "next" {
		t.Errorf("%s was run", next)
	}
}
