package iak

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Field is one field of a callback that is sent.
type Field struct{ Name, Value string }

// Fields are the fields of a callback that is sent, in the order of sending.
type Fields []Field

// SampleNames are the names of the samples, the most telling first.
func SampleNames() []string {
	return []string{"game", "esim", "other", "failed", "process"}
}

// Sample is one of the samples without ref_id and sign, with the names of version
// 1, and nil when none has this name. The caller may change it.
func Sample(name string) Fields { return slices.Clone(samples[name]) }

// samples are the examples of IAK's reference, without ref_id and sign and with
// the names of version 1. The reference has no example of an order under way:
// process is made of its other fields, with the rc for a pending order.
var samples = map[string]Fields{
	"game": {
		{"status", "1"}, {"code", "hsteam12000"}, {"hp", "0817777215"}, {"price", "16500"}, {"message", "SUCCESS"},
		{"sn", "ABCD-EFGH-IJKL-MNOP"}, {"pin", "123456789"}, {"balance", "996994749"}, {"tr_id", "3487"}, {"rc", "00"},
	},
	"esim": {
		{"status", "1"}, {"code", "hsteam12000"}, {"hp", "0817777215"}, {"price", "16500"}, {"message", "SUCCESS"},
		{"sn", "ABCD-EFGH-IJKL-MNOP"}, {"activation_code", "LPA:1$v1-aktivasi-esim.com$9876543210123456789ABCDEFGHGFEDC"},
		{"balance", "996994749"}, {"tr_id", "3487"}, {"rc", "00"},
	},
	"other": {
		{"status", "1"}, {"code", "xld25000"}, {"hp", "0817777215"}, {"price", "25000"}, {"message", "SUCCESS"},
		{"sn", "123456789"}, {"balance", "997061249"}, {"tr_id", "3482"}, {"rc", "00"},
	},
	"failed": {
		{"status", "2"}, {"code", "xld50000"}, {"hp", "0817777215"}, {"price", "50000"}, {"message", "FAILED"},
		{"balance", "997011249"}, {"tr_id", "3486"}, {"rc", "07"},
	},
	"process": {
		{"status", "0"}, {"code", "xld25000"}, {"hp", "0817777215"}, {"price", "25000"}, {"message", "PROCESS"},
		{"balance", "997061249"}, {"tr_id", "3482"}, {"rc", "39"},
	},
}

// version2Names are the fields that version 2 of IAK's API names differently.
var version2Names = map[string]string{"code": "product_code", "hp": "customer_id"}

// Version2 renames the fields that version 2 of IAK's API names differently.
func (f Fields) Version2() {
	for i := range f {
		if name, ok := version2Names[f[i].Name]; ok {
			f[i].Name = name
		}
	}
}

// Set replaces a field's value, or adds the field at the end.
func (f Fields) Set(name, value string) Fields {
	for i := range f {
		if f[i].Name == name {
			f[i].Value = value
			return f
		}
	}
	return append(f, Field{name, value})
}

// Get is the value of a field, or empty.
func (f Fields) Get(name string) string {
	for _, field := range f {
		if field.Name == name {
			return field.Value
		}
	}
	return ""
}

// JSON writes the callback as IAK does. Names and values must be UTF-8.
func (f Fields) JSON() string {
	var b strings.Builder
	b.WriteString(`{"data":{`)
	for i, field := range f {
		if i > 0 {
			b.WriteByte(',')
		}
		writePHPString(&b, field.Name)
		b.WriteByte(':')
		writePHPString(&b, field.Value)
	}
	b.WriteString("}}")
	return b.String()
}

// writePHPString writes a string of valid UTF-8 as PHP's json_encode does without flags:
// slashes are escaped, and everything beyond ASCII is \uXXXX.
func writePHPString(b *strings.Builder, s string) {
	const short = "\b\f\n\r\t\"\\/"
	const shortEscapes = `bfnrt"\/`
	b.WriteByte('"')
	for _, r := range s {
		if i := strings.IndexRune(short, r); i >= 0 {
			b.WriteByte('\\')
			b.WriteByte(shortEscapes[i])
			continue
		}
		switch {
		case ' ' <= r && r < utf8.RuneSelf:
			b.WriteRune(r)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
}

// elementName are the names that are sent as XML. XML allows more, but no field
// of IAK needs it.
var elementName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

// XML writes the callback in the shape of IAK's reference. It refuses what XML 1.0
// cannot carry, with an error that names the field and quotes no value. Values must
// be UTF-8.
func (f Fields) XML() (string, error) {
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n<mp>\n")
	for _, field := range f {
		if !elementName.MatchString(field.Name) {
			return "", fmt.Errorf("%q cannot be the name of an XML element: use --format json, or another name", field.Name)
		}
		b.WriteString("<" + field.Name + ">")
		for _, r := range field.Value {
			switch {
			case r == '&':
				b.WriteString("&amp;")
			case r == '<':
				b.WriteString("&lt;")
			case r == '>':
				b.WriteString("&gt;")
			case r < ' ' && r != '\t' && r != '\n' && r != '\r', r == 0xFFFE, r == 0xFFFF:
				return "", fmt.Errorf("%s holds the character %U, which XML cannot carry: use --format json, or leave it out", field.Name, r)
			// A line's end would be changed by XML's rules, and a tab by a shell into which it is pasted.
			case unicode.IsControl(r):
				fmt.Fprintf(&b, "&#%d;", r)
			default:
				b.WriteRune(r)
			}
		}
		b.WriteString("</" + field.Name + ">\n")
	}
	b.WriteString("</mp>")
	return b.String(), nil
}
