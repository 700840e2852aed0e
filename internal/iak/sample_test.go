package iak

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

// hostile are values that a shell, JSON, XML or a line of text could take for
// something else.
var hostile = []string{
	`it's "quoted" \ and / and \/`, "$(id) `id` ${HOME} !! ~ * # ; & | > <", "<a>&amp;<![CDATA[x]]></mp>", "]]>", "@/etc/passwd", "%41%00 %s",
	"line\nline\r\nline\ttab", "\x01\b\f\x1f\x7f", "é 漢字 😀 \u2028 \u0085 \ufeff", `'\''`, "''", `\`, "-d", "\nGET / HTTP/1.1\r\n\r\n", "",
}

// A sample, signed, has the bytes of IAK's reference in both versions and formats.
// The reference has no order under way.
func TestSamples(t *testing.T) {
	for _, name := range SampleNames()[:4] {
		for _, version := range []string{"v1", "v2"} {
			document := reference(t, name+"."+version+".json")
			refID := normalized(t, document, false).RefID
			fields := append(Fields{{"ref_id", refID}}, Sample(name)...)
			if version == "v2" {
				fields.Version2()
			}
			fields = fields.Set("sign", sign(refID))
			var want bytes.Buffer
			if err := json.Compact(&want, []byte(document)); err != nil {
				t.Fatal(err)
			}
			if got := fields.JSON(); got != want.String() {
				t.Errorf("%s, %s:\n%s\nwant\n%s", name, version, got, want.String())
			}
			got, err := fields.XML()
			if want := strings.TrimSpace(reference(t, name+"."+version+".xml")); err != nil || got != want {
				t.Errorf("%s, %s:\n%s\nwant\n%s (%v)", name, version, got, want, err)
			}
		}
	}
	if Sample("no such") != nil {
		t.Error("there is a sample of any name")
	}
}

// Who changes a sample changes no other's.
func TestSampleIsACopy(t *testing.T) {
	for _, name := range SampleNames() {
		mine := Sample(name)
		before := mine.JSON()
		mine.Set("price", "1")
		mine.Version2()
		if got := Sample(name).JSON(); got != before {
			t.Errorf("%s became %s", name, got)
		}
	}
}

// Strings are written as PHP's own json_encode writes them.
func TestSendStringsAsPHP(t *testing.T) {
	for _, value := range hostile {
		php := exec.Command("php", "-n", "-r", "echo json_encode(stream_get_contents(STDIN));")
		php.Stdin = strings.NewReader(value)
		want, err := php.Output()
		if err != nil {
			t.Fatalf("php (make test installs it): %v", err)
		}
		var got strings.Builder
		if writePHPString(&got, value); got.String() != string(want) {
			t.Errorf("%q: got %s, PHP writes %s", value, got.String(), want)
		}
	}
}
