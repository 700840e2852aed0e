package iakcallback

import (
	"fmt"
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddyserver/caddy/v2"
)

// The app appears with the first handler, knows the handlers of the
// configuration in force, and is gone when Caddy has stopped.
func TestApp(t *testing.T) {
	s := sitetest.StartOperated(t, sitetest.Block()+"respond ok")
	if n := len(inForce.Load().namespaces("test")); n != 1 {
		t.Errorf("the account is in %d places, want 1", n)
	}
	s.Reload("respond ok") // without a handler
	if found := inForce.Load().namespaces(""); len(found) != 0 {
		t.Errorf("%v are left of the configuration before", found)
	}
	s.Reload(sitetest.Block() + "respond ok")
	if n := len(inForce.Load().namespaces("test")); n != 1 {
		t.Errorf("the account is in %d places, want 1", n)
	}
	if n := len(inForce.Load().namespaces("nobody")); n != 0 {
		t.Errorf("an account that is not there is in %d places", n)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if inForce.Load() != nil {
		t.Error("an app is in force after the end")
	}
}

// One line for each store says at start which accounts it holds and whether it
// answers, and a wrong password is an error that is seen then.
func TestAppAnnounces(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "right-password")
	good := "redis://:right-password@" + server.Addr()
	for _, tc := range []struct{ name, option, level, words string }{
		{"embedded", "", "info", "the store answers"},
		{"redis", "redis " + good, "info", "the store answers"},
		{"wrong password", "redis redis://:wrong-password@" + server.Addr(), "error", "WRONGPASS"},
		{"nobody there", "redis redis://127.0.0.1:" + freePort(t), "error", "docs/troubleshooting.md"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			site := func(path string) string {
				return "handle " + path + " {\n" + sitetest.Block(tc.option) + "respond ok\n}\n"
			}
			s := sitetest.Start(t, site("/a")+site("/b"))
			var lines []string
			eventually(t, "the store is announced", func() bool {
				lines = nil
				for line := range strings.Lines(s.Log()) {
					if strings.Contains(line, `"accounts":"test"`) {
						lines = append(lines, line)
					}
				}
				return len(lines) > 0
			})
			if len(lines) != 1 || !strings.Contains(lines[0], `"level":"`+tc.level+`"`) || !strings.Contains(lines[0], tc.words) {
				t.Errorf("the log says\n%s\nwant one line at level %s with %q", strings.Join(lines, ""), tc.level, tc.words)
			}
			if strings.Contains(strings.Join(lines, ""), "wrong-password") {
				t.Error("a password is in the line")
			}
		})
	}
}

// The pool alone counts who uses a store: it stays open while a request or the
// background holds it, and nobody waits while it is closed.
func TestStoreUses(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	use, err := (*Embedded)(nil).use()
	if err != nil {
		t.Fatal(err)
	}
	opened, err := use.load()
	if err != nil {
		t.Fatal(err)
	}
	again, err := use.Open()
	if err != nil || again != &opened.Store {
		t.Fatalf("%p, %v, want the store that is open, %p", again, err, &opened.Store)
	}
	release := use.hold()
	for i, close := range []func() bool{use.Close, use.Close} {
		if close() {
			t.Fatalf("use %d was not the last, and the store was closed", i+1)
		}
	}
	release()
	<-opened.closed
	if _, ok := stores.References(use.id); ok {
		t.Error("the pool keeps a store that nobody uses")
	}
}

// What tells one store from another is no secret, but a hash of it.
func TestStoreID(t *testing.T) {
	use, err := (&Redis{URLs: []string{"redis://:5ecret@localhost"}}).use()
	if err != nil {
		t.Fatal(err)
	}
	if id := fmt.Sprint(use.ID()); strings.Contains(id, "5ecret") || !strings.HasPrefix(id, "redis:") {
		t.Errorf("id %s", id)
	}
}
