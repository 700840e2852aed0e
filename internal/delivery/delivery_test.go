package delivery

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// What the handlers behind did, and what it means for the claim.
func TestClassify(t *testing.T) {
	dial := caddyhttp.Error(502, reverseproxy.NewDialError(errors.New("refused")))
	for _, tc := range []struct {
		name string
		e    evidence
		want Result
	}{
		{"2xx", evidence{returned: true, status: 200, upstream: 200, read: true}, Accepted},
		{"2xx of a handler that does not read", evidence{returned: true, status: 200}, Accepted},
		{"2xx in the last moment", evidence{returned: true, status: 204, upstream: 204, read: true, timedOut: true}, Accepted},
		{"2xx that does not count", evidence{returned: true, status: 200, upstream: 200, read: true, unmet: errors.New("x")}, Unmet},
		{"2xx that does not count, and broke off", evidence{returned: true, status: 200, upstream: 200, read: true, unmet: errors.New("x"), err: caddyhttp.Error(502, nil)}, Unmet},
		{"redirect", evidence{returned: true, status: 301, upstream: 301, read: true}, Refused},
		{"the app's own 502", evidence{returned: true, status: 502, upstream: 502, read: true}, Refused},
		{"the app's own 499", evidence{returned: true, status: 499, upstream: 499, read: true}, Refused},
		{"a refusal that broke off", evidence{status: 500, upstream: 500, read: true}, Refused},
		{"a refusal that broke off after the timeout", evidence{status: 500, upstream: 500, read: true, timedOut: true}, Refused},
		{"a refusal seen, and then an error", evidence{returned: true, err: caddyhttp.Error(504, nil), upstream: 500, read: true, timedOut: true}, Refused},
		{"nobody", evidence{returned: true}, Nobody},
		{"nobody, though somebody read", evidence{returned: true, read: true}, Nobody},
		{"nobody behind a forward_auth", evidence{returned: true, upstream: 200}, Nobody},
		{"an answer that is none, 101", evidence{returned: true, upstream: 101, read: true}, BrokeOff},
		{"an answer that swallowed the app's", evidence{returned: true, upstream: 204, read: true}, BrokeOff},
		{"a swallowed timeout", evidence{returned: true, timedOut: true, read: true}, TimedOut},
		{"a swallowed timeout before anything was sent", evidence{returned: true, timedOut: true}, Unsent},
		{"cancelled", evidence{returned: true, status: 499, read: true}, BrokeOff},
		{"cancelled before anything was sent", evidence{returned: true, status: 499}, Unsent},
		{"cancelled after the timeout", evidence{returned: true, status: 499, read: true, timedOut: true}, TimedOut},
		{"dial error", evidence{returned: true, err: dial}, Unsent},
		{"dial error behind a buffer", evidence{returned: true, err: dial, read: true}, Unsent},
		{"dial error after the timeout", evidence{returned: true, err: dial, timedOut: true}, Unsent},
		{"the certificate is not trusted", evidence{returned: true, err: caddyhttp.Error(502, errors.New("x509"))}, Unsent},
		{"no upstream", evidence{returned: true, err: caddyhttp.Error(503, errors.New("no upstreams"))}, Unsent},
		{"no upstream behind a buffer", evidence{returned: true, err: caddyhttp.Error(503, errors.New("no upstreams")), read: true}, Unsent},
		{"a handler refused", evidence{returned: true, err: caddyhttp.Error(401, nil)}, Unsent},
		{"an error that is no HandlerError", evidence{returned: true, err: errors.New("x")}, Unsent},
		{"an error made of the app's answer", evidence{returned: true, err: caddyhttp.Error(500, nil), upstream: 500, read: true}, Refused},
		{"an error made of the app's 2xx", evidence{returned: true, err: caddyhttp.Error(500, nil), upstream: 200, read: true}, Refused},
		{"broke off", evidence{returned: true, err: caddyhttp.Error(502, errors.New("EOF")), read: true}, BrokeOff},
		{"a transport's own timeout", evidence{returned: true, err: caddyhttp.Error(504, nil), read: true}, BrokeOff},
		{"timeout", evidence{returned: true, err: caddyhttp.Error(504, nil), read: true, timedOut: true}, TimedOut},
		{"timeout before anything was sent", evidence{returned: true, err: caddyhttp.Error(504, nil), timedOut: true}, Unsent},
		{"error after the header", evidence{returned: true, err: caddyhttp.Error(400, nil), status: 200, upstream: 200, read: true}, BrokeOff},
		{"panic in a 2xx", evidence{status: 200, upstream: 200, read: true}, BrokeOff},
		{"panic in a 2xx after the timeout", evidence{status: 200, upstream: 200, read: true, timedOut: true}, TimedOut},
		{"panic", evidence{read: true}, BrokeOff},
		{"panic before anything was sent", evidence{}, Unsent},
		{"still at work", evidence{read: true, timedOut: true}, TimedOut},
		{"still waiting to begin", evidence{timedOut: true}, Unsent},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := classify(&tc.e)
			if got.Result != tc.want {
				t.Errorf("got %d, want %d", got.Result, tc.want)
			}
			if (got.Why != nil) != (got.Result == Unsent || got.Result == Unmet) {
				t.Errorf("why: %v", got.Why)
			}
		})
	}
}

