package iakcallback

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// tally counts what becomes of callbacks on their way to the app, for the
// tests that break something on that way. docs/guarantees.md shows its counts.
type tally struct {
	mu        sync.Mutex
	sent      int                  // requests that IAK has made, repeats included
	told      map[string]bool      // the callbacks of which IAK has been told 2xx, by Idempotency-Key
	all       map[string]bool      // all callbacks that were sent
	delivered map[string][]arrival // what reached the app, by Idempotency-Key
}

// arrival is one delivery as the app got it and answered it.
type arrival struct {
	attempt int
	status  int // 0 while the app works, and if it never answers
	at      time.Time
	via     string // the Caddy that delivered it, where a test has several
}

func newTally() *tally {
	return &tally{told: make(map[string]bool), all: make(map[string]bool), delivered: make(map[string][]arrival)}
}

// counting lets an app's handler be counted. A nil handler answers 200.
func (c *tally) counting(handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		attempt, _ := strconv.Atoi(r.Header.Get("Iak-Attempt"))
		c.mu.Lock()
		n := len(c.delivered[key])
		c.delivered[key] = append(c.delivered[key], arrival{attempt: attempt, at: time.Now(), via: r.Header.Get("Test-Via")})
		c.mu.Unlock()
		answer := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		if handler != nil {
			handler(answer, r)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.delivered[key][n].status = answer.status
	}
}

// statusWriter remembers the status of an app's answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// send makes one request, and gives its status, 0 when the answer did not
// come whole.
func (c *tally) send(url, refID, status string) int {
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(order(refID, status)))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", "application/json")
	return c.do(client, "test:"+refID+":"+status, r)
}

// do makes a request that delivers the callback with this Idempotency-Key.
func (c *tally) do(client *http.Client, key string, r *http.Request) int {
	c.mu.Lock()
	c.sent++
	c.all[key] = true
	c.mu.Unlock()
	answer, err := client.Do(r)
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return 0
	}
	if answer.StatusCode/100 == 2 {
		c.mu.Lock()
		c.told[key] = true
		c.mu.Unlock()
	}
	return answer.StatusCode
}

// deliver sends a callback until it is accepted, and gives the last status
// when that does not happen within the time.
func (c *tally) deliver(url, refID, status string, within time.Duration) int {
	for deadline := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		got := c.send(url, refID, status)
		if got/100 == 2 || time.Now().After(deadline) {
			return got
		}
	}
}

// counts are the figures of docs/guarantees.md.
type counts struct {
	callbacks int // different outcomes that were sent
	sent      int // requests of IAK
	reached   int // deliveries that the app received
	refused   int // of these, deliveries that the app itself refused
	extra     int // deliveries of an outcome that the app had received before, without having refused it
	lost      int // callbacks that the app has never accepted, whether IAK was told so or not
	lied      int // of these, callbacks of which IAK was told 2xx
}

func (n counts) String() string {
	return fmt.Sprintf("%d callbacks in %d requests; %d reached the app, %d refused by it, %d extra, %d lost (%d after a 2xx)",
		n.callbacks, n.sent, n.reached, n.refused, n.extra, n.lost, n.lied)
}

// count sums up, and reports what must not be in any test: deliveries of one
// outcome that do not carry rising attempts, and deliveries of what was not
// sent.
func (c *tally) count(t testing.TB) counts {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := counts{callbacks: len(c.all), sent: c.sent}
	for key, arrivals := range c.delivered {
		if !c.all[key] {
			t.Errorf("%s reached the app, and was not sent", key)
		}
		for i, a := range arrivals {
			n.reached++
			if a.status >= 300 {
				n.refused++
			}
			if i == 0 {
				continue
			}
			if before := arrivals[i-1]; before.status < 300 {
				n.extra++
				if a.attempt <= before.attempt {
					t.Errorf("%s reached the app as attempt %d after attempt %d", key, a.attempt, before.attempt)
				}
			}
		}
	}
	for key := range c.all {
		accepted := false
		for _, a := range c.delivered[key] {
			accepted = accepted || a.status/100 == 2
		}
		if !accepted {
			n.lost++
			if c.told[key] {
				n.lied++
			}
		}
	}
	t.Logf("counted: %s", n)
	return n
}
