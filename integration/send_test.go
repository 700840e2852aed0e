package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// runSend runs the command in this process with the test account in the
// environment, and returns what it prints.
func runSend(t *testing.T, args ...string) (string, error) {
	t.Helper()
	t.Setenv("IAK_USERNAME", sitetest.Username)
	t.Setenv("IAK_API_KEY", sitetest.APIKey)
	return runSendAs(t, args...)
}

// runSendAs is runSend with the environment as it is.
func runSendAs(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := sitetest.Command()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs(append([]string{"send"}, args...))
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.Execute()
	return out.String(), err
}

// mustSend is runSend for requests that all get an answer.
// knownSamples are the examples that --sample knows.
var knownSamples = []string{"game", "esim", "other", "failed", "process"}

func mustSend(t *testing.T, args ...string) string {
	t.Helper()
	out, err := runSend(t, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// wantLines checks that each line stands in the text, white space between words
// aside.
func wantLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	all := make(map[string]bool)
	for line := range strings.Lines(text) {
		all[strings.Join(strings.Fields(line), " ")] = true
	}
	for _, line := range lines {
		if !all[line] {
			t.Errorf("the line %q is missing in\n%s", line, text)
		}
	}
}

var sentRefID = regexp.MustCompile(`(?m)^ref_id "(.*)"$`)

// Every sample in every format and version is accepted, and reaches the app as
// IAK's own example does. Each is a new order by itself.
func TestSendSamples(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\n}\nreverse_proxy "+app.Addr())
	seen := make(map[string]bool)
	for _, sample := range knownSamples {
		// The reference has no order under way.
		want := `{"data":{"ref_id":"REF","status":"0","code":"xld25000","hp":"0817777215","product_code":"xld25000","customer_id":"0817777215",` +
			`"price":"25000","message":"PROCESS","balance":"997061249","tr_id":"3482","rc":"39","sign":"SIGN"}}`
		if sample != "process" {
			want = sitetest.Reference(t, sample+".iak.json")
			want = regexp.MustCompile(`"ref_id":"[^"]*"`).ReplaceAllString(want, `"ref_id":"REF"`)
			want = regexp.MustCompile(`"sign":"[^"]*"`).ReplaceAllString(want, `"sign":"SIGN"`)
		}
		for _, format := range []string{"json", "xml"} {
			for _, version := range []string{"1", "2"} {
				out := mustSend(t, "--to", s.URL+"/callback", "--sample", sample, "--format", format, "--version", version)
				wantLines(t, out, "HTTP/1.1 200 OK")
				m := sentRefID.FindStringSubmatch(out)
				if m == nil || seen[m[1]] {
					t.Fatalf("no new ref_id in\n%s", out)
				}
				seen[m[1]] = true
				if got, want := app.Last(t).Body, strings.NewReplacer("REF", m[1], "SIGN", sitetest.Sign(m[1])).Replace(want); got != want {
					t.Errorf("%s, %s, version %s: the app received\n%s\nwant\n%s", sample, format, version, got, want)
				}
			}
		}
	}
	if n := len(app.Received()); n != len(seen) {
		t.Errorf("the app received %d callbacks, want %d", n, len(seen))
	}
}

// What is sent are the bytes of IAK's reference, with JSON as PHP writes it.
func TestSendBytes(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	for _, sample := range knownSamples[:4] {
		for _, version := range []string{"1", "2"} {
			example := sitetest.Reference(t, sample+".v"+version+".xml")
			refID := regexp.MustCompile(`<ref_id>(.*)</ref_id>`).FindStringSubmatch(example)[1]
			args := []string{"--to", app.URL, "--sample", sample, "--version", version, "--ref-id", refID}
			mustSend(t, append(args, "--format", "xml")...)
			if got := app.Last(t); got.Body != strings.TrimSpace(example) || got.Header.Get("Content-Type") != "application/xml" {
				t.Errorf("%s version %s: sent %s\n%s", sample, version, got.Header.Get("Content-Type"), got.Body)
			}
			var compact bytes.Buffer
			if err := json.Compact(&compact, []byte(sitetest.Reference(t, sample+".v"+version+".json"))); err != nil {
				t.Fatal(err)
			}
			mustSend(t, args...)
			if got := app.Last(t); got.Body != compact.String() || got.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s version %s: sent %s\n%s\nwant\n%s", sample, version, got.Header.Get("Content-Type"), got.Body, compact.String())
			}
		}
	}
}

