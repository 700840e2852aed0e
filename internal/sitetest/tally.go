package sitetest

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Tally counts what becomes of callbacks on their way to the app, for the
// tests that break something on that way. docs/guarantees.md shows its counts.
type Tally struct {
	Mu        sync.Mutex           // guards the rest
	Sent      int                  // requests that IAK has made, repeats included
	Told      map[string]bool      // the callbacks of which IAK has been told 2xx, by Idempotency-Key
	All       map[string]bool      // all callbacks that were sent
	Delivered map[string][]Arrival // what reached the app, by Idempotency-Key
}

// Arrival is one delivery as the app got it and answered it.
type Arrival struct {
	Attempt int
	Status  int // 0 while the app works, and if it never answers
	At      time.Time
	Via     string // the Caddy that delivered it, where a test has several
}

// NewTally is a Tally of nothing yet.
func NewTally() *Tally {
	return &Tally{Told: make(map[string]bool), All: make(map[string]bool), Delivered: make(map[string][]Arrival)}
}

// Counting lets an app's handler be counted. A nil handler answers 200.
func (c *Tally) Counting(handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		attempt, _ := strconv.Atoi(r.Header.Get("Iak-Attempt"))
		c.Mu.Lock()
		n := len(c.Delivered[key])
		c.Delivered[key] = append(c.Delivered[key], Arrival{Attempt: attempt, At: time.Now(), Via: r.Header.Get("Test-Via")})
		c.Mu.Unlock()
		answer := &statusWriter{ResponseWriter: w, Status: http.StatusOK}
		if handler != nil {
			handler(answer, r)
		}
		c.Mu.Lock()
		defer c.Mu.Unlock()
		c.Delivered[key][n].Status = answer.Status
	}
}

// statusWriter remembers the status of an app's answer.
type statusWriter struct {
	http.ResponseWriter
	Status int
}

func (w *statusWriter) WriteHeader(status int) {
	if status >= 200 {
		w.Status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Send makes one request, and gives its status, 0 when the answer did not
// come whole.
func (c *Tally) Send(url, refID, status string) int {
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(Order(refID, status)))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", "application/json")
	return c.Do(Client, "test:"+refID+":"+status, r)
}

// Do makes a request that delivers the callback with this Idempotency-Key.
func (c *Tally) Do(client *http.Client, key string, r *http.Request) int {
	c.Mu.Lock()
	c.Sent++
	c.All[key] = true
	c.Mu.Unlock()
	answer, err := client.Do(r)
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return 0
	}
	if answer.StatusCode/100 == 2 {
		c.Mu.Lock()
		c.Told[key] = true
		c.Mu.Unlock()
	}
	return answer.StatusCode
}

// Deliver sends a callback until it is accepted, and gives the last status
// when that does not happen within the time.
func (c *Tally) Deliver(url, refID, status string, within time.Duration) int {
	for deadline := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		got := c.Send(url, refID, status)
		if got/100 == 2 || time.Now().After(deadline) {
			return got
		}
	}
}

// Counts are the figures of docs/guarantees.md.
type Counts struct {
	Callbacks int // different outcomes that were sent
	Sent      int // requests of IAK
	Reached   int // deliveries that the app received
	Refused   int // of these, deliveries that the app itself refused
	Extra     int // deliveries of an outcome that the app had received before, without having refused it
	Lost      int // callbacks that the app has never accepted, whether IAK was told so or not
	Lied      int // of these, callbacks of which IAK was told 2xx
}

func (n Counts) String() string {
	return fmt.Sprintf("%d callbacks in %d requests; %d reached the app, %d refused by it, %d extra, %d lost (%d after a 2xx)",
		n.Callbacks, n.Sent, n.Reached, n.Refused, n.Extra, n.Lost, n.Lied)
}

// Sum sums up.
func (c *Tally) Sum() Counts {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	n := Counts{Callbacks: len(c.All), Sent: c.Sent}
	for _, arrivals := range c.Delivered {
		for i, a := range arrivals {
			n.Reached++
			if a.Status >= 300 {
				n.Refused++
			}
			if i > 0 && arrivals[i-1].Status < 300 {
				n.Extra++
			}
		}
	}
	for key := range c.All {
		if !c.accepted(key) {
			n.Lost++
			if c.Told[key] {
				n.Lied++
			}
		}
	}
	return n
}

// Count sums up, and reports what must not be in any test: deliveries of one
// outcome that do not carry rising attempts, and deliveries of what was not
// sent.
func (c *Tally) Count(t testing.TB) Counts {
	t.Helper()
	n := c.Sum()
	c.Mu.Lock()
	defer c.Mu.Unlock()
	for key, arrivals := range c.Delivered {
		if !c.All[key] {
			t.Errorf("%s reached the app, and was not sent", key)
		}
		for i, a := range arrivals[1:] {
			if before := arrivals[i]; before.Status < 300 && a.Attempt <= before.Attempt {
				t.Errorf("%s reached the app as attempt %d after attempt %d", key, a.Attempt, before.Attempt)
			}
		}
	}
	t.Logf("counted: %s", n)
	return n
}

// Accepted is how many callbacks the app has accepted.
func (c *Tally) Accepted() (n int) {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	for key := range c.All {
		if c.accepted(key) {
			n++
		}
	}
	return n
}

// HasAccepted tells whether the app has accepted the callback with this Idempotency-Key.
func (c *Tally) HasAccepted(key string) bool {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	return c.accepted(key)
}

func (c *Tally) accepted(key string) bool {
	return slices.ContainsFunc(c.Delivered[key], func(a Arrival) bool { return a.Status/100 == 2 })
}

// Twice is how many deliveries there were of what the app had accepted before.
func (c *Tally) Twice() (n int) {
	c.Mu.Lock()
	defer c.Mu.Unlock()
	for _, arrivals := range c.Delivered {
		if first := slices.IndexFunc(arrivals, func(a Arrival) bool { return a.Status/100 == 2 }); first >= 0 {
			n += len(arrivals) - first - 1
		}
	}
	return n
}

// Repeated returns the ref_ids that reached the app again after it had accepted
// them. It stands in for Count where a store may forget: there a repeat is a
// first attempt again.
func (c *Tally) Repeated(t *testing.T) (repeated []string) {
	t.Helper()
	c.Mu.Lock()
	defer c.Mu.Unlock()
	n := Counts{Callbacks: len(c.All), Sent: c.Sent}
	for key := range c.All {
		arrivals := c.Delivered[key]
		n.Reached += len(arrivals)
		n.Extra += max(len(arrivals)-1, 0)
		if !c.accepted(key) {
			n.Lost++
			if c.Told[key] {
				n.Lied++
			}
		}
		if len(arrivals) > 1 {
			repeated = append(repeated, strings.Split(key, ":")[1])
		}
	}
	t.Logf("counted: %s", n)
	if n.Lost != 0 {
		t.Errorf("%d callbacks are lost", n.Lost)
	}
	slices.Sort(repeated)
	return repeated
}
