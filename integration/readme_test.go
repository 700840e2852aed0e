package integration

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

// pages are all pages for users.
func pages(t *testing.T) (names []string) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/id/*.md", "deploy/*.md", "examples/*.md", "examples/*/*.md", "bench/*.md", "testdata/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
	}
	return names
}

// page reads one page.
func page(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// examples returns the fenced blocks of one language in a page.
func examples(t *testing.T, name, language string) (blocks []string) {
	t.Helper()
	for _, m := range fence.FindAllStringSubmatch(page(t, name), -1) {
		if m[1] == language {
			blocks = append(blocks, m[2])
		}
	}
	return blocks
}

// setSecrets provides what the examples' placeholders name, and returns the
// text with the secrets' directory replaced.
func setSecrets(t *testing.T) func(string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iak_username", "iak_api_key", "redis_password"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("IAK_USERNAME", sitetest.Username)
	t.Setenv("IAK_API_KEY", sitetest.APIKey)
	for _, name := range []string{"IAK_API_KEY_OLD", "IAK_PRODUCTION_KEY", "IAK_DEVELOPMENT_KEY", "WEBHOOK_TOKEN"} {
		t.Setenv(name, "value-of-"+name)
	}
	return func(text string) string { return strings.ReplaceAll(text, "/run/secrets", dir) }
}

// Every Caddyfile in the pages, and of every example, is formatted, and can be
// loaded.
func TestPagesCaddyfiles(t *testing.T) {
	local := setSecrets(t)
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	count := 0
	check := func(name, text string) {
		count++
		if formatted := string(caddyfile.Format([]byte(text))); formatted != text {
			t.Errorf("%s: caddy fmt would write\n%s", name, formatted)
		}
		config, err := sitetest.Adapt(local(text))
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
			return
		}
		cfg := new(caddy.Config)
		if err := caddy.StrictUnmarshalJSON(config, cfg); err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
			return
		}
		if err := caddy.Validate(cfg); err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
	for _, name := range pages(t) {
		for _, block := range examples(t, name, "caddyfile") {
			check(name, block)
		}
	}
	for _, pattern := range []string{"Caddyfile", "examples/*/Caddyfile*", "deploy/conf/Caddyfile"} {
		files, _ := filepath.Glob(pattern)
		for _, name := range files {
			check(name, page(t, name))
		}
	}
	if count < 25 {
		t.Errorf("there are %d Caddyfiles, which is too few to be all", count)
	}
}

// runRecipe runs the Caddyfile under a heading of docs/configuration.md as the only site,
// over plain HTTP, with the app in the place of its upstream, and more pairs of
// old and new text.
func runRecipe(t *testing.T, heading string, app *sitetest.App, replace ...string) *sitetest.Site {
	t.Helper()
	return runSite(t, "docs/configuration.md", "### "+heading, "shop.example.com", app, replace...)
}

// runSite runs one site of the example under a heading of a page.
func runSite(t *testing.T, name, heading, site string, app *sitetest.App, replace ...string) *sitetest.Site {
	t.Helper()
	_, section, found := strings.Cut(page(t, name), "\n"+heading+"\n")
	m := fence.FindStringSubmatch(section)
	for found && m != nil && m[1] != "caddyfile" {
		_, section, _ = strings.Cut(section, m[0])
		m = fence.FindStringSubmatch(section)
	}
	if !found || m == nil {
		t.Fatalf("%s has no section %q with an example", name, heading)
	}
	text := setSecrets(t)(m[2])
	_, block, _ := strings.Cut(text, site+" {\n")
	block, _, _ = strings.Cut(block, "\n}\n")
	if app != nil {
		replace = append(replace, "localhost:3000", app.Addr())
	}
	return sitetest.Start(t, strings.NewReplacer(replace...).Replace(block))
}

// The recipe keeps forged headers off every other path.
func TestRecipeNothingGetsAround(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := runRecipe(t, "Let nothing get around it", app)
	s.URL += "/iak"
	s.Post(sitetest.Order("one", "1")).Expect(t, "callback", 200)
	if got := app.Last(t).Header.Get("Iak-Account"); got != "shop" {
		t.Errorf("Iak-Account %q", got)
	}
	r := sitetest.ForgedRequest(t, s.URL+"/other")
	s.Do(r).Expect(t, "other path", 200)
	for name := range app.Last(t).Header {
		if strings.HasPrefix(name, "Iak-") {
			t.Errorf("%s reached the app on another path", name)
		}
	}
}

