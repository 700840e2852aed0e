package integration

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

var (
	testFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9]+)\(`)
	namedTest = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`")
	goTest    = regexp.MustCompile(`(?m)go test [^\n]*-run '?([^' ]+)'?((?: \.[./a-z]*)+)`)
)

// testsIn are the tests of a package, by its path as in `go test ./path`.
func testsIn(t *testing.T, path string) (names []string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(path, "*_test.go"))
	if top, all := strings.CutSuffix(path, "..."); all {
		_ = filepath.WalkDir(top, func(file string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(file, "_test.go") {
				files = append(files, file)
			}
			return err
		})
	}
	for _, file := range files {
		for _, m := range testFunc.FindAllStringSubmatch(page(t, file), -1) {
			names = append(names, m[1])
		}
	}
	if len(names) == 0 {
		t.Errorf("there are no tests in %s", path)
	}
	return names
}

// Every test that a page names as proof is run by a `go test` line of that page,
// and every such line runs something by each of its words.
func TestDocsNameTests(t *testing.T) {
	count := 0
	for _, name := range pages(t) {
		text := page(t, name)
		ran := make(map[string]bool)
		for _, line := range goTest.FindAllStringSubmatch(text, -1) {
			var tests []string
			for _, path := range strings.Fields(line[2]) {
				tests = append(tests, testsIn(t, path)...)
			}
			for _, word := range strings.Split(line[1], "|") {
				matched, matches := false, regexp.MustCompile(word)
				for _, test := range tests {
					if matches.MatchString(test) {
						matched, ran[test] = true, true
					}
				}
				if !matched && word != "^$" {
					t.Errorf("%s: %s runs no %s", name, line[0], word)
				}
			}
		}
		for _, m := range namedTest.FindAllStringSubmatch(text, -1) {
			count++
			if !ran[m[1]] {
				t.Errorf("%s names %s, which no `go test` line of it runs", name, m[1])
			}
		}
	}
	if count < 150 {
		t.Errorf("the pages name %d tests, which is too few to be all", count)
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

// Every command in the pages, and in the commands' own help, exists with the flags and arguments that are
// given to it.
func TestPagesCommands(t *testing.T) {
	count := 0
	check := func(where, line string) {
		count++
		cmd, rest, err := sitetest.Command().Find(strings.Fields(line))
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
	for _, cmd := range sitetest.Command().Commands() {
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
	app := sitetest.StartApp(t, func(http.ResponseWriter, *http.Request) {
		if hanging.Load() {
			<-hang
		}
	})
	t.Cleanup(func() { close(hang) })
	s := sitetest.StartOperated(t, "iak_callback {\n"+strings.Replace(sitetest.Account, "test", "shop", 1)+"\nupstream_timeout 500ms\non_doubt hold\n}\nreverse_proxy "+app.Addr())
	s.Post(sitetest.Order("order001", "1")).Expect(t, "order001", 200)
	hanging.Store(true)
	for _, refID := range []string{"order002", "order003"} {
		s.Post(sitetest.Order(refID, "1")).Expect(t, refID, 504)
	}
	hanging.Store(false)
	sitetest.Eventually(t, "order003 is held", func() bool {
		s.Post(sitetest.Order("order003", "1")).Expect(t, "in flight or held", 409)
		lines := s.CallbackLines()
		return lines[len(lines)-1]["outcome"] == "held"
	})

	printed := make(map[string]string)
	for _, line := range caddyCommands(t, "docs/operating.md") {
		printed[line] = s.Must(strings.Fields(line)...)
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
		before := len(app.Received())
		s.Post(sitetest.Order(refID, "1")).Expect(t, refID, 200)
		if n := len(app.Received()) - before; n != want {
			t.Errorf("%s reached the app %d times, want %d", refID, n, want)
		}
	}
}
