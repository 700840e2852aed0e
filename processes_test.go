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
