package integration

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

const spoolPHP = `<?php
$keep = array_filter($_SERVER, fn($name) => !preg_match('/^(REQUEST_TIME|HTTP_IAK_ATTEMPT|argv|argc)/', $name), ARRAY_FILTER_USE_KEY);
$keep['body'] = file_get_contents('php://input');
file_put_contents(__DIR__ . '/got', json_encode($keep) . "\n", FILE_APPEND | LOCK_EX);
if (file_exists(__DIR__ . '/hang')) { while (file_exists(__DIR__ . '/hang')) { usleep(10000); clearstatcache(); } }
http_response_code(file_exists(__DIR__ . '/up') ? 200 : 500);
`

// PHP sees the same $_SERVER when a callback is delivered again; and one script that
// hangs, which FastCGI waits for, keeps no other callback from being delivered.
func TestSpoolPHP(t *testing.T) {
	shortLease(t)
	php, root := startPHP(t, map[string]string{"index.php": spoolPHP})
	s := sitetest.StartOperated(t, sitetest.Block("on_doubt retry", "upstream_timeout 500ms", "spool {\nbackoff 100ms 300ms\nconcurrency 1\n}")+"root * "+root+"\nphp_fastcgi "+php)
	got := func() (all []map[string]any) {
		text, _ := os.ReadFile(filepath.Join(root, "got"))
		for line := range strings.Lines(string(text)) {
			var one map[string]any
			if json.Unmarshal([]byte(line), &one) == nil {
				all = append(all, one)
			}
		}
		return all
	}
	spooled(t, "order", s.Post(sitetest.Order("order", "1")))
	sitetest.Eventually(t, "PHP gets it again", func() bool { return len(got()) >= 2 })
	first, again := got()[0], got()[1]
	for _, name := range slices.Sorted(maps.Keys(first)) {
		if first[name] != again[name] {
			t.Errorf("%s was %v, and is %v when it is delivered again", name, first[name], again[name])
		}
	}
	if len(first) != len(again) || first["body"] == "" {
		t.Errorf("PHP got %v, and then %v", first, again)
	}
	hang, up := filepath.Join(root, "hang"), filepath.Join(root, "up")
	writeFile(t, up, nil)
	s.ComesTo("order", "accepted")

	writeFile(t, hang, nil)
	n := len(got())
	spooled(t, "hangs", s.Post(sitetest.Order("hangs", "1")))
	sitetest.Eventually(t, "it is delivered again, and again, while the first scripts hang", func() bool { return len(got()) >= n+3 })
	if err := os.Remove(hang); err != nil {
		t.Fatal(err)
	}
	s.ComesTo("hangs", "accepted")
}
