package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// oracle plays IAK's check-status, which can also answer as IAK never would.
type oracle struct {
	*httptest.Server
	mu      sync.Mutex
	says    map[string]func(w http.ResponseWriter, r *http.Request) // by ref_id
	asked   []map[string]string
	handler func(w http.ResponseWriter, r *http.Request, q map[string]string) bool // first, for all
}

func startOracle(t testing.TB) *oracle {
	o := &oracle{says: make(map[string]func(http.ResponseWriter, *http.Request))}
	o.Server = httptest.NewServer(http.HandlerFunc(o.serve))
	t.Cleanup(func() {
		o.CloseClientConnections()
		o.Close()
	})
	return o
}

func (o *oracle) serve(w http.ResponseWriter, r *http.Request) {
	q := make(map[string]string)
	body, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(body, &q)
	o.mu.Lock()
	o.asked = append(o.asked, q)
	says, handler := o.says[q["ref_id"]], o.handler
	o.mu.Unlock()
	switch {
	case r.Method != http.MethodPost || r.URL.Path != "/api/check-status":
		http.NotFound(w, r)
	case handler != nil && handler(w, r, q):
	case says != nil:
		says(w, r)
	default:
		write(w, `{"data":{"rc":"06","message":"TRANSACTION NOT FOUND","status":2}}`)
	}
}

func write(w http.ResponseWriter, text string) { _, _ = io.WriteString(w, text) }

// status is IAK's answer about an order of sitetest.Order, with changes.
func status(refID, status string, changes ...string) string {
	return sitetest.Document([]string{
		"ref_id", sitetest.Quote(refID), "status", status, "product_code", `"xld25000"`, "customer_id", `"0817777215"`, "price", "25000",
		"message", `"MESSAGE"`, "balance", "997061249", "tr_id", "3482", "rc", map[string]string{"0": `"39"`, "1": `"00"`, "2": `"07"`}[status],
	}, changes...)
}

// answers lets IAK say something of an order from now on.
func (o *oracle) answers(refID, body string) {
	o.does(refID, func(w http.ResponseWriter, _ *http.Request) { write(w, body) })
}

func (o *oracle) does(refID string, says func(w http.ResponseWriter, r *http.Request)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.says[refID] = says
}

// forAll lets IAK treat every question alike; nil ends that.
func (o *oracle) forAll(handler func(w http.ResponseWriter, r *http.Request, q map[string]string) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.handler = handler
}

// questions are how often an order was asked for.
func (o *oracle) questions(refID string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, q := range o.asked {
		if q["ref_id"] == refID {
			n++
		}
	}
	return n
}

// hangs is an IAK that says nothing.
func hangs(_ http.ResponseWriter, r *http.Request, _ map[string]string) bool {
	<-r.Context().Done()
	return true
}

// confirmOption asks the oracle.
func confirmOption(o *oracle, options ...string) string {
	return "confirm {\nbase " + o.URL + "\n" + strings.Join(options, "\n") + "\n}"
}

// unheard expects a callback about which IAK was asked in vain.
func unheard(t *testing.T, what string, got sitetest.Reply) {
	t.Helper()
	if got.Status != http.StatusServiceUnavailable || got.Header.Get("Retry-After") != "5" {
		t.Errorf("%s: %d, Retry-After %q, want 503 and 5", what, got.Status, got.Header.Get("Retry-After"))
	}
}

// denied expects a callback of which IAK says another thing.
func denied(t *testing.T, what string, got sitetest.Reply) {
	t.Helper()
	if got.Status != http.StatusConflict || got.Header.Get("Retry-After") != "" {
		t.Errorf("%s: %d, Retry-After %q, want 409 without", what, got.Status, got.Header.Get("Retry-After"))
	}
}

const withSN = `"123456789"`

