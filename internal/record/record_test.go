package record

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// The outcomes of one order that the tables below speak of. late brings the
// goods that success lacks; an outcome that ends in Other tells of other fixed
// fields, late2 of other goods.
var (
	progress      = testOutcome(Process, "F", "")
	progressOther = testOutcome(Process, "G", "S")
	success       = testOutcome(Success, "F", "")
	late          = testOutcome(Success, "F", "S")
	late2         = testOutcome(Success, "F", "T")
	successOther  = testOutcome(Success, "G", "")
	lateOther     = testOutcome(Success, "G", "S")
	failed        = testOutcome(Failed, "F", "")
	failedOther   = testOutcome(Failed, "G", "")
	failedGoods   = testOutcome(Failed, "F", "S")

	outcomeNames = map[Outcome]string{
		progress: "process", progressOther: "processOther", success: "success", late: "late", late2: "late2",
		successOther: "successOther", lateOther: "lateOther", failed: "failed", failedOther: "failedOther", failedGoods: "failedGoods",
	}
)

func testOutcome(s Status, fixed, goods string) Outcome {
	o := Outcome{Status: s}
	copy(o.Fixed[:], fixed)
	copy(o.Goods[:], goods)
	return o
}

const (
	alive = time.Hour // a lease that outlives the test
	over  = 0         // a lease that is over at once: the claim is in doubt
)

// step is one Operation of a table, and what is expected of it.
type step struct {
	claim *Request    // or
	end   *Settlement // or
	does  Operation   // of an operator
	even  bool        // although the app has accepted an outcome
	owner string      // the delivery, a letter

	want  Decision // of a claim
	told  string   // of an Operation
	state string   // the record afterwards, as describe tells it; "-" is not looked at
}

// claims is a claim of the delivery who. It expects nothing yet.
func claims(who string, o Outcome, lease time.Duration) step {
	return step{owner: who, claim: &Request{Outcome: o, Lease: lease}, state: "-"}
}

// insists is a claim under on_conflict forward.
func insists(who string, o Outcome, lease time.Duration) step {
	s := claims(who, o, lease)
	s.claim.ForwardConflict = true
	return s
}

// holds is a claim under on_doubt hold.
func holds(who string, o Outcome, lease time.Duration) step {
	s := claims(who, o, lease)
	s.claim.Hold = true
	return s
}

// holdsInsists is a claim under both.
func holdsInsists(who string, o Outcome, lease time.Duration) step {
	s := insists(who, o, lease)
	s.claim.Hold = true
	return s
}

func (s step) held() step {
	return s.expect(Decision{Verdict: Held, Contradicts: -1})
}

// What an operator does, and expects to be done.
func operates(what Operation) step { return step{does: what, told: toldDone, state: "-"} }

// forgetsEvenAccepted is caddy iak-callback forget --yes.
func forgetsEvenAccepted() step {
	s := operates(OperationForget)
	s.even = true
	return s
}

// refused expects an Operation to be refused.
func (s step) refused(told string) step { s.told = told; return s }

func (s step) expect(d Decision) step { s.want = d; return s }

// What a claim can come to.
func (s step) forwarded(attempt int) step {
	return s.expect(Decision{Verdict: Forwarded, Attempt: attempt, Contradicts: -1})
}

func (s step) forwardedLate(attempt int) step {
	return s.expect(Decision{Verdict: Forwarded, Attempt: attempt, Contradicts: -1, LateGoods: true})
}

func (s step) forwardedAgainst(attempt int, accepted Status) step {
	return s.expect(Decision{Verdict: Forwarded, Attempt: attempt, Contradicts: int(accepted)})
}

func (s step) inFlight() step {
	return s.expect(Decision{Verdict: InFlight, Contradicts: -1})
}

// inFlightOther is that of a final outcome, while another is delivered.
func (s step) inFlightOther() step {
	return s.expect(Decision{Verdict: InFlight, Other: true, Contradicts: -1})
}

func (s step) duplicate(code int) step {
	return s.expect(Decision{Verdict: Duplicate, Code: code, Contradicts: -1})
}

func (s step) stale(code int) step {
	return s.expect(Decision{Verdict: Stale, Code: code, Contradicts: -1})
}

func (s step) conflict(with Status) step {
	return s.expect(Decision{Verdict: Conflict, Contradicts: int(with)})
}

// leaves expects a state of the record.
func (s step) leaves(state string) step { s.state = state; return s }

// The settlements of the claim that the delivery who made last.
func accepted(who string, code int) step {
	return step{owner: who, end: &Settlement{Ending: Accepted, Outcome: Outcome{Code: code}}, state: "-"}
}

func released(who string) step {
	return step{owner: who, end: &Settlement{Ending: Released}, state: "-"}
}

func unsent(who string) step {
	return step{owner: who, end: &Settlement{Ending: Unsent}, state: "-"}
}

// describe tells a record in words.
func describe(r *Record) string {
	name := func(o Outcome) string {
		code := o.Code
		o.Code, o.LateGoods, o.Contradicts = 0, false, 0
		if code == 0 {
			return outcomeNames[o]
		}
		return fmt.Sprintf("%s %d", outcomeNames[o], code)
	}
	var parts []string
	if r.Attempt > 0 {
		parts = append(parts, fmt.Sprint("attempt ", r.Attempt))
	}
	if r.Accepted != nil {
		parts = append(parts, "accepted "+name(*r.Accepted))
	}
	if r.Doubt != nil {
		parts = append(parts, "doubt "+name(*r.Doubt))
	}
	if r.Claim != nil {
		parts = append(parts, fmt.Sprintf("claim %c %s", r.Claim.Owner[0], name(r.Claim.Outcome)))
	}
	return strings.Join(parts, ", ")
}