// The recipe refuses strangers before anything is read.
func TestRecipeOnlyFromIAK(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := runRecipe(t, "Only from IAK's addresses", app)
	s.URL += "/iak"
	s.Post(sitetest.Order("one", "1")).Expect(t, "a stranger", 403)
	if n := len(app.Received()); n != 0 {
		t.Errorf("the app received %d requests", n)
	}
}

// The recipe answers a refusal in JSON, with the status of the refusal.
func TestRecipeShapeTheRefusals(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := runRecipe(t, "Shape the refusals", app)
	s.URL += "/iak"
	got := s.Post(sitetest.Order("one", "1", "sign", `"`+sitetest.Sign("two")+`"`))
	got.Expect(t, "forged", 403)
	if want := `{"error":403,"reason":"signature","outcome":"rejected"}`; got.Body != want {
		t.Errorf("got %s, want %s", got.Body, want)
	}
}

// The recipe adds the secret behind IAK's URL, and it is in no log line of
// ours and in no access log.
func TestRecipeSecretInURL(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := runRecipe(t, "An app that wants a secret in its URL", app)
	s.URL += "/iak"
	s.Post(sitetest.Order("one", "1")).Expect(t, "callback", 200)
	if got, want := app.Last(t).Path, "/webhooks/iak?token=value-of-WEBHOOK_TOKEN"; got != want {
		t.Errorf("the app was asked for %s, want %s", got, want)
	}
	for _, line := range s.CallbackLines() {
		for _, v := range line {
			if text, ok := v.(string); ok && strings.Contains(text, "WEBHOOK_TOKEN") {
				t.Errorf("the log says %q", text)
			}
		}
	}
}

// The recipe answers 0 by itself and forwards the final outcome.
func TestRecipeStatusZero(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := runRecipe(t, "An app that takes status 0 for a failure", app)
	s.URL += "/iak"
	s.Post(sitetest.Order("one", "0")).Expect(t, "process", 200)
	if n := len(app.Received()); n != 0 {
		t.Errorf("status 0 reached the app")
	}
	s.Post(sitetest.Order("one", "2")).Expect(t, "failed", 200)
	if n := len(app.Received()); n != 1 {
		t.Errorf("the app received %d requests, want 1", n)
	}
}

// The two bodies of docs/semantics.md are what the game example becomes.
func TestPagesBodies(t *testing.T) {
	blocks := examples(t, "docs/semantics.md", "json")
	if len(blocks) != 2 {
		t.Fatalf("docs/semantics.md has %d bodies, want 2", len(blocks))
	}
	for i, name := range []string{"game.iak.json", "game.flat.json"} {
		if got := strings.TrimSpace(blocks[i]); got != sitetest.Reference(t, name) {
			t.Errorf("docs/semantics.md shows\n%s\nbut testdata has\n%s", got, sitetest.Reference(t, name))
		}
	}
}

// The recipe lets PHP route the callback by its new address, and leaves every
// other page alone.
func TestRecipePHPBehindRewrite(t *testing.T) {
	addr, root := startPHP(t, map[string]string{"index.php": phpEcho})
	s := runRecipe(t, "PHP behind a rewrite", nil, "unix//run/php/php8.2-fpm.sock", addr, "/var/www/shop/public", root)
	got := s.Do(callbackTo(t, s.URL+"/iak/callback"))
	got.Expect(t, "callback", 200)
	if lines := strings.Split(got.Body, "\n"); lines[1] != "/webhooks/iak" || lines[3] != "shop:one:1" {
		t.Errorf("PHP received %q", lines)
	}
	got = s.Do(callbackTo(t, s.URL+"/iak/callback?a=1&b=2"))
	if lines := strings.Split(got.Body, "\n"); len(lines) > 1 && lines[1] != "/webhooks/iak?a=1&b=2" {
		t.Errorf("PHP received %q of a callback with a query", lines)
	}
	r, _ := http.NewRequest(http.MethodGet, s.URL+"/products/5?x=1", nil)
	if page := s.Do(r); !strings.HasPrefix(page.Body, "GET\n/products/5?x=1\n") {
		t.Errorf("another page received %q", page.Body)
	}
}

