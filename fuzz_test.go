package iakcallback

import (
	"encoding/json"
	"encoding/xml"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
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

func checkMembers(t *testing.T, c *callback) {
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
		if jsonErr == nil && string(fromJSON.appendIAK(nil)) != string(fromXML.appendIAK(nil)) {
			t.Fatalf("JSON became\n%s\nXML became\n%s", fromJSON.appendIAK(nil), fromXML.appendIAK(nil))
		}
	})
}

// The whole handler, with the embedded store: whatever comes, the answer is one
// of the documented, and the app gets what is signed, and nothing else.
func FuzzHandler(f *testing.F) {
	for _, body := range references(f) {
		f.Add("application/json", []byte(body))
		f.Add("", []byte(body))
	}
	f.Add("text/xml; charset=utf-8", []byte("<mp/>"))
	f.Setenv("XDG_DATA_HOME", f.TempDir())
	h := &Handler{Accounts: []Account{{Name: "test", Username: testUsername, APIKey: testAPIKey}}}
	provision(f, h)
	documented := map[int]bool{200: true, 400: true, 403: true, 409: true, 413: true, 415: true, 422: true}
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		// A right signature, wherever one can be: no fuzzer finds md5 by itself.
		if c, err := decode(body); err == nil && c.checkRefID() == nil {
			if given := c.find("sign"); len(given.text) == 32 {
				body = []byte(strings.ReplaceAll(string(body), given.text, sign(c.refID)))
			}
		}
		var app []byte
		next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			app = make([]byte, r.ContentLength)
			if n, _ := r.Body.Read(app); n != len(app) {
				t.Errorf("the body has %d bytes, its length says %d", n, len(app))
			}
			w.WriteHeader(http.StatusOK)
			return nil
		})
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(body)))
		r.Header.Set("Content-Type", contentType)
		w := httptest.NewRecorder()
		r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, nil)
		status := 0
		if err := h.ServeHTTP(w, r, next); err == nil {
			status = w.Code
		} else if handlerErr, ok := err.(caddyhttp.HandlerError); ok { //nolint:errorlint // it must be this type itself
			status = handlerErr.StatusCode
		}
		if !documented[status] {
			t.Fatalf("status %d for %q", status, body)
		}
		if app == nil {
			return
		}
		c, err := decodeJSON(app)
		if err != nil || c.checkRefID() != nil {
			t.Fatalf("the app received %q", app)
		}
		if got := c.find("sign").text; got != sign(c.refID) {
			t.Fatalf("the app received %q, which is signed %q", app, got)
		}
	})
}