// What IAK says the same of reaches the app, and no forgery does, however right its sign.
func TestConfirm(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		iak, app := startOracle(t), sitetest.StartApp(t, nil)
		s := sitetest.StartOperated(t, sitetest.Block(option, confirmOption(iak))+"reverse_proxy "+app.Addr())
		iak.answers("right", status("right", "1", "sn", withSN))
		s.Post(sitetest.Order("right", "1", "sn", withSN)).Expect(t, "a right one", 200)
		if r := app.Last(t); r.Header.Get("Iak-Confirmed") != "true" || r.Header.Get("Iak-Attempt") != "1" {
			t.Errorf("the app got %v", r.Header)
		}
		s.Post(sitetest.Order("right", "1", "sn", withSN)).Expect(t, "a repeat", 200)
		if n := iak.questions("right"); n != 1 {
			t.Errorf("IAK was asked %d times, want once", n)
		}
		q := iak.asked[0]
		if q["username"] != sitetest.Username || q["sign"] != sitetest.Sign("right") {
			t.Errorf("IAK was asked %v", q)
		}
		s.Post(sitetest.Order("progress", "0")).Expect(t, "one under way", 200)
		if iak.questions("progress") != 0 || app.Last(t).Header.Get("Iak-Confirmed") != "" {
			t.Error("IAK was asked about an order under way")
		}
		before := len(app.Received())
		for name, forged := range map[string][]string{
			"the status turned": {"2"}, "another sn": {"1", "sn", `"987654321"`}, "another price": {"1", "price", `"1"`, "sn", withSN},
			"sn and price": {"1", "price", `"1"`, "sn", `"987654321"`}, "status and price": {"2", "price", `"1"`},
			"another customer": {"1", "sn", withSN, "hp", `"0817777216"`}, "another product": {"1", "sn", withSN, "code", `"xld50000"`},
			"another tr_id": {"1", "sn", withSN, "tr_id", `"1"`}, "a pin": {"1", "sn", withSN, "pin", `"1"`},
		} {
			ref := "forged " + name
			iak.answers(ref, status(ref, "1", "sn", withSN, "pin", `"555"`))
			denied(t, name, s.Post(sitetest.Order(ref, forged[0], forged[1:]...)))
			s.ExpectState(ref, "")
			lines := s.CallbackLines()
			if line := lines[len(lines)-1]; line["outcome"] != "unconfirmed" || line["level"] != "error" || strings.Contains(fmt.Sprint(line), "987654321") {
				t.Errorf("%s: the log says %v", name, line)
			}
		}
		for _, ref := range []string{"accepted"} { // a forgery after the truth
			iak.answers(ref, status(ref, "1", "sn", withSN))
			s.Post(sitetest.Order(ref, "1", "sn", withSN)).Expect(t, "the truth", 200)
			before++
			denied(t, "a forged failure after it", s.Post(sitetest.Order(ref, "2")))
			denied(t, "a forged sn after it", s.Post(sitetest.Order(ref, "1", "sn", `"987654321"`)))
			s.ExpectState(ref, "accepted")
			// IAK reverses the order, which on_conflict keeps from the app.
			iak.answers(ref, status(ref, "2"))
			denied(t, "a real reversal", s.Post(sitetest.Order(ref, "2")))
			lines := s.CallbackLines()
			if line := lines[len(lines)-1]; line["outcome"] != "conflict" || !strings.Contains(fmt.Sprint(line["error"]), "IAK has reversed the order") {
				t.Errorf("the log says %v", line)
			}
			s.ExpectState(ref, "accepted")
		}
		if n := len(app.Received()); n != before {
			t.Errorf("%d reached the app, want %d", n, before)
		}
	})
}