// hostile are values that a shell, JSON, XML or a line of text could take for
// something else.
var hostile = []string{
	`it's "quoted" \ and / and \/`, "$(id) `id` ${HOME} !! ~ * # ; & | > <", "<a>&amp;<![CDATA[x]]></mp>", "]]>", "@/etc/passwd", "%41%00 %s",
	"line\nline\r\nline\ttab", "\x01\b\f\x1f\x7f", "é 漢字 😀 \u2028 \u0085 \ufeff", `'\''`, "''", `\`, "-d", "\nGET / HTTP/1.1\r\n\r\n", "",
}

// Hostile values of documented and unknown fields reach the app unchanged, in
// both formats; --set of a name replaces or adds the field.
func TestSendHostileFields(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\nbody flat\n}\nreverse_proxy "+app.Addr())
	for _, format := range []string{"json", "xml"} {
		for _, value := range hostile {
			if format == "xml" {
				// The handler drops white space around a value, and XML has no U+0001.
				if value = strings.TrimSpace(value); strings.Contains(value, "\x01") {
					continue
				}
			}
			wantLines(t, mustSend(t, "--to", s.URL, "--format", format, "--set", "sn="+value, "--set", "a_note=="+value), "HTTP/1.1 200 OK")
			var got struct {
				SN    *string `json:"sn"`
				Extra map[string]string
			}
			if err := json.Unmarshal([]byte(app.Last(t).Body), &got); err != nil {
				t.Fatal(err)
			}
			if got.SN == nil != (value == "") || got.SN != nil && *got.SN != value || got.Extra["a_note"] != "="+value {
				t.Errorf("%s: the app received %s of %q", format, app.Last(t).Body, value)
			}
		}
	}
	// A ref_id is signed as it is sent, wherever it is given.
	for _, flag := range []string{"--ref-id=", "--set=ref_id="} {
		wantLines(t, mustSend(t, "--to", s.URL, flag+`a'b"c/é&<d> `+flag), "HTTP/1.1 200 OK")
	}
}

// What XML cannot carry is refused before anything is sent.
func TestSendXMLLimits(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	for _, set := range []string{"sn=a\x01", "sn=\ufffe", "a b=c", "1a=c", "<a>=c", "a:b=c"} {
		_, err := runSend(t, "--to", app.URL, "--format", "xml", "--set", set)
		if err == nil || !strings.Contains(err.Error(), "--format json") {
			t.Errorf("%q: got the error %v", set, err)
		}
	}
	if len(app.Received()) > 0 {
		t.Error("something was sent")
	}
}

// A forged callback is refused, needs no credentials, and is an answer as any
// other. So is a sign of one's own.
func TestSendForge(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\n}\nreverse_proxy "+app.Addr())
	t.Setenv("IAK_USERNAME", "")
	t.Setenv("IAK_API_KEY", "")
	for _, args := range [][]string{{"--forge"}, {"--set", "sign=96e1028f6beaa817ee3670a39c01c69d"}} {
		out, err := runSendAs(t, append(args, "--to", s.URL)...)
		if err != nil {
			t.Fatal(err)
		}
		wantLines(t, out, "HTTP/1.1 403 Forbidden")
	}
	if len(app.Received()) > 0 {
		t.Error("the app received a forged callback")
	}
	// The right sign, upper-case, is accepted: --set sign is sent as it is.
	out, err := runSendAs(t, "--to", s.URL, "--ref-id", "mine", "--set", "sign="+strings.ToUpper(sitetest.Sign("mine")))
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, out, "HTTP/1.1 200 OK")
}

