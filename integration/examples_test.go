package integration

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// The price of each order, and what is in the wallet at first.
const (
	examplePrice  = 25000
	exampleWallet = 1000000
)

// demoOrder is a callback signed for the account of the examples' Caddyfiles.
func demoOrder(refID, status string, changes ...string) string {
	sum := md5.Sum([]byte("081234567890" + "demo-api-key" + refID))
	changes = append([]string{"sign", sitetest.Quote(hex.EncodeToString(sum[:])), "price", fmt.Sprintf(`"%d"`, examplePrice)}, changes...)
	return sitetest.Order(refID, status, changes...)
}

// asXML is the same callback as IAK sends it in XML.
func asXML(t *testing.T, body string) string {
	t.Helper()
	var callback struct{ Data map[string]string }
	if err := json.Unmarshal([]byte(body), &callback); err != nil {
		t.Fatal(err)
	}
	text := `<?xml version="1.0" encoding="UTF-8" ?><mp>`
	for name, value := range callback.Data {
		text += "<" + name + ">" + value + "</" + name + ">"
	}
	return text + "</mp>"
}

// ending is what has become of an order.
type ending struct {
	status     string
	deliveries int
	refunds    int
}

// sending is one callback, sent several times at once, and the statuses that the
// module may answer with.
type sending struct {
	body   string
	atOnce int
	want   []int
}

// String is how the README of an example tells it.
func (e ending) String() string { return fmt.Sprintf("%s, %d, %d", e.status, e.deliveries, e.refunds) }

// scenario is one order, the callbacks to it, and what is right.
type scenario struct {
	refID    string
	what     string // in the README of the example
	sendings []sending
	right    ending
	without  ending // what becomes of it in an app without the module
	down     bool   // the app is down when they are sent, and then it is back
}

// scenarios are those of an example. What becomes of the forged callbacks
// differs from app to app.
func (shop exampleShop) scenarios(t *testing.T) []scenario {
	once := func(body string, want int) sending { return sending{body, 1, []int{want}} }
	xml := func(body string) string { return asXML(t, body) }
	success := func(refID string) string { return demoOrder(refID, "1", "sn", `"123456789"`) }
	failed := func(refID string) string { return demoOrder(refID, "2") }
	return []scenario{
		{"repeated-success", "a success, three times", []sending{
			once(success("repeated-success"), 200), once(success("repeated-success"), 200), once(success("repeated-success"), 200),
		}, ending{"success", 1, 0}, ending{"success", 3, 0}, false},
		{"repeated-failed", "a failed, three times", []sending{
			once(failed("repeated-failed"), 200), once(failed("repeated-failed"), 200), once(failed("repeated-failed"), 200),
		}, ending{"failed", 0, 1}, ending{"failed", 0, 3}, false},
		{"concurrent-success", "a success, 16 times at once, and once more", []sending{
			{success("concurrent-success"), 16, []int{200, 409}}, once(success("concurrent-success"), 200),
		}, ending{"success", 1, 0}, ending{"success", 17, 0}, false},
		{"concurrent-failed", "a failed, 16 times at once, and once more", []sending{
			{failed("concurrent-failed"), 16, []int{200, 409}}, once(failed("concurrent-failed"), 200),
		}, ending{"failed", 0, 1}, ending{"failed", 0, 17}, false},
		{"forged", "three forged successes to `" + shop.callback + "`", []sending{
			once(demoOrder("forged", "1", "sn", `"1"`, "sign", sitetest.Quote(sitetest.Sign("another"))), 403),
			once(demoOrder("forged", "1", "sn", `"1"`, "sign", "true"), 403),
			once(demoOrder("forged", "1", "sn", `"1"`, "sign", ""), 403),
		}, ending{"process", 0, 0}, ending{"success", shop.forged, 0}, false},
		{"late-process", "0 after a success", []sending{
			once(demoOrder("late-process", "0"), 200), once(success("late-process"), 200), once(demoOrder("late-process", "0"), 200),
		}, ending{"success", 1, 0}, ending{"process", 1, 0}, false},
		{"late-failed", "2 after a success", []sending{
			once(success("late-failed"), 200), once(failed("late-failed"), 409),
		}, ending{"success", 1, 0}, ending{"failed", 1, 1}, false},
		{"xml-success", "a success in XML", []sending{
			once(xml(success("xml-success")), 200),
		}, ending{"success", 1, 0}, ending{"process", 0, 0}, false},
		{"xml-failed", "a failed in XML, twice", []sending{
			once(xml(failed("xml-failed")), 200), once(xml(failed("xml-failed")), 200),
		}, ending{"failed", 0, 1}, ending{"process", 0, 0}, false},
		{"numbers", "a failed with numbers for strings", []sending{
			once(demoOrder("numbers", "2", "status", "2", "price", "25000"), 200),
		}, ending{"failed", 0, 1}, ending{"process", 0, 0}, false},
		// The app's 500 is no acceptance: it is kept, and the callback with the sn takes
		// its place. Repeated, it delivers once more only without the module.
		{"without-sn", "a success without sn, then with it, twice", []sending{
			once(demoOrder("without-sn", "1"), 200), once(success("without-sn"), 200), once(success("without-sn"), 200),
		}, ending{"success", 1, 0}, ending{"success", 2, 0}, false},
		{"down-success", "a success while the app is down, once; then it is up", []sending{
			once(success("down-success"), 200),
		}, ending{"success", 1, 0}, ending{"process", 0, 0}, true},
		{"down-failed", "a failed while the app is down, once; then it is up", []sending{
			once(failed("down-failed"), 200),
		}, ending{"failed", 0, 1}, ending{"process", 0, 0}, true},
	}
}

