package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// patientSpool delivers nothing again by itself as long as a test lasts.
const patientSpool = "backoff 100h 100h\nmax_age 1000h"

// goods are what no line may hold that an operator has not asked for by --reveal.
var goods = []string{"sn", `"5ecret-SN"`, "pin", `"5ecret-PIN"`, "activation_code", `"5ecret-CODE"`}

// expectNoGoods fails if a text holds goods, or the customer.
func expectNoGoods(t *testing.T, what, text string) {
	t.Helper()
	for _, secret := range []string{"5ecret", "0817777215", "997061249"} {
		if i := strings.Index(text, secret); i >= 0 {
			t.Errorf("%s: %q is in %q", what, secret, text[max(i-200, 0):min(i+100, len(text))])
		}
	}
}

// answering runs a command, and answers what it asks.
func answering(s *sitetest.Operated, answer string, args ...string) (string, error) {
	cmd := sitetest.Command()
	cmd.SilenceErrors = true
	var out bytes.Buffer
	cmd.SetIn(strings.NewReader(answer))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(append([]string{args[0], "--address", s.Admin}, args[1:]...))
	err := cmd.Execute()
	return out.String(), err
}

// refIDs are those of a list, in their order.
func refIDs(t *testing.T, s *sitetest.Operated, args ...string) string {
	t.Helper()
	var found []string
	for _, r := range sitetest.Records(t, s.Must(append([]string{"list", "--limit", "0", "--json"}, args...)...)) {
		found = append(found, r.RefID)
	}
	slices.Sort(found)
	return strings.Join(found, " ")
}

// triedTimes waits until so many deliveries of an order have ended.
func triedTimes(t *testing.T, s *sitetest.Operated, refID string, n int) (r sitetest.Record) {
	t.Helper()
	sitetest.Eventually(t, fmt.Sprintf("%s was tried %d times", refID, n), func() bool {
		r = s.Show(refID)[0]
		return r.Kept != nil && len(r.Kept.Tries) == n
	})
	return r
}

