package integration

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// Nothing was sent to the app if not one byte of the body was read, whatever
// Caddy calls the error: the record is released and no attempt counted, so
// that nothing is held, and on_doubt accept takes nothing for accepted. To the kind
// belong dialing, TLS, a pool without room, a handler between that refuses, and
// retries that go on longer than upstream_timeout.
func TestUnreached(t *testing.T) {
	refused := "127.0.0.1:" + sitetest.FreePort(t)
	untrusted := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the app was reached") }))
	defer untrusted.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, tc := range []struct{ name, behind string }{
		{"the certificate is not trusted", "reverse_proxy " + untrusted.URL},
		{"no TLS there", "reverse_proxy https://" + sitetest.StartApp(t, nil).Addr()},
		{"refused", "reverse_proxy " + refused},
		{"refused, tried again for longer than upstream_timeout", "reverse_proxy " + refused + " {\nlb_try_duration 10s\n}"},
		{"the TLS handshake hangs", "reverse_proxy https://" + silent.Addr().String()},
		{"a handler between refuses", "basic_auth {\nu $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\nrespond ok"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, doubt := range []string{"hold", "accept"} {
				s := sitetest.Start(t, sitetest.Block("upstream_timeout 300ms", "on_doubt "+doubt)+tc.behind)
				for range 2 {
					if got := s.Post(sitetest.Order("order-"+doubt, "1")); got.Status < 400 || got.Status == http.StatusConflict {
						t.Errorf("on_doubt %s: status %d, want an error that is no 409", doubt, got.Status)
					}
				}
				for _, line := range s.CallbackLines() {
					if line["outcome"] != "app_failed" || line["attempt"] != 1.0 {
						t.Errorf("on_doubt %s: outcome %v, attempt %v, want app_failed and 1", doubt, line["outcome"], line["attempt"])
					}
				}
			}
		})
	}
}

// Caddy is stopped (a pause of its virtual machine) while the app refuses. What
// IAK is answered and what is remembered agree: a refusal that was passed on is a
// refusal, also with on_doubt accept.
func TestPause(t *testing.T) {
	for _, doubt := range []string{"retry", "accept"} {
		t.Run(doubt, func(t *testing.T) {
			var refusing atomic.Bool
			refusing.Store(true)
			arrived, answered := make(chan bool, 1), make(chan bool, 1)
			app := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
				if refusing.Load() {
					arrived <- true
					<-answered
					w.WriteHeader(http.StatusInternalServerError)
				}
			})
			p := sitetest.StartProcess(t, t.TempDir(), sitetest.Block("upstream_timeout 500ms", "on_doubt "+doubt)+"reverse_proxy "+app.Addr())
			first := make(chan int, 1)
			go func() { first <- post(t, p.URL, "order-1").Status }()
			<-arrived
			_ = p.Cmd.Process.Signal(syscall.SIGSTOP)
			answered <- true
			time.Sleep(2 * time.Second) // the pause itself: longer than upstream_timeout and its grace
			refusing.Store(false)
			_ = p.Cmd.Process.Signal(syscall.SIGCONT)
			status := <-first
			second := post(t, p.URL, "order-1")
			switch {
			case status == http.StatusInternalServerError && second.Status == http.StatusOK && second.Header.Get("Idempotent-Replayed") == "":
			case status == http.StatusGatewayTimeout && doubt == "retry" &&
				(second.Status == http.StatusConflict || second.Status == http.StatusOK && second.Header.Get("Idempotent-Replayed") == ""):
			case status == http.StatusOK && doubt == "accept" && second.Header.Get("Idempotent-Replayed") == "true":
			default:
				t.Errorf("IAK got %d, and for the repeat %d (replayed %q): they contradict each other",
					status, second.Status, second.Header.Get("Idempotent-Replayed"))
			}
		})
	}
}

func post(t *testing.T, url, refID string) sitetest.Reply {
	client := &http.Client{Timeout: 10 * time.Second}
	answer, err := client.Post(url, "application/json", strings.NewReader(sitetest.Order(refID, "1")))
	if err != nil {
		t.Error(err)
		return sitetest.Reply{}
	}
	answer.Body.Close()
	return sitetest.Reply{Status: answer.StatusCode, Header: answer.Header}
}

