package inspect

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/sqlitestore"
	"go.uber.org/zap"
)

// inFile is an account whose records are in a file.
func inFile(t *testing.T) Namespace {
	t.Helper()
	engine := sqlitestore.New(filepath.Join(t.TempDir(), "records.sqlite"), time.Minute, nil)
	t.Cleanup(func() { engine.Destruct() })
	use := &memoryUse{id: t.Name(), store: &store.Store{Engine: engine, Log: zap.NewNop, Hold: func() func() { return func() {} }}}
	return Namespace{Store: use, KeyPrefix: "iak:", Account: "shop", Retention: time.Hour, Hold: true, Spool: true}
}

// put makes a record of a ref_id what it is to be.
func put(t *testing.T, n Namespace, refID string, r *record.Record) {
	t.Helper()
	_, err := n.Store.(*memoryUse).store.Change(n.place(refID), n.Hold, func(there *record.Record, _ int64) error {
		*there = *r
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// get is what is remembered of a ref_id.
func get(t *testing.T, n Namespace, refID string) record.Snapshot {
	t.Helper()
	shot, err := n.Store.(*memoryUse).store.Record(n.key(refID))
	if err != nil {
		t.Fatal(err)
	}
	return shot
}

const secret = "5ecret-goods"

var (
	success = record.Outcome{Status: record.Success, Fixed: [8]byte{1}}
	failed  = record.Outcome{Status: record.Failed, Fixed: [8]byte{2}}
)

// kept is a callback that is kept, with a change.
func kept(change func(k *record.Kept)) *record.Kept {
	k := &record.Kept{Outcome: success, Payload: secret, Came: 1_000_000, Due: 2_000_000, Pauses: 3}
	if change != nil {
		change(k)
	}
	return k
}

func never(k *record.Kept) { k.Due = record.Never }
func dead(k *record.Kept)  { k.Due, k.Dead = record.Never, true }

// claim is a delivery of an outcome that ends some time from now.
func claim(o record.Outcome, left time.Duration) *record.Claim {
	return &record.Claim{Outcome: o, Owner: record.Owner{1}, Lease: time.Hour, End: time.Now().Add(left).UnixMilli()}
}

// What is kept is shown with its state, and when and by whom it is delivered, but never
// with what it says.
func TestShowKept(t *testing.T) {
	for _, tc := range []struct {
		name     string
		record   record.Record
		state    record.State
		status   string
		due      int64 // 0 for none, -1 for the end of the claim
		dead     bool
		inFlight string
	}{
		{name: "waits for its pause", record: record.Record{Attempt: 1, Kept: kept(nil)}, state: Spooled, status: "success", due: 2_000_000},
		{name: "held", record: record.Record{Attempt: 1, Doubt: &success, Kept: kept(never)}, state: Held, status: "success"},
		{name: "dead", record: record.Record{Attempt: 1, Kept: kept(dead)}, state: Dead, status: "success", dead: true},
		{name: "being delivered", record: record.Record{Attempt: 1, Claim: claim(success, time.Minute), Kept: kept(nil)},
			state: InFlight, status: "success", inFlight: "success"},
		{name: "behind a delivery", record: record.Record{Attempt: 1, Claim: claim(record.Outcome{}, time.Minute), Kept: kept(nil)},
			state: InFlight, status: "success", inFlight: "process"},
		{name: "its delivery has lapsed", record: record.Record{Attempt: 1, Claim: claim(success, -time.Minute), Kept: kept(nil)},
			state: Held, status: "success"},
		{name: "the delivery before it has lapsed", record: record.Record{Attempt: 1, Claim: claim(record.Outcome{}, -time.Minute), Kept: kept(nil)},
			state: Spooled, status: "success", due: -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := inFile(t)
			put(t, n, "order1", &tc.record)
			answer, err := Show([]Namespace{n}, "order1")
			if err != nil || len(answer.Records) != 1 || answer.Records[0].Kept == nil {
				t.Fatalf("%+v, %v", answer, err)
			}
			got := answer.Records[0]
			if got.State != tc.state || got.InFlight != tc.inFlight || !got.Expires.IsZero() {
				t.Errorf("%+v, want the state %s, %q in flight, and no end", got, tc.state, tc.inFlight)
			}
			due := tc.due
			if due < 0 {
				due = tc.record.Claim.End
			}
			if k := got.Kept; k.Status != tc.status || k.Dead != tc.dead || k.Came.UnixMilli() != 1_000_000 || (k.Due == nil) != (due == 0) || due != 0 && k.Due.UnixMilli() != due {
				t.Errorf("%+v, want %+v, due %d", k, tc, due)
			}
			if text, err := json.Marshal(answer); err != nil || strings.Contains(string(text), secret) {
				t.Errorf("%s, %v: what is kept is told", text, err)
			}
		})
	}
}

// Each try is told in the words of an operator.
func TestShowTries(t *testing.T) {
	n := inFile(t)
	put(t, n, "order1", &record.Record{Attempt: 1, Kept: kept(func(k *record.Kept) {
		k.Tries = []record.Try{
			{At: 5000, Ending: record.Released, Status: 500, Took: 1500 * time.Millisecond},
			{At: 6000, Ending: record.Unsent, Took: time.Millisecond},
			{At: 7000, Ending: record.Lapsed, Took: time.Minute},
			{At: 8000, Ending: record.Released, Status: 200},
			{At: 9000, Ending: record.Released},
		}
	})})
	answer, err := Show([]Namespace{n}, "order1")
	if err != nil {
		t.Fatal(err)
	}
	want := []Try{
		{time.UnixMilli(5000), Refused, 500, 1.5}, {time.UnixMilli(6000), Unsent, 0, 0.001}, {time.UnixMilli(7000), Unknown, 0, 60},
		{time.UnixMilli(8000), Refused, 200, 0}, {time.UnixMilli(9000), Refused, 0, 0},
	}
	got := answer.Records[0].Kept.Tries
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for i, words := range []string{"the app refused", "nothing reached the app", "the app may have acted", "accept_when", "no answer of the app"} {
		if !strings.Contains(got[i].What(), words) {
			t.Errorf("%+v is told as %q, want %q in it", got[i], got[i].What(), words)
		}
	}
}

// Whether a route leads to it is asked of what is kept, with its store and key.
func TestShowUnrouted(t *testing.T) {
	n := inFile(t)
	n.Unrouted = func(s *store.Store, key string) bool {
		return s == n.Store.(*memoryUse).store && key == "iak:shop:order1"
	}
	for refID, r := range map[string]*record.Record{"order1": {Kept: kept(nil)}, "order2": {Kept: kept(nil)}, "order3": {Attempt: 1}} {
		put(t, n, refID, r)
	}
	for refID, want := range map[string]bool{"order1": true, "order2": false, "order3": false} {
		answer, err := Show([]Namespace{n}, refID)
		if err != nil {
			t.Fatal(err)
		}
		if k := answer.Records[0].Kept; (k != nil && k.Unrouted) != want {
			t.Errorf("%s: %+v, want unrouted %t", refID, k, want)
		}
	}
}

// A file for the time without Redis is told as one, as long as it keeps something.
func TestShowOutage(t *testing.T) {
	n := inFile(t)
	n.Hold, n.Outage = false, true
	put(t, n, "order1", &record.Record{Kept: kept(nil)})
	if answer, err := Show([]Namespace{n}, "order1"); err != nil || !answer.Records[0].Outage {
		t.Errorf("%+v, %v", answer, err)
	}
	if answer, err := Operate([]Namespace{n}, "order1", record.OperationForget, true); err != nil || answer.Records[0].Outage {
		t.Errorf("forgotten: %+v, %v", answer, err)
	}
}

// What is kept is due now, and its tries begin anew, but the past ones are still told.
// What is in doubt with on_doubt hold takes a second word.
func TestRedeliver(t *testing.T) {
	for _, tc := range []struct {
		name   string
		record *record.Record // nil: none
		noHold bool
		sure   bool
		words  string // of the error
		none   bool
	}{
		{name: "spooled", record: &record.Record{Attempt: 4, Kept: kept(nil)}},
		{name: "dead", record: &record.Record{Attempt: 4, Kept: kept(dead)}},
		{name: "held", record: &record.Record{Attempt: 4, Doubt: &success, Kept: kept(never)}, words: "it is held: nobody knows whether the app has acted"},
		{name: "held, and sure", record: &record.Record{Attempt: 4, Doubt: &success, Kept: kept(never)}, sure: true},
		{name: "dead and in doubt", record: &record.Record{Attempt: 4, Doubt: &success, Kept: kept(dead)}, words: "it is held"},
		{name: "in doubt without hold", record: &record.Record{Attempt: 4, Doubt: &success, Kept: kept(nil)}, noHold: true},
		{name: "in flight", record: &record.Record{Attempt: 4, Claim: claim(success, time.Minute), Kept: kept(nil)}, words: "a delivery is under way"},
		{name: "in flight, and sure", record: &record.Record{Attempt: 4, Claim: claim(success, time.Minute), Kept: kept(nil)}, sure: true, words: "a delivery is under way"},
		{name: "held, nothing kept", record: &record.Record{Attempt: 4, Doubt: &success}, words: "no callback is kept"},
		{name: "accepted", record: &record.Record{Accepted: &success}, words: "no callback is kept"},
		{name: "none", none: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := inFile(t)
			n.Hold = !tc.noHold
			var before record.Snapshot
			if tc.record != nil {
				put(t, n, "order1", tc.record)
				before = get(t, n, "order1")
			}
			answer, err := Operate([]Namespace{n}, "order1", record.OperationRedeliver, tc.sure)
			switch {
			case tc.none:
				if !errors.Is(err, record.ErrNone) {
					t.Errorf("error %v", err)
				}
				return
			case tc.words != "":
				after := get(t, n, "order1")
				if err == nil || !strings.Contains(err.Error(), tc.words) || errors.As(err, new(UnavailableError)) {
					t.Errorf("error %v, want a refusal with %q", err, tc.words)
				}
				if after.Encode() != before.Encode() {
					t.Errorf("the record is %+v now, was %+v", after, before)
				}
				return
			case err != nil || len(answer.Records) != 1:
				t.Fatalf("%+v, %v", answer, err)
			}
			shot := get(t, n, "order1")
			if k := shot.Kept; k == nil || k.Dead || k.Due > shot.Now || shot.Now-k.Due > 60_000 || k.Pauses != 0 || k.Payload != secret || shot.Doubt != nil {
				t.Errorf("it is %+v, %+v", shot.Record, shot.Kept)
			}
			if ago := time.Now().UnixMilli() - shot.Kept.Came; ago < 0 || ago > 60_000 || shot.Attempt != 4 {
				t.Errorf("its max_age began %d ms ago, attempt %d", ago, shot.Attempt)
			}
			if got := answer.Records[0]; got.State != Spooled || got.Kept.Due == nil || got.Kept.Due.UnixMilli() != shot.Kept.Due {
				t.Errorf("answered %+v", got)
			}
		})
	}
}

// An order that is kept in one store, and known in another, is redelivered where it is
// kept; the other is no failure. One that is down may keep it too.
func TestRedeliverPlaces(t *testing.T) {
	one, other := inFile(t), inFile(t)
	put(t, one, "order1", &record.Record{Kept: kept(dead)})
	put(t, other, "order1", &record.Record{Accepted: &success})
	put(t, other, "order2", &record.Record{Accepted: &success})
	for _, all := range [][]Namespace{{one, other}, {other, one}} {
		answer, err := Operate(all, "order1", record.OperationRedeliver, false)
		if err != nil || len(answer.Records) != 1 || len(answer.Errors) != 0 {
			t.Errorf("%+v, %v, want one record and no error", answer, err)
		}
		if _, err := Operate(all, "order2", record.OperationRedeliver, false); err == nil || !strings.Contains(err.Error(), "no callback is kept") {
			t.Errorf("error %v of what is accepted", err)
		}
	}
	one.Store.(*memoryUse).fails = errors.New("the disk is gone")
	if _, err := Operate([]Namespace{other, one}, "order1", record.OperationRedeliver, false); !errors.As(err, new(UnavailableError)) || !strings.Contains(err.Error(), "the disk is gone") {
		t.Errorf("error %v, want the store's", err)
	}
}

// What is kept is revealed as it is read, with the place where it is; of what is not kept
// nothing is.
func TestReveal(t *testing.T) {
	one, other := inFile(t), inFile(t)
	put(t, one, "order1", &record.Record{Kept: kept(nil)})
	put(t, other, "order1", &record.Record{Accepted: &failed})
	put(t, other, "order2", &record.Record{Accepted: &failed})
	all := []Namespace{one, other}
	read := func(payload string) (Callback, error) { return Callback{Body: payload}, nil }
	revealed, err := Reveal(all, "order1", read)
	if err != nil || len(revealed.Callbacks) != 1 || len(revealed.Errors) != 0 {
		t.Fatalf("%+v, %v", revealed, err)
	}
	if c := revealed.Callbacks[0]; c.Body != secret || c.Account != "shop" || c.RefID != "order1" || !strings.Contains(c.Store, "records.sqlite") {
		t.Errorf("got %+v", c)
	}
	if _, err := Reveal(all, "order2", read); err == nil || !strings.Contains(err.Error(), "no callback is kept") || errors.As(err, new(UnavailableError)) {
		t.Errorf("error %v of what is accepted", err)
	}
	if _, err := Reveal(all, "order3", read); !errors.Is(err, record.ErrNone) {
		t.Errorf("error %v without a record", err)
	}
	damaged := errors.New("it cannot be read")
	if _, err := Reveal(all, "order1", func(string) (Callback, error) { return Callback{}, damaged }); !errors.As(err, new(UnavailableError)) {
		t.Errorf("error %v of what cannot be read", err)
	}
}