// --parallel sends at once: while the app works on the first, the others are
// refused with 409. The table counts them.
func TestSendParallel(t *testing.T) {
	release := make(chan bool)
	app := sitetest.StartApp(t, func(http.ResponseWriter, *http.Request) { <-release })
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\n}\nreverse_proxy "+app.Addr())
	finish := sync.OnceFunc(func() { close(release) })
	t.Cleanup(finish)
	done := make(chan string, 1)
	t.Setenv("IAK_USERNAME", sitetest.Username)
	t.Setenv("IAK_API_KEY", sitetest.APIKey)
	go func() {
		out, err := runSendAs(t, "--to", s.URL, "--repeat", "5", "--parallel", "8")
		if err != nil {
			t.Error(err)
		}
		done <- out
	}()
	sitetest.Eventually(t, "four are refused while the first is with the app", func() bool { return len(s.CallbackLines()) == 4 })
	finish()
	out := <-done
	wantLines(t, out, "HTTP/1.1 200 OK", "HTTP/1.1 409 Conflict", "Retry-After: 5",
		"status answers Idempotent-Replayed", "200 OK 1 0", "409 Conflict 4 0")
	if n := len(app.Received()); n != 1 {
		t.Errorf("the app received %d callbacks, want 1", n)
	}
}

// Without --parallel one follows the other: the first is forwarded, the rest
// are replayed, and one answer of each kind is printed.
func TestSendRepeat(t *testing.T) {
	app := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("done\n")) })
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\n}\nreverse_proxy "+app.Addr())
	out := mustSend(t, "--to", s.URL, "--repeat", "4")
	wantLines(t, out, "done", "Idempotent-Replayed: true", "200 OK 4 3")
	if n := strings.Count(out, "HTTP/1.1 200 OK"); n != 2 {
		t.Errorf("%d answers are printed, want one forwarded and one replayed:\n%s", n, out)
	}
	if n := len(app.Received()); n != 1 {
		t.Errorf("the app received %d callbacks, want 1", n)
	}
	if out := mustSend(t, "--to", s.URL); strings.Contains(out, "answers") {
		t.Errorf("a table for one request:\n%s", out)
	}
}

// The curl command of --dry-run makes, in a real shell, the request that the
// command makes, whatever the values and the url are; and nothing is sent by
// --dry-run itself.
func TestSendDryRun(t *testing.T) {
	app := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("taken")) })
	s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\n}\nreverse_proxy "+app.Addr())
	for _, format := range []string{"json", "xml"} {
		args := []string{"--format", format, "--ref-id", "it's " + format}
		for i, value := range hostile {
			if format == "json" || !strings.Contains(value, "\x01") {
				args = append(args, "--set", "field"+string(rune('a'+i))+"="+value)
			}
		}
		// To the app itself: the bytes. Brackets, dots and quotes mean something to curl or the shell.
		target := app.URL + `/a/../b[1-3]{x,y}/it's?q=$(id)&a[1-2]={x,y}'"!#fragment`
		before := len(app.Received())
		out := mustSend(t, append(args, "--to", target, "--dry-run")...)
		if len(app.Received()) != before {
			t.Fatal("--dry-run has sent something")
		}
		if strings.Contains(out, sitetest.APIKey) || strings.Contains(out, sitetest.Username) {
			t.Errorf("a secret is printed:\n%s", out)
		}
		curl(t, out)
		byCurl := app.Last(t)
		mustSend(t, append(args, "--to", target)...)
		byCommand := app.Last(t)
		if byCurl.Method != "POST" || byCurl.Path != byCommand.Path || byCurl.Body != byCommand.Body || len(app.Received()) != before+2 {
			t.Errorf("curl sent %s %s\n%s\nthe command %s %s\n%s", byCurl.Method, byCurl.Path, byCurl.Body, byCommand.Method, byCommand.Path, byCommand.Body)
		}
		for _, name := range []string{"Content-Type", "User-Agent", "Content-Length"} {
			if byCurl.Header.Get(name) != byCommand.Header.Get(name) {
				t.Errorf("%s: curl sent %q, the command %q", name, byCurl.Header.Get(name), byCommand.Header.Get(name))
			}
		}
		// A server may close a connection that is kept just when the next callback is on it.
		if byCommand.Header.Get("Connection") != "close" {
			t.Error("the connection is kept")
		}
		if !strings.Contains(out, byCommand.Body) || !strings.Contains(out, "POST "+byCommand.Path+" HTTP/1.1\n") {
			t.Errorf("the request that is printed is another:\n%s", out)
		}

		// To the site: the answer.
		if got := curl(t, mustSend(t, append(args, "--to", s.URL, "--dry-run")...)); !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(got, "taken") {
			t.Errorf("curl got\n%s", got)
		}
		wantLines(t, mustSend(t, append(args, "--to", s.URL)...), "HTTP/1.1 200 OK", "Idempotent-Replayed: true")
	}
}

