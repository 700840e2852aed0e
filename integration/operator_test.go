package integration

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/fcgi"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/redis/go-redis/v9"
)

// retentionByDefault is how long a record lives after its last change.
const retentionByDefault = 30 * 24 * time.Hour

// moodyApp answers as the ref_id says: hangs-* not at all, refuses-* with 500.
func moodyApp(t *testing.T) *sitetest.App {
	return sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		switch key := r.Header.Get("Idempotency-Key"); {
		case strings.Contains(key, ":hangs"):
			<-r.Context().Done()
		case strings.Contains(key, ":refuses"):
			w.WriteHeader(http.StatusInternalServerError)
		default:
			w.WriteHeader(http.StatusCreated)
		}
	})
}

// quick lets a delivery be in doubt soon.
const quick = "upstream_timeout 1s"

// onBothStores runs a test with the option lines of each store.
func onBothStores(t *testing.T, run func(t *testing.T, store string)) {
	t.Run("redis", func(t *testing.T) { run(t, "redis "+redistest.Start(t).URL()+" {\ntimeout 5s\n}") })
	t.Run("embedded", func(t *testing.T) { run(t, "embedded {env.IAK_TEST_DIR}/records.sqlite") })
}

// The admin API's routes take what is documented and nothing else, and say what
// is wrong with everything else.
func TestAdminRoutes(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	onBothStores(t, func(t *testing.T, store string) {
		held, arrived := make(chan bool), make(chan bool)
		app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
			switch key := r.Header.Get("Idempotency-Key"); {
			case strings.Contains(key, ":hangs"):
				<-r.Context().Done()
			case strings.Contains(key, ":waits"):
				arrived <- true
				<-held
			}
		})
		short := sitetest.Block(store, quick)
		s := sitetest.StartOperated(t, "handle /slow {\n"+sitetest.Block(store)+"reverse_proxy "+app.Addr()+"\n}\nhandle {\n"+short+"reverse_proxy "+app.Addr()+"\n}")
		s.Post(sitetest.Order("accepted", "1")).Expect(t, "accepted", 200)
		s.Post(sitetest.Order("hangs", "1")).Expect(t, "hangs", 504)
		s.ComesTo("hangs", "in_doubt")
		done := make(chan sitetest.Reply)
		go func() { done <- s.Do(sitetest.CallbackOf(t, s.URL+"/slow", sitetest.Order("waits", "1"))) }()
		<-arrived

		for _, row := range []struct {
			method, target string
			status         int
			words          string // in the error
			allow          string
		}{
			{"POST", sitetest.RecordQuery(sitetest.RecordPath, "accepted"), 405, "use DELETE or GET", "DELETE, GET"},
			{"HEAD", sitetest.RecordQuery(sitetest.RecordPath, "accepted"), 405, "", "DELETE, GET"},
			{"PUT", sitetest.RecordQuery(sitetest.RecordPath, "accepted"), 405, "use DELETE or GET", "DELETE, GET"},
			{"GET", sitetest.RecordQuery(sitetest.AcceptPath, "hangs"), 405, "use POST", "POST"},
			{"DELETE", sitetest.RecordQuery(sitetest.AcceptPath, "hangs"), 405, "use POST", "POST"},
			{"GET", sitetest.RecordQuery(sitetest.ReleasePath, "hangs"), 405, "use POST", "POST"},
			{"GET", sitetest.RecordQuery(sitetest.RedeliverPath, "hangs"), 405, "use POST", "POST"},
			{"GET", sitetest.RecordQuery(sitetest.RevealPath, "hangs"), 405, "use POST", "POST"},
			{"GET", sitetest.RedeliverAllPath + "?state=dead", 405, "use POST", "POST"},
			{"POST", sitetest.RecordsPath, 405, "use GET", "GET"},
			{"DELETE", sitetest.RecordsPath, 405, "use GET", "GET"},
			{"POST", sitetest.HealthPath, 405, "use GET", "GET"},

			{"GET", sitetest.RecordQuery(sitetest.RecordPath, "accepted", "state", "held"), 400, `parameter \"state\": use account, ref_id, each once`, ""},
			{"GET", sitetest.RecordQuery(sitetest.RecordPath, "accepted", "accepted", "true"), 400, `parameter \"accepted\"`, ""},
			{"GET", sitetest.RecordQuery(sitetest.RecordPath, "accepted", "ref_id", "other"), 400, `parameter \"ref_id\"`, ""},
			{"GET", sitetest.RecordQuery(sitetest.RecordPath, "accepted", "account", "test"), 400, `parameter \"account\"`, ""},
			{"DELETE", sitetest.RecordQuery(sitetest.RecordPath, "accepted", "accepted", "true", "accepted", "true"), 400, `parameter \"accepted\"`, ""},
			{"POST", sitetest.RecordQuery(sitetest.AcceptPath, "hangs", "accepted", "true"), 400, `parameter \"accepted\"`, ""},
			{"POST", sitetest.RecordQuery(sitetest.ReleasePath, "hangs", "accepted", "true"), 400, `parameter \"accepted\"`, ""},
			{"POST", sitetest.RecordQuery(sitetest.RedeliverPath, "hangs", "accepted", "true"), 400, `parameter \"accepted\"`, ""},
			{"POST", sitetest.RecordQuery(sitetest.RedeliverPath, "hangs", "held", "yes"), 400, `held \"yes\": use true or false`, ""},
			{"POST", sitetest.RecordQuery(sitetest.RevealPath, "hangs", "held", "true"), 400, `parameter \"held\"`, ""},
			{"POST", sitetest.RedeliverPath, 400, "account and ref_id are needed", ""},
			{"POST", sitetest.RevealPath, 400, "account and ref_id are needed", ""},
			{"POST", sitetest.RedeliverAllPath, 400, "state is needed: use spooled or dead", ""},
			{"POST", sitetest.RedeliverAllPath + "?state=held", 400, `state \"held\": use spooled or dead`, ""},
			{"POST", sitetest.RedeliverAllPath + "?state=dead&since=0s", 400, "is not a positive duration", ""},
			{"POST", sitetest.RedeliverAllPath + "?state=dead&ref_id=hangs", 400, `parameter \"ref_id\"`, ""},
			{"GET", sitetest.RecordPath, 400, "account and ref_id are needed", ""},
			{"GET", sitetest.RecordPath + "?account=test", 400, "account and ref_id are needed", ""},
			{"GET", sitetest.RecordPath + "?ref_id=accepted", 400, "account and ref_id are needed", ""},
			{"GET", sitetest.RecordPath + "?account=test&ref_id=", 400, "account and ref_id are needed", ""},
			{"GET", sitetest.RecordPath + "?account=test&ref_id=%zz", 400, "not properly percent-encoded", ""},
			{"DELETE", sitetest.RecordQuery(sitetest.RecordPath, "accepted", "accepted", "yes"), 400, `accepted \"yes\": use true or false`, ""},
			{"DELETE", sitetest.RecordPath, 400, "account and ref_id are needed", ""},
			{"POST", sitetest.AcceptPath, 400, "account and ref_id are needed", ""},
			{"GET", sitetest.RecordsPath + "?state=waiting", 400, `state \"waiting\": use in_flight, in_doubt, held, accepted, assumed, released, spooled or dead`, ""},
			{"GET", sitetest.RecordsPath + "?since=yesterday", 400, `since \"yesterday\" is not a positive duration, such as 2h or 7d`, ""},
			{"GET", sitetest.RecordsPath + "?since=-1h", 400, "is not a positive duration", ""},
			{"GET", sitetest.RecordsPath + "?since=0s", 400, "is not a positive duration", ""},
			{"GET", sitetest.RecordsPath + "?ref_id=accepted", 400, `parameter \"ref_id\": use account, state, since, each once`, ""},
			{"GET", sitetest.RecordsPath + "?state=held&state=held", 400, `parameter \"state\"`, ""},

			{"GET", sitetest.RecordPath + "?account=shop&ref_id=accepted", 404, `no iak_callback in the configuration has the account \"shop\"`, ""},
			{"GET", sitetest.RecordPath + "?account=Test&ref_id=accepted", 404, "no iak_callback", ""},
			{"DELETE", sitetest.RecordPath + "?account=shop&ref_id=accepted", 404, "no iak_callback", ""},
			{"POST", sitetest.AcceptPath + "?account=shop&ref_id=hangs", 404, "no iak_callback", ""},
			{"GET", sitetest.RecordsPath + "?account=shop", 404, "no iak_callback", ""},
			{"POST", sitetest.RedeliverAllPath + "?state=dead&account=shop", 404, "no iak_callback", ""},
			{"POST", sitetest.RecordQuery(sitetest.RedeliverPath, "none"), 404, "there is no record", ""},
			{"POST", sitetest.RecordQuery(sitetest.RevealPath, "none"), 404, "there is no record", ""},
			{"GET", sitetest.RecordQuery(sitetest.RecordPath, "none"), 404, "there is no record of this ref_id", ""},
			{"GET", sitetest.RecordQuery(sitetest.RecordPath, "ACCEPTED"), 404, "there is no record", ""},
			{"GET", sitetest.RecordQuery(sitetest.RecordPath, strings.Repeat("x", 5000)), 404, "there is no record", ""},
			{"DELETE", sitetest.RecordQuery(sitetest.RecordPath, "none"), 404, "there is no record", ""},
			{"DELETE", sitetest.RecordQuery(sitetest.RecordPath, "none", "accepted", "true"), 404, "there is no record", ""},
			{"POST", sitetest.RecordQuery(sitetest.AcceptPath, "none"), 404, "there is no record", ""},
			{"POST", sitetest.RecordQuery(sitetest.ReleasePath, "none"), 404, "there is no record", ""},

			{"DELETE", sitetest.RecordQuery(sitetest.RecordPath, "accepted"), 409, "the app has accepted this ref_id", ""},
			{"DELETE", sitetest.RecordQuery(sitetest.RecordPath, "accepted", "accepted", "false"), 409, "the app has accepted this ref_id", ""},
			{"POST", sitetest.RecordQuery(sitetest.AcceptPath, "accepted"), 409, "nothing is in doubt", ""},
			{"POST", sitetest.RecordQuery(sitetest.ReleasePath, "accepted"), 409, "nothing is in doubt", ""},
			{"POST", sitetest.RecordQuery(sitetest.AcceptPath, "waits"), 409, "a delivery is under way and may last until", ""},
			{"POST", sitetest.RecordQuery(sitetest.ReleasePath, "waits"), 409, "a delivery is under way", ""},
			{"POST", sitetest.RecordQuery(sitetest.RedeliverPath, "waits"), 409, "a delivery is under way", ""},
			{"POST", sitetest.RecordQuery(sitetest.RedeliverPath, "accepted"), 409, "no callback is kept", ""},
			{"POST", sitetest.RecordQuery(sitetest.RedeliverPath, "hangs"), 409, "after a release the next one that comes is delivered", ""},
			{"POST", sitetest.RecordQuery(sitetest.RevealPath, "accepted"), 409, "no callback is kept", ""},
			{"DELETE", sitetest.RecordQuery(sitetest.RecordPath, "waits"), 409, "a delivery is under way", ""},
			{"DELETE", sitetest.RecordQuery(sitetest.RecordPath, "waits", "accepted", "true"), 409, "a delivery is under way", ""},
		} {
			got := s.Ask(row.method, row.target)
			what := row.method + " " + row.target
			got.Expect(t, what, row.status)
			if !strings.Contains(got.Body, row.words) || got.Header.Get("Allow") != row.allow {
				t.Errorf("%s: %s, Allow %q; want %q and %q", what, got.Body, got.Header.Get("Allow"), row.words, row.allow)
			}
		}
		// None of these has changed anything.
		s.ExpectState("accepted", "accepted")
		s.ExpectState("hangs", "in_doubt")
		s.ExpectState("waits", "in_flight")
		close(held)
		(<-done).Expect(t, "waits", 200)

		for _, row := range []struct {
			method, target, state string
		}{
			{"GET", sitetest.RecordQuery(sitetest.RecordPath, "hangs"), "in_doubt"},
			{"POST", sitetest.RecordQuery(sitetest.AcceptPath, "hangs"), "accepted"},
			{"GET", sitetest.RecordQuery(sitetest.RecordPath, "waits"), "accepted"},
			{"DELETE", sitetest.RecordQuery(sitetest.RecordPath, "hangs", "accepted", "true"), "forgotten"},
		} {
			got := s.Ask(row.method, row.target)
			what := row.method + " " + row.target
			got.Expect(t, what, 200)
			var answer struct{ Records []sitetest.Record }
			if err := json.Unmarshal([]byte(got.Body), &answer); err != nil || len(answer.Records) != 1 || answer.Records[0].State != row.state {
				t.Errorf("%s: %s, want one record, %s", what, got.Body, row.state)
			}
			if kind := got.Header.Get("Content-Type"); kind != "application/json" {
				t.Errorf("%s: Content-Type %q", what, kind)
			}
		}
		s.ExpectState("hangs", "")
		lines := strings.Count(s.Log(), `"logger":"admin.api.iak_callback"`)
		if lines != 2 || !strings.Contains(s.Log(), `"operation":"forget","account":"test","ref_id":"hangs"`) {
			t.Errorf("%d log lines of operations, want 2", lines)
		}
	})
}

