package redisstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/redis/go-redis/v9"
)

const index = "iak:"

// kept is a value that has to be found at a time.
func kept(at int64) string {
	return string(binary.BigEndian.AppendUint64([]byte("kept"), uint64(at)))
}

// swap makes a swap of what is in the index, before or after it.
func swap(s *Store, sw store.Swap) (store.Found, error) {
	sw.Index, sw.Keep, sw.Began = index, time.Hour, time.Now()
	return s.Swap(&sw)
}

// mustSwap fails the test if it is not carried out.
func mustSwap(t testing.TB, s *Store, sw store.Swap) store.Found {
	t.Helper()
	found, err := swap(s, sw)
	if err != nil || !found.Swapped {
		t.Fatalf("Swap of %q: %+v, %v", sw.Key, found, err)
	}
	return found
}

// due returns the whole index.
func due(t testing.TB, s *Store, head int) store.DuePage {
	t.Helper()
	page, err := s.Due(&store.DueQuery{Index: index, Limit: 1000, All: true, Head: head, Began: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return page
}

// wantIndex expects the index to hold exactly some keys with their times.
func wantIndex(t testing.TB, s *Store, want map[string]int64) {
	t.Helper()
	got := map[string]int64{}
	for _, hint := range due(t, s, 0).Hints {
		got[hint.Key] = hint.At
	}
	if !maps.Equal(got, want) {
		t.Errorf("in the index is %v, want %v", got, want)
	}
}

// What Redis is asked to do for the index, on a single server and on a Cluster of one.
func TestIndex(t *testing.T) {
	for _, cluster := range []bool{false, true} {
		name, server, engine := "single", redistest.Start, func(addr string) *Store { return New(client(addr), patient, false) }
		if cluster {
			name, server, engine = "cluster", redistest.StartCluster, func(addr string) *Store { return newCluster(patient, addr) }
		}
		t.Run(name, func(t *testing.T) {
			server := server(t)
			c := server.Client()
			for _, test := range []struct {
				name string
				run  func(t *testing.T, server *redistest.Server, s *Store)
			}{
				{"Cost", testCost}, {"ScriptsForgotten", testScriptsForgotten}, {"FullMemory", testFullMemory},
				{"NoReplicas", testNoReplicas}, {"OtherTypes", testOtherTypes}, {"Drop", testDrop}, {"TooLate", testTooLate}, {"Rights", testRights},
			} {
				t.Run(test.name, func(t *testing.T) {
					ctx := t.Context()
					if err := errors.Join(c.FlushAll(ctx).Err(), c.ScriptFlush(ctx).Err()); err != nil {
						t.Fatal(err)
					}
					s := engine(server.Addr())
					defer s.Destruct()
					test.run(t, server, s)
				})
			}
		})
	}
}

// set sets something in a server, until the test is over.
func set(t *testing.T, c *redis.Client, name, value, after string) {
	t.Helper()
	if err := c.ConfigSet(t.Context(), name, value).Err(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.ConfigSet(context.Background(), name, after) })
}

// The index costs no trip more, and nothing where nothing is in it; a look at it is one
// call. In a Cluster the hint is a call of its own.
func testCost(t *testing.T, server *redistest.Server, s *Store) {
	c := server.Client()
	mustSwap(t, s, store.Swap{Key: "iak:warm", New: kept(1), Is: true})
	due(t, s, 0)
	mustSwap(t, s, store.Swap{Key: "iak:warm", Old: kept(1), New: kept(2), Was: true, Is: true})
	wants := func(what string, do func(), want ...string) {
		t.Helper()
		server.ResetStats(c)
		do()
		calls := server.Calls(c)
		delete(calls, "cluster|slots")
		delete(calls, "eval")
		var got []string
		for name, n := range calls {
			got = append(got, fmt.Sprint(n, " ", name))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: Redis did %q, want %q", what, got, want)
		}
	}
	swaps := func(sw store.Swap) func() { return func() { mustSwap(t, s, sw) } }
	wants("no index", swaps(store.Swap{Key: "iak:1", New: "accepted"}), "1 evalsha", "1 time", "1 get", "1 set")
	wants("no index, a removal", swaps(store.Swap{Key: "iak:1", Old: "accepted"}), "1 evalsha", "1 time", "1 get", "1 del")
	into := []string{"1 evalsha", "1 time", "1 get", "1 set", "1 zadd", "1 zcard"}
	if s.cluster() {
		into = []string{"2 evalsha", "2 time", "1 get", "1 set", "1 zadd", "1 zcard"}
	}
	wants("into the index", swaps(store.Swap{Key: "iak:1", New: kept(5), Is: true}), into...)
	wants("a look", func() { due(t, s, 0) }, "1 evalsha", "1 time", "1 zcard", "1 zrange")
	wants("a look with heads", func() { due(t, s, 5) }, "1 evalsha", "1 time", "1 zcard", "1 zrange", "2 getrange")
	wants("a correction", func() {
		if err := s.Correct(index, store.Hint{Key: "iak:1", At: 5}, 6, time.Now()); err != nil {
			t.Error(err)
		}
	}, "1 evalsha", "1 time", "1 zscore", "1 zadd", "1 zcard")
	if !s.cluster() {
		wants("out of the index", swaps(store.Swap{Key: "iak:1", Old: kept(5), Was: true}),
			"1 evalsha", "1 time", "1 get", "1 del", "1 zrem", "1 zcard")
	}
}

// A Redis that has forgotten the scripts is given them again.
func testScriptsForgotten(t *testing.T, server *redistest.Server, s *Store) {
	forget := func() {
		t.Helper()
		if err := server.Client().ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, claim := range []bool{true, false} {
		forget()
		mustSwap(t, s, store.Swap{Key: "iak:1", New: kept(5), Is: true, Claim: claim})
		forget()
		wantIndex(t, s, map[string]int64{"iak:1": 5})
		forget()
		if err := s.Correct(index, store.Hint{Key: "iak:1", At: 5}, 4, time.Now()); err != nil {
			t.Error(err)
		}
		wantIndex(t, s, map[string]int64{"iak:1": 4})
		forget()
		mustSwap(t, s, store.Swap{Key: "iak:1", Old: kept(5), Was: true, Claim: claim})
		redistest.Eventually(t, "the hint is gone", func() bool { return len(due(t, s, 0).Hints) == 0 })
	}
}

// On a full memory what is claimed is refused, and changes nothing; what was claimed is
// settled, and the index read and put right.
func testFullMemory(t *testing.T, server *redistest.Server, s *Store) {
	c := server.Client()
	mustSwap(t, s, store.Swap{Key: "iak:1", New: kept(5), Is: true, Claim: true})
	mustSwap(t, s, store.Swap{Key: "iak:2", New: kept(5), Is: true, Claim: true})
	due(t, s, 0) // which the server would forget
	set(t, c, "maxmemory", "1", "0")
	for _, sw := range []store.Swap{
		{Key: "iak:new", New: kept(1), Is: true, Claim: true},
		{Key: "iak:new", New: "lease", Lease: time.Second, Is: true, Claim: true},
		{Key: "iak:1", Old: kept(5), New: "lease", Lease: time.Second, Was: true, Is: true, Claim: true},
		{Key: "iak:1", Old: kept(5), New: kept(1), Was: true, Is: true, Claim: true},
	} {
		if found, err := swap(s, sw); err == nil || !strings.Contains(err.Error(), "OOM") {
			t.Errorf("%+v: %+v, %v, want that the memory is full", sw, found, err)
		}
	}
	wantIndex(t, s, map[string]int64{"iak:1": 5, "iak:2": 5})
	if found, err := s.Read("iak:1", time.Now()); err != nil || found.Value != kept(5) {
		t.Errorf("%+v, %v, want it as before", found, err)
	}
	mustSwap(t, s, store.Swap{Key: "iak:1", Old: kept(5), New: kept(3), Was: true, Is: true})
	mustSwap(t, s, store.Swap{Key: "iak:3", New: kept(7), Is: true})
	mustSwap(t, s, store.Swap{Key: "iak:2", Old: kept(5), New: "accepted", Was: true})
	if err := s.Correct(index, store.Hint{Key: "iak:3", At: 7}, 8, time.Now()); err != nil {
		t.Error(err)
	}
	redistest.Eventually(t, "the hint is gone", func() bool { return len(due(t, s, 0).Hints) == 2 })
	wantIndex(t, s, map[string]int64{"iak:1": 3, "iak:3": 8})
}

// A Redis that takes no writes, since no replica follows, still tells what is due, and
// what it refuses has changed nothing.
func testNoReplicas(t *testing.T, server *redistest.Server, s *Store) {
	mustSwap(t, s, store.Swap{Key: "iak:1", New: kept(5), Is: true})
	set(t, server.Client(), "min-replicas-to-write", "1", "0")
	for _, claim := range []bool{false, true} {
		for _, sw := range []store.Swap{
			{Key: "iak:1", Old: kept(5), New: kept(1), Was: true, Is: true, Claim: claim},
			{Key: "iak:2", New: kept(1), Is: true, Claim: claim},
			{Key: "iak:1", Old: kept(5), Was: true, Claim: claim},
		} {
			if found, err := swap(s, sw); err == nil || !strings.Contains(err.Error(), "NOREPLICAS") {
				t.Errorf("%+v: %+v, %v, want that there are no replicas", sw, found, err)
			}
		}
	}
	wantIndex(t, s, map[string]int64{"iak:1": 5})
	if hints := due(t, s, 4).Hints; len(hints) != 1 || hints[0].Head != "kept" {
		t.Errorf("%+v is due", hints)
	}
}

// A hint may be wrong: under its key stands nothing, or something else. A key of another
// type in the index's place is not overwritten, and nothing is put down that could not be
// found.
func testOtherTypes(t *testing.T, server *redistest.Server, s *Store) {
	c, ctx := server.Client(), t.Context()
	mustSwap(t, s, store.Swap{Key: "iak:1", New: kept(1), Is: true})
	if err := errors.Join(
		c.ZAdd(ctx, "iak::due", redis.Z{Score: 2, Member: "iak:none"}, redis.Z{Score: 3, Member: "iak:list"}).Err(),
		c.LPush(ctx, "iak:list", "x").Err(), c.HSet(ctx, "iak:hash", "k", "x").Err(),
	); err != nil {
		t.Fatal(err)
	}
	want := []store.Hint{{Key: "iak:1", At: 1, Head: "kep"}, {Key: "iak:none", At: 2}, {Key: "iak:list", At: 3}}
	if got := due(t, s, 3).Hints; !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if err := s.Repair(ctx, index, func(byte) bool { return true }); err != nil {
		t.Error(err)
	}
	wantIndex(t, s, map[string]int64{"iak:1": 1, "iak:none": 2, "iak:list": 3})
	if err := s.Scan(ctx, index, func(key string, _ store.Found) error {
		if key != "iak:1" {
			t.Errorf("the scan visits %s", key)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := c.Set(ctx, "iak::due", "in its place", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for _, sw := range []store.Swap{
		{Key: "iak:2", New: kept(1), Is: true}, {Key: "iak:2", New: "lease", Lease: time.Hour, Is: true, Claim: true},
		{Key: "iak:1", Old: kept(1), New: kept(2), Was: true, Is: true},
	} {
		if found, err := swap(s, sw); !errors.Is(err, store.ErrUnreadable) {
			t.Errorf("%+v: %+v, %v, want ErrUnreadable", sw, found, err)
		}
	}
	for key, value := range map[string]string{"iak:1": kept(1), "iak:2": ""} {
		if found, err := s.Read(key, time.Now()); err != nil || found.Value != value {
			t.Errorf("%s: %+v, %v, want %q", key, found, err, value)
		}
	}
	if page, err := s.Due(&store.DueQuery{Index: index, Limit: 1, Began: time.Now()}); !errors.Is(err, store.ErrUnreadable) {
		t.Errorf("%+v, %v, want ErrUnreadable", page, err)
	}
}

// An index that was lost as a whole is made again.
func TestIndexLost(t *testing.T) {
	server := redistest.Start(t)
	s := New(client(server.Addr()), patient, false)
	defer s.Destruct()
	want := map[string]int64{}
	for i := range 500 {
		key := fmt.Sprint("iak:shop:", i)
		want[key] = int64(1000 + i)
		mustSwap(t, s, store.Swap{Key: key, New: kept(want[key]), Is: true})
		mustSwap(t, s, store.Swap{Key: fmt.Sprint("iak:other:", i), New: "accepted" + kept(1)})
	}
	c := server.Client()
	if err := c.Del(t.Context(), "iak::due").Err(); err != nil {
		t.Fatal(err)
	}
	server.ResetStats(c)
	if err := s.Repair(t.Context(), index, func(first byte) bool { return first == 'k' }); err != nil {
		t.Fatal(err)
	}
	calls := server.Calls(c)
	if calls["get"] != 0 || calls["getrange"] > 1000+500+100 {
		t.Errorf("Redis did %v, want no whole values, and a few bytes of each", calls)
	}
	wantIndex(t, s, want)
}

// split finds keys whose records are on another master than the index, and which those are.
func split(t testing.TB, shards *redistest.Shards, n int) (keys []string, ofKeys, ofIndex int) {
	t.Helper()
	of := func(key string) int { return shards.Slot(key) * 3 / redistest.Slots }
	ofIndex = of(indexKey(index))
	ofKeys = (ofIndex + 1) % 3
	for i := 0; len(keys) < n; i++ {
		if key := fmt.Sprint("iak:shop:", i); of(key) == ofKeys {
			keys = append(keys, key)
		}
	}
	return keys, ofKeys, ofIndex
}

// In a Cluster a hint is written before its record, so that there is one if the record's
// server fails in between; and without the index's server nothing is claimed that
// could not be found, but what was claimed is settled.
func TestClusterIndexServers(t *testing.T) {
	shards := redistest.StartShards(t)
	keys, ofKeys, ofIndex := split(t, shards, 4)
	s := newCluster(700*time.Millisecond, shards.Addrs()...)
	defer s.Destruct()
	for _, key := range keys { // so that it is connected
		mustSwap(t, s, store.Swap{Key: key, New: kept(1), Is: true})
		mustSwap(t, s, store.Swap{Key: key, Old: kept(1), Was: true})
	}
	redistest.Eventually(t, "the index is empty", func() bool { return len(due(t, s, 0).Hints) == 0 })

	// The record's server hangs: the hint stands, whatever that does when it goes on.
	shards.Servers[ofKeys].Pause()
	if found, err := swap(s, store.Swap{Key: keys[0], New: kept(5), Is: true, Claim: true}); err == nil {
		t.Errorf("the record's server hangs: %+v, want an error", found)
	}
	wantIndex(t, s, map[string]int64{keys[0]: 5})
	shards.Servers[ofKeys].Continue()

	// What is not carried out leaves its hint, and its head tells that nothing stands there.
	if found, err := swap(s, store.Swap{Key: keys[1], Old: "other", New: kept(3), Was: true, Is: true}); err != nil || found.Swapped {
		t.Errorf("%+v, %v, want that it is not swapped", found, err)
	}
	if got := due(t, s, 4).Hints; len(got) != 2 || got[0] != (store.Hint{Key: keys[1], At: 3}) {
		t.Errorf("in the index is %+v, want the hint of what was not carried out before the other", got)
	}

	// What goes leaves the count as it was told last.
	if found := mustSwap(t, s, store.Swap{Key: keys[2], New: kept(9), Is: true}); found.Waiting != 3 {
		t.Errorf("%d wait, want 3", found.Waiting)
	}
	if found := mustSwap(t, s, store.Swap{Key: keys[2], Old: kept(9), Was: true}); found.Waiting < 2 || found.Waiting > 3 {
		t.Errorf("%d wait, want what was told, or what is left", found.Waiting)
	}
	redistest.Eventually(t, "the hint is gone", func() bool { return due(t, s, 0).Waiting == 2 })

	claimed := mustSwap(t, s, store.Swap{Key: keys[3], New: "lease", Lease: time.Hour, Is: true, Claim: true}).Value
	shards.Servers[ofIndex].Pause()
	defer shards.Servers[ofIndex].Continue()
	mustSwap(t, s, store.Swap{Key: keys[3], Old: claimed, New: "accepted", Was: true}) // nobody waits for the index
	var both sync.WaitGroup
	for _, claim := range []bool{true, false} {
		both.Go(func() { // before a replica takes over
			if found, err := swap(s, store.Swap{Key: keys[3], Old: "accepted", New: kept(1), Is: true, Claim: claim}); err == nil {
				t.Errorf("the index's server hangs, claim %t: %+v, want an error", claim, found)
			}
		})
	}
	both.Wait()
	if got, err := shards.Clients[ofKeys].Get(t.Context(), keys[3]).Result(); err != nil || got != "accepted" {
		t.Errorf("%q stands there, %v, want that nothing has changed", got, err)
	}
}

// In a Cluster a hint goes some time after its record: not one that was written since for
// something later.
func testDrop(t *testing.T, server *redistest.Server, s *Store) {
	if !s.cluster() {
		t.Skip("it goes with its record")
	}
	c := server.Client()
	for _, row := range []struct {
		at   float64
		want int
	}{{4, 1}, {5, 1}, {6, 2}} {
		if err := c.ZAdd(t.Context(), "iak::due", redis.Z{Score: row.at, Member: "iak:1"}, redis.Z{Score: 1, Member: "iak:other"}).Err(); err != nil {
			t.Fatal(err)
		}
		s.waiting.Delete(index)
		s.drop(&store.Swap{Key: "iak:1", Old: kept(5), Index: index, Was: true})
		redistest.Eventually(t, "it is done, and the count known", func() bool { _, done := s.waiting.Load(index); return done })
		told, _ := s.waiting.Load(index)
		if n := c.ZCard(t.Context(), "iak::due").Val(); int(n) != row.want || told != row.want {
			t.Errorf("a hint at %v of what was to be found at 5: %d are left, %v told, want %d", row.at, n, told, row.want)
		}
	}
}

// A swap for which nobody waits any more leaves neither a record nor a hint.
func testTooLate(t *testing.T, _ *redistest.Server, s *Store) {
	for _, ago := range []time.Duration{patient * 4 / 5, patient, time.Hour} {
		sw := store.Swap{Key: "iak:1", New: kept(5), Keep: time.Hour, Index: index, Is: true, Began: time.Now().Add(-ago)}
		if found, err := s.Swap(&sw); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("began %s ago: %+v, %v, want the deadline", ago, found, err)
		}
	}
	wantIndex(t, s, map[string]int64{})
	if found, err := s.Read("iak:1", time.Now()); err != nil || found.Value != "" {
		t.Errorf("%+v, %v stands there", found, err)
	}
}

// The rights in docs/redis.md are enough for all that an engine does, and each is needed.
func testRights(t *testing.T, server *redistest.Server, admin *Store) {
	text, err := os.ReadFile("../../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	var rules [][]string // for a single server, and for a Cluster
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[0] == "user" && slices.Contains(fields, "+evalsha") {
			rules = append(rules, fields[4:])
		}
	}
	if len(rules) != 2 {
		t.Fatalf("the page has %d users, want one for a single server and one for a Cluster", len(rules))
	}
	c, ctx := server.Client(), t.Context()
	open := func() *Store {
		return New(redis.NewClient(&redis.Options{
			Addr: server.Addr(), Username: "iak", Password: "pass", ContextTimeoutEnabled: true, OnConnect: CheckVersion, DisableIdentity: true,
		}), 2*time.Second, false)
	}
	rights := rules[0]
	if admin.cluster() {
		rights = rules[1]
		open = func() *Store {
			return New(redis.NewClusterClient(&redis.ClusterOptions{
				Addrs: []string{server.Addr()}, Username: "iak", Password: "pass", ContextTimeoutEnabled: true, OnConnect: CheckVersion, DisableIdentity: true,
			}), 2*time.Second, false)
		}
	}
	denied := func() bool {
		log, err := c.Do(ctx, "ACL", "LOG").Slice()
		return err != nil || len(log) > 0
	}
	for i := range len(rights) + 1 { // the last time with all
		if i < len(rights) && rights[i] == "+asking" {
			continue // for a slot that moves
		}
		rule := []any{"ACL", "SETUSER", "iak", "reset", "on", ">pass"}
		for _, right := range slices.Delete(slices.Clone(rights), i, min(i+1, len(rights))) {
			rule = append(rule, right)
		}
		if err := errors.Join(c.FlushAll(ctx).Err(), c.ScriptFlush(ctx).Err(), c.Do(ctx, rule...).Err(), c.Do(ctx, "ACL", "LOG", "RESET").Err()); err != nil {
			t.Fatal(err)
		}
		s := open()
		err := useAll(s)
		if i < len(rights) {
			redistest.Eventually(t, rights[i]+" is needed", denied)
		} else if err != nil || denied() {
			log, _ := c.Do(ctx, "ACL", "LOG").Slice()
			t.Errorf("with all rights: %v, denied: %v", err, log)
		}
		_ = s.Destruct()
	}
}

// useAll does all that an engine does.
func useAll(s *Store) error {
	var failed error
	do := func(err error) { failed = errors.Join(failed, err) }
	_, err := swap(s, store.Swap{Key: "iak:1", New: "accepted", Claim: true})
	do(err)
	_, err = swap(s, store.Swap{Key: "iak:1", Old: "other", New: "accepted"})
	do(err)
	_, err = swap(s, store.Swap{Key: "iak:1", Old: "accepted"})
	do(err)
	claimed, err := swap(s, store.Swap{Key: "iak:2", New: "lease", Lease: time.Second, Is: true, Claim: true})
	do(err)
	_, err = swap(s, store.Swap{Key: "iak:2", Old: claimed.Value, New: kept(5), Was: true, Is: true})
	do(err)
	page, err := s.Due(&store.DueQuery{Index: index, Limit: 10, All: true, Head: 1, Began: time.Now()})
	do(err)
	for _, hint := range page.Hints {
		do(s.Correct(index, hint, 7, time.Now()))
		do(s.Correct(index, store.Hint{Key: hint.Key, At: 7}, 0, time.Now()))
	}
	do(s.Repair(context.Background(), index, func(byte) bool { return true }))
	do(s.Scan(context.Background(), index, func(string, store.Found) error { return nil }))
	_, err = swap(s, store.Swap{Key: "iak:2", Old: kept(5), New: "accepted", Was: true})
	do(err)
	return failed
}
