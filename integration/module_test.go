package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddyserver/caddy/v2"
)

// configFor is a configuration in JSON: one site with these handlers, one
// behind the other.
func configFor(addr string, handlers ...string) []byte {
	return []byte(`{"admin":{"disabled":true,"config":{"persist":false}},` +
		`"logging":{"logs":{"default":{"level":"ERROR"}}},` +
		`"apps":{"http":{"grace_period":1000000000,"servers":{"srv":{"listen":["` + addr + `"],"automatic_https":{"disable":true},` +
		`"routes":[{"handle":[` + strings.Join(handlers, ",") + `]}]}}}}}`)
}

// handlerJSON is one iak_callback handler with these members, and an account
// if they hold none.
func handlerJSON(members ...string) string {
	members = append([]string{`"handler":"iak_callback"`}, members...)
	if !strings.Contains(strings.Join(members, ","), `"accounts":`) {
		members = append(members, `"accounts":[`+accountJSON("test", sitetest.Username, sitetest.APIKey)+`]`)
	}
	return "{" + strings.Join(members, ",") + "}"
}

func accountJSON(name, username, apiKey string) string {
	return fmt.Sprintf(`{"name":%s,"username":%s,"api_key":%s}`, sitetest.Quote(name), sitetest.Quote(username), sitetest.Quote(apiKey))
}

// validateConfig does what `caddy validate` does with the handlers.
func validateConfig(t *testing.T, handlers ...string) error {
	t.Helper()
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	var cfg caddy.Config
	if err := json.Unmarshal(configFor("127.0.0.1:0", handlers...), &cfg); err != nil {
		t.Fatal(err)
	}
	return caddy.Validate(&cfg)
}