// Until IAK has said the same, nothing reaches the app, and the claim is given back.
func TestConfirmNotYet(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, sitetest.Block(confirmOption(iak, "timeout 1s"))+"reverse_proxy "+app.Addr())
	n := 0
	for name, says := range map[string]func(ref string) func(w http.ResponseWriter, r *http.Request){
		"under way":         body(func(ref string) string { return status(ref, "0") }),
		"rc 39":             body(func(ref string) string { return status(ref, "1", "rc", `"39"`) }),
		"rc 201":            body(func(ref string) string { return status(ref, "2", "rc", "201") }),
		"not found":         body(func(ref string) string { return status(ref, "2", "rc", `"06"`) }),
		"another order":     body(func(string) string { return status("other", "1") }),
		"two documents":     body(func(ref string) string { return status(ref, "1") + status(ref, "1") }),
		"HTML":              body(func(string) string { return "<html>maintenance</html>" }),
		"nothing":           body(func(string) string { return "" }),
		"no tr_id":          body(func(ref string) string { return status(ref, "1", "tr_id", "") }),
		"not this address":  body(func(ref string) string { return status(ref, "2", "rc", `"102"`) }),
		"a wrong signature": body(func(ref string) string { return status(ref, "2", "rc", "204") }),
		"an error": func(string) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) }
		},
		"gzip": func(ref string) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				write(w, status(ref, "1"))
			}
		},
		"a redirect": func(ref string) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "/api/check-status", http.StatusTemporaryRedirect)
			}
		},
		"cut off": func(ref string) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "1000")
				write(w, status(ref, "1"))
				panic(http.ErrAbortHandler)
			}
		},
		"silence": func(string) func(http.ResponseWriter, *http.Request) {
			return func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		},
		"it trickles": func(ref string) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) {
				for i := 0; r.Context().Err() == nil; i++ {
					write(w, " ")
					_ = http.NewResponseController(w).Flush()
					time.Sleep(10 * time.Millisecond)
				}
			}
		},
	} {
		n++
		ref := fmt.Sprint("order", n)
		iak.does(ref, says(ref))
		unheard(t, name, s.Post(sitetest.Order(ref, "1")))
		if len(attempts(app, ref)) != 0 {
			t.Errorf("%s: it reached the app", name)
		}
		s.ExpectState(ref, "")
		iak.answers(ref, status(ref, "1"))
		s.Post(sitetest.Order(ref, "1")).Expect(t, name+", and then IAK says", 200)
		if got := attempts(app, ref); !slices.Equal(got, []string{"1"}) {
			t.Errorf("%s: attempts %q, want the first", name, got)
		}
	}
	for _, line := range s.CallbackLines() {
		if line["outcome"] == "not_confirmed" && (line["level"] != "warn" || line["error"] == nil) {
			t.Errorf("the log says %v", line)
		}
	}
	s.Reload("metrics /metrics\n" + strings.Replace(sitetest.Block(confirmOption(iak)), "{", "/callback* {", 1) + "reverse_proxy " + app.Addr())
	got := s.Metrics()
	if c, y := got[`caddy_iak_callback_confirm_total{account="test",verdict="confirmed"}`], got[`caddy_iak_callback_confirm_total{account="test",verdict="not_yet"}`]; c < float64(n) || y < float64(n) {
		t.Errorf("the metrics count %v confirmed and %v not yet, want %d each", c, y, n)
	}
}

func body(text func(ref string) string) func(ref string) func(w http.ResponseWriter, r *http.Request) {
	return func(ref string) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { write(w, text(ref)) }
	}
}

// A certificate of another name is no IAK.
func TestConfirmCertificate(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { write(w, status("order", "1")) }))
	defer server.Close()
	app := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, sitetest.Block("confirm {\nbase "+server.URL+"\n}")+"reverse_proxy "+app.Addr())
	unheard(t, "a certificate that nobody trusts", s.Post(sitetest.Order("order", "1")))
	if len(app.Received()) != 0 {
		t.Error("it reached the app")
	}
}

// Goods that only IAK's answer has reach the app, on the first delivery and on the next.
func TestConfirmGoods(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		iak, app := startOracle(t), startMoody(t)
		app.status.Store(500)
		s := sitetest.StartOperated(t, spoolBlock(app.Addr(), option, confirmOption(iak)))
		iak.answers("order", status("order", "1", "sn", withSN, "activation_code", `"LPA:1$x"`))
		spooled(t, "refused", s.Post(sitetest.Order("order", "1", "note", `"kept"`)))
		sitetest.Eventually(t, "it is delivered again", func() bool { return len(attempts(app.App, "order")) >= 2 })
		app.status.Store(0)
		s.ComesTo("order", "accepted")
		all := app.Received()
		for _, r := range all {
			if r.Body != all[0].Body || !strings.Contains(r.Body, `"sn":"123456789"`) || !strings.Contains(r.Body, `"activation_code":"LPA:1$x"`) || !strings.Contains(r.Body, `"note":"kept"`) {
				t.Errorf("the app got %s", r.Body)
			}
			if r.Header.Get("Iak-Confirmed") != "true" || r.Header.Get("Idempotency-Key") != "test:order:1" {
				t.Errorf("the app got %v", r.Header)
			}
		}
		if n := iak.questions("order"); n != 1 {
			t.Errorf("IAK was asked %d times, want once: its verdict is kept", n)
		}
		// The callback with the goods is no news any more.
		if got := s.Post(sitetest.Order("order", "1", "sn", withSN, "activation_code", `"LPA:1$x"`)); got.Header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("status %d, %v, want an answer from the record", got.Status, got.Header)
		}
	})
}