// recordTable is section "Once for each outcome" of the contract: what each
// state of the record makes of each callback, and how each answer of the app
// settles a claim.
var recordTable = []struct {
	name  string
	steps []step
}{
	// No record.
	{"none, process", []step{claims("A", progress, alive).forwarded(1).leaves("attempt 1, claim A process")}},
	{"none, success", []step{claims("A", success, alive).forwarded(1).leaves("attempt 1, claim A success")}},
	{"none, success with goods", []step{claims("A", late, alive).forwarded(1)}},
	{"none, failed", []step{claims("A", failed, alive).forwarded(1).leaves("attempt 1, claim A failed")}},
	{"none, on_conflict forward", []step{insists("A", failed, alive).forwarded(1)}},

	// Released: the next delivery counts on, whatever it tells.
	{"released, the same", []step{
		claims("A", success, alive).forwarded(1),
		released("A").leaves("attempt 1"),
		claims("B", success, alive).forwarded(2),
	}},
	{"released, another status", []step{
		claims("A", success, alive).forwarded(1),
		released("A"),
		claims("B", failed, alive).forwarded(2),
		released("B").leaves("attempt 2"),
		claims("C", progress, alive).forwarded(3),
	}},
	{"released, other goods", []step{
		claims("A", late, alive).forwarded(1),
		released("A"),
		claims("B", lateOther, alive).forwarded(2),
	}},

	// In flight: everybody else waits.
	{"in flight, lease alive", []step{
		claims("A", success, alive).forwarded(1),
		claims("B", success, alive).inFlight(),
		claims("C", failed, alive).inFlightOther(),
		claims("D", progress, alive).inFlight(),
		insists("E", failed, alive).inFlightOther(),
		claims("F", late, alive).inFlightOther().leaves("attempt 1, claim A success"),
	}},
	{"in flight with process", []step{
		claims("A", progress, alive).forwarded(1),
		claims("B", progress, alive).inFlight(),
		claims("C", success, alive).inFlightOther(),
	}},
	{"in flight after progress: an earlier outcome is answered", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 202),
		claims("B", success, alive).forwarded(1),
		claims("C", progress, alive).duplicate(202),
		claims("D", success, alive).inFlight(),
		claims("E", failed, alive).inFlightOther(),
	}},
	{"in flight with late goods: an earlier outcome is answered", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		claims("B", late, alive).forwardedLate(1),
		claims("C", success, alive).duplicate(201),
		claims("D", progress, alive).stale(201),
		claims("E", late, alive).inFlight(),
		claims("F", failed, alive).inFlightOther().leaves("attempt 1, accepted success 201, claim B late"),
	}},
	{"in flight with a forwarded conflict: an earlier outcome is answered", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		insists("B", failed, alive).forwardedAgainst(1, Success),
		claims("C", success, alive).duplicate(200),
		claims("D", progress, alive).stale(200),
		claims("E", failed, alive).inFlight(),
		claims("F", late, alive).inFlightOther(),
	}},

	// In doubt with process: as good as none.
	{"in doubt with process, process", []step{
		claims("A", progress, over).forwarded(1),
		claims("B", progress, alive).forwarded(2).leaves("attempt 2, claim B process"),
	}},
	{"in doubt with process, success", []step{
		claims("A", progress, over).forwarded(1),
		claims("B", success, alive).forwarded(2).leaves("attempt 2, claim B success"),
	}},
	{"in doubt with process, failed", []step{
		claims("A", progress, over).forwarded(1),
		claims("B", failed, alive).forwarded(2),
	}},

	// In doubt with success or failed.
	{"in doubt with success, the same", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, over).forwarded(2).leaves("attempt 2, doubt success, claim B success"),
		claims("C", success, alive).forwarded(3),
		claims("D", success, alive).inFlight(),
	}},
	{"in doubt with failed, the same", []step{
		claims("A", failed, over).forwarded(1),
		claims("B", failed, alive).forwarded(2),
	}},
	{"in doubt with goods, the same", []step{
		claims("A", late, over).forwarded(1),
		claims("B", late, alive).forwarded(2),
	}},
	{"in doubt with success, process", []step{
		claims("A", success, over).forwarded(1),
		claims("B", progress, alive).stale(200).leaves("attempt 1, claim A success"),
		insists("C", progress, alive).stale(200),
	}},
	{"in doubt with failed, process", []step{
		claims("A", failed, over).forwarded(1),
		claims("B", progress, alive).stale(200),
	}},
	{"in doubt with success, failed", []step{
		claims("A", success, over).forwarded(1),
		claims("B", failed, alive).conflict(Success).leaves("attempt 1, claim A success"),
	}},
	{"in doubt with failed, success", []step{
		claims("A", failed, over).forwarded(1),
		claims("B", success, alive).conflict(Failed),
		claims("C", late, alive).conflict(Failed),
	}},
	{"in doubt with goods, other goods", []step{
		claims("A", late, over).forwarded(1),
		claims("B", late2, alive).conflict(Success),
		claims("C", lateOther, alive).conflict(Success),
		claims("D", successOther, alive).conflict(Success),
	}},

	// Goods that come in another order. The key of one outcome stays the same through
	// all its deliveries, and goods that the app may have stay known.
	{"in doubt without goods, goods", []step{
		claims("A", success, over).forwarded(1),
		claims("B", late, over).forwardedLate(2).leaves("attempt 2, doubt success, claim B late"),
		claims("C", late, over).forwardedLate(3).leaves("attempt 3, doubt late, claim C late"),
		claims("D", late2, alive).conflict(Success),
		claims("E", lateOther, alive).conflict(Success),
		claims("F", failed, alive).conflict(Success),
		claims("G", progress, alive).stale(200),
		claims("H", late, alive).forwardedLate(4),
		claims("I", success, alive).inFlight(),
		accepted("H", 201).leaves("accepted late 201"),
		claims("J", success, alive).duplicate(201),
	}},
	{"in doubt without goods, goods are refused", []step{
		claims("A", success, over).forwarded(1),
		claims("B", late, alive).forwardedLate(2),
		released("B").leaves("attempt 2, doubt success"),
		claims("C", success, alive).forwarded(3),
	}},
	{"in doubt without goods, goods, and the first answers late", []step{
		claims("A", success, over).forwarded(1),
		claims("B", late, alive).forwardedLate(2),
		accepted("A", 200).leaves("attempt 2, accepted success 200, claim B late"),
		accepted("B", 201).leaves("accepted late 201"),
	}},
	{"in doubt without goods, goods, and the first answers last", []step{
		claims("A", success, over).forwarded(1),
		claims("B", late, alive).forwardedLate(2),
		accepted("B", 201),
		accepted("A", 200).leaves("accepted late 201"),
	}},
	{"in doubt with goods, without them", []step{
		claims("A", late, over).forwarded(1),
		claims("B", success, over).forwarded(2).leaves("attempt 2, doubt late, claim B late"),
		claims("C", late2, alive).conflict(Success),
		claims("D", late, over).forwarded(3),
		claims("E", success, alive).forwarded(4),
		released("E").leaves("attempt 4, doubt late"),
		claims("F", late, alive).forwarded(5),
	}},
	{"in doubt with goods, accepted without them", []step{
		claims("A", late, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		accepted("B", 200).leaves("attempt 2, accepted success 200, doubt late"),
		claims("C", success, alive).duplicate(200),
		claims("D", late2, alive).conflict(Success),
		holds("E", late, alive).held(),
		claims("F", late, alive).forwardedLate(3),
		accepted("F", 201).leaves("accepted late 201"),
	}},
	{"in doubt with goods, without them, and the first answers late", []step{
		claims("A", late, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		accepted("A", 201).leaves("attempt 2, accepted late 201, claim B late"),
		claims("C", success, alive).duplicate(201),
		accepted("B", 200).leaves("accepted late 201"),
	}},
	{"in doubt without goods, goods, held", []step{
		claims("A", success, over).forwarded(1),
		holds("B", late, alive).held(),
		operates(OperationAccept).leaves("accepted success 200"),
		holds("C", late, alive).forwardedLate(1),
	}},
	{"in doubt with goods, without them, held", []step{
		claims("A", late, over).forwarded(1),
		holds("B", success, alive).held(),
		operates(OperationAccept).leaves("accepted late 200"),
	}},
	{"a conflict that is delivered again keeps its key", []step{
		claims("A", success, over).forwarded(1),
		insists("B", failed, over).forwardedAgainst(2, Success),
		insists("C", failed, over).forwardedAgainst(3, Success),
		insists("D", failed, alive).forwardedAgainst(4, Success),
	}},
	{"in doubt with failed, other goods", []step{
		claims("A", failed, over).forwarded(1),
		claims("B", failedOther, alive).conflict(Failed),
		claims("C", failedGoods, alive).conflict(Failed),
	}},
	{"in doubt after a retry that the app refused", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		released("B").leaves("attempt 2, doubt success"),
		claims("C", failed, alive).conflict(Success),
		claims("D", progress, alive).stale(200),
		claims("E", success, alive).forwarded(3),
	}},
	{"in doubt with success, failed is forwarded", []step{
		claims("A", success, over).forwarded(1),
		insists("B", failed, alive).forwardedAgainst(2, Success).leaves("attempt 2, doubt success, claim B failed"),
		accepted("B", 200).leaves("accepted failed 200"),
		claims("C", success, alive).conflict(Failed),
		claims("D", failed, alive).duplicate(200),
	}},
	{"in doubt with success, failed is forwarded and refused", []step{
		claims("A", success, over).forwarded(1),
		insists("B", failed, alive).forwardedAgainst(2, Success),
		released("B").leaves("attempt 2, doubt success"),
		claims("C", success, alive).forwarded(3),
	}},

	// Progress.
	{"accepted process, success", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 200).leaves("accepted process 200"),
		claims("B", success, alive).forwarded(1).leaves("attempt 1, accepted process 200, claim B success"),
		accepted("B", 204).leaves("accepted success 204"),
		claims("C", progress, alive).stale(204),
		claims("D", success, alive).duplicate(204),
	}},
	{"accepted process, failed", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 200),
		claims("B", failed, alive).forwarded(1),
	}},
	{"accepted process, success with other goods", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 200),
		claims("B", lateOther, alive).forwarded(1),
	}},
	{"accepted process, success in doubt", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 200),
		claims("B", success, over).forwarded(1),
		claims("C", failed, alive).conflict(Success),
		claims("D", progress, alive).duplicate(200),
		claims("E", success, alive).forwarded(2),
	}},
	{"accepted process, success refused", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 200),
		claims("B", success, alive).forwarded(1),
		released("B").leaves("attempt 1, accepted process 200"),
		claims("C", progress, alive).duplicate(200),
		claims("D", failed, alive).forwarded(2),
	}},

	// Late goods.
	{"late goods", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		claims("B", late, alive).forwardedLate(1),
		accepted("B", 201).leaves("accepted late 201"),
		claims("C", late, alive).duplicate(201),
		claims("D", late2, alive).conflict(Success),
		claims("E", lateOther, alive).conflict(Success),
		claims("F", progress, alive).stale(201),
	}},
	{"late goods in doubt", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		claims("B", late, over).forwardedLate(1),
		claims("C", late2, alive).conflict(Success),
		claims("D", success, alive).duplicate(200),
		claims("E", progress, alive).stale(200),
		claims("F", late, over).forwardedLate(2).leaves("attempt 2, accepted success 200, doubt late, claim F late"),
		claims("G", late, alive).forwardedLate(3),
		released("G").leaves("attempt 3, accepted success 200, doubt late"),
		claims("H", late, alive).forwardedLate(4),
		accepted("H", 200).leaves("accepted late 200"),
	}},
	{"late goods refused", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		claims("B", late, alive).forwardedLate(1),
		released("B").leaves("attempt 1, accepted success 200"),
		claims("C", late2, alive).forwardedLate(2),
	}},
	{"late goods with other fixed fields", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		claims("B", lateOther, alive).conflict(Success).leaves("accepted success 200"),
		insists("C", lateOther, alive).forwardedAgainst(1, Success),
	}},
	{"no late goods for a failure", []step{
		claims("A", failed, alive).forwarded(1),
		accepted("A", 200),
		claims("B", failedGoods, alive).conflict(Failed),
	}},

	// Duplicates and late news.
	{"accepted process, process with any goods", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 202),
		claims("B", progress, alive).duplicate(202),
		claims("C", progressOther, alive).duplicate(202).leaves("accepted process 202"),
	}},
	{"accepted success, the same", []step{
		claims("A", late, alive).forwarded(1),
		accepted("A", 299),
		claims("B", late, alive).duplicate(299).leaves("accepted late 299"),
		insists("C", late, alive).duplicate(299),
	}},
	{"accepted failed, the same", []step{
		claims("A", failed, alive).forwarded(1),
		accepted("A", 200),
		claims("B", failed, alive).duplicate(200),
	}},
	{"accepted success, process", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		claims("B", progress, alive).stale(201),
		insists("C", progressOther, alive).stale(201).leaves("accepted success 201"),
	}},
	{"accepted failed, process", []step{
		claims("A", failed, alive).forwarded(1),
		accepted("A", 204),
		claims("B", progress, alive).stale(204),
	}},

	// Conflicts.
	{"accepted success, failed", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		claims("B", failed, alive).conflict(Success).leaves("accepted success 200"),
		claims("C", success, alive).duplicate(200),
	}},
	{"accepted failed, success", []step{
		claims("A", failed, alive).forwarded(1),
		accepted("A", 200),
		claims("B", success, alive).conflict(Failed),
		claims("C", late, alive).conflict(Failed),
	}},
	{"accepted success, other goods", []step{
		claims("A", late, alive).forwarded(1),
		accepted("A", 200),
		claims("B", late2, alive).conflict(Success),
		claims("C", lateOther, alive).conflict(Success),
		claims("D", success, alive).duplicate(200),
	}},
	{"accepted success without goods, other fixed fields", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		claims("B", successOther, alive).conflict(Success),
	}},
	{"accepted failed, other goods", []step{
		claims("A", failed, alive).forwarded(1),
		accepted("A", 200),
		claims("B", failedOther, alive).conflict(Failed),
	}},
	{"a forwarded conflict becomes the accepted outcome", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		insists("B", failed, alive).forwardedAgainst(1, Success),
		accepted("B", 202).leaves("accepted failed 202"),
		insists("C", failed, alive).duplicate(202),
		insists("D", progress, alive).stale(202),
		claims("E", success, alive).conflict(Failed),
		insists("F", success, alive).forwardedAgainst(1, Failed),
		accepted("F", 203).leaves("accepted success 203"),
	}},
	{"a forwarded conflict of goods", []step{
		claims("A", late, alive).forwarded(1),
		accepted("A", 200),
		insists("B", late2, alive).forwardedAgainst(1, Success),
		accepted("B", 200).leaves("accepted late2 200"),
	}},
	{"a forwarded conflict that the app refused", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		insists("B", failed, alive).forwardedAgainst(1, Success),
		released("B").leaves("attempt 1, accepted success 200"),
		claims("C", success, alive).duplicate(200),
		claims("D", failed, alive).conflict(Success),
		insists("E", failed, alive).forwardedAgainst(2, Success),
	}},
	{"a forwarded conflict in doubt", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		insists("B", failed, over).forwardedAgainst(1, Success),
		claims("C", success, alive).duplicate(200),
		insists("D", failed, over).forwardedAgainst(2, Success).leaves("attempt 2, accepted success 200, doubt failed, claim D failed"),
		claims("E", failed, alive).forwardedAgainst(3, Success),
		accepted("E", 200).leaves("accepted failed 200"),
	}},

	// Settling.
	{"released: what was accepted and in doubt stays", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 200),
		claims("B", success, over).forwarded(1),
		claims("C", success, alive).forwarded(2),
		released("C").leaves("attempt 2, accepted process 200, doubt success"),
	}},
	{"unsent: no trace", []step{
		claims("A", success, alive).forwarded(1),
		unsent("A").leaves(""),
		claims("B", failed, alive).forwarded(1),
	}},
	{"unsent: earlier attempts stay", []step{
		claims("A", success, alive).forwarded(1),
		released("A"),
		claims("B", success, alive).forwarded(2),
		unsent("B").leaves("attempt 1"),
		claims("C", success, alive).forwarded(2),
	}},
	{"unsent: what was accepted and in doubt stays", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 200),
		claims("B", failed, over).forwarded(1),
		claims("C", failed, alive).forwarded(2),
		unsent("C").leaves("attempt 1, accepted process 200, doubt failed"),
		claims("D", failed, alive).forwarded(2),
	}},
	{"unsent after an accepted outcome", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		claims("B", late, alive).forwardedLate(1),
		unsent("B").leaves("accepted success 200"),
	}},
	{"attempts count since the last accepted outcome", []step{
		claims("A", progress, alive).forwarded(1),
		released("A"),
		claims("B", progress, alive).forwarded(2),
		accepted("B", 200),
		claims("C", success, alive).forwarded(1),
		released("C"),
		claims("D", success, alive).forwarded(2),
		accepted("D", 200).leaves("accepted success 200"),
		claims("E", late, alive).forwardedLate(1),
	}},
	{"accepted after the lease, nobody took over", []step{
		claims("A", success, over).forwarded(1),
		accepted("A", 200).leaves("accepted success 200"),
		claims("B", success, alive).duplicate(200),
	}},
	{"accepted after a takeover in flight", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		accepted("A", 201),
		claims("C", success, alive).duplicate(201),
		claims("D", failed, alive).inFlightOther(),
		released("B"),
		claims("E", success, alive).duplicate(201),
		claims("F", failed, alive).conflict(Success),
	}},
	{"accepted after a takeover, and the one that took over accepted too", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		accepted("A", 201),
		accepted("B", 202).leaves("accepted success 202"),
	}},
	{"accepted after a takeover that the app refused", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		released("B"),
		accepted("A", 201).leaves("accepted success 201"),
	}},
	{"accepted after a takeover by another outcome that is in doubt", []step{
		claims("A", success, over).forwarded(1),
		insists("B", failed, over).forwardedAgainst(2, Success),
		accepted("A", 200),
		claims("C", success, alive).duplicate(200),
		claims("D", progress, alive).stale(200),
		claims("E", failed, alive).forwardedAgainst(3, Success),
	}},
	{"accepted late over what was accepted meanwhile", []step{
		claims("A", success, over).forwarded(1),
		insists("B", failed, alive).forwardedAgainst(2, Success),
		accepted("B", 200).leaves("accepted failed 200"),
		accepted("A", 201).leaves("accepted failed 200"), // else a repeat of B would refund twice
		claims("C", failed, alive).duplicate(200),
	}},
	{"accepted late after its goods were accepted", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		accepted("B", 200),
		claims("C", late, alive).forwardedLate(1),
		accepted("C", 201).leaves("accepted late 201"),
		accepted("A", 202).leaves("accepted late 201"),
		claims("D", late, alive).duplicate(201),
	}},
	{"accepted late on a record that is gone", []step{
		claims("A", progress, over).forwarded(1),
		claims("B", progress, alive).forwarded(2),
		unsent("B"),
		accepted("A", 200).leaves("accepted process 200"),
	}},
	{"process never replaces success", []step{
		claims("A", progress, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		accepted("B", 201).leaves("accepted success 201"),
		accepted("A", 200).leaves("accepted success 201"),
		claims("C", progress, alive).stale(201),
	}},
	{"process never replaces failed", []step{
		claims("A", progress, over).forwarded(1),
		claims("B", failed, alive).forwarded(2),
		accepted("B", 201),
		accepted("A", 200).leaves("accepted failed 201"),
	}},
	{"process never replaces failed, even under its own token", []step{
		claims("A", failed, alive).forwarded(1),
		unsent("A"), // as a failover loses it
		claims("B", progress, alive).forwarded(1),
		accepted("A", 201),
		accepted("B", 200).leaves("accepted failed 201"),
		claims("C", success, alive).conflict(Failed),
	}},
	{"a doubt of what was accepted late is none", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, over).forwarded(2),
		accepted("A", 200),
		claims("C", success, alive).duplicate(200),
		claims("D", failed, alive).conflict(Success),
		claims("E", late, alive).forwardedLate(3),
	}},
	{"process accepted late leaves a doubt", []step{
		claims("A", progress, over).forwarded(1),
		claims("B", success, over).forwarded(2),
		accepted("A", 200),
		claims("C", failed, alive).conflict(Success),
		claims("D", progress, alive).duplicate(200),
	}},
	{"a fact that comes late does not lower the attempt of a later delivery", []step{
		claims("A", progress, over).forwarded(1),
		claims("B", success, over).forwarded(2),
		accepted("A", 200),
		claims("C", success, alive).forwarded(3),
	}},
	{"a release under a foreign token does nothing", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2).leaves("attempt 2, doubt success, claim B success"),
		released("A").leaves("attempt 2, doubt success, claim B success"),
		unsent("A").leaves("attempt 2, doubt success, claim B success"),
		accepted("B", 200).leaves("accepted success 200"),
		released("A").leaves("accepted success 200"),
		unsent("B").leaves("accepted success 200"),
	}},
	{"a release without a record does nothing", []step{
		claims("A", success, alive).forwarded(1),
		unsent("A").leaves(""),
		released("A").leaves(""),
		unsent("A").leaves(""),
	}},
	{"a release that is repeated counts once", []step{
		claims("A", success, alive).forwarded(1),
		released("A"),
		released("A").leaves("attempt 1"),
		claims("B", success, alive).forwarded(2),
		unsent("B").leaves("attempt 1"),
		unsent("B").leaves("attempt 1"),
	}},
	{"a claim that is repeated gets the same answer", []step{
		claims("A", success, alive).forwarded(1),
		claims("A", success, alive).forwarded(1).leaves("attempt 1, claim A success"),
		accepted("A", 200),
		claims("B", late, alive).forwardedLate(1),
		claims("B", late, alive).forwardedLate(1),
		unsent("B"),
		insists("C", failed, alive).forwardedAgainst(1, Success),
		insists("C", failed, alive).forwardedAgainst(1, Success).leaves("attempt 1, accepted success 200, claim C failed"),
	}},
	{"a claim that is repeated against a doubt gets the same answer", []step{
		claims("A", success, over).forwarded(1),
		insists("B", failed, alive).forwardedAgainst(2, Success),
		insists("B", failed, alive).forwardedAgainst(2, Success),
		released("B"),
		claims("C", success, over).forwarded(3),
		claims("C", success, over).forwarded(3).leaves("attempt 3, doubt success, claim C success"),
	}},
	{"an accepted Settlement that is repeated says the same", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		accepted("A", 201).leaves("accepted success 201"),
		claims("B", late, alive).forwardedLate(1),
		accepted("A", 201).leaves("attempt 1, accepted success 201, claim B late"),
		claims("C", failed, alive).inFlightOther(),
	}},
	{"an accepted Settlement that is repeated does not overwrite a newer one", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		insists("B", failed, alive).forwardedAgainst(1, Success),
		accepted("B", 202),
		accepted("A", 200).leaves("accepted failed 202"),
	}},
	{"an accepted Settlement that is repeated does not take late goods back", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		claims("B", late, alive).forwardedLate(1),
		accepted("B", 202),
		accepted("A", 200).leaves("accepted late 202"),
	}},
	{"an accepted process that is repeated does not take progress back", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 200),
		claims("B", success, alive).forwarded(1),
		accepted("A", 200).leaves("attempt 1, accepted process 200, claim B success"),
		accepted("B", 202),
		accepted("A", 200).leaves("accepted success 202"),
	}},

	// on_doubt hold.
	{"hold: in doubt with success, the same", []step{
		holds("A", success, over).forwarded(1),
		holds("B", success, alive).held().leaves("attempt 1, claim A success"),
		holds("C", success, alive).held().leaves("attempt 1, claim A success"),
	}},
	{"hold: in doubt with failed, the same", []step{
		holds("A", failed, over).forwarded(1),
		holds("B", failed, alive).held().leaves("attempt 1, claim A failed"),
	}},
	{"hold: in doubt with goods, the same", []step{
		holds("A", late, over).forwarded(1),
		holds("B", late, alive).held(),
	}},
	{"hold: in doubt with process is not held", []step{
		holds("A", progress, over).forwarded(1),
		holds("B", progress, over).forwarded(2).leaves("attempt 2, claim B process"),
		holds("C", success, alive).forwarded(3),
	}},
	{"hold: a lease that is alive is in flight", []step{
		holds("A", success, alive).forwarded(1),
		holds("B", success, alive).inFlight(),
	}},
	{"hold: a claim that is repeated is no other delivery", []step{
		holds("A", success, over).forwarded(1),
		holds("A", success, over).forwarded(1).leaves("attempt 1, claim A success"),
	}},
	{"hold: late news and conflicts come as without", []step{
		holds("A", success, over).forwarded(1),
		holds("B", progress, alive).stale(200),
		holds("C", failed, alive).conflict(Success),
		holds("D", late, alive).held(),
		holds("E", successOther, alive).conflict(Success).leaves("attempt 1, claim A success"),
		holdsInsists("F", progress, alive).stale(200),
	}},
	{"hold: what was accepted is answered", []step{
		holds("A", success, alive).forwarded(1),
		accepted("A", 201),
		holds("B", success, alive).duplicate(201),
		holds("C", progress, alive).stale(201),
	}},
	{"hold: what the app refused is delivered again", []step{
		holds("A", success, alive).forwarded(1),
		released("A"),
		holds("B", success, alive).forwarded(2),
	}},
	{"hold: late goods in doubt", []step{
		holds("A", success, alive).forwarded(1),
		accepted("A", 200),
		holds("B", late, over).forwardedLate(1),
		holds("C", late, alive).held(),
		holds("D", success, alive).duplicate(200),
		holds("E", late2, alive).conflict(Success).leaves("attempt 1, accepted success 200, claim B late"),
	}},
	{"hold: a doubt behind a later claim", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		released("B").leaves("attempt 2, doubt success"),
		holds("C", success, alive).held().leaves("attempt 2, doubt success"),
		claims("D", success, alive).forwarded(3), // by a handler without hold
	}},
	{"hold: accepted late", []step{
		holds("A", success, over).forwarded(1),
		holds("B", success, alive).held(),
		accepted("A", 201).leaves("accepted success 201"),
		holds("C", success, alive).duplicate(201),
	}},
	{"hold: refused late", []step{
		holds("A", success, over).forwarded(1),
		holds("B", success, alive).held(),
		released("A").leaves("attempt 1"),
		holds("C", success, alive).forwarded(2),
	}},
	{"hold: a forwarded conflict", []step{
		holdsInsists("A", success, over).forwarded(1),
		holdsInsists("B", success, alive).held(),
		holdsInsists("C", failed, alive).forwardedAgainst(2, Success),
		released("C").leaves("attempt 2, doubt success"),
		holdsInsists("D", success, alive).held(),
		holdsInsists("E", failed, alive).forwardedAgainst(3, Success),
		accepted("E", 200).leaves("accepted failed 200"),
	}},
	{"hold: in doubt behind a newer outcome", []step{
		holdsInsists("A", success, over).forwarded(1),
		holdsInsists("B", failed, over).forwardedAgainst(2, Success),
		holdsInsists("C", success, alive).held(),
		holdsInsists("D", failed, alive).held(),
		holds("E", success, alive).conflict(Failed),
	}},
	{"hold: a forwarded conflict in doubt", []step{
		holds("A", success, alive).forwarded(1),
		accepted("A", 200),
		holdsInsists("B", failed, over).forwardedAgainst(1, Success),
		holdsInsists("C", failed, alive).held(),
		holds("D", failed, alive).held(),
		holds("E", success, alive).duplicate(200),
	}},

	// What operators do.
	{"operator: no record", []step{
		operates(OperationAccept).refused(toldNone).leaves(""),
		operates(OperationRelease).refused(toldNone).leaves(""),
		operates(OperationForget).refused(toldNone).leaves(""),
		forgetsEvenAccepted().refused(toldNone).leaves(""),
	}},
	{"operator: in flight", []step{
		claims("A", success, alive).forwarded(1),
		operates(OperationAccept).refused(toldInFlight),
		operates(OperationRelease).refused(toldInFlight),
		operates(OperationForget).refused(toldInFlight),
		forgetsEvenAccepted().refused(toldInFlight).leaves("attempt 1, claim A success"),
	}},
	{"operator: in flight with a doubt", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		operates(OperationAccept).refused(toldInFlight),
		operates(OperationRelease).refused(toldInFlight),
		operates(OperationForget).refused(toldInFlight).leaves("attempt 2, doubt success, claim B success"),
	}},
	{"operator: nothing in doubt", []step{
		claims("A", success, alive).forwarded(1),
		released("A"),
		operates(OperationAccept).refused(toldNoDoubt),
		operates(OperationRelease).refused(toldNoDoubt).leaves("attempt 1"),
		operates(OperationForget).leaves(""),
		claims("B", success, alive).forwarded(1),
	}},
	{"operator: process in doubt is none", []step{
		claims("A", progress, over).forwarded(1),
		operates(OperationAccept).refused(toldNoDoubt),
		operates(OperationRelease).refused(toldNoDoubt).leaves("attempt 1, claim A process"),
	}},
	{"operator: accepted", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		operates(OperationAccept).refused(toldNoDoubt),
		operates(OperationRelease).refused(toldNoDoubt),
		operates(OperationForget).refused(toldAccepted).leaves("accepted success 201"),
		forgetsEvenAccepted().leaves(""),
		claims("B", success, alive).forwarded(1),
	}},
	{"operator: a doubt of what was accepted is none", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, over).forwarded(2),
		accepted("A", 200),
		operates(OperationAccept).refused(toldNoDoubt),
		operates(OperationRelease).refused(toldNoDoubt),
	}},
	{"operator: accept", []step{
		holds("A", late, over).forwarded(1),
		holds("B", late, alive).held(),
		operates(OperationAccept).leaves("accepted late 200"),
		holds("C", late, alive).duplicate(200),
		holds("D", progress, alive).stale(200),
		holds("E", failed, alive).conflict(Success),
		operates(OperationAccept).refused(toldNoDoubt),
	}},
	{"operator: accept a failure", []step{
		claims("A", failed, over).forwarded(1),
		operates(OperationAccept).leaves("accepted failed 200"),
		claims("B", failed, alive).duplicate(200),
		claims("C", success, alive).conflict(Failed),
	}},
	{"operator: accept a doubt behind a refused retry", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		released("B"),
		operates(OperationAccept).leaves("accepted success 200"),
	}},
	{"operator: accept late goods", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		holds("B", late, over).forwardedLate(1),
		operates(OperationAccept).leaves("accepted late 200"),
		holds("C", late, alive).duplicate(200),
	}},
	{"operator: accept a forwarded conflict", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		holdsInsists("B", failed, over).forwardedAgainst(1, Success),
		operates(OperationAccept).leaves("accepted failed 200"),
		holds("C", success, alive).conflict(Failed),
	}},
	{"operator: accept over progress", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 201),
		claims("B", success, over).forwarded(1),
		operates(OperationAccept).leaves("accepted success 200"),
	}},
	{"operator: release", []step{
		holds("A", success, over).forwarded(1),
		holds("B", success, alive).held(),
		operates(OperationRelease).leaves("attempt 1"),
		operates(OperationRelease).refused(toldNoDoubt),
		holds("C", success, over).forwarded(2).leaves("attempt 2, claim C success"),
		holds("D", success, alive).held(),
	}},
	{"operator: release, then another outcome", []step{
		holds("A", success, over).forwarded(1),
		operates(OperationRelease),
		holds("B", failed, alive).forwarded(2),
	}},
	{"operator: release leaves what was accepted", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		holds("B", late, over).forwardedLate(1),
		operates(OperationRelease).leaves("attempt 1, accepted success 201"),
		holds("C", success, alive).duplicate(201),
		holds("D", late, alive).forwardedLate(2),
	}},
	{"operator: forget what is in doubt", []step{
		holds("A", success, over).forwarded(1),
		operates(OperationForget).leaves(""),
		holds("B", failed, alive).forwarded(1),
	}},
	{"operator: forget what is in doubt behind an accepted outcome", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 200),
		claims("B", success, over).forwarded(1),
		operates(OperationForget).refused(toldAccepted).leaves("attempt 1, accepted process 200, claim B success"),
		forgetsEvenAccepted().leaves(""),
	}},

	// A delivery that settles after the operator did.
	{"operator: accept, then the app's late answers", []step{
		claims("A", success, over).forwarded(1),
		operates(OperationAccept).leaves("accepted success 200"),
		accepted("A", 201).leaves("accepted success 200"),
		released("A").leaves("accepted success 200"),
		unsent("A").leaves("accepted success 200"),
	}},
	{"operator: release, then the app accepts late", []step{
		claims("A", success, over).forwarded(1),
		operates(OperationRelease),
		accepted("A", 201).leaves("accepted success 201"),
		claims("B", success, alive).duplicate(201),
	}},
	{"operator: release, delivered again, then the app accepts late", []step{
		claims("A", success, over).forwarded(1),
		operates(OperationRelease),
		claims("B", success, alive).forwarded(2),
		accepted("A", 201).leaves("attempt 2, accepted success 201, claim B success"),
		claims("C", success, alive).duplicate(201),
		released("B").leaves("attempt 2, accepted success 201"),
	}},
	{"operator: release, then the app refuses late", []step{
		claims("A", success, over).forwarded(1),
		operates(OperationRelease).leaves("attempt 1"),
		released("A").leaves("attempt 1"),
		unsent("A").leaves("attempt 1"),
	}},
	{"operator: forget, then the app accepts late", []step{
		claims("A", success, over).forwarded(1),
		operates(OperationForget),
		accepted("A", 201).leaves("accepted success 201"),
		claims("B", success, alive).duplicate(201),
	}},
	{"operator: forget, another outcome, then the app accepts late", []step{
		claims("A", success, over).forwarded(1),
		operates(OperationForget),
		claims("B", failed, alive).forwarded(1),
		accepted("B", 200).leaves("accepted failed 200"),
		accepted("A", 201).leaves("accepted failed 200"), // as without an operator: what was accepted last stays
		claims("C", failed, alive).duplicate(200),
		claims("D", success, alive).conflict(Failed),
	}},
	{"operator: forget, then the app refuses late", []step{
		claims("A", success, over).forwarded(1),
		operates(OperationForget).leaves(""),
		released("A").leaves(""),
		unsent("A").leaves(""),
	}},
}