// A configuration that cannot work is refused with an error that says what to
// change and names options only: no username, key, url or file of a secret. It
// leaves no store behind.
func TestModuleConfigErrors(t *testing.T) {
	secretFile := filepath.Join(t.TempDir(), "no-such-file")
	emptyFile := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(emptyFile, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("IAK_TEST_EMPTY", "")
	t.Setenv("IAK_TEST_USERNAME", "0811-from-env")
	t.Setenv("IAK_TEST_KEY", "key-from-env")
	t.Setenv("IAK_TEST_URL", "http://:url-from-env@localhost")
	accountsOf := func(accounts ...string) string { return `"accounts":[` + strings.Join(accounts, ",") + `]` }
	urls := func(members string, urls ...string) string {
		b, _ := json.Marshal(urls)
		return `"redis":{"urls":` + string(b) + members + `}`
	}
	for _, tt := range []struct {
		name    string
		handler string
		want    string // in the error
		secrets []string
	}{
		{"no account", `{"handler":"iak_callback"}`, "no account", nil},
		{"no account in the list", handlerJSON(`"accounts":[]`), "no account", nil},

		{"account without a name", handlerJSON(accountsOf(accountJSON("", "0811", "5ecret"))),
			`account ""`, []string{"0811", "5ecret"}},
		{"account name with a colon", handlerJSON(accountsOf(accountJSON("a:b", "0811", "5ecret"))),
			`account "a:b": a name consists of letters, digits, _ and -`, []string{"0811", "5ecret"}},
		{"account name with a space", handlerJSON(accountsOf(accountJSON("a b", "0811", "5ecret"))),
			`account "a b"`, []string{"0811", "5ecret"}},
		{"account name not in ASCII", handlerJSON(accountsOf(accountJSON("tokó", "0811", "5ecret"))),
			`account "tokó"`, []string{"0811", "5ecret"}},
		{"account name ending in a line break", handlerJSON(accountsOf(accountJSON("shop\n", "0811", "5ecret"))),
			`account "shop\n"`, []string{"0811", "5ecret"}},
		{"account name is a placeholder", handlerJSON(accountsOf(accountJSON("{env.IAK_TEST_USERNAME}", "0811", "5ecret"))),
			`account "{env.IAK_TEST_USERNAME}"`, []string{"0811", "5ecret"}},

		{"one pair under two names",
			handlerJSON(accountsOf(accountJSON("a", "0811", "5ecret"), accountJSON("b", "0811", "5ecret"))),
			`accounts "a" and "b" have the same username and api_key`, []string{"0811", "5ecret"}},
		{"two pairs that sign alike under two names",
			handlerJSON(accountsOf(accountJSON("a", "0811", "5ecret"), accountJSON("b", "08115", "ecret"))),
			`accounts "a" and "b"`, []string{"0811", "ecret"}},
		{"one pair under two names, one by placeholders",
			handlerJSON(accountsOf(accountJSON("a", "0811-from-env", "key-from-env"),
				accountJSON("b", "{env.IAK_TEST_USERNAME}", "{env.IAK_TEST_KEY}"))),
			`accounts "a" and "b"`, []string{"from-env"}},

		{"username is missing", handlerJSON(accountsOf(accountJSON("shop", "", "5ecret"))),
			`account "shop": username is empty`, []string{"5ecret"}},
		{"api_key is missing", handlerJSON(accountsOf(accountJSON("shop", "0811", ""))),
			`account "shop": api_key is empty`, []string{"0811"}},
		{"username from an unset variable", handlerJSON(accountsOf(accountJSON("shop", "{env.IAK_TEST_UNSET}", "5ecret"))),
			`account "shop": username: {env.IAK_TEST_UNSET} resolves to nothing`, []string{"5ecret"}},
		{"api_key from an unset variable", handlerJSON(accountsOf(accountJSON("shop", "0811", "{env.IAK_TEST_UNSET}"))),
			`account "shop": api_key: {env.IAK_TEST_UNSET} resolves to nothing`, []string{"0811"}},
		{"api_key from an unset variable inside a text",
			handlerJSON(accountsOf(accountJSON("shop", "0811", "5ecret{env.IAK_TEST_UNSET}"))),
			`account "shop": api_key: {env.IAK_TEST_UNSET} resolves to nothing`, []string{"0811", "5ecret"}},
		{"api_key from an empty variable", handlerJSON(accountsOf(accountJSON("shop", "0811", "{env.IAK_TEST_EMPTY}"))),
			`account "shop": api_key: {env.IAK_TEST_EMPTY} resolves to nothing`, []string{"0811"}},
		{"api_key from a missing file", handlerJSON(accountsOf(accountJSON("shop", "0811", "{file."+secretFile+"}"))),
			`account "shop": api_key: {file.` + secretFile + `} resolves to nothing`, []string{"0811"}},
		{"api_key from an empty file", handlerJSON(accountsOf(accountJSON("shop", "0811", "{file."+emptyFile+"}"))),
			`account "shop": api_key: {file.` + emptyFile + `} resolves to nothing`, []string{"0811"}},
		{"the second key of an account", handlerJSON(accountsOf(accountJSON("shop", "0811", "5ecret"), accountJSON("shop", "0811", "{env.IAK_TEST_UNSET}"))),
			`account "shop": api_key: {env.IAK_TEST_UNSET} resolves to nothing`, []string{"0811", "5ecret"}},
		{"a brace that is not closed", handlerJSON(accountsOf(accountJSON("shop", "{env.IAK_TEST_USERNAME", "5ecret"))),
			`account "shop": username has a brace without its other half`, []string{"5ecret"}},
		{"a shell's variable", handlerJSON(accountsOf(accountJSON("shop", "0811", "${IAK_TEST_KEY}"))),
			`account "shop": api_key is written as in a shell`, []string{"0811"}},
		{"white space behind a key", handlerJSON(accountsOf(accountJSON("shop", "0811", "5ecret "))),
			`account "shop": api_key begins or ends with white space`, []string{"0811", "5ecret"}},
		{"a literal api_key with braces", handlerJSON(accountsOf(accountJSON("shop", "0811", "pa{ss}word"))),
			`account "shop": api_key is empty, or a placeholder in it is unknown`, []string{"0811", "pa{", "ss}", "}word"}},
		{"a literal username with braces", handlerJSON(accountsOf(accountJSON("shop", "na{m}e", "5ecret"))),
			`account "shop": username`, []string{"na{", "m}", "5ecret"}},

		{"redis and embedded", handlerJSON(urls("", "redis://:5ecret@localhost"), `"embedded":{"file":"/records.sqlite"}`),
			"redis and embedded exclude each other", []string{"5ecret"}},
		{"redis and embedded without a file", handlerJSON(urls("", "redis://:5ecret@localhost"), `"embedded":{}`),
			"redis and embedded exclude each other", []string{"5ecret"}},
		{"embedded file from an unset variable", handlerJSON(`"embedded":{"file":"{env.IAK_TEST_UNSET}"}`),
			"embedded: file: {env.IAK_TEST_UNSET} resolves to nothing", nil},
		{"redis without a url", handlerJSON(`"redis":{}`), "redis: no url given", nil},
		{"redis url is empty", handlerJSON(urls("", "")), "redis: url 1 is empty", nil},
		{"redis url from an unset variable", handlerJSON(urls("", "redis://localhost", "{env.IAK_TEST_UNSET}")),
			"redis: url 2: {env.IAK_TEST_UNSET} resolves to nothing", nil},
		{"redis password from an unset variable", handlerJSON(urls("", "redis://us3r:{env.IAK_TEST_UNSET}@localhost")),
			"redis: url 1: {env.IAK_TEST_UNSET} resolves to nothing", []string{"us3r"}},
		{"redis password with braces", handlerJSON(urls("", "redis://us3r:pa{ss}word@localhost")),
			"redis: url 1", []string{"us3r", "pa{", "ss}", "}word"}},
		{"cluster and master_name", handlerJSON(urls(`,"cluster":true,"master_name":"primary"`, "redis://:5ecret@localhost")),
			"redis: cluster and master_name exclude each other", []string{"5ecret"}},
		{"several urls", handlerJSON(urls("", "redis://:5ecret@a", "redis://:5ecret@b")),
			"redis: several urls need master_name (Sentinel) or cluster", []string{"5ecret"}},
		{"url of another scheme", handlerJSON(urls("", "http://us3r:5ecret@localhost")),
			"redis: url 1: expected redis://", []string{"us3r", "5ecret"}},
		{"url of another scheme, by a placeholder", handlerJSON(urls("", "{env.IAK_TEST_URL}")),
			"redis: url 1: expected redis://", []string{"url-from-env"}},
		{"url without a scheme", handlerJSON(urls("", "us3r:5ecret@localhost:6379")),
			"redis: url 1", []string{"us3r", "5ecret"}},
		{"url with a bad escape", handlerJSON(urls("", "redis://us3r:5ecret%zz@localhost")),
			"redis: url 1: not a valid url", []string{"us3r", "5ecret", "zz"}},
		{"url with a control character", handlerJSON(urls("", "redis://us3r:5ecret\x7f@localhost")),
			"redis: url 1: not a valid url", []string{"us3r", "5ecret"}},
		{"url with a bad port", handlerJSON(urls("", "redis://us3r:5ecret@localhost:port")),
			"redis: url 1: not a valid url", []string{"us3r", "5ecret", "localhost"}},
		{"url with a bad database", handlerJSON(urls("", "redis://us3r:5ecret@localhost/first")),
			"redis: url 1: not a valid Redis url", []string{"us3r", "5ecret"}},
		{"url with an unknown option", handlerJSON(urls("", "redis://us3r:5ecret@localhost?passwd=0ther")),
			"redis: url 1: not a valid Redis url or an unknown option", []string{"us3r", "5ecret", "0ther"}},
		{"url with a bad option", handlerJSON(urls("", "redis://us3r:5ecret@localhost?protocol=5ecret")),
			"redis: url 1: not a valid Redis url", []string{"us3r", "5ecret"}},
		{"the second url is bad", handlerJSON(urls(`,"cluster":true`, "redis://us3r:5ecret@a", "redis://us3r:5ecret@b:port")),
			"redis: url 2: not a valid url", []string{"us3r", "5ecret"}},
		{"urls with two passwords", handlerJSON(urls(`,"cluster":true`, "redis://us3r:5ecret@a", "redis://us3r:0ther@b")),
			"redis: url 2 differs from url 1", []string{"us3r", "5ecret", "0ther"}},
		{"urls with and without TLS", handlerJSON(urls(`,"cluster":true`, "redis://us3r:5ecret@a", "rediss://us3r:5ecret@b")),
			"redis: url 2 differs from url 1", []string{"us3r", "5ecret"}},
		{"a cluster with a database", handlerJSON(urls(`,"cluster":true`, "redis://:5ecret@a/1")),
			"redis: url 1: a cluster has only database 0", []string{"5ecret"}},
		{"a socket and Sentinel", handlerJSON(urls(`,"master_name":"primary"`, "unix://us3r:5ecret@/redis.sock")),
			"redis: url 1: unix:// cannot be used with Sentinel or Cluster", []string{"us3r", "5ecret"}},

		{"retention below 48 hours", handlerJSON(fmt.Sprintf(`"retention":%d`, 48*time.Hour-1)), "retention is shorter than 48h", nil},
		{"retention is negative", handlerJSON(`"retention":-1`), "retention is shorter than 48h", nil},
		{"upstream_timeout is negative", handlerJSON(`"upstream_timeout":-1`), "upstream_timeout is negative", nil},
		{"upstream_timeout beyond retention", handlerJSON(fmt.Sprintf(`"upstream_timeout":%d`, 31*24*time.Hour)),
			"upstream_timeout is not shorter than retention", nil},
		{"max_body_size is not between 1B and 1GiB", handlerJSON(`"max_body_size":-1`), "max_body_size is not between 1B and 1GiB", nil},
		{"redis timeout is negative", handlerJSON(urls(`,"timeout":-1`, "redis://localhost")), "redis: timeout or pool_size is negative", nil},
		{"redis timeout is longer than the lease's margin", handlerJSON(urls(`,"timeout":5000000001`, "redis://localhost")), "redis: timeout is longer than 5s", nil},
		{"redis pool_size is negative", handlerJSON(urls(`,"pool_size":-1`, "redis://localhost")), "redis: timeout or pool_size is negative", nil},

		{"body", handlerJSON(`"body":"xml"`), `body "xml": use iak or flat`, nil},
		{"validate", handlerJSON(`"validate":"none"`), `validate "none": use strict or lenient`, nil},
		{"on_process", handlerJSON(`"on_process":"reject"`), `on_process "reject": use forward or acknowledge`, nil},
		{"on_conflict", handlerJSON(`"on_conflict":"accept"`), `on_conflict "accept": use reject or forward`, nil},
		{"on_doubt", handlerJSON(`"on_doubt":"keep"`), `on_doubt "keep": use retry, hold or accept`, nil},
		{"on_store_error", handlerJSON(`"on_store_error":"retry"`), `on_store_error "retry": use reject, forward or keep`, nil},

		{"unknown field", handlerJSON(`"frobnicate":true`), `unknown field "frobnicate"`, nil},
		{"unknown field of an account", handlerJSON(accountsOf(`{"name":"shop","user":"0811","api_key":"5ecret"}`)),
			`unknown field "user"`, []string{"0811", "5ecret"}},
		{"unknown field of redis", handlerJSON(`"redis":{"urls":["redis://:5ecret@localhost"],"db":1}`),
			`unknown field "db"`, []string{"5ecret"}},
		{"unknown field of embedded", handlerJSON(`"embedded":{"path":"/records.sqlite"}`), `unknown field "path"`, nil},
		{"keep without a spool", handlerJSON(`"on_store_error":"keep","redis":{"urls":["redis://127.0.0.1:1"]}`), "on_store_error keep needs spool and redis", nil},
		{"keep without redis", handlerJSON(`"on_store_error":"keep","spool":{}`), "on_store_error keep needs spool and redis", nil},
		{"spool: negative", handlerJSON(`"spool":{"answer_within":-1}`), "answer_within, delay, backoff, max_age or max_pending is negative", nil},
		{"spool: backoff", handlerJSON(`"spool":{"backoff":{"first":"10m","longest":"1m"}}`), "the longest pause, 1m0s, is shorter than the first, 10m0s", nil},
		{"spool: delay", handlerJSON(`"spool":{"delay":"24h"}`), "delay is not shorter than max_age", nil},
		{"spool: concurrency", handlerJSON(`"spool":{"concurrency":1001}`), "concurrency is not between 1 and 1000", nil},
		{"spool: unknown", handlerJSON(`"spool":{"retries":1}`), `unknown field "retries"`, nil},
		{"confirm: mode", handlerJSON(`"confirm":{"mode":"always"}`), `confirm "always": use final or conflict`, nil},
		{"confirm: on_error", handlerJSON(`"confirm":{"on_error":"drop"}`), `confirm: on_error "drop": use retry or forward`, nil},
		{"confirm: base", handlerJSON(`"confirm":{"base":"http://prepaid.iak.id"}`), "confirm: base is not https", nil},
		{"confirm: base of another account", handlerJSON(`"confirm":{"bases":{"nobody":"https://prepaid.iak.id"}}`), `base names the account "nobody"`, nil},
		{"confirm: a base with a password", handlerJSON(`"confirm":{"base":"https://us3r:5ecret@prepaid.iak.id"}`), "confirm: base has more than an address", []string{"us3r", "5ecret"}},
		{"confirm: timeout", handlerJSON(`"confirm":{"timeout":"30s"}`), "confirm: timeout, 30s, is not shorter than upstream_timeout, 30s", nil},
		{"confirm: negative", handlerJSON(`"confirm":{"timeout":-1}`), "confirm: timeout is negative", nil},
		{"confirm: rate", handlerJSON(`"confirm":{"rate":1001}`), "confirm: rate is not between 1 and 1000", nil},
		{"confirm: unknown", handlerJSON(`"confirm":{"retries":1}`), `unknown field "retries"`, nil},
		{"callback_url", handlerJSON(`"callback_url":"shop.example.com/5ecret"`), "callback_url is not a url", []string{"5ecret"}},
		{"callback_url of nothing", handlerJSON(`"callback_url":"{env.IAK_TEST_NOTHING}"`), "callback_url: {env.IAK_TEST_NOTHING} resolves to nothing", nil},
		{"username is a number", handlerJSON(accountsOf(`{"name":"shop","username":62811234567,"api_key":"5ecret"}`)),
			"username", []string{"62811234567", "5ecret"}},
		{"api_key is a list", handlerJSON(accountsOf(`{"name":"shop","username":"0811","api_key":["5ecret"]}`)),
			"api_key", []string{"0811", "5ecret"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := storeUses()
			err := validateConfig(t, tt.handler)
			if err == nil {
				t.Fatal("valid, want an error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is\n%v\nwant in it\n%s", err, tt.want)
			}
			for _, secret := range tt.secrets {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error quotes %q: %v", secret, err)
				}
			}
			if left := addedUses(before); len(left) != 0 {
				t.Errorf("it holds the stores %v", left)
			}
		})
	}
}

