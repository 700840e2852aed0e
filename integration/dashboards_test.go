package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// promServer is a real Prometheus that scrapes one Caddy and evaluates
// docs/alerts.yml.
type promServer struct {
	t   testing.TB
	url string
}

// startPrometheus runs Prometheus with the configuration of docs/monitoring.md,
// but for its pace and addresses. It ends with the test.
func startPrometheus(t testing.TB, target string) *promServer {
	t.Helper()
	page, err := os.ReadFile("docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	var config string
	for _, m := range fence.FindAllStringSubmatch(string(page), -1) {
		if m[1] == "yaml" {
			config = m[2]
		}
	}
	rules, err := filepath.Abs("docs/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]string{{"localhost:2019", target}, {"- alerts.yml", "- " + rules}, {"15s", "300ms"}} {
		if !strings.Contains(config, pair[0]) {
			t.Fatalf("docs/monitoring.md: the configuration of Prometheus has no %q:\n%s", pair[0], config)
		}
		config = strings.ReplaceAll(config, pair[0], pair[1])
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &promServer{t: t, url: "http://127.0.0.1:" + sitetest.FreePort(t)}
	cmd := exec.Command("prometheus", "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+strings.TrimPrefix(p.url, "http://"), "--log.level=error")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("prometheus cannot be started (make test installs it): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	sitetest.Eventually(t, "Prometheus is ready", func() bool {
		answer, err := sitetest.Client.Get(p.url + "/-/ready")
		if err == nil {
			answer.Body.Close()
		}
		return err == nil && answer.StatusCode == http.StatusOK
	})
	return p
}

// get asks the API, and reads its data.
func (p *promServer) get(path string, query url.Values, data any) {
	p.t.Helper()
	answer, err := sitetest.Client.Get(p.url + "/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		p.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	var result struct {
		Status, Error string
		Warnings      []string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(body, &result); err != nil || result.Status != "success" || len(result.Warnings) != 0 {
		p.t.Fatalf("Prometheus answers %s %v to %s?%s: %s", answer.Status, err, path, query.Encode(), body)
	}
	if err := json.Unmarshal(result.Data, data); err != nil {
		p.t.Fatal(err)
	}
}

// sample is one element of an answer.
type sample struct {
	Metric map[string]string
	Value  [2]any
}

func (s sample) number(t testing.TB) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(s.Value[1].(string), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// query evaluates an expression a minute from now: what steps through the past
// minute by minute has come by the samples of just now then.
func (p *promServer) query(expr string) []sample {
	p.t.Helper()
	at := strconv.FormatInt(time.Now().Add(time.Minute).Unix(), 10)
	var data struct{ Result []sample }
	p.get("query", url.Values{"query": {expr}, "time": {at}}, &data)
	return data.Result
}

// exists tells whether anything was scraped or recorded that a selector matches.
func (p *promServer) exists(selector string) bool {
	p.t.Helper()
	var series []map[string]string
	p.get("series", url.Values{"match[]": {selector}}, &series)
	return len(series) > 0
}

// rule is one rule of docs/alerts.yml as Prometheus has it.
type rule struct {
	Name, Query, Health, LastError, Type string
	Labels, Annotations                  map[string]string
	Alerts                               []struct {
		State               string
		Labels, Annotations map[string]string
	}
}

func (p *promServer) rules() (rules []rule) {
	p.t.Helper()
	var data struct{ Groups []struct{ Rules []rule } }
	p.get("rules", nil, &data)
	for _, group := range data.Groups {
		rules = append(rules, group.Rules...)
	}
	if len(rules) == 0 {
		p.t.Fatal("Prometheus has no rules")
	}
	return rules
}

// checkNames checks that every metric that an expression names was scraped or
// recorded, with every label and value that the expression asks for, and returns
// the labels that its result can have.
func (p *promServer) checkNames(what, expr string) (labels []string) {
	p.t.Helper()
	rest := inQuotes.ReplaceAllStringFunc(expr, func(s string) string { return strings.NewReplacer("(", " ", ")", " ").Replace(s) })
	for _, m := range grouping.FindAllStringSubmatch(rest, -1) {
		for label := range strings.SplitSeq(m[1], ",") {
			labels = append(labels, strings.TrimSpace(label))
		}
	}
	rest = inBrackets.ReplaceAllString(grouping.ReplaceAllString(rest, " "), " ")
	var metrics []string
	for _, m := range selector.FindAllStringSubmatch(rest, -1) {
		name, matchers, call := m[1], m[2], m[3] != ""
		if call || slices.Contains([]string{"and", "or", "unless", "offset"}, name) {
			continue
		}
		metrics = append(metrics, name)
		if !p.exists(name) {
			p.t.Errorf("%s: there is no metric %s: %s", what, name, expr)
		}
		for _, m := range matcher.FindAllStringSubmatch(matchers, -1) {
			label, operator, value := m[1], m[2], m[3]
			if !p.exists(name + "{" + label + `!=""}`) {
				p.t.Errorf("%s: %s has no label %s: %s", what, name, label, expr)
			}
			if operator != "=" && operator != "=~" || value == ".*" {
				continue
			}
			for value := range strings.SplitSeq(value, "|") {
				if !p.exists(name + "{" + label + "=" + sitetest.Quote(value) + "}") {
					p.t.Errorf("%s: no %s has the %s %q: %s", what, name, label, value, expr)
				}
			}
		}
	}
	if len(metrics) == 0 {
		p.t.Errorf("%s: no metric in %s", what, expr)
	}
	for _, label := range labels {
		if !slices.ContainsFunc(metrics, func(name string) bool { return p.exists(name + "{" + label + `!=""}`) }) {
			p.t.Errorf("%s: none of %q has the label %s: %s", what, metrics, label, expr)
		}
	}
	return labels
}

var (
	inQuotes   = regexp.MustCompile(`"[^"]*"`)
	inBrackets = regexp.MustCompile(`\[[^\]]*\]`)
	grouping   = regexp.MustCompile(`\b(?:by|on|without|ignoring)\s*\(([^)]*)\)`)
	selector   = regexp.MustCompile(`\b([a-zA-Z_][a-zA-Z0-9_:]*)\s*(\{[^}]*\})?(\()?`)
	matcher    = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	legend     = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)
	alertLabel = regexp.MustCompile(`\$labels\.(\w+)`)
)

// monitored is a shop whose Caddy is a process of its own, so that no counter
// is there before its first event, with a Prometheus.
type monitored struct {
	*sitetest.Site
	t          *testing.T
	prometheus *promServer
	redis      *redistest.Server
	app        *sitetest.App
	iak        *oracle
	admin      string    // the address of Caddy's admin API
	arrived    chan bool // a callback whose ref_id begins with waits is at the app
	release    chan bool // the app goes on with it
}

func startMonitored(t *testing.T) *monitored {
	t.Helper()
	s := &monitored{t: t, redis: redistest.Start(t), iak: startOracle(t), arrived: make(chan bool, 1), release: make(chan bool)}
	s.app = sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		switch key := r.Header.Get("Idempotency-Key"); {
		case strings.Contains(key, ":fails"):
			w.WriteHeader(http.StatusInternalServerError)
		case strings.Contains(key, ":hangs"):
			<-r.Context().Done()
		case strings.Contains(key, ":waits"):
			s.arrived <- true
			select {
			case <-s.release:
			case <-r.Context().Done():
			}
		}
	})
	dir := t.TempDir()
	handler := func(path, account, options string) string {
		return "iak_callback " + path + " {\naccount " + account + " " + sitetest.Username + " " + sitetest.APIKey +
			"\nupstream_timeout 1s\nmax_body_size 1KiB\n" + options + "\n}\n"
	}
	admin := "localhost:" + sitetest.FreePort(t)
	s.admin = admin
	s.Site = &sitetest.Site{T: t, URL: "http://127.0.0.1:" + sitetest.FreePort(t), Dir: dir}
	text := "{\nadmin " + admin + "\npersist_config off\ngrace_period 1s\n}\n" + s.URL + " {\n" +
		handler("/callback", "shop", "") + handler("/redis/callback", "second", "redis "+s.redis.URL()) +
		handler("/acknowledges/callback", "third", "on_process acknowledge") +
		handler("/holds/callback", "fourth", "on_doubt hold") +
		handler("/assumes/callback", "fifth", "on_doubt accept") +
		handler("/confirms/callback", "seventh", "confirm {\nbase "+s.iak.URL+"\ntimeout 500ms\n}") +
		handler("/keeps/callback", "sixth", "spool {\nbackoff 100ms 300ms\nmax_age 2s\n}") +
		"reverse_proxy " + s.app.Addr() + "\n}\n"
	file := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sitetest.BuiltCaddy(t), "run", "--config", file)
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s.prometheus = startPrometheus(t, admin)
	sitetest.Eventually(t, "Prometheus has scraped Caddy", func() bool { return s.prometheus.exists("caddy_iak_callback_in_flight") })
	return s
}