// curl runs the curl command at the end of what --dry-run prints.
func curl(t *testing.T, out string) string {
	t.Helper()
	i := strings.LastIndex(out, "\ncurl ")
	if i < 0 {
		t.Fatalf("no curl command in\n%s", out)
	}
	sh := exec.Command("sh", "-c", out[i+1:])
	sh.Env = append(os.Environ(), "no_proxy=*")
	got, err := sh.Output()
	if err != nil {
		t.Fatalf("curl: %v (is it installed?)\n%s", err, out[i+1:])
	}
	return string(got)
}

// Without credentials the error names the flags and the variables of what is
// missing, and no value. An empty flag is not replaced by the environment.
func TestSendMissingCredentials(t *testing.T) {
	for _, row := range []struct {
		username, apiKey string
		args, want, not  []string
	}{
		{"", "", nil, []string{"IAK_USERNAME", "--username", "IAK_API_KEY", "--api-key"}, nil},
		{"a-name", "", nil, []string{"IAK_API_KEY", "--api-key"}, []string{"--username"}},
		{"", "a-secret", nil, []string{"IAK_USERNAME", "--username"}, []string{"--api-key"}},
		{"a-name", "a-secret", []string{"--api-key", ""}, []string{"IAK_API_KEY", "--api-key"}, []string{"--username"}},
		{"a-name", "a-secret", []string{"--username="}, []string{"IAK_USERNAME", "--username"}, []string{"--api-key"}},
	} {
		t.Setenv("IAK_USERNAME", row.username)
		t.Setenv("IAK_API_KEY", row.apiKey)
		out, err := runSendAs(t, append(row.args, "--to", "http://127.0.0.1:9", "--dry-run")...)
		if err == nil {
			t.Fatalf("no error without credentials:\n%s", out)
		}
		for _, want := range row.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not name %s", err, want)
			}
		}
		for _, not := range append(row.not, "a-name", "a-secret") {
			if strings.Contains(err.Error()+out, not) {
				t.Errorf("%q contains %s", err.Error()+out, not)
			}
		}
	}
	// The flags win over the environment.
	app := sitetest.StartApp(t, nil)
	if out, err := runSendAs(t, "--to", app.URL, "--ref-id", "flags", "--username", sitetest.Username, "--api-key", sitetest.APIKey); err != nil || !strings.Contains(app.Last(t).Body, sitetest.Sign("flags")) {
		t.Errorf("not signed with the flags: %v\n%s", err, out)
	}
}

