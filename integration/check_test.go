package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// ownAddress is an address of this machine that is no loopback, empty without.
func ownAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	return ""
}

// check finds each wrong set-up, says what to do, and finds nothing wrong with a right
// one; the app behind a right one sees no forgery.
func TestCheck(t *testing.T) {
	iak := startOracle(t)
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) { // as many frameworks route
		path := strings.TrimSuffix(strings.TrimPrefix(strings.ToLower(r.URL.Path), "/index.php"), "/")
		if path != "/iak/callback" || r.Method != http.MethodPost {
			http.NotFound(w, r)
		}
	})
	proxy := "reverse_proxy " + app.Addr()
	at := func(path string, options ...string) string {
		return strings.Replace(sitetest.Block(options...), "{", path+" {", 1)
	}
	all := "handle /iak/callback* {\n" + at("") + proxy + "\n}\nhandle /index.php/* {\nrespond 404\n}\nhandle {\nrequest_header -Iak-*\n" + proxy + "\n}\n"
	down := "127.0.0.1:" + sitetest.FreePort(t)
	for _, tc := range []struct {
		name, block string
		words       []string // none: nothing is wrong
	}{
		{"right", all, nil},
		{"right, with confirm", strings.Replace(all, sitetest.Account, sitetest.Account+"\n"+confirmOption(iak), 1), nil},
		{"the path without *", at("/iak/callback") + proxy, []string{"with a slash at its end", "took a forgery", "give its matcher a *"}},
		{"the directive after the app", "route {\n" + proxy + "\n" + at("") + "}", []string{"FAILS  the callback's url", "took a forgery"}},
		{"by /index.php", at("/iak/callback*") + proxy, []string{"behind /index.php", "took a forgery"}},
		{"a wrong key", strings.Replace(all, sitetest.Account, sitetest.Account+"\n"+confirmOption(iak), 1), []string{"IAK, for test", "check the username and the api key"}},
		{"the store is down", strings.Replace(all, sitetest.Account, sitetest.Account+"\nredis redis://"+down, 1), []string{"the store", "does not answer"}},
		{"a second directive", "handle /iak/callback* {\n" + at("") + at("") + proxy + "\n}\nhandle {\nrespond 404\n}", []string{"stands behind itself"}},
		{"nothing behind", "handle /iak/callback* {\n" + at("") + "}\nhandle {\nrespond 404\n}", []string{"nothing comes after iak_callback"}},
		{"a redirect", "redir /iak/callback /other 301\n" + all, []string{"FAILS  the callback's url", "a redirect", "the url that it leads to"}},
		{"another path", strings.ReplaceAll(all, "/iak/callback*", "/other*"), []string{"FAILS  the callback's url", "took a forgery"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			iak.forAll(nil)
			if tc.name == "a wrong key" {
				iak.forAll(func(w http.ResponseWriter, _ *http.Request, _ map[string]string) bool {
					write(w, `{"data":{"rc":"204","status":2}}`)
					return true
				})
			}
			s := sitetest.StartOperated(t, tc.block)
			before := len(app.Received())
			out, err := s.Command("check", "--to", s.URL+"/iak/callback")
			if (err == nil) != (tc.words == nil) {
				t.Errorf("%v\n%s", err, out)
			}
			for _, words := range tc.words {
				if !strings.Contains(out, words) {
					t.Errorf("it does not say %q:\n%s", words, out)
				}
			}
			if tc.words == nil {
				if strings.Contains(out, "FAILS") {
					t.Errorf("%s", out)
				}
				for _, r := range app.Received()[before:] {
					if r.Header.Get("Iak-Account") != "" || strings.HasPrefix(r.Path, "/iak/") {
						t.Errorf("the app got %s %v", r.Path, r.Header)
					}
				}
			}
		})
	}
	s := sitetest.StartOperated(t, "respond 404")
	s.Refuses("--to is missing", "check")
	if _, err := sitetest.Run("check", "--address", "127.0.0.1:1", "--to", s.URL); err == nil || !strings.Contains(err.Error(), "no Caddy answers") {
		t.Errorf("%v", err)
	}
}

// An app that can be reached by its own port under the site's name takes every forgery.
func TestCheckOwnPort(t *testing.T) {
	address := ownAddress(t)
	if address == "" {
		t.Skip("this machine has no address but loopback")
	}
	listener, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go func() { _ = app.Serve(listener) }()
	t.Cleanup(func() { app.Close() })
	s := sitetest.StartOperated(t, "respond 404")
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(s.URL, "http://"))
	s.URL = "http://" + address + ":" + port
	s.Reload(sitetest.Block() + "reverse_proxy " + listener.Addr().String())
	out, err := s.Command("check", "--to", s.URL+"/iak/callback")
	_, appPort, _ := net.SplitHostPort(listener.Addr().String())
	if err == nil || !strings.Contains(out, "FAILS  the app's own port, "+appPort) {
		t.Errorf("%v\n%s", err, out)
	}
}