// brokenWriter panics when it is answered over the handler's head.
type brokenWriter struct{ http.ResponseWriter }

func (brokenWriter) WriteHeader(int) { panic("a plugin's writer") }

// A panic while a late app is given up, in what is told then or in the caller's
// writer, is told, and ends neither Caddy nor the delivery.
func TestLatePanics(t *testing.T) {
	grace, report := ReturnGrace, guard.Report
	ReturnGrace = 0
	t.Cleanup(func() { ReturnGrace, guard.Report = grace, report })
	for name, tc := range map[string]struct {
		late   func(Report) int
		broken bool
	}{
		"what is told": {late: func(Report) int { panic("a plugin's event handler") }},
		"the writer":   {late: func(Report) int { return 504 }, broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			panicked := make(chan any, 2)
			gaveUp := make(chan bool)
			guard.Report = func(_ string, p *guard.PanicError) { panicked <- p.Cause; close(gaveUp) }
			var ended Report
			d := &Delivery{
				Timeout: 20 * time.Millisecond, Late: tc.late,
				Ended: func(r Report) { ended = r },
				Name:  "a late app",
			}
			recorder := httptest.NewRecorder()
			var w http.ResponseWriter = recorder
			if tc.broken {
				w = brokenWriter{recorder}
			}
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("old"))
			r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), recorder, nil)
			Rewrite(r, []byte("{}"), nil)
			_, answered, err := d.Run(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				_, _ = r.Body.Read(make([]byte, 2))
				<-gaveUp
				w.WriteHeader(http.StatusInternalServerError)
				return nil
			}))
			if len(panicked) != 1 || !answered || err != nil {
				t.Errorf("%d panics told, answered %v, error %v", len(panicked), answered, err)
			}
			if ended.Result != Refused || ended.Status != 500 {
				t.Errorf("the late answer came to %+v", ended)
			}
			if !tc.broken && recorder.Code != http.StatusGatewayTimeout {
				t.Errorf("the caller got %d, want 504", recorder.Code)
			}
		})
	}
}

// A panicking handler leaves the claim in doubt, never accepted or released,
// and the panic goes on.
func TestHandlerPanics(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	Rewrite(r, []byte("{}"), nil)
	var ended []Report
	defer func() {
		if recover() != "broken handler" {
			t.Error("the panic was swallowed")
		}
		if len(ended) != 1 || ended[0].Result != BrokeOff {
			t.Errorf("ended as %+v", ended)
		}
		if err := r.Context().Err(); err != nil {
			t.Errorf("the request keeps a context that has ended: %v", err)
		}
	}()
	d := &Delivery{Timeout: time.Minute, Ended: func(report Report) { ended = append(ended, report) }}
	_, _, _ = d.Run(httptest.NewRecorder(), r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		w.WriteHeader(http.StatusOK)
		panic("broken handler")
	}))
}
