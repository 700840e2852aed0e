package record

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// keeper plays with one record as handlers with a spool do. After each step the record
// goes through its bytes.
type keeper struct {
	t    *testing.T
	r    *Record
	now  int64
	hold bool // on_doubt hold
	ends map[string]int64
	sent map[string]Outcome
}

func newKeeper(t *testing.T) *keeper {
	return &keeper{t: t, r: new(Record), now: 1_800_000_000_000, ends: make(map[string]int64), sent: make(map[string]Outcome)}
}

func (k *keeper) store() {
	k.t.Helper()
	if c := k.r.Claim; c != nil && c.End == 0 {
		c.End = k.now + c.Lease.Milliseconds()
		k.ends[string(c.Owner[:1])], k.sent[string(c.Owner[:1])] = c.End, c.Outcome
	}
	if kept := k.r.Kept; kept != nil && k.r.Claim == nil && kept.Due == 0 {
		if kept.Wait.Milliseconds() == 0 {
			k.t.Fatalf("a wait of %s, which a store takes for none", kept.Wait)
		}
		kept.Due = k.now + kept.Wait.Milliseconds()
	}
	value := k.r.Encode()
	r, err := Decode(value)
	if err != nil || r.Encode() != value {
		k.t.Fatalf("%+v is read as %+v, %v", k.r, r, err)
	}
	if want := k.r.Kept != nil; value != "" && (value[0] == versionKept) != want {
		k.t.Fatalf("version %d, with a callback %t", value[0], want)
	}
	k.r = r
	k.peek()
}

// peek looks at the record as a list does, and compares it with what is in it.
func (k *keeper) peek() {
	k.t.Helper()
	value := k.r.Encode()
	if value == "" {
		return
	}
	came, state, ok := Peek(value[:min(len(value), HeadSize)], readInt64([]byte(value[len(value)-8:])), k.now)
	if ok != (k.r.Kept != nil) || Keeps(value[0]) != ok {
		k.t.Fatalf("a look says that something is kept: %t, in %+v", ok, k.r)
	}
	if !ok {
		return
	}
	want := Snapshot{Record: k.r, Now: k.now}.State(k.hold)
	if want == StateHeld && k.r.Claim != nil { // nobody has looked at it since its lease ended
		want = StateSpooled
	}
	if came != k.r.Kept.Came || state != want {
		k.t.Errorf("a look says %s, came %d, want %s and %d: %+v", state, came, want, k.r.Kept.Came, k.r)
	}
}

// option changes a request.
type option func(*Request)

func later(q *Request) { q.Later = true }

func delayed(q *Request) { q.Later, q.Delay = true, time.Minute }

func without(q *Request) { q.Keep = nil }

func insist(q *Request) { q.ForwardConflict = true }

// ask is a callback that comes; who is the owner if it is claimed. The lease is a minute.
func (k *keeper) ask(who string, o Outcome, want Verdict, options ...option) Decision {
	k.t.Helper()
	k.now++
	payload := "callback " + who
	q := &Request{Outcome: o, Owner: testOwner(who), Lease: time.Minute, Hold: k.hold, Keep: &payload, Came: k.now}
	for _, change := range options {
		change(q)
	}
	before := k.r.Encode()
	d := k.r.Decide(q, k.now)
	if d.Verdict != want {
		k.t.Errorf("%s, %s: %+v, want %s", who, outcomeNames[o], d, want)
	}
	if changed := d.Verdict == Forwarded || d.Changed; (k.r.Encode() != before) != changed {
		k.t.Errorf("%s, %s: the record changed %t, and the decision says %t", who, outcomeNames[o], !changed, changed)
	}
	if d.Verdict == Forwarded && q.Keep != nil && (k.r.Kept == nil || k.r.Kept.Payload != payload) {
		k.t.Errorf("%s was claimed, and is not kept: %+v", who, k.r.Kept)
	}
	k.store()
	return d
}

// redeliver is a worker that has found the record.
func (k *keeper) redeliver(who string, want Verdict, change ...func(*Redelivery)) Decision {
	k.t.Helper()
	k.now++
	q := &Redelivery{Owner: testOwner(who), Lease: time.Minute, Hold: k.hold, Oldest: k.now - 24*3_600_000, Longest: time.Hour}
	for _, c := range change {
		c(q)
	}
	d := k.r.Redeliver(q, k.now)
	if d.Verdict != want {
		k.t.Errorf("%s, redelivery: %+v, want %s", who, d, want)
	}
	k.store()
	return d
}

