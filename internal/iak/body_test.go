package iak

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"math/rand"
	"slices"
	"strings"
	"testing"
)

// Every example of IAK's reference, JSON and XML, version 1 and 2, becomes the same
// bytes, and the same outcome.
func TestReferenceBodies(t *testing.T) {
	for name, document := range references(t) {
		example, _, _ := strings.Cut(name, ".")
		c := normalized(t, document, false)
		if got, want := string(c.AppendIAK(nil)), reference(t, example+".iak.json"); got != want {
			t.Errorf("%s: body iak\n%s\nwant\n%s", name, got, want)
		}
		if got, want := string(c.AppendFlat(nil)), reference(t, example+".flat.json"); got != want {
			t.Errorf("%s: body flat\n%s\nwant\n%s", name, got, want)
		}
		if got, want := c.Outcome("test"), normalized(t, reference(t, example+".v1.json"), false).Outcome("test"); got != want {
			t.Errorf("%s: outcome %v, version 1 has %v", name, got, want)
		}
	}
}

// The exact bytes of both bodies, for odd values.
func TestBodies(t *testing.T) {
	const id = "o1"
	signed := quote(sign(id))
	// iak and flat are the bodies of a complete callback with other members: old
	// and new text in pairs.
	iak := func(changes ...string) string {
		return strings.NewReplacer(changes...).Replace(`{"data":{"ref_id":"o1","status":"1","code":"xld25000","hp":"0817777215","product_code":"xld25000","customer_id":"0817777215",` +
			`"price":"25000","message":"MESSAGE","balance":"997061249","tr_id":"3482","rc":"00","sign":` + signed + `}}`)
	}
	flat := func(changes ...string) string {
		return strings.NewReplacer(changes...).Replace(`{"ref_id":"o1","tr_id":"3482","status":"success","rc":"00","message":"MESSAGE","product_code":"xld25000",` +
			`"customer_id":"0817777215","price":25000,"balance":997061249,"sn":null,"pin":null,"activation_code":null}`)
	}
	const (
		signKey = `"sign":`
		flatEnd = `"activation_code":null}`
	)
	for _, test := range []struct {
		name    string
		body    string
		lenient bool
		iak     string
		flat    string
	}{
		{name: "complete", body: order(id, "1"), iak: iak(), flat: flat()},
		{name: "process", body: order(id, "0"), iak: iak(`"status":"1"`, `"status":"0"`), flat: flat("success", "process")},
		{name: "failed", body: order(id, "2"), iak: iak(`"status":"1"`, `"status":"2"`), flat: flat("success", "failed")},
		{name: "status as a number", body: order(id, "", "status", "10.0e-1"), iak: iak(), flat: flat()},
		{name: "version 2", body: order(id, "1", "code", "", "hp", "", "product_code", `"p"`, "customer_id", `"c|1"`),
			iak: iak(`"xld25000"`, `"p"`, `"0817777215"`, `"c|1"`), flat: flat(`"xld25000"`, `"p"`, `"0817777215"`, `"c|1"`)},
		{name: "an escaped slash", body: order(id, "1", "message", `"a\/b"`), iak: iak("MESSAGE", "a/b"), flat: flat("MESSAGE", "a/b")},
		{name: "escaped letters", body: order(id, "1", "message", `"\u00e9\u0041\ud83d\ude00"`), iak: iak("MESSAGE", "éA😀"), flat: flat("MESSAGE", "éA😀")},
		{name: "quotes and backslashes", body: order(id, "1", "message", `"\"a\\b\u0022\u005c"`),
			iak: iak("MESSAGE", `\"a\\b\"\\`), flat: flat("MESSAGE", `\"a\\b\"\\`)},
		{name: "no HTML escaping", body: order(id, "1", "message", `"\u003cb\u003e&'"`), iak: iak("MESSAGE", "<b>&'"), flat: flat("MESSAGE", "<b>&'")},
		{name: "line separators", body: order(id, "1", "message", `"\u2028\u2029"`), iak: iak("MESSAGE", "\u2028\u2029"), flat: flat("MESSAGE", "\u2028\u2029")},
		{name: "control characters", body: order(id, "1", "message", `"\n\t\u0000\u001f\u007f\u0085"`),
			iak: iak("MESSAGE", `\n\t\u0000\u001f`+"\x7f\u0085"), flat: flat("MESSAGE", `\n\t\u0000\u001f`+"\x7f\u0085")},
		{name: "white space around", body: order(id, "1", "message", `" a "`), iak: iak("MESSAGE", " a "), flat: flat("MESSAGE", " a ")},
		{name: "placeholders", body: order(id, "1", "message", `"{env.HOME}{http.request.host}"`),
			iak: iak("MESSAGE", "{env.HOME}{http.request.host}"), flat: flat("MESSAGE", "{env.HOME}{http.request.host}")},
		{name: "goods", body: order(id, "1", "sn", `"S"`, "pin", `"007"`, "activation_code", `"LPA:1$x$y"`),
			iak:  iak(`"balance"`, `"sn":"S","pin":"007","activation_code":"LPA:1$x$y","balance"`),
			flat: flat(`"sn":null,"pin":null,"activation_code":null`, `"sn":"S","pin":"007","activation_code":"LPA:1$x$y"`)},
		{name: "goods as numbers", body: order(id, "1", "sn", "0.10", "pin", "12345678901234567890"),
			iak: iak(`"balance"`, `"sn":"0.10","pin":"12345678901234567890","balance"`), flat: flat(`"sn":null,"pin":null`, `"sn":"0.10","pin":"12345678901234567890"`)},
		{name: "empty goods", body: order(id, "1", "sn", `""`, "pin", `""`), iak: iak(`"balance"`, `"sn":"","pin":"","balance"`), flat: flat()},
		{name: "null goods", body: order(id, "1", "sn", "null", "pin", "null", "activation_code", "null"), iak: iak(), flat: flat()},
		{name: "an empty message", body: order(id, "1", "message", `""`), iak: iak("MESSAGE", ""), flat: flat("MESSAGE", "")},
		{name: "digits", body: order(id, "1", "price", "16500.00", "balance", `"-1.50E+3"`),
			iak: iak(`"25000"`, `"16500.00"`, "997061249", "-1.50E+3"), flat: flat(":25000", ":16500.00", "997061249", "-1.50E+3")},
		{name: "numbers everywhere", body: order(id, "1", "tr_id", "3482", "rc", "0", "code", "1e2", "hp", "817", "message", "-0"),
			iak:  iak(`"rc":"00"`, `"rc":"0"`, "xld25000", "1e2", "0817777215", "817", "MESSAGE", "-0"),
			flat: flat(`"rc":"00"`, `"rc":"0"`, "xld25000", "1e2", "0817777215", "817", "MESSAGE", "-0")},
		{name: "an upper-case sign", body: order(id, "1", "sign", strings.ToUpper(signed)), iak: iak(), flat: flat()},
		{name: "unknown fields", body: order(id, "1", "z", `"Z"`, "a", "1.50", "t", "true", "f", "false", "n", "null", "l", "[1]", "o", `{"a":1}`, "e", `""`, "A", `"x"`, `q"`, `"\/"`),
			iak:  iak(signKey, `"z":"Z","a":"1.50","t":"true","f":"false","e":"","A":"x","q\"":"/",`+signKey),
			flat: flat(flatEnd, `"activation_code":null,"extra":{"z":"Z","a":"1.50","t":"true","f":"false","e":"","A":"x","q\"":"/"}}`)},
		{name: "an unknown field called extra", body: order(id, "1", "extra", `"x"`), iak: iak(signKey, `"extra":"x",`+signKey), flat: flat(flatEnd, `"activation_code":null,"extra":{"extra":"x"}}`)},
		{name: "unknown fields in the order they came", body: strings.Replace(order(id, "1", "y", "1", "x", "2"), `{"ref_id"`, `{"zz":"3","ref_id"`, 1),
			iak: iak(signKey, `"zz":"3","y":"1","x":"2",`+signKey), flat: flat(flatEnd, `"activation_code":null,"extra":{"zz":"3","y":"1","x":"2"}}`)},
		{name: "only dropped unknown fields", body: order(id, "1", "n", "null", "l", "[]"), iak: iak(), flat: flat()},
		{name: "lenient: nothing else", lenient: true,
			body: order(id, "1", "code", "", "hp", "", "price", "", "message", "", "balance", "", "tr_id", "", "rc", ""),
			iak:  `{"data":{"ref_id":"o1","status":"1","sign":` + signed + `}}`,
			flat: `{"ref_id":"o1","tr_id":null,"status":"success","rc":null,"message":null,"product_code":null,"customer_id":null,"price":null,"balance":null,"sn":null,"pin":null,"activation_code":null}`},
		{name: "lenient: no numbers", lenient: true, body: order(id, "1", "price", `"007"`, "balance", `"Rp 5"`),
			iak: iak(`"25000"`, `"007"`, "997061249", "Rp 5"), flat: flat(":25000", ":null", "997061249", "null")},
		{name: "lenient: other numbers", lenient: true, body: order(id, "1", "price", `"1e5"`, "balance", `""`),
			iak: iak(`"25000"`, `"1e5"`, "997061249", ""), flat: flat(":25000", ":1e5", "997061249", "null")},
		{name: "XML", body: orderXML(id, "message", " a &lt;&amp;\r\nb<![CDATA[<c> ]]>", "sn", "", "z", " Z ", "n", "<a/>", "e", ""),
			iak:  iak("MESSAGE", `a <&\nb<c>`, `"balance"`, `"sn":"","balance"`, signKey, `"z":"Z","e":"",`+signKey),
			flat: flat("MESSAGE", `a <&\nb<c>`, flatEnd, `"activation_code":null,"extra":{"z":"Z","e":""}}`)},
		{name: "a number as ref_id", body: order("", "1", "ref_id", "1.50", "sign", quote(sign("1.50"))),
			iak: iak(`"o1"`, `"1.50"`, signed, quote(sign("1.50"))), flat: flat(`"o1"`, `"1.50"`)},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := normalized(t, test.body, test.lenient)
			if got := string(c.AppendIAK(nil)); got != test.iak {
				t.Errorf("body iak\n%s\nwant\n%s", got, test.iak)
			}
			if got := string(c.AppendFlat(nil)); got != test.flat {
				t.Errorf("body flat\n%s\nwant\n%s", got, test.flat)
			}
			if problem := checkOutput(c, test.lenient); problem != "" {
				t.Error(problem)
			}
		})
	}
}

