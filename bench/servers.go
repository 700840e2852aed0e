package main

import (
	_ "embed" // the servers' configurations
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

var (
	//go:embed app.conf
	appConf string
	//go:embed peers/nginx/nginx.conf
	nginxConf string
	//go:embed peers/nginx/callback.lua
	nginxLua string
)

// The test account of testdata/README.md.
const (
	username = "081234567890"
	apiKey   = "test-api-key-1" //nolint:gosec // of the tests
)

// server is what a row measures.
type server struct {
	*process
	addr  string
	admin string         // Caddy's admin endpoint
	redis []*redisServer // more than one are a Cluster
}

// start starts the server of a row, with files of its own. Redis is shared:
// each row has ref_ids of its own.
func (b *bench) start(r row, dir string) (*server, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	s := &server{addr: addr}
	if s.redis, err = b.redisOf(r); err != nil {
		return nil, err
	}
	switch r.program {
	case caddy:
		s.process, s.admin, err = b.startCaddy(r, dir, addr, s.redis)
	case nginxPeer:
		s.process, err = b.startNginxPeer(dir, addr)
	case nodePeer:
		s.process, err = b.startNodePeer(dir, addr)
	}
	if err != nil {
		return nil, err
	}
	if err := s.ready(b.ctx, addr); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// startCaddy runs the built Caddy with the configuration that a user would
// write: all is as by default, the log with its line for each callback
// included, unless a flag says otherwise.
func (b *bench) startCaddy(r row, dir, addr string, redis []*redisServer) (*process, string, error) {
	admin, err := freeAddr()
	if err != nil {
		return nil, "", err
	}
	handler := ""
	if r.options != "" {
		urls := urlsOf(redis)
		iak := ""
		if r.iak > 0 {
			if iak, err = b.startIAK(r.iak); err != nil {
				return nil, "", err
			}
		}
		options := strings.NewReplacer("{{redis}}", urls, "{{cluster}}", urls, "{{iak}}", iak).Replace(r.options)
		handler = fmt.Sprintf("iak_callback {\n%s\n%s\n}", accountLines(r.accounts), options)
	}
	idle := ""
	if b.idle > 0 {
		idle = fmt.Sprintf("keepalive_idle_conns_per_host %d", b.idle)
	}
	text := fmt.Sprintf(`{
	admin %s
	persist_config off
	log {
		level %s
	}
}
http://%s {
	%s
	reverse_proxy %s {
		transport http {
			%s
		}
	}
}
`, admin, b.log, addr, handler, b.app.addr, idle)
	file := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, "", err
	}
	env := []string{"XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}
	p, err := startProcess(b.ctx, dir, b.caddy, env, "run", "--config", file, "--adapter", "caddyfile")
	return p, admin, err
}

// accountLines are the account options of a site. The last one's key signs.
func accountLines(n int) string {
	var lines strings.Builder
	for i := 1; i < n; i++ {
		fmt.Fprintf(&lines, "account other%d 08111111%04d other-api-key-%d\n", i, i, i)
	}
	return lines.String() + fmt.Sprintf("account test %s %s", username, apiKey)
}

func (b *bench) startNginxPeer(dir, addr string) (*process, error) {
	modules, err := luaModules()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "callback.lua"), []byte(nginxLua), 0o600); err != nil {
		return nil, err
	}
	redisHost, redisPort, err := net.SplitHostPort(b.redis.addr)
	if err != nil {
		return nil, err
	}
	return b.startNginx(dir, nginxConf, map[string]any{
		"Listen": addr, "App": b.app.addr, "Here": dir, "Modules": modules,
		"RedisHost": redisHost, "RedisPort": redisPort, "Username": username, "APIKey": apiKey,
	})
}

// luaModules finds the files of nginx's Lua module, in the order in which they
// are loaded. An nginx that has it built in, such as OpenResty, has none.
func luaModules() ([]string, error) {
	for _, dir := range []string{"/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"} {
		files := []string{filepath.Join(dir, "ndk_http_module.so"), filepath.Join(dir, "ngx_http_lua_module.so")}
		if _, err := os.Stat(files[1]); err == nil {
			return files, nil
		}
	}
	return nil, errors.New("nginx's Lua module is not there (scripts/install-bench-deps installs it)")
}

// startNginx runs an nginx of a configuration of its own.
func (b *bench) startNginx(dir, conf string, values map[string]any) (*process, error) {
	t, err := template.New("nginx.conf").Parse(conf)
	if err != nil {
		return nil, err
	}
	file, err := os.Create(filepath.Join(dir, "nginx.conf")) //nolint:gosec // in the benchmark's own directory
	if err != nil {
		return nil, err
	}
	if err := errors.Join(t.Execute(file, values), file.Close()); err != nil {
		return nil, err
	}
	return startProcess(b.ctx, dir, "nginx", nil, "-p", dir, "-c", file.Name(), "-e", "stderr")
}

func (b *bench) startNodePeer(dir, addr string) (*process, error) {
	script, err := filepath.Abs(filepath.Join("bench", "peers", "node", "server.js"))
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	redisHost, redisPort, err := net.SplitHostPort(b.redis.addr)
	if err != nil {
		return nil, err
	}
	return startProcess(b.ctx, dir, "node", []string{"NODE_ENV=production"},
		script, host, port, redisHost, redisPort, "http://"+b.app.addr, username, apiKey)
}
