// Package spool delivers again what the app has not accepted: what is kept of a
// callback, when it is due, how gently, and what became of it. How it is delivered is
// told by a function; of Caddy it knows nothing.
package spool

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Request is a callback as it came: what routes, matchers and the app's language look
// at, so that they see the same when it is delivered again.
type Request struct {
	Host   Octets              `json:"host"`
	URI    Octets              `json:"uri"` // before any rewrite
	Proto  string              `json:"proto"`
	Header map[Octets][]Octets `json:"header,omitempty"`
	Remote string              `json:"remote,omitempty"`
	Local  string              `json:"local,omitempty"` // network/address
	TLS    *TLS                `json:"tls,omitempty"`
	Source string              `json:"source,omitempty"` // where it comes from, if IAK did not send it

	// Body is what IAK sent, so that another version normalizes it as it does.
	Body []byte `json:"-"`
}

// TLS is what is kept of a connection's state.
type TLS struct {
	Version    uint16 `json:"version"`
	Cipher     uint16 `json:"cipher"`
	ServerName string `json:"server_name,omitempty"`
	ALPN       string `json:"alpn,omitempty"`
}

// Octets are bytes that need not be UTF-8, as in a header or a target. In JSON each is
// the character of its number, so that all come back.
type Octets string

// MarshalText writes them as UTF-8.
func (o Octets) MarshalText() ([]byte, error) {
	text := make([]byte, 0, len(o))
	for i := range len(o) {
		text = utf8.AppendRune(text, rune(o[i]))
	}
	return text, nil
}

// UnmarshalText reads what MarshalText writes.
func (o *Octets) UnmarshalText(text []byte) error {
	bytes := make([]byte, 0, len(text))
	for _, c := range string(text) {
		if c > 0xff {
			return errors.New("a character that is no byte")
		}
		bytes = append(bytes, byte(c)) //nolint:gosec // checked above
	}
	*o = Octets(bytes)
	return nil
}

// never are the headers that are not kept: what belongs to one connection, what tells
// of a body's way, and credentials.
var never = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect", "Content-Length",
	"Authorization", "Proxy-Authorization", "Cookie", "Idempotency-Key",
}

// Capture returns what is kept of a request. uri is its target before any rewrite. The
// header is read as it is now.
func Capture(r *http.Request, uri string, body []byte) *Request {
	c := &Request{Host: Octets(r.Host), URI: Octets(uri), Proto: r.Proto, Remote: r.RemoteAddr, Header: make(map[Octets][]Octets, len(r.Header)), Body: body}
	hop := slices.Clone(never) // and what Connection names (RFC 9110, section 7.6.1)
	for _, line := range r.Header["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			hop = append(hop, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	for name, values := range r.Header {
		canonical := textproto.CanonicalMIMEHeaderKey(strings.NewReplacer("_", "-", ".", "-").Replace(name))
		if !slices.Contains(hop, canonical) && !strings.HasPrefix(canonical, "Iak-") {
			for _, v := range values {
				c.Header[Octets(name)] = append(c.Header[Octets(name)], Octets(v))
			}
		}
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		c.Local = local.Network() + "/" + local.String()
	}
	if t := r.TLS; t != nil {
		c.TLS = &TLS{Version: t.Version, Cipher: t.CipherSuite, ServerName: t.ServerName, ALPN: t.NegotiatedProtocol}
	}
	return c
}

// Encode returns the bytes that Decode reads: one line of JSON, then the body.
func (c *Request) Encode() (string, error) {
	var b bytes.Buffer
	to := json.NewEncoder(&b)
	to.SetEscapeHTML(false)
	if err := to.Encode(c); err != nil { // ends with a line feed
		return "", err
	}
	b.Write(c.Body)
	return b.String(), nil
}

// Decode reads what is kept.
func Decode(payload string) (*Request, error) {
	head, body, found := strings.Cut(payload, "\n")
	c := &Request{Body: []byte(body)}
	if err := json.Unmarshal([]byte(head), c); err != nil || !found {
		return nil, errors.New("what is kept of the callback cannot be read: it was written by another version of iak_callback, or is damaged")
	}
	return c, nil
}

// HTTP returns the request without its body: whoever is to have that takes it from c.
func (c *Request) HTTP(ctx context.Context) (*http.Request, error) {
	target, err := url.ParseRequestURI(string(c.URI))
	if err != nil {
		return nil, fmt.Errorf("the target of the callback that is kept: %w", err)
	}
	ctx = context.WithValue(ctx, http.LocalAddrContextKey, c.local())
	r := (&http.Request{
		Method: http.MethodPost, Host: string(c.Host), URL: target, RequestURI: string(c.URI), RemoteAddr: c.Remote,
		Header: make(http.Header, len(c.Header)+1), Body: http.NoBody,
	}).WithContext(ctx)
	for name, values := range c.Header {
		for _, v := range values {
			r.Header[string(name)] = append(r.Header[string(name)], string(v))
		}
	}
	var ok bool
	if r.ProtoMajor, r.ProtoMinor, ok = http.ParseHTTPVersion(c.Proto); ok {
		r.Proto = c.Proto
	} else {
		r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.1", 1, 1
	}
	if t := c.TLS; t != nil {
		r.TLS = &tls.ConnectionState{
			HandshakeComplete: true, Version: t.Version, CipherSuite: t.Cipher, ServerName: t.ServerName, NegotiatedProtocol: t.ALPN,
		}
	}
	return r, nil
}

// local is the address on which it came; never nil, since placeholders ask it (Caddy
// v2.11.9, caddyhttp/replacer.go, http.request.local).
func (c *Request) local() net.Addr {
	network, address, _ := strings.Cut(c.Local, "/")
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && ip != nil {
		n, _ := strconv.Atoi(port)
		if strings.HasPrefix(network, "udp") {
			return &net.UDPAddr{IP: ip, Port: n}
		}
		return &net.TCPAddr{IP: ip, Port: n}
	}
	return &net.UnixAddr{Net: network, Name: address}
}

// Port is that on which it came, empty for a socket.
func (c *Request) Port() string {
	_, address, _ := strings.Cut(c.Local, "/")
	_, port, _ := net.SplitHostPort(address)
	return port
}
