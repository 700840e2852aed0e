package integration

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// startConsole runs the console as its user does, and returns the address that it prints.
func startConsole(t *testing.T, s *sitetest.Operated) (once string) {
	t.Helper()
	cmd := exec.Command(sitetest.BuiltCaddy(t), "iak-callback", "console", "--address", s.Admin)
	cmd.Env = append(cmd.Environ(), "IAK_USERNAME="+sitetest.Username, "IAK_API_KEY="+sitetest.APIKey)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	address := regexp.MustCompile(`http://127\.0\.0\.1:\d+/login\?token=[0-9a-f]{64}`)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if once = address.FindString(lines.Text()); once != "" {
			return once
		}
	}
	t.Fatal("the console prints no address")
	return ""
}

// hostileRef is in every field that comes from outside.
const hostileRef = `<script>document.title='taken'</script>"'&`

// consoleSite has an order in each state that an operator meets.
func consoleSite(t *testing.T) *sitetest.Operated {
	t.Helper()
	shortLease(t)
	iak, app := startOracle(t), startMoody(t)
	s := sitetest.StartOperated(t, "respond 404")
	s.Reload(sitetest.Block("callback_url "+s.URL+"/callback", "upstream_timeout 500ms", confirmOption(iak, "timeout 400ms"), "spool {\nbackoff 1h 1h\nanswer_within 400ms\n}") +
		"@hangs header_regexp Idempotency-Key hangs\nhandle @hangs {\nreverse_proxy " + startHanging(t) + "\n}\nhandle {\nreverse_proxy " + app.Addr() + "\n}")
	for _, ref := range []string{"accepted", "spooled", "hangs", hostileRef} {
		iak.answers(ref, status(ref, "1"))
	}
	s.Post(sitetest.Order("accepted", "1", "sn", `"5ecret-sn"`)).Expect(t, "accepted", 200)
	s.Post(sitetest.Order(hostileRef, "1", "message", sitetest.Quote(hostileRef))).Expect(t, "hostile", 200)
	app.status.Store(500)
	spooled(t, "spooled", s.Post(sitetest.Order("spooled", "1", "sn", `"5ecret-sn"`)))
	s.Post(sitetest.Order("hangs", "1"))
	s.ComesTo("hangs", "held")
	app.status.Store(0)
	s.Post(sitetest.Order("forged", "1", "sign", sitetest.Quote(sitetest.Sign("other"))))
	return s
}

func startHanging(t *testing.T) string {
	return sitetest.StartApp(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }).Addr()
}