// With a spool IAK waits no longer than answer_within, what it cannot say yet is kept and
// asked again without a delivery, and nothing is lost.
func TestConfirmSpool(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		iak, app := startOracle(t), sitetest.StartApp(t, nil)
		block := sitetest.Block(option, confirmOption(iak, "timeout 3s"), "spool {\nanswer_within 300ms\nbackoff 100ms 500ms\n}") + "reverse_proxy " + app.Addr()
		s := sitetest.StartOperated(t, block)
		iak.forAll(hangs)
		start := time.Now()
		spooled(t, "IAK is silent", s.Post(sitetest.Order("silent", "1")))
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("IAK's caller waited %s", took)
		}
		s.ExpectState("silent", "in_flight")
		iak.forAll(nil)
		iak.answers("early", status("early", "0"))
		spooled(t, "still under way", s.Post(sitetest.Order("early", "1")))
		sitetest.Eventually(t, "IAK is asked again", func() bool { return iak.questions("early") >= 3 })
		if len(app.Received()) != 0 {
			t.Error("something reached the app")
		}
		sitetest.Eventually(t, "a try is told", func() bool {
			all := s.Show("early")
			return len(all) == 1 && all[0].Kept != nil && len(all[0].Kept.Tries) > 1 && all[0].Kept.Tries[0].Result == "not_confirmed" && all[0].Attempt <= 1
		})
		iak.answers("early", status("early", "1", "sn", withSN))
		iak.answers("silent", status("silent", "1"))
		s.ComesTo("early", "accepted")
		s.ComesTo("silent", "accepted")
		for _, ref := range []string{"early", "silent"} {
			if got := attempts(app, ref); !slices.Equal(got, []string{"1"}) {
				t.Errorf("%s: attempts %q, want one, the first", ref, got)
			}
		}
		// A forgery that came while IAK was silent is dropped when it speaks.
		iak.answers("forged", status("forged", "0"))
		spooled(t, "nobody knows", s.Post(sitetest.Order("forged", "2")))
		iak.answers("forged", status("forged", "1"))
		s.ComesTo("forged", "")
		if len(attempts(app, "forged")) != 0 {
			t.Error("a forgery reached the app")
		}
		iak.answers("denied", status("denied", "1"))
		denied(t, "IAK answers in time", s.Post(sitetest.Order("denied", "2")))
		s.ExpectState("denied", "")
	})
}

// What nobody has confirmed takes no place of a callback that is kept; what IAK confirms
// takes the place of what nobody has.
func TestConfirmKeptOthers(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, option string) {
		iak, app := startOracle(t), startMoody(t)
		s := sitetest.StartOperated(t, spoolBlock(app.Addr(), option, confirmOption(iak)))
		app.status.Store(500)
		iak.answers("kept", status("kept", "1"))
		spooled(t, "the truth, refused by the app", s.Post(sitetest.Order("kept", "1")))
		denied(t, "a forged failure", s.Post(sitetest.Order("kept", "2")))
		denied(t, "forged goods", s.Post(sitetest.Order("kept", "1", "tr_id", `"1"`, "sn", withSN)))
		iak.answers("kept", status("kept", "0"))
		unheard(t, "a failure of which IAK says nothing", s.Post(sitetest.Order("kept", "2")))
		app.status.Store(0)
		s.ComesTo("kept", "accepted")
		for _, r := range app.Received() {
			if r.Header.Get("Idempotency-Key") != "test:kept:1" {
				t.Errorf("%s reached the app", r.Header.Get("Idempotency-Key"))
			}
		}
		iak.answers("turned", status("turned", "0"))
		spooled(t, "a forgery, while IAK cannot say", s.Post(sitetest.Order("turned", "2")))
		iak.answers("turned", status("turned", "1"))
		got := s.Post(sitetest.Order("turned", "1"))
		got.Expect(t, "the truth", 200)
		s.ComesTo("turned", "accepted")
		for _, r := range app.Received() {
			if strings.HasPrefix(r.Header.Get("Idempotency-Key"), "test:turned:") && (r.Header.Get("Idempotency-Key") != "test:turned:1" || r.Header.Get("Iak-Conflict") != "") {
				t.Errorf("the app got %v", r.Header)
			}
		}
	})
}

