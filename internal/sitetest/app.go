package sitetest

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// Delivered is one request as an app received it.
type Delivered struct {
	Method, Path, Body string
	Header             http.Header
	ContentLength      int64
	TransferEncoding   []string
	Trailer            http.Header
}

// App is a merchant's app: a real HTTP server that notes what it receives and
// answers by its handler.
type App struct {
	*httptest.Server
	mu       sync.Mutex
	requests []Delivered
}

// StartApp starts an app. A nil handler answers 200 to everything.
func StartApp(t testing.TB, handler http.HandlerFunc) *App {
	t.Helper()
	return startApp(t, nil, handler)
}

func startApp(t testing.TB, listener net.Listener, handler http.HandlerFunc) *App {
	t.Helper()
	a := new(App)
	a.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		a.mu.Lock()
		a.requests = append(a.requests, Delivered{
			r.Method, r.URL.RequestURI(), string(body), r.Header.Clone(), r.ContentLength, r.TransferEncoding, r.Trailer.Clone(),
		})
		a.mu.Unlock()
		if handler != nil {
			handler(w, r)
		}
	}))
	if listener != nil {
		_ = a.Listener.Close()
		a.Listener = listener
	}
	a.Start()
	t.Cleanup(func() {
		a.CloseClientConnections()
		a.Close()
	})
	return a
}

// Addr is host and port.
func (a *App) Addr() string { return strings.TrimPrefix(a.URL, "http://") }

// Received returns all requests so far.
func (a *App) Received() []Delivered {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Delivered(nil), a.requests...)
}

// Last returns the latest request.
func (a *App) Last(t testing.TB) Delivered {
	t.Helper()
	all := a.Received()
	if len(all) == 0 {
		t.Fatal("the app has received nothing")
	}
	return all[len(all)-1]
}

// StartAppAt starts an app on an address that was free a moment ago.
func StartAppAt(t testing.TB, addr string, handler http.HandlerFunc) *App {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return startApp(t, listener, handler)
}
