package integration

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// beforeSpool is the last commit that knows of no spool.
const beforeSpool = "5e3f3bb"

// buildBefore builds Caddy as it was before there was a spool.
func buildBefore(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	archive := filepath.Join(dir, "source.tar")
	if out, err := exec.Command("git", "archive", "--output", archive, beforeSpool).CombinedOutput(); err != nil {
		t.Skipf("the source of before the spool is not here: %v: %s", err, out)
	}
	if out, err := exec.Command("tar", "-xf", archive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "caddy"), "./cmd/caddy")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return filepath.Join(dir, "caddy")
}

// startBefore runs an older Caddy.
func startBefore(t *testing.T, binary, dir, block string) (url string, stop func()) {
	t.Helper()
	url = "http://127.0.0.1:" + sitetest.FreePort(t)
	file := filepath.Join(t.TempDir(), "Caddyfile")
	writeFile(t, file, []byte("{\nadmin off\npersist_config off\ngrace_period 1s\n}\n"+url+" {\n"+block+"\n}\n"))
	cmd := exec.Command(binary, "run", "--config", file)
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the older Caddy said:\n%s", output.Bytes())
		}
	})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	sitetest.Eventually(t, "the older Caddy answers", func() bool {
		answer, err := sitetest.Client.Get(url)
		if err == nil {
			answer.Body.Close()
		}
		return err == nil
	})
	return url, stop
}

// An older Caddy, which knows of no spool, answers 503 for an order of which a callback
// is kept, held or in the app, and leaves its record as it is. In Redis what it knows goes
// on; a file of the new format it does not open.
func TestSpoolOlderVersion(t *testing.T) {
	binary := buildBefore(t)
	onBothSpools(t, func(t *testing.T, option string) {
		c := sitetest.NewTally()
		var well atomic.Bool
		answer := make(chan bool)
		open := sync.OnceFunc(func() { close(answer) })
		app := sitetest.StartApp(t, c.Counting(func(w http.ResponseWriter, r *http.Request) {
			switch key := r.Header.Get("Idempotency-Key"); {
			case strings.Contains(key, "old"):
			case strings.Contains(key, "works"):
				<-answer
			case !well.Load():
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		}))
		t.Cleanup(open) // before the app is closed
		dir := sitetest.MemoryDir(t)
		block := sitetest.Block(option, "spool {\nanswer_within 100ms\nbackoff 1s 1h\n}") + "reverse_proxy " + app.Addr()
		plain := sitetest.Block(option) + "reverse_proxy " + app.Addr()
		caddy := startManned(t, dir, block)
		refs := []string{"kept-0", "kept-1"}
		if option != "" {
			refs = append(refs, "works-0", "works-1")
		}
		for _, ref := range append(refs, "old-0") {
			if got := c.Send(caddy.URL, ref, "1"); got != http.StatusOK {
				t.Errorf("%s: status %d, want 200", ref, got)
			}
		}
		before := caddy.records()
		if option == "" { // one process at a time has the file
			_ = caddy.Cmd.Process.Signal(syscall.SIGTERM)
			_ = caddy.Cmd.Wait()
		}
		older, stop := startBefore(t, binary, dir, plain)
		reached := c.Sum().Reached
		for _, ref := range refs {
			for _, status := range []string{"1", "0", "2"} {
				r, err := http.NewRequest(http.MethodPost, older, strings.NewReader(sitetest.Order(ref, status)))
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Content-Type", "application/json")
				reply, err := sitetest.Client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, reply.Body)
				reply.Body.Close()
				if reply.StatusCode != http.StatusServiceUnavailable {
					t.Errorf("%s with %s is answered %d by the older Caddy, want 503", ref, status, reply.StatusCode)
				}
			}
		}
		if got := c.Sum().Reached; got != reached {
			t.Errorf("the older Caddy has delivered %d of what is kept", got-reached)
		}
		want := http.StatusOK
		if option == "" {
			want = http.StatusServiceUnavailable
		}
		for _, ref := range []string{"old-0", "old-1"} {
			if got := c.Send(older, ref, "1"); got != want {
				t.Errorf("%s is answered %d by the older Caddy, want %d", ref, got, want)
			}
		}
		stop()
		if option == "" {
			caddy = startManned(t, dir, block)
			c.Deliver(caddy.URL, "old-1", "1", 20*time.Second) // as IAK would
		}
		after := caddy.records()
		for _, ref := range refs {
			if b, a := before[ref], after[ref]; b.State != a.State || !b.Changed.Equal(a.Changed) || a.Kept == nil || !b.Kept.Came.Equal(a.Kept.Came) || len(a.Kept.Tries) != len(b.Kept.Tries) {
				t.Errorf("%s was %+v, and is %+v", ref, b, a)
			}
		}
		open()
		well.Store(true)
		if _, err := caddy.command("redeliver", "--spooled", "--yes"); err != nil {
			t.Error(err)
		}
		caddy.drains(c, 30*time.Second)
		noneLost(t, c)
	})
}
