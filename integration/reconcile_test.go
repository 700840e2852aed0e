package integration

import (
	"context"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddy-iak/iakcallback/internal/standin"
)

// The cron jobs of docs/reconcile.md find the pending orders of each example's database,
// while the shop has it open, and bring their outcomes to the app.
func TestPageReconcile(t *testing.T) {
	modules, err := filepath.Abs("examples/node/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	var jobs []string
	for _, block := range examples(t, "docs/reconcile.md", "sh") {
		if strings.Contains(block, "data/shop.db") {
			jobs = append(jobs, block)
		}
	}
	if len(jobs) != 3 {
		t.Fatalf("%d jobs, want those of three examples", len(jobs))
	}
	for i, job := range jobs {
		iak, app := startOracle(t), sitetest.StartApp(t, nil)
		s := sitetest.StartOperated(t, "respond 404")
		s.Reload(strings.Replace(sitetest.Block("callback_url "+s.URL+"/iak/callback", confirmOption(iak)), "account test", "account demo", 1) + "reverse_proxy " + app.Addr())
		dir := t.TempDir()
		shop(t, dir, "CREATE TABLE orders (ref_id TEXT PRIMARY KEY, price INTEGER, status TEXT, sn TEXT);"+
			"INSERT INTO orders VALUES ('lost', 1, 'process', ''), ('with space', 1, 'process', ''), ('done', 1, 'success', '1')")
		bin := filepath.Join(dir, "bin")
		if err := os.Mkdir(bin, 0o700); err != nil {
			t.Fatal(err)
		}
		wrapper := "#!/bin/sh\nexec '" + sitetest.BuiltCaddy(t) + "' \"$@\" --address " + s.Admin + "\n"
		if err := os.WriteFile(filepath.Join(bin, "caddy"), []byte(wrapper), 0o700); err != nil { //nolint:gosec // it is run
			t.Fatal(err)
		}
		run := func() (string, error) {
			cmd := exec.Command("bash", "-c", job)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "NODE_PATH="+modules)
			out, err := cmd.CombinedOutput()
			return string(out), err
		}
		iak.answers("lost", status("lost", "1"))
		iak.answers("with space", status("with space", "0"))
		out, err := run()
		if err == nil || !strings.Contains(out, "1 of 2 orders have not ended") || !strings.Contains(out, "the app has accepted it") {
			t.Errorf("job %d: %v, it prints %s", i, err, out)
		}
		iak.answers("with space", status("with space", "2"))
		if out, err = run(); err != nil || !strings.Contains(out, "the app had accepted it before") {
			t.Errorf("job %d again: %v, it prints %s", i, err, out)
		}
		if n := len(app.Received()); n != 2 || iak.questions("done") != 0 {
			t.Errorf("job %d: %d reached the app, want 2", i, n)
		}
	}
}

// shop runs SQL on a shop's database.
func shop(t *testing.T, dir, sql string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "python3", "-c", "import sqlite3, sys; db = sqlite3.connect('data/shop.db'); db.executescript(sys.argv[1]); db.close()", sql)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// The commands of docs/stand-in.md do what the page says.
func TestPageStandIn(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, "respond 404")
	var order string
	for _, block := range examples(t, "docs/stand-in.md", "sh") {
		if strings.Contains(block, "/api/top-up") {
			order = block
		}
	}
	caddyfile := examples(t, "docs/stand-in.md", "caddyfile")[0]
	_, port, _ := strings.Cut(strings.TrimPrefix(s.URL, "http://"), ":")
	p := startStandInAs(t, s.URL+"/iak/callback", "081234567890", "demo-api-key")
	block := caddyfile[strings.Index(caddyfile, "{\n")+2 : strings.LastIndex(caddyfile, "}")]
	block = strings.NewReplacer("localhost:8080", "127.0.0.1:"+port, "http://127.0.0.1:9090", p.URL, "localhost:3000", app.Addr()).Replace(block)
	s.Reload(block)
	out, err := exec.Command("bash", "-c", strings.ReplaceAll(order, "http://127.0.0.1:9090", p.URL)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"rc":"39"`) {
		t.Fatalf("%v: %s", err, out)
	}
	sitetest.Eventually(t, "the callback reaches the app", func() bool { return len(app.Received()) == 1 })
	if h := app.Last(t).Header; h.Get("Idempotency-Key") != "demo:order001:1" || h.Get("Iak-Confirmed") != "true" {
		t.Errorf("the app got %v", h)
	}
}

// startStandInAs is startStandIn for another account.
func startStandInAs(t *testing.T, to, username, key string) *httptest.Server {
	t.Helper()
	return startStandIn(t, to, func(o *standin.Options) { o.Username, o.APIKey = username, key }).Server
}
