package command

import (
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/inspect"
)

// How a redelivery of all ended is told, and an end before all were reached is an error
// that says what to do.
func TestPrintProgress(t *testing.T) {
	for _, tc := range []struct {
		name, answer  string
		prints, words string // words of the error, empty for none
	}{
		{"done", `{"redelivered":0,"done":true}`, "No callback is due: 50 a second, beginning now.\n", ""},
		{"far on", `{"redelivered":1}` + "\n" + `{"redelivered":70}` + "\n" + `{"redelivered":99,"done":true}`,
			"1 callback is due so far.\n70 callbacks are due so far.\n99 callbacks are due: 50 a second, beginning now.\n", ""},
		{"the store fails", `{"redelivered":70}` + "\n" + `{"redelivered":71,"error":"redis is gone"}`, "70 callbacks are due so far.\n",
			"71 callbacks are due, and then: redis is gone; begin again"},
		{"broken off", `{"redelivered":70}`, "70 callbacks are due so far.\n", "broke off before all were reached: begin again"},
		{"no answer", "", "", "broke off"},
		{"some in doubt", `{"redelivered":2,"held":1,"done":true}`, "2 callbacks are due: 50 a second, beginning now.\n",
			"1 callback is in doubt too and left alone: look at the order in the app"},
		{"nonsense", "<html>", "", "reading Caddy's answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			err := printProgress(&out, strings.NewReader(tc.answer), false)
			if out.String() != tc.prints || (err == nil) != (tc.words == "") || err != nil && !strings.Contains(err.Error(), tc.words) {
				t.Errorf("prints %q, error %v; want %q and %q", out.String(), err, tc.prints, tc.words)
			}
			out.Reset()
			_ = printProgress(&out, strings.NewReader(tc.answer), true)
			if want := tc.answer + "\n"; tc.name != "nonsense" && strings.TrimSpace(out.String()) != strings.TrimSpace(want) {
				t.Errorf("with --json it prints %q, want what Caddy says", out.String())
			}
		})
	}
}

// A callback is printed much as it came, without what could play tricks on a terminal.
func TestPrintCallback(t *testing.T) {
	var out strings.Builder
	printCallback(&out, inspect.Callback{
		Account: "shop", RefID: "order\u202e1", Store: "memory", Host: "shop.example.com", Target: "/iak/callback?a=b", Proto: "HTTP/2.0",
		Header: map[string][]string{"X-Two": {"one", "two\xff"}, "Accept": {"*/*"}}, Remote: "192.0.2.1:1234", Local: "tcp/192.0.2.2:443", TLS: "TLS 1.3",
		Bytes: []byte("<mp>\r\n\t<pin>\x1b[2Jü\xff</pin>\n</mp>"),
	})
	want := `account  shop
ref_id   "order\u202e1"
store    memory
from     192.0.2.1:1234, by TLS 1.3
to       tcp/192.0.2.2:443

POST /iak/callback?a=b HTTP/2.0
Host: shop.example.com
Accept: */*
X-Two: one
X-Two: two�

<mp>
	<pin>\x1b[2Jü�</pin>
</mp>
`
	if out.String() != want {
		t.Errorf("prints\n%s\nwant\n%s", out.String(), want)
	}
}
