package inspect

import (
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
)

// The paths of the admin API. PathRecord takes GET and DELETE, PathAccept and
// PathRelease POST, the others GET.
const (
	PathRecord  = "/iak_callback/record"
	PathAccept  = "/iak_callback/record/accept"
	PathRelease = "/iak_callback/record/release"
	PathRecords = "/iak_callback/records"
	PathHealth  = "/iak_callback/health"
)

// HeaderReplayed says, in an answer from the record, that the app did not see this
// callback.
const HeaderReplayed = "Idempotent-Replayed"

// The states of a record that a reader treats apart.
const (
	InFlight  = record.StateInFlight
	Accepted  = record.StateAccepted
	Assumed   = record.StateAssumed
	Forgotten = record.StateForgotten
)

// States are all that a record can have.
func States() []string {
	words := make([]string, len(record.States))
	for i, s := range record.States {
		words[i] = string(s)
	}
	return words
}

// WhyForgetsAccepted is the error of a DELETE that needs accepted=true.
var WhyForgetsAccepted = record.ErrForgetsAccepted.Error()

// Record is what an operator sees of a record.
type Record struct {
	Account  string       `json:"account"`
	RefID    string       `json:"ref_id"`
	State    record.State `json:"state"`
	Accepted string       `json:"accepted,omitempty"`  // the status that the app accepted last
	Code     int          `json:"code,omitempty"`      // what the app answered then
	InFlight string       `json:"in_flight,omitempty"` // the status that is being delivered
	Until    *time.Time   `json:"until,omitempty"`     // when that lease is over
	InDoubt  string       `json:"in_doubt,omitempty"`  // the status of which nobody knows whether the app has acted
	// With on_conflict forward, the status that is in doubt behind the newer one.
	InDoubtBefore string `json:"in_doubt_before,omitempty"`

	Attempt int       `json:"attempt"` // deliveries since the last accepted outcome
	Changed time.Time `json:"changed"`
	Expires time.Time `json:"expires,omitzero"` // zero: not until it is settled
	Store   string    `json:"store"`
}

// Answer tells of the places where it was done, and of those where it was not, but
// for those that have no such record.
type Answer struct {
	Records []Record `json:"records"`
	Errors  []string `json:"errors,omitempty"`
}

// Problem is the last line of a list that could not be completed.
type Problem struct {
	Error string `json:"error"`
}

// Health tells whether all stores answer.
type Health struct {
	OK     bool          `json:"ok"`
	Stores []StoreHealth `json:"stores"`
}

// StoreHealth tells whether one store answers.
type StoreHealth struct {
	Store string `json:"store"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}
