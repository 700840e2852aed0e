package iakcallback

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// The whole handler, with the embedded store: whatever comes, the answer is one
// of the documented, and the app gets what is signed, and nothing else.
func FuzzHandler(f *testing.F) {
	names, err := filepath.Glob("testdata/reference/*.v[12].*")
	if err != nil || len(names) == 0 {
		f.Fatal("no reference inputs", err)
	}
	for _, name := range names {
		body := reference(f, filepath.Base(name))
		f.Add("application/json", []byte(body))
		f.Add("", []byte(body))
	}
	f.Add("text/xml; charset=utf-8", []byte("<mp/>"))
	f.Setenv("XDG_DATA_HOME", f.TempDir())
	h := &Handler{Accounts: []Account{{Name: "test", Username: testUsername, APIKey: testAPIKey}}}
	provision(f, h)
	documented := map[int]bool{200: true, 400: true, 403: true, 409: true, 413: true, 415: true, 422: true}
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		// A right signature, wherever one can be: no fuzzer finds md5 by itself.
		if c, err := iak.Decode(body); err == nil && c.CheckRefID() == nil {
			if given := c.Sign(); len(given) == 32 {
				body = []byte(strings.ReplaceAll(string(body), given, sign(c.RefID)))
			}
		}
		var app []byte
		next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			app = make([]byte, r.ContentLength)
			if n, _ := r.Body.Read(app); n != len(app) {
				t.Errorf("the body has %d bytes, its length says %d", n, len(app))
			}
			w.WriteHeader(http.StatusOK)
			return nil
		})
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(body)))
		r.Header.Set("Content-Type", contentType)
		w := httptest.NewRecorder()
		r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, nil)
		status := 0
		if err := h.ServeHTTP(w, r, next); err == nil {
			status = w.Code
		} else if handlerErr, ok := err.(caddyhttp.HandlerError); ok { //nolint:errorlint // it must be this type itself
			status = handlerErr.StatusCode
		}
		if !documented[status] {
			t.Fatalf("status %d for %q", status, body)
		}
		if app == nil {
			return
		}
		c, err := iak.Decode(app)
		if err != nil || c.CheckRefID() != nil {
			t.Fatalf("the app received %q", app)
		}
		if got := c.Sign(); got != sign(c.RefID) {
			t.Fatalf("the app received %q, which is signed %q", app, got)
		}
	})
}