// A wrong command line is an error that names the flag, and repeats no value
// that may be a secret, goods or a token.
func TestSendWrongFlags(t *testing.T) {
	const site = "--to=http://127.0.0.1:9/"
	for _, row := range []struct {
		args []string
		want string
	}{
		{nil, "--to is missing"},
		{[]string{"--dry-run"}, "--to is missing"},
		{[]string{"--to", "shop.example.com/hidden"}, "--to"},
		{[]string{"--to", "ftp://shop.example.com/hidden"}, "--to"},
		{[]string{"--to", "https:///hidden"}, "--to"},
		{[]string{"--to", "https://user:hid/den@shop.example.com/hidden"}, "--to"},
		{[]string{"--to", "https://user:hidden@shop.example.com/"}, "leave it out"},
		{[]string{"--to", "https://shop.example.com/?a=b hidden"}, "percent-encode"},
		{[]string{"--to", "https://shop.example.com/é?hidden"}, "percent-encode"},
		{[]string{"--to", "https://shop.example.com/%zz?hidden"}, "--to"},
		{[]string{site, "--sample", "voucher"}, "game, esim, other, failed, process"},
		{[]string{site, "--format", "yaml"}, "json or xml"},
		{[]string{site, "--version", "3"}, "1 or 2"},
		{[]string{site, "--repeat", "0"}, "--repeat"},
		{[]string{site, "--parallel", "-1"}, "--parallel"},
		{[]string{site, "--set", "a=b", "--set", "hidden"}, "--set number 2"},
		{[]string{site, "--set", "=hidden"}, "--set number 1"},
		{[]string{site, "--set", "sn=hidden\xff"}, "--set number 1"},
		{[]string{site, "--ref-id", "\xff"}, "--ref-id"},
		{[]string{site, "--forge", "--set", "sign=hidden"}, "exclude each other"},
		{[]string{site, "--api-key", "a", "hidden"}, "between quotes"},
		{[]string{site, "--insecure=hidden"}, "unknown flag"},
		{[]string{site, "-hidden"}, "two, such as --to"},
		{[]string{site, "--repeat", "hidden"}, "whole number"},
		{[]string{site, "--forge=hidden"}, "whole number"},
	} {
		out, err := runSend(t, row.args...)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: got the error %v, want %q in it", row.args, err, row.want)
			continue
		}
		if strings.Contains(err.Error()+out, "hid") {
			t.Errorf("%q: the error repeats a value: %v", row.args, err)
		}
	}
}

// A request without a complete answer is an error that says what to do and
// names no more of the url than the host.
func TestSendNoAnswer(t *testing.T) {
	breaksOff := sitetest.StartApp(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	halfway := sitetest.StartApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.Write([]byte("half"))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	plain := sitetest.StartApp(t, nil)
	reached := make(chan bool, 100)
	untrusted := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached <- true }))
	untrusted.Config.ErrorLog = nil
	untrusted.StartTLS()
	t.Cleanup(untrusted.Close)

	for _, row := range []struct{ name, to, want string }{
		{"nobody listens", "http://127.0.0.1:" + sitetest.FreePort(t), "start Caddy"},
		{"no such host", "http://shop.invalid", "host name"},
		{"breaks off", breaksOff.URL, "broke off"},
		{"breaks off in the body", halfway.URL, "broke off"},
		{"https to a port of http", strings.Replace(plain.URL, "http:", "https:", 1), "http://"},
		{"a certificate that is not trusted", untrusted.URL, "caddy trust"},
	} {
		out, err := runSend(t, "--to", row.to+"/hidden?token=hidden")
		if err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error()+out, "hidden") {
			t.Errorf("%s: got the error %v, want %q in it", row.name, err, row.want)
		}
		out, err = runSend(t, "--to", row.to+"/hidden?token=hidden", "--repeat", "3")
		if err == nil || !strings.Contains(err.Error(), "3 of 3 requests") || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got the error %v", row.name, err)
		}
		wantLines(t, out, "no complete answer 3 0")
	}
	if len(reached) > 0 {
		t.Error("a callback was sent to a server whose certificate is not trusted")
	}

}

// What is printed of an answer: the status line, the headers that matter, the
// body up to a limit. A redirect is shown and not followed.
func TestSendAnswer(t *testing.T) {
	elsewhere := sitetest.StartApp(t, nil)
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Other", "other")
		if r.URL.Path == "/long" {
			w.Write(bytes.Repeat([]byte("x"), 100_000))
			return
		}
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Location", elsewhere.URL)
		w.WriteHeader(http.StatusTemporaryRedirect)
		w.Write([]byte("<b>moved</b>\nfar"))
	})
	out := mustSend(t, "--to", app.URL, "--ref-id", "one")
	want := "ref_id \"one\"\n\nHTTP/1.1 307 Temporary Redirect\nContent-Type: text/html\nLocation: " + elsewhere.URL + "\n\n<b>moved</b>\nfar\n\nA redirect, which IAK may not follow: give IAK the url that it leads to.\n"
	if out != want {
		t.Errorf("printed\n%s\nwant\n%s", out, want)
	}
	if len(elsewhere.Received()) > 0 {
		t.Error("the redirect was followed")
	}
	out = mustSend(t, "--to", app.URL+"/long")
	wantLines(t, out, "(only the first 64 KiB are shown)")
	if n := strings.Count(out, "x"); n < 65536 || n > 65600 {
		t.Errorf("%d characters are printed", n)
	}
}