// on_error forward, and confirm conflict.
func TestConfirmModes(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, sitetest.Block(confirmOption(iak, "on_error forward"))+"reverse_proxy "+app.Addr())
	iak.answers("order", status("order", "0"))
	s.Post(sitetest.Order("order", "1")).Expect(t, "nobody knows", 200)
	if got := app.Last(t).Header.Get("Iak-Confirmed"); got != "false" {
		t.Errorf("Iak-Confirmed %q, want false", got)
	}
	denied(t, "a contradiction of which IAK says nothing", s.Post(sitetest.Order("order", "2")))
	iak.answers("forged", status("forged", "1"))
	denied(t, "a forgery", s.Post(sitetest.Order("forged", "2")))

	iak, app = startOracle(t), sitetest.StartApp(t, nil)
	conflict := func(more string) string {
		return sitetest.Block("confirm conflict {\nbase "+iak.URL+"\n}", more) + "reverse_proxy " + app.Addr()
	}
	s.Reload(conflict(""))
	s.PostAgain(sitetest.Order("c1", "1")).Expect(t, "the first", 200)
	if iak.questions("c1") != 0 || app.Last(t).Header.Get("Iak-Confirmed") != "" {
		t.Error("IAK was asked about what contradicts nothing")
	}
	iak.answers("c1", status("c1", "1"))
	denied(t, "a forged reversal", s.Post(sitetest.Order("c1", "2")))
	iak.answers("c1", status("c1", "0"))
	unheard(t, "nobody knows", s.Post(sitetest.Order("c1", "2")))
	iak.answers("c1", status("c1", "2"))
	denied(t, "a real reversal, kept from the app", s.Post(sitetest.Order("c1", "2")))
	s.Reload(conflict("on_conflict forward"))
	s.PostAgain(sitetest.Order("c1", "2")).Expect(t, "a real reversal", 200)
	if h := app.Last(t).Header; h.Get("Iak-Conflict") != "1" || h.Get("Iak-Confirmed") != "true" || !strings.HasPrefix(h.Get("Idempotency-Key"), "test:c1:2:conflict-") {
		t.Errorf("the app got %v", h)
	}
}

// Many copies at once are one question.
func TestConfirmOnce(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	s := sitetest.Start(t, sitetest.Block(confirmOption(iak))+"reverse_proxy "+app.Addr())
	release := make(chan bool)
	iak.does("order", func(w http.ResponseWriter, _ *http.Request) {
		<-release
		write(w, status("order", "1"))
	})
	var wg sync.WaitGroup
	var ok, busy atomic.Int64
	for range 16 {
		wg.Go(func() {
			switch s.Post(sitetest.Order("order", "1")).Status {
			case 200:
				ok.Add(1)
			case 409:
				busy.Add(1)
			}
		})
	}
	sitetest.Eventually(t, "the others are answered", func() bool { return busy.Load() == 15 })
	close(release)
	wg.Wait()
	if ok.Load() != 1 || iak.questions("order") != 1 || len(app.Received()) != 1 {
		t.Errorf("%d answered 200, %d questions, %d reached the app, want one each", ok.Load(), iak.questions("order"), len(app.Received()))
	}
}

// IAK is asked with the key that signed the callback, also while keys are rotated.
func TestConfirmKeys(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\naccount test 089999999999 new-key\naccount other 087777777777 other-key\n"+
		"confirm {\nbase http://127.0.0.1:1\nbase test "+iak.URL+"\nbase other "+iak.URL+"\n}\n}\nreverse_proxy "+app.Addr())
	for _, key := range [][2]string{{sitetest.Username, sitetest.APIKey}, {"089999999999", "new-key"}, {"087777777777", "other-key"}} {
		ref := "order of " + key[1]
		sign := sitetest.SignedBy(key[0], key[1], ref)
		iak.answers(ref, status(ref, "1"))
		s.Post(sitetest.Order(ref, "1", "sign", sitetest.Quote(sign))).Expect(t, ref, 200)
		iak.mu.Lock()
		if q := iak.asked[len(iak.asked)-1]; q["username"] != key[0] || q["sign"] != sign {
			t.Errorf("%s: IAK was asked %v", ref, q)
		}
		iak.mu.Unlock()
	}
}