// The recipe lets an answer count only when the app has acted, by what it says or does
// not say.
func TestRecipeAnswers200(t *testing.T) {
	var answer, contentType string
	app := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, _ = io.WriteString(w, answer)
	})
	const heading = "### An app that answers 200 whatever happened"
	for _, row := range []struct {
		site, contentType, answer string
		status                    int
	}{
		{"shop.example.com", "text/plain", "ok", 200},
		{"shop.example.com", "text/plain", "Order Not Found", 502},
		{"shop.example.com", "text/html", "<!doctype html><html>", 502},
		{"test.example.com", "application/json; charset=utf-8", `{"status": "OK", "result":true}`, 200},
		{"test.example.com", "application/json", `{"status":"error"}`, 502},
		{"test.example.com", "text/html", `"status":"ok"`, 502},
	} {
		answer, contentType = row.answer, row.contentType
		s := runSite(t, "docs/configuration.md", heading, row.site, app, "localhost:3001", app.Addr())
		if got := s.Do(callbackTo(t, s.URL+"/iak/callback")); got.Status != row.status {
			t.Errorf("%s, %s: status %d, want %d", row.site, row.answer, got.Status, row.status)
		}
	}
}

// The recipe gives an app one callback at a time, and loses none.
func TestRecipeOneAtATime(t *testing.T) {
	var working, more atomic.Int32
	app := sitetest.StartApp(t, func(http.ResponseWriter, *http.Request) {
		if working.Add(1) > 1 {
			more.Add(1)
		}
		time.Sleep(time.Millisecond) // the app's work
		working.Add(-1)
	})
	s := runRecipe(t, "An app that loses updates", app)
	var all sync.WaitGroup
	for i := range 30 {
		all.Go(func() {
			r := sitetest.CallbackOf(t, s.URL+"/iak/callback", sitetest.Order(fmt.Sprint("order", i), "1"))
			if got := s.Do(r); got.Status != 200 {
				t.Errorf("order%d: status %d", i, got.Status)
			}
		})
	}
	all.Wait()
	if n := more.Load(); n != 0 {
		t.Errorf("the app had another one at once %d times", n)
	}
}

// The recipe waits for an app that restarts.
func TestRecipeRestarts(t *testing.T) {
	addr := "127.0.0.1:" + sitetest.FreePort(t)
	s := runRecipe(t, "An app that restarts", nil, "localhost:3000", addr)
	reply := make(chan sitetest.Reply, 1)
	go func() { reply <- s.Do(sitetest.CallbackOf(t, s.URL+"/iak/callback", sitetest.Order("one", "1"))) }()
	sitetest.Eventually(t, "nobody answers", func() bool { return strings.Contains(s.Log(), "connection refused") })
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	(<-reply).Expect(t, "a callback while the app restarts", 200)
}

// Each Caddyfile of the page does what stands beside it: what the app refuses is
// answered 200, and delivered until the app has accepted it.
func TestPageSpool(t *testing.T) {
	shortLease(t)
	for _, row := range []struct {
		heading string
		replace []string
		app     func(n int, w http.ResponseWriter, r *http.Request) // the n'th delivery
		want    int                                                 // deliveries
		late    time.Duration                                       // the first delivery's
	}{
		{heading: "## Turn it on", want: 3, app: refuse(http.StatusInternalServerError)},
		{heading: "## Options", want: 3, app: refuse(http.StatusNotFound)},
		{heading: "### An app that knows repeats", want: 2, replace: []string{"\t\tspool\n", "\t\tspool\n\t\tupstream_timeout 400ms\n"}, app: func(n int, _ http.ResponseWriter, r *http.Request) {
			if n == 1 {
				<-r.Context().Done()
			}
		}},
		{heading: "### An app that answers 200 to everything", want: 2, replace: []string{"delay 10s", "delay 1s"}, late: time.Second, app: func(n int, w http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				_, _ = io.WriteString(w, "Order not found")
			}
		}},
	} {
		t.Run(row.heading, func(t *testing.T) {
			at := make(chan time.Time, 10)
			var n atomic.Int64
			app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
				at <- time.Now()
				row.app(int(n.Add(1)), w, r)
			})
			s := runSite(t, "docs/spool.md", row.heading, "shop.example.com", app, row.replace...)
			start := time.Now()
			spooled(t, "a callback", s.Do(callbackTo(t, s.URL+"/iak/callback")))
			if waited := (<-at).Sub(start); waited < row.late {
				t.Errorf("delivered after %s, want %s at least", waited, row.late)
			}
			sitetest.Eventually(t, "the app accepts it", func() bool { return strings.Contains(s.Log(), `"msg":"redelivery","outcome":"forwarded"`) })
			if got := len(app.Received()); got != row.want {
				t.Errorf("%d deliveries, want %d", got, row.want)
			}
			again := s.Do(callbackTo(t, s.URL+"/iak/callback"))
			if again.Status != http.StatusOK || again.Header.Get("Idempotent-Replayed") != "true" {
				t.Errorf("a repeat is answered %d, replayed %q", again.Status, again.Header.Get("Idempotent-Replayed"))
			}
		})
	}
}

