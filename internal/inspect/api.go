package inspect

import (
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
)

// The paths of the admin API. PathRecord takes GET and DELETE, PathRecords and
// PathHealth and PathRecent GET, the others POST.
const (
	PathRecord       = "/iak_callback/record"
	PathAccept       = "/iak_callback/record/accept"
	PathRelease      = "/iak_callback/record/release"
	PathRedeliver    = "/iak_callback/record/redeliver"
	PathReveal       = "/iak_callback/record/reveal"
	PathRecords      = "/iak_callback/records"
	PathRedeliverAll = "/iak_callback/redeliver"
	PathHealth       = "/iak_callback/health"
	PathAsk          = "/iak_callback/ask"
	PathRecent       = "/iak_callback/recent"
)

// The parameters that say that an operation is meant: that of a DELETE of what the app
// has accepted or of what is kept, and that of PathRedeliver for what is held.
const (
	SureToForget    = "accepted"
	SureToRedeliver = "held"
)

// The parameters of PathAsk: hand a final answer in as a callback, and show goods.
const (
	AskDeliver = "deliver"
	AskReveal  = "reveal"
)

// HeaderReplayed says, in an answer from the record, that the app did not see this
// callback.
const HeaderReplayed = "Idempotent-Replayed"

// The states of a record that a reader treats apart.
const (
	InFlight  = record.StateInFlight
	Held      = record.StateHeld
	Accepted  = record.StateAccepted
	Assumed   = record.StateAssumed
	Spooled   = record.StateSpooled
	Dead      = record.StateDead
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

// The errors of a DELETE that needs accepted=true, and of a redelivery that needs
// held=true.
var (
	WhyForgetsAccepted = record.ErrForgetsAccepted.Error()
	WhyForgetsKept     = record.ErrForgetsKept.Error()
	WhyRedeliversHeld  = errHeld.Error()
)

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

	Kept *Kept `json:"kept,omitempty"` // the callback that the app has not accepted yet, with a spool

	Attempt int       `json:"attempt"` // deliveries since the last accepted outcome
	Changed time.Time `json:"changed"`
	Expires time.Time `json:"expires,omitzero"` // zero: not until it is settled
	Store   string    `json:"store"`
	Outage  bool      `json:"outage,omitempty"` // it is kept here until Redis answers again
}

// Kept is what an operator sees of a callback that is kept: not what it says.
type Kept struct {
	Status string     `json:"status"`
	Came   time.Time  `json:"came"`          // when it came first, or its tries began anew
	Due    *time.Time `json:"due,omitempty"` // when it is delivered next; absent while it is, and while it waits for an operator
	Dead   bool       `json:"dead,omitempty"`

	Confirmed bool `json:"confirmed,omitempty"` // IAK says the same

	// No route of this Caddy leads to an iak_callback that takes it.
	Unrouted bool  `json:"unrouted,omitempty"`
	Tries    []Try `json:"tries,omitempty"` // the last ten, the latest last
}

// Try is one delivery of what is kept, as it ended.
type Try struct {
	Time      time.Time `json:"time"`
	Result    string    `json:"result"` // refused, unsent, unknown or not_confirmed
	AppStatus int       `json:"app_status,omitempty"`
	Duration  float64   `json:"duration"` // in seconds
}

// What can become of a try.
const (
	Refused = "refused" // the app, or a handler in its place, has not accepted it
	Unsent  = "unsent"  // nothing reached the app

	// IAK could not say yet whether it says the same.
	NotConfirmed = "not_confirmed"
	Unknown      = "unknown" // the app did not answer in time, broke off, or its Caddy died
)

// What says in words what became of a try.
func (t Try) What() string {
	switch {
	case t.Result == NotConfirmed:
		return "IAK has not confirmed it yet: nothing was sent to the app"
	case t.Result == Unsent:
		return "nothing reached the app"
	case t.Result == Unknown:
		return "no whole answer came in time, or Caddy died: the app may have acted"
	case t.AppStatus == 0:
		return "no answer of the app was seen: a handler refused, or panicked"
	case t.AppStatus < 300:
		return "the app answered, but accept_when does not hold"
	default:
		return "the app refused"
	}
}

