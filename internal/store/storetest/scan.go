package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/store"
)

// wantScan checks that a scan visits exactly these keys with their values. One may
// be visited twice: Redis promises no more.
func wantScan(t testing.TB, e store.Engine, prefix string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	err := e.Scan(context.Background(), prefix, func(key string, found store.Found) error {
		got[key] = found.Value
		if found.Swapped {
			t.Errorf("%.40q is said to be swapped", key)
		}
		wantLife(t, found, long)
		return nil
	})
	if err != nil {
		t.Fatalf("Scan of %q: %v", prefix, err)
	}
	if !maps.Equal(got, want) {
		t.Errorf("Scan of %q visits %.2000q, want %.2000q", prefix, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// A scan visits the keys that begin with the prefix, byte for byte.
func testScanPrefix(t *testing.T, e store.Engine) {
	prefixes := []string{
		"iak:shop:", "iak:shop", "iak:sho", "iak:shop2:", "iak:Shop:", "other:", "*", "?", "i?k:", "[a-z]", "[^a]", `\`, `\*`, "%", "_", "{a}",
		"\x00", "\xff", "\xff\xff", "a\xff", "a\xff\xff", "b", "é",
	}
	values := map[string]string{}
	for _, prefix := range prefixes {
		for _, rest := range []string{"1", "order*", "\xff", "\x00"} {
			values[prefix+rest] = "of " + prefix + rest
		}
	}
	for i := range 1500 { // more than a page
		values[fmt.Sprint("many:", i)] = fmt.Sprint(i)
	}
	for key, value := range values {
		put(t, e, key, "", value)
	}
	for _, prefix := range append(prefixes, "", "many:", "many:1", "none:") {
		want := map[string]string{}
		for key, value := range values {
			if strings.HasPrefix(key, prefix) {
				want[key] = value
			}
		}
		wantScan(t, e, prefix, want)
	}
}

// The visitor's error ends a scan, and so does the end of its context.
func testScanEnds(t *testing.T, e store.Engine) {
	for i := range 50 {
		put(t, e, fmt.Sprint("iak:", i), "", "value")
	}
	refused := errors.New("refused")
	visited := 0
	err := e.Scan(context.Background(), "iak:", func(string, store.Found) error {
		visited++
		if visited == 3 {
			return refused
		}
		return nil
	})
	if !errors.Is(err, refused) || visited != 3 {
		t.Errorf("the visitor refuses the third: %d visited, %v", visited, err)
	}

	ctx, cancel := context.WithCancel(context.Background())
	visited = 0
	err = e.Scan(ctx, "iak:", func(string, store.Found) error {
		visited++
		if visited == 3 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || visited != 3 {
		t.Errorf("the context ends at the third: %d visited, %v", visited, err)
	}
	visited = 0
	err = e.Scan(ctx, "iak:", func(string, store.Found) error {
		visited++
		return nil
	})
	if !errors.Is(err, context.Canceled) || visited != 0 {
		t.Errorf("the context is over before: %d visited, %v", visited, err)
	}
}

// A visitor who takes his time holds up nobody. What comes and goes meanwhile
// may be visited or not; all else is.
func testScanMeanwhile(t *testing.T, e store.Engine) {
	const n = 1500
	value := func(i int) string { return fmt.Sprint("value ", i) }
	for i := range n {
		put(t, e, fmt.Sprintf("iak:stays:%d", i), "", value(i))
		put(t, e, fmt.Sprintf("iak:goes:%d", i), "", value(i))
	}
	stays := map[string]bool{}
	came := 0
	var visiting atomic.Int32
	err := e.Scan(context.Background(), "iak:", func(key string, found store.Found) error {
		if visiting.Add(1) > 1 {
			t.Error("two are visited at a time")
		}
		defer visiting.Add(-1)
		if found.Value == "" {
			t.Errorf("%s is visited, and nothing stands there", key)
		}
		if strings.HasPrefix(key, "iak:stays:") {
			stays[key] = true
		}
		if came < n {
			put(t, e, fmt.Sprintf("iak:comes:%d", came), "", value(came))
			put(t, e, fmt.Sprintf("iak:goes:%d", came), value(came), "")
			came++
		}
		return nil
	})
	if err != nil || len(stays) != n {
		t.Errorf("%d of %d are visited, %v", len(stays), n, err)
	}
}