// refuse is an app that refuses the first two deliveries.
func refuse(status int) func(int, http.ResponseWriter, *http.Request) {
	return func(n int, w http.ResponseWriter, _ *http.Request) {
		if n <= 2 {
			w.WriteHeader(status)
		}
	}
}

// The page's Caddyfile keeps what comes while Redis is down.
func TestPageSpoolRedisDown(t *testing.T) {
	redis := redistest.Start(t, "--requirepass", "redis_password")
	app := sitetest.StartApp(t, nil)
	s := runSite(t, "docs/spool.md", "## When Redis does not answer", "shop.example.com", app, "localhost:6379", redis.Addr())
	redis.Kill()
	spooled(t, "while Redis is down", s.Do(callbackTo(t, s.URL+"/iak/callback")))
	if n := len(app.Received()); n != 0 {
		t.Errorf("the app received %d requests while Redis is down", n)
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "caddy", "iak_callback", "outage.sqlite")); err != nil {
		t.Error(err)
	}
	redis.Start()
	sitetest.Eventually(t, "the app has it", func() bool { return len(app.Received()) == 1 })
}

// The commands of "In the morning", one after the other, do what the page says:
// order001 and order002 are held, order003 is dead, order004 waits.
func TestPageSpoolMorning(t *testing.T) {
	shortLease(t)
	var mended atomic.Bool
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		switch key := r.Header.Get("Idempotency-Key"); {
		case mended.Load():
		case strings.Contains(key, "order001"), strings.Contains(key, "order002"):
			<-r.Context().Done()
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	block := func(spool string) string {
		return "iak_callback {\n" + strings.Replace(sitetest.Account, "test", "shop", 1) + "\nupstream_timeout 400ms\nspool {\n" + spool + "\n}\n}\nreverse_proxy " + app.Addr()
	}
	s := sitetest.StartOperated(t, block("backoff 50ms 100ms\nmax_age 1s"))
	show := func(refID string) string {
		t.Helper()
		return sitetest.Records(t, s.Must("show", "shop", refID, "--json"))[0].State
	}
	comesTo := func(refID, state string) {
		t.Helper()
		sitetest.Eventually(t, refID+" is "+state, func() bool { return show(refID) == state })
	}
	spooled(t, "order003", s.Post(sitetest.Order("order003", "1")))
	comesTo("order003", "dead")
	s.Reload(block("backoff 1h 1h"))
	for _, refID := range []string{"order001", "order002", "order004"} {
		spooled(t, refID, s.Post(sitetest.Order(refID, "1")))
	}
	comesTo("order001", "held")
	comesTo("order002", "held")
	mended.Store(true)

	_, morning, _ := strings.Cut(page(t, "docs/spool.md"), "\n## In the morning\n")
	morning, _, _ = strings.Cut(morning, "\n## ")
	printed := make(map[string]string)
	for _, block := range fence.FindAllStringSubmatch(morning, -1) {
		for line := range strings.Lines(block[2]) {
			line = strings.TrimSpace(strings.TrimPrefix(line, "caddy iak-callback "))
			out, err := answering(s, "y\n", strings.Fields(line)...)
			if err != nil {
				t.Errorf("%s: %v", line, err)
			}
			printed[line] = out
		}
	}
	for line, want := range map[string]string{
		"list --state held":            "order001",
		"accept shop order001":         "accepted",
		"release shop order002":        "spooled",
		"list --state dead":            "order003",
		"show shop order003":           "500  the app refused",
		"redeliver --dead --since 24h": "1 callback is due",
		"list --state spooled":         "order004",
		"redeliver --spooled":          "due",
	} {
		if !strings.Contains(printed[line], want) {
			t.Errorf("%s printed %q, want %q in it", line, printed[line], want)
		}
	}
	for _, refID := range []string{"order001", "order002", "order003", "order004"} {
		comesTo(refID, "accepted")
	}
	for refID, want := range map[string]int{"order001": 1, "order002": 2} {
		got := 0
		for _, r := range app.Received() {
			if strings.HasPrefix(r.Header.Get("Idempotency-Key"), "shop:"+refID+":") {
				got++
			}
		}
		if got != want {
			t.Errorf("%s reached the app %d times, want %d", refID, got, want)
		}
	}
}

// The page's site leaves no way around the module, also not by a route in the query.
func TestPageExistingApp(t *testing.T) {
	addr, root := startPHP(t, map[string]string{"index.php": phpEcho})
	s := runSite(t, "docs/existing-app.md", "## 4. Let nothing get around it", "shop.example.com", nil,
		"unix//run/php/php8.2-fpm.sock", addr, "/var/www/shop/public", root)
	forged := func(path string) int {
		return s.Do(sitetest.CallbackOf(t, s.URL+path, sitetest.Order("one", "1", "sign", sitetest.Quote(sitetest.Sign("two"))))).Status
	}
	for path, want := range map[string]int{
		"/iak/callback": 403, "/iak/callback/": 403, "/IAK/callback": 403, "/index.php/iak/callback": 403,
		"/index.php?/iak/callback": 404, "/?/iak/callback": 404, "/index.php?%2Fiak/callback": 404, "/products?page=2": 200,
	} {
		if got := forged(path); got != want {
			t.Errorf("%s: status %d, want %d", path, got, want)
		}
	}
	s.Do(callbackTo(t, s.URL+"/iak/callback")).Expect(t, "a callback", 200)
}

func callbackTo(t *testing.T, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(sitetest.Order("one", "1")))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	return r
}