func testOwner(who string) (o Owner) {
	copy(o[:], who)
	return o
}

// Every row of the contract's tables. After each step the record is read from
// its own bytes again.
func TestRecord(t *testing.T) {
	for _, row := range recordTable {
		t.Run(row.name, func(t *testing.T) { play(t, row.steps) })
	}
}

func play(t *testing.T, steps []step) {
	now := int64(1_800_000_000_000)
	r := new(Record)
	claimed := make(map[string]Outcome) // the last claim of each delivery
	ends := make(map[string]int64)      // and its lease's end
	for i, s := range steps {
		at := fmt.Sprintf("step %d, %s", i+1, s.owner)
		now++
		switch {
		case s.claim != nil:
			q := *s.claim
			q.Owner = testOwner(s.owner)
			d := r.Decide(&q, now)
			if d.Verdict == Forwarded && r.Claim.End == 0 {
				r.Claim.End = now + q.Lease.Milliseconds()
			}
			claimed[s.owner] = q.Outcome
			if r.Claim != nil {
				ends[s.owner] = r.Claim.End
			}
			if d.Verdict == InFlight && (d.Wait <= 0 || d.Wait > alive) {
				t.Errorf("%s: wait %s, want what is left of %s", at, d.Wait, alive)
			}
			d.Wait = 0
			if d != s.want {
				t.Errorf("%s: claim %s\n got %+v\nwant %+v", at, outcomeNames[q.Outcome], d, s.want)
			}
		case s.does != "":
			if got := told(r.Operate(s.does, s.even, now, now)); got != s.told {
				t.Errorf("%s%s: the operator is told %q, want %q", at, s.does, got, s.told)
			}
		default:
			e := *s.end
			e.Owner, e.End = testOwner(s.owner), ends[s.owner]
			code := e.Outcome.Code
			e.Outcome = claimed[s.owner]
			e.Outcome.Code = code
			before := r.Encode()
			if changed := r.Settle(&e, now); !changed && r.Encode() != before {
				t.Errorf("%s: the record has changed, and the settlement says that it has not", at)
			}
		}
		if s.state != "-" && describe(r) != s.state {
			t.Errorf("%s: the record is %q, want %q", at, describe(r), s.state)
		}
		if s.state == "" && r.Encode() != "" {
			t.Errorf("%s: a record of % x is left, want none", at, r.Encode())
		}
		again, err := Decode(r.Encode())
		if err != nil || again.Encode() != r.Encode() {
			t.Fatalf("%s: the record % x is read as %+v, %v", at, r.Encode(), again, err)
		}
		r = again
	}
}

