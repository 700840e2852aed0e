package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddyserver/caddy/v2"
)

// Each callback leaves one log line at the end of its way, with its level and
// exactly these fields.
func TestObserveLog(t *testing.T) {
	down := "redis redis://127.0.0.1:" + sitetest.FreePort(t)
	refused := "reverse_proxy 127.0.0.1:" + sitetest.FreePort(t)
	answer := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
	}
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	refuseFailed := func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Idempotency-Key"), ":2:conflict-") {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}
	post := func(bodies ...string) func(s *sitetest.Site) {
		return func(s *sitetest.Site) {
			for _, body := range bodies {
				s.Post(body)
			}
		}
	}
	type line struct {
		level, outcome, reason, account, refID, status string
		attempt, appStatus                             float64
		err                                            bool // there is an error field
	}
	for _, tt := range []struct {
		name    string
		options string
		app     http.HandlerFunc
		behind  string // instead of the app
		send    func(s *sitetest.Site)
		count   int // how many callbacks send sends, 1 if 0
		want    line
	}{
		{name: "forwarded", send: post(sitetest.Order("o1", "1")),
			want: line{level: "info", outcome: "forwarded", account: "test", refID: "o1", status: "success", attempt: 1, appStatus: 200}},
		{name: "forwarded with another 2xx", app: answer(204), send: post(sitetest.Order("o1", "2")),
			want: line{level: "info", outcome: "forwarded", account: "test", refID: "o1", status: "failed", attempt: 1, appStatus: 204}},
		{name: "forwarded process", send: post(sitetest.Order("o1", "0")),
			want: line{level: "info", outcome: "forwarded", account: "test", refID: "o1", status: "process", attempt: 1, appStatus: 200}},
		{name: "duplicate", app: answer(201), send: post(sitetest.Order("o1", "1"), sitetest.Order("o1", "1")), count: 2,
			want: line{level: "info", outcome: "duplicate", account: "test", refID: "o1", status: "success"}},
		{name: "stale", send: post(sitetest.Order("o1", "1"), sitetest.Order("o1", "0")), count: 2,
			want: line{level: "info", outcome: "stale", account: "test", refID: "o1", status: "process"}},
		{name: "acknowledged", options: "on_process acknowledge", send: post(sitetest.Order("o1", "0")),
			want: line{level: "info", outcome: "acknowledged", account: "test", refID: "o1", status: "process"}},
		{name: "conflict", send: post(sitetest.Order("o1", "1"), sitetest.Order("o1", "2")), count: 2,
			want: line{level: "error", outcome: "conflict", account: "test", refID: "o1", status: "failed", err: true}},
		{name: "conflict, forwarded", options: "on_conflict forward", send: post(sitetest.Order("o1", "1"), sitetest.Order("o1", "2")), count: 2,
			want: line{level: "error", outcome: "conflict", account: "test", refID: "o1", status: "failed", attempt: 1, appStatus: 200, err: true}},
		{name: "conflict, forwarded, refused", options: "on_conflict forward", app: refuseFailed, send: post(sitetest.Order("o1", "1"), sitetest.Order("o1", "2")), count: 2,
			want: line{level: "error", outcome: "app_failed", account: "test", refID: "o1", status: "failed", attempt: 1, appStatus: 500, err: true}},

		{name: "the app answers 500", app: answer(500), send: post(sitetest.Order("o1", "1")),
			want: line{level: "warn", outcome: "app_failed", account: "test", refID: "o1", status: "success", attempt: 1, appStatus: 500}},
		{name: "the app answers 404, the second time", app: answer(404), send: post(sitetest.Order("o1", "1"), sitetest.Order("o1", "1")), count: 2,
			want: line{level: "warn", outcome: "app_failed", account: "test", refID: "o1", status: "success", attempt: 2, appStatus: 404}},
		{name: "the app refuses the connection", behind: refused, send: post(sitetest.Order("o1", "1")),
			want: line{level: "warn", outcome: "app_failed", account: "test", refID: "o1", status: "success", attempt: 1, err: true}},
		{name: "nobody answers", behind: "request_header X-Seen yes", send: post(sitetest.Order("o1", "1")),
			want: line{level: "error", outcome: "app_failed", account: "test", refID: "o1", status: "success", attempt: 1, err: true}},
		{name: "the app does not answer", options: "upstream_timeout 500ms", app: hang, send: post(sitetest.Order("o1", "1")),
			want: line{level: "error", outcome: "app_unknown", account: "test", refID: "o1", status: "success", attempt: 1, err: true}},

		{name: "the store is down", options: down, send: post(sitetest.Order("o1", "1")),
			want: line{level: "error", outcome: "store_unavailable", account: "test", refID: "o1", status: "success", err: true}},
		{name: "the store is down, forwarded", options: down + "\non_store_error forward", send: post(sitetest.Order("o1", "1")),
			want: line{level: "error", outcome: "forwarded", account: "test", refID: "o1", status: "success", attempt: 1, appStatus: 200, err: true}},

		{name: "method", send: func(s *sitetest.Site) {
			r, _ := http.NewRequest(http.MethodGet, s.URL+"/callback", nil)
			s.Do(r)
		}, want: line{level: "warn", outcome: "rejected", reason: "method", err: true}},
		{name: "media_type", send: func(s *sitetest.Site) { s.Send("text/html", sitetest.Order("o1", "1")) },
			want: line{level: "warn", outcome: "rejected", reason: "media_type", err: true}},
		{name: "too_large", options: "max_body_size 100", send: post(sitetest.Order("o1", "1")),
			want: line{level: "warn", outcome: "rejected", reason: "too_large", err: true}},
		{name: "incomplete", send: func(s *sitetest.Site) {
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
			if err != nil {
				s.T.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "POST /callback HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{",
				strings.TrimPrefix(s.URL, "http://"))
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
		}, want: line{level: "warn", outcome: "rejected", reason: "incomplete", err: true}},
		{name: "malformed", send: post(`{"data":{`), want: line{level: "warn", outcome: "rejected", reason: "malformed", err: true}},
		{name: "ref_id", send: post(sitetest.Order("", "1")), want: line{level: "warn", outcome: "rejected", reason: "ref_id", err: true}},
		{name: "signature", send: post(sitetest.Order("o1", "1", "sign", sitetest.Quote(sitetest.Sign("o2")))),
			want: line{level: "warn", outcome: "rejected", reason: "signature", refID: "o1", err: true}},
		{name: "field", send: post(sitetest.Order("o1", "3")),
			want: line{level: "warn", outcome: "rejected", reason: "field", account: "test", refID: "o1", err: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			app := sitetest.StartApp(t, tt.app)
			behind := tt.behind
			if behind == "" {
				behind = "reverse_proxy " + app.Addr()
			}
			s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\n"+tt.options+"\n}\n"+behind)
			tt.send(s)
			lines := s.LinesAfter(max(tt.count, 1))
			if len(lines) != max(tt.count, 1) {
				t.Errorf("%d log lines, want one for each callback: %v", len(lines), lines)
			}
			l := lines[len(lines)-1]
			// What is not known is left out.
			names := []string{"client_ip", "duration", "level", "logger", "msg", "outcome", "ts"}
			for name, there := range map[string]bool{
				"account": tt.want.account != "", "ref_id": tt.want.refID != "", "reason": tt.want.reason != "", "status": tt.want.status != "",
				"attempt": tt.want.attempt != 0, "app_status": tt.want.appStatus != 0, "error": tt.want.err,
			} {
				if there {
					names = append(names, name)
				}
			}
			slices.Sort(names)
			if got := slices.Sorted(maps.Keys(l)); !slices.Equal(got, names) {
				t.Fatalf("the fields are\n%q, want\n%q in %v", got, names, l)
			}
			if d, ok := l["duration"].(float64); !ok || d <= 0 || d > 20 {
				t.Errorf("duration %v", l["duration"])
			}
			text := func(name string) string {
				s, _ := l[name].(string)
				return s
			}
			attempt, _ := l["attempt"].(float64)
			appStatus, _ := l["app_status"].(float64)
			got := line{text("level"), text("outcome"), text("reason"), text("account"), text("ref_id"), text("status"), attempt, appStatus, l["error"] != nil}
			if text("client_ip") != "127.0.0.1" {
				t.Errorf("client_ip %q", text("client_ip"))
			}
			if got != tt.want {
				t.Errorf("the line is\n%+v, want\n%+v", got, tt.want)
			}
		})
	}
}