// The JSON and the XML of the same fields are the same callback: the same bytes
// for the app and the same fingerprint.
func TestFormatsAgree(t *testing.T) {
	random := rand.New(rand.NewSource(2))
	alphabet := []rune("abcXYZ019 -_/:|.,\"\\<>&'{}[]%$éß\u00a0\u2028測😀\ufffd")
	word := func() string {
		runes := make([]rune, random.Intn(12))
		for i := range runes {
			runes[i] = alphabet[random.Intn(len(alphabet))]
		}
		return strings.Trim(string(runes), " ") // XML knows no outer white space
	}
	number := func() string {
		return fmt.Sprint(random.Intn(1e9)) + []string{"", ".50", "e3", ".00"}[random.Intn(4)]
	}
	for range 2000 {
		refID := "r" + word()
		fields := [][2]string{
			{"ref_id", refID}, {"status", fmt.Sprint(random.Intn(3))}, {"price", number()}, {"message", word()}, {"balance", number()}, {"tr_id", word()}, {"rc", word()},
			{"sign", sign(refID)},
		}
		if random.Intn(2) == 0 {
			fields = append(fields, [2]string{"code", word()}, [2]string{"customer_id", word()})
		} else {
			fields = append(fields, [2]string{"product_code", word()}, [2]string{"hp", word()})
		}
		for _, name := range []string{"sn", "pin", "activation_code", "x", "y-1"} {
			if random.Intn(2) == 0 {
				fields = append(fields, [2]string{name, word()})
			}
		}
		random.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
		var asJSON, asXML bytes.Buffer
		for i, f := range fields {
			if i > 0 {
				asJSON.WriteByte(',')
			}
			value := quote(f[1])
			if (f[0] == "price" || f[0] == "balance" || f[0] == "status") && random.Intn(2) == 0 {
				value = f[1] // as a number
			}
			asJSON.WriteString(quote(f[0]) + ":" + value)
			fmt.Fprintf(&asXML, "<%s>", f[0])
			if err := xml.EscapeText(&asXML, []byte(f[1])); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&asXML, "</%s>", f[0])
		}
		j := normalized(t, `{"data":{`+asJSON.String()+`}}`, false)
		x := normalized(t, `<?xml version="1.0"?><mp>`+asXML.String()+`</mp>`, false)
		if got, want := string(x.AppendIAK(nil)), string(j.AppendIAK(nil)); got != want {
			t.Fatalf("body iak from XML\n%s\nfrom JSON\n%s", got, want)
		}
		if got, want := string(x.AppendFlat(nil)), string(j.AppendFlat(nil)); got != want {
			t.Fatalf("body flat from XML\n%s\nfrom JSON\n%s", got, want)
		}
		if x.Outcome("test") != j.Outcome("test") {
			t.Fatalf("the fingerprints differ for %s", j.AppendIAK(nil))
		}
		if problem := checkOutput(j, false); problem != "" {
			t.Fatal(problem)
		}
	}
}

