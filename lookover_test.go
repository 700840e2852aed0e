package iakcallback

import (
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// What works, but not as its owner means it, is told when the configuration starts.
// What is as it should be, or cannot be seen, is not.
func TestWarnings(t *testing.T) {
	const (
		nothing, itself, keys = "nothing comes after iak_callback", "stands behind itself", "different usernames or keys"
		accepts, username     = "on_doubt accept: ", "the username is no phone number"
	)
	ours := func(matcher string, options ...string) string {
		return "iak_callback " + matcher + " {\n" + sitetest.Account + "\n" + strings.Join(options, "\n") + "\n}\n"
	}
	other := func(name, key, options string) string {
		return "iak_callback {\naccount " + name + " 0812 " + key + "\naccount other 08123456789 k\n" + options + "\n}\n"
	}
	for _, row := range []struct {
		name, block string
		warns       []string
	}{
		{"an app behind", ours("") + "reverse_proxy 127.0.0.1:1", nil},
		{"an app for the path", ours("/cb") + "reverse_proxy /cb 127.0.0.1:1", nil},
		{"an app behind a handle", "handle /cb {\n" + ours("") + "}\nreverse_proxy 127.0.0.1:1", nil},
		{"an app in a route", "route /cb {\n" + ours("") + "respond ok\n}", nil},
		{"nothing", ours(""), []string{nothing}},
		{"nothing in the handle, and another handle", "handle /cb {\n" + ours("") + "}\nhandle {\nreverse_proxy 127.0.0.1:1\n}", []string{nothing}},
		{"nothing behind in the route", "route /cb {\nrespond /x ok\n" + ours("") + "}\n", []string{nothing}},
		{"twice", ours("") + ours("") + "respond ok", []string{itself}},
		{"twice for one path", ours("/cb") + ours("/cb") + "respond ok", []string{itself}},
		{"again in a route", ours("") + "route /cb {\n" + ours("") + "respond ok\n}", nil}, // it may never be met
		{"around a route", "route {\n" + ours("/cb") + ours("") + "respond ok\n}", []string{itself}},
		{"for two paths", ours("/a") + ours("/b") + "respond ok", nil},
		{"in two handles", "handle /a {\n" + ours("") + "respond ok\n}\nhandle /b {\n" + ours("") + "respond ok\n}", nil},
		{"on_doubt accept", ours("", "on_doubt accept") + "respond ok", []string{accepts}},
		{"no phone number", ours("", "account second merchant-1 key") + "respond ok", []string{username}},
		{"rotation in one", "handle /a {\n" + ours("", "account test "+sitetest.Username+" new") + "respond ok\n}\nhandle /b {\n" + ours("") + "respond ok\n}", nil},
		{"two keys", "handle /a {\n" + ours("") + "respond ok\n}\nhandle /b {\niak_callback {\naccount test 089912345678 other\n}\nrespond ok\n}", []string{keys}},
		{"two keys, two stores", "handle /a {\n" + ours("") + "respond ok\n}\nhandle /b {\niak_callback {\naccount test 089912345678 other\nredis redis://127.0.0.1:1\n}\nrespond ok\n}", nil},
		{"two keys, two prefixes", "handle /a {\n" + other("x", "one", "redis redis://127.0.0.1:1") + "respond ok\n}\nhandle /b {\n" +
			other("x", "two", "redis redis://127.0.0.1:1 {\nkey_prefix b:\n}") + "respond ok\n}", []string{username}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := sitetest.Start(t, row.block)
			log := s.Log()
			for _, warning := range []string{nothing, itself, keys, accepts, username} {
				want := false
				for _, w := range row.warns {
					want = want || w == warning
				}
				if got := strings.Contains(log, warning); got != want {
					t.Errorf("%q is told: %t, want %t", warning, got, want)
				}
			}
			var warnings []string // a configuration with literal keys is in Caddy's own lines
			for line := range strings.Lines(log) {
				if strings.Contains(line, `"level":"warn"`) {
					warnings = append(warnings, line)
				}
			}
			for _, secret := range []string{"merchant-1", sitetest.APIKey, "other\"", sitetest.Username} {
				if strings.Contains(strings.Join(warnings, ""), secret) {
					t.Errorf("%q is in a warning: %s", secret, warnings)
				}
			}
		})
	}
}

// The directive behind itself: the callback is answered 500 and released, no attempt is
// counted, and the log names it. On an error route it is not behind itself.
func TestBehindItself(t *testing.T) {
	block := sitetest.Block() + sitetest.Block() + "respond ok"
	s := sitetest.StartOperated(t, block)
	for range 2 {
		s.Post(sitetest.Order("order", "1")).Expect(t, "behind itself", 500)
	}
	for _, line := range s.LinesAfter(2) {
		if line["outcome"] != "app_failed" || line["level"] != "error" || !strings.Contains(line["error"].(string), "behind itself") || line["attempt"] != 1.0 {
			t.Errorf("logged %v", line)
		}
	}
	if n := len(s.CallbackLines()); n != 2 {
		t.Errorf("%d lines, want one for each callback", n)
	}
	s.Refuses("there is no record", "show", "test", "order")

	s.Reload(sitetest.Block("upstream_timeout 500ms") + "reverse_proxy 127.0.0.1:1\nhandle_errors {\n" + sitetest.Block() + "respond ok\n}")
	if got := s.Post(sitetest.Order("order", "1")); got.Status != 502 {
		t.Errorf("status %d, want 502 of the error route, whose request is empty", got.Status)
	}
}
