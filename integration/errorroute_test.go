package integration

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/quic-go/quic-go/http3"
)

// refusal is a request that is refused, and the status of the answer.
type refusal struct {
	reason, method, body string
	header               [2]string
	status               int
}

// refusals are one for each reason and each moment.
func refusals() []refusal {
	forged := sitetest.Order("forged", "1", "sign", sitetest.Quote(strings.Repeat("0", 32)))
	right := sitetest.Order("refused", "1")
	return []refusal{
		{"method", http.MethodPut, right, [2]string{}, 405},
		{"media_type, seen in the header", http.MethodPost, right, [2]string{"Content-Type", "text/html"}, 415},
		{"media_type, seen in the encoding", http.MethodPost, right, [2]string{"Content-Encoding", "gzip"}, 415},
		{"media_type, seen in the body", http.MethodPost, "ref_id=1&status=1", [2]string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
		{"too_large", http.MethodPost, sitetest.Order("large", "1", "note", sitetest.Quote(strings.Repeat("x", 5000))), [2]string{}, 413},
		{"malformed", http.MethodPost, right + "x", [2]string{}, 400},
		{"ref_id", http.MethodPost, sitetest.Order("", "1"), [2]string{}, 422},
		{"signature", http.MethodPost, forged, [2]string{}, 403},
		{"field", http.MethodPost, sitetest.Order("field", "7"), [2]string{}, 422},
		{"a conflict", http.MethodPost, sitetest.Order("conflict", "2"), [2]string{}, 409},
	}
}

// A refused request is dead: whatever refused it, over whatever protocol, an error
// route gets neither its sender's bytes nor the headers that only this module may
// set, and can answer by whatever it runs. To the kind belong all reasons, before
// and after the body was read; reverse_proxy to the same app, php_fastcgi behind a
// rewrite (which passes the first REQUEST_URI), an error page's upstream, respond
// and file_server; and what the handlers behind could not deliver (502, 504), whose
// error route must not deliver it.
func TestRefusedIsDead(t *testing.T) {
	pages := t.TempDir()
	if err := os.WriteFile(filepath.Join(pages, "error.html"), []byte("shaped by a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	php, root := startPHP(t, map[string]string{"error.php": `<?php echo "shaped by php ", $_SERVER["REQUEST_URI"], " [", file_get_contents("php://input"), "]";
		foreach ($_SERVER as $k => $v) { if (preg_match("/IAK|IDEMPOTENCY|CONTENT_ENCODING/", $k) && $v !== "") { echo " LEAKED $k"; } }`})
	app := sitetest.StartApp(t, nil)
	page := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "shaped by a page") })
	for _, route := range []struct{ name, handlers, shaped string }{
		{"the same app", "reverse_proxy " + app.Addr(), ""},
		{"php_fastcgi behind a rewrite", "rewrite * /error.php\nroot * " + root + "\nphp_fastcgi " + php, "shaped by php /callback []"},
		{"an error page's upstream", "reverse_proxy " + page.Addr() + " {\nreplace_status {err.status_code}\n}", "shaped by a page"},
		{"respond", `respond "shaped {http.iak_callback.reason}" {err.status_code}`, "shaped "},
		{"file_server", "rewrite * /error.html\nmethod GET\nroot * " + pages + "\nfile_server", "shaped by a file"},
	} {
		t.Run(route.name, func(t *testing.T) {
			for _, protocol := range []string{"HTTP/1.1", "HTTP/2", "HTTP/3"} {
				t.Run(protocol, func(t *testing.T) {
					block := sitetest.Block("max_body_size 4KiB") + "reverse_proxy " + app.Addr() + "\nhandle_errors {\n" + route.handlers + "\n}"
					_, url := startTLS(t, block)
					client := clientFor(t, protocol)
					// The record that the conflict contradicts.
					if status, _ := sendForging(t, client, protocol, http.MethodPost, url, sitetest.Order("conflict", "1"), [2]string{}); status != 200 {
						t.Fatalf("status %d of a right callback", status)
					}
					before := len(app.Received())
					for _, refused := range refusals() {
						status, body := sendForging(t, client, protocol, refused.method, url, refused.body, refused.header)
						if !strings.HasPrefix(body, route.shaped) || strings.Contains(body, "LEAKED") {
							t.Errorf("%s: the answer is %d %q, want %q", refused.reason, status, body, route.shaped)
						}
						if route.name != "the same app" && status != refused.status && !strings.Contains(body, "shaped by php") {
							t.Errorf("%s: status %d, want %d", refused.reason, status, refused.status)
						}
					}
					reached := app.Received()[before:]
					for _, got := range reached {
						isDead(t, got)
					}
					want := 0
					if route.name == "the same app" { // by the error route, which must not fail
						want = len(refusals())
					}
					if len(reached) != want {
						t.Errorf("the app was asked %d times, want %d", len(reached), want)
					}
					for _, got := range page.Received() {
						isDead(t, got)
					}
				})
			}
		})
	}
}

// What could not be delivered, or was not answered in time, is delivered by no
// error route either.
func TestUndeliveredIsDead(t *testing.T) {
	for name, behind := range map[string]string{
		"nobody there (502)":              "reverse_proxy 127.0.0.1:" + sitetest.FreePort(t),
		"no answer (504)":                 "reverse_proxy " + sitetest.StartApp(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }).Addr(),
		"a handler between refuses (401)": "basic_auth {\nu $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\nrespond ok",
	} {
		t.Run(name, func(t *testing.T) {
			other := sitetest.StartApp(t, nil)
			s := sitetest.Start(t, sitetest.Block("upstream_timeout 500ms")+behind+"\nhandle_errors {\nreverse_proxy "+other.Addr()+"\n}")
			if got := s.Post(sitetest.Order("order1", "1")); got.Status != 200 {
				t.Errorf("status %d, want the error route's 200", got.Status)
			}
			isDead(t, other.Last(t))
		})
	}
}

// isDead checks that nothing of a callback is in a request.
func isDead(t *testing.T, got sitetest.Delivered) {
	t.Helper()
	if got.Body != "" || got.ContentLength != 0 || len(got.TransferEncoding) > 0 || len(got.Trailer) > 0 {
		t.Errorf("%s %s came with %d bytes: %q", got.Method, got.Path, got.ContentLength, got.Body)
	}
	for name := range got.Header {
		if strings.HasPrefix(name, "Iak-") || name == "Idempotency-Key" || name == "Content-Type" || name == "Content-Encoding" && got.Header.Get(name) != "" {
			t.Errorf("%s %s came with %s", got.Method, got.Path, name)
		}
	}
}

// startTLS starts a site that speaks all versions of HTTP.
func startTLS(t *testing.T, block string) (s *sitetest.Site, url string) {
	t.Helper()
	s = sitetest.Start(t, "respond ok")
	site := "https://localhost:" + sitetest.FreePort(t)
	// Not at DEBUG: then each handshake is an event whose line looks at Caddy's TLS app,
	// which may be starting yet: a race of Caddy's own (v2.11.9, caddyevents/app.go, Emit;
	// caddytls/tls.go, Start).
	text := strings.Replace(s.Caddyfile(block), "level DEBUG", "level INFO", 1)
	text = strings.Replace(text, s.URL+" {", site+" {\ntls internal", 1)
	config, err := sitetest.Adapt(strings.Replace(text, "\tadmin off\n", "\tadmin off\n\tskip_install_trust\n", 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.LoadConfig(config); err != nil {
		t.Fatal(err)
	}
	return s, site + "/callback"
}

// clientFor speaks one protocol, and takes any certificate.
func clientFor(t *testing.T, protocol string) http.RoundTripper {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // Caddy's own certificate, made for this test
	if protocol == "HTTP/3" {
		h3 := &http3.Transport{TLSClientConfig: config}
		t.Cleanup(func() { _ = h3.Close() })
		return h3
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: protocol == "HTTP/2"}
	if protocol == "HTTP/1.1" {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	transport.DialContext = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

// sendForging sends one request whose sender forges the module's headers.
func sendForging(t *testing.T, client http.RoundTripper, protocol, method, url, body string, header [2]string) (status int, answer string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var reply *http.Response
	sitetest.Eventually(t, "Caddy answers", func() bool { // not before its certificate is made
		r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header = http.Header{"Content-Type": {"application/json"}, "Iak-Account": {"test"}, "Idempotency-Key": {"test:forged:1"}, "Iak-Attempt": {"1"}}
		if header[0] != "" {
			r.Header.Set(header[0], header[1])
		}
		reply, err = client.RoundTrip(r)
		return err == nil
	})
	defer reply.Body.Close()
	if got := fmt.Sprintf("HTTP/%d", reply.ProtoMajor); !strings.HasPrefix(protocol, got) {
		t.Errorf("answered by %s", reply.Proto)
	}
	text, _ := io.ReadAll(reply.Body)
	return reply.StatusCode, string(text)
}
