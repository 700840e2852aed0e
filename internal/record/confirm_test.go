package record

import (
	"testing"
	"time"
)

func askFinal(q *Request)    { q.Ask = AskFinal }
func askConflict(q *Request) { q.Ask = AskConflict }
func confirmed(q *Request)   { q.Ask, q.Confirmed = AskFinal, true }

func askAgain(q *Redelivery) { q.Ask = AskFinal }

// asking is a claim about which IAK is to be asked.
func (k *keeper) asking(who string, o Outcome, options ...option) Decision {
	k.t.Helper()
	d := k.ask(who, o, Forwarded, append([]option{askFinal}, options...)...)
	if !d.Asking || d.Confirmed || !k.r.Claim.Asking {
		k.t.Errorf("%s: IAK is not asked: %+v, %+v", who, d, k.r.Claim)
	}
	return d
}

// hand is IAK's answer, and the app gets it.
func (k *keeper) hand(goods [8]byte, payload string, says bool) {
	k.t.Helper()
	if !k.r.Hand(&Handed{Owner: testOwner("A"), Goods: goods, Payload: payload, Confirmed: says}) {
		k.t.Error("the claim is not there any more")
	}
	o := k.sent["A"]
	o.Goods = goods
	k.sent["A"] = o
	k.store()
}

