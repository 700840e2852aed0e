package integration

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/delivery"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// misbehaviour is an app that does something odd with its first delivery, and
// what has to come of it. It accepts every later delivery.
type misbehaviour struct {
	name   string
	app    func(*call) // what an app on a bare TCP port does
	php    string      // what PHP does
	answer int         // the status of the app's answer, 0 if it gives no whole one

	status  int    // what IAK gets, 0 if its answer breaks off
	outcome string // in the log
	state   string // of the record afterwards

	halfway    bool   // it calls call.half in the middle of its answer
	slow       bool   // it meets the timeout
	closes     bool   // it takes no notice of the request
	unread     bool   // it does not read the request's body
	spoils     bool   // Caddy cannot use its connection again
	path       string // /patient: php_fastcgi has no read_timeout; /limited: max_response_header
	header     string // a header that IAK gets
	headerText string // and its value
}

// The states of a record, as IAK sees them.
const (
	accepted2xx = "accepted" // a repeat is answered from the record
	releasedNow = "released" // a repeat reaches the app at once
	inDoubt     = "in doubt" // a repeat gets 409 until the lease is over, and then reaches the app
)

// noSuccess is whatever IAK gets that is no 2xx.
const noSuccess = -1

// What IAK does with its first request.
const (
	stays           = "caller stays"
	hangsUp         = "caller hangs up while the app works"
	hangsUpInAnswer = "caller hangs up in the middle of the answer"
)

// Long enough for a loaded machine: an app that answers must not meet the
// timeout, and a repeat that follows the answer must meet the lease.
const (
	appTimeout = 5 * time.Second
	appMargin  = 4 * time.Second
	appLease   = appTimeout + appMargin
)

// course is what becomes of one callback to a misbehaving app.
type course struct {
	*misbehaviour
	refID, caller string
	tally         *sitetest.Tally

	reached chan struct{} // the app is where the caller hangs up
	goOn    chan struct{} // closed when the app may go on
	gone    chan struct{} // closed when Caddy has seen that the caller hung up
	over    chan struct{} // closed when the module is done with the first request
	spoilt  chan struct{} // closed when Caddy has closed a spoilt connection

	// What was seen.
	err      error
	first    seen
	repeat   seen          // right after the first request
	takeover seen          // the first answer that is no 409
	after    time.Duration // when takeover was sent
}

// seen is an answer that IAK got.
type seen struct {
	status   int // 0 if it broke off
	header   http.Header
	replayed bool
}

// courses are the courses under way, by ref_id.
var courses sync.Map

// happens waits for an event of a course. Where the timeout may come first, the
// module's being done will do.
func (c *course) happens(what string, event <-chan struct{}) {
	var over chan struct{}
	if c.slow {
		over = c.over
	}
	select {
	case <-event:
	case <-over:
	case <-time.After(20 * time.Second):
		if c.err == nil {
			c.err = fmt.Errorf("did not happen: %s", what)
		}
	}
}

// note counts a delivery that the app has read.
func (c *course) note(key, attempt string) {
	n, _ := strconv.Atoi(attempt)
	status := http.StatusOK
	if n == 1 {
		status = c.answer
	}
	c.tally.Mu.Lock()
	defer c.tally.Mu.Unlock()
	c.tally.Delivered[key] = append(c.tally.Delivered[key], sitetest.Arrival{Attempt: n, Status: status})
}

// begin is where the app has got the callback and has not answered yet.
func (c *course) begin() { c.pauseFor(hangsUp) }

// half is where the app has given half of its answer.
func (c *course) half() { c.pauseFor(hangsUpInAnswer) }

func (c *course) pauseFor(caller string) {
	if c.caller == caller {
		close(c.reached)
		<-c.goOn
	}
}

// late waits until IAK has been told that the app did not answer in time.
func (c *course) late() { time.Sleep(appTimeout + delivery.ReturnGrace + 300*time.Millisecond) }

