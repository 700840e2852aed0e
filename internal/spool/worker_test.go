package spool

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/storetest"
	"go.uber.org/zap"
)

// yard is a worker on a store in memory, and what it has done.
type yard struct {
	*Worker
	t      *testing.T
	memory *storetest.Memory
	store  *store.Store
	events chan string
	done   Done

	mu   sync.Mutex
	busy bool
}

func newYard(t *testing.T) *yard {
	y := &yard{t: t, memory: storetest.NewMemory(), events: make(chan string, 10_000)}
	y.store = &store.Store{Engine: y.memory, Log: zap.NewNop, Hold: func() func() { return func() {} }}
	y.Worker = &Worker{
		Open: func() (*store.Store, error) { return y.store, nil }, Close: func() {}, Index: "iak:",
		Account: func(key string) string { return strings.Split(key, ":")[1] },
		Holds:   func(key string) bool { return !strings.HasSuffix(key, "release") },
		Longest: time.Minute, Latest: time.Hour, Ready: func() bool { return true },
		Enter: func(key string) (Slot, func()) {
			y.mu.Lock()
			defer y.mu.Unlock()
			switch {
			case y.Account(key) == "stranger":
				return Unknown, nil
			case y.busy:
				return Busy, nil
			}
			return Go, func() { y.events <- "left " + key }
		},
		Deliver: func(key string, kept *record.Kept) Done {
			y.events <- "delivered " + key + " " + kept.Payload
			return y.done
		},
		Unrouted: func(key string, times int) { y.events <- fmt.Sprint("unrouted ", key, " ", times) },
		Failed:   func(err error) { y.events <- fmt.Sprint("failed ", err) },
	}
	return y
}

// keep puts something kept under a key, due some time from now.
func (y *yard) keep(key string, due time.Duration) {
	r := &record.Record{Kept: &record.Kept{Outcome: record.Outcome{Status: record.Success}, Payload: "of " + key, Came: time.Now().UnixMilli(), Due: time.Now().Add(due).UnixMilli()}}
	y.memory.Put(key, r.Encode())
	y.memory.Hint(key, r.Kept.Due)
}

// run works until the test ends.
func (y *yard) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() { y.Run(ctx) })
	y.t.Cleanup(func() {
		cancel()
		ended.Wait()
		y.Wait(time.Now().Add(time.Minute))
	})
}

// next expects what is done next.
func (y *yard) next(want ...string) {
	y.t.Helper()
	for _, w := range want {
		select {
		case got := <-y.events:
			if got != w {
				y.t.Fatalf("%s, want %s", got, w)
			}
		case <-time.After(20 * time.Second):
			y.t.Fatalf("not done: %s", w)
		}
	}
}

// hints are those in the index, with how far their time is.
func (y *yard) hints() (all []string) {
	page, err := y.store.Due(&store.DueQuery{Index: "iak:", Limit: 100, All: true})
	if err != nil {
		y.t.Fatal(err)
	}
	for _, h := range page.Hints {
		all = append(all, fmt.Sprint(h.Key, " ", time.Duration(h.At-page.Now)*time.Millisecond/time.Minute*time.Minute))
	}
	return all
}

// What is due is delivered, in its order; what is not due yet waits; a hint for nothing
// is dropped, and one that is too early is put right.
func TestWorker(t *testing.T) {
	y := newYard(t)
	y.keep("iak:shop:second", -time.Second)
	y.keep("iak:shop:first", -2*time.Second)
	y.keep("iak:shop:later", 10*time.Minute+time.Second)
	y.memory.Hint("iak:shop:gone", 1)
	y.keep("iak:shop:early", 20*time.Minute+time.Second)
	y.memory.Hint("iak:shop:early", 1)
	y.done = Done{Leave: time.Hour} // each once
	var mu sync.Mutex
	var seen []string
	y.Deliver = func(key string, kept *record.Kept) Done {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, key+" "+kept.Payload)
		return y.done
	}
	y.run()
	y.wait(4)
	mu.Lock()
	slices.Sort(seen)
	if want := []string{"iak:shop:first of iak:shop:first", "iak:shop:second of iak:shop:second"}; !slices.Equal(seen, want) {
		t.Errorf("delivered %q, want %q", seen, want)
	}
	mu.Unlock()
	if got, want := y.hints(), []string{"iak:shop:first 0s", "iak:shop:second 0s", "iak:shop:later 10m0s", "iak:shop:early 20m0s"}; !slices.Equal(got, want) {
		t.Errorf("the index has %q, want %q", got, want)
	}
}

