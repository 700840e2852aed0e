package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// Dialer connects to a server within the timeout, handshake included; without a
// config it speaks no TLS. It is for a client's Dialer.
//
// A connection on which an operation timed out is reset when it is closed. Closed in
// the usual way, what was written stays with the kernel, which sends it again and again
// while the network is down: a claim would reach Redis minutes after it was given back.
func Dialer(timeout time.Duration, config *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{Timeout: timeout, KeepAliveConfig: net.KeepAliveConfig{ // as go-redis's own dialer
		Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		conn, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if tcp, ok := conn.(*net.TCPConn); ok { // a unix socket has no network behind it
			conn = &resetConn{TCPConn: tcp}
		}
		if config == nil {
			return conn, nil
		}
		config := config.Clone()
		if config.ServerName == "" {
			if config.ServerName, _, err = net.SplitHostPort(addr); err != nil {
				config.ServerName = addr
			}
		}
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, err
		}
		return secure, nil
	}
}

// resetConn notes that an operation timed out. It is a TCPConn in all else: go-redis
// looks through syscall.Conn whether it is alive (v9.23.0, internal/pool/conn_check.go).
type resetConn struct {
	*net.TCPConn
	late atomic.Bool
}

func (c *resetConn) note(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.late.Store(true)
	}
}

func (c *resetConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.note(err)
	return n, err
}

func (c *resetConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.note(err)
	return n, err
}

// Close resets the connection if something on it may still be on its way (Linux
// manual, socket(7), SO_LINGER; tcp(7)).
func (c *resetConn) Close() error {
	if c.late.Load() {
		_ = c.SetLinger(0)
	}
	return c.TCPConn.Close()
}