// Without JavaScript, and before any page: who may come in, and what he gets.
func TestConsoleDoor(t *testing.T) {
	s := consoleSite(t)
	once := startConsole(t, s)
	base, _, _ := strings.Cut(once, "/login")
	jar, _ := cookiejar.New(nil)
	client := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	do := func(method, address string, change ...func(r *http.Request)) (int, string, http.Header) {
		t.Helper()
		r, err := http.NewRequest(method, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range change {
			c(r)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		return answer.StatusCode, string(body), answer.Header
	}
	if code, _, _ := do("GET", base+"/"); code != 403 {
		t.Errorf("without the address: %d", code)
	}
	if code, _, _ := do("GET", base+"/login?token="+strings.Repeat("0", 64)); code != 403 {
		t.Errorf("a wrong token: %d", code)
	}
	code, _, h := do("GET", once)
	if cookie := h.Get("Set-Cookie"); code != 200 || !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Strict") {
		t.Errorf("the address: %d, cookie %q", code, cookie)
	}
	if code, _, _ := do("GET", once); code != 403 {
		t.Errorf("the address, a second time: %d", code)
	}
	code, body, h := do("GET", base+"/")
	if code != 200 || !strings.Contains(body, "Overview") || h.Get("Cache-Control") != "no-store" || !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("%d %v", code, h)
	}
	if strings.Contains(body, "style=") || regexp.MustCompile(`(?i)<script>|\son[a-z]+=`).MatchString(strings.ReplaceAll(body, "&lt;script&gt;", "")) {
		t.Error("the page has something inline")
	}
	if code, _, _ := do("GET", base+"/", func(r *http.Request) { r.Host = "evil.example" }); code != http.StatusMisdirectedRequest {
		t.Errorf("another host: %d", code)
	}
	for _, change := range []func(r *http.Request){
		func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
		func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
	} {
		if code, _, _ := do("POST", base+"/act", change); code != 403 {
			t.Errorf("from another site: %d", code)
		}
	}
	for path, words := range map[string]string{
		"/": "spooled", "/recent": "rejected", "/orders": "accepted", "/orders?state=held": "hangs", "/order?account=test&ref_id=spooled": "How the last deliveries have ended",
		"/order?account=test&ref_id=nobody": "Nothing is remembered", "/orders?ref_id=spool": "1 / 1, 1 orders", "/orders?state=dead": "No order is selected",
		"/recent?ref_id=nothing": "No such callback", "/act?do=forget&account=test&ref_id=accepted": "a repeat reaches the app again", "/act?do=x": "no such action",
		"/bulk?state=spooled": "1 callbacks would be delivered again", "/bulk?state=dead": "nothing is to be done", "/ask": "Nothing is ordered", "/send": "IAK_USERNAME",
		"/static/console.css": "tabular-nums", "/static/console.js": "use strict", "/export?state=held": "test,hangs,held,success", "/export?format=ndjson&state=held": `"ref_id":"hangs"`,
	} {
		code, body, _ := do("GET", base+path)
		if !strings.Contains(strings.ToLower(body), strings.ToLower(words)) || strings.Contains(body, "5ecret") || (code != 200 && !strings.Contains(path, "do=x")) {
			t.Errorf("%s: %d, without %q: %s", path, code, words, body)
		}
	}
	if _, body, _ := do("GET", base+"/", func(r *http.Request) { r.Header.Set("Accept-Language", "id-ID,id") }); !strings.Contains(body, "Ringkasan") || !strings.Contains(body, `lang="id"`) {
		t.Error("it is not in Indonesian")
	}
	if _, body, _ := do("GET", base+"/order?account=test&ref_id=hangs&lang=id"); !strings.Contains(body, "Lihat pesanan di aplikasi") {
		t.Error("the switch does not work")
	}
	if _, body, _ := do("GET", base+"/orders"); !strings.Contains(body, "Pesanan") {
		t.Error("the language is not kept")
	}
}

// By clicking in a real browser: an order is looked at, revealed, settled and delivered
// again, IAK is asked, a test is sent; what comes from outside stays text.
func TestConsoleClicks(t *testing.T) {
	s := consoleSite(t)
	once := startConsole(t, s)
	base, _, _ := strings.Cut(once, "/login")
	ctx := browser(t)
	do := func(actions ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		for _, a := range actions {
			if err := chromedp.Do(ctx, a); err != nil {
				t.Fatal(err)
			}
		}
	}
	text := func() string {
		got, _ := chromedp.Run(ctx, chromedp.Text("body")) // while a page is being left there is none
		return got
	}
	says := func(words string) {
		t.Helper()
		sitetest.Eventually(t, "the page says "+words, func() bool { return strings.Contains(text(), words) })
	}
	link := func(name string) chromedp.Search {
		return chromedp.Search(`//main//a[normalize-space()="` + name + `"]`)
	}
	button := func(name string) chromedp.Search {
		return chromedp.Search(`//main//button[starts-with(normalize-space(), "` + name + `")]`)
	}
	do(chromedp.Navigate(once))
	says("Overview")
	says("Stores and IAK")
	do(chromedp.Navigate(base+"/orders?state=held"), chromedp.Click(link("hangs")))
	says("Nobody knows whether the app has acted")
	do(chromedp.Click(link("Accept")))
	says("You say that the app HAS acted")
	do(chromedp.Click(button("Accept")))
	says("Accepted.")
	s.ExpectState("hangs", "accepted")

	do(chromedp.Navigate(base+"/orders?state=spooled"), chromedp.Click(link("spooled")))
	says("the app, or a handler in its place, has not accepted it")
	do(chromedp.Click(button("Reveal")))
	says("5ecret-sn")
	if !strings.Contains(s.Log(), `"operation":"reveal"`) {
		t.Error("the reveal is not logged")
	}
	do(chromedp.Navigate(base + "/bulk?state=spooled"))
	says("1 callbacks would be delivered again")
	do(chromedp.Click(button("Deliver them")))
	says("are due")
	s.ComesTo("spooled", "accepted")

	do(chromedp.Navigate(base + "/orders"))
	says(hostileRef)
	do(chromedp.Navigate(base + "/recent"))
	says(hostileRef)
	do(chromedp.Navigate(base + "/orders?ref_id=%3Cscript%3Edocument.title%3D%27taken%27%3C%2Fscript%3E&account=%22%3E%3Cscript%3Edocument.title%3D%27taken%27%3C%2Fscript%3E"))
	if title, err := chromedp.Run(ctx, chromedp.Title()); err != nil || title != "IAK callbacks" {
		t.Errorf("the title is %q, %v", title, err)
	}

	do(chromedp.Navigate(base+"/ask"), chromedp.SendKeys(chromedp.Search(`//input[@name="account"]`), "test"), chromedp.SendKeys(chromedp.Search(`//input[@name="ref_id"]`), "accepted"), chromedp.Click(button("Ask")))
	says("IAK says: success")
	if strings.Contains(text(), "0817777215") {
		t.Error("the customer is shown")
	}
	do(chromedp.Navigate(base+"/send"), chromedp.Click(button("Send")))
	says("It is kept")
	do(chromedp.Navigate(base+"/act?do=forget&account=test&ref_id=accepted"), chromedp.Click(button("Forget")))
	says("Nothing is remembered of this order")

	// A page that somebody looks at goes on by itself.
	do(chromedp.Navigate(base + "/recent"))
	s.Post(sitetest.Order("comes-later", "1"))
	says("comes-later")

	// By keyboard alone: the first stop is the way past the navigation, then the pages.
	do(chromedp.Navigate(base+"/"), chromedp.KeyEvent(kb.Tab))
	focused, err := chromedp.Run(ctx, chromedp.Evaluate[string]("document.activeElement.textContent"))
	if err != nil || focused != "Skip to the content" {
		t.Errorf("the first stop is %q, %v", focused, err)
	}
	do(chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter))
	says("of the last 1,000 callbacks")

	// On a narrow screen nothing is wider than it.
	for _, path := range []string{"/", "/recent", "/orders", "/order?account=test&ref_id=spooled", "/ask", "/send"} {
		do(chromedp.Navigate(base + path))
		if err := chromedp.Do(ctx, chromedp.EmulateViewport(360, 740)); err != nil {
			t.Fatal(err)
		}
		wide, err := chromedp.Run(ctx, chromedp.Evaluate[int]("document.documentElement.scrollWidth"))
		if err != nil || wide > 360 {
			t.Errorf("%s is %d wide on a screen of 360, %v", path, wide, err)
		}
	}
}

