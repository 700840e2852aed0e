package iakcallback

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What an editor, a shell or a container has put around a secret is refused by
// a sentence that names the option and never the value, wherever it comes from:
// written out, a variable, a file, or as a part of a url. A clean one passes.
func TestSecrets(t *testing.T) {
	for _, tc := range []struct{ name, value, want string }{
		{"UTF-8 with a byte order mark", "\ufeff5ecret", "byte order mark"},
		{"UTF-16, little endian", "\xff\xfe5\x00e\x00c\x00", "UTF-16"},
		{"UTF-16, big endian, no mark", "\x005\x00e", "UTF-16"},
		{"NUL at the end", "5ecret\x00", "NUL"},
		{"zero-width space", "5ec\u200bret", "cannot be seen"},
		{"word joiner at the end", "5ecret\u2060", "cannot be seen"},
		{"soft hyphen", "5ec\u00adret", "cannot be seen"},
		{"right-to-left mark", "\u200f5ecret", "cannot be seen"},
		{"white space", "5ecret ", "white space"},
		{"no-break space", "\u00a05ecret", "white space"},
		{"double quotes", `"5ecret"`, "quotes"},
		{"single quotes", `'5ecret'`, "quotes"},
		{"backquotes", "`5ecret`", "quotes"},
		{"a line of an environment file", "IAK_API_KEY=5ecret", "name of a variable"},
		{"the same, exported", "export IAK_API_KEY=5ecret", "name of a variable"},
		{"clean", "5ecret", ""},
		{"one quote", `5ecret"`, ""},
		{"base64", "Z5ECRET=", ""},
		{"base64, two of padding", "Z5ECRET==", ""},
		{"letters of many languages", "5ecretüé", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(file, []byte(tc.value), 0o600); err != nil {
				t.Fatal(err)
			}
			sources := map[string]string{"file": "{file." + file + "}"}
			if !strings.Contains(tc.value, "\x00") { // no variable can hold it
				t.Setenv("IAK_TEST_SECRET", tc.value)
				sources["variable"], sources["literal"] = "{env.IAK_TEST_SECRET}", tc.value
			}
			for source, text := range sources {
				resolved, err := resolveSecret(text, "account \"shop\": api_key")
				check(t, source, err, tc.want, tc.value)
				if tc.want == "" && resolved != tc.value {
					t.Errorf("%s: resolved to %q", source, resolved)
				}
				if source != "literal" {
					_, err = resolveURL("redis://:"+text+"@localhost", "redis: url 1")
					check(t, "password from a "+source, err, tc.want, tc.value)
				}
			}
		})
	}
}

func check(t *testing.T, source string, err error, want, value string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: error %v", source, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: error %v, want one with %q", source, err, want)
	case err != nil && (strings.Contains(err.Error(), "5ec") || strings.Contains(err.Error(), value)):
		t.Errorf("%s: the error quotes the secret: %v", source, err)
	}
}