// send makes one request, and counts it.
func (c *course) send(ctx context.Context, s *sitetest.Site, app string, first bool) seen {
	key := "test:" + c.refID + ":1"
	c.tally.Mu.Lock()
	c.tally.Sent++
	c.tally.All[key] = true
	c.tally.Mu.Unlock()

	url := s.URL + cmp.Or(c.path, "/callback") + "?row=" + strings.ReplaceAll(c.name, " ", "+")
	body := sitetest.Order(c.refID, "1")
	if c.unread { // more than fits into the buffers on the way
		body = sitetest.Order(c.refID, "1", "note", sitetest.Quote(strings.Repeat("x", 1<<20)))
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return seen{}
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-App", app)
	if first {
		r.Header.Set("X-Course", c.refID)
	}
	answer, err := sitetest.Client.Transport.RoundTrip(r) // follows no redirect
	if err != nil {
		return seen{}
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return seen{}
	}
	if answer.StatusCode/100 == 2 {
		c.tally.Mu.Lock()
		c.tally.Told[key] = true
		c.tally.Mu.Unlock()
	}
	return seen{answer.StatusCode, answer.Header, answer.Header.Get("Idempotent-Replayed") == "true"}
}

// run sends a callback to the app at an address, and then repeats it until it
// is answered with something else than 409. It starts when the app is not busy.
func (c *course) run(s *sitetest.Site, app string, busy chan bool) {
	ctx, hangUp := context.WithCancel(context.Background())
	defer hangUp()
	busy <- true
	start := time.Now()
	answered := make(chan seen, 1)
	go func() { answered <- c.send(ctx, s, app, true) }()
	if c.caller != stays {
		c.happens("the app is where the caller hangs up", c.reached)
		hangUp()
		c.happens("Caddy sees that the caller hung up", c.gone)
		close(c.goOn)
	}
	c.first = <-answered
	c.happens("the module is done with the callback", c.over)
	if c.spoils {
		c.happens("Caddy closes the connection", c.spoilt)
	}
	<-busy
	c.repeat = c.send(context.Background(), s, app, false)
	for c.takeover = c.repeat; c.takeover.status == http.StatusConflict && time.Since(start) < 30*time.Second; {
		// Seldom before the lease is over: the repeats of all courses would be a load.
		time.Sleep(max(200*time.Millisecond, time.Until(start.Add(appLease-500*time.Millisecond))))
		c.takeover = c.send(context.Background(), s, app, false)
		c.after = time.Since(start)
	}
}

// check compares what was seen with what has to be. line is the first delivery's
// in the log.
func (c *course) check(t *testing.T, line map[string]any) {
	t.Helper()
	if c.err != nil {
		t.Error(c.err)
	}
	if c.caller == stays && c.first.status != c.status && (c.status != noSuccess || c.first.status/100 == 2) {
		t.Errorf("IAK got %d, want %d", c.first.status, c.status)
	}
	if c.caller == stays && c.header != "" && c.first.header.Get(c.header) != c.headerText {
		t.Errorf("IAK got a header %s of %d bytes, want %d: %.50q", c.header,
			len(c.first.header.Get(c.header)), len(c.headerText), c.first.header.Get(c.header))
	}
	levels := map[string]string{"forwarded": "info", "app_failed": "warn", "app_unknown": "error"}
	told := c.answer != 0 && c.outcome != "app_unknown" // a late answer has a line of its own
	if line["outcome"] != c.outcome || line["level"] != levels[c.outcome] || told && line["app_status"] != float64(c.answer) {
		t.Errorf("want the outcome %s and the app's status %d in the log: %v", c.outcome, c.answer, line)
	}
	attempts := c.attempts()
	switch c.state {
	case accepted2xx:
		if !c.repeat.replayed || c.repeat.status != cmp.Or(c.answer, c.status) || !slices.Equal(attempts, []int{1}) {
			t.Errorf("not accepted: the repeat got %d, replayed %v; the app got attempts %v", c.repeat.status, c.repeat.replayed, attempts)
		}
	case releasedNow:
		if c.repeat.replayed || c.repeat.status != http.StatusOK || !slices.Equal(attempts, []int{1, 2}) {
			t.Errorf("not released: the repeat got %d, replayed %v; the app got attempts %v", c.repeat.status, c.repeat.replayed, attempts)
		}
	case inDoubt:
		want := []int{1, 2}
		if c.closes {
			want = []int{2}
		}
		if c.repeat.status != http.StatusConflict || c.takeover.status != http.StatusOK || c.takeover.replayed || !slices.Equal(attempts, want) {
			t.Errorf("not in doubt: the repeat got %d and at last %d, replayed %v; the app got attempts %v",
				c.repeat.status, c.takeover.status, c.takeover.replayed, attempts)
		}
		if c.after < appLease {
			t.Errorf("taken over after %s, before the lease was over", c.after)
		}
	}
}

// attempts are those that the app got.
func (c *course) attempts() (attempts []int) {
	c.tally.Mu.Lock()
	defer c.tally.Mu.Unlock()
	for _, a := range c.tally.Delivered["test:"+c.refID+":1"] {
		attempts = append(attempts, a.Attempt)
	}
	return attempts
}

// callerWatch stands in front of iak_callback and sees when Caddy notices that
// the caller has hung up, and when the module is done.
type callerWatch struct{}

func (callerWatch) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.watch_caller", New: func() caddy.Module { return new(callerWatch) }}
}

