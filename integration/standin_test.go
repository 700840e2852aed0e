package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddy-iak/iakcallback/internal/standin"
	"github.com/chromedp/chromedp"
)

// played is a stand-in, and what it has told.
type played struct {
	*httptest.Server
	t     *testing.T
	mu    sync.Mutex
	lines []string
}

// startStandIn starts a stand-in that calls back to a url.
func startStandIn(t *testing.T, to string, change ...func(o *standin.Options)) *played {
	t.Helper()
	p := &played{t: t}
	o := standin.Options{
		To: to, Outcome: standin.OutcomeSuccess, Username: sitetest.Username, APIKey: sitetest.APIKey,
		Log: func(line string) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.lines = append(p.lines, line)
		},
	}
	for _, c := range change {
		c(&o)
	}
	s, err := standin.New(o)
	if err != nil {
		t.Fatal(err)
	}
	p.Server = httptest.NewServer(s.Handler())
	t.Cleanup(func() {
		p.Close()
		s.Close()
	})
	return p
}

// log is what it has told so far.
func (p *played) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// asks sends a request of an app, and returns the answer's data.
func (p *played) asks(path string, fields map[string]string) (code int, data map[string]any) {
	p.t.Helper()
	text, _ := json.Marshal(fields)
	answer, err := http.Post(p.URL+path, "application/json", strings.NewReader(string(text)))
	if err != nil {
		p.t.Fatal(err)
	}
	defer answer.Body.Close()
	var all struct{ Data map[string]any }
	if err := json.NewDecoder(answer.Body).Decode(&all); err != nil {
		p.t.Fatal(err)
	}
	return answer.StatusCode, all.Data
}

// request is one that is signed.
func request(refID string, more ...string) map[string]string {
	fields := map[string]string{"username": sitetest.Username, "ref_id": refID, "sign": sitetest.Sign(refID)}
	for i := 0; i < len(more); i += 2 {
		fields[more[i]] = more[i+1]
	}
	return fields
}

// order makes one, with the names of version 2.
func (p *played) order(refID string) {
	p.t.Helper()
	code, data := p.asks("/api/top-up", request(refID, "product_code", "xld25000", "customer_id", "0817777215"))
	if code != 200 || data["rc"] != "39" || data["status"] != 0.0 || data["price"] != 25000.0 || data["ref_id"] != refID {
		p.t.Errorf("top-up: %d %v", code, data)
	}
}

// An order becomes what the outcome says: the app gets it through the module, confirmed by
// the same stand-in, in each format and version.
func TestStandIn(t *testing.T) {
	for _, tc := range []struct {
		outcome string
		xml, v2 bool
		keys    []string // of what reaches the app
	}{
		{outcome: standin.OutcomeSuccess, keys: []string{":1"}}, {outcome: standin.OutcomeFailed, xml: true, keys: []string{":2"}},
		{outcome: standin.OutcomeTwice, v2: true, keys: []string{":1"}}, {outcome: standin.OutcomeReversed, xml: true, v2: true, keys: []string{":1", ":2:conflict-"}},
		{outcome: standin.OutcomeSuccess, xml: true, keys: []string{":1"}}, {outcome: standin.OutcomeLost}, {outcome: standin.OutcomePending},
	} {
		t.Run(fmt.Sprint(tc.outcome, " xml ", tc.xml, " v2 ", tc.v2), func(t *testing.T) {
			app := sitetest.StartApp(t, nil)
			s := sitetest.StartOperated(t, "respond 404")
			p := startStandIn(t, s.URL+"/callback", func(o *standin.Options) { o.Outcome, o.XML, o.Version2 = tc.outcome, tc.xml, tc.v2 })
			s.Reload(sitetest.Block("on_conflict forward", "callback_url "+s.URL+"/callback", "confirm {\nbase "+p.URL+"\n}") + "reverse_proxy " + app.Addr())
			p.order("order")
			sitetest.Eventually(t, "it has arrived", func() bool { return len(app.Received()) >= len(tc.keys) })
			for i, r := range app.Received() {
				if key := r.Header.Get("Idempotency-Key"); i >= len(tc.keys) || !strings.HasPrefix(key, "test:order"+tc.keys[i]) || r.Header.Get("Iak-Confirmed") != "true" {
					t.Errorf("the app got %v", r.Header)
				}
			}
			final := map[string]string{standin.OutcomeFailed: "failed", standin.OutcomeReversed: "failed", standin.OutcomePending: ""}
			want, told := final[tc.outcome]
			if !told {
				want = "success"
			}
			switch tc.outcome {
			case standin.OutcomeTwice:
				sitetest.Eventually(t, "it is called back twice", func() bool { return strings.Count(p.log(), "answered 200") == 2 })
			case standin.OutcomeLost:
				sitetest.Eventually(t, "IAK knows", func() bool {
					_, data := p.asks("/api/check-status", request("order"))
					return data["status"] == 1.0
				})
				if out := s.Must("ask", "test", "order", "--deliver"); !strings.Contains(out, "the app has accepted it") {
					t.Errorf("ask prints %q", out)
				}
			case standin.OutcomePending:
				s.Refuses("the order has not ended", "ask", "test", "order", "--deliver")
			}
			if want != "" {
				sitetest.Eventually(t, "it is accepted as "+want, func() bool {
					all := s.Show("order")
					return len(all) == 1 && all[0].Accepted == want
				})
			}
			if strings.Contains(p.log(), "123456789-") {
				t.Error("goods are printed")
			}
		})
	}
}