// The app's time and IAK's are one.
func TestConfirmTime(t *testing.T) {
	shortLease(t)
	iak := startOracle(t)
	app := sitetest.StartApp(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := sitetest.StartOperated(t, sitetest.Block(confirmOption(iak, "timeout 900ms"), "upstream_timeout 1s")+"reverse_proxy "+app.Addr())
	iak.does("order", func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(600 * time.Millisecond)
		write(w, status("order", "1"))
	})
	start := time.Now()
	s.Post(sitetest.Order("order", "1")).Expect(t, "an app that never answers", 504)
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	s.ComesTo("order", "in_doubt")
}

// A reload while IAK is asked ends neither the question nor the delivery.
func TestConfirmReload(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	block := sitetest.Block(confirmOption(iak)) + "reverse_proxy " + app.Addr()
	s := sitetest.StartOperated(t, block)
	arrived, release := make(chan bool, 1), make(chan bool)
	iak.does("order", func(w http.ResponseWriter, _ *http.Request) {
		arrived <- true
		<-release
		write(w, status("order", "1"))
	})
	got := make(chan sitetest.Reply, 1)
	go func() { got <- s.Post(sitetest.Order("order", "1")) }()
	<-arrived
	s.Reload(block + "\nheader X-Another yes")
	close(release)
	if g := <-got; g.Status != 200 || len(app.Received()) != 1 {
		t.Errorf("status %d, %d reached the app", g.Status, len(app.Received()))
	}
	s.ExpectState("order", "accepted")
}

// Caddy is killed while IAK is asked: that is no doubt, and the callback is delivered by
// itself when its lease is over, on_doubt hold or not.
func TestConfirmKilled(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	redis := redistest.Start(t)
	dir := sitetest.MemoryDir(t)
	block := sitetest.Block("redis "+redis.URL(), "upstream_timeout 2s", confirmOption(iak, "timeout 1500ms"), "spool") + "reverse_proxy " + app.Addr()
	p := sitetest.StartProcess(t, dir, block)
	arrived := make(chan bool, 1)
	iak.forAll(func(_ http.ResponseWriter, r *http.Request, _ map[string]string) bool {
		arrived <- true
		<-r.Context().Done()
		return true
	})
	done := make(chan bool)
	go func() {
		defer close(done)
		if answer, err := sitetest.Client.Post(p.URL+"/callback", "application/json", strings.NewReader(sitetest.Order("order", "1"))); err == nil {
			answer.Body.Close()
		}
	}()
	<-arrived
	_ = p.Cmd.Process.Kill()
	<-done
	iak.forAll(nil)
	iak.answers("order", status("order", "1"))
	sitetest.StartProcess(t, dir, block)
	sitetest.Eventually(t, "it is delivered", func() bool { return len(app.Received()) == 1 })
	if r := app.Last(t); r.Header.Get("Iak-Attempt") != "1" || r.Header.Get("Iak-Confirmed") != "true" {
		t.Errorf("the app got %v", r.Header)
	}
}

// While Redis does not answer: what is forwarded without it was asked for, and what is
// kept is asked for when it is handed in.
func TestConfirmStoreError(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	redis := redistest.Start(t)
	option := "redis " + redis.URL()
	s := sitetest.StartOperated(t, sitetest.Block(option, confirmOption(iak), "on_store_error forward")+"reverse_proxy "+app.Addr())
	redis.Kill()
	iak.answers("right", status("right", "1"))
	iak.answers("forged", status("forged", "1"))
	s.Post(sitetest.Order("right", "1")).Expect(t, "a right one", 200)
	if h := app.Last(t).Header; h.Get("Iak-Confirmed") != "true" || h.Get("Iak-Deduplicated") != "false" {
		t.Errorf("the app got %v", h)
	}
	denied(t, "a forgery", s.Post(sitetest.Order("forged", "2")))
	unheard(t, "nobody knows", s.Post(sitetest.Order("unknown", "2")))

	s.Reload(sitetest.Block(option, confirmOption(iak), "on_store_error keep", "spool {\nbackoff 100ms 500ms\n}") + "reverse_proxy " + app.Addr())
	iak.answers("kept", status("kept", "1"))
	iak.answers("kept, forged", status("kept, forged", "1"))
	got := s.PostAgain(sitetest.Order("kept", "1"))
	spooled(t, "kept", got)
	spooled(t, "kept, forged", s.Post(sitetest.Order("kept, forged", "2")))
	redis.Start()
	s.ComesTo("kept", "accepted")
	s.ComesTo("kept, forged", "")
	if len(app.Received()) != 2 || app.Last(t).Header.Get("Iak-Confirmed") != "true" {
		t.Errorf("%d reached the app, the last %v", len(app.Received()), app.Last(t).Header)
	}
}