// A callback that finds another delivery of its ref_id under way is logged as
// information, before that delivery's own line.
func TestObserveLogInFlight(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 1)
	app := sitetest.StartApp(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\n}\nreverse_proxy "+app.Addr())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Post(sitetest.Order("o1", "1"))
	}()
	<-arrived
	s.Post(sitetest.Order("o1", "1"))
	s.Post(sitetest.Order("o1", "0"))
	for _, other := range []string{sitetest.Order("o1", "2"), sitetest.Order("o1", "1", "sn", `"S"`)} {
		s.Post(other).Expect(t, "another outcome", 409)
		lines := s.CallbackLines()
		l := lines[len(lines)-1]
		if l["outcome"] != "in_flight" || l["level"] != "warn" || !strings.Contains(fmt.Sprint(l["error"]), "ask IAK for the order's status") {
			t.Errorf("another outcome is logged as %v, want a warning that says what to do", l)
		}
	}
	close(release)
	<-done
	lines := s.LinesAfter(5)
	for i, want := range map[int]string{0: "in_flight", 1: "in_flight", 4: "forwarded"} {
		if l := lines[i]; l["outcome"] != want || l["level"] != "info" || l["ref_id"] != "o1" {
			t.Errorf("line %d is %v, want %s as information", i+1, l, want)
		}
	}
}

