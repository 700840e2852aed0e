//go:build unix

package redistest

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Drops stands between a client and Redis as a network that drops each packet for a
// while. The client's kernel sends them again, also for a connection that was closed
// meanwhile, and they arrive when the network is back; those of a connection that was
// reset never do.
type Drops struct {
	listener net.Listener
	target   string

	mu     sync.Mutex
	broken chan struct{} // closed when the network is back
	late   sync.WaitGroup
	resets int
	closes int
}

// StartDrops starts a network to a server's address. It works until Break.
func StartDrops(t testing.TB, target string) *Drops {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &Drops{listener: l, target: target}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go d.serve(conn)
		}
	}()
	return d
}

// URL is redis://host:port.
func (d *Drops) URL() string { return "redis://" + d.listener.Addr().String() }

// Break drops all packets until back is called, which returns when what was
// sent meanwhile has arrived, and tells how many connections were closed and how many
// reset meanwhile with something on its way.
func (d *Drops) Break() (back func() (closes, resets int)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken, d.closes, d.resets = make(chan struct{}), 0, 0
	return func() (int, int) {
		d.mu.Lock()
		close(d.broken)
		d.broken = nil
		d.mu.Unlock()
		d.late.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.closes, d.resets
	}
}

// Ended is how many connections were closed or reset while the network was down, with
// something on its way.
func (d *Drops) Ended() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closes + d.resets
}

func (d *Drops) down() chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.broken
}

func (d *Drops) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	server, err := net.Dial("tcp", d.target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() {
		_, _ = io.Copy(conn, server)
		_ = conn.Close()
	}()
	var held []byte
	request := make([]byte, 64<<10)
	for {
		n, err := conn.Read(request)
		broken := d.down()
		if broken == nil && err == nil {
			_, _ = server.Write(request[:n])
			continue
		}
		held = append(held, request[:n]...)
		if err == nil {
			continue
		}
		if len(held) == 0 {
			return
		}
		d.mu.Lock()
		if errors.Is(err, syscall.ECONNRESET) {
			d.resets++
			d.mu.Unlock()
			return
		}
		d.closes++
		d.late.Add(1)
		d.mu.Unlock()
		if broken != nil {
			<-broken
		}
		_, _ = server.Write(held)
		_ = server.(*net.TCPConn).CloseWrite()
		_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.Copy(io.Discard, server) // until Redis has carried it out
		d.late.Done()
		return
	}
}