// Health and the log tell at once that IAK does not know the key or this machine's
// address, and that it answers again.
func TestConfirmHealth(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, sitetest.Block(confirmOption(iak, "timeout 500ms"))+"reverse_proxy "+app.Addr())
	type one struct {
		Account, Base string
		OK            bool
		Asked         *time.Time
		Error         string
	}
	health := func() one {
		t.Helper()
		var h struct {
			OK      bool
			Confirm []one
		}
		got := s.Ask(http.MethodGet, sitetest.HealthPath)
		if err := json.Unmarshal([]byte(got.Body), &h); err != nil || len(h.Confirm) != 1 || !h.OK || got.Status != 200 {
			t.Fatalf("%d %s, %v", got.Status, got.Body, err)
		}
		return h.Confirm[0]
	}
	if h := health(); !h.OK || h.Asked != nil || h.Account != "test" || h.Base != iak.URL {
		t.Errorf("before the first question: %+v", h)
	}
	right := func() {
		t.Helper()
		iak.answers("right", status("right", "1"))
		s.Post(sitetest.Order("right", "1"))
		s.Must("forget", "test", "right", "--yes")
		if h := health(); !h.OK || h.Error != "" || h.Asked == nil {
			t.Errorf("IAK answers: %+v", h)
		}
	}
	right()
	for rc, words := range map[string]string{"102": "register the address", "204": "check the username and the api key"} {
		iak.answers("refused", status("refused", "2", "rc", sitetest.Quote(rc)))
		unheard(t, rc, s.Post(sitetest.Order("refused", "1")))
		if h := health(); h.OK || !strings.Contains(h.Error, words) || !strings.Contains(h.Error, rc) {
			t.Errorf("rc %s: %+v", rc, h)
		}
		if !strings.Contains(s.Log(), words) {
			t.Errorf("rc %s: the log does not tell", rc)
		}
		right()
	}
	for i := range 3 {
		unheard(t, "06", s.Post(sitetest.Order(fmt.Sprint("unknown", i), "1")))
	}
	if h := health(); h.OK || !strings.Contains(h.Error, "knows none of the last 3 orders") {
		t.Errorf("only 06: %+v", h)
	}
	right()
	iak.forAll(hangs)
	for i := range 3 {
		unheard(t, "silence", s.Post(sitetest.Order(fmt.Sprint("silent", i), "1")))
	}
	if h := health(); h.OK || !strings.Contains(h.Error, "did not answer within confirm's timeout") {
		t.Errorf("silence: %+v", h)
	}
}

// The event of a forgery is emitted once a minute for an order.
func TestConfirmEvent(t *testing.T) {
	iak, app := startOracle(t), sitetest.StartApp(t, nil)
	takeEvents()
	s := sitetest.StartOperated(t, sitetest.Block(confirmOption(iak))+"reverse_proxy "+app.Addr(), "events {\non iak_callback.unconfirmed test_sink\n}")
	iak.answers("event", status("event", "1"))
	for range 3 {
		denied(t, "a forgery", s.Post(sitetest.Order("event", "2")))
	}
	var names []string
	for _, e := range takeEvents() {
		names = append(names, e.Name())
		if e.Data["ref_id"] != "event" || e.Data["outcome"] != "unconfirmed" {
			t.Errorf("the event has %v", e.Data)
		}
	}
	if !slices.Equal(names, []string{"iak_callback.unconfirmed"}) {
		t.Errorf("events %q, want one", names)
	}
}