// It answers as IAK does, right requests and wrong ones.
func TestStandInAnswers(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	p := startStandIn(t, app.URL, func(o *standin.Options) { o.Outcome = standin.OutcomePending })
	bl := map[string]string{"username": sitetest.Username, "sign": sitetest.Sign("bl")}
	_, before := p.asks("/api/check-balance", bl)
	p.order("order")
	p.order("order") // again: the same order
	if code, data := p.asks("/api/top-up", request("v1", "pulsa_code", "hsteam", "hp", "1|2")); code != 200 || data["product_code"] != "hsteam" || data["customer_id"] != "1|2" || data["price"] != 16500.0 {
		t.Errorf("version 1: %d %v", code, data)
	}
	if _, after := p.asks("/api/check-balance", bl); before["balance"].(float64)-after["balance"].(float64) != 25000+16500 {
		t.Errorf("the balance was %v, and is %v", before, after)
	}
	if code, data := p.asks("/api/check-status", request("order")); code != 200 || data["rc"] != "39" || data["tr_id"] != 3482.0 || data["sn"] != nil {
		t.Errorf("%d %v", code, data)
	}
	if code, data := p.asks("/api/check-status", request("unknown")); code != 200 || data["rc"] != "06" {
		t.Errorf("%d %v", code, data)
	}
	for _, path := range []string{"/api/top-up", "/api/check-status", "/api/check-balance"} {
		for _, wrong := range []map[string]string{request("order", "sign", sitetest.Sign("other")), request("order", "username", "1"), request("order", "sign", ""), {}} {
			if _, data := p.asks(path, wrong); data["rc"] != "204" || data["status"] != 2.0 {
				t.Errorf("%s: %v", path, data)
			}
		}
		answer, err := http.Post(p.URL+path, "application/json", strings.NewReader("{"))
		if err != nil || answer.StatusCode != 400 {
			t.Errorf("%s: %v, %v", path, answer, err)
		}
		answer.Body.Close()
	}
	if code, data := p.asks("/api/top-up", request("order2")); code != 400 || data["rc"] != "208" {
		t.Errorf("without a product: %d %v", code, data)
	}
	if len(app.Received()) != 0 {
		t.Error("pending is called back")
	}
	// A page elsewhere cannot click.
	r, _ := http.NewRequest(http.MethodPost, p.URL+"/click", strings.NewReader("ref_id=order&to=success"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	if answer, err := http.DefaultClient.Do(r); err != nil || answer.StatusCode != http.StatusForbidden {
		t.Errorf("%v, %v", answer, err)
	}
	for _, o := range []standin.Options{{To: "", Outcome: "success"}, {To: "ftp://x", Outcome: "success"}, {To: "http://x", Outcome: "other"}} {
		if _, err := standin.New(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// browser is a real one, for one test.
func browser(t *testing.T) context.Context {
	t.Helper()
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.NoSandbox) // tests may run as root
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	return ctx
}

// In a real browser: an order is on the page, a click sends one callback, and what comes
// from outside is shown as text.
func TestStandInPage(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, "respond 404")
	p := startStandIn(t, s.URL+"/callback", func(o *standin.Options) { o.Outcome = standin.OutcomePending })
	s.Reload(sitetest.Block("on_conflict forward", "confirm {\nbase "+p.URL+"\n}") + "reverse_proxy " + app.Addr())
	ctx := browser(t)
	text := func() string {
		t.Helper()
		got, err := chromedp.Run(ctx, chromedp.Text("body"))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	do := func(action chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(ctx, action); err != nil {
			t.Fatal(err)
		}
	}
	do(chromedp.Navigate(p.URL))
	if !strings.Contains(text(), "No orders yet") {
		t.Errorf("the page says %q", text())
	}
	const hostile = `<script>document.title='x'</script>`
	p.order("order001")
	p.asks("/api/top-up", request(hostile, "product_code", "xld5000", "customer_id", hostile))
	do(chromedp.Navigate(p.URL))
	if got := text(); !strings.Contains(got, "order001") || !strings.Contains(got, hostile) {
		t.Errorf("the page says %q", got)
	}
	if title, err := chromedp.Run(ctx, chromedp.Title()); err != nil || title != "IAK stand-in" {
		t.Errorf("the title is %q, %v", title, err)
	}
	button := func(name string) chromedp.Search {
		return chromedp.Search(`//tr[td[text()="order001"]]//button[text()="` + name + `"]`)
	}
	for i, click := range []struct{ button, key, says string }{
		{"SUCCESS", "test:order001:1", "success: answered 200"}, {"FAILED", "test:order001:2:conflict-", "failed: answered 200"},
	} {
		do(chromedp.Click(button(click.button)))
		sitetest.Eventually(t, "the callback has arrived", func() bool { return len(app.Received()) == i+1 })
		if key := app.Last(t).Header.Get("Idempotency-Key"); !strings.HasPrefix(key, click.key) {
			t.Errorf("%s: the app got %s", click.button, key)
		}
		sitetest.Eventually(t, "the page tells", func() bool { return strings.Contains(text(), click.says) })
	}
}

// The command itself: it prints what it does, takes the url from the running Caddy, and
// ends with an interrupt.
func TestStandInCommand(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, "respond 404")
	s.Reload(sitetest.Block("callback_url "+s.URL+"/iak/callback") + "reverse_proxy " + app.Addr())
	listen := "127.0.0.1:" + sitetest.FreePort(t)
	cmd := exec.Command(sitetest.BuiltCaddy(t), "iak-callback", "stand-in", "--listen", listen, "--delay", "0s", "--address", s.Admin)
	cmd.Env = append(cmd.Environ(), "IAK_USERNAME="+sitetest.Username, "IAK_API_KEY="+sitetest.APIKey)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	sitetest.Eventually(t, "it listens", func() bool {
		answer, err := http.Get("http://" + listen)
		if err == nil {
			answer.Body.Close()
		}
		return err == nil
	})
	p := &played{Server: &httptest.Server{URL: "http://" + listen}, t: t}
	p.order("order")
	s.ComesTo("order", "accepted")
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil || !strings.Contains(string(text), `order "order": callback success: answered 200 OK`) {
		t.Errorf("%v, it prints %q", err, text)
	}
	for words, args := range map[string][]string{
		"--to is missing": {"--username", "1", "--api-key", "2"}, "missing or empty": {"--to", "http://x"},
		"no such outcome": {"--to", "http://x", "--username", "1", "--api-key", "2", "--outcome", "other", "--listen", "127.0.0.1:0"},
		"--format":        {"--format", "yaml"}, "--version": {"--version", "3"}, "--delay": {"--delay", "-1s"}, "flags only": {"x"},
	} {
		t.Setenv("IAK_USERNAME", "")
		t.Setenv("IAK_API_KEY", "")
		if _, err := sitetest.Run(append([]string{"stand-in", "--address", "127.0.0.1:1"}, args...)...); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want an error with %q", args, err, words)
		}
	}
}