// The command of a built Caddy: its exit codes, and a help that names every
// flag and no secret of the environment.
func TestSendBuilt(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	p := sitetest.StartProcess(t, t.TempDir(), "iak_callback {\n"+sitetest.Account+"\n}\nreverse_proxy "+app.Addr())
	run := func(args ...string) (stdout, stderr string, code int) {
		cmd := exec.Command(sitetest.BuiltCaddy(t), append([]string{"iak-callback"}, args...)...)
		cmd.Env = append(os.Environ(), "IAK_USERNAME="+sitetest.Username, "IAK_API_KEY="+sitetest.APIKey)
		var out, errOut strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errOut
		_ = cmd.Run()
		if all := out.String() + errOut.String(); strings.Contains(all, sitetest.APIKey) {
			t.Errorf("%q prints the api key:\n%s", args, all)
		}
		return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
	}

	if out, _, code := run("send", "--to", p.URL); code != 0 || !strings.Contains(out, "HTTP/1.1 200 OK") {
		t.Errorf("a callback: exit code %d\n%s", code, out)
	}
	if out, _, code := run("send", "--to", p.URL, "--forge"); code != 0 || !strings.Contains(out, "HTTP/1.1 403 Forbidden") {
		t.Errorf("a forged callback: exit code %d\n%s", code, out)
	}
	if _, text, code := run("send", "--to", "http://127.0.0.1:"+sitetest.FreePort(t)); code != 1 || strings.Count(text, "\n") != 1 {
		t.Errorf("nobody listens: exit code %d\n%s", code, text)
	}
	if _, text, code := run("sned"); code != 1 || !strings.Contains(text, `"sned"`) {
		t.Errorf("a mistyped command: exit code %d\n%s", code, text)
	}
	if out, _, code := run(); code != 0 || !strings.Contains(out, "  send ") {
		t.Errorf("no command: exit code %d\n%s", code, out)
	}
	out, _, code := run("send", "--help")
	if code != 0 || strings.Contains(out, sitetest.Username) {
		t.Errorf("help: exit code %d\n%s", code, out)
	}
	for _, flag := range []string{"to", "sample", "format", "version", "username", "api-key", "ref-id", "set", "repeat", "parallel", "forge", "dry-run"} {
		if !strings.Contains(out, "\n      --"+flag+" ") {
			t.Errorf("the help does not document --%s", flag)
		}
	}
}

