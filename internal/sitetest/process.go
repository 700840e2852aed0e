package sitetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// MemoryDir is a directory that needs no disk, where there is one. What a killed
// process has written is the kernel's, on a disk as in memory; but a disk that
// others keep busy may be slower than the embedded store waits.
func MemoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "iak_callback")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

var buildOnce struct {
	sync.Once
	path string
	err  error
}

// BuiltCaddy builds cmd/caddy once for all tests of this process, and returns
// where it is. Main removes it.
func BuiltCaddy(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		dir, err := os.MkdirTemp("", "iak_callback")
		if err != nil {
			buildOnce.err = err
			return
		}
		buildOnce.path = filepath.Join(dir, "caddy")
		build := exec.Command("go", "build", "-o", buildOnce.path, "./cmd/caddy")
		build.Dir = root()
		out, err := build.CombinedOutput()
		if err != nil {
			t.Logf("%s", out)
		}
		buildOnce.err = err
	})
	if buildOnce.err != nil {
		t.Fatal(buildOnce.err)
	}
	return buildOnce.path
}

// Process is a Caddy in a process of its own.
type Process struct {
	URL string
	Cmd *exec.Cmd

	t   testing.TB
	log string // a file
}

// Log is what it has logged so far.
func (p *Process) Log() string {
	p.t.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// StartProcess runs a built Caddy with one site. Its data directory is dir; its grace
// period is a second, unless global options say otherwise.
func StartProcess(t testing.TB, dir, block string, global ...string) *Process {
	t.Helper()
	if len(global) == 0 {
		global = []string{"grace_period 1s"}
	}
	p := &Process{t: t, log: filepath.Join(t.TempDir(), "log"), URL: "http://127.0.0.1:" + FreePort(t)}
	file := filepath.Join(t.TempDir(), "Caddyfile")
	text := "{\nadmin off\npersist_config off\n" + strings.Join(global, "\n") + "\n}\n" + p.URL + " {\n" + block + "\n}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Cmd = exec.Command(BuiltCaddy(t), "run", "--config", file)
	p.Cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the process has it by itself
	p.Cmd.Stderr = log
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Cmd.Process.Kill()
		_ = p.Cmd.Wait()
	})
	Eventually(t, "Caddy answers", func() bool {
		answer, err := Client.Get(p.URL)
		if err == nil {
			answer.Body.Close()
		}
		return err == nil
	})
	return p
}
