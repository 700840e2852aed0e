package integration

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// askSite is a site with a callback_url that only IAK's addresses can reach.
func askSite(s *sitetest.Operated, iak *oracle, app string, options ...string) string {
	url := strings.Replace(s.URL, "127.0.0.1", "shop.example.com", 1)
	return "@iak {\npath /iak/callback\nremote_ip 52.220.38.194\nhost shop.example.com\n}\nhandle @iak {\n" +
		sitetest.Block(append(options, "callback_url "+url+"/iak/callback", confirmOption(iak))...) + "reverse_proxy " + app + "\n}\nrespond 404"
}

// ask tells what IAK says with the goods masked; --deliver brings it to the app through
// the site's own routes, once.
func TestAskCommand(t *testing.T) {
	iak, app := startOracle(t), startMoody(t)
	s := sitetest.StartOperated(t, "respond 404")
	block := askSite(s, iak, app.Addr())
	reload := func(block string) { // the site answers to any host
		text := strings.Replace(s.Caddyfile(block), "\n"+s.URL+" {", "\nhttp://:"+s.URL[strings.LastIndex(s.URL, ":")+1:]+" {", 1)
		config, err := sitetest.Adapt(strings.Replace(text, "\tadmin off\n", "\tadmin "+s.Admin+"\n", 1))
		if err == nil {
			err = s.LoadConfig(config)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	reload(block)

	iak.answers("lost", status("lost", "1", "sn", `"5ecret-sn"`))
	out := s.Must("ask", "test", "lost")
	if !strings.Contains(out, "IAK says         success") || strings.Contains(out, "5ecret-sn") || strings.Contains(out, "0817777215") || !strings.Contains(out, "***215") || !strings.Contains(out, "tr_id            3482") {
		t.Errorf("it prints %q", out)
	}
	if out = s.Must("ask", "test", "lost", "--reveal"); !strings.Contains(out, "5ecret-sn") || !strings.Contains(out, "0817777215") {
		t.Errorf("it prints %q", out)
	}
	if len(app.Received()) != 0 {
		t.Error("something reached the app without --deliver")
	}
	if out = s.Must("ask", "test", "lost", "--deliver"); !strings.Contains(out, "the app has accepted it") {
		t.Errorf("it prints %q", out)
	}
	r := app.Last(t)
	if r.Path != "/iak/callback" || r.Header.Get("Iak-Source") != "check-status" || r.Header.Get("Iak-Confirmed") != "true" || r.Header.Get("Idempotency-Key") != "test:lost:1" ||
		!strings.Contains(r.Body, `"sn":"5ecret-sn"`) || !strings.Contains(r.Body, sitetest.Sign("lost")) || r.Header.Get("X-Forwarded-For") != "52.220.38.194" {
		t.Errorf("the app got %s %v %s", r.Path, r.Header, r.Body)
	}
	s.ExpectState("lost", "accepted")
	asked := iak.questions("lost")
	if out = s.Must("ask", "test", "lost", "--deliver"); !strings.Contains(out, "the app had accepted it before") || len(app.Received()) != 1 {
		t.Errorf("again, it prints %q, %d reached the app", out, len(app.Received()))
	}
	if n := iak.questions("lost") - asked; n != 1 {
		t.Errorf("%d questions for one ask --deliver, want one", n)
	}

	iak.answers("open", status("open", "0"))
	s.Refuses("the order has not ended", "ask", "test", "open", "--deliver")
	s.Refuses("the order has not ended", "ask", "test", "unknown")
	s.Refuses("2 of 3 orders have not ended", "ask", "test", "open", "lost", "unknown")
	iak.answers("refused", status("refused", "2", "rc", `"102"`))
	s.Refuses("the order has not ended", "ask", "test", "refused", "--deliver")
	if out, _ = s.Command("ask", "test", "refused"); !strings.Contains(out, "register the address") {
		t.Errorf("it prints %q", out)
	}
	app.status.Store(500)
	iak.answers("later", status("later", "2"))
	s.Refuses("the order has not ended", "ask", "test", "later", "--deliver")
	if out, _ = s.Command("ask", "test", "later", "--deliver"); !strings.Contains(out, "app_failed") {
		t.Errorf("it prints %q", out)
	}
	app.status.Store(0)
	s.Refuses("has the account", "ask", "nobody", "lost")

	// From standard input, with ends of lines as Windows writes them, and empty lines.
	cmd := sitetest.Command()
	var printed strings.Builder
	cmd.SetOut(&printed)
	cmd.SetErr(&printed)
	cmd.SilenceErrors = true
	cmd.SetIn(strings.NewReader("lost\r\n\nlater\n"))
	cmd.SetArgs([]string{"ask", "--address", s.Admin, "test", "--deliver", "--json"})
	if err := cmd.Execute(); err != nil {
		t.Errorf("%v: %s", err, printed.String())
	}
	for line := range strings.Lines(printed.String()) {
		var a struct {
			RefID, Standing, Status string
			Delivery                struct {
				Outcome string
				Done    bool
			}
		}
		if err := json.Unmarshal([]byte(line), &a); err != nil || a.Standing != "final" || !a.Delivery.Done {
			t.Errorf("%s: %v", line, err)
		}
	}
	s.ExpectState("later", "accepted")

	for target, want := range map[string]int{
		"?account=test&ref_id=lost": 200, "?account=test": 400, "?ref_id=lost": 400, "?account=nobody&ref_id=lost": 404,
		"?account=test&ref_id=lost&deliver=yes": 400, "?account=test&ref_id=" + strings.Repeat("x", 256): 400, "?account=test&ref_id=lost&x=y": 400,
	} {
		s.Ask(http.MethodPost, sitetest.AskPath+target).Expect(t, target, want)
	}
	s.Ask(http.MethodGet, sitetest.AskPath+"?account=test&ref_id=lost").Expect(t, "GET", 405)

	reload(strings.Replace(block, "/iak/callback\n", "/moved\n", 1))
	if out, err := s.Command("ask", "test", "lost", "--deliver"); err == nil || !strings.Contains(out, "no route of this configuration leads") {
		t.Errorf("%v, it prints %q", err, out)
	}
	reload(sitetest.Block(confirmOption(iak)) + "reverse_proxy " + app.Addr())
	s.Refuses("has no callback_url", "ask", "test", "lost", "--deliver")
	if strings.Contains(s.Log(), "5ecret-sn") {
		t.Error("goods are in the log")
	}
}

// What is handed in while the app is down is kept, and says where it comes from when it
// is delivered.
func TestAskDeliverSpool(t *testing.T) {
	iak, app := startOracle(t), startMoody(t)
	s := sitetest.StartOperated(t, "respond 404")
	s.Reload(sitetest.Block("callback_url "+s.URL+"/iak/callback?a=b", confirmOption(iak), "spool {\nbackoff 100ms 300ms\n}") + "reverse_proxy " + app.Addr())
	app.status.Store(500)
	iak.answers("order", status("order", "1"))
	if out := s.Must("ask", "test", "order", "--deliver"); !strings.Contains(out, "it is kept") {
		t.Errorf("it prints %q", out)
	}
	sitetest.Eventually(t, "it is delivered again", func() bool { return len(attempts(app.App, "order")) >= 2 })
	app.status.Store(0)
	s.ComesTo("order", "accepted")
	for _, r := range app.Received() {
		if r.Header.Get("Iak-Source") != "check-status" || r.Header.Get("Iak-Confirmed") != "true" || r.Path != "/iak/callback?a=b" {
			t.Errorf("the app got %s %v", r.Path, r.Header)
		}
	}
	if n := iak.questions("order"); n != 1 {
		t.Errorf("IAK was asked %d times, want once", n)
	}
	lines := s.LinesAfter(1)
	if lines[0]["source"] != "check-status" {
		t.Errorf("the log says %v", lines[0])
	}
}

// A sender cannot say that he is check-status.
func TestAskForged(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, sitetest.Block(confirmOption(iak))+"reverse_proxy "+app.Addr())
	iak.answers("order", status("order", "1"))
	r := sitetest.CallbackOf(t, s.URL+"/callback?source=check-status", sitetest.Order("order", "2"))
	for _, name := range []string{"Iak-Source", "Iak-Confirmed", "iak_source", "Iak_Confirmed"} {
		r.Header[name] = []string{"check-status"}
	}
	denied(t, "a forgery", s.Do(r))
	r = sitetest.CallbackOf(t, s.URL+"/callback", sitetest.Order("order", "1"))
	r.Header["Iak-Source"] = []string{"check-status"}
	s.Do(r).Expect(t, "a right one", 200)
	if h := app.Last(t).Header; h.Get("Iak-Source") != "" || h.Get("Iak-Confirmed") != "true" {
		t.Errorf("the app got %v", h)
	}
}

// IAK is asked with each key of the account until it takes one.
func TestAskKeys(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, "iak_callback {\naccount test 089999999999 old-key\n"+sitetest.Account+"\naccount test 088888888888 other-key\n"+confirmOption(iak)+"\n}\nreverse_proxy "+app.Addr())
	iak.forAll(func(w http.ResponseWriter, _ *http.Request, q map[string]string) bool {
		if q["username"] != sitetest.Username || q["sign"] != sitetest.Sign("order") {
			write(w, `{"data":{"rc":"204","message":"WRONG","status":2}}`)
			return true
		}
		return false
	})
	iak.answers("order", status("order", "2"))
	if out := s.Must("ask", "test", "order"); !strings.Contains(out, "failed") {
		t.Errorf("it prints %q", out)
	}
}

// PHP that never answers keeps nobody waiting for it.
func TestAskPHPNeverAnswers(t *testing.T) {
	shortLease(t)
	php, root := startPHP(t, map[string]string{"index.php": `<?php while (file_exists(__DIR__ . '/hang')) { usleep(10000); clearstatcache(); }`})
	writeFile(t, root+"/hang", nil)
	t.Cleanup(func() { _ = os.Remove(root + "/hang") })
	iak := startOracle(t)
	s := sitetest.StartOperated(t, "respond 404")
	s.Reload(sitetest.Block("callback_url "+s.URL+"/callback", "upstream_timeout 500ms", confirmOption(iak, "timeout 400ms")) + "root * " + root + "\nphp_fastcgi " + php)
	iak.answers("order", status("order", "1"))
	if out, err := s.Command("ask", "test", "order", "--deliver"); err == nil || !strings.Contains(out, "app_unknown") {
		t.Errorf("%v, it prints %q", err, out)
	}
}