// An IAK that is silent under load costs neither memory nor goroutines, delivers nothing,
// and loses nothing. IAK_SILENCE_MINUTES says how long, some seconds without.
func TestConfirmSilence(t *testing.T) {
	length := 5 * time.Second
	if m, err := strconv.Atoi(os.Getenv("IAK_SILENCE_MINUTES")); err == nil {
		length = time.Duration(m) * time.Minute
	}
	iak, app, tally := startOracle(t), sitetest.StartApp(t, nil), sitetest.NewTally()
	app.Config.Handler = tally.Counting(nil)
	s := sitetest.StartOperated(t, sitetest.Block(confirmOption(iak, "timeout 1s", "rate 1000"),
		"spool {\nanswer_within 100ms\nbackoff 200ms 2s\nconcurrency 100\nmax_pending 1000000\n}")+"reverse_proxy "+app.Addr())
	iak.forAll(hangs)
	var sent atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(length)
	for range 20 {
		wg.Go(func() {
			for time.Now().Before(end) {
				ref := fmt.Sprint("order", sent.Add(1))
				if got := tally.Send(s.URL, ref, "1"); got != 200 {
					t.Errorf("%s was answered %d", ref, got)
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	most, heap := 0, uint64(0)
	for time.Now().Before(end) {
		time.Sleep(min(length/5, 10*time.Second))
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		most, heap = max(most, runtime.NumGoroutine()), m.HeapAlloc
		t.Logf("%d sent, %d goroutines, %d MiB in use", sent.Load(), runtime.NumGoroutine(), m.HeapAlloc>>20)
	}
	wg.Wait()
	if n := len(app.Received()); n != 0 {
		t.Errorf("%d reached the app, though IAK said nothing", n)
	}
	if most > 3000 || heap > 500<<20 {
		t.Errorf("%d goroutines, %d MiB in use", most, heap>>20)
	}
	iak.forAll(func(w http.ResponseWriter, _ *http.Request, q map[string]string) bool {
		write(w, status(q["ref_id"], "1"))
		return true
	})
	waiting := time.Now().Add(length + 2*time.Minute)
	for tally.Accepted() < int(sent.Load()) && time.Now().Before(waiting) {
		time.Sleep(100 * time.Millisecond)
	}
	if n := tally.Count(t); n.Lost != 0 || n.Extra != 0 {
		t.Errorf("%s, want none lost and none extra", n)
	}
}

// IAK and Caddy on a bad day: IAK answers, hangs, knows nothing or talks nonsense, Caddy is
// killed again and again, and forgeries come with right signs. What IAK has not confirmed
// never reaches the app, and with a spool nothing true is lost.
func TestConfirmChaos(t *testing.T) {
	iak, tally, redis := startOracle(t), sitetest.NewTally(), redistest.Start(t)
	app := sitetest.StartApp(t, tally.Counting(func(w http.ResponseWriter, _ *http.Request) {
		if rand.IntN(4) == 0 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	iak.forAll(func(w http.ResponseWriter, r *http.Request, q map[string]string) bool {
		switch rand.IntN(6) {
		case 0:
			select {
			case <-r.Context().Done():
			case <-time.After(time.Second):
			}
		case 1:
			write(w, `{"data":{"rc":"06","status":2}}`)
		case 2:
			write(w, "<html>")
		default:
			write(w, status(q["ref_id"], "1"))
		}
		return true
	})
	dir := sitetest.MemoryDir(t)
	block := sitetest.Block("redis "+redis.URL(), "upstream_timeout 2s", "on_doubt retry", confirmOption(iak, "timeout 700ms", "rate 500"),
		"spool {\nanswer_within 200ms\nbackoff 50ms 500ms\nconcurrency 50\n}") + "reverse_proxy " + app.Addr()
	p := sitetest.StartProcess(t, dir, block)
	var url atomic.Value
	url.Store(p.URL)
	var wg sync.WaitGroup
	ended := make(chan bool)
	var orders atomic.Int64
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				ref := fmt.Sprint("order", orders.Add(1))
				forged := sitetest.CallbackOf(t, url.Load().(string)+"/callback", sitetest.Order(ref, "2"))
				if rand.IntN(2) == 0 { // before the truth
					if answer, err := sitetest.Client.Do(forged); err == nil {
						answer.Body.Close()
					}
				}
				for tally.Send(url.Load().(string), ref, "1")/100 != 2 {
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
	for range 5 {
		time.Sleep(1500 * time.Millisecond)
		_ = p.Cmd.Process.Kill()
		p = sitetest.StartProcess(t, dir, block)
		url.Store(p.URL)
	}
	close(ended)
	wg.Wait()
	sitetest.Eventually(t, "all that is true has reached the app", func() bool { return tally.Sum().Lost == 0 })
	n := tally.Count(t) // fails for what was not sent: the forgeries
	if n.Callbacks < 50 {
		t.Errorf("only %d callbacks", n.Callbacks)
	}
}