func (callerWatch) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if found, ok := courses.Load(r.Header.Get("X-Course")); ok {
		c := found.(*course)
		defer close(c.over)
		stop := context.AfterFunc(r.Context(), func() { close(c.gone) })
		defer stop()
	}
	return next.ServeHTTP(w, r)
}

func init() {
	caddy.RegisterModule(callerWatch{})
	httpcaddyfile.RegisterHandlerDirective("watch_caller", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		return callerWatch{}, nil
	})
}

// misbehave runs each row with a caller that stays and with one that hangs up,
// many at a time, and checks every one and the counts. start gives the address of
// the app of a course, and what keeps that app or the machine from being so busy
// that a callback meets the timeout.
func misbehave(t *testing.T, rows []misbehaviour, block string, start func(*course) (app string, busy chan bool)) {
	t.Helper()
	shortLease(t)
	store.Margin = appMargin // shortLease puts the real one back
	s := sitetest.Start(t, block)
	tally := sitetest.NewTally()
	var all []*course
	for i := range rows {
		callers := []string{stays, hangsUp}
		if rows[i].halfway {
			callers = append(callers, hangsUpInAnswer)
		}
		for j, caller := range callers {
			c := &course{
				misbehaviour: &rows[i], refID: fmt.Sprintf("row%d-%d", i, j), caller: caller, tally: tally,
				reached: make(chan struct{}), goOn: make(chan struct{}), gone: make(chan struct{}), over: make(chan struct{}), spoilt: make(chan struct{}),
			}
			courses.Store(c.refID, c)
			t.Cleanup(func() { courses.Delete(c.refID) })
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b *course) int { // the slow ones first
		switch {
		case a.slow == b.slow:
			return 0
		case a.slow:
			return -1
		default:
			return 1
		}
	})
	var wg sync.WaitGroup
	for _, c := range all {
		app, busy := start(c)
		wg.Go(func() { c.run(s, app, busy) })
	}
	wg.Wait()

	lines := make(map[any]map[string]any) // of the first deliveries
	for _, line := range s.CallbackLines() {
		if line["attempt"] == 1.0 {
			lines[line["ref_id"]] = line
		}
	}
	refused, extra, lost := 0, 0, 0
	for _, c := range all {
		t.Run(c.name+"/"+c.caller, func(t *testing.T) { c.check(t, lines[c.refID]) })
		switch {
		case c.state == releasedNow && !c.halfway:
			refused++
		case c.state != accepted2xx && !c.closes: // it broke off, in a refusal perhaps
			extra++
		case c.state == accepted2xx && c.answer == 0:
			lost++
		}
	}
	n := tally.Count(t)
	if n.Lost != lost || n.Refused != refused || n.Extra != extra {
		t.Errorf("want %d lost, %d refused and %d extra, one for each answer in doubt", lost, refused, extra)
	}
}

// call is the first delivery at an app on a bare TCP port.
type call struct {
	net.Conn
	*course
}

// write sends what is lost on nobody when the other side has gone.
func (c *call) write(text ...string) {
	for _, part := range text {
		if _, err := io.WriteString(c, part); err != nil {
			return
		}
	}
}

// never waits until the other side has given up.
func (c *call) never() { _, _ = io.Copy(io.Discard, c) }

// breakOff closes the connection in an orderly way, as the system does for a
// process that was killed.
func (c *call) breakOff() { c.Close() }

// reset tears the connection, as the system does when unread data is left.
func (c *call) reset() {
	_ = c.Conn.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// endless writes until nobody reads any more.
func (c *call) endless(piece string) {
	for {
		if _, err := io.WriteString(c, piece); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// listener starts an app of its own for each course. serve handles one connection.
func listener(t *testing.T, serve func(*call)) func(*course) (app string, busy chan bool) {
	idle, busy := make(chan bool, 1000), make(chan bool, 4)
	return func(c *course) (string, chan bool) {
		if c.slow { // costs the machine nothing
			return listen(t, c, serve), idle
		}
		return listen(t, c, serve), busy
	}
}

func listen(t *testing.T, c *course, serve func(*call)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 1; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if c.unread && n == 1 {
					_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
				}
				if c.closes && n == 1 { // at once, it may or may not have been sent anything
					if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
						_, _ = io.Copy(io.Discard, r.Body)
					}
					c.begin()
					return
				}
				serve(&call{conn, c})
			}()
		}
	}()
	return l.Addr().String()
}

// serveHTTP reads requests as they come and answers them.
func serveHTTP(c *call) {
	in := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		first := r.Header.Get("Iak-Attempt") == "1"
		if !first || !c.unread {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
		}
		c.note(r.Header.Get("Idempotency-Key"), r.Header.Get("Iak-Attempt"))
		if !first {
			c.write(rawOK)
			continue
		}
		c.begin()
		c.app(c)
		if c.unread {
			<-c.over
			return
		}
		if c.spoils {
			_, _ = io.Copy(io.Discard, in)
			close(c.spoilt)
			return
		}
	}
}

