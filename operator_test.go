package iakcallback

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/spf13/cobra"
)

// operated is a site with an admin API, for operators.
type operated struct {
	*site
	admin  string // its address
	global string // more global options
}

// startOperated runs Caddy as startSite does, with the admin API on a free port
// and more global options.
func startOperated(t *testing.T, block string, global ...string) *operated {
	t.Helper()
	s := &operated{site: startSite(t, "respond ok"), admin: "127.0.0.1:" + freePort(t), global: strings.Join(global, "\n")}
	s.reload(block)
	return s
}

// reload replaces the configuration. Caddy replaces the admin API too.
func (s *operated) reload(block string) {
	s.t.Helper()
	config, err := adapt(strings.Replace(s.caddyfile(block), "\tadmin off\n", "\tadmin "+s.admin+"\n"+s.global+"\n", 1))
	if err == nil {
		err = s.loadConfig(config)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	_, port, _ := strings.Cut(s.admin, ":")
	eventually(s.t, "the old admin API listens no more", func() bool { return listeners(port) == 1 })
}

// ask sends a request to the admin API.
func (s *operated) ask(method, target string) reply {
	s.t.Helper()
	r, err := http.NewRequest(method, "http://"+s.admin+target, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.do(r)
}

// query is the path of one record.
func query(path, refID string, more ...string) string {
	values := url.Values{"account": {"test"}, "ref_id": {refID}}
	for i := 0; i < len(more); i += 2 {
		values.Add(more[i], more[i+1])
	}
	return path + "?" + values.Encode()
}

// command runs caddy iak-callback in this process.
func (s *operated) command(args ...string) (string, error) {
	s.t.Helper()
	return runOperator(append([]string{args[0], "--address", s.admin}, args[1:]...)...)
}

func runOperator(args ...string) (string, error) {
	parent := &cobra.Command{Use: "iak-callback", SilenceErrors: true}
	parent.AddCommand(operatorCommands()...)
	var out bytes.Buffer
	parent.SetOut(&out)
	parent.SetErr(&out)
	parent.SetArgs(args)
	err := parent.Execute()
	return out.String(), err
}

// must runs a command that has to work.
func (s *operated) must(args ...string) string {
	s.t.Helper()
	out, err := s.command(args...)
	if err != nil {
		s.t.Fatalf("%q: %v", args, err)
	}
	return out
}

// refuses runs a command that has to fail, and say these words.
func (s *operated) refuses(words string, args ...string) {
	s.t.Helper()
	out, err := s.command(args...)
	if err == nil || !strings.Contains(err.Error(), words) {
		s.t.Errorf("%q: %v, want an error with %q; it prints %q", args, err, words, out)
	}
}

// states is what the operator is shown of one ref_id: a state for each place.
func (s *operated) states(refID string) (states []string) {
	s.t.Helper()
	for _, r := range s.show(refID) {
		states = append(states, r.State)
	}
	return states
}

func (s *operated) show(refID string) (records []recordView) {
	s.t.Helper()
	out, err := s.command("show", "--json", "test", refID)
	if err != nil && !strings.Contains(err.Error(), "there is no record") && !strings.Contains(err.Error(), "not in all of them") {
		s.t.Fatal(err)
	}
	return views(s.t, out)
}

// views reads what --json prints.
func views(t testing.TB, out string) (records []recordView) {
	t.Helper()
	for line := range strings.Lines(out) {
		var r recordView
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		records = append(records, r)
	}
	return records
}

// expectState waits for nothing: the state is there.
func (s *operated) expectState(refID, want string) {
	s.t.Helper()
	if got := strings.Join(s.states(refID), " "); got != want {
		s.t.Errorf("%s is %q, want %q", refID, got, want)
	}
}

// comesTo waits until a record is in a state.
func (s *operated) comesTo(refID, want string) {
	s.t.Helper()
	eventually(s.t, refID+" is "+want, func() bool { return strings.Join(s.states(refID), " ") == want })
}

// moodyApp answers as the ref_id says: hangs-* not at all, refuses-* with 500.
func moodyApp(t *testing.T) *app {
	return startApp(t, func(w http.ResponseWriter, r *http.Request) {
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
const quick = "upstream_timeout 100ms"

// onBothStores runs a test with the option lines of each store.
func onBothStores(t *testing.T, run func(t *testing.T, store string)) {
	t.Run("redis", func(t *testing.T) { run(t, "redis "+startRedis(t).url()+" {\ntimeout 5s\n}") })
	t.Run("embedded", func(t *testing.T) { run(t, "embedded {env.IAK_TEST_DIR}/records.db") })
}

// The admin API's routes take what is documented and nothing else, and say what
// is wrong with everything else.
func TestAdminRoutes(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	onBothStores(t, func(t *testing.T, store string) {
		held, arrived := make(chan bool), make(chan bool)
		app := startApp(t, func(w http.ResponseWriter, r *http.Request) {
			switch key := r.Header.Get("Idempotency-Key"); {
			case strings.Contains(key, ":hangs"):
				<-r.Context().Done()
			case strings.Contains(key, ":waits"):
				arrived <- true
				<-held
			}
		})
		short := handlerBlock(store, quick)
		s := startOperated(t, "handle /slow {\n"+handlerBlock(store)+"reverse_proxy "+app.addr()+"\n}\nhandle {\n"+short+"reverse_proxy "+app.addr()+"\n}")
		s.post(order("accepted", "1")).expect(t, "accepted", 200)
		s.post(order("hangs", "1")).expect(t, "hangs", 504)
		s.comesTo("hangs", "in_doubt")
		done := make(chan reply)
		go func() { done <- s.do(callbackOf(t, s.url+"/slow", order("waits", "1"))) }()
		<-arrived

		for _, row := range []struct {
			method, target string
			status         int
			words          string // in the error
			allow          string
		}{
			{"POST", query(adminRecord, "accepted"), 405, "use DELETE or GET", "DELETE, GET"},
			{"HEAD", query(adminRecord, "accepted"), 405, "", "DELETE, GET"},
			{"PUT", query(adminRecord, "accepted"), 405, "use DELETE or GET", "DELETE, GET"},
			{"GET", query(adminAccept, "hangs"), 405, "use POST", "POST"},
			{"DELETE", query(adminAccept, "hangs"), 405, "use POST", "POST"},
			{"GET", query(adminRelease, "hangs"), 405, "use POST", "POST"},
			{"POST", adminRecords, 405, "use GET", "GET"},
			{"DELETE", adminRecords, 405, "use GET", "GET"},
			{"POST", adminHealth, 405, "use GET", "GET"},

			{"GET", query(adminRecord, "accepted", "state", "held"), 400, `parameter \"state\": use account, ref_id, each once`, ""},
			{"GET", query(adminRecord, "accepted", "accepted", "true"), 400, `parameter \"accepted\"`, ""},
			{"GET", query(adminRecord, "accepted", "ref_id", "other"), 400, `parameter \"ref_id\"`, ""},
			{"GET", query(adminRecord, "accepted", "account", "test"), 400, `parameter \"account\"`, ""},
			{"DELETE", query(adminRecord, "accepted", "accepted", "true", "accepted", "true"), 400, `parameter \"accepted\"`, ""},
			{"POST", query(adminAccept, "hangs", "accepted", "true"), 400, `parameter \"accepted\"`, ""},
			{"POST", query(adminRelease, "hangs", "accepted", "true"), 400, `parameter \"accepted\"`, ""},
			{"GET", adminRecord, 400, "account and ref_id are needed", ""},
			{"GET", adminRecord + "?account=test", 400, "account and ref_id are needed", ""},
			{"GET", adminRecord + "?ref_id=accepted", 400, "account and ref_id are needed", ""},
			{"GET", adminRecord + "?account=test&ref_id=", 400, "account and ref_id are needed", ""},
			{"GET", adminRecord + "?account=test&ref_id=%zz", 400, "not properly percent-encoded", ""},
			{"DELETE", query(adminRecord, "accepted", "accepted", "yes"), 400, `accepted \"yes\": use true or false`, ""},
			{"DELETE", adminRecord, 400, "account and ref_id are needed", ""},
			{"POST", adminAccept, 400, "account and ref_id are needed", ""},
			{"GET", adminRecords + "?state=waiting", 400, `state \"waiting\": use in_flight, in_doubt, held, accepted or released`, ""},
			{"GET", adminRecords + "?since=yesterday", 400, `since \"yesterday\" is not a positive duration, such as 2h or 7d`, ""},
			{"GET", adminRecords + "?since=-1h", 400, "is not a positive duration", ""},
			{"GET", adminRecords + "?since=0s", 400, "is not a positive duration", ""},
			{"GET", adminRecords + "?ref_id=accepted", 400, `parameter \"ref_id\": use account, state, since, each once`, ""},
			{"GET", adminRecords + "?state=held&state=held", 400, `parameter \"state\"`, ""},

			{"GET", adminRecord + "?account=shop&ref_id=accepted", 404, `no iak_callback in the configuration has the account \"shop\"`, ""},
			{"GET", adminRecord + "?account=Test&ref_id=accepted", 404, "no iak_callback", ""},
			{"DELETE", adminRecord + "?account=shop&ref_id=accepted", 404, "no iak_callback", ""},
			{"POST", adminAccept + "?account=shop&ref_id=hangs", 404, "no iak_callback", ""},
			{"GET", adminRecords + "?account=shop", 404, "no iak_callback", ""},
			{"GET", query(adminRecord, "none"), 404, "there is no record of this ref_id", ""},
			{"GET", query(adminRecord, "ACCEPTED"), 404, "there is no record", ""},
			{"GET", query(adminRecord, strings.Repeat("x", 5000)), 404, "there is no record", ""},
			{"DELETE", query(adminRecord, "none"), 404, "there is no record", ""},
			{"DELETE", query(adminRecord, "none", "accepted", "true"), 404, "there is no record", ""},
			{"POST", query(adminAccept, "none"), 404, "there is no record", ""},
			{"POST", query(adminRelease, "none"), 404, "there is no record", ""},

			{"DELETE", query(adminRecord, "accepted"), 409, "the app has accepted this ref_id", ""},
			{"DELETE", query(adminRecord, "accepted", "accepted", "false"), 409, "the app has accepted this ref_id", ""},
			{"POST", query(adminAccept, "accepted"), 409, "nothing is in doubt", ""},
			{"POST", query(adminRelease, "accepted"), 409, "nothing is in doubt", ""},
			{"POST", query(adminAccept, "waits"), 409, "a delivery is under way and may last until", ""},
			{"POST", query(adminRelease, "waits"), 409, "a delivery is under way", ""},
			{"DELETE", query(adminRecord, "waits"), 409, "a delivery is under way", ""},
			{"DELETE", query(adminRecord, "waits", "accepted", "true"), 409, "a delivery is under way", ""},
		} {
			got := s.ask(row.method, row.target)
			what := row.method + " " + row.target
			got.expect(t, what, row.status)
			if !strings.Contains(got.body, row.words) || got.header.Get("Allow") != row.allow {
				t.Errorf("%s: %s, Allow %q; want %q and %q", what, got.body, got.header.Get("Allow"), row.words, row.allow)
			}
		}
		// None of these has changed anything.
		s.expectState("accepted", "accepted")
		s.expectState("hangs", "in_doubt")
		s.expectState("waits", "in_flight")
		close(held)
		(<-done).expect(t, "waits", 200)

		for _, row := range []struct {
			method, target, state string
		}{
			{"GET", query(adminRecord, "hangs"), "in_doubt"},
			{"POST", query(adminAccept, "hangs"), "accepted"},
			{"GET", query(adminRecord, "waits"), "accepted"},
			{"DELETE", query(adminRecord, "hangs", "accepted", "true"), "forgotten"},
		} {
			got := s.ask(row.method, row.target)
			what := row.method + " " + row.target
			got.expect(t, what, 200)
			var answer struct{ Records []recordView }
			if err := json.Unmarshal([]byte(got.body), &answer); err != nil || len(answer.Records) != 1 || answer.Records[0].State != row.state {
				t.Errorf("%s: %s, want one record, %s", what, got.body, row.state)
			}
			if kind := got.header.Get("Content-Type"); kind != "application/json" {
				t.Errorf("%s: Content-Type %q", what, kind)
			}
		}
		s.expectState("hangs", "")
		lines := strings.Count(s.log(), `"logger":"admin.api.iak_callback"`)
		if lines != 2 || !strings.Contains(s.log(), `"operation":"forget","account":"test","ref_id":"hangs"`) {
			t.Errorf("%d log lines of operations, want 2", lines)
		}
	})
}

// callbackOf is a JSON callback to any address.
func callbackOf(t *testing.T, address, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	return r
}

// A store that cannot be used is told by every route, in time, with its address
// and without its password, and never taken for one without records.
func TestAdminStoreDown(t *testing.T) {
	const timeout = 400 * time.Millisecond
	for _, row := range []struct {
		name  string
		fault func(*redisServer)
		words string
	}{
		{"stopped", (*redisServer).kill, "connection refused"},
		{"hangs", func(s *redisServer) { s.signal(syscall.SIGSTOP) }, "time"},
	} {
		t.Run(row.name, func(t *testing.T) {
			server := startRedis(t, "--requirepass", "5ecret-password")
			t.Setenv("IAK_TEST_REDIS", "redis://:5ecret-password@"+server.addr())
			app := startApp(t, nil)
			s := startOperated(t, handlerBlock("redis {env.IAK_TEST_REDIS} {\ntimeout "+timeout.String()+"\n}")+"reverse_proxy "+app.addr())
			s.post(order("order", "1")).expect(t, "before", 200)
			if got := s.ask("GET", adminHealth); got.status != 200 || !strings.Contains(got.body, `"store":"redis `+server.addr()+`","ok":true`) {
				t.Errorf("health with a Redis that is up: %d %s", got.status, got.body)
			}
			row.fault(server)
			for _, target := range []string{
				"GET " + query(adminRecord, "order"), "DELETE " + query(adminRecord, "order"), "POST " + query(adminAccept, "order"),
				"POST " + query(adminRelease, "order"), "GET " + adminRecords, "GET " + adminHealth,
			} {
				method, path, _ := strings.Cut(target, " ")
				start := time.Now()
				got := s.ask(method, path)
				if took := time.Since(start); took > 2*timeout+time.Second {
					t.Errorf("%s took %s", target, took)
				}
				got.expect(t, target, 503)
				if !strings.Contains(got.body, row.words) || strings.Contains(got.body, "5ecret") {
					t.Errorf("%s: %s, want %q and no password", target, got.body, row.words)
				}
			}
			if got := s.ask("GET", adminHealth); !strings.Contains(got.body, server.addr()) || !strings.Contains(got.body, `"ok":false`) {
				t.Errorf("health does not tell which store: %s", got.body)
			}
			s.refuses(row.words, "list")
			s.refuses(row.words, "show", "test", "order")
			if strings.Contains(s.log(), "5ecret") {
				t.Error("the log holds the password")
			}
		})
	}
	t.Run("a file that cannot be opened", func(t *testing.T) {
		t.Setenv("IAK_TEST_DIR", t.TempDir())
		s := startOperated(t, handlerBlock("embedded {env.IAK_TEST_DIR}"))
		for _, target := range []string{query(adminRecord, "order"), adminRecords, adminHealth} {
			got := s.ask("GET", target)
			got.expect(t, target, 503)
			if !strings.Contains(got.body, os.Getenv("IAK_TEST_DIR")) {
				t.Errorf("%s does not tell which file: %s", target, got.body)
			}
		}
	})
}

// Whatever an operator asks for, no answer holds goods, a customer, a signature,
// a key, a password or the token of a delivery.
func TestOperatorNoSecrets(t *testing.T) {
	shortLease(t)
	server := startRedis(t, "--requirepass", "5ecret-password")
	t.Setenv("IAK_TEST_REDIS", "redis://default:5ecret-password@"+server.addr())
	app := moodyApp(t)
	block := func(store, path string) string {
		return "handle " + path + " {\n" + handlerBlock(store, quick, "on_doubt hold", "on_conflict forward") + "reverse_proxy " + app.addr() + "\n}\n"
	}
	s := startOperated(t, block("redis {env.IAK_TEST_REDIS} {\ntimeout 5s\n}", "/callback")+block("body flat", "/file"))
	goods := []string{"sn", `"5ecret-SN"`, "pin", `"5ecret-PIN"`, "activation_code", `"5ecret-CODE"`}
	secrets := []string{"5ecret", "0817777215", testAPIKey, testUsername, "xld25000", "997061249", "3482"}
	var answers strings.Builder
	keep := func(what string, parts ...any) { fmt.Fprintln(&answers, append([]any{what}, parts...)...) }
	refIDs := []string{"works", "hangs", "refuses"}
	for _, refID := range refIDs {
		secrets = append(secrets, sign(refID))
		for _, path := range []string{"/callback", "/file"} {
			for _, status := range map[string][]string{"works": {"0", "1"}, "hangs": {"1"}, "refuses": {"2"}}[refID] {
				s.do(callbackOf(t, s.url+path, order(refID, status, goods...)))
			}
		}
	}
	eventually(t, "both are held", func() bool {
		return slices.Equal(s.states("hangs"), []string{"held", "held"})
	})
	for _, place := range inForce.places("test") {
		for _, refID := range refIDs {
			err := place.with(func(store recordStore) error {
				shot, err := store.read(t.Context(), place.key(refID))
				if err == nil && shot.record.claim != nil {
					token := shot.record.claim.owner[:]
					secrets = append(secrets, string(token), hex.EncodeToString(token), base64.StdEncoding.EncodeToString(token))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, refID := range append(refIDs, "none") {
		for _, target := range []string{
			"GET " + adminRecord, "POST " + adminAccept, "POST " + adminRelease, "DELETE " + adminRecord,
		} {
			for _, args := range [][]string{{"show"}, {"show", "--json"}, {"list"}, {"list", "--json"}} {
				if args[0] == "show" {
					args = append(args, "test", refID)
				}
				out, err := s.command(args...)
				keep(strings.Join(args, " "), out, err)
			}
			method, path, _ := strings.Cut(target, " ")
			got := s.ask(method, query(path, refID))
			keep(target, got.status, got.header, got.body)
		}
	}
	for _, target := range []string{adminRecords, adminHealth, adminRecords + "?state=5", adminRecord} {
		got := s.ask("GET", target)
		keep(target, got.status, got.header, got.body)
	}
	server.kill()
	for _, target := range []string{adminRecords, adminHealth, query(adminRecord, "works")} {
		got := s.ask("GET", target)
		keep(target, got.status, got.header, got.body)
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
		app := startApp(t, nil)
		s := startOperated(t, handlerBlock(store)+"reverse_proxy "+app.addr())
		for _, refID := range refIDs {
			s.post(order(refID, "1")).expect(t, refID, 200)
		}
		listed := make(map[string]bool)
		for _, r := range views(t, s.must("list", "--json")) {
			listed[r.RefID] = true
		}
		for _, refID := range refIDs {
			if !listed[refID] {
				t.Errorf("%q is not in the list", refID)
			}
			records := views(t, s.must("show", "--json", "--", "test", refID))
			if len(records) != 1 || records[0].RefID != refID || records[0].State != "accepted" {
				t.Errorf("%q: shown %+v", refID, records)
			}
			text := s.must("show", "--", "test", refID)
			if strings.ContainsAny(text, "\u202e\u2066\u200b\u2028\ufeff") {
				t.Errorf("%q is printed as it is: %q", refID, text)
			}
		}
		if text := s.must("list"); strings.ContainsAny(text, "\u202e\u2066\u200b\u2028\ufeff") || strings.Count(text, "\n") != len(refIDs)+1 {
			t.Errorf("the list of %d records: %q", len(refIDs), text)
		}
		for i, refID := range refIDs {
			records := views(t, s.must("forget", "--yes", "--json", "--", "test", refID))
			if len(records) != 1 || records[0].RefID != refID || records[0].State != "forgotten" {
				t.Errorf("%q: forgotten %+v", refID, records)
			}
			if left := len(views(t, s.must("list", "--json"))); left != len(refIDs)-i-1 {
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
		other := "iak_callback /other {\naccount other " + testUsername + " " + testAPIKey + "\n" + store + "\n}\n"
		s := startOperated(t, other+"handle /hold {\n"+handlerBlock(store, quick)+"reverse_proxy "+app.addr()+"\n}\n"+
			"iak_callback /callback {\n"+testAccount+"\n"+store+"\n"+quick+"\n}\nreverse_proxy "+app.addr())
		if out := s.must("list", "--json"); out != "" {
			t.Errorf("the list of nothing: %q", out)
		}
		s.post(order("works", "1")).expect(t, "works", 201)
		s.post(order("refuses", "2")).expect(t, "refuses", 500)
		s.post(order("hangs", "2")).expect(t, "hangs", 504)
		s.do(callbackOf(t, s.url+"/other", order("of the other", "0"))).expect(t, "other", 201)
		s.comesTo("hangs", "in_doubt")

		names := func(args ...string) string {
			t.Helper()
			var found []string
			for _, r := range views(t, s.must(append([]string{"list", "--json"}, args...)...)) {
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
			s.refuses(words, strings.Fields(args)...)
		}
		s.refuses("", "show", "works")
		s.refuses("", "forget", "test", "works", "more")

		r := s.show("works")[0]
		if r.Account != "test" || r.Accepted != "success" || r.Code != 201 || r.Attempt != 0 || r.InDoubt+r.InFlight != "" || r.Until != nil {
			t.Errorf("accepted: %+v", r)
		}
		if ago := time.Since(r.Changed); ago < -time.Second || ago > time.Minute || r.Expires.Sub(r.Changed) != defaultRetention {
			t.Errorf("changed %s ago, expires %s later", ago, r.Expires.Sub(r.Changed))
		}
		if r := s.show("refuses")[0]; r.State != "released" || r.Attempt != 1 || r.Accepted+r.InDoubt+r.InFlight != "" {
			t.Errorf("refused: %+v", r)
		}
		if r := s.show("hangs")[0]; r.InDoubt != "failed" || r.Attempt != 1 || r.Accepted+r.InFlight != "" || r.Until != nil {
			t.Errorf("in doubt: %+v", r)
		}
		text := strings.Join(strings.Fields(s.must("show", "test", "works")), " ")
		if !strings.HasPrefix(text, "account test ref_id works state accepted accepted success, answered 201 ") {
			t.Errorf("show prints %q", text)
		}
		for _, line := range []string{"accepted   test          success            ", "released   test                          1  ", "in_doubt   test          failed          1  "} {
			if list := s.must("list"); !strings.Contains(list, "\n"+line) {
				t.Errorf("list prints\n%s\nwant a line with %q", list, line)
			}
		}

		// forget takes --yes where the app has accepted, and then only.
		s.refuses("to forget it all the same, add --yes", "forget", "test", "works")
		s.expectState("works", "accepted")
		s.must("forget", "test", "refuses")
		s.expectState("refuses", "")
		if text := s.must("forget", "--yes", "test", "works"); !strings.Contains(text, "forgotten") || strings.Contains(text, "expires") {
			t.Errorf("forget prints %q", text)
		}
		s.refuses("there is no record of this ref_id", "show", "test", "works")
		s.refuses("there is no record of this ref_id", "forget", "--yes", "test", "works")
		before := len(app.received())
		s.post(order("works", "1")).expect(t, "forgotten", 201)
		if got := app.last(t).header.Get("Iak-Attempt"); len(app.received()) != before+1 || got != "1" {
			t.Errorf("what was forgotten was delivered %d times, Iak-Attempt %s", len(app.received())-before, got)
		}
	})
}

// Where no Caddy answers, every command says so, and what to do.
func TestOperatorNoCaddy(t *testing.T) {
	address := "127.0.0.1:" + freePort(t)
	for _, args := range [][]string{{"show", "test", "order"}, {"list"}, {"accept", "test", "order"}, {"release", "test", "order"}, {"forget", "test", "order"}} {
		out, err := runOperator(append(args, "--address", address)...)
		if err == nil || !strings.Contains(err.Error(), "no Caddy answers at "+address) || !strings.Contains(err.Error(), "--address") {
			t.Errorf("%s: %v, %q", args[0], err, out)
		}
	}
	s := startOperated(t, "respond ok") // a Caddy without iak_callback
	s.refuses("no iak_callback in the configuration has the account", "show", "test", "order")
	if out := s.must("list", "--json"); out != "" {
		t.Errorf("list prints %q", out)
	}
	if got := s.ask("GET", adminHealth); got.status != 200 || got.body != `{"ok":true,"stores":[]}`+"\n" {
		t.Errorf("health of nothing: %d %s", got.status, got.body)
	}
}

// An account whose records are in two stores is looked at, and operated on, in
// both; handlers that share one place show it once, and held if all of them
// hold; an account that a reload removes is unknown.
func TestOperatorPlaces(t *testing.T) {
	shortLease(t)
	server := startRedis(t)
	app := moodyApp(t)
	handle := func(path string, options ...string) string {
		return "handle " + path + " {\n" + handlerBlock(append(options, quick)...) + "reverse_proxy " + app.addr() + "\n}\n"
	}
	inRedis := "redis " + server.url() + " {\ntimeout 5s\n}"
	s := startOperated(t, handle("/file")+handle("/redis", inRedis))
	post := func(path, refID string, want int) {
		t.Helper()
		s.do(callbackOf(t, s.url+path, order(refID, "1"))).expect(t, refID+" to "+path, want)
	}
	post("/file", "hangs", 504)
	post("/redis", "hangs", 504)
	post("/file", "hangs-too", 504)
	post("/redis", "works", 201)
	s.comesTo("hangs", "in_doubt in_doubt")
	s.comesTo("hangs-too", "in_doubt")
	s.expectState("works", "accepted")
	if n := len(views(t, s.must("list", "--json"))); n != 4 {
		t.Errorf("%d records are listed, want 4", n)
	}
	kinds := ""
	for _, r := range s.show("hangs") {
		kind, _, _ := strings.Cut(r.Store, " ")
		kinds += kind + " "
	}
	if kinds != "embedded redis " {
		t.Errorf("hangs is shown in the stores %s", kinds)
	}
	if settled := views(t, s.must("accept", "--json", "test", "hangs")); len(settled) != 2 {
		t.Errorf("accepted in %d places, want 2: %+v", len(settled), settled)
	}
	s.expectState("hangs", "accepted accepted")
	if settled := views(t, s.must("release", "--json", "test", "hangs-too")); len(settled) != 1 {
		t.Errorf("released in %d places, want 1: %+v", len(settled), settled)
	}
	s.refuses("there is no record", "show", "test", "none")
	s.refuses("nothing is in doubt", "accept", "test", "hangs")
	s.refuses("add --yes", "forget", "test", "hangs")
	if gone := views(t, s.must("forget", "--yes", "--json", "test", "hangs")); len(gone) != 2 {
		t.Errorf("forgotten in %d places, want 2: %+v", len(gone), gone)
	}
	var health struct{ Stores []struct{ Store string } }
	if err := json.Unmarshal([]byte(s.ask("GET", adminHealth).body), &health); err != nil || len(health.Stores) != 2 {
		t.Errorf("health tells of %+v, want both stores", health)
	}

	post("/file", "known", 201)

	// One of the stores is down: what was done is told, and that it was not done
	// everywhere.
	post("/file", "both", 201)
	post("/redis", "both", 201)
	server.kill()
	out, err := s.command("forget", "--yes", "--json", "test", "both")
	if err == nil || !strings.Contains(err.Error(), "not in all of them") || !strings.Contains(err.Error(), "redis") {
		t.Errorf("forget with a store down: %v", err)
	}
	if gone := views(t, out); len(gone) != 1 || gone[0].State != stateForgotten {
		t.Errorf("forget with a store down prints %s", out)
	}
	// What one store refuses may wait in the one that is down.
	for _, args := range [][]string{{"accept", "test", "known"}, {"release", "test", "known"}, {"forget", "test", "known"}} {
		s.refuses("connection refused", args...)
	}

	// One place.
	s.reload(handle("/file") + handle("/hold", "on_doubt hold", "retention 10d") + handle("/third"))
	post("/hold", "hangs-again", 504)
	s.comesTo("hangs-again", "in_doubt") // a repeat to /file would reach the app
	s.reload(handle("/file", "on_doubt hold") + handle("/hold", "on_doubt hold", "retention 10d"))
	s.comesTo("hangs-again", "held")
	if n := len(views(t, s.must("list", "--json", "--state", "held"))); n != 1 {
		t.Errorf("%d records are held, want 1", n)
	}
	if got := s.ask("GET", adminHealth); strings.Count(got.body, `"store"`) != 1 {
		t.Errorf("health tells of the one store more than once: %s", got.body)
	}
	if r := s.show("hangs-again")[0]; r.Expires.Sub(r.Changed) != defaultRetention {
		t.Errorf("expires %s after its change, want the longest retention", r.Expires.Sub(r.Changed))
	}

	// Without the handler.
	s.reload("iak_callback /other {\naccount other 1 2\n}\nrespond ok")
	s.refuses("no iak_callback in the configuration has the account", "show", "test", "hangs-again")
	s.refuses("no iak_callback in the configuration has the account", "release", "test", "hangs-again")
	if out := s.must("list", "--json"); out != "" {
		t.Errorf("list prints %s", out)
	}
	s.reload(handle("/file"))
	s.expectState("hangs-again", "in_doubt")
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := len(inForce.handlers); n != 0 {
		t.Errorf("%d handlers are in force after the end", n)
	}
}

// on_doubt hold, from the app that does not answer to the operator's settlement.
func TestHold(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	onBothStores(t, func(t *testing.T, store string) {
		var well sync.Map // the ref_ids that the app has learnt to answer
		app := startApp(t, func(w http.ResponseWriter, r *http.Request) {
			refID := strings.Split(r.Header.Get("Idempotency-Key"), ":")[1]
			if _, ok := well.Load(refID); !ok {
				<-r.Context().Done()
				return
			}
			w.WriteHeader(http.StatusCreated)
		})
		s := startOperated(t, "handle /metrics {\nmetrics\n}\nhandle {\n"+handlerBlock(store, quick, "on_doubt hold")+"reverse_proxy "+app.addr()+"\n}")
		const series = `caddy_iak_callback_requests_total{account="test",outcome="held",reason=""}`
		counted := s.metrics()[series]

		// Each outcome is timed out, in flight, held; then settled.
		for i, status := range []string{"1", "2"} {
			for _, settle := range []string{"accept", "release", "forget"} {
				refID := settle + status
				deliveries := func() (n int) {
					for _, d := range app.received() {
						if strings.HasPrefix(d.header.Get("Idempotency-Key"), "test:"+refID+":") {
							n++
						}
					}
					return n
				}
				s.post(order(refID, status)).expect(t, "timed out", 504)
				word := []string{"success", "failed"}[i]
				if got := s.post(order(refID, status)); got.status != 409 || got.header.Get("Retry-After") == "" {
					// The lease may be over on a machine that is busy.
					if s.states(refID)[0] != "held" {
						t.Errorf("in flight: %d, Retry-After %q", got.status, got.header.Get("Retry-After"))
					}
				}
				s.comesTo(refID, "held")
				before := len(s.callbackLines())
				for range 2 {
					got := s.post(order(refID, status))
					got.expect(t, "held", 409)
					if got.header.Get("Retry-After") != "" || got.header.Get("Idempotent-Replayed") != "" {
						t.Errorf("held: %v", got.header)
					}
				}
				line := s.linesAfter(before + 1)[before]
				if line["level"] != "error" || line["outcome"] != "held" || line["ref_id"] != refID || line["status"] != word ||
					!strings.Contains(fmt.Sprint(line["error"]), "caddy iak-callback accept") {
					t.Errorf("the log line of what is held: %v", line)
				}
				s.post(order(refID, "0")).expect(t, "late news", 200)
				s.post(order(refID, []string{"2", "1"}[i])).expect(t, "a conflict", 409)
				if r := s.show(refID)[0]; r.State != "held" || r.InDoubt != word || r.Attempt != 1 {
					t.Errorf("shown: %+v", r)
				}
				if n := deliveries(); n != 1 {
					t.Errorf("%s reached the app %d times while it was held", refID, n)
				}

				well.Store(refID, true)
				s.must(settle, "test", refID)
				got := s.post(order(refID, status))
				switch settle {
				case "accept":
					got.expect(t, "accepted", 200)
					if got.header.Get("Idempotent-Replayed") != "true" || deliveries() != 1 {
						t.Errorf("after accept: %v, %d deliveries", got.header, deliveries())
					}
				case "release", "forget":
					got.expect(t, settle, 201)
					want := map[string]string{"release": "2", "forget": "1"}[settle]
					if attempt := app.last(t).header.Get("Iak-Attempt"); attempt != want || deliveries() != 2 {
						t.Errorf("after %s: Iak-Attempt %s, want %s; %d deliveries", settle, attempt, want, deliveries())
					}
				}
				s.expectState(refID, "accepted")
				again := s.post(order(refID, status))
				if again.header.Get("Idempotent-Replayed") != "true" {
					t.Errorf("%s: the end of the story: %d %v", refID, again.status, again.header)
				}
			}
		}
		if grown := s.metrics()[series] - counted; grown < 12 {
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
				s := startOperated(t, handlerBlock(store, quick, "on_doubt hold")+behind)
				refID := fmt.Sprintf("order-%s-%d", row.operator, row.answer)
				s.post(order(refID, "1")).expect(t, "timed out", 504)
				s.comesTo(refID, "held")
				s.post(order(refID, "1")).expect(t, "held", 409)
				if row.operator != "" {
					s.must(row.operator, "test", refID)
				}
				app.answer["1"] <- row.answer
				eventually(t, "the app's end is told, after its delivery is settled", func() bool {
					return strings.Contains(s.log(), `"msg":"the app came back after upstream_timeout"`)
				})
				s.expectState(refID, row.state)

				if !row.replayed {
					go func() {
						attempt := "2"
						if row.operator == "forget" {
							attempt = "1"
						}
						app.answer[attempt] <- row.repeat
					}()
				}
				got := s.post(order(refID, "1"))
				got.expect(t, "repeat", row.repeat)
				deliveries := 2
				if row.replayed {
					deliveries = 1
				}
				if (got.header.Get("Idempotent-Replayed") == "true") != row.replayed || app.deliveries() != deliveries {
					t.Errorf("the repeat: %v, after %d deliveries, want %d", got.header, app.deliveries(), deliveries)
				}
				s.expectState(refID, "accepted")
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
// nothing secret, before and after a reload; other callbacks emit none.
func TestEvents(t *testing.T) {
	shortLease(t)
	takeEvents()
	app := moodyApp(t)
	handle := func(path string, options ...string) string {
		return "handle " + path + " {\n" + handlerBlock(append(options, quick)...) + "reverse_proxy " + app.addr() + "\n}\n"
	}
	down := "redis redis://:5ecret-password@127.0.0.1:" + freePort(t)
	block := handle("/callback", "on_doubt hold") + handle("/insist", "on_doubt hold", "on_conflict forward") +
		handle("/down", down) + handle("/down-forward", down, "on_store_error forward")
	s := startOperated(t, block, "events {\non iak_callback.conflict test_sink\non iak_callback.held test_sink\non iak_callback.store_unavailable test_sink\n}")
	goods := []string{"sn", `"5ecret-SN"`, "pin", `"5ecret-PIN"`, "activation_code", `"5ecret-CODE"`}
	post := func(path, refID, status string) {
		t.Helper()
		s.do(callbackOf(t, s.url+path+"?token=5ecret-uri", order(refID, status, goods...)))
	}
	expect := func(event, outcome, refID, status string) {
		t.Helper()
		events := takeEvents()
		if len(events) != 1 || events[0].Name() != event {
			t.Errorf("%s of %s: the events %+v, want one %s", outcome, refID, events, event)
			return
		}
		lines := s.callbackLines()
		line := lines[len(lines)-1]
		fields := []string{"outcome", "reason", "account", "ref_id", "status", "attempt", "duration", "app_status", "error"}
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
		for _, secret := range []string{"5ecret", "0817777215", sign(refID), testAPIKey, testUsername} {
			if strings.Contains(text, secret) {
				t.Errorf("%s is in the event %s", secret, text)
			}
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
		s.comesTo("hangs"+round, "held")
		if events := takeEvents(); len(events) != 0 {
			t.Errorf("events of what is normal: %+v", events)
		}

		post("/callback", "hangs"+round, "1")
		expect(eventHeld, "held", "hangs"+round, "success")
		post("/callback", "works"+round, "2")
		expect(eventConflict, "conflict", "works"+round, "failed")
		post("/insist", "works"+round, "2")
		expect(eventConflict, "conflict", "works"+round, "failed")
		post("/down", "works"+round, "1")
		expect(eventStoreUnavailable, "store_unavailable", "works"+round, "success")
		post("/down-forward", "works"+round, "1")
		expect(eventStoreUnavailable, "forwarded", "works"+round, "success")

		s.reload(block + "\nrespond " + fmt.Sprintf("/reloaded%s ok", round))
	}
}

// An event is emitted also when the configuration was replaced while the app was
// at work.
func TestEventsOutliveReload(t *testing.T) {
	takeEvents()
	arrived, goOn := make(chan bool), make(chan bool)
	app := startApp(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Iak-Conflict") != "" {
			arrived <- true
			<-goOn
		}
	})
	block := handlerBlock("on_conflict forward") + "reverse_proxy " + app.addr()
	s := startOperated(t, block, "events {\non iak_callback.conflict test_sink\n}")
	s.post(order("turns", "1")).expect(t, "success", 200)
	done := make(chan reply)
	go func() { done <- s.post(order("turns", "2")) }()
	<-arrived
	s.reload(block + "\nheader /other X-Reloaded yes")
	goOn <- true
	(<-done).expect(t, "the conflict", 200)
	if events := takeEvents(); len(events) != 1 || events[0].Name() != eventConflict {
		t.Errorf("the events %+v, want one %s", events, eventConflict)
	}
}

// Two outcomes of one order in doubt are both shown.
func TestOperatorTwoDoubts(t *testing.T) {
	t.Setenv("IAK_TEST_DIR", t.TempDir())
	shortLease(t)
	app := moodyApp(t)
	onBothStores(t, func(t *testing.T, store string) {
		s := startOperated(t, handlerBlock(store, quick, "on_doubt hold", "on_conflict forward")+"reverse_proxy "+app.addr())
		for _, status := range []string{"1", "2"} {
			s.post(order("hangs", status)).expect(t, status, 504)
			s.comesTo("hangs", "held")
		}
		if r := s.show("hangs")[0]; r.InDoubt != "failed" || r.InDoubtBefore != "success" {
			t.Errorf("in doubt are %q and before it %q", r.InDoubt, r.InDoubtBefore)
		}
		if out := s.must("show", "test", "hangs"); !strings.Contains(out, "and before it  success") {
			t.Errorf("show prints\n%s", out)
		}
	})
}

// The health route tells each store apart, within twice the store's timeout, and
// a site can show it to those who have no way to the admin API, and no more of it.
func TestHealth(t *testing.T) {
	const timeout = 400 * time.Millisecond
	server := startRedis(t, "--requirepass", "5ecret-password")
	t.Setenv("IAK_TEST_REDIS", "redis://:5ecret-password@"+server.addr())
	recipe := `handle /healthz {
		rewrite * /iak_callback/health
		reverse_proxy localhost:2019 {
			header_up Host {upstream_hostport}
			header_up -Origin
			header_up -Sec-Fetch-Mode
		}
	}
	`
	s := startOperated(t, "respond ok")
	block := strings.ReplaceAll(recipe, "localhost:2019", s.admin) + "handle /callback {\n" + handlerBlock("redis {env.IAK_TEST_REDIS} {\ntimeout "+timeout.String()+"\n}") + "respond ok\n}\n" +
		"handle /file {\n" + handlerBlock() + "respond ok\n}\nhandle {\nrespond 404\n}"
	s.reload(block)
	health := func(what string, status int, words ...string) {
		t.Helper()
		start := time.Now()
		direct := s.ask("GET", adminHealth)
		if took := time.Since(start); took > 2*timeout+500*time.Millisecond {
			t.Errorf("%s: the answer took %s", what, took)
		}
		r, err := http.NewRequest(http.MethodGet, s.url+"/healthz?verbose=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Origin", "https://elsewhere.example.com") // as browsers do
		r.Header.Set("Sec-Fetch-Mode", "navigate")
		through := s.do(r)
		for way, got := range map[string]reply{"admin API": direct, "site": through} {
			got.expect(t, what+", "+way, status)
			var answer struct {
				OK     bool
				Stores []struct{ Store, Error string }
			}
			if err := json.Unmarshal([]byte(got.body), &answer); err != nil || answer.OK != (status == 200) || len(answer.Stores) != 2 {
				t.Errorf("%s, %s: %v, %s", what, way, err, got.body)
			}
			for _, word := range append(words, "embedded "+filepath.Join(s.dir, "caddy", "iak_callback", "records.db"), "redis "+server.addr()) {
				if !strings.Contains(got.body, word) {
					t.Errorf("%s, %s: %s, want %q", what, way, got.body, word)
				}
			}
			if strings.Contains(got.body, "5ecret") {
				t.Errorf("%s, %s: the password is in %s", what, way, got.body)
			}
		}
	}
	health("both are up", 200)
	server.signal(syscall.SIGSTOP)
	health("redis hangs", 503, "time")
	server.signal(syscall.SIGCONT)
	eventually(t, "redis is back", func() bool { return s.ask("GET", adminHealth).status == 200 })
	server.kill()
	health("redis is stopped", 503, "connection refused", `"ok":true`)
	server.start()
	eventually(t, "redis is back", func() bool { return s.ask("GET", adminHealth).status == 200 })
	health("redis was restarted", 200)

	// Nothing else of the admin API can be reached.
	for _, path := range []string{
		"/config/", "/iak_callback/health", "/iak_callback/records", "/healthz/", "/healthz/../config/", "/healthz%2F..%2Fconfig%2F", "/healthz/config", "//healthz/config",
	} {
		r, err := http.NewRequest(http.MethodGet, s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.do(r); got.status != 404 {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	for _, method := range []string{"POST", "DELETE", "PUT", "PATCH"} {
		r, err := http.NewRequest(method, s.url+"/healthz?account=test&ref_id=order", nil)
		if err != nil {
			t.Fatal(err)
		}
		s.do(r).expect(t, method, 405)
	}
}
