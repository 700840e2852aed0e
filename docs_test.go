package iakcallback

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
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