// What is unusual but right is accepted: a key in rotation, a pair given twice
// under one name, braces that come from a variable, the shortest retention.
func TestModuleConfigAccepted(t *testing.T) {
	t.Setenv("IAK_TEST_KEY", "pa{ss}word")
	for _, tt := range []struct{ name, handler string }{
		{"key rotation", handlerJSON(`"accounts":[` + accountJSON("a", "0811", "old") + `,` + accountJSON("a", "0811", "new") + `]`)},
		{"one pair twice under one name", handlerJSON(`"accounts":[` + accountJSON("a", "0811", "k") + `,` + accountJSON("a", "0811", "k") + `]`)},
		{"one username under two names", handlerJSON(`"accounts":[` + accountJSON("a", "0811", "k") + `,` + accountJSON("b", "0811", "l") + `]`)},
		{"braces from a variable", handlerJSON(`"accounts":[` + accountJSON("a", "0811", "{env.IAK_TEST_KEY}") + `]`)},
		{"shortest retention", handlerJSON(fmt.Sprintf(`"retention":%d`, 48*time.Hour))},
		{"embedded without a file", handlerJSON(`"embedded":{}`)},
		{"zero is the default", handlerJSON(`"retention":0,"upstream_timeout":0,"max_body_size":0,"body":"","on_doubt":""`)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := validateConfig(t, tt.handler); err != nil {
				t.Error(err)
			}
		})
	}
}