// Whatever is done to the reference's examples, nothing panics, and what is
// accepted comes out as valid JSON that says the same, and that the module, fed
// with it again, leaves as it is.
func TestMutations(t *testing.T) {
	inputs := references(t)
	names := slices.Sorted(maps.Keys(inputs))
	random := rand.New(rand.NewSource(1))
	accepted := 0
	for i := range 40_000 {
		name := names[random.Intn(len(names))]
		body := []byte(inputs[name])
		for range 1 + random.Intn(4) {
			body = mutate(random, body, inputs[names[random.Intn(len(names))]])
		}
		lenient := i%2 == 0
		c, err := passed(body, lenient)
		if err != nil {
			continue
		}
		accepted++
		if problem := checkOutput(c, lenient); problem != "" {
			t.Fatalf("mutation %d of %s: %s\nfrom %q", i, name, problem, body)
		}
	}
	if accepted < 4_000 {
		t.Errorf("only %d mutations were accepted: the mutator is too coarse to show anything", accepted)
	}
}

// checkOutput says what is wrong with the output for an accepted callback.
func checkOutput(c *Callback, lenient bool) string {
	iak, flat := c.AppendIAK(nil), c.AppendFlat(nil)
	if !json.Valid(iak) {
		return fmt.Sprintf("body iak is not JSON: %q", iak)
	}
	if !json.Valid(flat) {
		return fmt.Sprintf("body flat is not JSON: %q", flat)
	}
	again, err := passed(iak, lenient)
	if err != nil {
		return fmt.Sprintf("body iak is rejected: %v: %s", err, iak)
	}
	if again.RefID != c.RefID || again.Status != c.Status {
		return fmt.Sprintf("ref_id and status %q %s became %q %s", c.RefID, c.Status, again.RefID, again.Status)
	}
	for f, v := range c.fields {
		got, want := again.fields[f], v.text
		switch field(f) {
		case fieldStatus:
			want = c.Status.Digit()
		case fieldSign:
			want = strings.ToLower(want)
		}
		if got.text != want || (got.kind == absent) != (v.kind == absent) {
			return fmt.Sprintf("%s %q became %q", field(f), v.text, got.text)
		}
	}
	if !slices.EqualFunc(c.extra, again.extra, func(a, b member) bool { return a.name == b.name && a.value.text == b.value.text }) {
		return fmt.Sprintf("unknown fields %q became %q", c.extra, again.extra)
	}
	if again.Outcome("test") != c.Outcome("test") || again.IdempotencyKey("test", false, false) != c.IdempotencyKey("test", false, false) {
		return "the fingerprint or the Idempotency-Key changes"
	}
	if twice := again.AppendIAK(nil); !bytes.Equal(twice, iak) {
		return fmt.Sprintf("body iak is not the same the second time:\n%s\n%s", iak, twice)
	}
	if twice := again.AppendFlat(nil); !bytes.Equal(twice, flat) {
		return fmt.Sprintf("body flat is not the same the second time:\n%s\n%s", flat, twice)
	}
	return ""
}

