// Package console is the page for the person on duty: a server on his own machine, which
// talks to the running Caddy by the admin API, as the commands do. The site gets no new
// surface by it.
package console

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"encoding/hex"
	"github.com/caddy-iak/iakcallback/internal/words"
	"html/template"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

//go:embed static
var static embed.FS

//go:embed pages.html
var pages string

// Admin asks the running Caddy by its admin API. The error is for a person.
type Admin func(ctx context.Context, method, path string, query url.Values) (io.ReadCloser, error)

// Send sends a test callback, and says what the answer means.
type Send func(ctx context.Context, to, sample, refID string) (said string, err error)

// Console serves the pages to one person: whoever has the one-time address first.
type Console struct {
	admin Admin
	send  Send
	pages *template.Template

	mu      sync.Mutex
	token   string // of the one-time address, empty when it was used
	session string
	counts  counted
}

// New returns a console, and the path and query of its one-time address.
func New(admin Admin, send Send) (c *Console, once string) {
	c = &Console{admin: admin, send: send, token: secret(), session: secret()}
	c.pages = template.Must(template.New("").Funcs(functions).Parse(pages))
	return c, "/login?token=" + c.token
}

func secret() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// sessionCookie is not __Host-: that needs https, which a server on one's own machine has
// not.
const sessionCookie = "iak_console"

// Handler serves what is asked for by one of the hosts, each with its port: a page
// elsewhere could have another name lead here.
func (c *Console) Handler(hosts ...string) http.Handler {
	mux := http.NewServeMux()
	files, err := fs.Sub(static, "static")
	if err != nil {
		panic(err) // it is built in
	}
	mux.Handle("GET /static/", http.StripPrefix("/static/", http.FileServerFS(files)))
	for pattern, serve := range map[string]func(*request){
		"GET /{$}": c.overview, "GET /recent": c.recent, "GET /orders": c.orders, "GET /order": c.order,
		"GET /act": c.beforeAct, "POST /act": c.act, "POST /reveal": c.reveal, "GET /bulk": c.beforeBulk, "POST /bulk": c.bulk,
		"GET /ask": c.beforeAsk, "POST /ask": c.ask, "GET /send": c.beforeSend, "POST /send": c.doSend, "GET /export": c.export,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { serve(c.request(w, r)) })
	}
	inside := http.NewCrossOriginProtection().Handler(c.known(mux))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		for _, host := range hosts {
			if strings.EqualFold(r.Host, host) {
				inside.ServeHTTP(w, r)
				return
			}
		}
		http.Error(w, "This console answers to "+strings.Join(hosts, " and ")+" alone.", http.StatusMisdirectedRequest)
	})
}

// known lets through who has the cookie, and gives it to who has the one-time address.
func (c *Console) known(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" && r.Method == http.MethodGet {
			c.login(w, r)
			return
		}
		cookie, err := r.Cookie(sessionCookie)
		if err != nil || subtle.ConstantTimeCompare([]byte(cookie.Value), []byte(c.session)) != 1 {
			http.Error(w, "Open the address that the command has printed. It works once: for another browser start the command again.", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (c *Console) login(w http.ResponseWriter, r *http.Request) {
	given := r.URL.Query().Get("token")
	c.mu.Lock()
	right := c.token != "" && subtle.ConstantTimeCompare([]byte(given), []byte(c.token)) == 1
	if right {
		c.token = ""
	}
	c.mu.Unlock()
	if !right {
		http.Error(w, "This address was used, or is not the one that the command has printed: start the command again.", http.StatusForbidden)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: c.session, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode}) //nolint:gosec // there is no https here
	// Not a redirect: after one that began elsewhere a SameSite=Strict cookie is not sent.
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Refresh", "0; url=/")
	_, _ = io.WriteString(w, `<!doctype html><title>IAK console</title><p><a href="/">IAK console</a></p>`)
}

// request is one request with what its page needs.
type request struct {
	w    http.ResponseWriter
	r    *http.Request
	lang words.Language
	c    *Console
}

const langCookie = "iak_lang"

// request finds out in which language to answer.
func (c *Console) request(w http.ResponseWriter, r *http.Request) *request {
	q := &request{w: w, r: r, c: c, lang: words.FromBrowser(r.Header.Get("Accept-Language"))}
	if cookie, err := r.Cookie(langCookie); err == nil {
		if chosen, ok := words.Lookup(cookie.Value); ok {
			q.lang = chosen
		}
	}
	if wanted, ok := words.Lookup(r.URL.Query().Get("lang")); ok {
		q.lang = wanted
		http.SetCookie(w, &http.Cookie{Name: langCookie, Value: string(wanted), Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode}) //nolint:gosec // no secret
	}
	return q
}

// page writes a page.
func (q *request) page(name string, data map[string]any) {
	if data == nil {
		data = make(map[string]any)
	}
	here := *q.r.URL
	other := here.Query()
	other.Set("lang", string(map[words.Language]words.Language{words.English: words.Indonesian, words.Indonesian: words.English}[q.lang]))
	here.RawQuery = other.Encode()
	switchTo := here.RequestURI()
	if q.r.Method != http.MethodGet { // a page that answers a form cannot be asked for again
		switchTo = "/?lang=" + other.Get("lang")
	}
	data["Page"], data["Lang"], data["Switch"], data["Now"] = name, q.lang, switchTo, time.Now()
	var b strings.Builder
	if err := q.c.pages.ExecuteTemplate(&b, name, data); err != nil {
		http.Error(q.w, "the page cannot be made: "+err.Error(), http.StatusInternalServerError)
		return
	}
	q.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(q.w, b.String()) // he may have hung up
}

// failed writes a page that says what went wrong.
func (q *request) failed(err error) {
	q.w.WriteHeader(http.StatusBadGateway)
	q.page("failed", map[string]any{"Error": err.Error()})
}

// t is a text in the page's language.
func (q *request) t(key string) string { return q.lang.Say(key) }