const (
	ok2          = "Content-Length: 2\r\n\r\nok"
	chunkedStart = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
)

// manyHeaders are 10,000 header lines.
func manyHeaders() string {
	var b strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&b, "X-Header-%d: %d\r\n", i, i)
	}
	return b.String()
}

// Whatever an HTTP app does instead of answering, the record says what is known
// of it, and says the same when IAK has hung up: accepted by a whole 2xx,
// released by a whole answer of another kind, and anything else is in doubt.
func TestHTTPAppMisbehaves(t *testing.T) {
	big := strings.Repeat("x", 2<<20)
	writes := func(text ...string) func(*call) { return func(c *call) { c.write(text...) } }
	breaksOffAfter := func(text string) func(*call) {
		return func(c *call) {
			c.write(text)
			c.half()
			c.breakOff()
		}
	}
	rows := []misbehaviour{
		{name: "never answers", slow: true, app: (*call).never, status: 504, outcome: "app_unknown", state: inDoubt},
		{name: "answers after the timeout", slow: true, app: func(c *call) {
			c.late()
			c.write(rawOK)
		}, status: 504, outcome: "app_unknown", state: inDoubt},
		{name: "closes the connection and takes no notice", closes: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "closes the connection with the request", app: (*call).breakOff, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "tears the connection", app: (*call).reset, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off in the status line", app: breaksOffAfter("HTTP/1.1 20"), halfway: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off in the header", app: breaksOffAfter("HTTP/1.1 200 OK\r\nContent-Le"), halfway: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off before the header's end", app: breaksOffAfter("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"), halfway: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "stops in the header", slow: true, app: func(c *call) {
			c.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n")
			c.half()
			c.never()
		}, halfway: true, status: 504, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off in the body", app: breaksOffAfter("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"), halfway: true, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off in a chunked body", app: breaksOffAfter(chunkedStart), halfway: true, outcome: "app_unknown", state: inDoubt},
		{name: "stops in the body", slow: true, app: func(c *call) {
			c.write("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
			c.half()
			c.never()
		}, halfway: true, outcome: "app_unknown", state: inDoubt},
		{name: "stops in a chunked body", slow: true, app: func(c *call) {
			c.write(chunkedStart)
			c.half()
			c.never()
		}, halfway: true, outcome: "app_unknown", state: inDoubt},
		{name: "sends a chunk that is none", app: writes(chunkedStart, "zz\r\n\r\n"), outcome: "app_unknown", state: inDoubt},
		{name: "breaks off in a refusal", app: breaksOffAfter("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 1000\r\n\r\nhalf"), halfway: true, outcome: "app_failed", state: releasedNow},
		{name: "answers until it closes", app: func(c *call) {
			c.write("HTTP/1.1 200 OK\r\n\r\nall of it")
			c.half()
			c.breakOff()
		}, halfway: true, answer: 200, status: 200, outcome: "forwarded", state: accepted2xx},
		{name: "gives a large answer", app: func(c *call) {
			c.write("HTTP/1.1 201 Created\r\nContent-Length: 8388608\r\n\r\n", big, big)
			c.half()
			c.write(big, big)
		}, halfway: true, answer: 201, status: 201, outcome: "forwarded", state: accepted2xx},
		{name: "sends 103 and then nothing", slow: true, app: func(c *call) {
			c.write("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
			c.half()
			c.never()
		}, halfway: true, status: 504, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off after a 103", app: breaksOffAfter("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), halfway: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off after a 100", app: breaksOffAfter("HTTP/1.1 100 Continue\r\n\r\n"), halfway: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "switches protocols unasked", app: writes("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n"), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "never ends its answer", slow: true, app: func(c *call) {
			c.write(chunkedStart)
			c.half()
			c.endless("4\r\nmore\r\n")
		}, halfway: true, outcome: "app_unknown", state: inDoubt},
		{name: "has a header of 2 MB", app: writes("HTTP/1.1 200 OK\r\nX-Big: ", big, "\r\n", ok2), answer: 200, status: 200, outcome: "forwarded", state: accepted2xx, header: "X-Big", headerText: big},
		{name: "has a header beyond the limit", path: "/limited", app: writes("HTTP/1.1 200 OK\r\nX-Big: ", big, "\r\n", ok2), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "has 10000 headers", app: writes("HTTP/1.1 200 OK\r\n", manyHeaders(), ok2), answer: 200, status: 200, outcome: "forwarded", state: accepted2xx, header: "X-Header-9999", headerText: "9999"},
		{name: "speaks something else", app: writes("+PONG\r\n\r\n"), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "has a status that is no number", app: writes("HTTP/1.1 2xx OK\r\n", ok2), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "has the status 099", app: writes("HTTP/1.1 099 OK\r\n", ok2), outcome: "app_unknown", state: inDoubt},
		{name: "has a header line without colon", app: writes("HTTP/1.1 200 OK\r\nno colon\r\n", ok2), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "has two lengths", app: writes("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n", ok2), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "answers twice", spoils: true, app: writes("HTTP/1.1 200 OK\r\n" + ok2 + "HTTP/1.1 500 Internal Server Error\r\n" + ok2), answer: 200, status: 200, outcome: "forwarded", state: accepted2xx},
		{name: "refuses and then accepts", spoils: true, app: writes("HTTP/1.1 500 Internal Server Error\r\n" + ok2 + "HTTP/1.1 200 OK\r\n" + ok2), answer: 500, status: 500, outcome: "app_failed", state: releasedNow},
		{name: "has a body with 204", spoils: true, app: writes("HTTP/1.1 204 No Content\r\n", ok2), answer: 204, status: 204, outcome: "forwarded", state: accepted2xx},
		{name: "has a body with 304", spoils: true, app: writes("HTTP/1.1 304 Not Modified\r\n", ok2), answer: 304, status: 304, outcome: "app_failed", state: releasedNow},
		{name: "answers without reading the body", unread: true, app: writes("HTTP/1.1 200 OK\r\nConnection: close\r\n", ok2), answer: 200, status: 200, outcome: "forwarded", state: accepted2xx},
		{name: "refuses without reading the body", unread: true, app: writes("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n", ok2), answer: 400, status: 400, outcome: "app_failed", state: releasedNow},
	}
	for _, status := range []int{301, 302, 307} {
		rows = append(rows, misbehaviour{
			name: "redirects with " + strconv.Itoa(status),
			// Whoever followed it would reach this app again.
			app: func(c *call) {
				c.write(fmt.Sprintf("HTTP/1.1 %d Redirect\r\nLocation: /elsewhere?a=b\r\n%s", status, ok2))
			},
			answer: status, status: status, outcome: "app_failed", state: releasedNow, header: "Location", headerText: "/elsewhere?a=b",
		})
	}
	options := []string{"upstream_timeout " + appTimeout.String(), "max_body_size 2MiB"}
	behind := func(limit string) string {
		return "route {\nwatch_caller\n" + sitetest.Block(options...) + "reverse_proxy {http.request.header.X-App} {\n" + limit + "\n}\n}\n"
	}
	misbehave(t, rows, "handle /limited {\n"+behind("transport http {\nmax_response_header 1MB\n}")+"}\nhandle {\n"+behind("")+"}",
		listener(t, serveHTTP))
}