// A path that a framework takes for the same route does not get around the
// module.
func TestRecipeSiblingPaths(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := runRecipe(t, "Rotate a key", app)
	for _, path := range []string{"/iak/callback/", "/iak/callback%2F", "/iak/callback/x", "/IAK/callback"} {
		r := sitetest.ForgedRequest(t, s.URL+path)
		r.Body = io.NopCloser(strings.NewReader(sitetest.Order("one", "1", "sign", sitetest.Quote(sitetest.Sign("two")))))
		r.ContentLength = -1
		s.Do(r).Expect(t, path, 403)
	}
	if n := len(app.Received()); n != 0 {
		t.Errorf("%d forged callbacks reached the app", n)
	}
}

// globalOf is the global block of the n-th Caddyfile under a heading.
func globalOf(t *testing.T, heading string, n int) string {
	t.Helper()
	_, section, found := strings.Cut(page(t, "docs/configuration.md"), "\n### "+heading+"\n")
	var blocks []string
	for _, m := range fence.FindAllStringSubmatch(section, -1) {
		if m[1] == "caddyfile" {
			blocks = append(blocks, m[2])
		}
	}
	if !found || len(blocks) <= n {
		t.Fatalf("there is no Caddyfile %d under %q", n, heading)
	}
	inner, _, _ := strings.Cut(strings.TrimPrefix(blocks[n], "{\n"), "\n}\n")
	return inner
}