// A store that cannot be used is told by every route, in time, with its address
// and without its password, and never taken for one without records.
func TestAdminStoreDown(t *testing.T) {
	const timeout = 400 * time.Millisecond
	for _, row := range []struct {
		name  string
		fault func(*redistest.Server)
		words string
	}{
		{"stopped", (*redistest.Server).Kill, "connection refused"},
		{"hangs", func(s *redistest.Server) { s.Signal(syscall.SIGSTOP) }, "time"},
	} {
		t.Run(row.name, func(t *testing.T) {
			server := redistest.Start(t, "--requirepass", "5ecret-password")
			t.Setenv("IAK_TEST_REDIS", "redis://:5ecret-password@"+server.Addr())
			app := sitetest.StartApp(t, nil)
			s := sitetest.StartOperated(t, sitetest.Block("redis {env.IAK_TEST_REDIS} {\ntimeout "+timeout.String()+"\n}")+"reverse_proxy "+app.Addr())
			s.Post(sitetest.Order("order", "1")).Expect(t, "before", 200)
			if got := s.Ask("GET", sitetest.HealthPath); got.Status != 200 || !strings.Contains(got.Body, `"store":"redis `+server.Addr()+`","ok":true`) {
				t.Errorf("health with a Redis that is up: %d %s", got.Status, got.Body)
			}
			row.fault(server)
			for _, target := range []string{
				"GET " + sitetest.RecordQuery(sitetest.RecordPath, "order"), "DELETE " + sitetest.RecordQuery(sitetest.RecordPath, "order"), "POST " + sitetest.RecordQuery(sitetest.AcceptPath, "order"),
				"POST " + sitetest.RecordQuery(sitetest.ReleasePath, "order"), "GET " + sitetest.RecordsPath, "GET " + sitetest.HealthPath,
			} {
				method, path, _ := strings.Cut(target, " ")
				start := time.Now()
				got := s.Ask(method, path)
				if took := time.Since(start); took > 2*timeout+time.Second {
					t.Errorf("%s took %s", target, took)
				}
				got.Expect(t, target, 503)
				if !strings.Contains(got.Body, row.words) || strings.Contains(got.Body, "5ecret") {
					t.Errorf("%s: %s, want %q and no password", target, got.Body, row.words)
				}
			}
			if got := s.Ask("GET", sitetest.HealthPath); !strings.Contains(got.Body, server.Addr()) || !strings.Contains(got.Body, `"ok":false`) {
				t.Errorf("health does not tell which store: %s", got.Body)
			}
			s.Refuses(row.words, "list")
			s.Refuses(row.words, "show", "test", "order")
			if strings.Contains(s.Log(), "5ecret") {
				t.Error("the log holds the password")
			}
		})
	}
	t.Run("a file that cannot be opened", func(t *testing.T) {
		t.Setenv("IAK_TEST_DIR", t.TempDir())
		s := sitetest.StartOperated(t, sitetest.Block("embedded {env.IAK_TEST_DIR}"))
		for _, target := range []string{sitetest.RecordQuery(sitetest.RecordPath, "order"), sitetest.RecordsPath, sitetest.HealthPath} {
			got := s.Ask("GET", target)
			got.Expect(t, target, 503)
			if !strings.Contains(got.Body, os.Getenv("IAK_TEST_DIR")) {
				t.Errorf("%s does not tell which file: %s", target, got.Body)
			}
		}
	})
}