// The placeholders are there for handle_errors, for the handlers behind, for
// headers of the answer and for the access log; what is not known is empty, and
// what a callback says is not taken for a placeholder.
func TestObservePlaceholders(t *testing.T) {
	t.Setenv("IAK_TEST_SECRET", "5ecret")
	names := []string{"ref_id", "account", "status", "outcome", "reason", "attempt"}
	appends := ""
	for _, name := range names {
		appends += "log_append iak_" + name + " {http.iak_callback." + name + "}\n"
	}
	all := func(prefix string) string {
		for _, name := range names {
			prefix += " " + name + "=<{http.iak_callback." + name + "}>"
		}
		return prefix
	}
	s := sitetest.Start(t, `log
	`+appends+`
	header >Iak-Seen "`+all("header")+`"
	iak_callback {
		`+sitetest.Account+`
	}
	respond "`+all("respond")+`" 200
	handle_errors {
		respond "`+all("error")+`" {err.status_code}
	}`)
	access := 0
	for _, tt := range []struct {
		name, body         string
		status             int
		wantBody, wantSeen string
		wantLog            string
	}{
		{"forwarded", sitetest.Order("o1", "1"), 200,
			"respond ref_id=<o1> account=<test> status=<success> outcome=<> reason=<> attempt=<1>",
			"header ref_id=<o1> account=<test> status=<success> outcome=<> reason=<> attempt=<1>",
			"log ref_id=<o1> account=<test> status=<success> outcome=<forwarded> reason=<> attempt=<1>"},
		{"duplicate", sitetest.Order("o1", "1"), 200, "",
			"header ref_id=<o1> account=<test> status=<success> outcome=<duplicate> reason=<> attempt=<>",
			"log ref_id=<o1> account=<test> status=<success> outcome=<duplicate> reason=<> attempt=<>"},
		{"conflict", sitetest.Order("o1", "2"), 409,
			"error ref_id=<o1> account=<test> status=<failed> outcome=<conflict> reason=<> attempt=<>", "",
			"log ref_id=<o1> account=<test> status=<failed> outcome=<conflict> reason=<> attempt=<>"},
		{"signature", sitetest.Order("o2", "1", "sign", sitetest.Quote(sitetest.Sign("o3"))), 403,
			"error ref_id=<o2> account=<> status=<> outcome=<rejected> reason=<signature> attempt=<>", "",
			"log ref_id=<o2> account=<> status=<> outcome=<rejected> reason=<signature> attempt=<>"},
		{"malformed", `{"data"`, 400,
			"error ref_id=<> account=<> status=<> outcome=<rejected> reason=<malformed> attempt=<>", "",
			"log ref_id=<> account=<> status=<> outcome=<rejected> reason=<malformed> attempt=<>"},
		{"a placeholder as ref_id", sitetest.Order("{env.IAK_TEST_SECRET}", "1"), 200,
			"respond ref_id=<{env.IAK_TEST_SECRET}> account=<test> status=<success> outcome=<> reason=<> attempt=<1>",
			"header ref_id=<{env.IAK_TEST_SECRET}> account=<test> status=<success> outcome=<> reason=<> attempt=<1>",
			"log ref_id=<{env.IAK_TEST_SECRET}> account=<test> status=<success> outcome=<forwarded> reason=<> attempt=<1>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := s.Post(tt.body)
			if got.Status != tt.status || got.Body != tt.wantBody {
				t.Errorf("the answer is %d\n%s\nwant %d\n%s", got.Status, got.Body, tt.status, tt.wantBody)
			}
			if seen := got.Header.Get("Iak-Seen"); seen != tt.wantSeen {
				t.Errorf("the header is\n%s, want\n%s", seen, tt.wantSeen)
			}
			access++
			var logged []string
			sitetest.Eventually(t, "the access log's line", func() bool {
				logged = nil
				for line := range strings.Lines(s.Log()) {
					var m map[string]any
					if json.Unmarshal([]byte(line), &m) == nil && strings.HasPrefix(fmt.Sprint(m["logger"]), "http.log.access") {
						line := "log"
						for _, name := range names {
							line += fmt.Sprintf(" %s=<%v>", name, m["iak_"+name])
						}
						logged = append(logged, line)
					}
				}
				return len(logged) == access
			})
			if logged[access-1] != tt.wantLog {
				t.Errorf("the access log has\n%v, want\n%s", logged[access-1], tt.wantLog)
			}
		})
	}
}