// A lease is alive up to its last millisecond. One that ends later than any can
// from now is over: the store's clock was set back.
func TestLeaseEnds(t *testing.T) {
	const now, lease, hour = 1_800_000_000_000, 35 * time.Second, 3_600_000
	end := now + lease.Milliseconds()
	for at, want := range map[int64]Verdict{
		now: InFlight, end - 1: InFlight, end: Forwarded, end + 1: Forwarded, now - 1: Forwarded, now - 1000: Forwarded,
		now - hour: Forwarded, now - 24*hour: Forwarded, now - 365*24*hour: Forwarded, now + hour: Forwarded, now + 365*24*hour: Forwarded,
	} {
		r := &Record{Attempt: 1, Claim: &Claim{Outcome: success, Owner: testOwner("A"), Lease: lease, End: end}}
		// A delivery of this process keeps its claim whatever the clock says.
		r.Claim.UnderWay = true
		if d := r.Decide(&Request{Outcome: success, Owner: testOwner("B"), Lease: lease}, at); d.Verdict != InFlight {
			t.Errorf("%d ms after the claim, under way in this process: %+v", at-now, d)
		}
		if err := r.Operate(OperationRelease, false, at, at); !errors.As(err, new(NotDoneError)) {
			t.Errorf("%d ms after the claim, under way in this process: released", at-now)
		}
		r.Claim.UnderWay = false
		// And if it has died, an operator can settle it.
		settled := *r
		if err := settled.Operate(OperationRelease, false, at, at); (err == nil) != (want == Forwarded) {
			t.Errorf("%d ms after the claim: an operator is told %v", at-now, err)
		}
		d := r.Decide(&Request{Outcome: success, Owner: testOwner("B"), Lease: lease}, at)
		if d.Verdict != want || want == InFlight && d.Wait != time.Duration(end-at)*time.Millisecond {
			t.Errorf("%d ms after the claim: %+v, want %s", at-now, d, want)
		}
	}
}