// Whatever an operator asks for, no answer holds goods, a customer, a signature,
// a key, a password or the token of a delivery.
func TestOperatorNoSecrets(t *testing.T) {
	shortLease(t)
	server := redistest.Start(t, "--requirepass", "5ecret-password")
	t.Setenv("IAK_TEST_REDIS", "redis://default:5ecret-password@"+server.Addr())
	app := moodyApp(t)
	block := func(store, path string) string {
		return "handle " + path + " {\n" + sitetest.Block(store, quick, "on_doubt hold", "on_conflict forward") + "reverse_proxy " + app.Addr() + "\n}\n"
	}
	s := sitetest.StartOperated(t, block("redis {env.IAK_TEST_REDIS} {\ntimeout 5s\n}", "/callback")+block("body flat", "/file"))
	goods := []string{"sn", `"5ecret-SN"`, "pin", `"5ecret-PIN"`, "activation_code", `"5ecret-CODE"`}
	secrets := []string{"5ecret", "0817777215", sitetest.APIKey, sitetest.Username, "xld25000", "997061249", "3482"}
	var answers strings.Builder
	keep := func(what string, parts ...any) { fmt.Fprintln(&answers, append([]any{what}, parts...)...) }
	refIDs := []string{"works", "hangs", "refuses"}
	for _, refID := range refIDs {
		secrets = append(secrets, sitetest.Sign(refID))
		for _, path := range []string{"/callback", "/file"} {
			for _, status := range map[string][]string{"works": {"0", "1"}, "hangs": {"1"}, "refuses": {"2"}}[refID] {
				s.Do(sitetest.CallbackOf(t, s.URL+path, sitetest.Order(refID, status, goods...)))
			}
		}
	}
	sitetest.Eventually(t, "both are held", func() bool {
		return slices.Equal(s.States("hangs"), []string{"held", "held"})
	})
	// Somewhere in what Redis keeps of a claim stands the token of its owner.
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: "5ecret-password"})
	defer client.Close()
	kept, err := client.Get(t.Context(), "iak:test:hangs").Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(kept) - 15 {
		token := kept[i : i+16]
		secrets = append(secrets, string(token), hex.EncodeToString(token), base64.StdEncoding.EncodeToString(token))
	}
	for _, refID := range append(refIDs, "none") {
		for _, target := range []string{
			"GET " + sitetest.RecordPath, "POST " + sitetest.AcceptPath, "POST " + sitetest.ReleasePath, "DELETE " + sitetest.RecordPath,
		} {
			for _, args := range [][]string{{"show"}, {"show", "--json"}, {"list"}, {"list", "--json"}} {
				if args[0] == "show" {
					args = append(args, "test", refID)
				}
				out, err := s.Command(args...)
				keep(strings.Join(args, " "), out, err)
			}
			method, path, _ := strings.Cut(target, " ")
			got := s.Ask(method, sitetest.RecordQuery(path, refID))
			keep(target, got.Status, got.Header, got.Body)
		}
	}
	for _, target := range []string{sitetest.RecordsPath, sitetest.HealthPath, sitetest.RecordsPath + "?state=5", sitetest.RecordPath} {
		got := s.Ask("GET", target)
		keep(target, got.Status, got.Header, got.Body)
	}
	server.Kill()
	for _, target := range []string{sitetest.RecordsPath, sitetest.HealthPath, sitetest.RecordQuery(sitetest.RecordPath, "works")} {
		got := s.Ask("GET", target)
		keep(target, got.Status, got.Header, got.Body)
	}
	for line := range strings.Lines(answers.String()) {
		for _, secret := range secrets {
			if strings.Contains(line, secret) {
				t.Errorf("%q is in %q", secret, line)
			}
		}
	}
	if !strings.Contains(answers.String(), `"state":"held"`) || !strings.Contains(answers.String(), "works") {
		t.Error("nothing was asked for: the test shows nothing")
	}
}

