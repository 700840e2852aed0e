package iakcallback

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// Each file of testdata/caddyfile is a Caddyfile, a line of ten dashes, and
// what becomes of it: the adapted JSON, or a part of the error with its file
// and line.
func TestCaddyfile(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "caddyfile", "*.caddyfiletest"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in testdata/caddyfile (%v)", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, ok := strings.Cut(string(text), "\n----------\n")
			want = strings.TrimSuffix(want, "\n")
			if !ok || want == "" {
				t.Fatal("the file has no line of ten dashes with something behind it")
			}
			config, err := sitetest.Adapt(input + "\n")
			if !strings.HasPrefix(want, "{") {
				if err == nil {
					t.Fatalf("adapted, want the error\n%s", want)
				}
				if !strings.Contains(err.Error()+"\n", want+"\n") { // to the end: line 4 is not line 42
					t.Fatalf("the error is\n%v\nwant\n%s", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := json.Indent(&got, config, "", "\t"); err != nil {
				t.Fatal(err)
			}
			if got.String() != want {
				t.Errorf("adapted to\n%s\nwant\n%s", &got, want)
			}
		})
	}
}

// No error about an account or a url quotes it: errors travel to terminals,
// logs and the admin API's answers.
func TestCaddyfileErrorsQuoteNoSecret(t *testing.T) {
	const username, key = "0811SECRET", "5ecre7"
	for name, option := range map[string]string{
		"key is missing":          "account test " + username,
		"name is missing":         "account " + username + " " + key,
		"one argument too many":   "account test " + username + " " + key + " more",
		"a key with a space":      "account test " + username + " more " + key,
		"a brace behind":          "account test " + username + " " + key + " }",
		"a block":                 "account test " + username + " " + key + " {\n" + key + "\n}",
		"all in a block":          "account {\ntest " + username + " " + key + "\n}",
		"an open quote":           "account test " + username + ` "` + key,
		"key on the next line":    "account test " + username + "\n" + key,
		"a second key, next line": "account test " + username + " old\n" + key,
		"from a snippet":          "import account " + username + " " + key,
		"url on the next line":    "redis redis://localhost:6379\nredis://:" + key + "@localhost:6380",
		"url in the block":        "redis redis://localhost:6379 {\nredis://:" + key + "@localhost:6380\n}",
		"url twice":               "redis redis://:" + key + "@localhost:6379\nredis redis://:" + key + "@localhost:6380",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := sitetest.Adapt("(account) {\naccount test {args[0]} {args[1]} more\n}\n:8080 {\niak_callback {\n" + option + "\n}\n}\n")
			if err == nil {
				t.Fatal("adapted, want an error")
			}
			if !strings.Contains(err.Error(), "Caddyfile:") {
				t.Errorf("no file and line in the error: %v", err)
			}
			for _, secret := range []string{username, key} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error quotes %q: %v", secret, err)
				}
			}
		})
	}
}