// An operator's morning: the app was down, what came is kept. He sees it, tries one,
// and delivers all when the app is up. Nothing that is kept is told but to --reveal,
// and that he has asked for it is logged.
func TestOperatorSpooled(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, store string) {
		addr := "127.0.0.1:" + sitetest.FreePort(t)
		s := sitetest.StartOperated(t, sitetest.Block(store, "spool {\n"+patientSpool+"\n}")+"reverse_proxy "+addr)
		var told strings.Builder // all that is printed
		for i := range 3 {
			s.Post(sitetest.Order(fmt.Sprint("order", i), "1", goods...)).Expect(t, "while the app is down", 200)
		}
		if got := refIDs(t, s, "--state", "spooled"); got != "order0 order1 order2" {
			t.Errorf("spooled are %q", got)
		}
		r := s.Show("order0")[0]
		if k := r.Kept; r.State != "spooled" || k == nil || k.Status != "success" || k.Due == nil || !k.Due.After(time.Now()) || k.Dead || k.Unrouted ||
			time.Since(k.Came) > time.Minute || len(k.Tries) != 1 || k.Tries[0].Result != "unsent" || time.Since(k.Tries[0].Time) > time.Minute {
			t.Errorf("shown %+v, %+v", r, k)
		}
		list, text := s.Must("list", "--state", "spooled"), s.Must("show", "test", "order0")
		fmt.Fprintln(&told, list, text, s.Must("show", "--json", "test", "order0"), s.Must("list", "--limit", "0", "--json"), s.Ask("GET", sitetest.RecordsPath))
		if !strings.Contains(list, "\nspooled    test          success") {
			t.Errorf("list prints\n%s", list)
		}
		for _, words := range []string{" kept success, since ", " due 2", " expires not as long as a callback is kept ", " TRIED TOOK APP WHAT HAPPENED ", " - nothing reached the app"} {
			if !strings.Contains(strings.Join(strings.Fields(text), " "), words) {
				t.Errorf("show prints\n%s\nwant %q in it", text, words)
			}
		}

		// One of them, in vain: the app is down still.
		s.Must("redeliver", "test", "order0")
		if r := triedTimes(t, s, "order0", 2); r.State != "spooled" || !r.Kept.Due.After(time.Now()) {
			t.Errorf("after a redelivery in vain: %+v, %+v", r, r.Kept)
		}
		if got := triedTimes(t, s, "order1", 1); got.State != "spooled" {
			t.Errorf("another order: %+v", got)
		}

		lines := strings.Count(s.Log(), `"logger":"admin.api.iak_callback"`)
		revealed := s.Must("show", "--reveal", "test", "order0")
		for _, words := range []string{
			"POST /callback?a=b HTTP/1.1\n", "Host: " + strings.TrimPrefix(s.URL, "http://") + "\n", "Content-Type: application/json\n",
			"\n\n" + sitetest.Order("order0", "1", goods...) + "\n", "store    ", "from     127.0.0.1:",
		} {
			if !strings.Contains(revealed, words) {
				t.Errorf("show --reveal prints\n%s\nwant %q in it", revealed, words)
			}
		}
		var callback struct {
			RefID, Body string
			Header      http.Header
		}
		if err := json.Unmarshal([]byte(s.Must("show", "--reveal", "--json", "test", "order0")), &callback); err != nil ||
			callback.Body != sitetest.Order("order0", "1", goods...) || callback.Header.Get("Content-Type") != "application/json" {
			t.Errorf("show --reveal --json: %v, %+v", err, callback)
		}
		log := s.Log()
		if n := strings.Count(log, `"logger":"admin.api.iak_callback"`) - lines; n != 2 || !strings.Contains(log, `"operation":"reveal","account":"test","ref_id":"order0"`) {
			t.Errorf("%d log lines of what was revealed twice", n)
		}

		app := sitetest.StartAppAt(t, addr, nil)
		s.Must("redeliver", "test", "order0")
		s.ComesTo("order0", "accepted")
		if got := app.Last(t); !strings.Contains(got.Body, "5ecret-SN") || got.Header.Get("Iak-Attempt") != "1" {
			t.Errorf("the app got %+v", got)
		}

		// All the others: after a yes only.
		for answer, words := range map[string]string{"": "add --yes", "\n": "nothing was redelivered", "n\n": "nothing was redelivered", "why\n": "nothing was redelivered"} {
			out, err := answering(s, answer, "redeliver", "--spooled")
			if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(out, "2 callbacks are spooled. Deliver now? [y/N]") {
				t.Errorf("answered %q: %v, %q", answer, err, out)
			}
		}
		if r := s.Show("order1")[0]; r.State != "spooled" || len(r.Kept.Tries) != 1 || !r.Kept.Due.After(time.Now()) {
			t.Errorf("after a no: %+v, %+v", r, r.Kept)
		}
		out, err := answering(s, "y\n", "redeliver", "--spooled")
		if err != nil || !strings.Contains(out, "2 callbacks are due") {
			t.Errorf("after a yes: %v, %q", err, out)
		}
		s.ComesTo("order1", "accepted")
		s.ComesTo("order2", "accepted")
		fmt.Fprintln(&told, out, s.Must("show", "test", "order1"))
		if out := s.Must("redeliver", "--spooled"); !strings.Contains(out, "No callback is spooled.") {
			t.Errorf("redeliver of nothing prints %q", out)
		}
		s.Refuses("after a release the next one that comes is delivered", "redeliver", "test", "order1")
		s.Refuses("there is nothing to show", "show", "--reveal", "test", "order1")
		s.Refuses("there is no record", "redeliver", "test", "order9")
		if !strings.Contains(s.Log(), `"operation":"redeliver","account":"","state":"spooled","callbacks":2`) ||
			!strings.Contains(s.Log(), `"operation":"redeliver","account":"test","ref_id":"order0"`) {
			t.Error("what was redelivered is not logged")
		}
		expectNoGoods(t, "printed", told.String())
		expectNoGoods(t, "the log", s.Log())
	})
}