// mutate changes a document a little.
func mutate(random *rand.Rand, body []byte, other string) []byte {
	at := func() int { return random.Intn(len(body) + 1) }
	pick := func(from []string) string { return from[random.Intn(len(from))] }
	insert := func(i int, s string) []byte { return slices.Concat(body[:i], []byte(s), body[i:]) }
	switch random.Intn(9) {
	case 0: // one byte becomes another
		if len(body) > 0 {
			body = slices.Clone(body)
			body[random.Intn(len(body))] = byte(random.Intn(256))
		}
		return body
	case 1: // one bit flips
		if len(body) > 0 {
			body = slices.Clone(body)
			body[random.Intn(len(body))] ^= 1 << random.Intn(8)
		}
		return body
	case 2: // something special anywhere
		return insert(at(), pick(special))
	case 3: // something special inside a value
		i := bytes.Index(body, []byte(pick(insideValues)))
		if i < 0 {
			return body
		}
		return insert(i, pick(special))
	case 4: // a piece is lost
		i := at()
		return slices.Concat(body[:i], body[min(len(body), i+random.Intn(8)):])
	case 5: // a piece comes twice
		i := at()
		piece := string(body[i:min(len(body), i+random.Intn(40))])
		return insert(at(), piece)
	case 6: // a piece of another document
		i := random.Intn(len(other))
		return insert(at(), other[i:min(len(other), i+random.Intn(40))])
	case 7: // a new field
		if i := bytes.Index(body, []byte("<ref_id>")); i >= 0 {
			return insert(i, pick(newElements))
		}
		if i := bytes.Index(body, []byte(`"ref_id"`)); i >= 0 {
			return insert(i, pick(newMembers))
		}
		return body
	default: // another value
		return bytes.Replace(body, []byte(pick(insideValues)), []byte(pick(special)), 1)
	}
}