// wait waits until so many slots were left.
func (y *yard) wait(n int) {
	y.t.Helper()
	for range n {
		select {
		case got := <-y.events:
			if !strings.HasPrefix(got, "left") {
				y.t.Fatalf("%s", got)
			}
		case <-time.After(20 * time.Second):
			y.t.Fatal("a slot is not left")
		}
	}
}

// What nobody takes is told with the number of times, left alone for the longest pause
// here, and stays in the index for others; so is what nobody knows the account of.
func TestWorkerUnrouted(t *testing.T) {
	y := newYard(t)
	y.Longest = 300 * time.Millisecond
	y.done = Done{Unrouted: true}
	y.keep("iak:shop:order", -time.Second)
	y.run()
	y.next("delivered iak:shop:order of iak:shop:order", "unrouted iak:shop:order 1", "left iak:shop:order")
	if !y.IsUnrouted(y.store, "iak:shop:order") || y.IsUnrouted(y.store, "iak:shop:other") {
		t.Error("an operator is not told which one is unrouted")
	}
	y.next("delivered iak:shop:order of iak:shop:order", "unrouted iak:shop:order 2", "left iak:shop:order")
	unrouted := make(map[string]int)
	if y.countUnrouted(unrouted); unrouted["shop"] != 1 {
		t.Errorf("unrouted are %v", unrouted)
	}
	if got := y.hints(); len(got) != 1 {
		t.Errorf("the index has %q", got)
	}

	stranger := newYard(t)
	stranger.keep("iak:stranger:order", -time.Second)
	stranger.run()
	stranger.next("unrouted iak:stranger:order 1")
}

// While there is no slot what is due waits, and goes when one is free.
func TestWorkerBusy(t *testing.T) {
	y := newYard(t)
	y.busy = true
	y.done = Done{Leave: time.Hour}
	y.keep("iak:shop:order", -time.Second)
	y.run()
	for y.memory.Trips() < 2 { // it has looked twice
		time.Sleep(time.Millisecond)
	}
	if len(y.events) != 0 {
		t.Fatalf("%s without a slot", <-y.events)
	}
	y.mu.Lock()
	y.busy = false
	y.mu.Unlock()
	y.next("delivered iak:shop:order of iak:shop:order", "left iak:shop:order")
}

// farthest remembers how far into the index anybody has read.
type farthest struct {
	*storetest.Memory
	mu    sync.Mutex
	at    int
	looks int
}

func (f *farthest) Due(q *store.DueQuery) (store.DuePage, error) {
	f.mu.Lock()
	if !q.All { // a look, and not the count
		f.at = max(f.at, q.Skip+q.Limit)
		f.looks++
	}
	f.mu.Unlock()
	return f.Memory.Due(q)
}

// While nothing more may begin, no look reads farther than what can begin next: a store
// walks over all that is passed over, and live callbacks wait for it.
func TestWorkerReadsWhatItNeeds(t *testing.T) {
	y := newYard(t)
	f := &farthest{Memory: y.memory}
	y.store.Engine = f
	y.busy = true
	for i := range 20 * pageSize {
		y.keep(fmt.Sprintf("iak:shop:order%04d", i), -time.Second)
	}
	y.run()
	for looks := 0; looks < 4; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		looks = f.looks
		f.mu.Unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at > pageSize {
		t.Errorf("a look has read up to the hint %d, want %d", f.at, pageSize)
	}
}

