//go:build unix

package redistest

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// StartReplica starts a replica and waits until it follows its master.
func StartReplica(t testing.TB, master *Server, args ...string) *Server {
	t.Helper()
	s := Start(t, append([]string{"--replicaof", "127.0.0.1 " + master.Port, "--repl-diskless-sync", "no"}, args...)...)
	client := s.Client()
	Eventually(t, "the replica follows its master", func() bool { return infoHas(client, "master_link_status:up") })
	return s
}

// Pair is a master and a replica behind one address, as a load balancer or a
// name gives them. The replica follows through another server, Link, which
// stands for the network between them: paused, it passes nothing on.
type Pair struct {
	Master, Link, Replica *Server
	Socket                string // the address: a unix socket

	t testing.TB
}

// StartPair starts a Pair; the arguments are the master's.
func StartPair(t testing.TB, args ...string) *Pair {
	t.Helper()
	socket := []string{"--unixsocket", "redis.sock", "--repl-diskless-sync", "no"}
	p := &Pair{t: t, Master: Start(t, append(args, socket...)...), Socket: filepath.Join(t.TempDir(), "redis.sock")}
	p.Link = StartReplica(t, p.Master)
	p.Replica = StartReplica(t, p.Link, socket...)
	p.pointTo(p.Master)
	return p
}

func (p *Pair) pointTo(s *Server) {
	p.t.Helper()
	_ = os.Remove(p.Socket)
	if err := os.Symlink(s.Socket(), p.Socket); err != nil {
		p.t.Fatal(err)
	}
}

var replicationOffset = regexp.MustCompile(`master_repl_offset:(\d+)`)

// WaitReplicated waits until the replica has all that the master has.
func (p *Pair) WaitReplicated() {
	p.t.Helper()
	offset := func(s *Server) string {
		info, err := s.Client().Info(context.Background(), "replication").Result()
		m := replicationOffset.FindStringSubmatch(info)
		if err != nil || m == nil {
			p.t.Fatalf("%v in %q", err, info)
		}
		return m[1]
	}
	Eventually(p.t, "the replica has caught up", func() bool { return offset(p.Master) == offset(p.Replica) })
}

// FailOver kills the master, and what it has not passed on with it, and makes
// the replica the master.
func (p *Pair) FailOver() {
	p.t.Helper()
	p.Master.Kill()
	p.Link.Kill()
	if err := p.Replica.Client().Do(context.Background(), "REPLICAOF", "NO", "ONE").Err(); err != nil {
		p.t.Fatal(err)
	}
	p.pointTo(p.Replica)
}