var (
	insideValues = []string{"order00", "SUCCESS", "FAILED", "ABCD", "123456789", "hsteam12000", "0817777215", "3487", "16500", "00", "996994749"}
	special      = []string{
		"", " ", "\t", "\n", "\r\n", "\x00", "\x7f", "\u0085", "\u00a0", "\u2028", "\ufeff", "\ufffd", "\uffff", "ü", "😀", "\xff", "\xed\xa0\x80", `"`, `\`, `\"`, `\\`, `\/`,
		`\u0000`, `\u0041`, `\u00e9`, `\ud83d\ude00`, `\ud800`, `\ufffd`, `\n`, "'", "<", ">", "&", "&amp;", "&lt;", "&#13;", "&#xD800;", "&#x1F600;", "&#0;", "<![CDATA[ x ]]>", "]]>",
		"<!-- x -->", "<a/>", "<?a b?>", "{", "}", "[", "]", ",", ":", "null", "true", "1", "-1", "1e5", "007", "0.10", "1.00000000000000000001", "+5", "{}", "[]", `<?xml version="1.0" encoding="GBK"?>`,
		"ISO-8859-1", "windows-1252", "GBK", "UTF-16",
	}
	newMembers = []string{
		`"a":"x",`, `"a":1.50,`, `"b":true,`, `"c":null,`, `"d":[1,{"e":2}],`, `"":"x",`, `"\u0000":"\u0001",`, `"a\"b":"\/",`, `"\u2028":"<&>",`, `"STATUS":"1",`, `"status":1.0,`,
		`"sn":"x",`, `"pin":5,`, `"activation_code":"",`, `"product_code":"hsteam12000",`, `"code":"hsteam12000",`, `"customer_id":817777215,`, `"sign":"x",`, `"extra":{},`, `"data":"x",`,
	}
	newElements = []string{
		"<a>x</a>", "<a/>", "<b><c/></b>", "<x:a> y </x:a>", "<d>&#13;</d>", "<e><![CDATA[<]]></e>", "<STATUS>1</STATUS>", "<sn>x</sn>", "<pin> 5 </pin>", "<activation_code/>",
		"<product_code>hsteam12000</product_code>", "<code>hsteam12000</code>", "<ü>ü</ü>", "<data>x</data>", "<extra/>", "<f>\u0085</f>",
	}
)