// The types of FastCGI records that matter here.
const (
	fcgiEnd    = 3
	fcgiParams = 4
	fcgiStdin  = 5
	fcgiStdout = 6
	fcgiStderr = 7
)

// fcgiRecord is one record of the first request on a connection.
func fcgiRecord(kind byte, content string) string {
	b := []byte{1, kind, 0, 1, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[4:], uint16(len(content)))
	return string(b) + content
}

// stdout is an answer's text in records.
func stdout(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		n := min(len(text), 60_000)
		b.WriteString(fcgiRecord(fcgiStdout, text[:n]))
		text = text[n:]
	}
	return b.String()
}

// whole is an answer with its end.
func whole(text string) string {
	return stdout(text) + fcgiRecord(fcgiStdout, "") + fcgiRecord(fcgiEnd, "\x00\x00\x00\x00\x00\x00\x00\x00")
}

// serveFastCGI reads the one request of a connection and answers it.
func serveFastCGI(c *call) {
	in := bufio.NewReader(c)
	var params []byte
	var env map[string]string
	for {
		var head [8]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		content := make([]byte, binary.BigEndian.Uint16(head[4:]))
		if _, err := io.ReadFull(in, content); err != nil {
			return
		}
		if _, err := in.Discard(int(head[6])); err != nil {
			return
		}
		end := len(content) == 0
		if head[1] == fcgiParams {
			params = append(params, content...)
			if end {
				env = fcgiPairs(params)
			}
		}
		if end && (head[1] == fcgiStdin || head[1] == fcgiParams && c.unread && env["HTTP_IAK_ATTEMPT"] == "1") {
			break
		}
	}
	c.note(env["HTTP_IDEMPOTENCY_KEY"], env["HTTP_IAK_ATTEMPT"])
	if env["HTTP_IAK_ATTEMPT"] != "1" {
		c.write(whole("Status: 200 OK\r\n\r\n"))
		return
	}
	c.begin()
	c.app(c)
	// An orderly end: what is left unread would tear the connection.
	_ = c.Conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, in)
}