// The metrics have the documented names and labels, count what happened, and
// live on after a reload. Two handlers of one configuration share them.
func TestObserveMetrics(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 1)
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.Header.Get("Idempotency-Key"), ":waits:"):
			arrived <- struct{}{}
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case strings.Contains(r.Header.Get("Idempotency-Key"), ":fails:"):
			w.WriteHeader(500)
		}
	})
	redis := redistest.Start(t)
	block := func(more string) string {
		return "metrics /metrics\n" +
			"iak_callback /callback {\naccount metrics_one " + sitetest.Username + " " + sitetest.APIKey + "\n" + more + "\n}\n" +
			"iak_callback /second {\naccount metrics_two " + sitetest.Username + " " + sitetest.APIKey + "\nredis " + redis.URL() + "\n}\n" +
			"reverse_proxy " + app.Addr()
	}
	s := sitetest.Start(t, block(""))
	second := func(body string) {
		t.Helper()
		r, _ := http.NewRequest(http.MethodPost, s.URL+"/second", strings.NewReader(body))
		s.Do(r)
	}
	// The collectors live as long as the process: other tests have counted too,
	// and their stores may still repeat operations in the background.
	var before map[string]float64
	sitetest.Eventually(t, "no delivery of another test is under way", func() bool {
		before = s.Metrics()
		return before["caddy_iak_callback_in_flight"] == 0
	})
	grown := func(series string) float64 { return s.Metrics()[series] - before[series] }
	expect := func(want map[string]float64) {
		t.Helper()
		for series, n := range want {
			sitetest.Eventually(t, fmt.Sprintf("%s grows by %v", series, n), func() bool { return grown(series) >= n })
			if got := grown(series); got != n && !strings.HasPrefix(series, "caddy_iak_callback_store_") {
				t.Errorf("%s has grown by %v, want %v", series, got, n)
			}
		}
	}

	s.Post(sitetest.Order("content-ref", "1"))
	s.Post(sitetest.Order("content-ref", "1"))
	s.Post(sitetest.Order("content-ref", "2"))
	s.Post(sitetest.Order("content-ref", "9"))
	s.Post(sitetest.Order("fails", "1"))
	s.Post(sitetest.Order("content-ref", "1", "sign", `"0123456789abcdef0123456789abcdef"`))
	s.Send("text/html", "")
	second(sitetest.Order("content-ref", "1"))
	const requests = "caddy_iak_callback_requests_total"
	counted := map[string]float64{
		requests + `{account="metrics_one",outcome="forwarded",reason=""}`:                     1,
		requests + `{account="metrics_one",outcome="duplicate",reason=""}`:                     1,
		requests + `{account="metrics_one",outcome="conflict",reason=""}`:                      1,
		requests + `{account="metrics_one",outcome="rejected",reason="field"}`:                 1,
		requests + `{account="metrics_one",outcome="app_failed",reason=""}`:                    1,
		requests + `{account="",outcome="rejected",reason="signature"}`:                        1,
		requests + `{account="",outcome="rejected",reason="media_type"}`:                       1,
		requests + `{account="metrics_two",outcome="forwarded",reason=""}`:                     1,
		`caddy_iak_callback_upstream_duration_seconds_count{account="metrics_one"}`:            2,
		`caddy_iak_callback_upstream_duration_seconds_bucket{account="metrics_one",le="+Inf"}`: 2,
		`caddy_iak_callback_upstream_duration_seconds_count{account="metrics_two"}`:            1,
		`caddy_iak_callback_store_duration_seconds_count{operation="claim",store="embedded"}`:  4,
		`caddy_iak_callback_store_duration_seconds_count{operation="settle",store="embedded"}`: 2,
		`caddy_iak_callback_store_duration_seconds_count{operation="claim",store="redis"}`:     1,
		`caddy_iak_callback_store_duration_seconds_count{operation="settle",store="redis"}`:    1,
		`caddy_iak_callback_store_errors_total{operation="claim",store="redis"}`:               0,
		requests + `{account="metrics_two",outcome="store_unavailable",reason=""}`:             0,
		`caddy_iak_callback_in_flight`:                                                         0,
	}
	expect(counted)

	// A delivery under way is counted once, and a reload meanwhile keeps it.
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Post(sitetest.Order("waits", "1"))
	}()
	<-arrived
	expect(map[string]float64{"caddy_iak_callback_in_flight": 1})
	s.Load(block("body flat"))
	counted["caddy_iak_callback_in_flight"] = 1
	counted[`caddy_iak_callback_store_duration_seconds_count{operation="claim",store="embedded"}`]++
	expect(counted)
	close(release)
	<-done
	sitetest.Eventually(t, "no delivery is under way", func() bool { return grown("caddy_iak_callback_in_flight") == 0 })

	// After the reload the same series go on.
	s.Post(sitetest.Order("content-ref", "1"))
	redis.Kill()
	second(sitetest.Order("content-ref", "0"))
	expect(map[string]float64{
		requests + `{account="metrics_one",outcome="duplicate",reason=""}`:         2,
		requests + `{account="metrics_one",outcome="forwarded",reason=""}`:         2,
		requests + `{account="metrics_two",outcome="store_unavailable",reason=""}`: 1,
		`caddy_iak_callback_store_errors_total{operation="claim",store="redis"}`:   1,
	})

	// Labels take their values from the configuration and from fixed words.
	words := map[string]string{
		"account": `|[A-Za-z0-9_-]+`,
		"outcome": `forwarded|in_flight|held|duplicate|stale|conflict|acknowledged|rejected|app_failed|app_unknown|assumed|store_unavailable|spooled|dead|unrouted|unconfirmed|not_confirmed`,
		"reason":  `|method|media_type|too_large|incomplete|malformed|ref_id|signature|field`,
		"verdict": `confirmed|denied|not_yet`,
		"store":   `redis|embedded`, "operation": `claim|hand|settle|settle_lost|due`, "le": `.*`,
	}
	words["result"] = words["outcome"]
	labels := map[string]string{
		"requests_total": "account outcome reason", "upstream_duration_seconds": "account",
		"store_duration_seconds": "operation store", "store_errors_total": "operation store", "in_flight": "",
		"spooled": "account", "dead": "account", "unrouted": "account", "oldest_spooled_seconds": "", "breaker_open": "",
		"redeliveries_total": "account result", "confirm_total": "account verdict", "confirm_duration_seconds": "",
	}
	label := regexp.MustCompile(`(\w+)="([^"]*)"`)
	for series := range s.Metrics() {
		name, _, _ := strings.Cut(strings.TrimPrefix(series, "caddy_iak_callback_"), "{")
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			name = strings.TrimSuffix(name, part)
		}
		var names []string
		for _, l := range label.FindAllStringSubmatch(series, -1) {
			if l[1] != "le" {
				names = append(names, l[1])
			}
			if !regexp.MustCompile("^(" + words[l[1]] + ")$").MatchString(l[2]) {
				t.Errorf("label %s of %s", l[1], series)
			}
		}
		slices.Sort(names)
		if want, ok := labels[name]; !ok || strings.Join(names, " ") != want {
			t.Errorf("%s has the labels %q, want %q", series, names, want)
		}
		for _, content := range []string{"content-ref", "fails", "waits", "xld25000", "3482"} {
			if strings.Contains(series, content) {
				t.Errorf("%s holds what a callback says", series)
			}
		}
	}
}