// What waits for an operator, or may when its lease is over, is kept until he has
// settled it; everything else for retention.
func TestLife(t *testing.T) {
	claim := func(o Outcome) *Claim { return &Claim{Outcome: o, Lease: alive, End: 100} }
	for name, tc := range map[string]struct {
		r    Record
		hold bool
		want time.Duration
	}{
		"accepted":                    {Record{Accepted: &success}, true, time.Hour},
		"released":                    {Record{Attempt: 1}, true, time.Hour},
		"claimed with process":        {Record{Claim: claim(progress)}, true, time.Hour},
		"claimed":                     {Record{Claim: claim(success)}, true, Forever},
		"claimed, without hold":       {Record{Claim: claim(success)}, false, time.Hour},
		"in doubt":                    {Record{Doubt: &failed}, true, Forever},
		"in doubt, without hold":      {Record{Doubt: &failed}, false, time.Hour},
		"in doubt, and accepted then": {Record{Doubt: &failed, Accepted: &failed}, true, time.Hour},
		"late goods in doubt":         {Record{Doubt: &late, Accepted: &success}, true, Forever},
	} {
		if got := tc.r.Life(time.Hour, tc.hold); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// An outcome that is only assumed gives way to what the app says, and never the
// other way round.
func TestAssumed(t *testing.T) {
	for _, o := range []Outcome{success, progress} {
		claim := func() *Record {
			return &Record{Attempt: 1, Claim: &Claim{Outcome: o, Owner: testOwner("A"), Lease: alive, End: 100}}
		}
		assumed := &Settlement{Owner: testOwner("A"), End: 100, Ending: Assumed, Outcome: o}
		said := &Settlement{Owner: testOwner("A"), End: 100, Ending: Accepted, Outcome: o}
		said.Outcome.Code, assumed.Outcome.Code = 202, 200
		r := claim()
		if !r.Settle(assumed, 50) || !r.Assumed || r.Accepted.Code != 200 || r.Attempt != 0 {
			t.Errorf("assumed: %+v", r)
		}
		r = claim()
		if !r.Settle(said, 50) || r.Assumed || r.Accepted.Code != 202 {
			t.Errorf("said: %+v", r)
		}
		if r.Settle(assumed, 60) || r.Assumed || r.Accepted.Code != 202 {
			t.Errorf("said, then assumed: %+v", r)
		}
	}
}

// The record's key holds the ref_id last, whatever is in it.
func TestRecordKey(t *testing.T) {
	if got := Key("iak:", "shop", "a:b c"); got != "iak:shop:a:b c" {
		t.Errorf("key %q", got)
	}
}

const (
	toldDone     = "done"
	toldNone     = "there is no record"
	toldInFlight = "in flight"
	toldAccepted = "the app has accepted it"
	toldNoDoubt  = "nothing is in doubt"
)

// told reads it off a store's answer.
func told(err error) string {
	notDone := NotDoneError{}
	switch {
	case err == nil:
		return toldDone
	case errors.Is(err, ErrNone):
		return toldNone
	case !errors.As(err, &notDone):
		return err.Error()
	}
	for part, what := range map[string]string{
		"a delivery is under way": toldInFlight, "the app has accepted": toldAccepted, "nothing is in doubt": toldNoDoubt,
	} {
		if strings.HasPrefix(notDone.why, part) {
			return what
		}
	}
	return notDone.why
}

// operate is what the commands of an operator say that they do.
