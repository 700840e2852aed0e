package spool

import (
	"context"
	"crypto/tls"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// capture goes the whole way: what is kept of a request comes back.
func capture(t *testing.T, r *http.Request, uri, body string) (*Request, *http.Request) {
	t.Helper()
	payload, err := Capture(r, uri, []byte(body)).Encode()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Decode(payload)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.HTTP(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c, again
}

// What matchers and apps look at is the same the second time; the body stays apart.
func TestRequest(t *testing.T) {
	const uri, body = "/iak/callback/%7Bx%7D?a=b&c=%20", "\x00<mp>\n\xff\n{\"data\":{}}\n"
	r := httptest.NewRequest(http.MethodPost, "/rewritten", nil)
	r.Host, r.RemoteAddr, r.Proto = "shop.example:8443", "[2001:db8::1%eth0]:4711", "HTTP/2.0"
	r.Header = http.Header{
		"Content-Type": {"application/xml; charset=\xff"}, "X-Forwarded-For": {"52.220.38.194", "10.0.0.1"}, "User-Agent": {"IAK"},
		"X-Real-Ip": {"52.220.38.194"}, "X-Bytes": {"\x80\xff ü \u2028 <>&"}, "Accept-Encoding": {"gzip"}, "X-Hub-Empty": {""},
	}
	kept := maps.Clone(r.Header)
	for name, value := range map[string]string{
		"Authorization": "Basic x", "Proxy-Authorization": "x", "Cookie": "session=x", "Content-Length": "12", "Connection": "close, X-Hop",
		"X-Hop": "1", "Keep-Alive": "timeout=5", "Transfer-Encoding": "chunked", "Te": "trailers", "Trailer": "X", "Upgrade": "h2c", "Expect": "100-continue",
		"Idempotency-Key": "forged", "idempotency_key": "forged", "Iak-Attempt": "7", "Iak_Account": "forged", "iak.conflict": "1", "Proxy-Connection": "x",
	} {
		r.Header[name] = []string{value}
	}
	r.TLS = &tls.ConnectionState{HandshakeComplete: true, Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, ServerName: "shop.example", NegotiatedProtocol: "h2"}
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP("10.1.2.3"), Port: 8443}))
	c, again := capture(t, r, uri, body)
	if string(c.Body) != body {
		t.Errorf("the body is %q", c.Body)
	}
	if left, _ := io.ReadAll(again.Body); len(left) != 0 || again.ContentLength != 0 {
		t.Errorf("the request has a body of %d bytes, declared %d, want none", len(left), again.ContentLength)
	}
	if !maps.EqualFunc(again.Header, kept, slices.Equal) {
		t.Errorf("the header is\n%q\nwant\n%q", again.Header, kept)
	}
	if again.Method != http.MethodPost || again.RequestURI != uri || again.URL.RequestURI() != uri || again.URL.Path != "/iak/callback/{x}" {
		t.Errorf("%s %s, path %s", again.Method, again.RequestURI, again.URL.Path)
	}
	if again.Host != r.Host || again.RemoteAddr != r.RemoteAddr || again.Proto != "HTTP/2.0" || again.ProtoMajor != 2 {
		t.Errorf("host %s, remote %s, %s", again.Host, again.RemoteAddr, again.Proto)
	}
	if s := again.TLS; s == nil || !s.HandshakeComplete || s.Version != r.TLS.Version || s.CipherSuite != r.TLS.CipherSuite || s.ServerName != "shop.example" || s.NegotiatedProtocol != "h2" {
		t.Errorf("TLS %+v", s)
	}
	if local := again.Context().Value(http.LocalAddrContextKey).(net.Addr); local.String() != "10.1.2.3:8443" || local.Network() != "tcp" || c.Port() != "8443" {
		t.Errorf("local %s %s, port %s", local.Network(), local, c.Port())
	}
}

// A request without TLS has none the second time; one over a socket, or without an
// address, has an address all the same: placeholders ask it.
func TestRequestLocal(t *testing.T) {
	for _, tc := range []struct {
		addr          net.Addr
		network, text string
		port          string
	}{
		{&net.UDPAddr{IP: net.ParseIP("::1"), Port: 443}, "udp", "[::1]:443", "443"},
		{&net.UnixAddr{Net: "unix", Name: "/run/caddy.sock"}, "unix", "/run/caddy.sock", ""},
		{&net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 80, Zone: "eth0"}, "tcp", "[fe80::1%eth0]:80", "80"},
		{nil, "", "", ""},
	} {
		r := httptest.NewRequest(http.MethodPost, "/x", nil)
		if tc.addr != nil {
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, tc.addr))
		}
		c, again := capture(t, r, "/x", "")
		local := again.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if local.Network() != tc.network || local.String() != tc.text || c.Port() != tc.port || again.TLS != nil {
			t.Errorf("%v came back as %s %q, port %q, TLS %v", tc.addr, local.Network(), local, c.Port(), again.TLS)
		}
	}
}

// What no version has written is refused, with a sentence that quotes nothing of it.
func TestDecodeDamaged(t *testing.T) {
	for _, payload := range []string{"", "{}", "x\nbody", "{\"host\":1}\nbody", "{\"host\":\"\u2028\"}\nbody", "[]\n", "\n"} {
		if c, err := Decode(payload); err == nil {
			t.Errorf("%q is read as %+v", payload, c)
		} else if strings.Contains(err.Error(), "body") || strings.Contains(err.Error(), "host") {
			t.Errorf("the error quotes it: %v", err)
		}
	}
	if _, err := (&Request{URI: "no path"}).HTTP(context.Background()); err == nil {
		t.Error("a target that is none is taken")
	}
}
