package iakcallback

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.etcd.io/bbolt"
)

// The outcomes of one order that the tables below speak of. late brings the
// goods that success lacks; an outcome that ends in Other tells of other fixed
// fields, late2 of other goods.
var (
	progress      = testOutcome(statusProcess, "F", "")
	progressOther = testOutcome(statusProcess, "G", "S")
	success       = testOutcome(statusSuccess, "F", "")
	late          = testOutcome(statusSuccess, "F", "S")
	late2         = testOutcome(statusSuccess, "F", "T")
	successOther  = testOutcome(statusSuccess, "G", "")
	lateOther     = testOutcome(statusSuccess, "G", "S")
	failed        = testOutcome(statusFailed, "F", "")
	failedOther   = testOutcome(statusFailed, "G", "")
	failedGoods   = testOutcome(statusFailed, "F", "S")

	outcomeNames = map[outcome]string{
		progress: "process", progressOther: "processOther", success: "success", late: "late", late2: "late2",
		successOther: "successOther", lateOther: "lateOther", failed: "failed", failedOther: "failedOther", failedGoods: "failedGoods",
	}
)

func testOutcome(s status, fixed, goods string) outcome {
	o := outcome{status: s}
	copy(o.fixed[:], fixed)
	copy(o.goods[:], goods)
	return o
}

const (
	alive = time.Hour // a lease that outlives the test
	over  = 0         // a lease that is over at once: the claim is in doubt
)

// step is one operation of a table, and what is expected of it.
type step struct {
	claim *claimRequest // or
	end   *settlement   // or
	does  operation     // of an operator
	even  bool          // although the app has accepted an outcome
	owner string        // the delivery, a letter

	want  decision // of a claim
	told  string   // of an operation
	state string   // the record afterwards, as describe tells it; "-" is not looked at
}

// claims is a claim of the delivery who. It expects nothing yet.
func claims(who string, o outcome, lease time.Duration) step {
	return step{owner: who, claim: &claimRequest{outcome: o, lease: lease}, state: "-"}
}

// insists is a claim under on_conflict forward.
func insists(who string, o outcome, lease time.Duration) step {
	s := claims(who, o, lease)
	s.claim.forwardConflict = true
	return s
}

// holds is a claim under on_doubt hold.
func holds(who string, o outcome, lease time.Duration) step {
	s := claims(who, o, lease)
	s.claim.hold = true
	return s
}

// holdsInsists is a claim under both.
func holdsInsists(who string, o outcome, lease time.Duration) step {
	s := insists(who, o, lease)
	s.claim.hold = true
	return s
}

func (s step) held() step {
	return s.expect(decision{verdict: verdictHeld, contradicts: -1})
}

// What an operator does, and expects to be done.
func operates(what operation) step { return step{does: what, told: toldDone, state: "-"} }

// forgetsEvenAccepted is caddy iak-callback forget --yes.
func forgetsEvenAccepted() step {
	s := operates(operationForget)
	s.even = true
	return s
}

// refused expects an operation to be refused.
func (s step) refused(told string) step { s.told = told; return s }

func (s step) expect(d decision) step { s.want = d; return s }

// What a claim can come to.
func (s step) forwarded(attempt int) step {
	return s.expect(decision{verdict: verdictForwarded, attempt: attempt, contradicts: -1})
}

func (s step) forwardedLate(attempt int) step {
	return s.expect(decision{verdict: verdictForwarded, attempt: attempt, contradicts: -1, lateGoods: true})
}

func (s step) forwardedAgainst(attempt int, accepted status) step {
	return s.expect(decision{verdict: verdictForwarded, attempt: attempt, contradicts: int(accepted)})
}

func (s step) inFlight() step {
	return s.expect(decision{verdict: verdictInFlight, contradicts: -1})
}

func (s step) duplicate(code int) step {
	return s.expect(decision{verdict: verdictDuplicate, code: code, contradicts: -1})
}

func (s step) stale(code int) step {
	return s.expect(decision{verdict: verdictStale, code: code, contradicts: -1})
}

func (s step) conflict(with status) step {
	return s.expect(decision{verdict: verdictConflict, contradicts: int(with)})
}

// leaves expects a state of the record.
func (s step) leaves(state string) step { s.state = state; return s }

// The settlements of the claim that the delivery who made last.
func accepted(who string, code int) step {
	return step{owner: who, end: &settlement{verdict: settleAccepted, outcome: outcome{code: code}}, state: "-"}
}

func released(who string) step {
	return step{owner: who, end: &settlement{verdict: settleReleased}, state: "-"}
}

func unsent(who string) step {
	return step{owner: who, end: &settlement{verdict: settleUnsent}, state: "-"}
}