// settle ends the delivery who; what is kept waits a second then.
func (k *keeper) settle(who string, ending Ending, change ...func(*Settlement)) {
	k.t.Helper()
	k.now++
	s := &Settlement{Owner: testOwner(who), End: k.ends[who], Ending: ending, Outcome: k.sent[who], Pause: time.Second}
	s.Outcome.LateGoods, s.Outcome.Contradicts = false, 0
	s.Outcome.Code = map[Ending]int{Accepted: 200, Released: 500}[ending]
	for _, c := range change {
		c(s)
	}
	k.r.Settle(s, k.now)
	k.store()
}

func (k *keeper) passes(d time.Duration) { k.now += d.Milliseconds() }

// is expects the state that an operator sees, and the payload that is kept.
func (k *keeper) is(state State, payload string) {
	k.t.Helper()
	shot := Snapshot{Record: k.r, Now: k.now}
	got := ""
	if k.r.Kept != nil {
		got = strings.TrimPrefix(k.r.Kept.Payload, "callback ")
	}
	if shot.State(k.hold) != state || got != payload {
		k.t.Errorf("the state is %s with %q kept, want %s with %q", shot.State(k.hold), got, state, payload)
	}
}

// Section "Written ahead" of the contract: each row of its table, and what belongs to
// it.
func TestKept(t *testing.T) {
	for name, play := range map[string]func(k *keeper){
		"accepted at once": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.is(StateInFlight, "A")
			k.settle("A", Accepted)
			k.is(StateAccepted, "")
			k.ask("B", success, Duplicate)
		},
		"refused, and delivered again after the pause": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Released)
			k.is(StateSpooled, "A")
			k.redeliver("B", NotDue)
			k.passes(time.Second)
			if d := k.redeliver("C", Forwarded); d.Attempt != 2 {
				k.t.Errorf("attempt %d, want 2", d.Attempt)
			}
			k.redeliver("D", InFlight)
			k.settle("C", Accepted)
			k.is(StateAccepted, "")
			k.redeliver("E", Nothing)
		},
		"nothing was sent: no attempt is counted, and pauses grow": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Unsent)
			if k.r.Attempt != 0 || k.r.Kept.Pauses != 1 || len(k.r.Kept.Tries) != 1 {
				k.t.Errorf("%+v, %+v", k.r, k.r.Kept)
			}
			k.passes(time.Second)
			if d := k.redeliver("B", Forwarded); d.Attempt != 1 {
				k.t.Errorf("attempt %d, want 1", d.Attempt)
			}
		},
		"the same while it is in flight": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.ask("B", success, Spooled)
			k.is(StateInFlight, "A")
		},
		"the same while it is kept is delivered now": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Released, func(s *Settlement) { s.Pause = time.Hour })
			k.ask("B", success, Spooled)
			k.redeliver("C", Forwarded)
		},
		"but not before its delay is over": func(k *keeper) {
			k.ask("A", success, Spooled, delayed)
			k.is(StateSpooled, "A")
			k.ask("B", success, Spooled, delayed)
			k.redeliver("C", NotDue)
			k.passes(time.Minute)
			k.redeliver("D", Forwarded)
		},
		"kept at once, and delivered by a worker": func(k *keeper) {
			k.ask("A", success, Spooled, later)
			k.redeliver("B", Forwarded)
			k.settle("B", Accepted)
			k.is(StateAccepted, "")
		},
		"its owner died, retry": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.passes(time.Minute)
			k.is(StateSpooled, "A")
			if d := k.redeliver("B", Forwarded); d.Attempt != 2 {
				k.t.Errorf("attempt %d, want 2", d.Attempt)
			}
			if tries := k.r.Kept.Tries; len(tries) != 1 || tries[0].Ending != Lapsed || tries[0].Took != time.Minute {
				k.t.Errorf("the tries are %+v, want one that was given up", tries)
			}
		},
		"its owner died, and it comes again": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.passes(time.Minute)
			k.ask("B", success, Spooled)
			k.is(StateSpooled, "A")
			if d := k.redeliver("C", Forwarded); d.Attempt != 2 {
				k.t.Errorf("attempt %d, want 2", d.Attempt)
			}
		},
		"its owner died, hold": func(k *keeper) {
			k.hold = true
			k.ask("A", success, Forwarded)
			k.passes(time.Minute)
			k.is(StateHeld, "A")
			k.redeliver("B", Held)
			k.is(StateHeld, "A")
			if k.r.Kept.Due != Never {
				k.t.Errorf("due at %d", k.r.Kept.Due)
			}
			k.ask("C", success, Held)
			k.ask("D", progress, Stale)
			k.ask("E", failed, Conflict)
			k.operate(OperationRelease, false, nil)
			k.is(StateSpooled, "A")
			k.redeliver("F", Forwarded)
		},
		"held, and accepted by an operator": func(k *keeper) {
			k.hold = true
			k.ask("A", success, Forwarded)
			k.passes(time.Minute)
			k.operate(OperationAccept, false, nil)
			k.is(StateAccepted, "")
		},
		"held, and redelivered by an operator": func(k *keeper) {
			k.hold = true
			k.ask("A", success, Forwarded)
			k.passes(time.Minute)
			k.operate(OperationRedeliver, false, nil)
			k.redeliver("B", Forwarded)
		},
		"its owner died, accept": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.passes(time.Minute)
			k.redeliver("B", Settled, func(q *Redelivery) { q.Assume = true })
			k.is(StateAssumed, "")
		},
		"held from before there was a spool": func(k *keeper) {
			k.hold = true
			k.ask("A", success, Forwarded, without)
			k.passes(time.Minute)
			k.is(StateHeld, "")
			k.ask("B", success, Held)
			k.is(StateHeld, "B")
		},
		"a copy that meets what nobody keeps": func(k *keeper) {
			k.ask("A", success, Forwarded, without)
			k.ask("B", success, InFlight)
			k.is(StateInFlight, "")
		},
		"the newer waits behind the delivery under way": func(k *keeper) {
			k.ask("A", progress, Forwarded)
			k.ask("B", success, Spooled)
			k.is(StateInFlight, "B")
			k.ask("C", progress, Stale)
			k.ask("D", failed, Conflict)
			k.redeliver("E", InFlight)
			k.settle("A", Accepted)
			k.is(StateSpooled, "B")
			k.redeliver("F", Forwarded)
			k.settle("F", Accepted)
			k.is(StateAccepted, "")
		},
		"the newer waits behind what is refused": func(k *keeper) {
			k.ask("A", progress, Forwarded)
			k.ask("B", success, Spooled)
			k.settle("A", Released)
			k.is(StateSpooled, "B")
			if len(k.r.Kept.Tries) != 0 {
				k.t.Errorf("another's try is counted: %+v", k.r.Kept.Tries)
			}
			k.redeliver("C", Forwarded)
		},
		"the newer waits behind a delivery whose owner died": func(k *keeper) {
			k.ask("A", progress, Forwarded)
			k.ask("B", success, Spooled)
			k.passes(time.Minute)
			k.redeliver("C", Forwarded)
			k.is(StateInFlight, "B")
		},
		"the newer waits behind what nobody keeps": func(k *keeper) {
			k.ask("A", progress, Forwarded, without)
			k.ask("B", success, Spooled)
			k.settle("A", Accepted)
			k.redeliver("C", Forwarded)
		},
		"the newer replaces what is kept": func(k *keeper) {
			k.ask("A", progress, Forwarded)
			k.settle("A", Released)
			k.ask("B", success, Forwarded)
			k.is(StateInFlight, "B")
			k.settle("B", Released)
			if k.r.Kept.Pauses != 1 {
				k.t.Errorf("%d pauses, want 1: tries begin anew", k.r.Kept.Pauses)
			}
		},
		"late goods wait behind their success": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.ask("B", late, Spooled)
			k.ask("C", success, Spooled) // an older form
			k.settle("A", Accepted)
			k.is(StateSpooled, "B")
			if d := k.redeliver("D", Forwarded); !d.LateGoods {
				k.t.Error("not told as late goods")
			}
		},
		"0 after a kept 1": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Released)
			k.ask("B", progress, Stale)
			k.is(StateSpooled, "A")
		},
		"a contradiction": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.ask("B", failed, Conflict)
			k.settle("A", Released)
			if d := k.ask("C", failed, Conflict); d.Contradicts != int(Success) {
				k.t.Errorf("contradicts %d", d.Contradicts)
			}
			k.is(StateSpooled, "A")
			if d := k.ask("D", failed, Forwarded, insist); d.Contradicts != int(Success) {
				k.t.Errorf("Iak-Conflict %d, want that of what was kept", d.Contradicts)
			}
			k.is(StateInFlight, "D")
		},
		"a contradiction waits behind the delivery under way": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.ask("B", failed, Spooled, insist)
			k.settle("A", Accepted)
			k.is(StateSpooled, "B")
			if d := k.redeliver("C", Forwarded); d.Contradicts != int(Success) {
				k.t.Errorf("Iak-Conflict %d", d.Contradicts)
			}
		},
		"too old": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Released)
			k.passes(25 * time.Hour)
			k.redeliver("B", Died)
			k.is(StateDead, "A")
			k.passes(time.Hour)
			k.redeliver("C", Died)
			k.operate(OperationForget, false, ErrForgetsKept)
			k.operate(OperationRedeliver, false, nil)
			k.is(StateSpooled, "A")
			k.redeliver("D", Forwarded)
		},
		"the clock is set back": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Released)
			k.passes(-59 * time.Minute)
			k.redeliver("B", NotDue)
			k.passes(-2 * time.Minute)
			k.redeliver("C", Forwarded)
		},
		"a dead one that comes again begins anew": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Released)
			k.passes(25 * time.Hour)
			k.redeliver("B", Died)
			k.ask("C", success, Spooled)
			k.is(StateSpooled, "A")
			k.redeliver("D", Forwarded)
		},
		"a pause of less than a millisecond": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Released, func(s *Settlement) { s.Pause = 300 * time.Microsecond })
			k.redeliver("B", Forwarded)
		},
		"three panics in a row": func(k *keeper) {
			panicked := func(s *Settlement) { s.Panicked = true }
			k.ask("A", success, Forwarded)
			k.settle("A", Released, panicked)
			for _, who := range []string{"B", "C", "D"} {
				k.passes(time.Second)
				k.redeliver(who, Forwarded)
				if who == "B" {
					k.settle(who, Released)
				} else {
					k.settle(who, Released, panicked)
				}
				k.is(StateSpooled, "A")
			}
			k.passes(time.Second)
			k.redeliver("E", Forwarded)
			k.settle("E", Released, panicked)
			k.is(StateDead, "A")
		},
		"ten tries are remembered": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Released)
			for i := range 300 {
				k.passes(time.Second)
				who := fmt.Sprint(i)
				k.redeliver(who, Forwarded)
				k.ends[who], k.sent[who] = k.r.Claim.End, k.r.Claim.Outcome
				k.settle(who, Released, func(s *Settlement) { s.Outcome.Code, s.Took = 404, time.Duration(i)*time.Millisecond })
			}
			tries := k.r.Kept.Tries
			if len(tries) != 10 || tries[9].Status != 404 || tries[9].Took != 299*time.Millisecond || tries[9].Ending != Released || k.r.Kept.Pauses != 255 {
				k.t.Errorf("%d tries, the last %+v, %d pauses", len(tries), tries[len(tries)-1], k.r.Kept.Pauses)
			}
		},
		"a handler without a spool": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Released)
			k.ask("B", success, Spooled, without)
			k.ask("C", progress, Stale, without)
			k.ask("D", failed, Conflict, without)
			k.is(StateSpooled, "A")
		},
		"a handler without a spool gets the newer": func(k *keeper) {
			k.ask("A", progress, Forwarded)
			k.settle("A", Released)
			k.ask("B", success, Forwarded, without)
			k.is(StateInFlight, "A")
			k.settle("B", Accepted)
			k.is(StateAccepted, "")
		},
		"a fact that comes late": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.passes(time.Minute)
			k.redeliver("B", Forwarded)
			k.settle("A", Accepted)
			k.is(StateInFlight, "")
			k.settle("B", Released)
			k.is(StateAccepted, "")
		},
		"redeliver without anything kept": func(k *keeper) {
			k.ask("A", success, Forwarded, without)
			k.settle("A", Released)
			k.operate(OperationRedeliver, false, NotDoneError{})
		},
		"forget all the same": func(k *keeper) {
			k.ask("A", success, Spooled, later)
			k.operate(OperationForget, true, nil)
			k.is(StateForgotten, "")
		},
	} {
		t.Run(name, func(t *testing.T) { play(newKeeper(t)) })
	}
}

func (k *keeper) operate(what Operation, even bool, want error) {
	k.t.Helper()
	k.now++
	err := k.r.Operate(what, even, k.now, k.now)
	if (err == nil) != (want == nil) || want != nil && !errors.As(err, new(NotDoneError)) || errors.Is(want, ErrForgetsKept) && !errors.Is(err, want) {
		k.t.Errorf("%s: %v, want %v", what, err, want)
	}
	k.store()
}

// Each prefix of a record that keeps a callback is refused, and one byte more, and what
// no version has written.
func TestKeptDamaged(t *testing.T) {
	outcome := Outcome{Status: Success}
	whole := (&Record{Attempt: 1, Accepted: &outcome, Kept: &Kept{
		Outcome: outcome, Payload: "payload", Due: 1, Tries: []Try{{Ending: Released, Status: 500}},
	}}).Encode()
	damaged := []string{whole + "x", "\x03" + whole[1:], "\x01" + whole[1:]}
	for n := 1; n < len(whole); n++ {
		damaged = append(damaged, whole[:n])
	}
	for _, b := range damaged {
		if r, err := Decode(b); err != ErrUnreadable { //nolint:errorlint // the very same
			t.Errorf("% x is read as %+v, %v", b, r, err)
		}
	}
}
