package console

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/words"
)

// Every text of the pages is there in both languages.
func TestTexts(t *testing.T) {
	said := regexp.MustCompile(`\{\{t (?:\$)?\.Lang "([^"]+)"\}\}|t (?:\$)?\.Lang "([^"]+)"`)
	seen := 0
	for _, m := range said.FindAllStringSubmatch(pages, -1) {
		key := m[1] + m[2]
		seen++
		if !words.Has(key) {
			t.Errorf("%q has no Indonesian", key)
		}
	}
	if seen < 80 {
		t.Errorf("the pages have %d texts, which is too few to be all", seen)
	}
	var composed []string
	for _, state := range append(inspect.States(), "forgotten") {
		composed = append(composed, state, "means "+state, "do "+state)
	}
	for name := range actions {
		composed = append(composed, "action "+name, "will "+name, "done "+name)
	}
	for _, word := range []string{inspect.Refused, inspect.Unsent, inspect.Unknown, inspect.NotConfirmed} {
		composed = append(composed, "try "+word)
	}
	for _, word := range []string{"final", "open", "unknown", "refused", "silent"} {
		composed = append(composed, "standing "+word)
	}
	for word := range tones {
		composed = append(composed, word)
	}
	for _, key := range append(composed, "process", "success", "failed", "no such action") {
		if !words.Has(key) || strings.Contains(key, " ") && words.English.Say(key) == key {
			t.Errorf("%q has no text", key)
		}
	}
}

// The plot counts by minute, and no callback falls out of it or off its top.
func TestPlot(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	p := plot([]inspect.Recent{
		{Time: now}, {Time: now.Add(20 * time.Second)}, {Time: now.Add(-time.Second)}, {Time: now.Add(-59 * time.Minute)}, {Time: now.Add(-60 * time.Minute)}, {Time: now.Add(time.Minute + time.Second)},
	}, now.Add(30*time.Second))
	if p.Sum != 4 || p.Most != 2 || len(p.Bars) != 60 || p.Bars[59].Height != plotHeight || p.Bars[58].Height != plotHeight/2 || p.Bars[0].Height != plotHeight/2 || p.Bars[30].Height != 0 ||
		!strings.HasSuffix(p.Bars[58].Title, "59: 1") {
		t.Errorf("%+v", p)
	}
	if p := plot(nil, now); p.Sum != 0 || len(p.Bars) != 60 {
		t.Errorf("%+v", p)
	}
}

// A spreadsheet takes no ref_id for a formula.
func TestHarmlessCell(t *testing.T) {
	for text, want := range map[string]string{"order": "order", "=1+1": "'=1+1", "@x": "'@x", "-1": "'-1", "+1": "'+1", "": ""} {
		if got := harmlessCell(text); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}