// A hundred thousand orders are listed, counted, paged and exported, each within seconds.
func TestConsoleMany(t *testing.T) {
	redis, app := redistest.Start(t), sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, sitetest.Block("redis "+redis.URL())+"reverse_proxy "+app.Addr())
	s.Post(sitetest.Order("one", "1")).Expect(t, "one", 200)
	client, ctx := redis.Client(), t.Context()
	record, err := client.Get(ctx, "iak:test:one").Result()
	if err != nil {
		t.Fatal(err)
	}
	const many = 100_000
	pipe := client.Pipeline()
	for i := range many {
		if pipe.Set(ctx, fmt.Sprintf("iak:test:order%06d", i), record, time.Hour); i%1000 == 999 {
			if _, err := pipe.Exec(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	once := startConsole(t, s)
	base, _, _ := strings.Cut(once, "/login")
	jar, _ := cookiejar.New(nil)
	browser := &http.Client{Jar: jar, Timeout: time.Minute}
	get := func(path string) string {
		t.Helper()
		start := time.Now()
		answer, err := browser.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s, %d KiB", path, time.Since(start).Round(time.Millisecond), len(body)>>10)
		return string(body)
	}
	if answer, err := browser.Get(once); err != nil || answer.StatusCode != 200 {
		t.Fatal(err)
	}
	if !strings.Contains(get("/"), "100001</span>") {
		t.Error("they are not counted")
	}
	for _, page := range []string{"1", "1001"} {
		if body := get("/orders?page=" + page); !strings.Contains(body, page+" / 1001, 100001 orders") || strings.Count(body, "/order?account=test") < 1 || len(body) > 200<<10 {
			t.Errorf("page %s has %d orders in %d bytes", page, strings.Count(body, "/order?account=test"), len(body))
		}
	}
	if body := get("/orders?ref_id=order09999"); strings.Count(body, `href="/order?account=test`) != 10 {
		t.Errorf("a part of a ref_id finds %d", strings.Count(body, `href="/order?account=test`))
	}
	if lines := strings.Count(get("/export?format=csv"), "\n"); lines != many+2 {
		t.Errorf("the export has %d lines", lines)
	}
}