// Whatever characters a ref_id has, the commands reach its record and no other.
func TestOperatorRefIDs(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	refIDs := []string{
		"a/b", "/", "//", "a%2Fb", "%", "%zz", "%00", "..", "../..", ".", "a/../b", "?", "a?ref_id=b", "a&ref_id=b", "&account=other", "#", "a#b",
		"a;b", "a=b", "+", "a b", " ", " a", "a ", "ü", "u\u0308", "\u00e9 \U0001f600", "\u202egnp.exe", "\u2066a", "\u200b", "\ufeff", "\u2028",
		`"`, `\`, `\n`, "'", "`", "$(x)", "{env.HOME}", "{http.request.uri}", "*", "a*", "[ab]", "test:a", ":", "-a", "--yes", "--", "--json", "order=1",
		strings.Repeat("x", 255), strings.Repeat("/", 255), "<script>", "null", "0",
	}
	onBothStores(t, func(t *testing.T, store string) {
		app := sitetest.StartApp(t, nil)
		s := sitetest.StartOperated(t, sitetest.Block(store)+"reverse_proxy "+app.Addr())
		for _, refID := range refIDs {
			s.Post(sitetest.Order(refID, "1")).Expect(t, refID, 200)
		}
		listed := make(map[string]bool)
		for _, r := range sitetest.Records(t, s.Must("list", "--limit", "0", "--json")) {
			listed[r.RefID] = true
		}
		for _, refID := range refIDs {
			if !listed[refID] {
				t.Errorf("%q is not in the list", refID)
			}
			records := sitetest.Records(t, s.Must("show", "--json", "--", "test", refID))
			if len(records) != 1 || records[0].RefID != refID || records[0].State != "accepted" {
				t.Errorf("%q: shown %+v", refID, records)
			}
			text := s.Must("show", "--", "test", refID)
			if strings.ContainsAny(text, "\u202e\u2066\u200b\u2028\ufeff") {
				t.Errorf("%q is printed as it is: %q", refID, text)
			}
		}
		if text := s.Must("list"); strings.ContainsAny(text, "\u202e\u2066\u200b\u2028\ufeff") || strings.Count(text, "\n") != len(refIDs)+1 {
			t.Errorf("the list of %d records: %q", len(refIDs), text)
		}
		for i, refID := range refIDs {
			records := sitetest.Records(t, s.Must("forget", "--yes", "--json", "--", "test", refID))
			if len(records) != 1 || records[0].RefID != refID || records[0].State != "forgotten" {
				t.Errorf("%q: forgotten %+v", refID, records)
			}
			if left := len(sitetest.Records(t, s.Must("list", "--limit", "0", "--json"))); left != len(refIDs)-i-1 {
				t.Fatalf("%d records are left after %q was forgotten, want %d", left, refID, len(refIDs)-i-1)
			}
		}
	})
}

// show and list tell what happened, as a table or as JSON, and select by state,
// time and account.
func TestOperatorCommands(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	onBothStores(t, func(t *testing.T, store string) {
		app := moodyApp(t)
		other := "iak_callback /other {\naccount other " + sitetest.Username + " " + sitetest.APIKey + "\n" + store + "\n}\n"
		s := sitetest.StartOperated(t, other+"handle /hold {\n"+sitetest.Block(store, quick)+"reverse_proxy "+app.Addr()+"\n}\n"+
			"iak_callback /callback {\n"+sitetest.Account+"\n"+store+"\n"+quick+"\n}\nreverse_proxy "+app.Addr())
		if out := s.Must("list", "--limit", "0", "--json"); out != "" {
			t.Errorf("the list of nothing: %q", out)
		}
		s.Post(sitetest.Order("works", "1")).Expect(t, "works", 201)
		s.Post(sitetest.Order("refuses", "2")).Expect(t, "refuses", 500)
		s.Post(sitetest.Order("hangs", "2")).Expect(t, "hangs", 504)
		s.Do(sitetest.CallbackOf(t, s.URL+"/other", sitetest.Order("of the other", "0"))).Expect(t, "other", 201)
		s.ComesTo("hangs", "in_doubt")

		names := func(args ...string) string {
			t.Helper()
			var found []string
			for _, r := range sitetest.Records(t, s.Must(append([]string{"list", "--limit", "0", "--json"}, args...)...)) {
				found = append(found, r.RefID)
			}
			slices.Sort(found)
			return strings.Join(found, ", ")
		}
		for _, row := range []struct{ args, want string }{
			{"", "hangs, of the other, refuses, works"},
			{"--account test", "hangs, refuses, works"},
			{"--account other", "of the other"},
			{"--state accepted", "of the other, works"},
			{"--state accepted --account test", "works"},
			{"--state in_doubt", "hangs"},
			{"--state released", "refuses"},
			{"--state held", ""},
			{"--state in_flight", ""},
			{"--since 1h", "hangs, of the other, refuses, works"},
			{"--since 7d --state released --account test", "refuses"},
			{"--since 1ns", ""},
		} {
			if got := names(strings.Fields(row.args)...); got != row.want {
				t.Errorf("list %s: %q, want %q", row.args, got, row.want)
			}
		}
		for words, args := range map[string]string{
			": use in_flight, in_doubt": "list --state lost", "is not a positive duration": "list --since -1h",
			"no iak_callback in the configuration has the account": "list --account shop",
			"unknown command":     "list all",
			"unknown flag: --yes": "accept test works --yes",
		} {
			s.Refuses(words, strings.Fields(args)...)
		}
		s.Refuses("", "show", "works")
		s.Refuses("", "forget", "test", "works", "more")

		r := s.Show("works")[0]
		if r.Account != "test" || r.Accepted != "success" || r.Code != 201 || r.Attempt != 0 || r.InDoubt+r.InFlight != "" || r.Until != nil {
			t.Errorf("accepted: %+v", r)
		}
		if ago := time.Since(r.Changed); ago < -time.Second || ago > time.Minute || (r.Expires.Sub(r.Changed)-retentionByDefault).Abs() > 2*time.Second {
			t.Errorf("changed %s ago, expires %s later", ago, r.Expires.Sub(r.Changed))
		}
		if r := s.Show("refuses")[0]; r.State != "released" || r.Attempt != 1 || r.Accepted+r.InDoubt+r.InFlight != "" {
			t.Errorf("refused: %+v", r)
		}
		if r := s.Show("hangs")[0]; r.InDoubt != "failed" || r.Attempt != 1 || r.Accepted+r.InFlight != "" || r.Until != nil {
			t.Errorf("in doubt: %+v", r)
		}
		text := strings.Join(strings.Fields(s.Must("show", "test", "works")), " ")
		if !strings.HasPrefix(text, "account test ref_id works state accepted it means The app has accepted it. The same again does not reach it. what to do Nothing to do. accepted success, answered 201 ") {
			t.Errorf("show prints %q", text)
		}
		t.Setenv("LC_ALL", "id_ID.UTF-8")
		if text := s.Must("show", "test", "works"); !strings.Contains(text, "Aplikasi sudah menerimanya.") {
			t.Errorf("in Indonesian show prints %q", text)
		}
		t.Setenv("LC_ALL", "C")
		for _, line := range []string{"accepted   test          success            ", "released   test                          1  ", "in_doubt   test          failed          1  "} {
			if list := s.Must("list"); !strings.Contains(list, "\n"+line) {
				t.Errorf("list prints\n%s\nwant a line with %q", list, line)
			}
		}

		// forget takes --yes where the app has accepted, and then only.
		s.Refuses("to forget it all the same, add --yes", "forget", "test", "works")
		s.ExpectState("works", "accepted")
		s.Must("forget", "test", "refuses")
		s.ExpectState("refuses", "")
		if text := s.Must("forget", "--yes", "test", "works"); !strings.Contains(text, "forgotten") || strings.Contains(text, "expires") {
			t.Errorf("forget prints %q", text)
		}
		s.Refuses("there is no record of this ref_id", "show", "test", "works")
		s.Refuses("there is no record of this ref_id", "forget", "--yes", "test", "works")
		before := len(app.Received())
		s.Post(sitetest.Order("works", "1")).Expect(t, "forgotten", 201)
		if got := app.Last(t).Header.Get("Iak-Attempt"); len(app.Received()) != before+1 || got != "1" {
			t.Errorf("what was forgotten was delivered %d times, Iak-Attempt %s", len(app.Received())-before, got)
		}
	})
}

