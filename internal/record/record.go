// Package record is what is remembered of one order, and its rules: which callback
// is delivered, which one is answered from memory, and how the app's answer settles a
// delivery. It is pure: the time comes from the store, and the bytes go there.
package record

// Status is what a callback says of its order.
type Status byte

const (
	Process Status = 0 // under way
	Success Status = 1
	Failed  Status = 2
)

// Digit is the status as IAK writes it.
func (s Status) Digit() string { return string('0' + rune(s)) }

// String is the word that body flat, logs and placeholders use. It panics for
// another status than the three.
func (s Status) String() string {
	return [...]string{"process", "success", "failed"}[s]
}

// Outcome is what a callback tells of its order. Fixed and Goods are digests:
// equal ones are equal news.
type Outcome struct {
	Status Status
	Code   int     // the app's status code, in an accepted outcome
	Fixed  [8]byte // of tr_id, product, customer, price, rc
	Goods  [8]byte // of sn, pin, activation_code; zero when all three are empty
}
