package iak

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/record"
)

// answerOf is an answer of check-status, as IAK's page shows it, with changes.
func answerOf(changes ...string) string {
	fields := map[string]string{
		"ref_id": `"order"`, "status": "1", "product_code": `"xld25000"`, "customer_id": `"0817777215"`, "price": "25000",
		"message": `"SUCCESS"`, "sn": `"123456789"`, "balance": "997061249", "tr_id": "3482", "rc": `"00"`,
	}
	for i := 0; i < len(changes); i += 2 {
		if fields[changes[i]] = changes[i+1]; changes[i+1] == "" {
			delete(fields, changes[i])
		}
	}
	var all []string
	for name, v := range fields {
		all = append(all, fmt.Sprintf("%q:%s", name, v))
	}
	slices.Sort(all)
	return `{"data":{` + strings.Join(all, ",") + `}}`
}

// Only an answer about this order, with what tells its outcome, says anything.
func TestUnderstand(t *testing.T) {
	for _, tc := range []struct {
		name     string
		status   int
		body     string
		standing Standing
	}{
		{"success", 200, answerOf(), StandingFinal},
		{"failed", 200, answerOf("status", "2", "rc", `"07"`, "sn", ""), StandingFinal},
		{"status as a string", 200, answerOf("status", `"1"`), StandingFinal},
		{"everything as strings, balance too", 200, answerOf("status", `"1"`, "tr_id", `"3482"`, "price", `"25000"`, "balance", `"1"`), StandingFinal},
		{"names of version 1", 200, answerOf("product_code", "", "customer_id", "", "code", `"xld25000"`, "hp", `"0817777215"`), StandingFinal},
		{"an rc that nobody has listed yet", 200, answerOf("status", "2", "rc", `"999"`), StandingFinal},
		{"rc as a number", 200, answerOf("rc", "0"), StandingFinal},
		{"without message and balance", 200, answerOf("message", "", "balance", ""), StandingFinal},
		{"a byte order mark", 200, "\xef\xbb\xbf" + answerOf(), StandingFinal},
		{"under way", 200, answerOf("status", "0", "rc", `"39"`, "sn", ""), StandingOpen},
		{"under way without a tr_id yet", 200, answerOf("status", "0", "rc", `"201"`, "tr_id", ""), StandingOpen},
		{"pending by its rc", 200, answerOf("status", "1", "rc", `"39"`), StandingOpen},
		{"pending by its rc, 201", 200, answerOf("status", "2", "rc", "201"), StandingOpen},
		{"not found", 200, `{"data":{"rc":"06","message":"TRANSACTION NOT FOUND"}}`, StandingUnknown},
		{"not found, as a failure", 200, answerOf("status", "2", "rc", `"06"`), StandingUnknown},
		{"not found, rc as a number", 200, answerOf("status", "2", "rc", "6"), StandingUnknown},
		{"no rc", 200, answerOf("rc", ""), StandingSilent},
		{"an empty rc", 200, answerOf("rc", `""`), StandingSilent},
		{"an rc that is a text", 200, answerOf("rc", `"FAILED"`), StandingSilent},
		{"no tr_id", 200, answerOf("tr_id", ""), StandingSilent},
		{"an empty tr_id", 200, answerOf("tr_id", `""`), StandingSilent},
		{"no status", 200, answerOf("status", ""), StandingSilent},
		{"another status", 200, answerOf("status", "3"), StandingSilent},
		{"status true", 200, answerOf("status", "true"), StandingSilent},
		{"another order", 200, answerOf("ref_id", `"other"`), StandingSilent},
		{"the order in other case", 200, answerOf("ref_id", `"Order"`), StandingSilent},
		{"no ref_id", 200, answerOf("ref_id", ""), StandingSilent},
		{"two names for the product that do not agree", 200, answerOf("code", `"other"`), StandingSilent},
		{"a repeated name", 200, strings.Replace(answerOf(), `"rc":"00"`, `"rc":"00","rc":"00"`, 1), StandingSilent},
		{"two documents", 200, answerOf() + answerOf(), StandingSilent},
		{"cut off", 200, answerOf()[:40], StandingSilent},
		{"nothing", 200, "", StandingSilent},
		{"null", 200, "null", StandingSilent},
		{"a list", 200, "[" + answerOf() + "]", StandingSilent},
		{"data is a list", 200, `{"data":[]}`, StandingSilent},
		{"a page of HTML", 200, "<html><body>maintenance</body></html>", StandingSilent},
		{"XML", 200, "<mp><ref_id>order</ref_id><status>1</status><tr_id>1</tr_id><rc>00</rc></mp>", StandingSilent},
		{"another HTTP status", 500, answerOf(), StandingSilent},
		{"a redirect", 302, answerOf(), StandingSilent},
		{"created", 201, answerOf(), StandingSilent},
	} {
		a := understand(tc.status, []byte(tc.body), "order")
		if a.Standing != tc.standing || a.HTTP != tc.status {
			t.Errorf("%s: %+v, want %s", tc.name, a, tc.standing)
		}
		if said := a.Standing == StandingFinal || a.Standing == StandingOpen; said != (a.Why == nil) || said != (a.callback != nil) {
			t.Errorf("%s: %+v", tc.name, a)
		}
	}
	// Codes that speak of the request are never an outcome of the order, whatever the status
	// and the HTTP status beside them.
	for rc := range rcRefused {
		for _, body := range []string{
			answerOf("status", "2", "rc", `"`+rc+`"`), answerOf("status", "2", "rc", rc), `{"data":{"rc":"` + rc + `","message":"X","status":2}}`,
		} {
			for _, status := range []int{200, 400} {
				if a := understand(status, []byte(body), "order"); a.Standing != StandingRefused || a.RC != rc || !strings.Contains(a.Why.Error(), rc) {
					t.Errorf("rc %s, HTTP %d: %+v", rc, status, a)
				}
			}
		}
	}
}

