package integration

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddyserver/caddy/v2"
)

// pauses are those of a spool that a test can wait for.
const pauses = "spool {\nbackoff 100ms 500ms\n}"

// twice waits until the app has received an order twice, and returns both requests.
func twice(t *testing.T, app *sitetest.App, ref string) (first, again sitetest.Delivered) {
	t.Helper()
	sitetest.Eventually(t, ref+" is delivered again", func() bool { return len(attempts(app, ref)) >= 2 })
	var all []sitetest.Delivered
	for _, r := range app.Received() {
		if strings.HasPrefix(r.Header.Get("Idempotency-Key"), "test:"+ref+":") {
			all = append(all, r)
		}
	}
	return all[0], all[1]
}

// same compares what the app has got both times.
func same(t *testing.T, what string, first, again sitetest.Delivered) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(first.Header)) {
		if name != "Iak-Attempt" && !slices.Equal(first.Header[name], again.Header[name]) {
			t.Errorf("%s: %s was %q, and is %q when it is delivered again", what, name, first.Header[name], again.Header[name])
		}
	}
	if len(first.Header) != len(again.Header) || first.Path != again.Path || first.Body != again.Body || first.Method != again.Method {
		t.Errorf("%s: the app got\n%+v\nand then\n%+v", what, first, again)
	}
}

// What is delivered again goes through the site's own routes, and its matchers,
// placeholders and proxies see what they saw the first time: by http and https, HTTP/1.1
// and 2, behind another proxy, in handle, route and named routes.
func TestSpoolRoutes(t *testing.T) {
	app := startMoody(t)
	app.status.Store(500)
	proxy := "reverse_proxy " + app.Addr() + ` {
		header_up X-Local {http.request.local} 
		header_up X-Local-Port {http.request.local.port}
		header_up X-Scheme {scheme}
		header_up X-Proto {http.request.proto}
		header_up X-Orig {http.request.orig_uri}
		header_up X-Remote {remote}
		header_up X-Client {client_ip}
		header_up X-Hostport {hostport}
		header_up X-Sni {http.request.tls.server_name}
		header_up X-Tls {tls_version}
		header_up X-Re {re.order.1}
		header_up X-Var {vars.shop}
		header_up X-Attempt {http.iak_callback.attempt}
	}`
	block := sitetest.Block(pauses)
	for name, routes := range map[string]string{
		"plain":   block + proxy,
		"handle":  "handle /callback* {\n" + block + proxy + "\n}\nhandle {\nrespond elsewhere 404\n}",
		"route":   "route /callback* {\n" + block + proxy + "\n}\nrespond elsewhere 404",
		"rewrite": "@order path_regexp order ^/(call)back\nvars @order shop {re.order.1}\nrewrite @order /internal?secret=token&{query}\n" + block + proxy,
		"matchers": "@iak {\nremote_ip 127.0.0.1\nmethod POST\nheader User-Agent *\nheader Content-Type application/json\nquery a=b\nhost 127.0.0.1 localhost\n}\n" +
			"handle @iak {\n" + block + proxy + "\n}\nhandle {\nrespond elsewhere 404\n}",
		"protocol": "@http protocol http\nredir @http https://elsewhere 308\n" + block + proxy,
		"in front": "header Server hidden\nencode gzip\nrequest_body {\nmax_size 1MB\n}\n" + block + proxy,
		"named":    "invoke iak",
		"twice":    "handle_path /shop/* {\n" + block + proxy + "\n}\nhandle /callback {\n" + block + proxy + "\n}",
	} {
		t.Run(name, func(t *testing.T) {
			s := sitetest.Start(t, "respond ok")
			port := sitetest.FreePort(t)
			address := "https://localhost:" + port
			global := "{\nadmin off\npersist_config off\nlocal_certs\nskip_install_trust\nauto_https disable_redirects\nservers {\ntrusted_proxies static 127.0.0.1/32\nclient_ip_headers X-Forwarded-For\n}\n" +
				"log {\noutput discard\n}\n}\n"
			text := global + "&(iak) {\nroute {\n" + block + proxy + "\n}\n}\n" + address + " {\n" + routes + "\n}\n"
			if name != "protocol" {
				text += s.URL + " {\n" + routes + "\n}\n"
			}
			config, err := sitetest.Adapt(text)
			if err != nil {
				t.Fatal(err)
			}
			if err := caddy.Load(config, true); err != nil {
				t.Fatal(err)
			}
			insecure := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the certificate is Caddy's own
			h2 := &http.Client{Transport: &http.Transport{TLSClientConfig: insecure, ForceAttemptHTTP2: true}}
			h1 := &http.Client{Transport: &http.Transport{TLSClientConfig: insecure.Clone(), TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}}
			defer h2.CloseIdleConnections()
			defer h1.CloseIdleConnections()
			for i, way := range []struct {
				client  *http.Client
				address string
				headers map[string]string
			}{
				{h1, s.URL, nil},
				{h1, address, nil},
				{h2, address, map[string]string{"X-Forwarded-For": "52.220.38.194", "X-Forwarded-Proto": "https"}},
				{h1, s.URL, map[string]string{"X-Forwarded-For": "52.220.38.194, 10.0.0.1", "X-Forwarded-Host": "shop.example", "Accept": "*/*"}},
			} {
				if name == "protocol" && way.address == s.URL {
					continue
				}
				ref := fmt.Sprintf("%s-%d", strings.ReplaceAll(name, " ", "-"), i)
				r := sitetest.CallbackOf(t, way.address+"/callback?a=b", sitetest.Order(ref, "1"))
				for header, value := range way.headers {
					r.Header.Set(header, value)
				}
				var answer *http.Response
				sitetest.Eventually(t, "the site takes connections", func() bool {
					answer, err = way.client.Do(r.Clone(r.Context()))
					if err != nil {
						r = sitetest.CallbackOf(t, way.address+"/callback?a=b", sitetest.Order(ref, "1"))
					}
					return err == nil
				})
				_ = answer.Body.Close()
				if answer.StatusCode != http.StatusOK {
					t.Fatalf("%s: status %d, want 200", ref, answer.StatusCode)
				}
				first, again := twice(t, app.App, ref)
				first.Header.Del("X-Attempt")
				if got := again.Header.Get("X-Attempt"); got != "2" {
					t.Errorf("%s: the placeholder of the attempt is %q, want 2", ref, got)
				}
				again.Header.Del("X-Attempt")
				same(t, ref, first, again)
			}
		})
	}
}