// describe tells a record in words.
func describe(r *record) string {
	name := func(o outcome) string {
		code := o.code
		o.code = 0
		if code == 0 {
			return outcomeNames[o]
		}
		return fmt.Sprintf("%s %d", outcomeNames[o], code)
	}
	var parts []string
	if r.attempt > 0 {
		parts = append(parts, fmt.Sprint("attempt ", r.attempt))
	}
	if r.accepted != nil {
		parts = append(parts, "accepted "+name(*r.accepted))
	}
	if r.doubt != nil {
		parts = append(parts, "doubt "+name(*r.doubt))
	}
	if r.claim != nil {
		parts = append(parts, fmt.Sprintf("claim %c %s", r.claim.owner[0], name(r.claim.outcome)))
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
		claims("C", failed, alive).inFlight(),
		claims("D", progress, alive).inFlight(),
		insists("E", failed, alive).inFlight(),
		claims("F", late, alive).inFlight().leaves("attempt 1, claim A success"),
	}},
	{"in flight with process", []step{
		claims("A", progress, alive).forwarded(1),
		claims("B", progress, alive).inFlight(),
		claims("C", success, alive).inFlight(),
	}},
	{"in flight after progress: an earlier outcome is answered", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 202),
		claims("B", success, alive).forwarded(1),
		claims("C", progress, alive).duplicate(202),
		claims("D", success, alive).inFlight(),
		claims("E", failed, alive).inFlight(),
	}},
	{"in flight with late goods: an earlier outcome is answered", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		claims("B", late, alive).forwardedLate(1),
		claims("C", success, alive).duplicate(201),
		claims("D", progress, alive).stale(201),
		claims("E", late, alive).inFlight(),
		claims("F", failed, alive).inFlight().leaves("attempt 1, accepted success 201, claim B late"),
	}},
	{"in flight with a forwarded conflict: an earlier outcome is answered", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		insists("B", failed, alive).forwardedAgainst(1, statusSuccess),
		claims("C", success, alive).duplicate(200),
		claims("D", progress, alive).stale(200),
		claims("E", failed, alive).inFlight(),
		claims("F", late, alive).inFlight(),
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
		claims("B", failed, alive).conflict(statusSuccess).leaves("attempt 1, claim A success"),
	}},
	{"in doubt with failed, success", []step{
		claims("A", failed, over).forwarded(1),
		claims("B", success, alive).conflict(statusFailed),
		claims("C", late, alive).conflict(statusFailed),
	}},
	{"in doubt with goods, other goods", []step{
		claims("A", late, over).forwarded(1),
		claims("B", late2, alive).conflict(statusSuccess),
		claims("C", lateOther, alive).conflict(statusSuccess),
		claims("D", success, alive).conflict(statusSuccess),
	}},
	{"in doubt without goods, goods", []step{
		claims("A", success, over).forwarded(1),
		claims("B", late, alive).conflict(statusSuccess),
	}},
	{"in doubt with failed, other goods", []step{
		claims("A", failed, over).forwarded(1),
		claims("B", failedOther, alive).conflict(statusFailed),
		claims("C", failedGoods, alive).conflict(statusFailed),
	}},
	{"in doubt after a retry that the app refused", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		released("B").leaves("attempt 2, doubt success"),
		claims("C", failed, alive).conflict(statusSuccess),
		claims("D", progress, alive).stale(200),
		claims("E", success, alive).forwarded(3),
	}},
	{"in doubt with success, failed is forwarded", []step{
		claims("A", success, over).forwarded(1),
		insists("B", failed, alive).forwardedAgainst(2, statusSuccess).leaves("attempt 2, doubt success, claim B failed"),
		accepted("B", 200).leaves("accepted failed 200"),
		claims("C", success, alive).conflict(statusFailed),
		claims("D", failed, alive).duplicate(200),
	}},
	{"in doubt with success, failed is forwarded and refused", []step{
		claims("A", success, over).forwarded(1),
		insists("B", failed, alive).forwardedAgainst(2, statusSuccess),
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
		claims("C", failed, alive).conflict(statusSuccess),
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
		claims("D", late2, alive).conflict(statusSuccess),
		claims("E", lateOther, alive).conflict(statusSuccess),
		claims("F", progress, alive).stale(201),
	}},
	{"late goods in doubt", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		claims("B", late, over).forwardedLate(1),
		claims("C", late2, alive).conflict(statusSuccess),
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
		claims("B", lateOther, alive).conflict(statusSuccess).leaves("accepted success 200"),
		insists("C", lateOther, alive).forwardedAgainst(1, statusSuccess),
	}},
	{"no late goods for a failure", []step{
		claims("A", failed, alive).forwarded(1),
		accepted("A", 200),
		claims("B", failedGoods, alive).conflict(statusFailed),
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
		claims("B", failed, alive).conflict(statusSuccess).leaves("accepted success 200"),
		claims("C", success, alive).duplicate(200),
	}},
	{"accepted failed, success", []step{
		claims("A", failed, alive).forwarded(1),
		accepted("A", 200),
		claims("B", success, alive).conflict(statusFailed),
		claims("C", late, alive).conflict(statusFailed),
	}},
	{"accepted success, other goods", []step{
		claims("A", late, alive).forwarded(1),
		accepted("A", 200),
		claims("B", late2, alive).conflict(statusSuccess),
		claims("C", lateOther, alive).conflict(statusSuccess),
		claims("D", success, alive).conflict(statusSuccess),
	}},
	{"accepted success without goods, other fixed fields", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		claims("B", successOther, alive).conflict(statusSuccess),
	}},
	{"accepted failed, other goods", []step{
		claims("A", failed, alive).forwarded(1),
		accepted("A", 200),
		claims("B", failedOther, alive).conflict(statusFailed),
	}},
	{"a forwarded conflict becomes the accepted outcome", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		insists("B", failed, alive).forwardedAgainst(1, statusSuccess),
		accepted("B", 202).leaves("accepted failed 202"),
		insists("C", failed, alive).duplicate(202),
		insists("D", progress, alive).stale(202),
		claims("E", success, alive).conflict(statusFailed),
		insists("F", success, alive).forwardedAgainst(1, statusFailed),
		accepted("F", 203).leaves("accepted success 203"),
	}},
	{"a forwarded conflict of goods", []step{
		claims("A", late, alive).forwarded(1),
		accepted("A", 200),
		insists("B", late2, alive).forwardedAgainst(1, statusSuccess),
		accepted("B", 200).leaves("accepted late2 200"),
	}},
	{"a forwarded conflict that the app refused", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		insists("B", failed, alive).forwardedAgainst(1, statusSuccess),
		released("B").leaves("attempt 1, accepted success 200"),
		claims("C", success, alive).duplicate(200),
		claims("D", failed, alive).conflict(statusSuccess),
		insists("E", failed, alive).forwardedAgainst(2, statusSuccess),
	}},
	{"a forwarded conflict in doubt", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		insists("B", failed, over).forwardedAgainst(1, statusSuccess),
		claims("C", success, alive).duplicate(200),
		insists("D", failed, over).forwardedAgainst(2, statusSuccess).leaves("attempt 2, accepted success 200, doubt failed, claim D failed"),
		claims("E", failed, alive).forwardedAgainst(3, statusSuccess),
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
		claims("D", failed, alive).inFlight(),
		released("B"),
		claims("E", success, alive).duplicate(201),
		claims("F", failed, alive).conflict(statusSuccess),
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
		insists("B", failed, over).forwardedAgainst(2, statusSuccess),
		accepted("A", 200),
		claims("C", success, alive).duplicate(200),
		claims("D", progress, alive).stale(200),
		claims("E", failed, alive).forwardedAgainst(3, statusSuccess),
	}},
	{"accepted late over what was accepted meanwhile", []step{
		claims("A", success, over).forwarded(1),
		insists("B", failed, alive).forwardedAgainst(2, statusSuccess),
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
		claims("C", success, alive).conflict(statusFailed),
	}},
	{"a doubt of what was accepted late is none", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, over).forwarded(2),
		accepted("A", 200),
		claims("C", success, alive).duplicate(200),
		claims("D", failed, alive).conflict(statusSuccess),
		claims("E", late, alive).forwardedLate(3),
	}},
	{"process accepted late leaves a doubt", []step{
		claims("A", progress, over).forwarded(1),
		claims("B", success, over).forwarded(2),
		accepted("A", 200),
		claims("C", failed, alive).conflict(statusSuccess),
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
		insists("C", failed, alive).forwardedAgainst(1, statusSuccess),
		insists("C", failed, alive).forwardedAgainst(1, statusSuccess).leaves("attempt 1, accepted success 200, claim C failed"),
	}},
	{"a claim that is repeated against a doubt gets the same answer", []step{
		claims("A", success, over).forwarded(1),
		insists("B", failed, alive).forwardedAgainst(2, statusSuccess),
		insists("B", failed, alive).forwardedAgainst(2, statusSuccess),
		released("B"),
		claims("C", success, over).forwarded(3),
		claims("C", success, over).forwarded(3).leaves("attempt 3, doubt success, claim C success"),
	}},
	{"an accepted settlement that is repeated says the same", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		accepted("A", 201).leaves("accepted success 201"),
		claims("B", late, alive).forwardedLate(1),
		accepted("A", 201).leaves("attempt 1, accepted success 201, claim B late"),
		claims("C", failed, alive).inFlight(),
	}},
	{"an accepted settlement that is repeated does not overwrite a newer one", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 200),
		insists("B", failed, alive).forwardedAgainst(1, statusSuccess),
		accepted("B", 202),
		accepted("A", 200).leaves("accepted failed 202"),
	}},
	{"an accepted settlement that is repeated does not take late goods back", []step{
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
		holds("C", failed, alive).conflict(statusSuccess),
		holds("D", late, alive).conflict(statusSuccess),
		holds("E", successOther, alive).conflict(statusSuccess).leaves("attempt 1, claim A success"),
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
		holds("E", late2, alive).conflict(statusSuccess).leaves("attempt 1, accepted success 200, claim B late"),
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
		holdsInsists("C", failed, alive).forwardedAgainst(2, statusSuccess),
		released("C").leaves("attempt 2, doubt success"),
		holdsInsists("D", success, alive).held(),
		holdsInsists("E", failed, alive).forwardedAgainst(3, statusSuccess),
		accepted("E", 200).leaves("accepted failed 200"),
	}},
	{"hold: in doubt behind a newer outcome", []step{
		holdsInsists("A", success, over).forwarded(1),
		holdsInsists("B", failed, over).forwardedAgainst(2, statusSuccess),
		holdsInsists("C", success, alive).held(),
		holdsInsists("D", failed, alive).held(),
		holds("E", success, alive).conflict(statusFailed),
	}},
	{"hold: a forwarded conflict in doubt", []step{
		holds("A", success, alive).forwarded(1),
		accepted("A", 200),
		holdsInsists("B", failed, over).forwardedAgainst(1, statusSuccess),
		holdsInsists("C", failed, alive).held(),
		holds("D", failed, alive).held(),
		holds("E", success, alive).duplicate(200),
	}},

	// What operators do.
	{"operator: no record", []step{
		operates(operationAccept).refused(toldNone).leaves(""),
		operates(operationRelease).refused(toldNone).leaves(""),
		operates(operationForget).refused(toldNone).leaves(""),
		forgetsEvenAccepted().refused(toldNone).leaves(""),
	}},
	{"operator: in flight", []step{
		claims("A", success, alive).forwarded(1),
		operates(operationAccept).refused(toldInFlight),
		operates(operationRelease).refused(toldInFlight),
		operates(operationForget).refused(toldInFlight),
		forgetsEvenAccepted().refused(toldInFlight).leaves("attempt 1, claim A success"),
	}},
	{"operator: in flight with a doubt", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		operates(operationAccept).refused(toldInFlight),
		operates(operationRelease).refused(toldInFlight),
		operates(operationForget).refused(toldInFlight).leaves("attempt 2, doubt success, claim B success"),
	}},
	{"operator: nothing in doubt", []step{
		claims("A", success, alive).forwarded(1),
		released("A"),
		operates(operationAccept).refused(toldNoDoubt),
		operates(operationRelease).refused(toldNoDoubt).leaves("attempt 1"),
		operates(operationForget).leaves(""),
		claims("B", success, alive).forwarded(1),
	}},
	{"operator: process in doubt is none", []step{
		claims("A", progress, over).forwarded(1),
		operates(operationAccept).refused(toldNoDoubt),
		operates(operationRelease).refused(toldNoDoubt).leaves("attempt 1, claim A process"),
	}},
	{"operator: accepted", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		operates(operationAccept).refused(toldNoDoubt),
		operates(operationRelease).refused(toldNoDoubt),
		operates(operationForget).refused(toldAccepted).leaves("accepted success 201"),
		forgetsEvenAccepted().leaves(""),
		claims("B", success, alive).forwarded(1),
	}},
	{"operator: a doubt of what was accepted is none", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, over).forwarded(2),
		accepted("A", 200),
		operates(operationAccept).refused(toldNoDoubt),
		operates(operationRelease).refused(toldNoDoubt),
	}},
	{"operator: accept", []step{
		holds("A", late, over).forwarded(1),
		holds("B", late, alive).held(),
		operates(operationAccept).leaves("accepted late 200"),
		holds("C", late, alive).duplicate(200),
		holds("D", progress, alive).stale(200),
		holds("E", failed, alive).conflict(statusSuccess),
		operates(operationAccept).refused(toldNoDoubt),
	}},
	{"operator: accept a failure", []step{
		claims("A", failed, over).forwarded(1),
		operates(operationAccept).leaves("accepted failed 200"),
		claims("B", failed, alive).duplicate(200),
		claims("C", success, alive).conflict(statusFailed),
	}},
	{"operator: accept a doubt behind a refused retry", []step{
		claims("A", success, over).forwarded(1),
		claims("B", success, alive).forwarded(2),
		released("B"),
		operates(operationAccept).leaves("accepted success 200"),
	}},
	{"operator: accept late goods", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		holds("B", late, over).forwardedLate(1),
		operates(operationAccept).leaves("accepted late 200"),
		holds("C", late, alive).duplicate(200),
	}},
	{"operator: accept a forwarded conflict", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		holdsInsists("B", failed, over).forwardedAgainst(1, statusSuccess),
		operates(operationAccept).leaves("accepted failed 200"),
		holds("C", success, alive).conflict(statusFailed),
	}},
	{"operator: accept over progress", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 201),
		claims("B", success, over).forwarded(1),
		operates(operationAccept).leaves("accepted success 200"),
	}},
	{"operator: release", []step{
		holds("A", success, over).forwarded(1),
		holds("B", success, alive).held(),
		operates(operationRelease).leaves("attempt 1"),
		operates(operationRelease).refused(toldNoDoubt),
		holds("C", success, over).forwarded(2).leaves("attempt 2, claim C success"),
		holds("D", success, alive).held(),
	}},
	{"operator: release, then another outcome", []step{
		holds("A", success, over).forwarded(1),
		operates(operationRelease),
		holds("B", failed, alive).forwarded(2),
	}},
	{"operator: release leaves what was accepted", []step{
		claims("A", success, alive).forwarded(1),
		accepted("A", 201),
		holds("B", late, over).forwardedLate(1),
		operates(operationRelease).leaves("attempt 1, accepted success 201"),
		holds("C", success, alive).duplicate(201),
		holds("D", late, alive).forwardedLate(2),
	}},
	{"operator: forget what is in doubt", []step{
		holds("A", success, over).forwarded(1),
		operates(operationForget).leaves(""),
		holds("B", failed, alive).forwarded(1),
	}},
	{"operator: forget what is in doubt behind an accepted outcome", []step{
		claims("A", progress, alive).forwarded(1),
		accepted("A", 200),
		claims("B", success, over).forwarded(1),
		operates(operationForget).refused(toldAccepted).leaves("attempt 1, accepted process 200, claim B success"),
		forgetsEvenAccepted().leaves(""),
	}},

	// A delivery that settles after the operator did.
	{"operator: accept, then the app's late answers", []step{
		claims("A", success, over).forwarded(1),
		operates(operationAccept).leaves("accepted success 200"),
		accepted("A", 201).leaves("accepted success 200"),
		released("A").leaves("accepted success 200"),
		unsent("A").leaves("accepted success 200"),
	}},
	{"operator: release, then the app accepts late", []step{
		claims("A", success, over).forwarded(1),
		operates(operationRelease),
		accepted("A", 201).leaves("accepted success 201"),
		claims("B", success, alive).duplicate(201),
	}},
	{"operator: release, delivered again, then the app accepts late", []step{
		claims("A", success, over).forwarded(1),
		operates(operationRelease),
		claims("B", success, alive).forwarded(2),
		accepted("A", 201).leaves("attempt 2, accepted success 201, claim B success"),
		claims("C", success, alive).duplicate(201),
		released("B").leaves("attempt 2, accepted success 201"),
	}},
	{"operator: release, then the app refuses late", []step{
		claims("A", success, over).forwarded(1),
		operates(operationRelease).leaves("attempt 1"),
		released("A").leaves("attempt 1"),
		unsent("A").leaves("attempt 1"),
	}},
	{"operator: forget, then the app accepts late", []step{
		claims("A", success, over).forwarded(1),
		operates(operationForget),
		accepted("A", 201).leaves("accepted success 201"),
		claims("B", success, alive).duplicate(201),
	}},
	{"operator: forget, another outcome, then the app accepts late", []step{
		claims("A", success, over).forwarded(1),
		operates(operationForget),
		claims("B", failed, alive).forwarded(1),
		accepted("B", 200).leaves("accepted failed 200"),
		accepted("A", 201).leaves("accepted failed 200"), // as without an operator: what was accepted last stays
		claims("C", failed, alive).duplicate(200),
		claims("D", success, alive).conflict(statusFailed),
	}},
	{"operator: forget, then the app refuses late", []step{
		claims("A", success, over).forwarded(1),
		operates(operationForget).leaves(""),
		released("A").leaves(""),
		unsent("A").leaves(""),
	}},
}