// to sends callbacks to another of the shop's paths.
func (s *monitored) to(path string) *sitetest.Site {
	return &sitetest.Site{T: s.t, URL: s.URL + path}
}

// everything makes callbacks come to every outcome, and be rejected for every
// reason.
func (s *monitored) everything() {
	s.t.Helper()
	s.Post(sitetest.Order("o1", "1")).Expect(s.t, "forwarded", 200)
	s.Post(sitetest.Order("o1", "1")).Expect(s.t, "duplicate", 200)
	s.Post(sitetest.Order("o1", "0")).Expect(s.t, "stale", 200)
	s.Post(sitetest.Order("o1", "2")).Expect(s.t, "conflict", 409)
	s.Post(sitetest.Order("fails", "1")).Expect(s.t, "app_failed", 500)
	s.Post(sitetest.Order("hangs", "1")).Expect(s.t, "app_unknown", 504)
	s.to("/acknowledges").Post(sitetest.Order("o1", "0")).Expect(s.t, "acknowledged", 200)
	s.to("/holds").Post(sitetest.Order("hangs", "1")).Expect(s.t, "app_unknown", 504)
	s.to("/assumes").Post(sitetest.Order("hangs", "1")).Expect(s.t, "assumed", 200)
	s.iak.answers("o1", status("o1", "1"))
	s.to("/confirms").Post(sitetest.Order("o1", "2")).Expect(s.t, "unconfirmed", 409)
	s.to("/confirms").Post(sitetest.Order("o2", "1")).Expect(s.t, "not_confirmed", 503)
	s.to("/confirms").Post(sitetest.Order("o1", "1")).Expect(s.t, "confirmed", 200)
	s.to("/keeps").Post(sitetest.Order("o1", "1")).Expect(s.t, "accepted with a spool", 200)
	s.to("/keeps").Post(sitetest.Order("fails", "1")).Expect(s.t, "spooled, and dead when max_age is over", 200)
	s.to("/keeps").Post(sitetest.Order("hangs", "1")).Expect(s.t, "spooled, and held when the lease is over", 200)

	first := make(chan sitetest.Reply)
	go func() { first <- s.Post(sitetest.Order("waits", "1")) }()
	<-s.arrived
	s.Post(sitetest.Order("waits", "1")).Expect(s.t, "in_flight", 409)
	s.release <- true
	<-first

	get, _ := http.NewRequest(http.MethodGet, s.URL+"/callback", nil)
	s.Do(get).Expect(s.t, "method", 405)
	s.Send("text/html", sitetest.Order("o2", "1")).Expect(s.t, "media_type", 415)
	s.Post(sitetest.Order("o2", "1", "sn", sitetest.Quote(strings.Repeat("x", 2000)))).Expect(s.t, "too_large", 413)
	s.Post(`{"data":{`).Expect(s.t, "malformed", 400)
	s.Post(sitetest.Order("", "1")).Expect(s.t, "ref_id", 422)
	s.Post(sitetest.Order("o2", "1", "sign", sitetest.Quote(sitetest.Sign("o3")))).Expect(s.t, "signature", 403)
	s.Post(sitetest.Order("o2", "3")).Expect(s.t, "field", 422)
	s.cutOff()

	// Redis dies while the app works: its answer cannot be recorded, and the
	// next callback cannot be claimed.
	second := s.to("/redis")
	second.Post(sitetest.Order("o1", "1")).Expect(s.t, "forwarded", 200)
	go func() { first <- second.Post(sitetest.Order("waits", "1")) }()
	<-s.arrived
	s.redis.Kill()
	s.release <- true
	(<-first).Expect(s.t, "not recorded", 200)
	second.Post(sitetest.Order("o2", "1")).Expect(s.t, "store_unavailable", 503)

	sitetest.Eventually(s.t, "the lease of the callback in doubt is over", func() bool {
		r, _ := http.NewRequest(http.MethodGet, "http://"+s.admin+"/iak_callback/record?account=fourth&ref_id=hangs", nil)
		return strings.Contains(s.Do(r).Body, `"state":"held"`)
	})
	s.to("/holds").Post(sitetest.Order("hangs", "1")).Expect(s.t, "held", 409)
	for _, result := range []string{"dead", "held"} {
		sitetest.Eventually(s.t, "what is kept is "+result, func() bool {
			return s.prometheus.exists(`iak_callback:redeliveries:new15m{account="sixth", result="` + result + `"}`)
		})
	}
	sitetest.Eventually(s.t, "what is dead is counted", func() bool {
		got := s.prometheus.query(`caddy_iak_callback_dead{account="sixth"}`)
		return len(got) == 1 && got[0].number(s.t) == 1
	})
}

