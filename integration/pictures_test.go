package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/chromedp/chromedp"
)

// The pictures of docs/pictures are of a real run: scripts/pictures makes them anew. Without
// IAK_PICTURES, a directory, they are made and not kept.
func TestPictures(t *testing.T) {
	shortLease(t)
	dir := os.Getenv("IAK_PICTURES")
	if dir == "" {
		dir = t.TempDir()
	}
	iak, app := startOracle(t), startMoody(t)
	s := sitetest.StartOperated(t, "respond 404")
	site := func(account string) string {
		return strings.Replace(sitetest.Block("redis "+redistest.Start(t).URL(), "callback_url "+s.URL+"/iak/callback", "upstream_timeout 500ms", confirmOption(iak, "timeout 400ms"), "spool {\nbackoff 1h 1h\nanswer_within 400ms\n}"), "account test", "account "+account, 1)
	}
	s.Reload(site("shop") + "@hangs header_regexp Idempotency-Key 4711\nhandle @hangs {\nreverse_proxy " + startHanging(t) + "\n}\nhandle {\nreverse_proxy " + app.Addr() + "\n}")
	iak.forAll(func(w http.ResponseWriter, _ *http.Request, q map[string]string) bool {
		write(w, status(q["ref_id"], "1"))
		return true
	})
	for i := range 9 {
		s.Post(sitetest.Order(fmt.Sprint("INV-2026-", 4702+i), "1", "sn", withSN)).Expect(t, "a success", 200)
	}
	s.Post(sitetest.Order("INV-2026-4709", "1", "sn", withSN)).Expect(t, "a repeat", 200)
	denied(t, "a forgery", s.Post(sitetest.Order("INV-2026-4720", "2")))
	s.Post(sitetest.Order("INV-2026-4711", "1"))
	sitetest.Eventually(t, "one is held", func() bool {
		out, err := s.Command("list", "--state", "held")
		return err == nil && strings.Contains(out, "4711")
	})
	app.status.Store(503)
	for i := range 3 {
		spooled(t, "refused", s.Post(sitetest.Order(fmt.Sprint("INV-2026-", 4712+i), "1", "sn", withSN)))
	}
	s.Post(sitetest.Order("INV-2026-4715", "1", "sign", sitetest.Quote(sitetest.Sign("other"))))

	once := startConsole(t, s)
	base, _, _ := strings.Cut(once, "/login")
	ctx := browser(t)
	if err := chromedp.Do(ctx, chromedp.Navigate(once)); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"console.png": "/?lang=en", "console-order.png": "/order?account=shop&ref_id=INV-2026-4712&lang=en", "console-id.png": "/?lang=id",
	} {
		if err := chromedp.Do(ctx, chromedp.EmulateViewport(1100, 700)); err != nil {
			t.Fatal(err)
		}
		if err := chromedp.Do(ctx, chromedp.Navigate(base+path)); err != nil {
			t.Fatal(err)
		}
		picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
		if err != nil || len(picture) < 10_000 {
			t.Fatalf("%s: %d bytes, %v", name, len(picture), err)
		}
		writeFile(t, filepath.Join(dir, name), picture)
	}
}