// What is held is delivered after a second word only, and so is what is forgotten that
// is kept.
func TestOperatorSpooledHeld(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	onBothStores(t, func(t *testing.T, store string) {
		var well atomic.Bool
		app := sitetest.StartApp(t, func(_ http.ResponseWriter, r *http.Request) {
			if !well.Load() {
				<-r.Context().Done()
			}
		})
		s := sitetest.StartOperated(t, sitetest.Block(store, quick, "spool {\n"+patientSpool+"\nanswer_within 0s\n}")+"reverse_proxy "+app.Addr())
		names := []string{"accepted", "asked", "forgotten", "yes"}
		for _, refID := range names {
			s.Post(sitetest.Order(refID, "1")).Expect(t, refID, 200)
		}
		for _, refID := range names {
			s.ComesTo(refID, "held")
		}
		if got := refIDs(t, s, "--state", "held"); got != strings.Join(names, " ") {
			t.Errorf("held are %q", got)
		}
		r := triedTimes(t, s, "yes", 1)
		if k := r.Kept; k.Due != nil || r.InDoubt != "success" || k.Tries[0].Result != "unknown" {
			t.Errorf("shown %+v, %+v", r, k)
		}
		if text := s.Must("show", "test", "yes"); !strings.Contains(text, "not by itself: accept, release or redeliver it") || !strings.Contains(text, "the app may have acted") {
			t.Errorf("show prints\n%s", text)
		}
		well.Store(true)
		for answer, words := range map[string]string{"": "add --yes", "n\n": "nothing was redelivered"} {
			out, err := answering(s, answer, "redeliver", "test", "asked")
			if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(out, "nobody knows whether the app has acted") {
				t.Errorf("answered %q: %v, %q", answer, err, out)
			}
		}
		for _, query := range []string{"", "false"} {
			target := sitetest.RecordQuery(sitetest.RedeliverPath, "asked")
			if query != "" {
				target = sitetest.RecordQuery(sitetest.RedeliverPath, "asked", "held", query)
			}
			s.Ask("POST", target).Expect(t, target, 409)
		}
		s.ExpectState("asked", "held")
		if out := s.Must("redeliver", "--spooled", "--yes"); !strings.Contains(out, "No callback is spooled.") {
			t.Errorf("what is held is taken for spooled: %s", out)
		}
		if _, err := answering(s, "yes\n", "redeliver", "test", "asked"); err != nil {
			t.Error(err)
		}
		s.Must("redeliver", "--yes", "test", "yes")
		s.Must("accept", "test", "accepted")
		s.ComesTo("yes", "accepted")
		well.Store(false)
		s.Post(sitetest.Order("released", "1")).Expect(t, "released", 200)
		s.ComesTo("released", "held")
		well.Store(true)
		s.Must("release", "test", "released")
		for _, refID := range []string{"asked", "yes", "released", "accepted"} {
			s.ComesTo(refID, "accepted")
			want := []string{"1", "2"}
			if refID == "accepted" {
				want = want[:1]
			}
			if got := attempts(app, refID); !slices.Equal(got, want) {
				t.Errorf("%s: attempts %q, want %q", refID, got, want)
			}
		}
		s.Refuses("if it is forgotten, it is lost unless IAK sends it again; to forget it all the same, add --yes", "forget", "test", "forgotten")
		s.ExpectState("forgotten", "held")
		s.Must("forget", "--yes", "test", "forgotten")
		s.ExpectState("forgotten", "")
		if got := attempts(app, "forgotten"); len(got) != 1 {
			t.Errorf("what was forgotten was delivered: %q", got)
		}
	})
}