// Validating dials no Redis, single, Sentinel or Cluster: neither one that is
// down, which stops nothing, nor one that is there.
func TestModuleValidateDialsNothing(t *testing.T) {
	for _, tt := range []struct{ name, members, query string }{
		{"single", ``, ""},
		{"sentinel", `,"master_name":"primary"`, ""},
		{"cluster", `,"cluster":true`, ""},
		{"single with idle connections", ``, "?min_idle_conns=2"},
		{"sentinel with idle connections", `,"master_name":"primary"`, "?min_idle_conns=2"},
		{"cluster with idle connections", `,"cluster":true`, "?min_idle_conns=2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			handler := func(addr string) string {
				return handlerJSON(`"redis":{"urls":["redis://:5ecret@` + addr + tt.query + `"]` + tt.members + `}`)
			}
			if err := validateConfig(t, handler("127.0.0.1:"+sitetest.FreePort(t))); err != nil {
				t.Errorf("with a Redis that is down: %v", err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := validateConfig(t, handler(l.Addr().String())); err != nil {
				t.Errorf("with a Redis that is there: %v", err)
			}
			// That nothing comes has no event: a dial that Validate began would
			// arrive well within this time.
			_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(250 * time.Millisecond))
			if conn, err := l.Accept(); err == nil {
				conn.Close()
				t.Error("Redis was dialed")
			}
		})
	}
}