// fcgiPairs decodes names and values.
func fcgiPairs(b []byte) map[string]string {
	pairs := make(map[string]string)
	size := func() int {
		if b[0] < 128 {
			n := int(b[0])
			b = b[1:]
			return n
		}
		n := binary.BigEndian.Uint32(b) &^ (1 << 31)
		b = b[4:]
		return int(n)
	}
	for len(b) > 0 {
		name, value := size(), 0
		value = size()
		pairs[string(b[:name])] = string(b[name : name+value])
		b = b[name+value:]
	}
	return pairs
}

// fastCGIBlock puts php_fastcgi behind iak_callback: with read_timeout, as the
// README recommends, and without for the rows that are patient.
func fastCGIBlock() string {
	options := []string{"upstream_timeout " + appTimeout.String(), "max_body_size 2MiB"}
	behind := func(more string) string {
		return "route {\nwatch_caller\n" + sitetest.Block(options...) + "php_fastcgi {http.request.header.X-App} {\ntry_files index.php\n" + more + "\n}\n}\n"
	}
	return "handle /patient {\n" + behind("") + "}\nhandle {\n" + behind("read_timeout "+appTimeout.String()) + "}"
}

// A FastCGI app that misbehaves in ways of which PHP is not capable is told
// apart as an HTTP app is, and IAK's hanging up changes nothing.
func TestFastCGIAppMisbehaves(t *testing.T) {
	writes := func(text ...string) func(*call) { return func(c *call) { c.write(text...) } }
	breaksOffAfter := func(text string) func(*call) {
		return func(c *call) {
			c.write(text)
			c.half()
			c.breakOff()
		}
	}
	rows := []misbehaviour{
		{name: "closes the connection and takes no notice", closes: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "closes the connection with the request", app: (*call).breakOff, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "tears the connection", app: (*call).reset, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "ends without an answer", app: writes(whole("")), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "is overloaded", app: writes(fcgiRecord(fcgiEnd, "\x00\x00\x00\x00\x02\x00\x00\x00")), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off after an error message", app: breaksOffAfter(fcgiRecord(fcgiStderr, "fatal")), halfway: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off in a record's head", app: breaksOffAfter(stdout("Status: 200 OK\r\n\r\n")[:5]), halfway: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off in the header", app: breaksOffAfter(stdout("Content-Type: text/pl")), halfway: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "breaks off in a header's name", app: breaksOffAfter(stdout("Status: 200 OK\r\nContent-Ty")), halfway: true, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "stops in the header", slow: true, app: func(c *call) {
			c.write(stdout("Status: 200 OK\r\nContent-Type: text/plain\r\n"))
			c.half()
			c.never()
		}, halfway: true, status: 504, outcome: "app_unknown", state: inDoubt},
		{name: "ends before its Content-Length", app: writes(whole("Status: 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")), outcome: "app_unknown", state: inDoubt},
		{name: "breaks off before its Content-Length", app: breaksOffAfter(stdout("Status: 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")), halfway: true, outcome: "app_unknown", state: inDoubt},
		{name: "ends in a chunked body", app: writes(whole("Status: 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")), outcome: "app_unknown", state: inDoubt},
		{name: "stops in the body", slow: true, app: func(c *call) {
			c.write(stdout("Status: 200 OK\r\n\r\nhalf"))
			c.half()
			c.never()
		}, halfway: true, outcome: "app_unknown", state: inDoubt},
		{name: "never ends its answer", slow: true, app: func(c *call) {
			c.write(stdout("Status: 200 OK\r\n\r\nhalf"))
			c.half()
			c.endless(stdout("more"))
		}, halfway: true, outcome: "app_unknown", state: inDoubt},
		{name: "sends 103 and then nothing", slow: true, app: func(c *call) {
			c.write(stdout("Status: 103 Early Hints\r\n\r\n"))
			c.half()
			c.never()
		}, halfway: true, status: noSuccess, outcome: "app_unknown", state: inDoubt},
		{name: "ends with 103", app: writes(whole("Status: 103 Early Hints\r\n\r\n")), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "switches protocols unasked", app: writes(whole("Status: 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "speaks HTTP", app: writes("HTTP/1.1 200 OK\r\n", ok2), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "has a status that is no number", app: writes(whole("Status: fine\r\n\r\nok")), status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "has the status 42", app: writes(whole("Status: 42 OK\r\n\r\nok")), outcome: "app_unknown", state: inDoubt},
		{name: "answers twice", app: writes(whole("Status: 200 OK\r\n\r\nok"), whole("Status: 500 Internal Server Error\r\n\r\nno")), answer: 200, status: 200, outcome: "forwarded", state: accepted2xx},
		{name: "refuses and then accepts", app: writes(whole("Status: 500 Internal Server Error\r\n\r\nno"), whole("Status: 200 OK\r\n\r\nok")), answer: 500, status: 500, outcome: "app_failed", state: releasedNow},
		{name: "answers without reading the body", unread: true, app: writes(whole("Status: 200 OK\r\n\r\nok")), answer: 200, status: 200, outcome: "forwarded", state: accepted2xx},
		{name: "refuses without reading the body", unread: true, app: writes(whole("Status: 400 Bad Request\r\n\r\nno")), answer: 400, status: 400, outcome: "app_failed", state: releasedNow},
	}
	misbehave(t, rows, fastCGIBlock(), listener(t, serveFastCGI))
}

// A FastCGI app that gives a body but no final status has not accepted, although
// net/http would imply 200: not with a 1xx, and not with a number that is no
// status, also when IAK has been told of the timeout before.
func TestFastCGIBodyWithoutStatus(t *testing.T) {
	rows := []misbehaviour{
		{name: "has a body with 103", app: func(c *call) { c.write(whole("Status: 103 Early Hints\r\n\r\nbody")) }, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "has a body and its length with 103", app: func(c *call) {
			c.write(whole("Status: 103 Early Hints\r\nContent-Length: 10000\r\n\r\n" + strings.Repeat("x", 10000)))
		}, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "has a body with the status 42", app: func(c *call) { c.write(whole("Status: 42 OK\r\n\r\nok")) }, outcome: "app_unknown", state: inDoubt},
		{name: "has a body with 103 after the timeout", slow: true, path: "/patient", app: func(c *call) {
			c.late()
			c.write(whole("Status: 103 Early Hints\r\n\r\nbody"))
		}, status: 504, outcome: "app_unknown", state: inDoubt},
		{name: "has the status 42 after the timeout", slow: true, path: "/patient", app: func(c *call) {
			c.late()
			c.write(whole("Status: 42 OK\r\n\r\nok"))
		}, status: 504, outcome: "app_unknown", state: inDoubt},
	}
	misbehave(t, rows, fastCGIBlock(), listener(t, serveFastCGI))
}

// What cannot be told apart: a FastCGI answer whose connection ends after its
// status, without the record that ends the answer, is a whole one to Caddy's
// FastCGI client. If it was a 2xx, the callback is taken for accepted. Should
// this test fail, Caddy has mended it, and the README can promise more.
func TestFastCGICutLooksWhole(t *testing.T) {
	var rows []misbehaviour
	for _, cut := range []struct {
		name, text string
		ends       func(*call)
	}{
		{"breaks off in the status", "Status: 200 O", (*call).breakOff},
		{"breaks off between headers", "Status: 200 OK\r\nContent-Type: text/plain\r\n", (*call).breakOff},
		// net/textproto drops the error and reads on, to what looks like an end.
		{"tears the connection between headers", "Status: 200 OK\r\nContent-Type: text/plain\r\n", (*call).reset},
		{"breaks off after the header", "Status: 200 OK\r\n\r\n", (*call).breakOff},
		{"breaks off in a body of any length", "Content-Type: text/plain\r\n\r\nhalf", (*call).breakOff},
	} {
		rows = append(rows, misbehaviour{name: cut.name, app: func(c *call) {
			c.write(stdout(cut.text))
			c.half()
			cut.ends(c)
		}, halfway: true, status: 200, outcome: "forwarded", state: accepted2xx})
	}
	misbehave(t, rows, fastCGIBlock(), listener(t, serveFastCGI))
}

// phpFront tells the test how far PHP has come, and lets only the first delivery
// misbehave.
const phpFront = `<?php
function tell($what) {
	file_get_contents('http://%s/' . $what . '?' . http_build_query(
		['key' => $_SERVER['HTTP_IDEMPOTENCY_KEY'], 'attempt' => $_SERVER['HTTP_IAK_ATTEMPT']]));
}
function send($text) {
	echo $text;
	while (ob_get_level() > 0) { ob_end_flush(); }
	flush();
}
function dies() { exec('kill -9 ' . getmypid()); }
tell('begin');
if ($_SERVER['HTTP_IAK_ATTEMPT'] !== '1') { exit; }
switch ($_GET['row']) {
`

// phpWorkers is how many callbacks a php-cgi of startPHP works on, but one for
// the repeats.
const phpWorkers = 3

// PHP that misbehaves is told apart as an HTTP app is, as far as FastCGI shows
// it, and IAK's hanging up changes nothing.
func TestPHPMisbehaves(t *testing.T) {
	big := strings.Repeat("x", 2<<20)
	rows := []misbehaviour{
		{name: "never answers", slow: true, php: `tell('never');`, status: 504, outcome: "app_unknown", state: inDoubt},
		{name: "answers after the timeout", slow: true, php: `tell('late');`, status: 504, outcome: "app_unknown", state: inDoubt},
		// Without read_timeout Caddy still listens, and a 2xx is a fact.
		{name: "accepts late", slow: true, path: "/patient", php: `tell('late');`, answer: 200, status: 504, outcome: "app_unknown", state: accepted2xx},
		{name: "refuses late", slow: true, path: "/patient", php: `tell('late'); http_response_code(500);`, answer: 500, status: 504, outcome: "app_unknown", state: releasedNow},
		{name: "dies before its answer", php: `dies();`, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "dies in its answer", php: `header('Content-Length: 1000'); send('half'); tell('half'); dies();`, halfway: true, outcome: "app_unknown", state: inDoubt},
		{name: "ends before its Content-Length", php: `header('Content-Length: 1000'); echo 'half';`, outcome: "app_unknown", state: inDoubt},
		{name: "ends in a chunked body", php: `header('Transfer-Encoding: chunked'); echo "4\r\nhalf\r\n";`, outcome: "app_unknown", state: inDoubt},
		{name: "never ends its answer", slow: true, php: `send('half'); tell('half'); for (;;) { send('more'); usleep(10000); }`, halfway: true, outcome: "app_unknown", state: inDoubt},
		{name: "ends with 103", php: `http_response_code(103);`, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "has a body with 103", php: `http_response_code(103); echo str_repeat('x', 10000);`, status: 502, outcome: "app_unknown", state: inDoubt},
		{name: "fails in the middle", php: `no_such_function();`, answer: 500, status: 500, outcome: "app_failed", state: releasedNow},
		{name: "has a header of 2 MB", php: `header('X-Big: ' . str_repeat('x', 2 << 20));`, answer: 200, status: 200, outcome: "forwarded", state: accepted2xx, header: "X-Big", headerText: big},
		{name: "has 10000 headers", php: `for ($i = 0; $i < 10000; $i++) { header("X-Header-$i: $i"); }`, answer: 200, status: 200, outcome: "forwarded", state: accepted2xx, header: "X-Header-9999", headerText: "9999"},
		{name: "has a body with 204", php: `http_response_code(204); echo 'body';`, answer: 204, status: 204, outcome: "forwarded", state: accepted2xx},
		{name: "has a body with 304", php: `http_response_code(304); echo 'body';`, answer: 304, status: 304, outcome: "app_failed", state: releasedNow},
		{name: "redirects with 301", php: `header('Location: /elsewhere?a=b', true, 301);`, answer: 301, status: 301, outcome: "app_failed", state: releasedNow, header: "Location", headerText: "/elsewhere?a=b"},
		{name: "redirects with 302", php: `header('Location: /elsewhere?a=b');`, answer: 302, status: 302, outcome: "app_failed", state: releasedNow, header: "Location", headerText: "/elsewhere?a=b"},
		{name: "redirects with 307", php: `header('Location: /elsewhere?a=b', true, 307);`, answer: 307, status: 307, outcome: "app_failed", state: releasedNow, header: "Location", headerText: "/elsewhere?a=b"},
		{name: "answers without reading the body", php: `echo 'ok';`, answer: 200, status: 200, outcome: "forwarded", state: accepted2xx},
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, attempt := r.FormValue("key"), r.FormValue("attempt")
		found, ok := courses.Load(strings.Split(key, ":")[1])
		if !ok {
			return
		}
		c := found.(*course)
		switch r.URL.Path {
		case "/begin":
			c.note(key, attempt)
			if attempt == "1" {
				c.begin()
			}
		case "/half":
			c.half()
		case "/late":
			c.late()
		case "/never":
			<-c.over
		}
	}))
	t.Cleanup(front.Close)
	script := fmt.Sprintf(phpFront, strings.TrimPrefix(front.URL, "http://"))
	for _, row := range rows {
		script += "case '" + row.name + "': " + row.php + " break;\n"
	}
	script += "}\n"
	var apps []string
	var root string
	for range 4 {
		app, dir := startPHP(t, map[string]string{"index.php": script})
		apps, root = append(apps, app), dir
	}
	var busy []chan bool
	for range apps {
		busy = append(busy, make(chan bool, phpWorkers))
	}
	next := 0
	misbehave(t, rows, "root "+root+"\n"+fastCGIBlock(), func(*course) (string, chan bool) {
		next = (next + 1) % len(apps)
		return apps[next], busy[next]
	})
}