// within posts a callback that has to be answered within a second, by 200 or 503.
func within(t *testing.T, url, refID string) (status int) {
	t.Helper()
	start := time.Now()
	status = post(t, url, refID).Status
	if took := time.Since(start); took > 2*time.Second || status != http.StatusOK && status != http.StatusServiceUnavailable {
		t.Errorf("%d after %s, want 200 or 503 within a second", status, took)
	}
	return status
}

// The embedded store's file is cut short, as copytruncate does, or overwritten
// while Caddy has it open: each callback is answered, Caddy ends when it is told
// to, and the next start works or says 503.
func TestEmbeddedTruncated(t *testing.T) {
	for name, meddle := range map[string]func(file string) error{
		"cut":         func(file string) error { return os.Truncate(file, 0) },
		"overwritten": func(file string) error { return overwrite(file, make([]byte, 8192)) },
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "r.sqlite")
			block := sitetest.Block("embedded "+file) + "respond ok"
			p := sitetest.StartProcess(t, t.TempDir(), block)
			for i := range 3 {
				if status := within(t, p.URL, fmt.Sprint("before-", i)); status != http.StatusOK {
					t.Fatalf("status %d", status)
				}
			}
			if err := meddle(file); err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				within(t, p.URL, fmt.Sprint("after-", i))
			}
			_ = p.Cmd.Process.Signal(syscall.SIGTERM)
			ended := make(chan error, 1)
			go func() { ended <- p.Cmd.Wait() }()
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Fatal("SIGTERM does not end Caddy")
			}
			within(t, sitetest.StartProcess(t, t.TempDir(), block).URL, "again")
		})
	}
}

func overwrite(file string, b []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, 0)
	return err
}

// A disk that hangs holds up callbacks, which get 503, and nothing else in Caddy.
func TestEmbeddedHungDisk(t *testing.T) {
	below, mount := t.TempDir(), t.TempDir()
	bindfs := exec.Command("bindfs", "-f", below, mount)
	if err := bindfs.Start(); err != nil {
		t.Skipf("bindfs cannot be started: %v", err)
	}
	t.Cleanup(func() {
		_ = bindfs.Process.Signal(syscall.SIGCONT)
		_ = exec.Command("umount", "-l", mount).Run()
		_ = bindfs.Process.Kill()
		_ = bindfs.Wait()
	})
	for deadline := time.Now().Add(5 * time.Second); !mounted(mount); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Skip("bindfs cannot mount here")
		}
	}
	p := sitetest.StartProcess(t, t.TempDir(), sitetest.Block("embedded "+filepath.Join(mount, "r.sqlite"))+"respond ok")
	for i := range 20 {
		if status := post(t, p.URL, fmt.Sprint("before-", i)).Status; status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
	}
	_ = bindfs.Process.Signal(syscall.SIGSTOP)
	for i := range 3 {
		if status := within(t, p.URL, fmt.Sprint("meanwhile-", i)); status != http.StatusServiceUnavailable {
			t.Errorf("status %d, want 503", status)
		}
	}
	start := time.Now()
	answer, err := sitetest.Client.Get(p.URL) // 405 needs no store
	if err != nil || answer.StatusCode != http.StatusMethodNotAllowed || time.Since(start) > 2*time.Second {
		t.Errorf("a GET: %v after %s, want 405 at once", err, time.Since(start))
	}
	_ = bindfs.Process.Signal(syscall.SIGCONT)
	sitetest.Eventually(t, "the store works again", func() bool { return post(t, p.URL, "afterwards").Status == http.StatusOK })
}

func mounted(dir string) bool {
	mounts, _ := os.ReadFile("/proc/mounts")
	return strings.Contains(string(mounts), " "+dir+" ")
}

// The same file under two names is one store.
func TestEmbeddedSymlink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("d1", filepath.Join(dir, "d2")); err != nil {
		t.Fatal(err)
	}
	block := func(name string) string {
		return "handle /" + name + " {\n" + sitetest.Block("embedded "+filepath.Join(dir, name, "r.sqlite")) + "respond ok\n}\n"
	}
	s := sitetest.Start(t, block("d1")+block("d2"))
	if got := post(t, s.URL+"/d1", "order-1"); got.Status != http.StatusOK {
		t.Errorf("status %d", got.Status)
	}
	if got := post(t, s.URL+"/d2", "order-1"); got.Status != http.StatusOK || got.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("status %d, replayed %q, want the record of the other name", got.Status, got.Header.Get("Idempotent-Replayed"))
	}
}