// Where no Caddy answers, every command says so, and what to do.
func TestOperatorNoCaddy(t *testing.T) {
	address := "127.0.0.1:" + sitetest.FreePort(t)
	for _, args := range [][]string{{"show", "test", "order"}, {"list"}, {"accept", "test", "order"}, {"release", "test", "order"}, {"forget", "test", "order"}} {
		out, err := sitetest.Run(append(args, "--address", address)...)
		if err == nil || !strings.Contains(err.Error(), "no Caddy answers at "+address) || !strings.Contains(err.Error(), "--address") {
			t.Errorf("%s: %v, %q", args[0], err, out)
		}
	}
	s := sitetest.StartOperated(t, "respond ok") // a Caddy without iak_callback
	s.Refuses("no iak_callback in the configuration has the account", "show", "test", "order")
	if out := s.Must("list", "--limit", "0", "--json"); out != "" {
		t.Errorf("list prints %q", out)
	}
	if got := s.Ask("GET", sitetest.HealthPath); got.Status != 200 || got.Body != `{"ok":true,"stores":[]}`+"\n" {
		t.Errorf("health of nothing: %d %s", got.Status, got.Body)
	}
}

// An account whose records are in two stores is looked at, and operated on, in
// both; handlers that share one place show it once, and held if all of them
// hold; an account that a reload removes is unknown.
func TestOperatorPlaces(t *testing.T) {
	shortLease(t)
	server := redistest.Start(t)
	app := moodyApp(t)
	handle := func(path string, options ...string) string {
		return "handle " + path + " {\n" + sitetest.Block(append(options, quick)...) + "reverse_proxy " + app.Addr() + "\n}\n"
	}
	inRedis := "redis " + server.URL() + " {\ntimeout 5s\n}"
	s := sitetest.StartOperated(t, handle("/file")+handle("/redis", inRedis))
	post := func(path, refID string, want int) {
		t.Helper()
		s.Do(sitetest.CallbackOf(t, s.URL+path, sitetest.Order(refID, "1"))).Expect(t, refID+" to "+path, want)
	}
	post("/file", "hangs", 504)
	post("/redis", "hangs", 504)
	post("/file", "hangs-too", 504)
	post("/redis", "works", 201)
	s.ComesTo("hangs", "in_doubt in_doubt")
	s.ComesTo("hangs-too", "in_doubt")
	s.ExpectState("works", "accepted")
	if n := len(sitetest.Records(t, s.Must("list", "--limit", "0", "--json"))); n != 4 {
		t.Errorf("%d records are listed, want 4", n)
	}
	kinds := ""
	for _, r := range s.Show("hangs") {
		kind, _, _ := strings.Cut(r.Store, " ")
		kinds += kind + " "
	}
	if kinds != "embedded redis " {
		t.Errorf("hangs is shown in the stores %s", kinds)
	}
	if settled := sitetest.Records(t, s.Must("accept", "--json", "test", "hangs")); len(settled) != 2 {
		t.Errorf("accepted in %d places, want 2: %+v", len(settled), settled)
	}
	s.ExpectState("hangs", "accepted accepted")
	if settled := sitetest.Records(t, s.Must("release", "--json", "test", "hangs-too")); len(settled) != 1 {
		t.Errorf("released in %d places, want 1: %+v", len(settled), settled)
	}
	s.Refuses("there is no record", "show", "test", "none")
	s.Refuses("nothing is in doubt", "accept", "test", "hangs")
	s.Refuses("add --yes", "forget", "test", "hangs")
	if gone := sitetest.Records(t, s.Must("forget", "--yes", "--json", "test", "hangs")); len(gone) != 2 {
		t.Errorf("forgotten in %d places, want 2: %+v", len(gone), gone)
	}
	var health struct{ Stores []struct{ Store string } }
	if err := json.Unmarshal([]byte(s.Ask("GET", sitetest.HealthPath).Body), &health); err != nil || len(health.Stores) != 2 {
		t.Errorf("health tells of %+v, want both stores", health)
	}

	post("/file", "known", 201)

	// One of the stores is down: what was done is told, and that it was not done
	// everywhere.
	post("/file", "both", 201)
	post("/redis", "both", 201)
	server.Kill()
	out, err := s.Command("forget", "--yes", "--json", "test", "both")
	if err == nil || !strings.Contains(err.Error(), "not in all of them") || !strings.Contains(err.Error(), "redis") {
		t.Errorf("forget with a store down: %v", err)
	}
	if gone := sitetest.Records(t, out); len(gone) != 1 || gone[0].State != "forgotten" {
		t.Errorf("forget with a store down prints %s", out)
	}
	// What one store refuses may wait in the one that is down.
	for _, args := range [][]string{{"accept", "test", "known"}, {"release", "test", "known"}, {"forget", "test", "known"}} {
		s.Refuses("connection refused", args...)
	}

	// One place.
	s.Reload(handle("/file") + handle("/hold", "on_doubt hold", "retention 10d") + handle("/third"))
	post("/hold", "hangs-again", 504)
	s.ComesTo("hangs-again", "in_doubt") // a repeat to /file would reach the app
	s.Reload(handle("/file", "on_doubt hold") + handle("/hold", "on_doubt hold", "retention 10d"))
	s.ComesTo("hangs-again", "held")
	if n := len(sitetest.Records(t, s.Must("list", "--limit", "0", "--json", "--state", "held"))); n != 1 {
		t.Errorf("%d records are held, want 1", n)
	}
	if got := s.Ask("GET", sitetest.HealthPath); strings.Count(got.Body, `"store"`) != 1 {
		t.Errorf("health tells of the one store more than once: %s", got.Body)
	}
	if r := s.Show("hangs-again")[0]; !r.Expires.IsZero() {
		t.Errorf("what is held expires at %s", r.Expires)
	}
	post("/hold", "for-ten-days", 201)
	if r := s.Show("for-ten-days")[0]; (r.Expires.Sub(r.Changed) - 10*24*time.Hour).Abs() > 2*time.Second {
		t.Errorf("expires %s after its change, want the retention of the handler that claimed it", r.Expires.Sub(r.Changed))
	}

	// Without the handler.
	s.Reload("iak_callback /other {\naccount other 1 2\n}\nrespond ok")
	s.Refuses("no iak_callback in the configuration has the account", "show", "test", "hangs-again")
	s.Refuses("no iak_callback in the configuration has the account", "release", "test", "hangs-again")
	if out := s.Must("list", "--limit", "0", "--json"); out != "" {
		t.Errorf("list prints %s", out)
	}
	s.Reload(handle("/file"))
	s.ExpectState("hangs-again", "in_doubt")
}

