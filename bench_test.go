package iakcallback

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddy-iak/iakcallback/internal/record"
	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// acceptedCallback decodes a callback that passes every check.
func acceptedCallback(b *testing.B, body []byte) *iak.Callback {
	b.Helper()
	c, err := iak.Decode(body)
	if err == nil {
		err = c.CheckRefID()
	}
	if err == nil {
		err = c.CheckFields(false)
	}
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func BenchmarkDecode(b *testing.B) {
	for _, name := range []string{"game.v1.json", "game.v1.xml"} {
		body := []byte(reference(b, name))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				acceptedCallback(b, body)
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, n := range []int{1, 4} {
		b.Run(fmt.Sprintf("accounts=%d", n), func(b *testing.B) {
			var all accounts
			for i := range n - 1 {
				if err := all.add(fmt.Sprint("other", i), testUsername, fmt.Sprint("other-key-", i)); err != nil {
					b.Fatal(err)
				}
			}
			if err := all.add("test", testUsername, testAPIKey); err != nil {
				b.Fatal(err)
			}
			given := sign("order001")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := all.verify("order001", given); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkFingerprint(b *testing.B) {
	c := acceptedCallback(b, []byte(reference(b, "game.v1.json")))
	b.ReportAllocs()
	for b.Loop() {
		c.Outcome("test")
	}
}

func BenchmarkNormalize(b *testing.B) {
	c := acceptedCallback(b, []byte(reference(b, "game.v1.json")))
	for name, appendTo := range map[string]func([]byte) []byte{"iak": c.AppendIAK, "flat": c.AppendFlat} {
		b.Run(name, func(b *testing.B) {
			buffer := make([]byte, 0, 1024)
			b.ReportAllocs()
			for b.Loop() {
				buffer = appendTo(buffer[:0])
			}
		})
	}
}

// BenchmarkStore claims and settles a new record each time, alone and from many
// goroutines.
func BenchmarkStore(b *testing.B) {
	for _, kind := range []string{"redis", "embedded"} {
		b.Run(kind, func(b *testing.B) {
			b.Setenv("XDG_DATA_HOME", b.TempDir())
			use, err := (*Embedded)(nil).use()
			if kind == "redis" {
				use, err = (&Redis{URLs: []string{redistest.Start(b).URL()}, Timeout: caddy.Duration(defaultRedisTimeout)}).use()
			}
			if err != nil {
				b.Fatal(err)
			}
			s, err := use.Open()
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { use.Close() })
			var n atomic.Int64
			run := func(b *testing.B) {
				q := &record.Request{Outcome: record.Outcome{Status: record.Success}, Lease: time.Hour}
				_, _ = rand.Read(q.Owner[:])
				lease, _, err := s.Claim(store.Place{Key: fmt.Sprintf("iak:bench:order%d", n.Add(1)), Index: defaultKeyPrefix, Retention: 48 * time.Hour}, q)
				if err != nil {
					b.Error(err)
					return
				}
				lease.Settle(record.Accepted, http.StatusOK)
			}
			b.Run("one", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					run(b)
				}
			})
			b.Run("many", func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(32)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						run(b)
					}
				})
			})
		})
	}
}

// provision provisions a handler in a Caddy without servers and logs.
func provision(t testing.TB, h *Handler) {
	t.Helper()
	quiet := `{"admin":{"disabled":true,"config":{"persist":false}},"logging":{"logs":{"default":{"writer":{"output":"discard"}}}}}`
	if err := caddy.Load([]byte(quiet), true); err != nil {
		t.Fatal(err)
	}
	if err := h.Provision(caddy.ActiveContext()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = h.Cleanup()
		_ = caddy.Stop()
	})
}

// BenchmarkHandler runs the whole handler with nothing but a stand-in for the
// app behind it: what is refused before the signature, at the largest size
// that is read, a duplicate, and a new callback.
func BenchmarkHandler(b *testing.B) {
	h := &Handler{
		Accounts: []Account{{Name: "test", Username: testUsername, APIKey: testAPIKey}},
		Redis:    &Redis{URLs: []string{redistest.Start(b).URL()}},
	}
	provision(b, h)
	app := caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		w.WriteHeader(http.StatusOK)
		return nil
	})
	serve := func(b *testing.B, body string, want int) {
		b.Helper()
		r := httptest.NewRequest(http.MethodPost, "/callback", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, nil)
		status := 0
		if err := h.ServeHTTP(w, r, app); err == nil {
			status = w.Code
		} else if handlerErr, ok := err.(caddyhttp.HandlerError); ok { //nolint:errorlint // it is this type itself
			status = handlerErr.StatusCode
		}
		if status != want {
			b.Fatalf("status %d, want %d", status, want)
		}
	}
	wrong := quote(strings.Repeat("0", 32))
	large := order("order", "1", "sign", wrong, "note", quote(strings.Repeat("x", 64<<10-400)))
	b.Run("forged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			serve(b, order("order", "1", "sign", wrong), http.StatusForbidden)
		}
	})
	b.Run("forged, 64 KiB", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			serve(b, large, http.StatusForbidden)
		}
	})
	b.Run("duplicate", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			serve(b, order("order", "1"), http.StatusOK)
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		start := time.Now().UnixNano()
		for n := 0; b.Loop(); n++ {
			serve(b, order(fmt.Sprintf("order-%d-%d", start, n), "1"), http.StatusOK)
		}
	})
}