// cutOff sends half of a callback.
func (s *monitored) cutOff() {
	s.t.Helper()
	host := strings.TrimPrefix(s.URL, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /callback HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{", host)
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, conn)
}

// dashboard is what of docs/grafana.json asks Prometheus.
type dashboard struct {
	Panels []struct {
		Title   string
		Targets []struct{ Expr, LegendFormat string }
	}
	Templating struct {
		List []struct {
			Name, Type string
			Query      json.RawMessage
		}
	}
}

// Everything that the dashboard and the alerts ask is there when Caddy is
// scraped as docs/monitoring.md says: a metric, label or value that has another
// name in the code, or none, fails here.
func TestDashboard(t *testing.T) {
	s := startMonitored(t)
	p := s.prometheus
	s.everything()
	// The last event is that Redis was away for a whole lease. When a rule has
	// recorded it, everything before it is scraped and recorded too.
	sitetest.Eventually(t, "the lost answer is counted and recorded", func() bool { return p.exists(`iak_callback:store_errors:new15m{operation="settle_lost"}`) })
	for _, outcome := range []string{"forwarded", "duplicate", "stale", "conflict", "app_failed", "app_unknown", "acknowledged", "in_flight", "held", "rejected", "store_unavailable", "assumed", "spooled", "unconfirmed", "not_confirmed"} {
		if !p.exists(`caddy_iak_callback_requests_total{outcome="` + outcome + `"}`) {
			t.Errorf("the run has no outcome %s", outcome)
		}
	}

	b, err := os.ReadFile("docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatalf("docs/grafana.json: %v", err)
	}
	// What Grafana puts in their place: all jobs and accounts, and a range.
	variables := []string{"$__rate_interval", "5m", "$__range", "5m"}
	for _, v := range d.Templating.List {
		variables = append(variables, "$"+v.Name, ".*")
		if v.Type != "query" {
			continue
		}
		var query struct{ Query string }
		if err := json.Unmarshal(v.Query, &query); err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(query.Query)
		if m == nil || !p.exists(m[1]+"{"+m[2]+`!=""}`) {
			t.Errorf("the variable %s finds nothing: %s", v.Name, query.Query)
		}
	}
	wanted := map[string]map[string]float64{ // of the panels that must count a first event
		"Callbacks":                    {"": 22},
		"What IAK says of callbacks":   {"seventh confirmed": 1, "seventh denied": 1, "seventh not_yet": 1},
		"Dead":                         {"": 1},
		"Waiting for the app":          {"": 0},
		"Unrouted":                     {"": 0},
		"Apps that do not answer":      {"": 0},
		"Kept callbacks":               {"sixth spooled": 0},
		"Deliveries of what was kept":  {"sixth dead": 1, "sixth held": 1},
		"Conflicts and held":           {"conflict": 1, "held": 1},
		"Answers not recorded in time": {"": 1},
		"App failures":                 {"shop app_failed": 1, "shop app_unknown": 1, "fourth app_unknown": 1},
		"Conflicts and held callbacks": {"shop conflict": 1, "fourth held": 1},
	}
	for _, panel := range d.Panels {
		if len(panel.Targets) == 0 {
			t.Errorf("panel %q asks nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			expr := strings.NewReplacer(variables...).Replace(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("panel %q has a variable that the dashboard does not: %s", panel.Title, target.Expr)
				continue
			}
			p.checkNames("panel "+panel.Title, expr)
			var result []sample
			sitetest.Eventually(t, "panel "+panel.Title+" shows something: "+expr, func() bool {
				result = p.query(expr)
				return len(result) > 0
			})
			shown := make(map[string]float64)
			for _, r := range result {
				name := legend.ReplaceAllStringFunc(target.LegendFormat, func(s string) string { return r.Metric[legend.FindStringSubmatch(s)[1]] })
				if (name == "" || strings.TrimSpace(name) != name) && target.LegendFormat != "" {
					t.Errorf("panel %q: the legend %q of %v is %q", panel.Title, target.LegendFormat, r.Metric, name)
				}
				shown[name] = r.number(t)
			}
			if want := wanted[panel.Title]; want != nil {
				for name, number := range want {
					if got := shown[name]; got != number {
						t.Errorf("panel %q shows %v for %q, want %v: %v", panel.Title, got, name, number, shown)
					}
				}
				delete(wanted, panel.Title)
			}
			if panel.Title == "Last callback" && (shown[""] < 0 || shown[""] > 300) {
				t.Errorf("panel %q says %v seconds ago", panel.Title, shown[""])
			}
		}
	}
	for title := range wanted {
		t.Errorf("there is no panel %q", title)
	}

	for _, r := range p.rules() {
		labels := p.checkNames("rule "+r.Name, r.Query)
		for _, text := range r.Annotations {
			for _, m := range alertLabel.FindAllStringSubmatch(text, -1) {
				if !slices.Contains(labels, m[1]) {
					t.Errorf("rule %s: the annotation names the label %s, which the expression does not keep: %s", r.Name, m[1], r.Query)
				}
			}
		}
	}
}

// The rules are sound, each alert says how bad it is and what to do, and fires
// when it should (testdata/alerts, by promtool). In a running Prometheus the
// first conflict of all fires, and nothing but it.
func TestAlerts(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", "docs/alerts.yml"}, {"test", "rules", "testdata/alerts/rules_test.yml"}} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s (make test installs it): %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	tested, err := os.ReadFile("testdata/alerts/rules_test.yml")
	if err != nil {
		t.Fatal(err)
	}

	s := startMonitored(t)
	p := s.prometheus
	s.Post(sitetest.Order("o1", "1")).Expect(t, "forwarded", 200)
	sitetest.Eventually(t, "Prometheus knows the callback", func() bool { return p.exists(`caddy_iak_callback_requests_total{outcome="forwarded"}`) })
	if p.exists(`caddy_iak_callback_requests_total{outcome="conflict"}`) {
		t.Fatal("there is a conflict before the first")
	}
	s.Post(sitetest.Order("o1", "2")).Expect(t, "conflict", 409)

	var fired map[string][]string // each alert's summaries
	sitetest.Eventually(t, "the alert of the conflict fires", func() bool {
		fired = make(map[string][]string)
		for _, r := range p.rules() {
			for _, alert := range r.Alerts {
				if alert.State == "firing" {
					fired[r.Name] = append(fired[r.Name], alert.Labels["severity"]+": "+alert.Annotations["summary"])
				}
			}
		}
		return len(fired) > 0
	})
	if got, want := fmt.Sprint(fired), "map[IAKCallbackConflict:[critical: A callback of account shop contradicts what the app has accepted.]]"; got != want {
		t.Errorf("what fires is %s, want %s", got, want)
	}

	alerts := 0
	for _, r := range p.rules() {
		if r.Health != "ok" || r.LastError != "" {
			t.Errorf("rule %s is %q: %s", r.Name, r.Health, r.LastError)
		}
		if r.Type != "alerting" {
			continue
		}
		alerts++
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" ||
			!slices.Contains([]string{"warning", "critical"}, r.Labels["severity"]) {
			t.Errorf("rule %s lacks a severity, a summary or a description", r.Name)
		}
		if !strings.Contains(string(tested), `alertname="`+r.Name+`"`) {
			t.Errorf("testdata/alerts/rules_test.yml does not test rule %s", r.Name)
		}
	}
	written, err := os.ReadFile("docs/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(written), "\n        for: "); n != alerts {
		t.Errorf("docs/alerts.yml says for %d times, for %d alerts", n, alerts)
	}
}