// bothStores are a real Redis and an embedded store, which keep the same bytes.
type bothStores struct {
	t        testing.TB
	redis    *redisStore
	client   *redis.Client
	embedded *embeddedStore
}

func newBothStores(t testing.TB) *bothStores {
	t.Helper()
	server := startRedis(t)
	s := &bothStores{t: t, redis: newTestRedisStore(t, server.url()), client: redisClient(t, server.addr())}
	s.embedded = newEmbeddedStore(filepath.Join(t.TempDir(), "records.db"))
	t.Cleanup(func() {
		if err := s.embedded.Destruct(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// newTestRedisStore opens a store as the module does, with time enough for a
// busy machine.
func newTestRedisStore(t testing.TB, url string) *redisStore {
	t.Helper()
	store, err := newRedisStore(redisConfig{urls: []string{url}, timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Destruct() })
	return store
}

// redisClient is a second connection, to look behind the store.
func redisClient(t testing.TB, addr string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// redisRecord returns a record's bytes in Redis, and how long they are kept.
func (s *bothStores) redisRecord(key string) ([]byte, time.Duration) {
	s.t.Helper()
	ctx := context.Background()
	b, err := s.client.Get(ctx, key).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, 0
	}
	if err != nil {
		s.t.Fatal(err)
	}
	left, err := s.client.PTTL(ctx, key).Result()
	if err != nil {
		s.t.Fatal(err)
	}
	return b, left
}

// embeddedRecord returns a record's bytes in the file, and how long they are
// kept.
func embeddedRecord(t testing.TB, s *embeddedStore, key string) (b []byte, left time.Duration) {
	t.Helper()
	db, err := s.open(context.Background(), time.Now().Add(s.timeout))
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(recordsBucket)
		if bucket == nil {
			return nil
		}
		if v := bucket.Get([]byte(key)); v != nil {
			left = time.UnixMilli(int64(binary.BigEndian.Uint64(v))).Sub(s.now())
			b = append([]byte{}, v[8:]...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b, left
}

// masked hides the lease's end, the only bytes in which the stores may differ:
// each goes by its own clock.
func masked(b []byte) []byte {
	b = bytes.Clone(b)
	if len(b) >= 12 && b[1]&hasClaim != 0 {
		clear(b[len(b)-8:])
	}
	return b
}

func testOwner(who string) (o owner) {
	copy(o[:], who)
	return o
}

// Every row of the contract's tables comes out on both stores, which keep the
// same bytes after each step; Go reads what Redis's scripts write.
func TestRecord(t *testing.T) {
	both := newBothStores(t)
	for _, row := range recordTable {
		t.Run(row.name, func(t *testing.T) {
			key := recordKey("iak:", "shop", row.name)
			play(t, both, key, row.steps)
		})
	}
}

func play(t *testing.T, both *bothStores, key string, steps []step) {
	ctx := context.Background()
	stores := []recordStore{both.redis, both.embedded}
	names := []string{"redis", "embedded"}
	claimed := [2]map[string]step{{}, {}} // the last claim of each delivery
	ends := [2]map[string]int64{{}, {}}   // and its lease's end, by the store's clock
	for i, s := range steps {
		at := fmt.Sprintf("step %d, %s", i+1, s.owner)
		var contents [2][]byte
		for n, store := range stores {
			var d decision
			var err error
			switch {
			case s.claim != nil:
				c := *s.claim
				c.key, c.owner, c.retention = key, testOwner(s.owner), 48*time.Hour
				if d, err = store.claim(ctx, &c); err != nil {
					t.Fatalf("%s: %s: %v", at, names[n], err)
				}
				claimed[n][s.owner], ends[n][s.owner] = s, d.leaseEnd
			case s.does != "":
				shot, err := store.change(ctx, key, 48*time.Hour, func(r *record, now int64) error {
					return r.operate(s.does, s.even, now)
				})
				if got := told(err); got != s.told {
					t.Errorf("%s%s: %s: the operator is told %q, want %q", at, s.does, names[n], got, s.told)
				}
				if err == nil && s.state != "-" && describe(shot.record) != s.state {
					t.Errorf("%s%s: %s: the operator is shown %q, want %q", at, s.does, names[n], describe(shot.record), s.state)
				}
			default:
				e := *s.end
				e.key, e.owner, e.retention = key, testOwner(s.owner), 48*time.Hour
				e.leaseEnd = ends[n][s.owner]
				code := e.outcome.code
				e.outcome = claimed[n][s.owner].claim.outcome
				e.outcome.code = code
				if err := store.settle(ctx, &e); err != nil {
					t.Fatalf("%s: %s: %v", at, names[n], err)
				}
			}
			if n == 0 {
				contents[n], _ = both.redisRecord(key)
			} else {
				contents[n], _ = embeddedRecord(t, both.embedded, key)
			}
			r, err := decodeRecord(contents[n])
			if err != nil {
				t.Fatalf("%s: %s: the record % x: %v", at, names[n], contents[n], err)
			}
			if s.claim != nil {
				checkDecision(t, at+": "+names[n], s, d, r)
			}
			if s.state != "-" && describe(r) != s.state {
				t.Errorf("%s: %s: the record is %q, want %q", at, names[n], describe(r), s.state)
			}
			if s.state == "" && contents[n] != nil {
				t.Errorf("%s: %s: a record of % x is left, want none", at, names[n], contents[n])
			}
		}
		if !bytes.Equal(masked(contents[0]), masked(contents[1])) {
			t.Errorf("%s: the stores differ:\nredis    % x\nembedded % x", at, contents[0], contents[1])
		}
	}
}

// checkDecision compares a claim's answer, times by the record that it left.
func checkDecision(t *testing.T, at string, s step, got decision, r *record) {
	t.Helper()
	switch got.verdict {
	case verdictForwarded:
		if r.claim == nil || got.leaseEnd != r.claim.end {
			t.Errorf("%s: the answer tells the lease's end %d, the record %+v", at, got.leaseEnd, r.claim)
		}
		got.leaseEnd = 0
	case verdictInFlight:
		if r.claim == nil || got.leaseEnd != r.claim.end {
			t.Errorf("%s: the answer tells the lease's end %d, the record %+v", at, got.leaseEnd, r.claim)
		}
		if got.wait <= 0 || got.wait > alive {
			t.Errorf("%s: wait %s, want what is left of %s", at, got.wait, alive)
		}
		got.leaseEnd, got.wait = 0, 0
	}
	if got != s.want {
		t.Errorf("%s: %s %s\n got %+v\nwant %+v", at, "claim", outcomeNames[s.claim.outcome], got, s.want)
	}
}

// A claim whose lease ends while another one waits for it is in doubt then, by
// the store's own clock; until then the wait that is told gets shorter.
func TestRecordLeaseEnds(t *testing.T) {
	both := newBothStores(t)
	for name, store := range map[string]recordStore{"redis": both.redis, "embedded": both.embedded} {
		t.Run(name, func(t *testing.T) {
			claim := func(who string, lease time.Duration) decision {
				t.Helper()
				d, err := store.claim(context.Background(), &claimRequest{
					key: "iak:shop:lease", outcome: success, owner: testOwner(who), lease: lease, retention: 48 * time.Hour,
				})
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			const lease = 300 * time.Millisecond
			if d := claim("A", lease); d.verdict != verdictForwarded {
				t.Fatalf("the first claim: %+v", d)
			}
			var d decision
			before := lease
			eventually(t, "the lease ends", func() bool {
				if d = claim("B", alive); d.verdict == verdictInFlight && (d.wait <= 0 || d.wait > before) {
					t.Fatalf("wait %s after %s", d.wait, before)
				}
				before = d.wait
				return d.verdict != verdictInFlight
			})
			if d.verdict != verdictForwarded || d.attempt != 2 {
				t.Errorf("after the lease: %+v, want the second attempt", d)
			}
		})
	}
}

// A record is kept for the retention after its last change, and what changes
// nothing does not keep it longer.
func TestRecordRetention(t *testing.T) {
	both := newBothStores(t)
	const key = "iak:shop:retention"
	steps := []struct {
		step
		changes bool
	}{
		{claims("A", success, alive), true},
		{claims("B", success, alive), false}, // in flight
		{released("B"), false},
		{released("A"), true},
		{claims("C", success, alive), true},
		{accepted("C", 200), true},
		{claims("D", success, alive), false},  // duplicate
		{claims("E", progress, alive), false}, // stale
		{claims("F", failed, alive), false},   // conflict
		{claims("G", late, alive), true},
		{unsent("G"), true},
	}
	kept := [2]time.Duration{}
	for i, s := range steps {
		retention := time.Duration(100-i) * time.Hour
		ctx := context.Background()
		for n, store := range []recordStore{both.redis, both.embedded} {
			var err error
			if s.claim != nil {
				c := *s.claim
				c.key, c.owner, c.retention = key, testOwner(s.owner), retention
				_, err = store.claim(ctx, &c)
			} else {
				e := *s.end
				e.key, e.owner, e.retention = key, testOwner(s.owner), retention
				e.outcome.status, e.outcome.fingerprint = success.status, success.fingerprint
				err = store.settle(ctx, &e)
			}
			if err != nil {
				t.Fatal(err)
			}
			if s.changes {
				kept[n] = retention
			}
			_, left := both.redisRecord(key)
			if n == 1 {
				_, left = embeddedRecord(t, both.embedded, key)
			}
			if left > kept[n] || left < kept[n]-30*time.Minute {
				t.Errorf("step %d, %T: the record is kept for %s, want %s", i+1, store, left, kept[n])
			}
		}
	}
}

// The scripts in Redis follow the rules of record.decide and record.settle
// step by step, whatever the order of the operations is; and on every way an
// accepted outcome is not forwarded again, none replaces a final one by
// process, under on_conflict reject none contradicts what was accepted, and
// what is delivered again while it was in doubt has a higher attempt.
func TestRecordRandom(t *testing.T) {
	server := startRedis(t)
	store := newTestRedisStore(t, server.url())
	both := &bothStores{t: t, client: redisClient(t, server.addr())}
	outcomes := []outcome{progress, progressOther, success, late, late2, successOther, lateOther, failed, failedOther}
	ctx := context.Background()
	for seed := range uint64(400) {
		random := rand.New(rand.NewPCG(seed, 1))
		key := fmt.Sprint("iak:shop:", seed)
		insist := seed%2 == 1
		r := new(record)
		var made [2][]settlement      // of each claim that was forwarded: by Redis's clock and by Go's
		attempts := map[outcome]int{} // of the last delivery of each outcome
		var history []string
		for range 25 {
			now := time.Now().UnixMilli()
			if n := len(made[0]); n == 0 || random.IntN(2) == 0 {
				c := &claimRequest{
					key: key, outcome: outcomes[random.IntN(len(outcomes))], owner: testOwner(string(rune('A' + random.IntN(20)))),
					lease: []time.Duration{over, over, alive}[random.IntN(3)], retention: 48 * time.Hour, forwardConflict: insist,
				}
				own := r.claim != nil && r.claim.owner == c.owner
				if own {
					c.outcome = r.claim.outcome // a token belongs to one callback
				}
				history = append(history, fmt.Sprintf("claim %c %s %s", c.owner[0], outcomeNames[c.outcome], c.lease))
				before := *r
				want := r.decide(c, now)
				got, err := store.claim(ctx, c)
				if err != nil {
					t.Fatal(err)
				}
				history = append(history, fmt.Sprintf("-> %s", got.verdict))
				if got.verdict == verdictForwarded && !own {
					made[0] = append(made[0], settlement{key: key, owner: c.owner, leaseEnd: got.leaseEnd, outcome: c.outcome})
					made[1] = append(made[1], settlement{key: key, owner: c.owner, leaseEnd: want.leaseEnd, outcome: c.outcome})
					if a := before.accepted; a != nil {
						switch {
						case a.same(c.outcome):
							t.Fatalf("an accepted outcome was forwarded again:\n%s", strings.Join(history, "\n"))
						case a.status != statusProcess && c.outcome.status == statusProcess:
							t.Fatalf("process was forwarded after %s:\n%s", a.status, strings.Join(history, "\n"))
						case a.status != statusProcess && !insist && !got.lateGoods && before.claim == nil && before.doubt == nil:
							t.Fatalf("a conflict was forwarded:\n%s", strings.Join(history, "\n"))
						}
					}
				}
				if got.verdict == verdictForwarded && !own {
					inDoubt := before.doubt != nil && before.doubt.same(c.outcome) || before.claim != nil && before.claim.same(c.outcome)
					if inDoubt && got.attempt <= attempts[c.outcome] {
						t.Fatalf("attempt %d after attempt %d:\n%s", got.attempt, attempts[c.outcome], strings.Join(history, "\n"))
					}
					attempts[c.outcome] = got.attempt
				}
				got.leaseEnd, want.leaseEnd, got.wait, want.wait = 0, 0, 0, 0
				if got != want {
					t.Fatalf("Redis decides %+v, Go %+v:\n%s", got, want, strings.Join(history, "\n"))
				}
			} else {
				i := random.IntN(n)
				verdict := []settleVerdict{settleAccepted, settleAccepted, settleReleased, settleUnsent}[random.IntN(4)]
				for m := range made {
					made[m][i].verdict, made[m][i].retention, made[m][i].outcome.code = verdict, 48*time.Hour, 200+len(history)
				}
				o := made[0][i].outcome
				o.code = 0
				history = append(history, fmt.Sprintf("%s %c %s", verdict, made[0][i].owner[0], outcomeNames[o]))
				before := r.accepted
				if verdict == settleUnsent && r.claim != nil && r.claim.owner == made[0][i].owner {
					attempts[o]--
				}
				r.settle(&made[1][i], now)
				if err := store.settle(ctx, &made[0][i]); err != nil {
					t.Fatal(err)
				}
				if before != nil && before.status != statusProcess && r.accepted.status == statusProcess {
					t.Fatalf("process replaced %s:\n%s", before.status, strings.Join(history, "\n"))
				}
			}
			b, _ := both.redisRecord(key)
			var want []byte
			if !r.empty() {
				want = r.encode()
			}
			if !bytes.Equal(masked(b), masked(want)) {
				t.Fatalf("Redis keeps\n% x\nGo\n% x\n%s", b, want, strings.Join(history, "\n"))
			}
		}
	}
}

// testRecords are records with every combination of parts.
func testRecords() (all []*record) {
	for parts := range 8 {
		r := &record{attempt: 258 * parts}
		if parts&1 != 0 {
			o := late
			o.code = 299
			r.accepted = &o
		}
		if parts&2 != 0 {
			o := failedOther
			r.doubt = &o
		}
		if parts&4 != 0 {
			r.claim = &claimed{outcome: progress, owner: testOwner("0123456789abcdef"), end: 1<<40 + 7}
		}
		all = append(all, r)
	}
	return all
}

// What encode writes, decodeRecord reads; an accepted record has 23 bytes, few
// enough for Redis's block of 48.
func TestRecordBytes(t *testing.T) {
	sizes := []int{4, 23, 23, 42, 47, 66, 66, 85}
	for i, r := range testRecords() {
		b := r.encode()
		if len(b) != sizes[i] {
			t.Errorf("%s: %d bytes, want %d", describe(r), len(b), sizes[i])
		}
		got, err := decodeRecord(b)
		if err != nil {
			t.Errorf("%s: %v", describe(r), err)
			continue
		}
		if describe(got) != describe(r) || !bytes.Equal(got.encode(), b) {
			t.Errorf("read %q, want %q", describe(got), describe(r))
		}
	}
	if r, err := decodeRecord(nil); err != nil || !r.empty() {
		t.Errorf("no bytes: %v, %v, want an empty record", r, err)
	}
}

// A record that cannot be read is an error in Go and in Redis alike, never
// taken for none, and stays as it is.
func TestRecordDamaged(t *testing.T) {
	both := newBothStores(t)
	damaged := [][]byte{{0}, {1}, {1, 0, 0}, []byte("claimed"), bytes.Repeat([]byte{0xff}, 23)}
	for _, r := range testRecords() {
		b := r.encode()
		damaged = append(damaged,
			append(bytes.Clone(b), 0), append(bytes.Clone(b), b...),
			edited(b, 0, 0), edited(b, 0, 2), edited(b, 0, 255), edited(b, 1, b[1]|8), edited(b, 1, 255),
			edited(b, 1, b[1]^hasAccepted), edited(b, 1, b[1]^hasClaim))
		for n := 1; n < len(b); n++ {
			damaged = append(damaged, b[:n])
		}
		at := 4 // each part begins with its status
		for _, there := range []bool{r.accepted != nil, r.doubt != nil, r.claim != nil} {
			if there {
				damaged = append(damaged, edited(b, at, 3))
				at += outcomeSize
			}
		}
	}
	ctx := context.Background()
	for _, b := range damaged {
		if r, err := decodeRecord(b); !errors.Is(err, errRecord) {
			t.Errorf("% x: read as %q, %v", b, describe(r), err)
		}
		const key = "iak:shop:damaged"
		if err := both.client.Set(ctx, key, b, 0).Err(); err != nil {
			t.Fatal(err)
		}
		putEmbedded(t, both.embedded, key, b)
		for _, store := range []recordStore{both.redis, both.embedded} {
			c := &claimRequest{key: key, outcome: success, owner: testOwner("A"), lease: alive, retention: 48 * time.Hour}
			if d, err := store.claim(ctx, c); !errors.Is(err, errRecord) {
				t.Errorf("% x: claim of %T: %+v, %v, want errRecord", b, store, d, err)
			}
			for _, verdict := range []settleVerdict{settleAccepted, settleUnsent} {
				s := &settlement{key: key, owner: testOwner("A"), retention: 48 * time.Hour, verdict: verdict, outcome: success}
				if err := store.settle(ctx, s); !errors.Is(err, errRecord) {
					t.Errorf("% x: settle of %T: %v, want errRecord", b, store, err)
				}
			}
			if _, err := store.read(ctx, key); !errors.Is(err, errRecord) {
				t.Errorf("% x: read of %T: %v, want errRecord", b, store, err)
			}
			_, err := store.change(ctx, key, 48*time.Hour, func(r *record, now int64) error {
				return r.operate(operationForget, true, now)
			})
			if !errors.Is(err, errRecord) {
				t.Errorf("% x: change of %T: %v, want errRecord", b, store, err)
			}
		}
		inRedis, _ := both.redisRecord(key)
		inFile, _ := embeddedRecord(t, both.embedded, key)
		if !bytes.Equal(inRedis, b) || !bytes.Equal(inFile, b) {
			t.Errorf("% x became % x in redis, % x in the file", b, inRedis, inFile)
		}
	}
}

// No bytes make decodeRecord panic, and what it reads it would write again.
func TestRecordAnyBytes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	records := testRecords()
	for range 200_000 {
		b := records[random.IntN(len(records))].encode()
		for range 1 + random.IntN(3) {
			b[random.IntN(min(len(b), 30))] = byte(random.Uint32())
		}
		b = b[:random.IntN(len(b)+1)]
		r, err := decodeRecord(b)
		switch {
		case err != nil && !errors.Is(err, errRecord):
			t.Fatalf("% x: %v", b, err)
		case err == nil && len(b) > 0 && !bytes.Equal(r.encode(), b):
			t.Fatalf("% x is read as %q, which is % x", b, describe(r), r.encode())
		}
	}
}

func edited(b []byte, at int, to byte) []byte {
	b = bytes.Clone(b)
	b[at] = to
	return b
}

// putEmbedded puts bytes into the embedded store's file, behind its back.
func putEmbedded(t testing.TB, s *embeddedStore, key string, b []byte) {
	t.Helper()
	db, err := s.open(context.Background(), time.Now().Add(s.timeout))
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists(recordsBucket)
		if err != nil {
			return err
		}
		v := binary.BigEndian.AppendUint64(nil, uint64(s.now().Add(time.Hour).UnixMilli()))
		return bucket.Put([]byte(key), append(v, b...))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The record's key keeps two orders apart, whatever their names hold.
func TestRecordKey(t *testing.T) {
	for _, row := range []struct{ prefix, account, refID, want string }{
		{"iak:", "shop", "order001", "iak:shop:order001"},
		{"", "shop", "a:b", "shop:a:b"},
		{"iak:", "shop-2", "{x} \xe2\x82\xac", "iak:shop-2:{x} €"},
	} {
		if got := recordKey(row.prefix, row.account, row.refID); got != row.want {
			t.Errorf("%q, want %q", got, row.want)
		}
	}
}

// read returns what the store keeps, with the store's time and the record's
// expiry, and an empty record where there is none.
func TestRecordRead(t *testing.T) {
	both := newBothStores(t)
	ctx := context.Background()
	for i, r := range testRecords() {
		key := fmt.Sprint("iak:shop:", i)
		b := r.encode()
		if err := both.client.Set(ctx, key, b, time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
		putEmbedded(t, both.embedded, key, b)
		for _, store := range []recordStore{both.redis, both.embedded} {
			shot, err := store.read(ctx, key)
			if err != nil || !bytes.Equal(shot.record.encode(), b) {
				t.Errorf("%s: read %q, %v, want %q", store, describe(shot.record), err, describe(r))
			}
			if ago := time.Since(time.UnixMilli(shot.now)); ago < -time.Second || ago > time.Minute {
				t.Errorf("%s: its time is %s ago", store, ago)
			}
			if left := time.Duration(shot.expires-shot.now) * time.Millisecond; left > time.Hour || left < 59*time.Minute {
				t.Errorf("%s: %s until it expires, want an hour", store, left)
			}
		}
	}
	for _, store := range []recordStore{both.redis, both.embedded} {
		if shot, err := store.read(ctx, "iak:shop:none"); err != nil || !shot.record.empty() || shot.state(true) != stateForgotten {
			t.Errorf("%s: where there is no record: %+v, %v", store, shot, err)
		}
	}

	both.embedded.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if shot, err := both.embedded.read(ctx, "iak:shop:1"); err != nil || !shot.record.empty() {
		t.Errorf("a record that has expired: %+v, %v", shot, err)
	}
	if err := both.client.LPush(ctx, "iak:shop:list", "x").Err(); err != nil {
		t.Fatal(err)
	}
	if shot, err := both.redis.read(ctx, "iak:shop:list"); !errors.Is(err, errRecord) {
		t.Errorf("a key of another type: %+v, %v, want errRecord", shot, err)
	}
}

// attemptOf is a change that sets the attempt.
func attemptOf(n int) func(*record, int64) error {
	return func(r *record, _ int64) error { r.attempt = n; return nil }
}

// change writes what the change made of the record, renews its retention, and
// returns it; an error of the change leaves everything as it is.
func TestRecordChange(t *testing.T) {
	both := newBothStores(t)
	ctx := context.Background()
	for n, store := range []recordStore{both.redis, both.embedded} {
		t.Run(store.String(), func(t *testing.T) {
			const key = "iak:shop:change"
			kept := func() ([]byte, time.Duration) {
				if n == 0 {
					return both.redisRecord(key)
				}
				return embeddedRecord(t, both.embedded, key)
			}
			expect := func(what string, want *record, retention time.Duration) {
				t.Helper()
				b, left := kept()
				if want == nil {
					if b != nil {
						t.Errorf("%s: % x is left, want none", what, b)
					}
					return
				}
				if !bytes.Equal(b, want.encode()) {
					t.Errorf("%s: the record is % x, want % x", what, b, want.encode())
				}
				if left > retention || left < retention-30*time.Minute {
					t.Errorf("%s: kept for %s, want %s", what, left, retention)
				}
			}
			change := func(retention time.Duration, apply func(*record, int64) error) snapshot {
				t.Helper()
				shot, err := store.change(ctx, key, retention, apply)
				if err != nil {
					t.Fatal(err)
				}
				if left := time.Duration(shot.expires-shot.now) * time.Millisecond; left != retention {
					t.Errorf("the answer says that it is kept for %s, want %s", left, retention)
				}
				return shot
			}

			if shot := change(90*time.Hour, attemptOf(1)); shot.record.attempt != 1 {
				t.Errorf("the answer: %+v", shot.record)
			}
			expect("created", &record{attempt: 1}, 90*time.Hour)

			reason := errors.New("no")
			_, err := store.change(ctx, key, 50*time.Hour, func(r *record, now int64) error {
				if ago := time.Since(time.UnixMilli(now)); ago < -time.Second || ago > time.Minute {
					t.Errorf("the change is told a time %s ago", ago)
				}
				r.attempt = 7
				return reason
			})
			if !errors.Is(err, reason) {
				t.Errorf("got %v, want the change's error", err)
			}
			expect("refused", &record{attempt: 1}, 90*time.Hour)

			for i, r := range testRecords()[1:] {
				change(80*time.Hour, func(was *record, _ int64) error { *was = *r; return nil })
				expect(fmt.Sprint("changed ", i), r, 80*time.Hour)
			}
			change(70*time.Hour, func(*record, int64) error { return nil })
			expect("unchanged", testRecords()[7], 70*time.Hour) // as after any change
			change(60*time.Hour, func(r *record, _ int64) error { *r = record{}; return nil })
			expect("emptied", nil, 0)
			change(60*time.Hour, func(*record, int64) error { return nil })
			expect("none", nil, 0)
		})
	}
}

// Changes at the same time lose nothing of one another.
func TestRecordChangesMeet(t *testing.T) {
	both := newBothStores(t)
	for _, store := range []recordStore{both.redis, both.embedded} {
		var all sync.WaitGroup
		const changes = 15
		for i := range changes {
			all.Go(func() {
				for {
					_, err := store.change(context.Background(), "iak:shop:meet", 48*time.Hour, func(r *record, _ int64) error {
						r.attempt |= 1 << i
						return nil
					})
					if err == nil {
						return
					}
					if !strings.Contains(err.Error(), "try again") {
						t.Errorf("%s: %v", store, err)
						return
					}
				}
			})
		}
		all.Wait()
		if shot, err := store.read(context.Background(), "iak:shop:meet"); err != nil || shot.record.attempt != 1<<changes-1 {
			t.Errorf("%s: of %d changes these are left: %b, %v", store, changes, shot.record.attempt, err)
		}
	}
}

// A record in Redis that changes between reading and replacing is read again,
// and the change is applied to what it is by then; one that changes all the
// time is left to the others.
func TestRecordChangesMeanwhile(t *testing.T) {
	both := newBothStores(t)
	ctx := context.Background()
	const key = "iak:shop:meanwhile"
	put := func(attempt int) {
		t.Helper()
		if err := both.client.Set(ctx, key, (&record{attempt: attempt}).encode(), time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
	}
	remove := func() {
		t.Helper()
		if err := both.client.Del(ctx, key).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		name      string
		before    func()
		meanwhile func()
		seen      []int // the attempts that the change is applied to
	}{
		{"another change", func() { put(5) }, func() { put(8) }, []int{5, 8}},
		{"removed", func() { put(5) }, remove, []int{5, 0}},
		{"created", remove, func() { put(3) }, []int{0, 3}},
		{"the same bytes", func() { put(5) }, func() { put(5) }, []int{5}},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.before()
			var seen []int
			shot, err := both.redis.change(ctx, key, 48*time.Hour, func(r *record, _ int64) error {
				if seen = append(seen, r.attempt); len(seen) == 1 {
					row.meanwhile()
				}
				r.attempt += 100
				return nil
			})
			if err != nil || !slices.Equal(seen, row.seen) {
				t.Fatalf("applied to the attempts %v, %v, want %v", seen, err, row.seen)
			}
			want := row.seen[len(row.seen)-1] + 100
			b, _ := both.redisRecord(key)
			if shot.record.attempt != want || !bytes.Equal(b, (&record{attempt: want}).encode()) {
				t.Errorf("the answer says %d, the record is % x, want %d", shot.record.attempt, b, want)
			}
		})
	}

	t.Run("then refused", func(t *testing.T) {
		put(1)
		n := 0
		_, err := both.redis.change(ctx, key, 48*time.Hour, func(*record, int64) error {
			if n++; n == 1 {
				put(2)
				return nil
			}
			return errNoRecord
		})
		b, left := both.redisRecord(key)
		if !errors.Is(err, errNoRecord) || !bytes.Equal(b, (&record{attempt: 2}).encode()) || left > time.Hour {
			t.Errorf("got %v, and a record of % x for %s", err, b, left)
		}
	})
	t.Run("all the time", func(t *testing.T) {
		put(0)
		n := 0
		_, err := both.redis.change(ctx, key, 48*time.Hour, func(r *record, _ int64) error {
			n++
			put(n)
			r.attempt = 1000
			return nil
		})
		b, _ := both.redisRecord(key)
		if err == nil || !strings.Contains(err.Error(), "try again") || n != replaceTries || !bytes.Equal(b, (&record{attempt: n}).encode()) {
			t.Errorf("after %d tries: %v, and a record of % x", n, err, b)
		}
	})
	t.Run("the answer is lost", func(t *testing.T) {
		proxy := startFaultyProxy(t, both.client.Options().Addr)
		store := newTestRedisStore(t, "redis://"+proxy.Addr().String())
		if _, err := store.read(ctx, key); err != nil {
			t.Fatal(err)
		}
		for _, next := range []record{{attempt: 2}, {}} { // changed, removed
			put(1)
			n := 0
			_, err := store.change(ctx, key, 48*time.Hour, func(r *record, _ int64) error {
				if n++; n == 1 {
					proxy.loseReplies(1)
				}
				if r.attempt != 1 {
					return errNotDone{"this was done before"}
				}
				*r = next
				return nil
			})
			if proxy.repliesLost() != 1 {
				t.Fatal("no answer was lost: the test shows nothing")
			}
			if err != nil || n != 1 {
				t.Errorf("what was carried out is told to have failed: %v, after %d tries", err, n)
			}
		}
	})
}

// A list ends when nobody reads it any more.
func TestRecordListCancelled(t *testing.T) {
	both := newBothStores(t)
	for _, store := range []recordStore{both.redis, both.embedded} {
		mustClaim(t, store, claimOf("shop:one", "A", success, alive))
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		err := store.list(ctx, "shop:", func(string, snapshot) error { return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want that it was cancelled", store, err)
		}
	}
}

// list visits the records under the prefix, whatever characters that has, of
// more than one page, and nothing else: none that has expired, none of another
// type or version.
func TestRecordList(t *testing.T) {
	both := newBothStores(t)
	ctx := context.Background()
	const prefix = `a*[b]?\`
	want := make(map[string]int) // the attempt, by the key
	for i := range 2*listPage + 100 {
		want[fmt.Sprintf(`%s:order%d`, prefix, i)] = i + 1
	}
	for i, refID := range []string{"*", "", "a:b", "\u202e?&#/../%2F", "order1 "} {
		want[prefix+":"+refID] = 5000 + i
	}
	others := []string{ // a glob would take some of them
		`aXb?\:1`, `aX[b]?\:1`, `ab\:1`, `a*bX\:1`, `a*[b]X\:1`, `a*[b]?:1`, `a*[b]?\x:1`, `A*[b]?\:1`, `xa*[b]?\:1`, `a*[b]?\`, `a*[b]?\9:1`, `a*[b]?\;1`,
	}
	put := func(records map[string][]byte, expires time.Duration) {
		t.Helper()
		pipe := both.client.Pipeline()
		for key, b := range records {
			pipe.Set(ctx, key, b, max(expires, time.Millisecond))
		}
		if _, err := pipe.Exec(ctx); err != nil {
			t.Fatal(err)
		}
		db, err := both.embedded.open(ctx, time.Now().Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			bucket, err := tx.CreateBucketIfNotExists(recordsBucket)
			for key, b := range records {
				if err == nil {
					err = bucket.Put([]byte(key), append(appendInt64(nil, time.Now().Add(expires).UnixMilli()), b...))
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	records := make(map[string][]byte)
	for key, attempt := range want {
		records[key] = (&record{attempt: attempt}).encode()
	}
	for _, key := range others {
		records[key] = (&record{attempt: 1}).encode()
	}
	records[prefix+":another version"] = []byte{recordVersion + 1, 0, 0, 1}
	records[prefix+":no record"] = []byte("text")
	put(records, time.Hour)
	put(map[string][]byte{prefix + ":expired": (&record{attempt: 1}).encode(), prefix + ":order": (&record{attempt: 1}).encode()}, -time.Hour)
	if err := both.client.LPush(ctx, prefix+":a list", "x").Err(); err != nil {
		t.Fatal(err)
	}
	err := both.embedded.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(recordsBucket).Put([]byte(prefix+":short"), []byte("short"))
	})
	if err != nil {
		t.Fatal(err)
	}

	for _, store := range []recordStore{both.redis, both.embedded} {
		t.Run(store.String(), func(t *testing.T) {
			found := make(map[string]int)
			err := store.list(ctx, prefix+":", func(key string, s snapshot) error {
				found[key] = s.record.attempt
				if left := time.Duration(s.expires-s.now) * time.Millisecond; left > time.Hour || left < 59*time.Minute {
					t.Errorf("%q: %s until it expires, want an hour", key, left)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			for key := range found {
				if _, ok := want[key]; !ok {
					t.Errorf("%q is listed", key)
				}
			}
			if !maps.Equal(found, want) {
				t.Errorf("%d records are listed, want %d", len(found), len(want))
			}

			enough, visits := errors.New("enough"), 0
			err = store.list(ctx, prefix+":", func(string, snapshot) error {
				visits++
				return enough
			})
			if !errors.Is(err, enough) || visits != 1 {
				t.Errorf("a visit that fails: %v after %d visits", err, visits)
			}
			err = store.list(ctx, "none:", func(key string, _ snapshot) error {
				t.Errorf("%q is listed", key)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// list finds the records of all masters of a Cluster, and visits one at a time.
func TestRecordListCluster(t *testing.T) {
	cluster := startShards(t)
	s, err := newRedisStore(redisConfig{urls: strings.Fields(cluster.urls()), cluster: true, timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Destruct() })
	ctx := context.Background()
	client := cluster.client()
	want := make(map[string]int)
	for i := range 300 {
		key := fmt.Sprint("iak:shop:", i)
		want[key] = i + 1
		if err := client.Set(ctx, key, (&record{attempt: i + 1}).encode(), time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
	}
	found := make(map[string]int)
	var visiting atomic.Bool
	err = s.list(ctx, "iak:shop:", func(key string, shot snapshot) error {
		if visiting.Swap(true) {
			t.Error("two visits at the same time")
		}
		runtime.Gosched()
		found[key] = shot.record.attempt
		visiting.Store(false)
		return nil
	})
	if err != nil || !maps.Equal(found, want) {
		t.Errorf("%d records are listed, %v, want %d", len(found), err, len(want))
	}
	enough, visits := errors.New("enough"), 0
	err = s.list(ctx, "iak:shop:", func(string, snapshot) error {
		visits++
		return enough
	})
	if !errors.Is(err, enough) || visits != 1 {
		t.Errorf("a visit that fails: %v after %d visits", err, visits)
	}
}