// Validating neither opens nor creates the embedded store's file, so it works
// beside a running server, which holds its lock.
func TestModuleValidateOpensNoFile(t *testing.T) {
	t.Run("held by another", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "records.sqlite")
		other := sitetest.StartProcess(t, t.TempDir(), sitetest.Block("embedded "+file)+"respond ok")
		if status := post(t, other.URL, "order-1").Status; status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
		if err := validateConfig(t, handlerJSON(`"embedded":{"file":`+sitetest.Quote(file)+`}`)); err != nil {
			t.Error(err)
		}
	})
	t.Run("not there yet", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "state", "records.sqlite")
		if err := validateConfig(t, handlerJSON(`"embedded":{"file":`+sitetest.Quote(file)+`}`)); err != nil {
			t.Error(err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("validating left %v (%v)", entries, err)
		}
	})
	t.Run("in a place that cannot be written", func(t *testing.T) {
		notADirectory := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(notADirectory, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := validateConfig(t, handlerJSON(`"embedded":{"file":`+sitetest.Quote(filepath.Join(notADirectory, "records.sqlite"))+`}`)); err != nil {
			t.Error(err)
		}
	})
	t.Run("the default place", func(t *testing.T) {
		if err := validateConfig(t, handlerJSON()); err != nil {
			t.Error(err)
		}
		place := filepath.Join(caddy.AppDataDir(), "iak_callback")
		if _, err := os.Stat(place); !os.IsNotExist(err) {
			t.Errorf("%s is there after validating (%v)", place, err)
		}
	})
}

