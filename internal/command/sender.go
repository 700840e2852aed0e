package command

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/caddy-iak/iakcallback/internal/inspect"
)

// sender sends one callback, once or more often.
type sender struct {
	target            *url.URL
	contentType, body string
	out               io.Writer
	expect            int  // the status that each answer has to have, 0 for any
	forged            bool // it is a forgery, which must not get a 2xx
	meaning           func(a *siteAnswer) string
}

// maxShown is how much of an answer's body is printed.
const maxShown = 64 << 10

// answerHeaders are the headers of an answer that tell what happened.
var answerHeaders = []string{"Server", "Content-Type", "Location", "Allow", "Retry-After", inspect.HeaderReplayed}

// siteAnswer is what came back. With an error it is not whole, or not there at all,
// and then the status code is 0.
type siteAnswer struct {
	code   int
	line   string
	header http.Header
	body   []byte
	cut    bool // the body is longer than what is shown
	err    error
}

// answerKind is what makes an answer worth printing beside others.
type answerKind struct {
	code             int
	replayed, broken bool
}

// replayed tells whether it came from the record.
func (a *siteAnswer) replayed() bool { return a.header.Get(inspect.HeaderReplayed) == "true" }

func (a *siteAnswer) kind() answerKind { return answerKind{a.code, a.replayed(), a.err != nil} }

// sendAll sends the callback and prints one answer of each kind, and for more
// than one request the table of all. Its error is for requests that got no
// complete answer.
func (s *sender) sendAll(ctx context.Context, repeat, parallel int) error {
	client := plainClient()
	answers := make(chan siteAnswer)
	var left atomic.Int64
	left.Store(int64(repeat))
	var senders sync.WaitGroup
	for range min(parallel, repeat) {
		senders.Go(func() {
			for left.Add(-1) >= 0 {
				answers <- s.sendOne(ctx, client)
			}
		})
	}
	go func() {
		senders.Wait()
		close(answers)
	}()

	count := make(map[answerKind]int)
	var failed, taken, unexpected int
	var firstErr error
	for a := range answers {
		kind := a.kind()
		if count[kind]++; count[kind] == 1 && a.code != 0 {
			a.print(s.out)
			fmt.Fprintf(s.out, "\n%s.\n", s.meaning(&a))
		}
		switch {
		case a.err != nil:
		case s.forged && a.code/100 == 2:
			taken++
		case s.expect != 0 && a.code != s.expect:
			unexpected++
		}
		if a.err != nil {
			failed++
			if firstErr == nil {
				firstErr = a.err
			}
		}
	}
	if repeat > 1 {
		printTable(s.out, count)
	}
	switch {
	case taken > 0:
		return errTaken
	case failed == 0 && unexpected > 0:
		return fmt.Errorf("%d of %d answers have another status than %d", unexpected, repeat, s.expect)
	case failed == 0:
		return nil
	case repeat == 1:
		return s.explain(firstErr)
	default:
		return fmt.Errorf("%d of %d requests got no complete answer; the first of them: %w", failed, repeat, s.explain(firstErr))
	}
}

// sendOne sends the callback once and reads the whole answer.
func (s *sender) sendOne(ctx context.Context, client *http.Client) siteAnswer {
	r, err := s.request(ctx)
	if err != nil {
		return siteAnswer{err: err}
	}
	response, err := client.Do(r) //nolint:gosec // the url is the one that the person names
	if err != nil {
		return siteAnswer{err: err}
	}
	defer response.Body.Close()
	a := siteAnswer{code: response.StatusCode, line: response.Proto + " " + response.Status, header: response.Header}
	a.body, a.err = io.ReadAll(io.LimitReader(response.Body, maxShown))
	if a.err == nil {
		var rest int64
		rest, a.err = io.Copy(io.Discard, response.Body)
		a.cut = rest > 0
	}
	return a
}

func (a *siteAnswer) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s\n", a.line)
	for _, name := range answerHeaders {
		for _, value := range a.header.Values(name) {
			fmt.Fprintf(out, "%s: %s\n", name, value)
		}
	}
	if len(a.body) > 0 {
		fmt.Fprintf(out, "\n%s\n", strings.TrimSuffix(string(a.body), "\n"))
	}
	if a.cut {
		fmt.Fprintf(out, "(only the first %d KiB are shown)\n", maxShown>>10)
	}
}

// printTable counts the answers of each status, and those of them that were
// replayed.
func printTable(out io.Writer, count map[answerKind]int) {
	type row struct{ answers, replayed int }
	rows := make(map[string]row)
	for kind, n := range count {
		name := "no complete answer" // behind the digits of the others
		if !kind.broken {
			name = strings.TrimSpace(fmt.Sprintf("%d %s", kind.code, http.StatusText(kind.code)))
		}
		r := rows[name]
		r.answers += n
		if kind.replayed && !kind.broken {
			r.replayed += n
		}
		rows[name] = r
	}
	fmt.Fprintf(out, "\n%-30s %8s %20s\n", "status", "answers", inspect.HeaderReplayed)
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		fmt.Fprintf(out, "%-30s %8d %20d\n", name, rows[name].answers, rows[name].replayed)
	}
}

// explain says what a person can do about a request without an answer. It
// names the host only: the rest of the url may hold a token.
func (s *sender) explain(err error) error {
	if inner := new(url.Error); errors.As(err, &inner) {
		err = inner.Err
	}
	var timeout interface{ Timeout() bool }
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	advice := "see whether Caddy runs there, and what its log says"
	switch {
	case errors.As(err, &dns):
		advice = "check the host name in --to"
	case errors.As(err, &certificate):
		advice = "the certificate must be one that this machine trusts; for a site with Caddy's own certificate run 'caddy trust' first, or set SSL_CERT_FILE to its root.crt"
	case errors.Is(err, http.ErrSchemeMismatch):
		advice = "write http:// in --to, or give the port of https"
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("no complete answer from %s within %s: see what Caddy's log and the app's say; the app may have got the callback", s.target.Host, sendTimeout)
	case errors.Is(err, syscall.ECONNREFUSED):
		advice = "start Caddy, or check the host and port in --to"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		advice = "the connection broke off, see what Caddy's log says; the app may have got the callback"
	}
	return fmt.Errorf("no complete answer from %s (%w): %s", s.target.Host, err, advice)
}