// on_doubt hold, from the app that does not answer to the operator's settlement.
func TestHold(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	onBothStores(t, func(t *testing.T, store string) {
		var well sync.Map // the ref_ids that the app has learnt to answer
		app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
			refID := strings.Split(r.Header.Get("Idempotency-Key"), ":")[1]
			if _, ok := well.Load(refID); !ok {
				<-r.Context().Done()
				return
			}
			w.WriteHeader(http.StatusCreated)
		})
		s := sitetest.StartOperated(t, "handle /metrics {\nmetrics\n}\nhandle {\n"+sitetest.Block(store, quick, "on_doubt hold")+"reverse_proxy "+app.Addr()+"\n}")
		const series = `caddy_iak_callback_requests_total{account="test",outcome="held",reason=""}`
		counted := s.Metrics()[series]

		// Each outcome is timed out, in flight, held; then settled.
		for i, status := range []string{"1", "2"} {
			for _, settle := range []string{"accept", "release", "forget"} {
				refID := settle + status
				deliveries := func() (n int) {
					for _, d := range app.Received() {
						if strings.HasPrefix(d.Header.Get("Idempotency-Key"), "test:"+refID+":") {
							n++
						}
					}
					return n
				}
				s.Post(sitetest.Order(refID, status)).Expect(t, "timed out", 504)
				word := []string{"success", "failed"}[i]
				if got := s.Post(sitetest.Order(refID, status)); got.Status != 409 || got.Header.Get("Retry-After") == "" {
					// The lease may be over on a machine that is busy.
					if s.States(refID)[0] != "held" {
						t.Errorf("in flight: %d, Retry-After %q", got.Status, got.Header.Get("Retry-After"))
					}
				}
				s.ComesTo(refID, "held")
				before := len(s.CallbackLines())
				for range 2 {
					got := s.Post(sitetest.Order(refID, status))
					got.Expect(t, "held", 409)
					if got.Header.Get("Retry-After") != "" || got.Header.Get("Idempotent-Replayed") != "" {
						t.Errorf("held: %v", got.Header)
					}
				}
				line := s.LinesAfter(before + 1)[before]
				if line["level"] != "error" || line["outcome"] != "held" || line["ref_id"] != refID || line["status"] != word ||
					!strings.Contains(fmt.Sprint(line["error"]), "caddy iak-callback accept") {
					t.Errorf("the log line of what is held: %v", line)
				}
				s.Post(sitetest.Order(refID, "0")).Expect(t, "late news", 200)
				s.Post(sitetest.Order(refID, []string{"2", "1"}[i])).Expect(t, "a conflict", 409)
				if r := s.Show(refID)[0]; r.State != "held" || r.InDoubt != word || r.Attempt != 1 {
					t.Errorf("shown: %+v", r)
				}
				if n := deliveries(); n != 1 {
					t.Errorf("%s reached the app %d times while it was held", refID, n)
				}

				well.Store(refID, true)
				s.Must(settle, "test", refID)
				got := s.Post(sitetest.Order(refID, status))
				switch settle {
				case "accept":
					got.Expect(t, "accepted", 200)
					if got.Header.Get("Idempotent-Replayed") != "true" || deliveries() != 1 {
						t.Errorf("after accept: %v, %d deliveries", got.Header, deliveries())
					}
				case "release", "forget":
					got.Expect(t, settle, 201)
					want := map[string]string{"release": "2", "forget": "1"}[settle]
					if attempt := app.Last(t).Header.Get("Iak-Attempt"); attempt != want || deliveries() != 2 {
						t.Errorf("after %s: Iak-Attempt %s, want %s; %d deliveries", settle, attempt, want, deliveries())
					}
				}
				s.ExpectState(refID, "accepted")
				again := s.Post(sitetest.Order(refID, status))
				if again.Header.Get("Idempotent-Replayed") != "true" {
					t.Errorf("%s: the end of the story: %d %v", refID, again.Status, again.Header)
				}
			}
		}
		if grown := s.Metrics()[series] - counted; grown < 12 {
			t.Errorf("%v callbacks are counted as held, want 12", grown)
		}
	})
}

// lateApp is a FastCGI app: Caddy does not break a delivery to it off when its
// time is over, so its answer may come after the lease. It notes the attempts.
type lateApp struct {
	mu       sync.Mutex
	received []string
	answer   map[string]chan int // the status, by the attempt
}

func startLateApp(t *testing.T) (a *lateApp, block string) {
	t.Helper()
	a = &lateApp{answer: map[string]chan int{"1": make(chan int), "2": make(chan int)}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		_ = fcgi.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			attempt := r.Header.Get("Iak-Attempt")
			a.mu.Lock()
			a.received = append(a.received, attempt+" "+r.Header.Get("Idempotency-Key"))
			a.mu.Unlock()
			w.WriteHeader(<-a.answer[attempt])
		}))
	}()
	return a, "reverse_proxy " + l.Addr().String() + " {\ntransport fastcgi {\nroot " + t.TempDir() + "\n}\n}"
}

func (a *lateApp) deliveries() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.received)
}