// A configuration that fails, in Provision or in Validate, before or behind a
// handler that is right, gives back what it took and nothing else: the site that
// runs keeps its store and its records.
func TestModuleFailedLoad(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	app := sitetest.StartApp(t, nil)
	file := filepath.Join(t.TempDir(), "records.sqlite")
	redis := redistest.Start(t)
	for _, store := range []struct{ name, member, other string }{
		{"embedded", `"embedded":{"file":` + sitetest.Quote(file) + `}`, `"redis":{"urls":["redis://127.0.0.1:1"]}`},
		{"redis", `"redis":{"urls":[` + sitetest.Quote(redis.URL()) + `]}`, `"embedded":{"file":` + sitetest.Quote(file) + `}`},
	} {
		t.Run(store.name, func(t *testing.T) {
			s := &sitetest.Site{T: t, URL: "http://127.0.0.1:" + sitetest.FreePort(t)}
			addr := strings.TrimPrefix(s.URL, "http://")
			behind := `{"handler":"reverse_proxy","upstreams":[{"dial":` + sitetest.Quote(app.Addr()) + `}]}`
			good := handlerJSON(store.member)
			before := storeUses()
			if err := caddy.Load(configFor(addr, good, behind), true); err != nil {
				t.Fatal(err)
			}
			stopped := false
			stop := func() {
				if !stopped {
					stopped = true
					if err := caddy.Stop(); err != nil {
						t.Error(err)
					}
				}
			}
			defer stop()
			live := addedUses(before)
			if len(live) != 1 {
				t.Fatalf("it holds the stores %v, want one", live)
			}
			if got := s.Post(sitetest.Order("failed-load", "1")); got.Status != 200 {
				t.Fatalf("status %d, want 200", got.Status)
			}
			calls := len(app.Received())

			noKey := `"accounts":[` + accountJSON("test", sitetest.Username, "{env.IAK_TEST_UNSET}") + `]`
			for _, tt := range []struct {
				name     string
				handlers []string
			}{
				{"Provision fails behind a good handler", []string{good, handlerJSON(store.member, noKey)}},
				{"Provision fails before a good handler", []string{handlerJSON(store.member, noKey), good}},
				{"Provision fails at the store", []string{good, handlerJSON(`"redis":{"urls":["redis://a","redis://b"]}`)}},
				{"Validate fails behind a good handler", []string{good, handlerJSON(store.member, `"retention":1`)}},
				{"Validate fails before a good handler", []string{handlerJSON(store.member, `"retention":1`), good}},
				{"Validate fails alone", []string{handlerJSON(store.member, `"body":"xml"`)}},
				{"Validate fails on another store", []string{handlerJSON(store.other, `"body":"xml"`)}},
				{"another module fails behind good handlers", []string{good, handlerJSON(store.other), `{"handler":"no_such_handler"}`}},
				{"the port cannot be had", nil},
			} {
				t.Run(tt.name, func(t *testing.T) {
					config := configFor(addr, tt.handlers...)
					if tt.handlers == nil {
						taken, err := net.Listen("tcp", "127.0.0.1:0")
						if err != nil {
							t.Fatal(err)
						}
						defer taken.Close()
						config = configFor(taken.Addr().String(), good, handlerJSON(store.other), behind)
					}
					if err := caddy.Load(config, true); err == nil {
						t.Fatal("loaded, want an error")
					}
					if after := addedUses(before); fmt.Sprint(after) != fmt.Sprint(live) {
						t.Errorf("stores and their uses %v, want those of before, %v", after, live)
					}
					if got := s.Post(sitetest.Order("failed-load", "1")); got.Status != 200 || got.Header.Get("Idempotent-Replayed") != "true" {
						t.Errorf("status %d, header %v, want a duplicate's answer", got.Status, got.Header)
					}
					if got := s.Post(sitetest.Order("after "+tt.name, "1")); got.Status != 200 {
						t.Errorf("status %d, want 200", got.Status)
					}
					if got := len(app.Received()); got != calls+1 {
						t.Errorf("the app was called %d times more, want once", got-calls)
					}
					calls = len(app.Received())
				})
			}
			stop()
			sitetest.Eventually(t, "the store is closed when Caddy has stopped", func() bool { return len(addedUses(before)) == 0 })
		})
	}
}