// exampleShop is one of the examples: an app with a handler for callbacks.
type exampleShop struct {
	dir      string // under examples
	callback string // the handler's path
	command  func(t *testing.T, data string) *exec.Cmd
	network  string // where the app listens: tcp, or a unix socket
	before   string // the Caddyfile without the module, for an app that speaks no HTTP
	forged   int    // how many of the three forged callbacks get into the app
}

// Each example is a shop that makes the mistakes of real ones. With the module
// in front, by the example's own Caddyfile, the same callbacks leave every order,
// the deliveries and the wallet exactly right, and without it wrong.
func TestExamples(t *testing.T) {
	for name, shop := range map[string]exampleShop{
		"php":             {"php", "/iak/callback", phpShop, "unix", "Caddyfile.before", 1},
		"php, controller": {"php", "/api/iak/callback", phpShop, "unix", "Caddyfile.before", 3},
		"node":            {"node", "/iak/callback", nodeShop, "tcp", "", 3},
		"python":          {"python", "/iak/callback", pythonShop, "tcp", "", 1},
	} {
		t.Run(name+"/with the module", func(t *testing.T) { shop.run(t, true) })
		t.Run(name+"/without", func(t *testing.T) { shop.run(t, false) })
	}
}

func (shop exampleShop) run(t *testing.T, module bool) {
	s := shop.start(t, module)
	if got := s.wallet(); got != exampleWallet {
		t.Fatalf("the wallet begins with %d, want %d", got, exampleWallet)
	}
	want := exampleWallet
	readme, err := os.ReadFile(filepath.Join("examples", shop.dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, sc := range shop.scenarios(t) {
		s.create(sc.refID)
		before := s.wallet()
		if sc.down {
			s.stopApp()
		}
		for _, b := range sc.sendings {
			answers := s.send(b, sc.down && !module)
			if module {
				checkAnswers(t, sc.refID, b, answers)
			}
		}
		if sc.down {
			s.startApp()
		}
		if row := fmt.Sprintf("| %s | %s | %s |\n", sc.what, sc.without, sc.right); !strings.Contains(string(readme), row) {
			t.Errorf("README.md has no row %s", row)
		}
		expected := sc.right
		if !module {
			if expected = sc.without; expected == sc.right {
				t.Errorf("%s ends alike with and without the module, and shows nothing", sc.refID)
			}
		}
		got := func() ending {
			got := s.order(sc.refID)
			got.refunds = (s.wallet() - before) / examplePrice
			return got
		}
		if module { // what is kept takes a moment
			sitetest.Eventually(t, fmt.Sprintf("%s: status, deliveries and refunds are %s, and were %s", sc.refID, expected, got()), func() bool { return got() == expected })
		} else if got := got(); got != expected {
			t.Errorf("%s: status, deliveries and refunds are %s; want %s", sc.refID, got, expected)
		}
		want += (expected.refunds - 1) * examplePrice
	}
	if got := s.wallet(); got != want {
		t.Errorf("the wallet ends with %d, want %d", got, want)
	}
	if !module {
		return
	}
	// The operators' commands of the README find the example's Caddy.
	out, err := exec.Command(sitetest.BuiltCaddy(t), "iak-callback", "show", "demo", "repeated-failed", "--address", s.admin).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "failed, answered 200") {
		t.Errorf("iak-callback show: %v: %s", err, out)
	}
	// No other spelling of the path is a way around the module.
	forged := demoOrder("forged", "1", "sn", `"1"`, "sign", "true")
	for _, path := range []string{
		s.path + "/", s.path + "/x", strings.ToUpper(s.path), "/" + s.path, "/x/.." + s.path, "/index.php" + s.path,
		strings.Replace(s.path, "iak/", "iak%2F", 1), strings.Replace(s.path, "k/", "k//", 1), strings.Replace(s.path, "iak", "%69ak", 1),
	} {
		sibling := *s
		sibling.path = path
		sibling.send(sending{body: forged, atOnce: 1}, false)
		if got := s.order("forged"); got != (ending{"process", 0, 0}) {
			t.Fatalf("a forged callback to %s gets around the module: %+v", path, got)
		}
	}
}

// checkAnswers checks what IAK is told by the module: never anything else than
// wanted, and the app's own answer only once.
func checkAnswers(t *testing.T, refID string, b sending, answers []sitetest.Reply) {
	t.Helper()
	own := 0
	for _, a := range answers {
		found := false
		for _, status := range b.want {
			found = found || a.Status == status
		}
		if !found {
			t.Errorf("%s: answered %d, want one of %v; body %q", refID, a.Status, b.want, a.Body)
		}
		if a.Status == http.StatusOK && a.Body != "" {
			own++
		}
	}
	if b.atOnce > 1 && own != 1 {
		t.Errorf("%s: the app answered %d of %d callbacks, want 1", refID, own, b.atOnce)
	}
}

// runningShop is a shop that runs, with or without the module.
type runningShop struct {
	t     *testing.T
	url   string
	path  string
	admin string

	shop    exampleShop
	app     *exec.Cmd
	env     []string
	data    string
	address string // the app's own
}

// startApp starts the app, and waits until it listens.
func (s *runningShop) startApp() {
	s.t.Helper()
	app := s.shop.command(s.t, s.data)
	app.Dir, app.Env = filepath.Join("examples", s.shop.dir), append(s.env, app.Env...)
	startCommand(s.t, app)
	s.app = app
	sitetest.Eventually(s.t, "the app listens", func() bool {
		conn, err := net.Dial(s.shop.network, s.address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// stopApp ends the app, as Ctrl-C does.
func (s *runningShop) stopApp() {
	s.t.Helper()
	if err := s.app.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	_ = s.app.Wait()
}

// start runs the app and, with the module or if the app speaks no HTTP, Caddy.
func (shop exampleShop) start(t *testing.T, module bool) *runningShop {
	t.Helper()
	data, err := os.MkdirTemp("", "shop") // t.TempDir is too long for a socket's path on some systems
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(data) })
	dir := filepath.Join("examples", shop.dir)
	appPort, port, admin := sitetest.FreePort(t), sitetest.FreePort(t), "127.0.0.1:"+sitetest.FreePort(t)
	env := append(os.Environ(), "ADMIN="+admin, "SHOP_DATA="+data, "APP_PORT="+appPort, "PORT="+port, "XDG_DATA_HOME="+data, "XDG_CONFIG_HOME="+data)

	s := &runningShop{
		t: t, url: "http://127.0.0.1:" + appPort, path: shop.callback, admin: admin, shop: shop, env: env, data: data, address: "127.0.0.1:" + appPort,
	}
	if shop.network == "unix" {
		s.address = filepath.Join(data, "php-fpm.sock")
	}
	s.startApp()
	file := "Caddyfile"
	if !module {
		file = shop.before
	}
	if file == "" {
		return s
	}
	s.url = "http://127.0.0.1:" + port
	caddy := exec.Command(sitetest.BuiltCaddy(t), "run", "--config", file, "--adapter", "caddyfile")
	caddy.Dir, caddy.Env = dir, env
	startCommand(t, caddy)
	sitetest.Eventually(t, "Caddy listens", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return s
}

// startCommand starts a program that ends with the test. What it says is shown
// when the test fails.
func startCommand(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s cannot be started (scripts/install-test-deps installs it): %v", cmd.Args[0], err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // php-fpm ends its workers too
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
		if t.Failed() {
			text := output.Bytes()
			t.Logf("%s said:\n%s", cmd.Args[0], text[max(0, len(text)-4000):])
		}
	})
}

// daemon finds a server's program, which may be in a directory that is not on the PATH of
// an ordinary user, and have its version in its name.
func daemon(t *testing.T, name string) string {
	t.Helper()
	program, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"} {
		if found, _ := filepath.Glob(dir + "/" + name + "*"); err != nil && len(found) > 0 {
			program, err = found[len(found)-1], nil
		}
	}
	if err != nil {
		t.Fatal(name + " is missing (scripts/install-test-deps installs it)")
	}
	return program
}

// phpShop is php-fpm, under whatever name the system has it.
func phpShop(t *testing.T, _ string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(daemon(t, "php-fpm"), "--nodaemonize", "--fpm-config", "php-fpm.conf")
	cmd.Env = []string{"USER=root"} // read by a php-fpm of root alone
	if os.Getuid() == 0 {
		cmd.Args = append(cmd.Args, "--allow-to-run-as-root")
	}
	return cmd
}

func nodeShop(t *testing.T, _ string) *exec.Cmd {
	t.Helper()
	if _, err := os.Stat("examples/node/node_modules"); err != nil {
		t.Fatal("examples/node/node_modules is missing (scripts/install-test-deps installs it, or npm ci in examples/node)")
	}
	return exec.Command("node", "server.js")
}

// pythonShop is run by the first Python that has Flask.
func pythonShop(t *testing.T, data string) *exec.Cmd {
	t.Helper()
	venv, err := filepath.Abs("examples/python/.venv")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append([]string{filepath.Join(venv, "bin")}, filepath.SplitList(os.Getenv("PATH"))...) {
		python := filepath.Join(dir, "python3")
		if exec.Command(python, "-c", "import flask").Run() == nil {
			cmd := exec.Command(python, "shop.py")
			cmd.Env = []string{"PYTHONPYCACHEPREFIX=" + data}
			return cmd
		}
	}
	t.Fatal("no python3 has Flask (scripts/install-test-deps installs it)")
	return nil
}

// send sends a callback several times at once. An app that is down may not answer.
func (s *runningShop) send(b sending, down bool) []sitetest.Reply {
	s.t.Helper()
	contentType := "application/json"
	if strings.HasPrefix(b.body, "<") {
		contentType = "application/xml"
	}
	answers, start := make([]sitetest.Reply, b.atOnce), make(chan bool)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			<-start
			answer, err := sitetest.Client.Post(s.url+s.path, contentType, strings.NewReader(b.body))
			if err != nil {
				if !down {
					s.t.Error(err)
				}
				return
			}
			defer answer.Body.Close()
			text, err := io.ReadAll(answer.Body)
			if err != nil {
				s.t.Error(err)
			}
			answers[i] = sitetest.Reply{Status: answer.StatusCode, Header: answer.Header, Body: string(text)}
		})
	}
	close(start)
	wg.Wait()
	return answers
}

// create makes an order, which is paid from the wallet.
func (s *runningShop) create(refID string) {
	s.t.Helper()
	body := fmt.Sprintf(`{"ref_id":%q,"price":%d}`, refID, examplePrice)
	answer, err := sitetest.Client.Post(s.url+"/orders", "application/json", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		s.t.Fatalf("the order %s is answered with %s", refID, answer.Status)
	}
}

func (s *runningShop) order(refID string) ending {
	s.t.Helper()
	var v struct {
		Status     string
		Deliveries int
	}
	s.get("/orders/"+refID, &v)
	return ending{status: v.Status, deliveries: v.Deliveries}
}

func (s *runningShop) wallet() int {
	s.t.Helper()
	var v struct{ Balance int }
	s.get("/wallet", &v)
	return v.Balance
}

func (s *runningShop) get(path string, v any) {
	s.t.Helper()
	answer, err := sitetest.Client.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		s.t.Fatalf("%s is answered with %s", path, answer.Status)
	}
	if err := json.NewDecoder(answer.Body).Decode(v); err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
}
