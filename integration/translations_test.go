package integration

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Each page in Indonesian has the commands and Caddyfiles of the English one, in the same
// order, and both lead to each other.
func TestTranslations(t *testing.T) {
	translated := map[string]string{"README.id.md": "README.md"}
	found, _ := filepath.Glob("docs/id/*.md")
	for _, name := range found {
		translated[name] = filepath.Join("docs", filepath.Base(name))
	}
	if len(translated) < 2 {
		t.Fatalf("%d pages, which is too few to be all", len(translated))
	}
	for id, en := range translated {
		theirs, ours := fence.FindAllString(page(t, id), -1), fence.FindAllString(page(t, en), -1)
		if !slices.Equal(theirs, ours) {
			for i := range max(len(theirs), len(ours)) {
				if i >= len(theirs) || i >= len(ours) || theirs[i] != ours[i] {
					t.Errorf("%s and %s: block %d differs", id, en, i+1)
					break
				}
			}
		}
		if headings := mdHeading.FindAllString(page(t, id), -1); len(headings) != len(mdHeading.FindAllString(page(t, en), -1)) {
			t.Errorf("%s has %d headings, %s another number", id, len(headings), en)
		}
		for from, to := range map[string]string{id: en, en: id} {
			way, err := filepath.Rel(filepath.Dir(from), to)
			if err != nil || !strings.Contains(page(t, from), "]("+way+")") {
				t.Errorf("%s does not lead to %s", from, to)
			}
		}
	}
}