// decoded is a callback whose fields are checked.
func decoded(t *testing.T, body string) *Callback {
	t.Helper()
	c, err := Decode([]byte(body))
	if err == nil {
		err = c.CheckRefID()
	}
	if err == nil {
		err = c.CheckFields(true)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A callback is confirmed if nothing that both have differs.
func TestAnswerDiffers(t *testing.T) {
	for _, tc := range []struct {
		name             string
		callback, answer []string
		want             string
	}{
		{"nothing", nil, nil, ""},
		{"strings and numbers", []string{"price", `"25000"`, "tr_id", `"3482"`}, nil, ""},
		{"an amount with zeros behind its point", []string{"price", `"25000.00"`}, nil, ""},
		{"white space", []string{"sn", `"123456789 "`}, nil, ""},
		{"version 1 and 2", []string{"product_code", "", "customer_id", "", "code", `"xld25000"`, "hp", `"0817777215"`}, nil, ""},
		{"balance and message", []string{"balance", "1", "message", `"OK"`}, nil, ""},
		{"a goods field that only one of them has", []string{"sn", ""}, []string{"pin", `"1"`}, ""},
		{"rc", []string{"rc", `"01"`}, nil, ""},
		{"status", []string{"status", "2"}, nil, "status"},
		{"sn", []string{"sn", `"987654321"`}, nil, "sn"},
		{"price", []string{"price", "25001"}, nil, "price"},
		{"both", []string{"price", "25001", "sn", `"1"`}, nil, "price sn"},
		{"tr_id", []string{"tr_id", "3483"}, nil, "tr_id"},
		{"customer", []string{"customer_id", `"0817777216"`}, nil, "hp"},
		{"product", []string{"product_code", `"xld50000"`}, nil, "code"},
		{"pin", []string{"pin", `"1"`}, []string{"pin", `"2"`}, "pin"},
		{"activation_code", []string{"activation_code", `"1"`}, []string{"activation_code", `"2"`}, "activation_code"},
		{"a price of many digits", []string{"price", "25000.0000000000000000001"}, nil, "price"},
		{"an exponent that no machine can write out", []string{"price", "1e999999999"}, []string{"price", "1e999999998"}, "price"},
	} {
		a := understand(200, []byte(answerOf(tc.answer...)), "order")
		if got := strings.Join(a.Differs(decoded(t, answerOf(tc.callback...))), " "); got != tc.want {
			t.Errorf("%s: differs in %q, want %q", tc.name, got, tc.want)
		}
	}
}

// Goods that only IAK's answer has reach the app, and a callback with them is read as
// what it is.
func TestAnswerCompletes(t *testing.T) {
	c := decoded(t, answerOf("sn", "", "note", `"kept"`, "flag", "true"))
	a := understand(200, []byte(answerOf("sn", "123456789", "activation_code", `"LPA:1$x"`)), "order")
	before := c.Outcome("shop")
	if !a.Complete(c) || a.Complete(c) {
		t.Error("there were goods, and then none any more")
	}
	after := c.Outcome("shop")
	if before.Goods == after.Goods || before.Fixed != after.Fixed || !before.Covers(before) || !after.Covers(before) {
		t.Errorf("%+v became %+v", before, after)
	}
	body := string(c.AppendIAK(nil))
	if !strings.Contains(body, `"sn":"123456789"`) || !strings.Contains(body, `"activation_code":"LPA:1$x"`) {
		t.Error("the app does not get the goods")
	}
	again := decoded(t, body) // as it is kept
	if got := string(again.AppendIAK(nil)); got != body || again.Outcome("shop") != after {
		t.Errorf("kept, it is %s, want %s", got, body)
	}
	c = decoded(t, answerOf("sn", `"other"`))
	if a.Complete(c); strings.Contains(string(c.AppendIAK(nil)), "123456789") {
		t.Error("goods of the callback were replaced")
	}
}

// A final answer makes a callback that is signed as IAK's are.
func TestAnswerSign(t *testing.T) {
	secret := NewSecret("0811222333", "key")
	c := decoded(t, string(understand(200, []byte(answerOf()), "order").Sign(secret)))
	if given, _ := ParseSignature(c.Sign()); given != secret.Sign("order") || c.Status != record.Success || !strings.Contains(string(c.AppendIAK(nil)), `"sn":"123456789"`) {
		t.Errorf("%s", c.AppendIAK(nil))
	}
}

func TestCheckBase(t *testing.T) {
	for base, want := range map[string]string{
		"https://prepaid.iak.id": "https://prepaid.iak.id", "https://prepaid.iak.dev/": "https://prepaid.iak.dev",
		"https://x.example:8443/iak/": "https://x.example:8443/iak", "http://127.0.0.1:9090": "http://127.0.0.1:9090",
		"http://[::1]:9090": "http://[::1]:9090", "http://localhost:9090": "http://localhost:9090",
		"http://prepaid.iak.id": "", "http://10.0.0.1": "", "ftp://prepaid.iak.id": "", "prepaid.iak.id": "", "": "", "https://": "",
		"https://user:secret@prepaid.iak.id": "", "https://prepaid.iak.id/?a=b": "", "https://prepaid.iak.id/#a": "", "http://localhost.evil.example": "",
		"://": "",
	} {
		got, err := CheckBase(base)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", base, got, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error has the password: %v", base, err)
		}
	}
}