// What the app has refused for max_age is dead, and is delivered again when an operator
// says so: one, or all that he selects.
func TestOperatorDead(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, store string) {
		app := startMoody(t)
		app.status.Store(503)
		block := func(maxAge string) string {
			return sitetest.Block(store, "spool {\nbackoff 50ms 100ms\nmax_age "+maxAge+"\n}") + "reverse_proxy " + app.Addr()
		}
		s := sitetest.StartOperated(t, block("1s"))
		for i := range 4 {
			s.Post(sitetest.Order(fmt.Sprint("order", i), "1")).Expect(t, "while the app refuses", 200)
		}
		for i := range 4 {
			s.ComesTo(fmt.Sprint("order", i), "dead")
		}
		if got := refIDs(t, s, "--state", "dead"); got != "order0 order1 order2 order3" {
			t.Errorf("dead are %q", got)
		}
		if list := s.Must("list", "--state", "dead"); !strings.Contains(list, "\ndead       test          success") {
			t.Errorf("list prints\n%s", list)
		}
		r, text := s.Show("order0")[0], s.Must("show", "test", "order0")
		if k := r.Kept; !k.Dead || k.Due != nil || len(k.Tries) < 2 || k.Tries[0].Result != "refused" || k.Tries[0].AppStatus != 503 || !r.Expires.IsZero() {
			t.Errorf("shown %+v, %+v", r, k)
		}
		if !strings.Contains(text, "not by itself any more: mend what is wrong, then redeliver or forget it") || !strings.Contains(text, "  503  the app refused\n") {
			t.Errorf("show prints\n%s", text)
		}
		tried := len(attempts(app.App, "order1"))
		app.status.Store(0)
		s.Reload(block("1h"))
		s.Must("redeliver", "test", "order0")
		s.ComesTo("order0", "accepted")
		for words, args := range map[string]string{
			"add --yes": "redeliver --dead", "no iak_callback in the configuration": "redeliver --dead --yes --account shop",
			"is not a positive duration": "redeliver --dead --yes --since 0s", "one after the other": "redeliver --dead --spooled",
			"leave out the account": "redeliver --dead test order1", "go with --dead or --spooled": "redeliver --since 1h test order1",
			"takes an account and a ref_id": "redeliver",
		} {
			s.Refuses(words, strings.Fields(args)...)
		}
		if out := s.Must("redeliver", "--dead", "--yes", "--since", "1ms"); !strings.Contains(out, "No callback is dead.") {
			t.Errorf("of those that died within a millisecond: %s", out)
		}
		s.ExpectState("order1", "dead")
		if got := len(attempts(app.App, "order1")); got != tried {
			t.Errorf("a dead one was delivered %d times more", got-tried)
		}
		out := s.Must("redeliver", "--dead", "--yes", "--json", "--account", "test", "--since", "1h")
		if out != `{"redelivered":3,"done":true}`+"\n" {
			t.Errorf("redeliver --json prints %q", out)
		}
		for i := range 4 {
			s.ComesTo(fmt.Sprint("order", i), "accepted")
		}
		if got := attempts(app.App, "order1"); got[len(got)-1] != fmt.Sprint(tried+1) {
			t.Errorf("attempts %q: they did not go on", got)
		}
	})
}

// What no route leads to any more says so, and is delivered when one does again.
func TestOperatorUnrouted(t *testing.T) {
	addr := "127.0.0.1:" + sitetest.FreePort(t)
	block := func(path string) string {
		return "handle " + path + " {\n" + sitetest.Block("spool {\n"+patientSpool+"\n}") + "reverse_proxy " + addr + "\n}\nhandle {\nrespond 200\n}"
	}
	s := sitetest.StartOperated(t, block("/callback"))
	s.Post(sitetest.Order("order", "1")).Expect(t, "while the app is down", 200)
	s.Reload(block("/moved"))
	s.Must("redeliver", "test", "order")
	sitetest.Eventually(t, "it is unrouted", func() bool { return s.Show("order")[0].Kept.Unrouted })
	if r := s.Show("order")[0]; r.State != "spooled" || len(r.Kept.Tries) != 1 {
		t.Errorf("shown %+v, %+v", r, r.Kept)
	}
	if text := s.Must("show", "test", "order"); !strings.Contains(text, "no route of this Caddy leads to an iak_callback with a spool and this account") {
		t.Errorf("show prints\n%s", text)
	}
	sitetest.StartAppAt(t, addr, nil)
	s.Reload(block("/callback"))
	s.ComesTo("order", "accepted")
}

