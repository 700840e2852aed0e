package iak

import (
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