// startIAK starts a server that answers by a handler.
func startIAK(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL
}

func TestClient(t *testing.T) {
	secret := NewSecret("0811222333", "key")
	const refID = `o/r"d<e>r&ü`
	base := startIAK(t, func(w http.ResponseWriter, r *http.Request) {
		var q struct{ Username, Sign, RefID string }
		all := make(map[string]string)
		if err := json.NewDecoder(r.Body).Decode(&all); err != nil {
			t.Error(err)
		}
		q.Username, q.Sign, q.RefID = all["username"], all["sign"], all["ref_id"]
		if r.Method != http.MethodPost || r.URL.Path != "/api/check-status" || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Accept-Encoding") != "" ||
			q.Username != "0811222333" || q.RefID != refID || q.Sign != secret.Sign(refID).String() || len(all) != 3 {
			t.Errorf("%s %s, %v, %v", r.Method, r.URL, r.Header, all)
		}
		name, _ := json.Marshal(refID)
		_, _ = w.Write([]byte(answerOf("ref_id", string(name))))
	})
	c := NewClient(10, 10*time.Second)
	defer c.Close()
	if a := c.Ask(t.Context(), base, "0811222333", secret, refID); a.Standing != StandingFinal || a.Status() != record.Success {
		t.Errorf("%+v, %v", a, a.Why)
	}
}