// Callbacks that are kept while nothing delivers them are told by health, which is well.
func TestHealthUndelivered(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	onBothStores(t, func(t *testing.T, store string) {
		app := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
		spool := "spool {\n" + patientSpool + "\n}"
		s := sitetest.StartOperated(t, sitetest.Block(store, spool)+"reverse_proxy "+app.Addr())
		for i := range 2 {
			s.Post(sitetest.Order(fmt.Sprint("order", i), "1")).Expect(t, "refused", 200)
		}
		for _, round := range []struct {
			block string
			count int
		}{{sitetest.Block(store, spool, "max_body_size 1mb"), 0}, {sitetest.Block(store), 2}, {sitetest.Block(store, spool), 0}} {
			s.Reload(round.block + "reverse_proxy " + app.Addr())
			got := s.Ask("GET", sitetest.HealthPath)
			var health struct {
				OK     bool
				Stores []struct {
					OK          bool
					Undelivered int
					Warning     string
				}
			}
			if err := json.Unmarshal([]byte(got.Body), &health); err != nil || got.Status != 200 || !health.OK || len(health.Stores) != 1 ||
				health.Stores[0].Undelivered != round.count || strings.Contains(health.Stores[0].Warning, "2 callbacks are kept here") != (round.count > 0) {
				t.Errorf("%s: %d %s, %v, want %d undelivered", round.block, got.Status, got.Body, err, round.count)
			}
		}
	})
}

// What is kept in a file while Redis does not answer is seen and settled as all else.
func TestOperatorOutage(t *testing.T) {
	server := redistest.Start(t)
	app := sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, sitetest.Block("redis "+server.URL()+" {\ntimeout 1s\n}", "on_store_error keep", "spool {\nbackoff 100ms 200ms\n}")+"reverse_proxy "+app.Addr())
	s.Post(sitetest.Order("before", "1")).Expect(t, "before", 200)
	server.Kill()
	for _, refID := range []string{"kept", "forgotten"} {
		s.Post(sitetest.Order(refID, "1", goods...)).Expect(t, refID, 200)
	}
	out, err := s.Command("list", "--state", "spooled")
	if err == nil || !strings.Contains(err.Error(), "connection refused") || strings.Count(out, "spooled ") != 2 {
		t.Errorf("list prints %v\n%s", err, out)
	}
	text, err := s.Command("show", "test", "kept")
	if err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(text, "outage.sqlite") ||
		!strings.Contains(text, "it is handed in when Redis is back") {
		t.Errorf("show prints %v\n%s", err, text)
	}
	revealed, err := s.Command("show", "--reveal", "test", "kept")
	if err == nil || !strings.Contains(revealed, "5ecret-SN") {
		t.Errorf("show --reveal prints %v\n%s", err, revealed)
	}
	if _, err := s.Command("forget", "test", "forgotten"); err == nil {
		t.Error("what is kept is forgotten without --yes")
	}
	if out, err := s.Command("forget", "--yes", "test", "forgotten"); !strings.Contains(out, "forgotten") {
		t.Errorf("forget --yes prints %v\n%s", err, out)
	}
	if got := s.Ask("GET", sitetest.HealthPath); got.Status != 503 || strings.Contains(got.Body, "undelivered") {
		t.Errorf("health: %d %s", got.Status, got.Body)
	}
	server.Start()
	s.ComesTo("kept", "accepted")
	if got := s.States("forgotten"); len(got) != 0 || len(attempts(app, "forgotten")) != 0 {
		t.Errorf("what was forgotten is %q", got)
	}
	expectNoGoods(t, "the log", s.Log())
}