// More than one look can hold is delivered without a pause between, and what is passed
// over at the front keeps nobody from the rest.
func TestWorkerMany(t *testing.T) {
	y := newYard(t)
	const n = 3 * pageSize
	for i := range 2 * pageSize { // of an account that nobody has
		y.keep(fmt.Sprintf("iak:stranger:order%04d", i), -time.Hour)
	}
	for i := range n {
		y.keep(fmt.Sprintf("iak:shop:order%04d", i), -time.Second)
	}
	y.Unrouted = func(string, int) {}
	gate := NewGate(4, Backoff{time.Second, time.Minute}, func(bool) {})
	y.Ready = func() bool { return gate.Ready(time.Now()) }
	y.Enter = func(key string) (Slot, func()) {
		switch {
		case y.Account(key) == "stranger":
			return Unknown, nil
		case !gate.Enter(time.Now()):
			return Busy, nil
		}
		return Go, gate.Leave
	}
	left := make(chan bool, 2*n)
	var mu sync.Mutex
	seen := make(map[string]int)
	y.Deliver = func(key string, _ *record.Kept) Done {
		mu.Lock()
		seen[key]++
		mu.Unlock()
		gate.Tell(Accepted, time.Now())
		y.memory.Put(key, "") // accepted
		left <- true
		return Done{}
	}
	y.run()
	for i := range n {
		select {
		case <-left:
		case <-time.After(30 * time.Second):
			t.Fatalf("%d of %d are delivered", i, n)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for key, times := range seen {
		if times != 1 {
			t.Errorf("%s is delivered %d times", key, times)
		}
	}
}

// What is due later than anything can have to wait was written before the clock was set
// back, and is delivered.
func TestWorkerClockSetBack(t *testing.T) {
	y := newYard(t)
	y.done = Done{Leave: time.Hour}
	y.keep("iak:shop:order", 25*time.Hour)
	y.keep("iak:shop:held", 0)
	held := &record.Record{Kept: &record.Kept{Outcome: record.Outcome{Status: record.Success}, Due: record.Never}}
	y.memory.Put("iak:shop:held", held.Encode())
	y.memory.Hint("iak:shop:held", record.Never)
	y.run()
	y.next("delivered iak:shop:order of iak:shop:order", "left iak:shop:order")
	if len(y.events) != 0 {
		t.Errorf("%s too", <-y.events)
	}
}

// What is held, or dead, is not looked at again and again, though a hint says that it is
// due; and when hold was switched off, what was held is delivered.
func TestWorkerHeld(t *testing.T) {
	y := newYard(t)
	y.done = Done{Leave: time.Hour}
	for key, dead := range map[string]bool{"iak:shop:held": false, "iak:shop:dead-release": true, "iak:shop:release": false} {
		r := &record.Record{Kept: &record.Kept{Outcome: record.Outcome{Status: record.Success}, Payload: "of " + key, Due: record.Never, Dead: dead}}
		y.memory.Put(key, r.Encode())
		y.memory.Hint(key, record.Never)
	}
	y.memory.Hint("iak:shop:held", 1)
	y.memory.Hint("iak:shop:dead-release", 2)
	y.run()
	var events []string
	for range 4 {
		select {
		case e := <-y.events:
			events = append(events, e)
		case <-time.After(20 * time.Second):
			t.Fatalf("only %q is done", events)
		}
	}
	slices.Sort(events)
	if want := []string{"delivered iak:shop:release of iak:shop:release", "left iak:shop:dead-release", "left iak:shop:held", "left iak:shop:release"}; !slices.Equal(events, want) {
		t.Errorf("%q is done, want %q", events, want)
	}
	page, err := y.store.Due(&store.DueQuery{Index: "iak:", Limit: 10, All: true})
	for _, h := range page.Hints {
		if err != nil || h.Key != "iak:shop:release" && h.At != record.Never {
			t.Errorf("the hint of %s is %d, %v", h.Key, h.At, err)
		}
	}
}

// A store that fails is told once, and that it answers again once; nothing is lost.
func TestWorkerStoreFails(t *testing.T) {
	y := newYard(t)
	y.done = Done{Leave: time.Hour}
	y.keep("iak:shop:order", -time.Second)
	y.memory.Next(storetest.Lost, storetest.Lost)
	y.run()
	y.next("failed "+storetest.ErrLost.Error(), "failed <nil>", "delivered iak:shop:order of iak:shop:order", "left iak:shop:order")
}

// A panic in a delivery ends that delivery, and leaves its slot.
func TestWorkerPanics(t *testing.T) {
	y := newYard(t)
	y.keep("iak:shop:order", -time.Second)
	first := true
	y.Deliver = func(string, *record.Kept) Done {
		if first {
			first = false
			panic("a handler")
		}
		return Done{Leave: time.Hour}
	}
	y.run()
	y.next("left iak:shop:order", "left iak:shop:order")
}

// What is kept is counted by account and state, and told as metrics; what is gone is 0.
func TestSurvey(t *testing.T) {
	y := newYard(t)
	for i, due := range []time.Duration{time.Minute, time.Minute, 2 * time.Minute} {
		y.keep(fmt.Sprint("iak:shop:order", i), due)
	}
	dead := &record.Record{Kept: &record.Kept{Outcome: record.Outcome{Status: record.Success}, Dead: true, Due: record.Never}}
	y.memory.Put("iak:bar:dead", dead.Encode())
	y.memory.Hint("iak:bar:dead", record.Never)
	surveys.add(y.Worker)
	defer surveys.remove(y.Worker)
	if err := y.count(context.Background(), y.store); err != nil {
		t.Fatal(err)
	}
	want := func(values map[string]float64) {
		t.Helper()
		got := gather(t)
		for name, value := range values {
			if got[name] != value {
				t.Errorf("%s is %v, want %v", name, got[name], value)
			}
		}
	}
	want(map[string]float64{"spooled shop": 3, "dead shop": 0, "spooled bar": 0, "dead bar": 1, "unrouted shop": 0})
	if got := gather(t)["oldest_spooled_seconds"]; got < 0 || got > 60 {
		t.Errorf("the oldest is %v seconds old", got)
	}
	surveys.set(y.Worker, nil)
	want(map[string]float64{"spooled shop": 0, "dead bar": 0, "oldest_spooled_seconds": 0})
	surveys.remove(y.Worker)
	if err := y.count(context.Background(), y.store); err != nil { // by a worker that has ended
		t.Fatal(err)
	}
	want(map[string]float64{"spooled shop": 0, "dead bar": 0, "oldest_spooled_seconds": 0})
}

// Nothing begins any more when the end of Caddy waits, though a look is just under way.
func TestWorkerWait(t *testing.T) {
	y := newYard(t)
	y.keep("iak:shop:order", -time.Second)
	looks, look := make(chan bool), make(chan bool)
	enter := y.Enter
	y.Enter = func(key string) (Slot, func()) {
		if key == "iak:shop:order" {
			y.keep("iak:shop:later", -time.Second)
		}
		return enter(key)
	}
	ready := y.Ready
	first := true
	y.Ready = func() bool { // asked before each page is read
		if !first {
			looks <- true
			<-look
		}
		first = false
		return ready()
	}
	y.done = Done{Leave: time.Hour}
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Go(func() { y.Run(ctx) })
	y.next("delivered iak:shop:order of iak:shop:order", "left iak:shop:order")
	<-looks // the second look
	cancel()
	y.Wait(time.Now().Add(time.Minute))
	close(look)
	ended.Wait()
	select {
	case got := <-y.events:
		t.Errorf("%s, after nothing was to begin", got)
	default:
	}
}
