package integration

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func readDeploy(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// composeRedis runs the command that compose.yml gives to the container of
// Redis, with its secret in another place, and returns Redis' address.
func composeRedis(t *testing.T, local func(string) string) string {
	t.Helper()
	m := regexp.MustCompile(`(?s)\n( +)exec redis-server -.*?\n +EOF\n`).FindStringSubmatch(readDeploy(t, "compose.yml"))
	if m == nil {
		t.Fatal("deploy/compose.yml has no command for redis")
	}
	script := strings.ReplaceAll(m[0], "\n"+m[1], "\n")
	script = local(strings.ReplaceAll(script, "$$", "$"))
	port := sitetest.FreePort(t)
	script = strings.Replace(script, "redis-server -", "redis-server - --bind 127.0.0.1 --port "+port, 1)
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = t.TempDir()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr := "127.0.0.1:" + port
	sitetest.Eventually(t, "Redis listens", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return addr
}

// redisSays sends one inline command after another, and returns the answers.
func redisSays(t *testing.T, addr string, commands ...string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, strings.Join(append(commands, "QUIT"), "\r\n")+"\r\n")
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(conn); err != nil {
		t.Fatal(err)
	}
	return answer.String()
}

// askForSecrets runs the lines of deploy/README.md that ask for IAK's secrets.
func askForSecrets(t *testing.T, username, apiKey, dir string) {
	t.Helper()
	lines := regexp.MustCompile(`(?m)^(read -r|unset) .*\n`).FindAllString(readDeploy(t, "README.md"), -1)
	if len(lines) != 3 {
		t.Fatalf("deploy/README.md asks for the secrets in %d lines", len(lines))
	}
	cmd := exec.Command("bash", "-e", "-c", strings.ReplaceAll(strings.Join(lines, ""), "secrets/", dir+"/"))
	cmd.Stdin = strings.NewReader(username + "\n" + apiKey + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// sendFromContainer runs the send of deploy/README.md, as in Caddy's container: by the
// secrets' files, to the callback_url.
func sendFromContainer(t *testing.T, admin string, local func(string) string) {
	t.Helper()
	m := regexp.MustCompile(`(?m)^docker compose exec caddy caddy (iak-callback send .*)$`).FindStringSubmatch(readDeploy(t, "README.md"))
	if m == nil {
		t.Fatal("deploy/README.md sends nothing")
	}
	cmd := exec.Command("bash", "-c", sitetest.BuiltCaddy(t)+" "+local(m[1])+" --address "+admin)
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("The app has accepted it")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// What compose.yml puts together works: its Redis asks for the password of the
// secret, writes its file and drops nothing; its Caddyfile, on other addresses,
// leads a callback to the app, keeps forged headers off other paths, and serves
// metrics. A stop waits for a callback under way and records its answer, which
// the next start, as after an upgrade, knows.
func TestDeployCompose(t *testing.T) {
	local := setSecrets(t)
	redis := composeRedis(t, local)
	if said := redisSays(t, redis, "PING"); !strings.Contains(said, "NOAUTH") {
		t.Errorf("without a password Redis says %q", said)
	}
	said := redisSays(t, redis, "AUTH redis_password", "CONFIG GET appendonly", "CONFIG GET maxmemory-policy")
	if !strings.Contains(said, "appendonly\r\n$3\r\nyes\r\n") || !strings.Contains(said, "noeviction") {
		t.Errorf("Redis is configured as %q", said)
	}

	arrived, release := make(chan bool, 1), make(chan bool)
	app := sitetest.StartApp(t, func(_ http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Idempotency-Key"), ":waits") {
			arrived <- true
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	})
	text := readDeploy(t, "conf/Caddyfile")
	if formatted := string(caddyfile.Format([]byte(text))); formatted != text {
		t.Errorf("caddy fmt would write\n%s", formatted)
	}
	s := &sitetest.Site{T: t, URL: "http://127.0.0.1:" + sitetest.FreePort(t), Dir: t.TempDir()}
	admin, metrics := "localhost:"+sitetest.FreePort(t), "http://127.0.0.1:"+sitetest.FreePort(t)
	for _, pair := range [][2]string{
		{"admin localhost:2019", "admin " + admin}, {"shop.example.com {", s.URL + " {"}, {"https://shop.example.com", s.URL}, {":9180", metrics},
		{"redis:6379", redis}, {"app:3000", app.Addr()}, {"/run/secrets", local("/run/secrets")},
	} {
		if !strings.Contains(text, pair[0]) {
			t.Fatalf("deploy/conf/Caddyfile has no %q", pair[0])
		}
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	// The account of the tests, for what signs their callbacks.
	askForSecrets(t, sitetest.Username, sitetest.APIKey, local("/run/secrets"))
	file := filepath.Join(s.Dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		t.Helper()
		cmd := exec.Command(sitetest.BuiltCaddy(t), "run", "--config", file)
		cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+s.Dir, "XDG_CONFIG_HOME="+s.Dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		sitetest.Eventually(t, "the health check of deploy/Dockerfile passes", func() bool {
			answer, err := sitetest.Client.Get("http://" + strings.Replace(admin, "localhost", "127.0.0.1", 1) + "/config/")
			if err == nil {
				answer.Body.Close()
			}
			return err == nil && answer.StatusCode == http.StatusOK
		})
		return cmd
	}
	cmd := start()
	callback := &sitetest.Site{T: t, URL: s.URL + "/iak"}
	callback.Post(sitetest.Order("o1", "1")).Expect(t, "callback", 200)
	sendFromContainer(t, admin, local)
	s.Do(sitetest.ForgedRequest(t, s.URL+"/elsewhere"))
	if got := app.Last(t).Header.Get("Iak-Account"); got != "" {
		t.Errorf("on another path the app sees Iak-Account: %s", got)
	}
	if _, ok := (&sitetest.Site{T: t, URL: metrics}).Metrics()["caddy_iak_callback_in_flight"]; !ok {
		t.Error("no metrics of the module")
	}

	first := make(chan sitetest.Reply)
	go func() { first <- callback.Post(sitetest.Order("waits", "1")) }()
	<-arrived
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	sitetest.Eventually(t, "Caddy takes no more callbacks", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	close(release)
	(<-first).Expect(t, "the callback that was under way", 200)
	if err := cmd.Wait(); err != nil {
		t.Errorf("Caddy ends with %v", err)
	}
	start()
	got := callback.Post(sitetest.Order("waits", "1"))
	got.Expect(t, "its repeat after the start", 200)
	if got.Header.Get("Idempotent-Replayed") != "true" {
		t.Error("the answer of the callback that was under way is forgotten")
	}
}

// The systemd unit and the container wait longer for callbacks under way than a
// lease lasts by default, and the unit prints no environment, which holds the key.
func TestDeployStops(t *testing.T) {
	unit := readDeploy(t, "iak-callback.service")
	if regexp.MustCompile(`(?m)^Exec.*--environ`).MatchString(unit) {
		t.Error("the unit prints the environment")
	}
	for _, line := range []string{"TimeoutStopSec=50s", "After=redis.service redis-server.service valkey.service valkey-server.service",
		"After=php-fpm.service php8.1-fpm.service php8.2-fpm.service php8.3-fpm.service php8.4-fpm.service php8.5-fpm.service", "EnvironmentFile=/etc/caddy/iak-callback.env"} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("the unit has no %s", line)
		}
	}
	if strings.Contains(readDeploy(t, "conf/Caddyfile"), "grace_period") {
		t.Error("the Caddyfile's grace_period cuts off callbacks under way")
	}
	if !strings.Contains(readDeploy(t, "compose.yml"), "\n    stop_grace_period: 50s\n") {
		t.Error("compose.yml gives Caddy no 50 seconds to stop")
	}
	// Compose stops in the opposite order of depends_on (Docker documentation, "Control startup order").
	if !strings.Contains(readDeploy(t, "compose.yml"), "\n    depends_on: [redis, app]\n") {
		t.Error("compose.yml does not stop Caddy before Redis and the app")
	}
}