// send says what an answer means, by what Caddy knows of it; --expect and a forgery that
// gets through decide about the exit code; what stands for something else is resolved.
func TestSendMeans(t *testing.T) {
	app := startMoody(t)
	s := sitetest.StartOperated(t, "respond 404")
	s.Reload(sitetest.Block("callback_url "+s.URL+"/iak/callback") + "reverse_proxy " + app.Addr())
	t.Setenv("IAK_USERNAME", sitetest.Username)
	t.Setenv("IAK_API_KEY", sitetest.APIKey)
	t.Setenv("TEST_KEY", sitetest.APIKey)
	t.Setenv("TEST_REF", "resolved")
	says := func(words string, fails string, args ...string) {
		t.Helper()
		out, err := s.Command(append([]string{"send"}, args...)...)
		if !strings.Contains(out, words) || (err == nil) != (fails == "") || err != nil && !strings.Contains(err.Error(), fails) {
			t.Errorf("%q: %v, it prints %q, want %q and an error with %q", args, err, out, words, fails)
		}
	}
	says("The app has accepted it.", "", "--ref-id", "means1")
	says("the app did not see it", "", "--ref-id", "means1")
	says("the app has accepted", "", "--ref-id", "means1", "--sample", "failed", "--expect", "409")
	says("Refused: no account signs so", "", "--api-key", "another")
	says("Right: the forgery was refused", "", "--forge")
	says("Right: the forgery was refused", "another status than 200", "--forge", "--expect", "200")
	says("has not seen the callback", "", "--to", app.URL)
	out, err := s.Command("send", "--ref-id", "means3", "--repeat", "6", "--parallel", "3")
	first, repeats, found := strings.Cut(out, "\n\nThe app has accepted it.") // whichever came first
	if repeated := first + repeats; err != nil || !found || strings.Count(repeated, "the app did not see it") > 1 || strings.Contains(repeated, "The app has accepted it") {
		t.Errorf("%v, it prints %q", err, out)
	}
	says(`ref_id "resolved"`, "", "--ref-id", "{env.TEST_REF}", "--api-key", "{env.TEST_KEY}")
	says("", "resolves to nothing", "--api-key", "{env.TEST_NOTHING}")
	says("", "--ref-id is empty", "--ref-id", "")
	says("The app has accepted it.", "", s.URL+"/iak/callback")
	app.status.Store(500)
	says("The app has not accepted it.", "", "--ref-id", "means2")
	app.status.Store(0)
	says("The app took a forgery", "the app took a forgery", "--forge", "--to", app.URL)
	s.Reload(sitetest.Block("spool") + "reverse_proxy 127.0.0.1:" + sitetest.FreePort(t))
	says("It is kept, and delivered to the app by itself", "", "--to", s.URL+"/iak/callback")
	says("", "--to is missing", "--sample", "game")
}

// list prints what has changed last, the newest first, and how many more there are; the
// admin API's address may be a url, and what is none is told as such.
func TestListAndAddress(t *testing.T) {
	app := sitetest.StartApp(t, nil)
	s := sitetest.StartOperated(t, sitetest.Block()+"reverse_proxy "+app.Addr())
	for i := range 5 {
		s.Post(sitetest.Order(fmt.Sprint("listed", i), "1"))
		if i == 2 || i == 3 { // a record keeps its last change in seconds
			time.Sleep(1100 * time.Millisecond)
		}
	}
	out := s.Must("list", "--limit", "2")
	first, second := strings.Index(out, "listed4"), strings.Index(out, "listed3")
	if first < 0 || second < first || strings.Contains(out, "listed2") || !strings.Contains(out, "3 more: --limit 0 for all") {
		t.Errorf("it prints %q", out)
	}
	if out = s.Must("list", "--limit", "0"); strings.Count(out, "listed") != 5 || strings.Contains(out, "more:") {
		t.Errorf("it prints %q", out)
	}
	s.Refuses("--limit is negative", "list", "--limit", "-1")
	for _, address := range []string{"http://" + s.Admin, "http://" + s.Admin + "/"} {
		if out, err := sitetest.Run("list", "--address", address); err != nil || strings.Count(out, "listed") != 5 {
			t.Errorf("%s: %v, %q", address, err, out)
		}
	}
	if _, err := sitetest.Run("list", "--address", "https://"+s.Admin); err == nil || !strings.Contains(err.Error(), "over http") {
		t.Errorf("%v", err)
	}
	page := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/iak_callback/records" {
			w.WriteHeader(http.StatusNotFound)
		}
		w.Write([]byte("<html>5ecret</html>"))
	})
	for _, args := range [][]string{{"list"}, {"show", "test", "order"}} {
		if _, err := sitetest.Run(append(args, "--address", page.Addr())...); err == nil || !strings.Contains(err.Error(), "is not the admin API of a Caddy with iak_callback") || strings.Contains(err.Error(), "5ecret") {
			t.Errorf("%q: %v", args, err)
		}
	}
	s.Refuses("there are test", "list", "--account", "nobody")
	s.Refuses("tail --ref-id shows what came lately", "show", "test", "nothing")
}