// What IAK is asked about is nothing that the app may have got, until it is handed on.
func TestConfirm(t *testing.T) {
	for name, play := range map[string]func(k *keeper){
		"its owner died while IAK was asked: no doubt, and no delivery, hold or not": func(k *keeper) {
			k.hold = true
			k.asking("A", success)
			k.is(StateInFlight, "A")
			k.passes(time.Minute)
			k.is(StateSpooled, "A")
			k.operate(OperationRelease, false, NotDoneError{})
			if d := k.redeliver("B", Forwarded, askAgain); d.Attempt != 1 || !d.Asking {
				k.t.Errorf("%+v, want attempt 1, and IAK to be asked", d)
			}
			if k.r.Doubt != nil || len(k.r.Kept.Tries) != 0 {
				k.t.Errorf("doubt %+v, tries %+v", k.r.Doubt, k.r.Kept.Tries)
			}
		},
		"the same without a spool": func(k *keeper) {
			k.hold = true
			k.asking("A", success, without)
			k.passes(time.Minute)
			k.is(StateReleased, "")
			if d := k.asking("B", success, without); d.Attempt != 1 {
				k.t.Errorf("attempt %d, want 1", d.Attempt)
			}
		},
		"its owner died when it was handed to the app: a doubt": func(k *keeper) {
			k.hold = true
			k.asking("A", success)
			k.hand(success.Goods, "", true)
			k.passes(time.Minute)
			k.is(StateHeld, "A")
			k.operate(OperationRelease, false, nil)
			if d := k.redeliver("B", Forwarded, askAgain); d.Asking || !d.Confirmed {
				k.t.Errorf("IAK is asked again: %+v", d)
			}
		},
		"a verdict is kept with the callback, and so are goods that only IAK's answer has": func(k *keeper) {
			k.asking("A", success)
			k.hand(late.Goods, "callback with goods", true)
			k.settle("A", Released)
			k.is(StateSpooled, "with goods")
			k.ask("B", late, Spooled, askFinal)
			k.passes(time.Second)
			if d := k.redeliver("C", Forwarded, askAgain); d.Asking || !d.Confirmed {
				k.t.Errorf("IAK is asked again: %+v", d)
			}
			k.settle("C", Accepted, func(s *Settlement) { s.Outcome = late; s.Outcome.Code = 200 })
			k.ask("D", late, Duplicate, askFinal)
			k.ask("E", success, Duplicate, askFinal)
		},
		"nobody knows, and it is delivered all the same": func(k *keeper) {
			k.asking("A", success)
			k.hand(success.Goods, "", false)
			k.settle("A", Released)
			k.passes(time.Second)
			if d := k.redeliver("B", Forwarded, askAgain); !d.Asking || d.Attempt != 2 {
				k.t.Errorf("%+v, want attempt 2, and IAK to be asked", d)
			}
		},
		"IAK cannot say yet: kept, no delivery counted, and pauses grow": func(k *keeper) {
			k.asking("A", success)
			k.settle("A", NotConfirmed)
			k.is(StateSpooled, "A")
			if k.r.Attempt != 0 || k.r.Kept.Pauses != 1 || len(k.r.Kept.Tries) != 1 || k.r.Kept.Tries[0].Ending != NotConfirmed {
				k.t.Errorf("%+v, %+v", k.r, k.r.Kept)
			}
			k.redeliver("B", NotDue, askAgain)
			k.passes(time.Second)
			k.redeliver("C", Forwarded, askAgain)
		},
		"IAK denies it: the record is as it was": func(k *keeper) {
			k.asking("A", success)
			k.settle("A", Denied)
			k.is(StateForgotten, "")
			k.ask("B", success, Forwarded)
			k.settle("B", Accepted)
			d := k.asking("C", failed, insist)
			if d.Contradicts != int(Success) || d.Refused {
				k.t.Errorf("%+v, want a reversal that goes on", d)
			}
			k.settle("C", Denied)
			k.is(StateAccepted, "")
			k.ask("D", success, Duplicate, askFinal)
		},
		"IAK is asked before a conflict is told": func(k *keeper) {
			k.ask("A", success, Forwarded)
			k.settle("A", Accepted)
			k.ask("B", failed, Conflict)
			if d := k.asking("C", failed); d.Contradicts != int(Success) || !d.Refused {
				k.t.Errorf("%+v, want one that on_conflict refuses if IAK confirms it", d)
			}
			k.settle("C", Denied)
			k.ask("D", failed, Conflict, confirmed)
			if d := k.ask("E", failed, Forwarded, confirmed, insist); d.Asking || !d.Confirmed || d.Contradicts != int(Success) {
				k.t.Errorf("%+v", d)
			}
		},
		"only about a conflict": func(k *keeper) {
			if d := k.ask("A", success, Forwarded, askConflict); d.Asking {
				k.t.Errorf("IAK is asked: %+v", d)
			}
			k.settle("A", Accepted)
			if d := k.ask("B", late, Forwarded, askConflict); d.Asking {
				k.t.Errorf("IAK is asked about goods: %+v", d)
			}
			k.settle("B", Unsent)
			k.ask("C", success, Duplicate, askConflict)
			k.operate(OperationForget, true, nil)
			k.ask("D", success, Forwarded)
			k.settle("D", Accepted)
			if d := k.ask("E", failed, Forwarded, askConflict); !d.Asking || !d.Refused {
				k.t.Errorf("IAK is not asked: %+v", d)
			}
		},
		"of what is under way IAK is not asked": func(k *keeper) {
			if d := k.ask("A", progress, Forwarded, askFinal); d.Asking {
				k.t.Errorf("IAK is asked: %+v", d)
			}
			k.settle("A", Accepted)
			k.asking("B", success)
		},
		"what nobody has confirmed takes no place of a final one that is kept": func(k *keeper) {
			k.asking("A", success)
			k.ask("B", failed, AskFirst, askFinal)
			k.ask("C", late, AskFirst, askFinal)
			k.is(StateInFlight, "A")
			k.settle("A", NotConfirmed)
			k.ask("D", failed, AskFirst, askFinal)
			k.ask("E", failed, AskFirst, askFinal, insist)
			k.ask("F", late, AskFirst, askFinal)
			k.ask("G", failed, AskFirst, askConflict)
			k.ask("H", success, Spooled, askFinal)
			k.is(StateSpooled, "A")
		},
		"what IAK confirms takes the place of what nobody has confirmed": func(k *keeper) {
			k.asking("A", success)
			k.settle("A", NotConfirmed)
			d := k.ask("B", failed, Forwarded, confirmed)
			if d.Asking || !d.Confirmed || d.Contradicts != -1 {
				k.t.Errorf("%+v, want no conflict", d)
			}
			k.is(StateInFlight, "B")
			k.settle("B", Released)
			k.is(StateSpooled, "B")
			k.ask("C", success, Conflict, confirmed)
		},
		"also while IAK is asked about that": func(k *keeper) {
			k.asking("A", failed)
			k.ask("B", success, Spooled, confirmed)
			k.is(StateInFlight, "B")
			k.settle("A", Denied)
			k.is(StateSpooled, "B")
			d := k.redeliver("C", Forwarded, askAgain)
			if d.Asking || !d.Confirmed || d.Contradicts != -1 || d.Attempt != 1 {
				k.t.Errorf("%+v, want the first delivery of what is confirmed", d)
			}
		},
		"but not of what the app is being told, or may have been": func(k *keeper) {
			k.asking("A", failed)
			k.hand(failed.Goods, "", false)
			k.ask("B", success, Conflict, confirmed)
			k.passes(time.Minute)
			k.ask("C", success, Conflict, confirmed)
			d := k.ask("D", success, Forwarded, confirmed, insist)
			if d.Contradicts != int(Failed) {
				k.t.Errorf("%+v, want a conflict with the failure", d)
			}
		},
		"a final outcome follows what is under way without a question before": func(k *keeper) {
			k.ask("A", progress, Forwarded)
			k.ask("B", success, Spooled, askFinal)
			k.settle("A", Accepted)
			if d := k.redeliver("C", Forwarded, askAgain); !d.Asking {
				k.t.Errorf("IAK is not asked: %+v", d)
			}
		},
		"the claim is over when IAK has answered": func(k *keeper) {
			k.asking("A", success, without)
			k.passes(time.Minute)
			k.asking("B", success, without)
			if k.r.Hand(&Handed{Owner: testOwner("A"), Confirmed: true}) {
				k.t.Error("it was handed to the app without a claim")
			}
		},
	} {
		t.Run(name, func(t *testing.T) { play(newKeeper(t)) })
	}
}