// The app answers after the lease, while an operator has the record: a 2xx is a
// fact and is kept, whatever the operator did, so that the repeat does not reach
// the app; a refusal undoes nothing of what the operator did.
func TestHoldLateAnswer(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	onBothStores(t, func(t *testing.T, store string) {
		for _, row := range []struct {
			operator string // what he does meanwhile
			answer   int    // of the app, late
			state    string
			repeat   int  // the answer to the repeat
			replayed bool // or else it is delivered
		}{
			{"", 201, "accepted", 201, true},
			{"accept", 201, "accepted", 200, true},
			{"release", 201, "accepted", 201, true},
			{"forget", 201, "accepted", 201, true},
			{"", 500, "released", 202, false},
			{"accept", 500, "accepted", 200, true},
			{"release", 500, "released", 202, false},
			{"forget", 500, "", 202, false},
		} {
			t.Run(fmt.Sprintf("%s, then %d", row.operator, row.answer), func(t *testing.T) {
				app, behind := startLateApp(t)
				s := sitetest.StartOperated(t, sitetest.Block(store, quick, "on_doubt hold")+behind)
				refID := fmt.Sprintf("order-%s-%d", row.operator, row.answer)
				s.Post(sitetest.Order(refID, "1")).Expect(t, "timed out", 504)
				s.ComesTo(refID, "held")
				s.Post(sitetest.Order(refID, "1")).Expect(t, "held", 409)
				if row.operator != "" {
					s.Must(row.operator, "test", refID)
				}
				app.answer["1"] <- row.answer
				sitetest.Eventually(t, "the app's end is told, after its delivery is settled", func() bool {
					return strings.Contains(s.Log(), `"msg":"the app came back after upstream_timeout"`)
				})
				s.ExpectState(refID, row.state)

				if !row.replayed {
					go func() {
						attempt := "2"
						if row.operator == "forget" {
							attempt = "1"
						}
						app.answer[attempt] <- row.repeat
					}()
				}
				got := s.Post(sitetest.Order(refID, "1"))
				got.Expect(t, "repeat", row.repeat)
				deliveries := 2
				if row.replayed {
					deliveries = 1
				}
				if (got.Header.Get("Idempotent-Replayed") == "true") != row.replayed || app.deliveries() != deliveries {
					t.Errorf("the repeat: %v, after %d deliveries, want %d", got.Header, app.deliveries(), deliveries)
				}
				s.ExpectState(refID, "accepted")
			})
		}
	})
}

// eventSink is a module that subscribes to events, and notes them.
type eventSink struct{}

var sink struct {
	sync.Mutex
	events []caddy.Event
}

func init() { caddy.RegisterModule(eventSink{}) }

func (eventSink) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.test_sink", New: func() caddy.Module { return new(eventSink) }}
}

func (eventSink) UnmarshalCaddyfile(d *caddyfile.Dispenser) error { return nil }

func (eventSink) Handle(_ context.Context, e caddy.Event) error {
	sink.Lock()
	defer sink.Unlock()
	sink.events = append(sink.events, e)
	return nil
}

var _ caddyevents.Handler = eventSink{}

// takeEvents returns the module's events so far, and forgets them.
func takeEvents() (events []caddy.Event) {
	sink.Lock()
	defer sink.Unlock()
	for _, e := range sink.events {
		if strings.HasPrefix(e.Name(), "iak_callback.") {
			events = append(events, e)
		}
	}
	sink.events = nil
	return events
}

// Each event is emitted once, with the fields of the callback's log line and
// nothing secret, before and after a reload; other callbacks emit none. A sender who
// repeats what emits one, and a store that stays away, emit no more within a minute,
// since a subscriber may start a process for each.
func TestEvents(t *testing.T) {
	shortLease(t)
	takeEvents()
	app := moodyApp(t)
	handle := func(path string, options ...string) string {
		return "handle " + path + " {\n" + sitetest.Block(append(options, quick)...) + "reverse_proxy " + app.Addr() + "\n}\n"
	}
	down := func() string { return "redis redis://:5ecret-password@127.0.0.1:" + sitetest.FreePort(t) }
	stores := func() string {
		return handle("/down", down()) + handle("/down-forward", down(), "on_store_error forward")
	}
	block := handle("/callback", "on_doubt hold") + handle("/insist", "on_doubt hold", "on_conflict forward")
	s := sitetest.StartOperated(t, block+stores(), "events {\non iak_callback.conflict test_sink\non iak_callback.held test_sink\non iak_callback.store_unavailable test_sink\n}")
	goods := []string{"sn", `"5ecret-SN"`, "pin", `"5ecret-PIN"`, "activation_code", `"5ecret-CODE"`}
	post := func(path, refID, status string) {
		t.Helper()
		s.Do(sitetest.CallbackOf(t, s.URL+path+"?token=5ecret-uri", sitetest.Order(refID, status, goods...)))
	}
	expect := func(event, outcome, refID, status string) {
		t.Helper()
		events := takeEvents()
		if len(events) != 1 || events[0].Name() != event {
			t.Errorf("%s of %s: the events %+v, want one %s", outcome, refID, events, event)
			return
		}
		lines := s.CallbackLines()
		line := lines[len(lines)-1]
		fields := slices.DeleteFunc(slices.Collect(maps.Keys(line)), func(name string) bool { return slices.Contains([]string{"level", "logger", "msg", "ts"}, name) })
		data := events[0].Data
		if len(data) != len(fields) || data["outcome"] != outcome || data["ref_id"] != refID || data["status"] != status || data["account"] != "test" {
			t.Errorf("the event's data are %v", data)
		}
		for _, field := range fields {
			if _, ok := data[field]; !ok || field != "duration" && fmt.Sprint(data[field]) != fmt.Sprint(line[field]) {
				t.Errorf("%s is %v in the event, %v in the log", field, data[field], line[field])
			}
		}
		if line["level"] != "error" {
			t.Errorf("the log line is %v", line)
		}
		text := fmt.Sprintf("%v %+v", events[0].CloudEvent(), data)
		for _, secret := range []string{"5ecret", "0817777215", sitetest.Sign(refID), sitetest.APIKey, sitetest.Username} {
			if strings.Contains(text, secret) {
				t.Errorf("%s is in the event %s", secret, text)
			}
		}
	}
	quiet := func(what string) {
		t.Helper()
		if events := takeEvents(); len(events) != 0 {
			t.Errorf("events of %s: %+v", what, events)
		}
	}
	for _, round := range []string{"", "-reloaded"} {
		post("/callback", "works"+round, "0")
		post("/callback", "works"+round, "1")
		post("/callback", "works"+round, "1") // duplicate
		post("/callback", "works"+round, "0") // stale
		post("/callback", "refuses"+round, "1")
		post("/callback", "works"+round, "9") // rejected
		post("/callback", "hangs"+round, "1")
		s.ComesTo("hangs"+round, "held")
		quiet("what is normal")

		post("/callback", "hangs"+round, "1")
		expect("iak_callback.held", "held", "hangs"+round, "success")
		post("/callback", "works"+round, "2")
		expect("iak_callback.conflict", "conflict", "works"+round, "failed")
		for range 50 {
			post("/callback", "hangs"+round, "1")
			post("/callback", "works"+round, "2")
		}
		quiet("what was told before")
		post("/callback", "insists"+round, "1")
		post("/insist", "insists"+round, "2")
		expect("iak_callback.conflict", "conflict", "insists"+round, "failed")
		post("/down", "works"+round, "1")
		expect("iak_callback.store_unavailable", "store_unavailable", "works"+round, "success")
		post("/down-forward", "works"+round, "1")
		expect("iak_callback.store_unavailable", "forwarded", "works"+round, "success")
		post("/down", "works"+round, "1")
		post("/down-forward", "other"+round, "1")
		quiet("stores that stay away")

		s.Reload(block + stores() + "\nrespond " + fmt.Sprintf("/reloaded%s ok", round))
	}
}

