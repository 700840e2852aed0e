package iak

import (
	"bytes"
	"errors"
	"slices"
	"strings"

	"github.com/caddy-iak/iakcallback/internal/record"
)

// Standing is what an answer of IAK's check-status comes to.
type Standing string

// The standings.
const (
	StandingFinal   Standing = "final"   // success or failed
	StandingOpen    Standing = "open"    // under way
	StandingUnknown Standing = "unknown" // IAK knows no such order, yet or at all (rc 06)
	StandingRefused Standing = "refused" // IAK refuses the request, and says nothing of the order
	StandingSilent  Standing = "silent"  // no answer that can be used
)

// Response codes that do not speak of how an order has ended
// (https://api.iak.id/api/prepaid/response-code). IAK lists most of them as failed, and
// gives status 2 with them: taken for the order's outcome, they would refund it.
var (
	rcOpen    = []string{"39", "201"}
	rcUnknown = "06"

	// What is wrong with the request, in words for the person who can mend it.
	rcRefused = map[string]string{
		"102": "IAK does not know this machine's address: register the address that its requests go out from at IAK (production asks for it)",
		"107": "IAK refuses the request",
		"110": "IAK refuses the request",
		"117": "IAK refuses the request",
		"118": "IAK refuses the request",
		"204": "IAK does not take the sign: check the username and the api key, and production against development",
		"205": "IAK refuses the request",
		"208": "IAK refuses the request",
	}
)

// Answer is what IAK says of an order. The zero Answer says nothing.
type Answer struct {
	Standing Standing
	RC       string // IAK's response code, if it came with one
	HTTP     int    // the answer's HTTP status, 0 without an answer

	// Why says what is wrong, unless the standing is final or open. It quotes nothing that
	// IAK has answered but the rc.
	Why error

	callback *Callback // of a final or open standing
}

func silent(status int, why string) *Answer {
	return &Answer{Standing: StandingSilent, HTTP: status, Why: errors.New(why)}
}

// understand reads an answer about an order. It is lenient about form: version 1 or 2,
// numbers or strings, in any order. It is strict about meaning: an answer of another HTTP
// status, about another order, or without what tells the outcome, says nothing.
func understand(status int, body []byte, refID string) *Answer {
	if first := firstByte(body); first != '{' {
		return silent(status, "IAK's answer is no JSON")
	}
	c, err := decodeJSON(bytes.TrimPrefix(body, utf8BOM))
	if err != nil {
		return silent(status, "IAK's answer cannot be read: "+err.Error())
	}
	rc := c.find("rc")
	a := &Answer{HTTP: status}
	if rc.kind == text || rc.kind == number {
		a.RC = knownRC(rc.text)
	}
	switch why, refused := rcRefused[a.RC]; {
	case refused:
		a.Standing, a.Why = StandingRefused, errors.New(why+", rc "+a.RC)
		return a
	case status != 200: // "any other = pending"
		return silent(status, "IAK answers with an HTTP status that says nothing of the order")
	case a.RC == rcUnknown:
		a.Standing, a.Why = StandingUnknown, errors.New("IAK does not know the order, yet or at all, rc "+rcUnknown)
		return a
	case c.CheckRefID() != nil || c.RefID != refID:
		return silent(status, "IAK's answer is about another order")
	case a.RC == "":
		return silent(status, "IAK's answer has no rc")
	}
	if err := c.CheckFields(true); err != nil {
		return silent(status, "IAK's answer cannot be used: "+err.Error())
	}
	switch {
	case c.Status == record.Process || slices.Contains(rcOpen, a.RC):
		a.Standing = StandingOpen
	case c.fields[fieldTrID].text == "":
		return silent(status, "IAK's answer has no tr_id")
	default:
		a.Standing = StandingFinal
	}
	a.callback = c
	return a
}

// knownRC is a response code as text: digits, as IAK's are. Anything else could be
// anything, and is not repeated.
func knownRC(rc string) string {
	if rc == "" || len(rc) > 4 || strings.Trim(rc, "0123456789") != "" {
		return ""
	}
	if len(rc) == 1 { // a number: 6 is 06
		rc = "0" + rc
	}
	return rc
}

// Status is the order's status, of a final or open standing.
func (a *Answer) Status() record.Status { return a.callback.Status }

// compared are the fields in which a callback and IAK's answer have to agree, where both
// have them.
var compared = [...]field{
	fieldTrID, fieldProduct, fieldCustomer, fieldPrice, fieldSN, fieldPIN, fieldActivationCode,
}

// Differs names the fields in which a final answer says another thing than the callback,
// none if it confirms it. CheckFields of the callback comes first.
func (a *Answer) Differs(c *Callback) (names []string) {
	if a.callback.Status != c.Status {
		names = append(names, fieldStatus.String())
	}
	for _, f := range compared {
		theirs, ours := a.callback.fields[f].text, c.fields[f].text
		if theirs != "" && ours != "" && !equal(theirs, ours) {
			names = append(names, f.String())
		}
	}
	return names
}

// equal compares two texts, or two amounts that are written differently.
func equal(a, b string) bool {
	a, b = strings.TrimSpace(a), strings.TrimSpace(b)
	return a == b || isNumber(a) && isNumber(b) && plain(a) == plain(b)
}

// plain leaves out the zeros behind an amount's point. An exponent stays as it is.
func plain(amount string) string {
	if strings.Contains(amount, ".") && !strings.ContainsAny(amount, "eE") {
		amount = strings.TrimSuffix(strings.TrimRight(amount, "0"), ".")
	}
	return amount
}

// Complete gives the callback of a success the goods that only IAK's answer has, and
// tells whether there were any.
func (a *Answer) Complete(c *Callback) (more bool) {
	if c.Status != record.Success {
		return false
	}
	for _, f := range [...]field{fieldSN, fieldPIN, fieldActivationCode} {
		if theirs := a.callback.fields[f]; c.fields[f].text == "" && theirs.text != "" {
			c.fields[f], more = value{text, theirs.text}, true
		}
	}
	return more
}

// Sign makes a callback of a final answer: body iak with the signature that a callback
// of IAK has. It holds goods.
func (a *Answer) Sign(secret Secret) []byte {
	c := *a.callback
	c.fields[fieldSign] = value{text, secret.Sign(c.RefID).String()}
	return c.AppendIAK(nil)
}

// Fields are those of a final or open answer, for a person, in IAK's order. Some of them
// are goods.
func (a *Answer) Fields() (all []AnswerField) {
	for f := range fieldCount {
		if v := a.callback.fields[f]; v.text != "" && f != fieldSign {
			all = append(all, AnswerField{
				Name: f.String(), Value: v.text, Goods: f == fieldSN || f == fieldPIN || f == fieldActivationCode, Customer: f == fieldCustomer,
			})
		}
	}
	return all
}

// AnswerField is one field of IAK's answer.
type AnswerField struct {
	Name, Value string
	Goods       bool // whoever reads it can spend it
	Customer    bool
}
