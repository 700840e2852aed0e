package iakcallback

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/caddy-iak/iakcallback/internal/delivery"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// AcceptWhen is a condition under which a 2xx of the app counts as accepted. It is
// about the body or about a header.
type AcceptWhen struct {
	// Turn the condition around. Default: false.
	Not bool `json:"not,omitempty"`

	// A regular expression (RE2) that matches somewhere in the first 64 KiB of the body.
	Body string `json:"body,omitempty"`

	// A header that the answer has.
	Header string `json:"header,omitempty"`

	// A regular expression (RE2) that matches one of the header's values. Default: any
	// value will do.
	Pattern string `json:"pattern,omitempty"`
}

// condition compiles it.
func (a AcceptWhen) condition() (c delivery.Condition, err error) {
	pattern := a.Pattern
	switch {
	case (a.Body == "") == (a.Header == ""):
		return c, errors.New("accept_when is about the body or about a header: give one of them")
	case a.Body != "" && a.Pattern != "":
		return c, errors.New("accept_when: pattern belongs to header; the body's own is body")
	case a.Body != "":
		pattern = a.Body
	}
	c = delivery.Condition{Not: a.Not, Header: a.Header}
	if pattern != "" {
		if c.Pattern, err = regexp.Compile(pattern); err != nil {
			return c, fmt.Errorf("accept_when: %w", err)
		}
	}
	return c, nil
}

// resolveConditions compiles all of accept_when.
func (h *Handler) resolveConditions() error {
	for _, a := range h.AcceptWhen {
		c, err := a.condition()
		if err != nil {
			return err
		}
		h.conditions = append(h.conditions, c)
	}
	return nil
}

// unmarshalAcceptWhen reads one line:
//
//	accept_when [not] body <regexp>
//	accept_when [not] header <name> [<regexp>]
func (h *Handler) unmarshalAcceptWhen(d *caddyfile.Dispenser) error {
	const usage = "accept_when takes [not] body <regexp>, or [not] header <name> [<regexp>]; put quotes around what holds spaces"
	var a AcceptWhen
	words := d.RemainingArgs()
	if len(words) > 0 && words[0] == "not" {
		a.Not, words = true, words[1:]
	}
	switch {
	case len(words) == 2 && words[0] == "body":
		a.Body = words[1]
	case len(words) == 2 && words[0] == "header":
		a.Header = words[1]
	case len(words) == 3 && words[0] == "header":
		a.Header, a.Pattern = words[1], words[2]
	default:
		return d.Err(usage)
	}
	if _, err := a.condition(); err != nil {
		return d.WrapErr(err)
	}
	h.AcceptWhen = append(h.AcceptWhen, a)
	return noBlock(d)
}
