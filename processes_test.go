package iakcallback

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var buildOnce struct {
	sync.Once
	path string
	err  error
}

// builtCaddy builds cmd/caddy once for all tests.
func builtCaddy(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		dir, err := os.MkdirTemp("", "iak_callback")
		if err != nil {
			buildOnce.err = err
			return
		}
		buildOnce.path = filepath.Join(dir, "caddy")
		out, err := exec.Command("go", "build", "-o", buildOnce.path, "./cmd/caddy").CombinedOutput()
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

func TestMain(m *testing.M) {
	embeddedTimeout *= 10 // a test machine's disk may be busy
	code := m.Run()
	if buildOnce.path != "" {
		_ = os.RemoveAll(filepath.Dir(buildOnce.path))
	}
	os.Exit(code)
}

// process is a Caddy in a process of its own.
type process struct {
	url string
	cmd *exec.Cmd
}

// startProcess runs a built Caddy with one site. Its data directory is dir.
func startProcess(t testing.TB, dir, block string) *process {
	t.Helper()
	p := &process{url: "http://127.0.0.1:" + freePort(t)}
	file := filepath.Join(t.TempDir(), "Caddyfile")
	text := "{\nadmin off\npersist_config off\ngrace_period 1s\n}\n" + p.url + " {\n" + block + "\n}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(builtCaddy(t), "run", "--config", file)
	p.cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	eventually(t, "Caddy answers", func() bool {
		answer, err := client.Get(p.url)
		if err == nil {
			answer.Body.Close()
		}
		return err == nil
	})
	return p
}

// 100 ref_ids, each delivered 8 times at once through two processes on one
// Redis, reach the app once each, and every delivery is accepted in the end.
func TestTwoProcesses(t *testing.T) {
	redis := startRedis(t)
	var mu sync.Mutex
	seen := make(map[string]int)
	app := startApp(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen[r.Header.Get("Idempotency-Key")]++
	})
	block := handlerBlock("redis "+redis.url()) + "reverse_proxy " + app.addr()
	processes := []*process{startProcess(t, t.TempDir(), block), startProcess(t, t.TempDir(), block)}

	var wg sync.WaitGroup
	start := make(chan bool)
	for ref := range 100 {
		body := order("order-"+strconv.Itoa(ref), "1")
		for copies := range 8 {
			wg.Go(func() {
				<-start
				for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
					answer, err := client.Post(processes[copies%2].url, "application/json", strings.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					answer.Body.Close()
					switch answer.StatusCode {
					case http.StatusOK:
						return
					case http.StatusConflict: // in flight: IAK would send it again
					default:
						t.Errorf("status %d", answer.StatusCode)
						return
					}
				}
				t.Error("not accepted within 30 seconds")
			})
		}
	}
	close(start)
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 100 || len(app.received()) != 100 {
		t.Errorf("the app saw %d ref_ids in %d requests, want 100 in 100", len(seen), len(app.received()))
	}
}

// A record in the embedded store outlives kill -9: what the app accepted is
// never delivered again.
func TestKilledProcess(t *testing.T) {
	app := startApp(t, nil)
	dir := t.TempDir()
	block := handlerBlock() + "reverse_proxy " + app.addr()
	p := startProcess(t, dir, block)
	for i := range 20 {
		answer, err := client.Post(p.url, "application/json", strings.NewReader(order("order-"+strconv.Itoa(i), "1")))
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	p = startProcess(t, dir, block)
	for i := range 20 {
		answer, err := client.Post(p.url, "application/json", strings.NewReader(order("order-"+strconv.Itoa(i), "1")))
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != 200 || answer.Header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("order %d: status %d, %v", i, answer.StatusCode, answer.Header)
		}
	}
	if n := len(app.received()); n != 20 {
		t.Errorf("the app received %d requests, want 20", n)
	}
}

// Caddy is killed while the app works on a callback, which is then sent again
// to a new process: 409 until the lease is over, then one more delivery with
// the same Idempotency-Key and a higher attempt, and never another.
func TestKilledWhileAppWorks(t *testing.T) {
	redis := startRedis(t)
	for name, store := range map[string]string{"embedded": "", "redis": "redis " + redis.url()} {
		t.Run(name, func(t *testing.T) {
			working, dead := make(chan bool, 1), make(chan bool)
			var once sync.Once
			app := startApp(t, func(_ http.ResponseWriter, _ *http.Request) {
				once.Do(func() {
					working <- true
					<-dead
				})
			})
			dir := t.TempDir()
			block := handlerBlock(store, "upstream_timeout 1s") + "reverse_proxy " + app.addr()
			p := startProcess(t, dir, block)
			body := order("order", "1")
			go func() {
				if answer, err := client.Post(p.url, "application/json", strings.NewReader(body)); err == nil {
					answer.Body.Close()
				}
			}()
			<-working
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = p.cmd.Wait()
			close(dead)

			again := startProcess(t, dir, block)
			statuses := make(map[int]int)
			post := func() *http.Response {
				answer, err := client.Post(again.url, "application/json", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				answer.Body.Close()
				statuses[answer.StatusCode]++
				return answer
			}
			eventually(t, "the callback is accepted", func() bool { return post().StatusCode == http.StatusOK })
			if post().Header.Get("Idempotent-Replayed") != "true" {
				t.Error("the accepted callback is delivered again")
			}
			if len(statuses) != 2 || statuses[http.StatusConflict] == 0 {
				t.Errorf("statuses %v, want 409 and then 200", statuses)
			}
			all := app.received()
			if len(all) != 2 {
				t.Fatalf("the app received %d requests, want 2", len(all))
			}
			for i, got := range all {
				if got.header.Get("Idempotency-Key") != "test:order:1" || got.header.Get("Iak-Attempt") != strconv.Itoa(i+1) {
					t.Errorf("delivery %d: %v", i+1, got.header)
				}
			}
		})
	}
}