// Whatever a server does, there is an answer in time, and it quotes nothing of it.
func TestClientOddServers(t *testing.T) {
	const secretText = "SECRET-GOODS"
	var followed atomic.Int64
	elsewhere := startIAK(t, func(w http.ResponseWriter, _ *http.Request) {
		followed.Add(1)
		_, _ = w.Write([]byte(answerOf()))
	})
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		why     string
	}{
		"silent": {func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() }, "within confirm's timeout"},
		"it trickles": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			for range 6000 {
				if _, err := w.Write([]byte(" ")); err != nil || r.Context().Err() != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}, "within confirm's timeout"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(answerOf()))
			panic(http.ErrAbortHandler)
		}, "cut off"},
		"broken off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "cut off"},
		"too long": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(answerOf() + strings.Repeat(" ", maxAnswer)))
		}, "longer than 64 KiB"},
		"endless headers": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", secretText+strings.Repeat("x", 2*maxAnswer))
		}, "no HTTP"},
		"gzip": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte(answerOf()))
		}, "encoded"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere+"/api/check-status", http.StatusTemporaryRedirect)
		}, ""},
		"no HTTP": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = conn.Write([]byte(secretText + "\r\n\r\n"))
				_ = conn.Close()
			}
		}, "no HTTP"},
		"an error page": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, secretText, http.StatusInternalServerError)
		}, "no JSON"},
		"JSON of something else": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"` + secretText + `":"` + secretText + `","x":` + secretText + `}`))
		}, "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			base := startIAK(t, tc.handler)
			c := NewClient(10, 300*time.Millisecond)
			if name == "too long" || name == "endless headers" {
				c = NewClient(10, 20*time.Second)
			}
			defer c.Close()
			a := c.Ask(t.Context(), base, "0811222333", NewSecret("0811222333", "key"), "order")
			if a.Standing != StandingSilent || a.Why == nil || !strings.Contains(a.Why.Error(), tc.why) || strings.Contains(a.Why.Error(), secretText) {
				t.Errorf("%+v", a)
			}
		})
	}
	if followed.Load() != 0 {
		t.Error("a redirect was followed")
	}
	// A certificate of another name, and nobody there.
	tls := httptest.NewTLSServer(http.NotFoundHandler())
	tls.Config.ErrorLog = nil
	defer tls.Close()
	c := NewClient(10, 20*time.Second)
	defer c.Close()
	if a := c.Ask(t.Context(), tls.URL, "u", "k", "order"); a.Standing != StandingSilent || !strings.Contains(a.Why.Error(), "safely") {
		t.Errorf("%+v", a)
	}
	nobody := httptest.NewServer(http.NotFoundHandler())
	nobody.Close()
	if a := c.Ask(t.Context(), nobody.URL, "u", "k", "order"); a.Standing != StandingSilent || !strings.Contains(a.Why.Error(), "cannot be reached") {
		t.Errorf("%+v", a)
	}
}

// No more questions are asked at once, and in a second, than rate says; what has no turn
// in time is told so.
func TestClientTurns(t *testing.T) {
	hang := make(chan bool)
	var asked atomic.Int64
	base := startIAK(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		<-hang
		_, _ = w.Write([]byte(answerOf()))
	})
	c := NewClient(3, time.Minute)
	defer c.Close()
	var wg sync.WaitGroup
	ask := func(ctx context.Context, n int) (turns *atomic.Int64) {
		turns = new(atomic.Int64)
		for range n {
			wg.Go(func() {
				if a := c.Ask(ctx, base, "u", "k", "order"); a.Why != nil && strings.Contains(a.Why.Error(), "no turn") {
					turns.Add(1)
				}
			})
		}
		return turns
	}
	first := ask(t.Context(), 3)
	for asked.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	short, cancelShort := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancelShort()
	others := ask(short, 17)
	<-short.Done()
	close(hang)
	wg.Wait()
	if asked.Load() != 3 || first.Load() != 0 || others.Load() != 17 {
		t.Errorf("%d were asked, %d of the others had no turn, want 3 and 17", asked.Load(), others.Load())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if a := c.Ask(ctx, base, "u", "k", "order"); a.Standing != StandingSilent {
		t.Errorf("%+v", a)
	}
}

// No bytes make an answer that says what it does not.
func FuzzUnderstand(f *testing.F) {
	for _, body := range []string{answerOf(), answerOf("status", "2", "rc", `"102"`), answerOf("status", "0"), `{"data":{"rc":"06"}}`, "<mp></mp>", ""} {
		f.Add(200, []byte(body))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		a := understand(status, body, "order")
		switch a.Standing {
		case StandingFinal:
			if status != 200 || a.callback.RefID != "order" || a.Status() == record.Process || a.callback.fields[fieldTrID].text == "" || a.RC == "" {
				t.Errorf("%+v", a)
			}
			if a.Differs(a.callback) != nil {
				t.Error("it differs from itself")
			}
			decoded(t, string(a.Sign("key")))
		case StandingOpen, StandingUnknown, StandingRefused, StandingSilent:
		default:
			t.Errorf("%+v", a)
		}
		if _, refused := rcRefused[a.RC]; refused != (a.Standing == StandingRefused) && a.RC != "" {
			t.Errorf("%+v", a)
		}
	})
}
