package delivery

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// lookAt is how much of an answer's body a condition looks at.
const lookAt = 64 << 10

// Condition is one thing that a 2xx has to fulfil to count, for apps that answer
// 2xx whatever happened.
type Condition struct {
	Not     bool
	Header  string         // empty for the body
	Pattern *regexp.Regexp // of the body, or of one of the header's values; nil: the header is there
}

// String is the condition as it is configured.
func (c *Condition) String() string {
	words := []string{"accept_when"}
	if c.Not {
		words = append(words, "not")
	}
	if c.Header == "" {
		words = append(words, "body")
	} else {
		words = append(words, "header", c.Header)
	}
	if c.Pattern != nil {
		words = append(words, c.Pattern.String())
	}
	return strings.Join(words, " ")
}

// Conditions all have to hold.
type Conditions []Condition

// LookAtBody tells whether one of them is about the body.
func (all Conditions) LookAtBody() bool {
	for i := range all {
		if all[i].Header == "" {
			return true
		}
	}
	return false
}

// begin looks at the headers of a 2xx. With hold, its body is to be looked at before
// it is passed on; with an error it does not count.
func (all Conditions) begin(h http.Header) (hold bool, unmet error) {
	for i := range all {
		c := &all[i]
		switch {
		case c.Header != "" && c.matches(h.Values(c.Header)) == c.Not:
			return false, fmt.Errorf("%s does not hold", c)
		case c.Header == "" && encoded(h):
			return false, fmt.Errorf("%s cannot hold: the body has a Content-Encoding", c)
		}
	}
	return all.LookAtBody(), nil
}

// end looks at the body's beginning. whole tells that it is all of it.
func (all Conditions) end(body []byte, whole bool) (unmet error) {
	for i := range all {
		c := &all[i]
		if c.Header != "" {
			continue
		}
		switch matches := c.Pattern.Match(body); {
		case !matches && !whole:
			return fmt.Errorf("%s cannot hold: the body is longer than 64 KiB, without a match in these", c)
		case matches == c.Not:
			return fmt.Errorf("%s does not hold", c)
		}
	}
	return nil
}

func (c *Condition) matches(values []string) bool {
	if c.Pattern == nil {
		return len(values) > 0
	}
	for _, v := range values {
		if c.Pattern.MatchString(v) {
			return true
		}
	}
	return false
}

func encoded(h http.Header) bool {
	for _, coding := range h.Values("Content-Encoding") {
		if coding != "" && !strings.EqualFold(coding, "identity") {
			return true
		}
	}
	return false
}
