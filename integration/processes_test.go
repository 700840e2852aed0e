package integration

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// 100 ref_ids, each delivered 8 times at once through two processes on one
// Redis, reach the app once each, and every delivery is accepted in the end.
func TestTwoProcesses(t *testing.T) {
	redis := redistest.Start(t)
	var mu sync.Mutex
	seen := make(map[string]int)
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen[r.Header.Get("Idempotency-Key")]++
	})
	block := sitetest.Block("redis "+redis.URL()) + "reverse_proxy " + app.Addr()
	processes := []*sitetest.Process{sitetest.StartProcess(t, t.TempDir(), block), sitetest.StartProcess(t, t.TempDir(), block)}

	var wg sync.WaitGroup
	start := make(chan bool)
	for ref := range 100 {
		body := sitetest.Order("order-"+strconv.Itoa(ref), "1")
		for copies := range 8 {
			wg.Go(func() {
				<-start
				for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
					answer, err := sitetest.Client.Post(processes[copies%2].URL, "application/json", strings.NewReader(body))
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
	if len(seen) != 100 || len(app.Received()) != 100 {
		t.Errorf("the app saw %d ref_ids in %d requests, want 100 in 100", len(seen), len(app.Received()))
	}
}
