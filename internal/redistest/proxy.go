//go:build unix

package redistest

import (
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
)

// Proxy stands between a client and Redis. It can lose replies: the command has
// been carried out, and the connection breaks before its answer arrives. It can
// hold a request back, so that it reaches Redis after its caller has given up.
// It can hang, and cut all connections.
type Proxy struct {
	listener net.Listener
	target   string
	refusal  func(request []byte) []byte

	mu      sync.Mutex
	conns   map[net.Conn]bool
	closed  bool
	lose    int // how many replies are still to be lost
	lost    int
	hold    chan struct{} // holds the next request back until it is closed
	hanging chan struct{} // holds everything up until it is closed
}

// StartProxy starts a proxy for a server's address.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	return startProxy(t, target, nil)
}

// StartOld starts what answers as a Redis older than 7.0, as far as scripts go:
// it passes everything on to a real Redis, but refuses a script that begins with
// a shebang, with the words of Redis 6.
func StartOld(t testing.TB, target string) *Proxy {
	t.Helper()
	return startProxy(t, target, func(request []byte) []byte {
		if bytes.Contains(bytes.ToLower(request), []byte("\r\neval\r\n")) && bytes.Contains(request, []byte("\r\n#!")) {
			return []byte("-ERR Error compiling script (new function): user_script:1: unexpected symbol near '#' \r\n")
		}
		return nil
	})
}

func startProxy(t testing.TB, target string, refusal func([]byte) []byte) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, target: target, refusal: refusal, conns: make(map[net.Conn]bool)}
	t.Cleanup(func() {
		_ = l.Close()
		p.Hang()() // nothing stays behind
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.Cut()
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(conn)
		}
	}()
	return p
}

// Addr is host and port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// URL is redis://host:port.
func (p *Proxy) URL() string { return "redis://" + p.Addr() }

// Cut breaks all connections. New ones are taken.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		_ = conn.Close()
	}
}

// keep notes a connection for Cut.
func (p *Proxy) keep(conn net.Conn) (forget func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[conn] = true
	if p.closed {
		_ = conn.Close()
	}
	return func() {
		_ = conn.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, conn)
	}
}

func (p *Proxy) serve(conn net.Conn) {
	defer p.keep(conn)()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer p.keep(server)()
	go func() {
		defer func() { _ = server.Close() }()
		request := make([]byte, 64<<10)
		for {
			n, err := conn.Read(request)
			if err != nil {
				return
			}
			p.wait()
			if p.refusal != nil {
				if answer := p.refusal(request[:n]); answer != nil {
					if _, err := conn.Write(answer); err != nil {
						return
					}
					continue
				}
			}
			if _, err := server.Write(request[:n]); err != nil {
				return
			}
		}
	}()
	reply := make([]byte, 64<<10)
	for {
		n, err := server.Read(reply)
		if err != nil {
			return
		}
		p.waitHanging()
		if p.loses(reply[:n]) {
			return
		}
		if _, err := conn.Write(reply[:n]); err != nil {
			return
		}
	}
}

// Hang lets nothing through in either direction until resume is called.
// Connections are still taken.
func (p *Proxy) Hang() (resume func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hanging == nil {
		p.hanging = make(chan struct{})
	}
	hanging := p.hanging
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.hanging == hanging {
			p.hanging = nil
			close(hanging)
		}
	}
}

func (p *Proxy) waitHanging() {
	p.mu.Lock()
	hanging := p.hanging
	p.mu.Unlock()
	if hanging != nil {
		<-hanging
	}
}

// HoldNext holds the next request back, until release is called.
func (p *Proxy) HoldNext() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hold := make(chan struct{})
	p.hold = hold
	return sync.OnceFunc(func() { close(hold) })
}

// Holds tells whether a request is still to be held back: none has come yet.
func (p *Proxy) Holds() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hold != nil
}

func (p *Proxy) wait() {
	p.waitHanging()
	p.mu.Lock()
	hold := p.hold
	p.hold = nil
	p.mu.Unlock()
	if hold != nil {
		<-hold
	}
}

// LoseReplies makes the next n replies get lost, and counts them anew. The
// replies to what a client says on connecting, and that a script is not known, go
// through.
func (p *Proxy) LoseReplies(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose, p.lost = n, 0
}

// RepliesLost is how many replies were lost since LoseReplies.
func (p *Proxy) RepliesLost() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// handshake tells the replies to what a client says on connecting: HELLO (Redis 7.0
// knows no CLIENT SETINFO), AUTH, SELECT, and a script that answers 1.
func handshake(reply string) bool {
	return strings.Contains(reply, "NOSCRIPT") || strings.Contains(reply, "proto") || strings.Contains(reply, "SETINFO") ||
		strings.HasPrefix(reply, "+OK") || reply == ":1\r\n"
}

func (p *Proxy) loses(reply []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lose == 0 || handshake(string(reply)) {
		return false
	}
	p.lose--
	p.lost++
	return true
}