// Of two servers that have the account, the one on the port that a callback came to
// first delivers it, whichever of both was configured first.
func TestSpoolServers(t *testing.T) {
	apps := []*moody{startMoody(t), startMoody(t)}
	s := sitetest.Start(t, "respond ok")
	urls := []string{"http://127.0.0.1:" + sitetest.FreePort(t), "http://127.0.0.1:" + sitetest.FreePort(t)}
	text := "{\nadmin off\npersist_config off\nlog {\noutput discard\n}\n}\n"
	for i, app := range apps {
		app.status.Store(500)
		text += urls[i] + " {\n" + sitetest.Block(pauses) + "reverse_proxy " + app.Addr() + "\n}\n"
	}
	config, err := sitetest.Adapt(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.LoadConfig(config); err != nil {
		t.Fatal(err)
	}
	for i, app := range apps {
		ref := fmt.Sprint("order-", i)
		spooled(t, ref, s.Do(sitetest.CallbackOf(t, urls[i], sitetest.Order(ref, "1"))))
		twice(t, app.App, ref)
		if got := attempts(apps[1-i].App, ref); len(got) != 0 {
			t.Errorf("%s reached the other app: %q", ref, got)
		}
	}
}

// A path that has moved, a site that is gone, an account with another name: what is kept
// reaches nobody, also not raw, as long as no route leads to its handler; and then it is
// delivered.
func TestSpoolUnrouted(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		app := startMoody(t)
		app.status.Store(500)
		catchAll := "\nhandle {\nreverse_proxy " + app.Addr() + "\n}\nmetrics /metrics"
		at := func(path, options string) string {
			return "handle " + path + "/* {\n" + sitetest.Block(option, pauses, options) + "reverse_proxy " + app.Addr() + "\n}" + catchAll
		}
		s := sitetest.StartOperated(t, at("/iak", ""))
		post := func(ref string) {
			t.Helper()
			spooled(t, ref, s.Do(sitetest.CallbackOf(t, s.URL+"/iak/callback", sitetest.Order(ref, "1"))))
		}
		for i, elsewhere := range []struct{ name, block string }{
			{"moved", at("/new", "")},
			{"another account", strings.ReplaceAll(at("/iak", ""), "account test", "account other")},
			{"the app itself", "handle /iak/* {\nreverse_proxy " + app.Addr() + "\n}\nhandle /other/* {\n" + sitetest.Block(option, pauses) + "respond no 500\n}" + catchAll},
			{"an answer", "handle /iak/* {\nrespond ok 200\n}\nhandle /other/* {\n" + sitetest.Block(option, pauses) + "respond no 500\n}" + catchAll},
			{"only another host", "@host host elsewhere.example\nhandle @host {\n" + sitetest.Block(option, pauses) + "reverse_proxy " + app.Addr() + "\n}" + catchAll},
			{"a refusal in front", "route {\nbasic_auth {\nx $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\n" + sitetest.Block(option, pauses) + "reverse_proxy " + app.Addr() + "\n}"},
			{"an error route", "route {\nerror 500\n" + sitetest.Block(option, pauses) + "}\nhandle_errors {\nreverse_proxy " + app.Addr() + "\n}"},
		} {
			ref := fmt.Sprint("order-", i)
			app.status.Store(500)
			post(ref)
			twice(t, app.App, ref)
			s.Reload(elsewhere.block)
			before := len(app.Received())
			sitetest.Eventually(t, elsewhere.name+": nobody takes it", func() bool { return strings.Count(s.Log(), `"outcome":"unrouted"`) > i })
			if elsewhere.name != "another account" { // of which nothing is shown
				s.ComesTo(ref, "spooled")
			}
			for _, r := range app.Received()[before:] {
				if r.Header.Get("Idempotency-Key") == "" {
					t.Errorf("%s: the app got %s %s with %q", elsewhere.name, r.Method, r.Path, r.Body)
				}
			}
			app.status.Store(0)
			s.Reload(at("/iak", ""))
			s.ComesTo(ref, "accepted")
		}
	})
}

