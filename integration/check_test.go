package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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
	// It does what docs/spool.md asks: 404 to an order that it does not know.
	knowing := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimSuffix(strings.TrimPrefix(strings.ToLower(r.URL.Path), "/index.php"), "/")
		if w.WriteHeader(http.StatusNotFound); path == "/iak/callback" {
			_, _ = io.WriteString(w, "no such order")
		} else {
			_, _ = io.WriteString(w, "no page "+r.URL.Path)
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
		{"the path without *", at("/iak/callback") + proxy, []string{"FAILS  with a slash at its end", "took a forgery", "with a * at its end"}},
		{"the path without *, and an app that answers 404", at("/iak/callback") + "reverse_proxy " + knowing.Addr(), []string{"FAILS  with a slash at its end    404, by the app, which knows this path", "let the matcher cover"}},
		{"behind Caddy itself", at("/iak/callback*") + "reverse_proxy /iak/callback* " + app.Addr(), nil},
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
			if tc.name == "by /index.php" {
				_, sample, _ := strings.Cut(page(t, "README.md"), "```text\n")
				sample, _, _ = strings.Cut(sample, "```")
				printed := strings.Join(strings.Fields(out), " ")
				for line := range strings.Lines(sample) {
					if !strings.Contains(printed, strings.Join(strings.Fields(line), " ")) {
						t.Errorf("README.md has %q, which was not printed:\n%s", line, out)
					}
				}
			}
			for _, words := range tc.words {
				if !strings.Contains(out, words) {
					t.Errorf("it does not say %q:\n%s", words, out)
				}
			}
			if tc.words == nil && !strings.Contains(out, "--  ") {
				t.Errorf("it does not say that the app's own port is not tried:\n%s", out)
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
	// What answers 404 on every path may know this one too: only its log can tell.
	s := sitetest.StartOperated(t, at("/iak/callback*")+"reverse_proxy "+sitetest.StartApp(t, http.NotFound).Addr())
	if out := s.Must("check", "--to", s.URL+"/iak/callback"); !strings.Contains(out, "look  behind /index.php") || !strings.Contains(out, "Look into its log") {
		t.Errorf("%s", out)
	}
	s = sitetest.StartOperated(t, "respond 404")
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
	app := &http.Server{Handler: http.NotFoundHandler()} // to an order that it does not know
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

// send and check speak to a site as it is by default, with TLS and HTTP/2. What takes
// callbacks by http, past that site, takes every forgery.
func TestCheckHTTPS(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	dir, admin := t.TempDir(), "localhost:"+sitetest.FreePort(t)
	url := "https://localhost:" + sitetest.FreePort(t)
	file := filepath.Join(dir, "Caddyfile")
	writeFile(t, file, []byte("{\nadmin "+admin+"\npersist_config off\nskip_install_trust\nauto_https disable_redirects\n}\n"+
		url+" {\ntls internal\n@callback path /iak/callback* /index.php/iak/callback*\n"+strings.Replace(sitetest.Block(), "{", "@callback {", 1)+"reverse_proxy "+app.Addr()+"\n}\n"))
	start := func(args ...string) *exec.Cmd {
		cmd := exec.Command(sitetest.BuiltCaddy(t), args...)
		cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir, "SSL_CERT_FILE="+filepath.Join(dir, "caddy/pki/authorities/local/root.crt"),
			"IAK_USERNAME="+sitetest.Username, "IAK_API_KEY="+sitetest.APIKey)
		return cmd
	}
	startCommand(t, start("run", "--config", file))
	run := func(args ...string) (string, error) {
		out, err := start(append([]string{"iak-callback"}, append(args, "--address", admin)...)...).CombinedOutput()
		return string(out), err
	}
	sitetest.Eventually(t, "the site has its certificate", func() bool {
		out, err := run("send", "--to", url+"/iak/callback", "--expect", "200", "--ref-id", "o1")
		return err == nil && strings.Contains(out, "The app has accepted it") || strings.Contains(out, "Answered from the record")
	})
	if out, err := run("check", "--to", url+"/iak/callback"); err != nil || !strings.Contains(out, "ok  by http") {
		t.Errorf("%v\n%s", err, out)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		t.Skipf("port 80 is not to be had, which http has: %v", err)
	}
	open := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go func() { _ = open.Serve(listener) }()
	t.Cleanup(func() { open.Close() })
	out, err := run("check", "--to", url+"/iak/callback")
	if err == nil || !strings.Contains(out, "FAILS  by http") || !strings.Contains(out, "by http: whoever posts there gets around iak_callback") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := run("send", "--to", strings.Replace(url, "https", "http", 1)+"/iak/callback"); err != nil || !strings.Contains(out, "write https:// in --to") {
		t.Errorf("%v\n%s", err, out)
	}
}

// What answers at an address that is no admin API is told so, whatever it says.
func TestWrongAddress(t *testing.T) {
	html := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<!DOCTYPE html><p>Hello") })
	api := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":"not found"}`)
	})
	for _, address := range []string{html.Addr(), api.Addr()} {
		for _, args := range [][]string{{"check", "--to", "http://localhost/"}, {"console"}, {"list"}, {"show", "test", "o1"}, {"tail"}, {"ask", "test", "o1"}} {
			out, err := sitetest.Run(append(args, "--address", address)...)
			if err == nil || !strings.Contains(err.Error(), "what answers there is not the admin API") || strings.Contains(out, "STATE") {
				t.Errorf("%v at %s: %v\n%s", args, address, err, out)
			}
		}
	}
	if _, err := sitetest.Run("list", "--address", "localhost"); err == nil || !strings.Contains(err.Error(), "has no port") {
		t.Errorf("without a port: %v", err)
	}
	s := sitetest.StartOperated(t, sitetest.Block()+"respond ok")
	s.Refuses(`has the account "other"`, "tail", "--account", "other")
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
