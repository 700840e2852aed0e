package storetest

import (
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
)

// Of those who swap the same bytes at the same time exactly one does, and the
// others get what it has put there.
func testOneWins(t *testing.T, e store.Engine) {
	old := ""
	for round := range 10 {
		var mu sync.Mutex
		var won []string
		seen := map[string]int{}
		var all sync.WaitGroup
		for i := range 50 {
			all.Go(func() {
				value := fmt.Sprintf("round %d of %d", round, i)
				found, err := e.Swap(&store.Swap{Key: "iak:key", Old: old, New: value, Keep: long, Claim: true, Began: time.Now()})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
				seen[found.Value]++
				if found.Swapped {
					won = append(won, value)
				}
			})
		}
		all.Wait()
		if len(won) != 1 || seen[won[0]] != 50 {
			t.Fatalf("round %d: %q won, and %v were told, want one and its bytes", round, won, seen)
		}
		old = won[0]
	}
}

// Swaps of one key that each build on what they have read lose nothing.
func testCounter(t *testing.T, e store.Engine) {
	const each, adders = 20, 8
	var all sync.WaitGroup
	for range adders {
		all.Go(func() {
			for range each {
				value := ""
				for {
					n, _ := strconv.Atoi(value)
					found, err := e.Swap(&store.Swap{Key: "iak:n", Old: value, New: strconv.Itoa(n + 1), Keep: long, Began: time.Now()})
					if err != nil {
						t.Error(err)
						return
					}
					if found.Swapped {
						break
					}
					value = found.Value
				}
			}
		})
	}
	all.Wait()
	if got := read(t, e, "iak:n").Value; got != strconv.Itoa(each*adders) {
		t.Errorf("counted to %s, want %d", got, each*adders)
	}
}

// Many keys at once do not get in one another's way, and each gets its own
// answer.
func testManyKeys(t *testing.T, e store.Engine) {
	var all sync.WaitGroup
	for worker := range 64 {
		all.Go(func() {
			for i := range 20 {
				key := fmt.Sprintf("iak:%d:%d", worker, i)
				old := ""
				for step := range 3 {
					value := fmt.Sprint(key, " step ", step)
					found, err := e.Swap(&store.Swap{Key: key, Old: old, New: value, Keep: long, Claim: step == 0, Began: time.Now()})
					if err != nil || !found.Swapped || found.Value != value {
						t.Errorf("%s: %+v, %v, want %q", key, found, err, value)
						return
					}
					if found, err = e.Read(key, time.Now()); err != nil || found.Value != value {
						t.Errorf("%s: %+v, %v, want %q", key, found, err, value)
						return
					}
					old = value
				}
			}
		})
	}
	all.Wait()
	want := map[string]string{}
	for worker := range 64 {
		for i := range 20 {
			key := fmt.Sprintf("iak:%d:%d", worker, i)
			want[key] = fmt.Sprint(key, " step ", 2)
		}
	}
	wantScan(t, e, "iak:", want)
}