// Handlers with the same settings share one store, within a configuration and
// across reloads; validating beside them changes nothing.
func TestModuleSharedStore(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	dir := t.TempDir()
	member := `"embedded":{"file":` + sitetest.Quote(filepath.Join(dir, "records.sqlite")) + `}`
	same := `"embedded":{"file":` + sitetest.Quote(dir+"/./records.sqlite") + `}`
	other := `"embedded":{"file":` + sitetest.Quote(filepath.Join(dir, "other.db")) + `}`
	before := storeUses()
	uses := func() []int {
		return slices.SortedFunc(maps.Values(addedUses(before)), func(a, b int) int { return b - a })
	}
	addr := "127.0.0.1:" + sitetest.FreePort(t)
	defer func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		if left := addedUses(before); len(left) != 0 {
			t.Errorf("when Caddy has stopped, it holds the stores %v", left)
		}
	}()
	for _, tt := range []struct {
		name     string
		handlers []string
		want     []int // how often each store is used, the most used first
	}{
		{"one handler", []string{handlerJSON(member)}, []int{1}},
		{"two handlers", []string{handlerJSON(member), handlerJSON(member, `"body":"flat"`)}, []int{2}},
		{"another spelling of the file", []string{handlerJSON(member), handlerJSON(same)}, []int{2}},
		{"another store for one of three", []string{handlerJSON(member), handlerJSON(member), handlerJSON(other)}, []int{2, 1}},
		{"one handler again", []string{handlerJSON(member)}, []int{1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := caddy.Load(configFor(addr, tt.handlers...), true); err != nil {
				t.Fatal(err)
			}
			if got := uses(); fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("the stores are used %v times, want %v", got, tt.want)
			}
			if err := validateConfig(t, tt.handlers...); err != nil {
				t.Error(err)
			}
			if got := uses(); fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("after validating, the stores are used %v times, want %v", got, tt.want)
			}
		})
	}
}

