package iakcallback

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/spf13/cobra"
)

// Every test that the docs name as proof exists.
func TestDocsNameTests(t *testing.T) {
	var sources strings.Builder
	files, _ := filepath.Glob("*_test.go")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sources.Write(b)
	}
	pages, _ := filepath.Glob("docs/*.md")
	if len(pages) == 0 {
		t.Fatal("there are no docs")
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z]+)`").FindAllStringSubmatch(string(b), -1) {
			if !strings.Contains(sources.String(), "\nfunc "+name[1]+"(") {
				t.Errorf("%s names %s, which does not exist", page, name[1])
			}
		}
	}
}

var (
	mdLink    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	mdHeading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInSlug = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the headings of a page as GitHub links to them.
func anchors(text string) map[string]bool {
	found := make(map[string]bool)
	for _, m := range mdHeading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		slug := notInSlug.ReplaceAllString(strings.ToLower(m[1]), "")
		found[strings.ReplaceAll(slug, " ", "-")] = true
	}
	return found
}

// Every link between the pages leads to a file that is there, and to a heading
// in it; and README.md leads to every page of docs/.
func TestPagesLinks(t *testing.T) {
	for _, name := range pages(t) {
		text := page(t, name)
		for _, m := range mdLink.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			at := text
			if target != "" {
				target = filepath.Join(filepath.Dir(name), target)
				if _, err := os.Stat(target); err != nil {
					t.Errorf("%s: the link %s leads nowhere", name, m[1])
					continue
				}
				if anchor != "" {
					at = page(t, target)
				}
			}
			if anchor != "" && !anchors(at)[anchor] {
				t.Errorf("%s: the link %s names no heading", name, m[1])
			}
		}
	}
	readme := page(t, "README.md")
	docs, _ := filepath.Glob("docs/*.md")
	for _, name := range docs {
		if !strings.Contains(readme, "]("+name) {
			t.Errorf("README.md does not link to %s", name)
		}
	}
}

// caddyCommands are the lines of a page that run caddy iak-callback, without
// what comes before it and behind a pipe.
func caddyCommands(t *testing.T, name string) (lines []string) {
	t.Helper()
	for _, block := range examples(t, name, "sh") {
		for line := range strings.Lines(block) {
			_, command, found := strings.Cut(line, "caddy iak-callback ")
			command, _, _ = strings.Cut(command, "|")
			if found {
				lines = append(lines, strings.TrimSpace(command))
			}
		}
	}
	return lines
}

// iakCallback is the command caddy iak-callback.
func iakCallback() *cobra.Command {
	cmd := &cobra.Command{Use: "iak-callback"}
	cmd.AddCommand(subcommands()...)
	return cmd
}

// Every command in the pages, and in the commands' own help, exists with the flags and arguments that are
// given to it.
func TestPagesCommands(t *testing.T) {
	count := 0
	check := func(where, line string) {
		count++
		cmd, rest, err := iakCallback().Find(strings.Fields(line))
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err != nil || cmd.Name() == "iak-callback" {
			t.Errorf("%s: caddy iak-callback %s: %v", where, line, err)
		}
	}
	for _, name := range pages(t) {
		for _, line := range caddyCommands(t, name) {
			check(name, line)
		}
	}
	for _, cmd := range subcommands() {
		for line := range strings.Lines(cmd.Example) {
			if _, command, found := strings.Cut(line, "caddy iak-callback "); found {
				command, _, _ = strings.Cut(command, "|")
				check(cmd.Name(), command)
			}
		}
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s has no help", cmd.Name())
		}
	}
	if count < 20 {
		t.Errorf("there are %d commands, which is too few to be all", count)
	}
}

// The commands of docs/operating.md, one after the other, do what the page
// says: order001 is accepted, two orders are held, one of which the app has
// acted on.
func TestPagesOperating(t *testing.T) {
	shortLease(t)
	hang := make(chan struct{})
	var hanging atomic.Bool
	app := startApp(t, func(http.ResponseWriter, *http.Request) {
		if hanging.Load() {
			<-hang
		}
	})
	t.Cleanup(func() { close(hang) })
	s := startOperated(t, "iak_callback {\n"+strings.Replace(testAccount, "test", "shop", 1)+"\nupstream_timeout 100ms\non_doubt hold\n}\nreverse_proxy "+app.addr())
	s.post(order("order001", "1")).expect(t, "order001", 200)
	hanging.Store(true)
	for _, refID := range []string{"order002", "order003"} {
		s.post(order(refID, "1")).expect(t, refID, 504)
	}
	hanging.Store(false)
	eventually(t, "order003 is held", func() bool {
		s.post(order("order003", "1")).expect(t, "in flight or held", 409)
		lines := s.callbackLines()
		return lines[len(lines)-1]["outcome"] == "held"
	})

	printed := make(map[string]string)
	for _, line := range caddyCommands(t, "docs/operating.md") {
		printed[line] = s.must(strings.Fields(line)...)
	}
	for line, want := range map[string]string{
		"show shop order001":         "accepted",
		"list --state held":          "order002",
		"accept shop order002":       "accepted",
		"release shop order003":      "released",
		"forget shop order001 --yes": "forgotten",
	} {
		if !strings.Contains(printed[line], want) {
			t.Errorf("%s printed %q, want %q in it", line, printed[line], want)
		}
	}
	for refID, want := range map[string]int{"order001": 1, "order002": 0, "order003": 1} {
		before := len(app.received())
		s.post(order(refID, "1")).expect(t, refID, 200)
		if n := len(app.received()) - before; n != want {
			t.Errorf("%s reached the app %d times, want %d", refID, n, want)
		}
	}
}
