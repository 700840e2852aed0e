package iak

import (
	"encoding/json"
	"encoding/xml"
	"strings"
	"testing"
	"unicode/utf8"
)

// addReferences seeds a target with the reference's examples and with what is
// special about the formats.
func addReferences(f *testing.F, format string) {
	f.Helper()
	for name, body := range references(f) {
		if strings.HasSuffix(name, format) {
			f.Add([]byte(body))
		}
	}
	for _, s := range append(newMembers, newElements...) {
		f.Add([]byte(`{"data":{` + s + `"ref_id":"order001"}}`))
		f.Add([]byte("<mp>" + s + "<ref_id>order001</ref_id></mp>"))
	}
}

// What the JSON decoder accepts is JSON to encoding/json too, which finds the
// same names under data.
func FuzzDecodeJSON(f *testing.F) {
	addReferences(f, ".json")
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := decodeJSON(body)
		if err != nil {
			return
		}
		var other struct {
			Data map[string]json.RawMessage `json:"data"`
		}
		if err := json.Unmarshal(body, &other); err != nil {
			t.Fatalf("encoding/json refuses %q: %v", body, err)
		}
		checkMembers(t, c)
	})
}

// The XML decoder never panics, and what it accepts is a set of names with
// texts in UTF-8.
func FuzzDecodeXML(f *testing.F) {
	addReferences(f, ".xml")
	f.Fuzz(func(t *testing.T, body []byte) {
		if c, err := decodeXML(body); err == nil {
			checkMembers(t, c)
		}
	})
}

func checkMembers(t *testing.T, c *Callback) {
	t.Helper()
	seen := make(map[string]bool)
	for _, m := range c.members {
		if seen[m.name] {
			t.Fatalf("the name %q is repeated", m.name)
		}
		seen[m.name] = true
		if !utf8.ValidString(m.name) || !utf8.ValidString(m.value.text) {
			t.Fatalf("%q: %q is not UTF-8", m.name, m.value.text)
		}
	}
}

// Whatever is accepted comes out as JSON that says the same, and that the
// module leaves as it is when it is fed with it again.
func FuzzNormalize(f *testing.F) {
	addReferences(f, "")
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, lenient := range []bool{false, true} {
			c, err := passed(body, lenient)
			if err != nil {
				continue
			}
			if problem := checkOutput(c, lenient); problem != "" {
				t.Fatalf("%s\nfrom %q", problem, body)
			}
		}
	})
}

// The JSON and the XML of the same fields reach the app as the same bytes.
func FuzzFormatsAgree(f *testing.F) {
	f.Add("order001", "SUCCESS", "ABCD-EFGH", "", "extra")
	f.Add("a b", "<&>\"'", "ü😀", " x ", "")
	f.Fuzz(func(t *testing.T, refID, message, sn, pin, extra string) {
		fields := [][2]string{
			{"ref_id", refID}, {"status", "1"}, {"code", "c"}, {"hp", "h"}, {"price", "1"}, {"message", message}, {"sn", sn},
			{"pin", pin}, {"balance", "2"}, {"tr_id", "3"}, {"rc", "00"}, {"note", extra}, {"sign", strings.Repeat("a", 32)},
		}
		var asXML strings.Builder
		asXML.WriteString("<mp>")
		members := make([]string, 0, len(fields))
		for _, field := range fields {
			// XML knows neither control characters nor outer white space.
			if !utf8.ValidString(field[1]) || strings.ContainsFunc(field[1], func(r rune) bool { return r < 0x20 || r == 0xFFFE || r == 0xFFFF }) {
				return
			}
			field[1] = strings.Trim(field[1], " \t\r\n")
			asXML.WriteString("<" + field[0] + ">")
			if err := xml.EscapeText(&asXML, []byte(field[1])); err != nil {
				t.Fatal(err)
			}
			asXML.WriteString("</" + field[0] + ">")
			members = append(members, quote(field[0])+":"+quote(field[1]))
		}
		asXML.WriteString("</mp>")
		fromJSON, jsonErr := passed([]byte(`{"data":{`+strings.Join(members, ",")+`}}`), false)
		fromXML, xmlErr := passed([]byte(asXML.String()), false)
		if (jsonErr == nil) != (xmlErr == nil) {
			t.Fatalf("JSON: %v, XML: %v", jsonErr, xmlErr)
		}
		if jsonErr == nil && string(fromJSON.AppendIAK(nil)) != string(fromXML.AppendIAK(nil)) {
			t.Fatalf("JSON became\n%s\nXML became\n%s", fromJSON.AppendIAK(nil), fromXML.AppendIAK(nil))
		}
	})
}