// What takes callbacks by http, past the https site, takes every forgery.
func TestCheckByHTTP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		t.Skipf("port 80 is not to be had, which http has: %v", err)
	}
	app := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go func() { _ = app.Serve(listener) }()
	t.Cleanup(func() { app.Close() })
	s := sitetest.StartOperated(t, "respond 404")
	out, err := s.Command("check", "--to", "https://127.0.0.1:"+sitetest.FreePort(t)+"/iak/callback")
	if err == nil || !strings.Contains(out, "FAILS  by http") || !strings.Contains(out, "by http: this path does not pass iak_callback") {
		t.Errorf("%v\n%s", err, out)
	}
}

// The last callbacks are there for who asks, without goods, the oldest first, across
// reloads, and no more than a thousand; tail prints them, and follows.
func TestRecent(t *testing.T) {
	app := startMoody(t)
	block := sitetest.Block() + "reverse_proxy " + app.Addr()
	s := sitetest.StartOperated(t, block)
	start := time.Now()
	s.Post(sitetest.Order("recent1", "1", "sn", `"5ecret-sn"`))
	s.Post(sitetest.Order("recent1", "1", "sn", `"5ecret-sn"`))
	s.Reload(block + "\nheader X-Another yes")
	s.PostAgain(sitetest.Order("recent2", "2"))
	s.Post(sitetest.Order("recent3", "1", "sign", sitetest.Quote(sitetest.Sign("other"))))
	type line struct {
		Time                                                               time.Time
		Message, Outcome, Reason, Account, RefID, Status, ClientIP, Source string
		Error                                                              string
		Attempt, AppStatus                                                 int
		Duration                                                           float64
	}
	ask := func(query string) (all []line) {
		t.Helper()
		got := s.Ask(http.MethodGet, "/iak_callback/recent"+query)
		if got.Status != 200 || strings.Contains(got.Body, "5ecret") {
			t.Fatalf("%d %s", got.Status, got.Body)
		}
		for text := range strings.Lines(got.Body) {
			var l struct {
				line
				RefID     string `json:"ref_id"`
				ClientIP  string `json:"client_ip"`
				AppStatus int    `json:"app_status"`
			}
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Fatal(err)
			}
			l.line.RefID, l.line.ClientIP, l.line.AppStatus = l.RefID, l.ClientIP, l.AppStatus
			if l.Time.After(start) {
				all = append(all, l.line)
			}
		}
		return all
	}
	all := ask("?since=1h")
	var outcomes []string
	for i, l := range all {
		outcomes = append(outcomes, l.RefID+" "+l.Outcome)
		if i > 0 && !l.Time.After(all[i-1].Time) {
			t.Error("they are in no order")
		}
		if l.ClientIP != "127.0.0.1" || l.Message != "callback" {
			t.Errorf("%+v", l)
		}
	}
	if got := fmt.Sprint(outcomes); got != "[recent1 forwarded recent1 duplicate recent2 forwarded recent3 rejected]" {
		t.Errorf("%s", got)
	}
	for query, want := range map[string]int{"?ref_id=recent1": 2, "?outcome=rejected": 1, "?account=test": 3, "?account=test&outcome=duplicate": 1, "?ref_id=other": 0} {
		if got := ask(query); len(got) != want {
			t.Errorf("%s: %d, want %d", query, len(got), want)
		}
	}
	for _, query := range []string{"?since=x", "?since=-1h", "?limit=1", "?account=a&account=b"} {
		s.Ask(http.MethodGet, "/iak_callback/recent"+query).Expect(t, query, 400)
	}
	s.Ask(http.MethodPost, "/iak_callback/recent").Expect(t, "POST", 405)
	out := s.Must("tail", "--ref-id", "recent1")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 2 || !strings.Contains(lines[0], "forwarded") || !strings.Contains(lines[1], "duplicate") || !strings.Contains(lines[0], "from 127.0.0.1") {
		t.Errorf("tail prints %q", out)
	}
	for range 1000 {
		s.Post("{")
	}
	if got := ask(""); len(got) != 1000 || got[999].Outcome != "rejected" || got[0].RefID != "" {
		t.Errorf("%d are remembered", len(got))
	}

	cmd := sitetest.Command()
	var printed safeBuilder
	cmd.SetOut(&printed)
	cmd.SetArgs([]string{"tail", "-f", "--address", s.Admin, "--since", "1s", "--ref-id", "follows"})
	ctx, cancel := contextOf(t)
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	for i := range 3 {
		s.Post(sitetest.Order("follows", "1"))
		sitetest.Eventually(t, "tail prints it", func() bool { return strings.Count(printed.String(), "follows") == i+1 })
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
