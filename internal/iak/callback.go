// Package iak is IAK's side of the talk: its callback decoded, checked and written
// as the app receives it, its signature, and the examples of its reference. It knows
// nothing of how a callback comes in and where it goes.
package iak

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/caddy-iak/iakcallback/internal/record"
)

// field is one of the fields that IAK's reference documents. Version 1 and
// version 2 of IAK's API name the product and the customer differently; both
// names lead to the same field.
type field int

const (
	fieldRefID field = iota
	fieldStatus
	fieldProduct
	fieldCustomer
	fieldPrice
	fieldMessage
	fieldSN
	fieldPIN
	fieldActivationCode
	fieldBalance
	fieldTrID
	fieldRC
	fieldSign
	fieldCount
)

// documented lists every documented name, in the order of body iak.
var documented = [...]struct {
	name  string
	field field
}{
	{"ref_id", fieldRefID},
	{"status", fieldStatus},
	{"code", fieldProduct},
	{"hp", fieldCustomer},
	{"product_code", fieldProduct},
	{"customer_id", fieldCustomer},
	{"price", fieldPrice},
	{"message", fieldMessage},
	{"sn", fieldSN},
	{"pin", fieldPIN},
	{"activation_code", fieldActivationCode},
	{"balance", fieldBalance},
	{"tr_id", fieldTrID},
	{"rc", fieldRC},
	{"sign", fieldSign},
}

// mandatory are the fields that strict validation asks for beside ref_id,
// status and sign, which are always asked for.
var mandatory = [...]field{
	fieldProduct, fieldCustomer, fieldPrice, fieldMessage, fieldBalance, fieldTrID, fieldRC,
}

// kind says what a value was in the document.
type kind byte

const (
	absent  kind = iota // not there, or null
	text                // a string; every value of an XML document
	number              // a JSON number, kept as the digits that were sent
	boolean             // true or false
	nested              // a list, an object, an XML element with children
)

type value struct {
	kind kind
	text string
}

// member is one name and its value, as the document had them.
type member struct {
	name  string
	value value
}

// Callback is one decoded callback. Decode fills the members; the other fields
// are filled by the checks, which the caller runs in this order: CheckRefID, the
// signature, CheckFields.
type Callback struct {
	// RefID is the merchant's own name of the order, 1 to 255 bytes of UTF-8 without
	// control characters. It is empty before CheckRefID.
	RefID string

	// Status is what the callback says of the order, after CheckFields.
	Status record.Status

	members []member          // all members of data, in the order they came
	size    int               // of the document, in bytes
	fields  [fieldCount]value // by meaning: code and product_code are one
	extra   []member          // what the reference does not document
}

// Size is the length of the document in bytes, as it came.
func (c *Callback) Size() int { return c.size }

// callbacks keeps the memory of callbacks that have gone their way: it would be
// a sixth of what a callback takes in this module.
var callbacks = sync.Pool{New: func() any { return &Callback{members: make([]member, 0, len(documented))} }}

// Release gives back the callback's memory: nobody may use it any more. What was
// read from it, such as RefID and a body, stays as it is.
func (c *Callback) Release() {
	clear(c.members)
	clear(c.extra)
	*c = Callback{members: c.members[:0], extra: c.extra[:0]}
	if cap(c.members) <= 4*len(documented) && cap(c.extra) <= 4*len(documented) {
		callbacks.Put(c)
	}
}

// find returns the value under exactly this name.
func (c *Callback) find(name string) value {
	for i := range c.members {
		if c.members[i].name == name {
			return c.members[i].value
		}
	}
	return value{}
}

// MaxRefIDLength is the longest ref_id in bytes. The reference gives no
// limit; the record's key and the Idempotency-Key need one.
const MaxRefIDLength = 255

// CheckRefID finds the ref_id: a string or number of 1 to 255 bytes without
// control characters. Its error says what is wrong and quotes nothing.
func (c *Callback) CheckRefID() error {
	v := c.find("ref_id")
	switch {
	case v.kind == absent:
		return errors.New("ref_id is missing")
	case v.kind != text && v.kind != number:
		return errors.New("ref_id is neither a string nor a number")
	case v.text == "":
		return errors.New("ref_id is empty")
	case len(v.text) > MaxRefIDLength:
		return fmt.Errorf("ref_id is longer than %d bytes", MaxRefIDLength)
	case strings.IndexFunc(v.text, unicode.IsControl) >= 0: // exactly U+0000 to 1F and 7F to 9F
		return errors.New("ref_id contains a control character")
	}
	c.RefID = v.text
	return nil
}