// Caddy's trace log, which prints each handler that a request meets, prints no
// secret, literal or resolved.
func TestModuleTraceLog(t *testing.T) {
	t.Setenv("IAK_TEST_KEY", "5ecret-from-env")
	app := sitetest.StartApp(t, nil)
	redis := redistest.Start(t)
	s := sitetest.Start(t, "respond ok")
	text := s.Caddyfile("iak_callback {\n" + sitetest.Account + "\naccount other 0811-user {env.IAK_TEST_KEY}\n" +
		"redis redis://:5ecret-password@" + redis.Addr() + "\n}\nreverse_proxy " + app.Addr())
	text = strings.Replace(text, "\tmetrics\n", "\tmetrics\n\tservers {\n\t\ttrace\n\t}\n", 1)
	config, err := sitetest.Adapt(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.LoadConfig(config); err != nil {
		t.Fatal(err)
	}
	s.Post(sitetest.Order("traced", "1"))
	sitetest.Eventually(t, "the callback's log line", func() bool { return len(s.CallbackLines()) == 1 })
	traced := false
	for line := range strings.Lines(s.Log()) {
		isTrace := strings.Contains(line, `"logger":"http.log.trace"`)
		if !isTrace && !strings.Contains(line, `"logger":"http.handlers.iak_callback"`) {
			continue // Caddy's own debug lines print the configuration as it is written
		}
		traced = traced || isTrace && strings.Contains(line, `"msg":"iak_callback"`)
		for _, secret := range []string{sitetest.Username, sitetest.APIKey, "5ecret", "0811-user"} {
			if strings.Contains(line, secret) {
				t.Errorf("%q is in the log line %s", secret, line)
			}
		}
	}
	if !traced {
		t.Errorf("the trace log says nothing of iak_callback:\n%s", s.Log())
	}
}