// startNginx runs an nginx that ends TLS, with a location as a page has it, and returns its
// url and a client for it.
func startNginx(t *testing.T, location string) (url string, client *http.Client) {
	t.Helper()
	cert, dir, port := redistest.NewCertificate(t), t.TempDir(), sitetest.FreePort(t)
	writeFile(t, filepath.Join(dir, "nginx.conf"), []byte(`daemon off;
pid `+dir+`/nginx.pid;
error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path `+dir+`/body;
	proxy_temp_path `+dir+`/proxy;
	fastcgi_temp_path `+dir+`/fastcgi;
	uwsgi_temp_path `+dir+`/uwsgi;
	scgi_temp_path `+dir+`/scgi;
	server {
		listen 127.0.0.1:`+port+` ssl;
		ssl_certificate `+cert.Settings[0][1]+`;
		ssl_certificate_key `+cert.Settings[1][1]+`;
		`+location+`
	}
}
`))
	startCommand(t, exec.Command(daemon(t, "nginx"), "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", "stderr"))
	authority, err := os.ReadFile(cert.Authority)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	client = &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	url = "https://127.0.0.1:" + port
	sitetest.Eventually(t, "nginx answers", func() bool {
		answer, err := client.Get(url)
		if err == nil {
			answer.Body.Close()
		}
		return err == nil
	})
	return url, client
}

// Behind a real nginx that ends TLS, an app that forces https takes the callback, and the
// log names the sender; without the recipe it answers each with a redirect. A forged
// sender's header does not come through.
func TestRecipeBehindNginx(t *testing.T) {
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Forwarded-Proto") != "https" {
			http.Redirect(w, r, "https://shop.example.com/", http.StatusMovedPermanently)
		}
	})
	block := sitetest.Block() + "reverse_proxy " + app.Addr()
	s := sitetest.Start(t, block)
	var location string
	for _, m := range fence.FindAllStringSubmatch(page(t, "docs/configuration.md"), -1) {
		if m[1] == "nginx" {
			location = m[2]
		}
	}
	if !strings.Contains(page(t, "docs/existing-app.md"), location) {
		t.Error("docs/existing-app.md has another location")
	}
	var url string
	var client *http.Client
	front := func() { // Caddy has another port each time it opens
		url, client = startNginx(t, strings.ReplaceAll(location, "http://127.0.0.1:8088", s.URL))
	}
	post := func(path, refID string) sitetest.Reply {
		t.Helper()
		r := sitetest.CallbackOf(t, url+path, sitetest.Order(refID, "1"))
		r.Header.Set("X-Forwarded-For", "203.0.113.7")
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		return sitetest.Reply{Status: answer.StatusCode}
	}
	front()
	post("/iak/callback", "before").Expect(t, "without the recipe", 301)
	s.Reopen(t, globalOf(t, "Behind nginx, a load balancer or Cloudflare", 0), block)
	front()
	for i, path := range []string{"/iak/callback", "/iak/callback/", "/IAK/Callback", "/index.php/iak/callback?a=b"} {
		post(path, fmt.Sprint("after", i)).Expect(t, "with the recipe, "+path, 200)
	}
	lines := s.CallbackLines()
	if ip := lines[len(lines)-1]["client_ip"]; ip != "127.0.0.1" {
		t.Errorf("client_ip %v", ip)
	}
	if h := app.Last(t).Header.Get("X-Forwarded-For"); strings.Contains(h, "203.0.113.7") {
		t.Errorf("X-Forwarded-For %q", h)
	}
}

// With the PROXY protocol the listener tells who has sent a callback.
func TestRecipeProxyProtocol(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	block := sitetest.Block() + "reverse_proxy " + app.Addr()
	s := sitetest.Start(t, block)
	global := strings.ReplaceAll(globalOf(t, "Behind nginx, a load balancer or Cloudflare", 1), "10.0.0.0/8", "127.0.0.1/32")
	s.Reopen(t, strings.ReplaceAll(global, "\t\t\ttls\n", ""), block)
	body := sitetest.Order("proxied", "1")
	conn, answers := s.Raw(t, "PROXY TCP4 52.220.38.194 10.0.0.1 443 443\r\n"+sitetest.Head("Content-Type: application/json", fmt.Sprint("Content-Length: ", len(body)))+body)
	defer conn.Close()
	sitetest.RawReply(t, answers).Expect(t, "by the PROXY protocol", 200)
	if h := app.Last(t).Header.Get("X-Forwarded-For"); h != "52.220.38.194" {
		t.Errorf("X-Forwarded-For %q", h)
	}
	if lines := s.LinesAfter(1); lines[0]["client_ip"] != "52.220.38.194" {
		t.Errorf("%v", lines[0])
	}
}