// Whatever becomes of a callback or a configuration, what nobody may learn is
// neither in a log line of any level, nor in an error's text, nor in the
// adapted configuration, nor in the admin API's, nor in the metrics.
func TestNoSecrets(t *testing.T) {
	t.Setenv("IAK_TEST_USERNAME", sitetest.Username)
	t.Setenv("IAK_TEST_KEY", sitetest.APIKey)
	t.Setenv("IAK_TEST_OLD_KEY", "0ld-5ecret-key")
	redis := redistest.Start(t, "--requirepass", "5ecret-password")
	t.Setenv("IAK_TEST_REDIS", "redis://:5ecret-password@"+redis.Addr())
	t.Setenv("IAK_TEST_REDIS_WRONG", "redis://:0ther-5ecret-password@"+redis.Addr())
	t.Setenv("IAK_TEST_REDIS_DOWN", "redis://default:5ecret-password@127.0.0.1:"+sitetest.FreePort(t))
	secrets := map[string]string{ // what it is, by its text in lower case
		sitetest.Username: "the username", sitetest.APIKey: "the api key", "0ld-5ecret-key": "the old api key",
		"5ecret-password": "the password of Redis", "5ecret-sn": "sn", "5ecret-pin": "pin", "5ecret-code": "activation_code",
		"0817777215": "the customer",
	}

	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		switch key := r.Header.Get("Idempotency-Key"); {
		case strings.Contains(key, "fails"):
			w.WriteHeader(500)
		case strings.Contains(key, "hangs"):
			<-r.Context().Done()
		case strings.Contains(key, "breaks"):
			panic(http.ErrAbortHandler)
		}
	})
	handler := func(path, options, behind string) string {
		return "handle " + path + " {\niak_callback {\n" +
			"account test {env.IAK_TEST_USERNAME} {env.IAK_TEST_KEY}\naccount test {env.IAK_TEST_USERNAME} {env.IAK_TEST_OLD_KEY}\n" +
			options + "\n}\n" + behind + "\n}\n"
	}
	const quick = "\nupstream_timeout 500ms\nmax_body_size 2KiB"
	toApp := "reverse_proxy " + app.Addr()
	block := "log\nmetrics /metrics\n" +
		handler("/callback", "redis {env.IAK_TEST_REDIS}"+quick, toApp) +
		handler("/embedded", "body flat\non_conflict forward\non_doubt accept\nvalidate lenient"+quick, toApp) +
		handler("/down", "redis {env.IAK_TEST_REDIS_DOWN}", toApp) +
		handler("/down-forward", "redis {env.IAK_TEST_REDIS_DOWN}\non_store_error forward", toApp) +
		handler("/wrong", "redis {env.IAK_TEST_REDIS_WRONG}", toApp) +
		handler("/refused", "", "reverse_proxy 127.0.0.1:"+sitetest.FreePort(t)) +
		handler("/nobody", "", "request_header X-Seen yes") +
		"handle_errors {\nrespond \"{err.status_code} {err.message} {err.trace}\" {err.status_code}\n}"
	s := sitetest.Start(t, "respond ok")
	admin := "127.0.0.1:" + sitetest.FreePort(t)
	withAdmin := func(block string) string {
		return strings.Replace(s.Caddyfile(block), "\tadmin off\n", "\tadmin "+admin+"\n\tservers {\n\t\ttrace\n\t}\n", 1)
	}
	adapted, err := sitetest.Adapt(withAdmin(block))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.LoadConfig(adapted); err != nil {
		t.Fatal(err)
	}

	// Every kind of callback, to every handler, as JSON and as XML.
	goods := []string{"sn", `"5ecret-SN"`, "pin", `"5ecret-PIN"`, "activation_code", `"5ecret-CODE"`}
	var answers strings.Builder
	sent := 0
	send := func(method, path, contentType, body string) {
		t.Helper()
		r, err := http.NewRequest(method, s.URL+path+"?token=5ecret-uri", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", contentType)
		got := s.Do(r)
		fmt.Fprintf(&answers, "%s %s: %d %v %s\n", method, path, got.Status, got.Header, got.Body)
		sent++
	}
	for _, path := range []string{"/callback", "/embedded", "/down", "/down-forward", "/wrong", "/refused", "/nobody"} {
		for _, refID := range []string{"works", "fails", "hangs", "breaks", "{env.IAK_TEST_KEY}"} {
			if path != "/callback" && path != "/embedded" && refID != "works" {
				continue
			}
			ref := refID + path
			secrets[sitetest.Sign(ref)] = "sign of " + ref
			send("POST", path, "application/json", sitetest.Order(ref, "0", goods...))
			send("POST", path, "application/json", sitetest.Order(ref, "1"))
			send("POST", path, "application/json", sitetest.Order(ref, "1", goods...))
			send("POST", path, "application/json", sitetest.Order(ref, "2", goods...))
			send("POST", path, "application/json", sitetest.Order(ref, "0", goods...))
			send("POST", path, "application/json", sitetest.Order(ref, "1", append([]string{"sign", sitetest.Quote(strings.ToUpper(sitetest.Sign(ref)))}, goods...)...))
			send("POST", path, "application/json", sitetest.Order(ref, "7", goods...))
			send("POST", path, "application/json", sitetest.Order(ref, "1", append([]string{"price", `"5ecret-PIN"`}, goods...)...))
			send("POST", path, "application/json", sitetest.Order(ref, "1", append([]string{"SN", `"5ecret-SN"`}, goods...)...))
			send("POST", path, "application/json", sitetest.Order(ref, "1", append([]string{"customer_id", `"0817777216"`}, goods...)...))
			send("POST", path, "application/json", sitetest.Order(ref+"x", "1", append([]string{"sign", sitetest.Quote(sitetest.Sign(ref))}, goods...)...))
			send("POST", path, "application/json", sitetest.Order(ref, "1", goods...)+"5ecret-pin")
			send("POST", path, "application/json", strings.TrimSuffix(sitetest.Order(ref, "1", goods...), "}}"))
			send("POST", path, "application/json", strings.Replace(sitetest.Order(ref, "1", goods...), `"5ecret-PIN"`, `5ecret-PIN`, 1))
			send("POST", path, "application/json", strings.Replace(sitetest.Order(ref, "1", goods...), `"sn":"5ecret-SN"`, `"5ecret-SN":1,"5ecret-SN":2`, 1))
			send("POST", path, "application/xml", "<mp><sign>"+sitetest.Sign(ref)+"</sign><sn>5ecret-SN</sn><pin>5ecret-PIN</sn></mp>")
			send("POST", path, "application/xml", "<mp><ref_id>"+ref+"</ref_id><sign>"+sitetest.Sign(ref)+"</sign><sn>&5ecret-SN;</sn></mp>")
			send("POST", path, "application/xml", "<mp><5ecret-SN/></mp>")
			send("POST", path, "text/html", sitetest.Order(ref, "1", goods...))
			send("PUT", path, "application/json", sitetest.Order(ref, "1", goods...))
			send("POST", path, "application/json", strings.Repeat(" ", 2048)+sitetest.Order(ref, "1", goods...))
		}
	}
	lines := s.LinesAfter(sent)
	if len(lines) != sent {
		t.Errorf("%d log lines of %d callbacks", len(lines), sent)
	}
	outcomes := make(map[any]bool)
	for _, l := range lines {
		outcomes[l["outcome"]] = true
		outcomes[l["reason"]] = true
	}
	for _, outcome := range []string{"forwarded", "duplicate", "stale", "conflict", "rejected", "app_failed", "app_unknown",
		"store_unavailable", "in_flight", "method", "media_type", "too_large", "malformed", "signature", "field"} {
		if !outcomes[outcome] {
			t.Errorf("no callback came to %s: the test looks at less than it should", outcome)
		}
	}

	callbacksLogged := len(s.Log())

	// Caddy replaces the admin endpoint at each load, a failing one too, and may
	// meanwhile break a connection off.
	askAdmin := func(method, path, body string) (status int, answer string) {
		t.Helper()
		sitetest.Eventually(t, "the admin API answers", func() bool {
			r, err := http.NewRequest(method, "http://"+admin+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "text/caddyfile")
			got, err := sitetest.Client.Do(r)
			if err != nil {
				return false
			}
			defer got.Body.Close()
			b, err := io.ReadAll(got.Body)
			status, answer = got.StatusCode, string(b)
			return err == nil
		})
		return status, answer
	}

	// Configurations that are refused, loaded by the process and by the admin API.
	var refusals strings.Builder
	account := "account test {env.IAK_TEST_USERNAME} {env.IAK_TEST_KEY}\n"
	for name, options := range map[string]string{
		"four arguments":        sitetest.Account + " more",
		"a block":               sitetest.Account + " {\nmore\n}",
		"one pair, two names":   sitetest.Account + "\naccount other {env.IAK_TEST_USERNAME} {env.IAK_TEST_KEY}",
		"unset variable":        "account test " + sitetest.Username + " " + sitetest.APIKey + "{env.IAK_TEST_UNSET}",
		"unknown placeholder":   "account test " + sitetest.Username + " " + sitetest.APIKey + "{0ld-5ecret-key}",
		"bad name":              "account a:b " + sitetest.Username + " " + sitetest.APIKey,
		"retention":             account + "retention 1h",
		"redis url":             account + "redis redis://:5ecret-password@host:port",
		"redis option":          account + "redis redis://:5ecret-password@host?5ecret-password=1",
		"redis scheme":          account + "redis http://:5ecret-password@host",
		"redis twice":           account + "redis {env.IAK_TEST_REDIS} redis://:5ecret-password@host",
		"redis control":         account + "redis \"redis://:5ecret-password\x01@host\"",
		"redis and embedded":    account + "redis {env.IAK_TEST_REDIS}\nembedded /records.db",
		"another handler fails": account + "}\niak_callback {\n" + account + "redis {env.IAK_TEST_REDIS}\nretention 1h",
	} {
		text := withAdmin("iak_callback {\n" + options + "\n}")
		config, err := sitetest.Adapt(text)
		if err == nil {
			err = caddy.Load(config, true)
		}
		if err == nil {
			t.Fatalf("%s: the configuration was loaded", name)
		}
		fmt.Fprintf(&refusals, "%s: %v\n", name, err)
		status, body := askAdmin(http.MethodPost, "/load", text)
		if status != 400 {
			t.Fatalf("%s: the admin API answers %d: %s", name, status, body)
		}
		fmt.Fprintf(&refusals, "%s: %s\n", name, body)
	}

	_, config := askAdmin(http.MethodGet, "/config/", "")
	if !strings.Contains(config, "{env.IAK_TEST_KEY}") {
		t.Errorf("the placeholder is not in the admin API's configuration: %s", config)
	}
	_, adminMetrics := askAdmin(http.MethodGet, "/metrics", "")
	r, err := http.NewRequest(http.MethodGet, s.URL+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	siteMetrics := s.Do(r).Body
	for _, text := range []string{adminMetrics, siteMetrics} {
		if !strings.Contains(text, "caddy_iak_callback_requests_total") {
			t.Errorf("no metrics of the module: %s", text)
		}
	}
	var own, others strings.Builder
	read := 0
	for line := range strings.Lines(s.Log()) {
		read += len(line)
		if read > callbacksLogged && strings.Contains(line, `"msg":"adjusted config"`) {
			continue // Caddy's debug log prints each configuration as it is written, and these hold literal secrets
		}
		if strings.Contains(line, `"logger":"http.handlers.iak_callback"`) {
			own.WriteString(line)
		} else {
			others.WriteString(line)
		}
	}
	for where, text := range map[string]string{
		"the module's log": own.String(), "Caddy's log": others.String(), "the answers": answers.String(),
		"the errors of configurations": refusals.String(), "the adapted configuration": string(adapted),
		"the admin API's configuration": config,
		"the site's metrics":            siteMetrics, "the admin API's metrics": adminMetrics,
	} {
		if text == "" {
			t.Errorf("%s: nothing to look at", where)
		}
		for line := range strings.Lines(text) {
			for secret, what := range secrets {
				if strings.Contains(strings.ToLower(line), secret) {
					t.Errorf("%s is in %s: %s", what, where, line)
				}
			}
			if where == "the module's log" && strings.Contains(line, "5ecret-uri") {
				t.Errorf("a request URI is in %s: %s", where, line)
			}
		}
	}
}