// Whatever a client sends, it is a callback that has to be signed: no header and no
// query makes it a redelivery.
func TestSpoolUnforgeable(t *testing.T) {
	app := startMoody(t)
	app.status.Store(500)
	s := sitetest.Start(t, sitetest.Block(pauses)+"reverse_proxy "+app.Addr())
	spooled(t, "right", s.Post(sitetest.Order("right", "1")))
	first, _ := twice(t, app.App, "right")
	r := sitetest.CallbackOf(t, s.URL+"/callback?a=b&iak_redelivery=1&iak_attempt=2", sitetest.Order("forged", "1", "sign", `"00000000000000000000000000000000"`))
	for name, values := range first.Header { // all that we set ourselves
		r.Header[name] = values
	}
	for _, name := range []string{"Iak-Redelivery", "Iak-Mark", "Iak-Source", "X-Iak-Redelivery", "Iak_redelivery", "Redelivery"} {
		r.Header[name] = []string{"true"}
	}
	r.Header.Del("Content-Length")
	if got := s.Do(r); got.Status != http.StatusForbidden {
		t.Errorf("status %d, want 403", got.Status)
	}
	if got := attempts(app.App, "forged"); len(got) != 0 {
		t.Errorf("the app got it: %q", got)
	}
}

// An error page that says 200 for the app's refusal changes nothing: what became of a
// delivery is what the app said.
func TestSpoolErrorPage(t *testing.T) {
	app := startMoody(t)
	app.status.Store(500)
	s := sitetest.StartOperated(t, sitetest.Block(pauses)+"reverse_proxy "+app.Addr()+" {\n@bad status 5xx\nhandle_response @bad {\nerror 500\n}\n}\nhandle_errors {\nrespond fine 200\n}")
	spooled(t, "order", s.Post(sitetest.Order("order", "1")))
	twice(t, app.App, "order")
	s.ComesTo("order", "spooled")
	app.status.Store(0)
	s.ComesTo("order", "accepted")
}

// The access log has a line for each redelivery, with the app's status and two more
// fields, and none of them says what is kept.
func TestSpoolAccessLog(t *testing.T) {
	app := startMoody(t)
	app.status.Store(503)
	s := sitetest.StartOperated(t, "log\n"+sitetest.Block(pauses)+"reverse_proxy "+app.Addr())
	s.Post(sitetest.Order("order", "1", "sn", `"SECRET-GOODS"`))
	twice(t, app.App, "order")
	app.status.Store(0)
	s.ComesTo("order", "accepted")
	type line struct {
		Logger       string `json:"logger"`
		Status       int    `json:"status"`
		IAKRedeliver bool   `json:"iak_redelivery"`
		IAKAttempt   int    `json:"iak_attempt"`
	}
	var statuses []int
	sitetest.Eventually(t, "the access log has the last redelivery", func() bool {
		statuses = nil
		for text := range strings.Lines(s.Log()) {
			var l line
			if err := json.Unmarshal([]byte(text), &l); err == nil && strings.HasPrefix(l.Logger, "http.log.access") && l.IAKRedeliver {
				statuses = append(statuses, l.Status)
				if l.IAKAttempt != len(statuses)+1 {
					t.Fatalf("redelivery %d has the attempt %d", len(statuses), l.IAKAttempt)
				}
			}
		}
		return len(statuses) > 0 && statuses[len(statuses)-1] == 200
	})
	for _, status := range statuses[:len(statuses)-1] {
		if status != 503 {
			t.Errorf("the access log has the statuses %v, want the app's 503 until 200", statuses)
		}
	}
	if strings.Contains(s.Log(), "SECRET-GOODS") {
		t.Error("the log holds goods")
	}
}