// Callback is a callback as it is kept, with all that it says.
type Callback struct {
	Account string              `json:"account"`
	RefID   string              `json:"ref_id"`
	Store   string              `json:"store"`
	Host    string              `json:"host"`
	Target  string              `json:"target"`
	Proto   string              `json:"proto"`
	Header  map[string][]string `json:"header,omitempty"`
	Remote  string              `json:"remote,omitempty"`
	Local   string              `json:"local,omitempty"` // network/address
	TLS     string              `json:"tls,omitempty"`   // its version
	Body    string              `json:"body"`
	Bytes   []byte              `json:"body_base64,omitempty"` // the body, if it is no UTF-8
}

// Revealed is the answer to PathReveal. Errors are as in Answer.
type Revealed struct {
	Callbacks []Callback `json:"callbacks"`
	Errors    []string   `json:"errors,omitempty"`
}

// Progress is a line of the answer to PathRedeliverAll: one each second, and the last
// one with Done or an error.
type Progress struct {
	Redelivered int    `json:"redelivered"`
	Held        int    `json:"held,omitempty"` // that were left, since they are in doubt too: redeliver each by its ref_id
	Done        bool   `json:"done,omitempty"`
	Error       string `json:"error,omitempty"`
}

// Recent is what is told of one callback at the end of its way, in the log and to whoever
// asks what has come lately. What is not known is empty.
type Recent struct {
	Time      time.Time `json:"time"`
	Message   string    `json:"message"` // callback; or what else is told, a redelivery say
	Outcome   string    `json:"outcome"`
	Reason    string    `json:"reason,omitempty"`
	Account   string    `json:"account,omitempty"`
	RefID     string    `json:"ref_id,omitempty"`
	Status    string    `json:"status,omitempty"`
	Attempt   int       `json:"attempt,omitempty"`
	Duration  float64   `json:"duration"` // of the whole way, in seconds
	AppStatus int       `json:"app_status,omitempty"`
	ClientIP  string    `json:"client_ip,omitempty"`
	Source    string    `json:"source,omitempty"`
	Error     string    `json:"error,omitempty"`
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

	// Whether IAK answers, for each account with confirm. It is no part of OK: callbacks are
	// taken all the same.
	Confirm []ConfirmHealth `json:"confirm,omitempty"`

	// What works otherwise than it was meant, as it was logged when the configuration was
	// loaded.
	Warnings []string `json:"warnings,omitempty"`
}

// ConfirmHealth tells how IAK has answered the last questions of an account.
type ConfirmHealth struct {
	Account string     `json:"account"`
	Base    string     `json:"base"`
	OK      bool       `json:"ok"` // also if nothing was asked yet
	Asked   *time.Time `json:"asked,omitempty"`
	Error   string     `json:"error,omitempty"`
}

// Asked is what IAK says of an order.
type Asked struct {
	Account  string    `json:"account"`
	RefID    string    `json:"ref_id"`
	Base     string    `json:"base"`
	Standing string    `json:"standing"`         // final, open, unknown, refused or silent
	Status   string    `json:"status,omitempty"` // of a final or open standing
	RC       string    `json:"rc,omitempty"`
	HTTP     int       `json:"http,omitempty"` // the status of IAK's answer
	Why      string    `json:"why,omitempty"`  // what is wrong
	Fields   []Field   `json:"fields,omitempty"`
	Delivery *Delivery `json:"delivery,omitempty"` // if it was to be delivered, and is final
}

// Final is the standing of an order that has ended.
const Final = "final"

// Open tells whether somebody has to look at the order again.
func (a *Asked) Open() bool {
	return a.Standing != Final || a.Delivery != nil && !a.Delivery.Done
}

// Field is one field of IAK's answer.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Delivery is what has become of IAK's answer as a callback.
type Delivery struct {
	Outcome string `json:"outcome,omitempty"` // empty: nobody took it
	Done    bool   `json:"done"`              // the app has it, or gets it by itself
	Error   string `json:"error,omitempty"`
}

// StoreHealth tells whether one store answers.
type StoreHealth struct {
	Store string `json:"store"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`

	// How many callbacks are kept in it that no spool of this Caddy delivers, and what to
	// do.
	Undelivered int    `json:"undelivered,omitempty"`
	Warning     string `json:"warning,omitempty"`
}