// CheckFields checks everything but ref_id and sign, and sorts the members
// into documented fields and extra ones. In lenient mode a mandatory field may
// be absent and price and balance may be any text. Its error names the field and
// quotes no value. It may be called once.
func (c *Callback) CheckFields(lenient bool) error {
	for _, m := range c.members {
		name, f, exact := lookup(m.name)
		switch {
		case name == "":
			scalar := m.value.kind == text || m.value.kind == number || m.value.kind == boolean
			// PHP's json_decode reads nothing of a document with such a name (php-src,
			// ext/json, "The decoded property name is invalid").
			unreadable := strings.HasPrefix(m.name, "\x00")
			if scalar && !unreadable {
				c.extra = append(c.extra, m)
			}
		case !exact:
			return fmt.Errorf("a name differs from %s only in case", name)
		case m.value.kind == absent:
		case m.value.kind != text && m.value.kind != number:
			return fmt.Errorf("%s is neither a string nor a number", name)
		case c.fields[f].kind != absent && c.fields[f].text != m.value.text:
			return fmt.Errorf("%s contradicts the same field under its other name", name)
		default:
			c.fields[f] = m.value
		}
	}
	var ok bool
	if c.Status, ok = parseStatus(c.fields[fieldStatus]); !ok {
		return errors.New("status is not 0, 1 or 2")
	}
	if lenient {
		return nil
	}
	for _, f := range mandatory {
		if c.fields[f].kind == absent {
			return fmt.Errorf("%s is missing", f)
		}
	}
	for _, f := range [...]field{fieldPrice, fieldBalance} {
		if !isNumber(c.fields[f].text) {
			return fmt.Errorf("%s is not a number", f)
		}
	}
	return nil
}

// String is the field's first documented name.
func (f field) String() string {
	for _, d := range documented {
		if d.field == f {
			return d.name
		}
	}
	return ""
}

// lookup finds the documented field of a name. A name that differs only in
// case is found as well, with exact false: an app that ignores case would read
// it as the field, one that does not would miss it.
func lookup(name string) (documentedName string, f field, exact bool) {
	for _, d := range documented {
		if name == d.name {
			return d.name, d.field, true
		}
	}
	for _, d := range documented {
		if strings.EqualFold(name, d.name) {
			return d.name, d.field, false
		}
	}
	return "", 0, false
}

// parseStatus reads "0", "1" or "2", or a number of that value in any
// notation, such as 1.0 or 10e-1.
func parseStatus(v value) (record.Status, bool) {
	switch v.kind {
	case text:
		if len(v.text) == 1 && '0' <= v.text[0] && v.text[0] <= '2' {
			return record.Status(v.text[0] - '0'), true
		}
		return 0, false
	case number:
		return parseStatusNumber(v.text)
	default:
		return 0, false
	}
}

// parseStatusNumber compares by digits: a float would round
// 1.00000000000000000001 to 1.
func parseStatusNumber(s string) (record.Status, bool) {
	mantissa, exponent := s, ""
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		mantissa, exponent = s[:i], s[i+1:]
	}
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return record.Process, true // 0, -0, 0.0e5
	}
	point := len(fraction) // places behind the point
	trimmed := strings.TrimRight(digits, "0")
	point -= len(digits) - len(trimmed)
	if negative || len(trimmed) != 1 || trimmed[0] > '2' || !exponentIs(exponent, point) {
		return 0, false
	}
	return record.Status(trimmed[0] - '0'), true
}

// exponentIs tells whether the exponent, of any length, is want.
func exponentIs(exponent string, want int) bool {
	exponent, negative := strings.CutPrefix(strings.TrimPrefix(exponent, "+"), "-")
	exponent = strings.TrimLeft(exponent, "0")
	if negative && exponent != "" {
		return fmt.Sprint(want) == "-"+exponent
	}
	return fmt.Sprint(want) == exponent || (want == 0 && exponent == "")
}

// isNumber tells whether s follows the grammar of a JSON number (RFC 8259,
// section 6), without white space around it.
func isNumber(s string) bool {
	if s == "" || (s[0] != '-' && (s[0] < '0' || s[0] > '9')) || s[len(s)-1] < '0' || s[len(s)-1] > '9' {
		return false
	}
	return jsontext.Value(s).IsValid()
}
