package iak

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// A document that is cut off at any byte, or comes twice, is malformed.
func TestDecodeCutOff(t *testing.T) {
	for name, body := range references(t) {
		body = strings.TrimSpace(body)
		if _, err := Decode([]byte(body)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for n := range len(body) {
			if _, err := Decode([]byte(body[:n])); err == nil {
				t.Errorf("%s: the first %d bytes are accepted", name, n)
			}
		}
		for _, between := range []string{"", "\n", ",", "\x00"} {
			if _, err := Decode([]byte(body + between + body)); err == nil {
				t.Errorf("%s: accepted twice with %q between", name, between)
			}
		}
	}
}

// Errors say what is wrong and never quote the document, which holds goods.
func TestDecodeErrorsQuoteNothing(t *testing.T) {
	const secret = "5ECRET"
	for _, body := range []string{
		`{"data":{"sn":"` + secret + `","sn":"` + secret + `"}}`,
		`{"data":{"` + secret + `":1,"` + secret + `":1}}`,
		`{"data":{"sn":"` + secret + `\x"}}`,
		`{"data":{"sn":` + secret + `}}`,
		`{"data":{"sn":"` + secret,
		`{"data":{}}` + secret,
		`{"` + secret + `":{"a":[}`,
		`<mp><sn>` + secret + `</sm></mp>`,
		`<mp><` + secret + `>`,
		`<mp>` + secret + `</mp>`,
		`<` + secret + `/>`,
		`<mp><sn>&` + secret + `;</sn></mp>`,
		`<mp><a ` + secret + `></mp>`,
		`<mp><` + secret + `/><` + secret + `/></mp>`,
		`<?xml version="1.0" encoding="` + secret + `"?><mp/>`,
		`<?xml version="` + secret + `"?><mp/>`,
		`<!DOCTYPE ` + secret + `><mp/>`,
		`<mp/>` + secret,
	} {
		_, err := Decode([]byte(body))
		if err == nil {
			t.Errorf("%s is accepted", body)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("the error %q quotes the document", err)
		}
	}
}

// Hostile bodies leave no memory behind.
func TestDecodeMemory(t *testing.T) {
	const size = 64 << 10
	fill := func(s string) string { return strings.Repeat(s, size/len(s)) }
	var names, elements strings.Builder
	for i := 0; names.Len() < size-100; i++ {
		fmt.Fprintf(&names, `"%x":%d,`, i, i)
	}
	for i := 0; elements.Len() < size-100; i++ {
		fmt.Fprintf(&elements, `<a%x/>`, i)
	}
	bodies := []string{
		fill("["), fill(`{"data":`), fill(`{"a":`), `{"data":{"a":` + fill("["), `{"data":{` + names.String(), `{"data":{` + names.String() + `"x":1}}`,
		`{"data":{"a":"` + fill(`\u0041`), `{"data":{"a":` + fill("1"), `{"data":{"a":[` + fill("1,"), fill(" "), fill("{"), "{" + fill("\x00"),
		fill("<mp>"), "<mp>" + elements.String(), "<mp>" + elements.String() + "</mp>", "<mp " + fill("a='b' "), "<mp " + fill("xmlns:a='b' ") + ">",
		"<mp>" + fill("&#65;"), "<mp>" + fill("<![CDATA[x]]>"), "<mp><!--" + fill("-"), "<!DOCTYPE mp [" + fill("<!ENTITY a 'b'>"),
		"<?xml " + fill("encoding='GBK' ") + "?>", `<?xml version="1.0" encoding="GBK"?><mp>` + fill("\xb2\xe2"), fill("<"), utf16Text(true, fill("<a>")[:size/2]),
		fill("<?xml version='1.0' encoding='ISO-8859-1'?>"),
	}
	round := func() {
		for _, body := range bodies {
			_, _ = Decode([]byte(body))
		}
	}
	inUse := func() uint64 {
		runtime.GC()
		runtime.GC() // empties sync.Pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	round() // fills what is filled once
	before := inUse()
	for range 2000/len(bodies) + 1 {
		round()
	}
	const bound = 8 << 20
	if after := inUse(); after > before+bound {
		t.Errorf("2,000 hostile bodies leave %d bytes behind", after-before)
	}
}

// A character that no XML document may hold is told as what it is, whether it stands
// there or is referred to: the charset is not at fault.
func TestXMLCharacters(t *testing.T) {
	for text, want := range map[string]string{
		"\x01": "U+0001", "&#1;": "U+0001", "&#x1;": "U+0001", "\x1b": "U+001B", "\x00": "U+0000", "\uffff": "U+FFFF", "&#xFFFE;": "U+FFFE",
		"<![CDATA[\x08]]>": "U+0008",
	} {
		_, err := Decode([]byte("<?xml version=\"1.0\"?>\n<mp><message>" + text + "</message></mp>"))
		if want := "the XML document holds the character " + want + " on line 2, which XML does not allow"; err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	if _, err := Decode([]byte("<mp><message>\xff</message></mp>")); !errors.Is(err, errCharset) {
		t.Errorf("a byte that is no UTF-8: %v, want %v", err, errCharset)
	}
}