// An event is emitted also when the configuration was replaced while the app was
// at work.
func TestEventsOutliveReload(t *testing.T) {
	takeEvents()
	arrived, goOn := make(chan bool), make(chan bool)
	app := sitetest.StartApp(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Iak-Conflict") != "" {
			arrived <- true
			<-goOn
		}
	})
	block := sitetest.Block("on_conflict forward") + "reverse_proxy " + app.Addr()
	s := sitetest.StartOperated(t, block, "events {\non iak_callback.conflict test_sink\n}")
	s.Post(sitetest.Order("turns", "1")).Expect(t, "success", 200)
	done := make(chan sitetest.Reply)
	go func() { done <- s.Post(sitetest.Order("turns", "2")) }()
	<-arrived
	s.Reload(block + "\nheader /other X-Reloaded yes")
	goOn <- true
	(<-done).Expect(t, "the conflict", 200)
	if events := takeEvents(); len(events) != 1 || events[0].Name() != "iak_callback.conflict" {
		t.Errorf("the events %+v, want one %s", events, "iak_callback.conflict")
	}
}

// Two outcomes of one order in doubt are both shown.
func TestOperatorTwoDoubts(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	app := moodyApp(t)
	onBothStores(t, func(t *testing.T, store string) {
		s := sitetest.StartOperated(t, sitetest.Block(store, quick, "on_doubt hold", "on_conflict forward")+"reverse_proxy "+app.Addr())
		for _, status := range []string{"1", "2"} {
			s.Post(sitetest.Order("hangs", status)).Expect(t, status, 504)
			s.ComesTo("hangs", "held")
		}
		if r := s.Show("hangs")[0]; r.InDoubt != "failed" || r.InDoubtBefore != "success" {
			t.Errorf("in doubt are %q and before it %q", r.InDoubt, r.InDoubtBefore)
		}
		if out := s.Must("show", "test", "hangs"); !strings.Contains(out, "and before it  success") {
			t.Errorf("show prints\n%s", out)
		}
	})
}

// The health route tells each store apart, within twice the store's timeout, and
// a site can show it to those who have no way to the admin API, and no more of it.
func TestHealth(t *testing.T) {
	const timeout = 400 * time.Millisecond
	server := redistest.Start(t, "--requirepass", "5ecret-password")
	t.Setenv("IAK_TEST_REDIS", "redis://:5ecret-password@"+server.Addr())
	recipe := `handle /healthz {
		rewrite * /iak_callback/health
		reverse_proxy localhost:2019 {
			header_up Host {upstream_hostport}
			header_up -Origin
			header_up -Sec-Fetch-Mode
		}
	}
	`
	s := sitetest.StartOperated(t, "respond ok")
	block := strings.ReplaceAll(recipe, "localhost:2019", s.Admin) + "handle /callback {\n" + sitetest.Block("redis {env.IAK_TEST_REDIS} {\ntimeout "+timeout.String()+"\n}") + "respond ok\n}\n" +
		"handle /file {\n" + sitetest.Block() + "respond ok\n}\nhandle {\nrespond 404\n}"
	s.Reload(block)
	health := func(what string, status int, words ...string) {
		t.Helper()
		start := time.Now()
		direct := s.Ask("GET", sitetest.HealthPath)
		if took := time.Since(start); took > 2*timeout+500*time.Millisecond {
			t.Errorf("%s: the answer took %s", what, took)
		}
		r, err := http.NewRequest(http.MethodGet, s.URL+"/healthz?verbose=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Origin", "https://elsewhere.example.com") // as browsers do
		r.Header.Set("Sec-Fetch-Mode", "navigate")
		through := s.Do(r)
		for way, got := range map[string]sitetest.Reply{"admin API": direct, "site": through} {
			got.Expect(t, what+", "+way, status)
			var answer struct {
				OK     bool
				Stores []struct{ Store, Error string }
			}
			if err := json.Unmarshal([]byte(got.Body), &answer); err != nil || answer.OK != (status == 200) || len(answer.Stores) != 2 {
				t.Errorf("%s, %s: %v, %s", what, way, err, got.Body)
			}
			for _, word := range append(words, "embedded "+filepath.Join(s.Dir, "caddy", "iak_callback", "records.sqlite"), "redis "+server.Addr()) {
				if !strings.Contains(got.Body, word) {
					t.Errorf("%s, %s: %s, want %q", what, way, got.Body, word)
				}
			}
			if strings.Contains(got.Body, "5ecret") {
				t.Errorf("%s, %s: the password is in %s", what, way, got.Body)
			}
		}
	}
	health("both are up", 200)
	server.Signal(syscall.SIGSTOP)
	health("redis hangs", 503, "time")
	server.Signal(syscall.SIGCONT)
	sitetest.Eventually(t, "redis is back", func() bool { return s.Ask("GET", sitetest.HealthPath).Status == 200 })
	server.Kill()
	health("redis is stopped", 503, "connection refused", `"ok":true`)
	server.Start()
	sitetest.Eventually(t, "redis is back", func() bool { return s.Ask("GET", sitetest.HealthPath).Status == 200 })
	health("redis was restarted", 200)

	// Nothing else of the admin API can be reached.
	for _, path := range []string{
		"/config/", "/iak_callback/health", "/iak_callback/records", "/healthz/", "/healthz/../config/", "/healthz%2F..%2Fconfig%2F", "/healthz/config", "//healthz/config",
	} {
		r, err := http.NewRequest(http.MethodGet, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Do(r); got.Status != 404 {
			t.Errorf("%s: %d %s", path, got.Status, got.Body)
		}
	}
	for _, method := range []string{"POST", "DELETE", "PUT", "PATCH"} {
		r, err := http.NewRequest(method, s.URL+"/healthz?account=test&ref_id=order", nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Do(r).Expect(t, method, 405)
	}
}
