package command

import (
	"net/url"
	"testing"
)

// The urls that many frameworks route as the callback's, and by http in the place of https.
func TestSiblings(t *testing.T) {
	target, err := url.Parse("https://shop.example.com:8443/iak/Callback?a=b")
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, s := range siblings(target) {
		got[s.what] = s.url.String()
	}
	for what, want := range map[string]string{
		"with a slash at its end": "https://shop.example.com:8443/iak/Callback/?a=b", "in other case": "https://shop.example.com:8443/IAK/cALLBACK?a=b",
		"behind /index.php": "https://shop.example.com:8443/index.php/iak/Callback?a=b", "by http": "http://shop.example.com/iak/Callback?a=b",
	} {
		if got[what] != want {
			t.Errorf("%s: %q, want %q", what, got[what], want)
		}
	}
	if target.String() != "https://shop.example.com:8443/iak/Callback?a=b" {
		t.Errorf("the url itself was changed: %s", target)
	}
}
