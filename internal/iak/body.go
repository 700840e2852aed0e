package iak

import (
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// AppendIAK appends body iak to dst: IAK's documented JSON with every value a
// string. CheckRefID and CheckFields come first.
func (c *Callback) AppendIAK(dst []byte) []byte {
	o := object{dst: append(dst, `{"data":{`...)}
	for _, d := range documented {
		v := c.fields[d.field]
		switch {
		case v.kind == absent:
		case d.field == fieldStatus:
			o.text(d.name, c.Status.Digit())
		case d.field == fieldSign: // IAK documents no case; the apps compare with md5's lower case
			// unknown fields stand before sign
			for _, m := range c.extra {
				o.text(m.name, m.value.text)
			}
			o.text(d.name, strings.ToLower(v.text))
		default:
			o.text(d.name, v.text)
		}
	}
	return append(o.dst, `}}`...)
}

// AppendFlat appends body flat to dst: one object with always the same keys.
// CheckRefID and CheckFields come first.
func (c *Callback) AppendFlat(dst []byte) []byte {
	o := object{dst: append(dst, '{')}
	mandatoryText := func(f field, name string) {
		if c.fields[f].kind == absent {
			o.raw(name, "null")
			return
		}
		o.text(name, c.fields[f].text)
	}
	optionalText := func(f field) {
		if c.fields[f].text == "" {
			o.raw(f.String(), "null")
			return
		}
		o.text(f.String(), c.fields[f].text)
	}
	amount := func(f field) {
		if isNumber(c.fields[f].text) {
			o.raw(f.String(), c.fields[f].text)
			return
		}
		o.raw(f.String(), "null")
	}
	o.text("ref_id", c.RefID)
	mandatoryText(fieldTrID, "tr_id")
	o.text("status", c.Status.String())
	mandatoryText(fieldRC, "rc")
	mandatoryText(fieldMessage, "message")
	mandatoryText(fieldProduct, "product_code")
	mandatoryText(fieldCustomer, "customer_id")
	amount(fieldPrice)
	amount(fieldBalance)
	optionalText(fieldSN)
	optionalText(fieldPIN)
	optionalText(fieldActivationCode)
	if len(c.extra) > 0 {
		o.name("extra")
		extra := object{dst: append(o.dst, '{')}
		for _, m := range c.extra {
			extra.text(m.name, m.value.text)
		}
		extra.dst = append(extra.dst, '}')
		o.dst = extra.dst
	}
	return append(o.dst, '}')
}

// object appends the members of one JSON object.
type object struct {
	dst     []byte
	members int
}

func (o *object) name(name string) {
	if o.members > 0 {
		o.dst = append(o.dst, ',')
	}
	o.members++
	o.dst = append(appendString(o.dst, name), ':')
}

func (o *object) text(name, text string) {
	o.name(name)
	o.dst = appendString(o.dst, text)
}

func (o *object) raw(name, json string) {
	o.name(name)
	o.dst = append(o.dst, json...)
}

// appendString escapes only what JSON demands, so no "/" and no HTML. The
// decoders let no invalid UTF-8 pass, the only thing AppendQuote can refuse.
func appendString(dst []byte, s string) []byte {
	quoted, err := jsontext.AppendQuote(dst, s)
	if err != nil {
		panic("iak_callback: a decoded text is not valid UTF-8")
	}
	return quoted
}
