package iak

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"golang.org/x/time/rate"
)

const (
	// DefaultBase is IAK's production; the sandbox is https://prepaid.iak.dev.
	DefaultBase = "https://prepaid.iak.id"

	checkPath = "/api/check-status"
	maxAnswer = 64 << 10
)

// Client asks IAK's check-status, so often in a second and so many at once at most.
type Client struct {
	timeout time.Duration
	turns   *rate.Limiter
	places  chan struct{}
	http    *http.Client
}

// NewClient returns a client that asks perSecond questions a second and as many at once.
// Each has an answer within timeout, the wait for its turn included.
func NewClient(perSecond int, timeout time.Duration) *Client {
	return &Client{
		timeout: timeout,
		turns:   rate.NewLimiter(rate.Limit(perSecond), perSecond),
		places:  make(chan struct{}, perSecond),
		http: &http.Client{
			Transport: &http.Transport{
				Proxy:                  http.ProxyFromEnvironment, // HTTPS_PROXY; never for a loopback address
				DialContext:            (&net.Dialer{Timeout: timeout}).DialContext,
				TLSHandshakeTimeout:    timeout,
				ForceAttemptHTTP2:      true,
				DisableCompression:     true, // what unpacks to more than it is could not be bounded
				MaxConnsPerHost:        perSecond,
				MaxIdleConnsPerHost:    perSecond,
				IdleConnTimeout:        90 * time.Second,
				MaxResponseHeaderBytes: maxAnswer,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Close lets go of connections that nothing is asked on. A question under way goes on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// CheckBase tells whether IAK can be asked at an address, and returns it without a slash
// at its end: https, or http to a loopback address, where there is only TLS to trust.
func CheckBase(base string) (string, error) {
	u, err := url.Parse(base)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		return "", errors.New("is no address such as " + DefaultBase)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return "", errors.New("has more than an address: write it as " + DefaultBase)
	case u.Scheme == "https", u.Scheme == "http" && loopback(u.Hostname()):
		return strings.TrimRight(base, "/"), nil
	case u.Scheme == "http":
		return "", errors.New("is not https: only TLS proves that it is IAK who answers (http is for a loopback address)")
	default:
		return "", errors.New("is not https")
	}
}

func loopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}

var (
	errTurn    = errors.New("no turn within confirm's timeout: more questions wait than rate lets through")
	errTimeout = errors.New("IAK did not answer within confirm's timeout")
)

// Ask asks for an order, signed with the secret of a username. It never fails: what
// cannot be asked, or is not answered in a way that counts, is an answer that says so.
func (c *Client) Ask(ctx context.Context, base, username string, secret Secret, refID string) *Answer {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	select {
	case c.places <- struct{}{}:
		defer func() { <-c.places }()
	case <-ctx.Done():
		return &Answer{Standing: StandingSilent, Why: errTurn}
	}
	if err := c.turns.Wait(ctx); err != nil { // at once, if it could not be in time
		return &Answer{Standing: StandingSilent, Why: errTurn}
	}
	body, err := json.Marshal(map[string]string{"username": username, "ref_id": refID, "sign": secret.Sign(refID).String()})
	if err != nil {
		return &Answer{Standing: StandingSilent, Why: err}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+checkPath, bytes.NewReader(body))
	if err != nil {
		return silent(0, "the base is no address")
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	answer, err := c.http.Do(r)
	if err != nil {
		return &Answer{Standing: StandingSilent, Why: why(ctx, err)}
	}
	defer answer.Body.Close()
	if answer.Header.Get("Content-Encoding") != "" {
		return silent(answer.StatusCode, "IAK's answer is encoded, which was not asked for")
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return &Answer{Standing: StandingSilent, HTTP: answer.StatusCode, Why: why(ctx, err)}
	case len(text) > maxAnswer:
		return silent(answer.StatusCode, fmt.Sprintf("IAK's answer is longer than %d KiB", maxAnswer>>10))
	}
	return understand(answer.StatusCode, text, refID)
}

// why tells what went wrong without what a server has sent: its text could be anything.
func why(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errTimeout
	}
	if inner := new(url.Error); errors.As(err, &inner) {
		err = inner.Err // its text has the address
	}
	if dial := new(net.OpError); errors.As(err, &dial) {
		return fmt.Errorf("IAK cannot be reached: %w", dial)
	}
	switch text := err.Error(); {
	case strings.HasPrefix(text, "tls: ") || strings.Contains(text, "x509: "):
		return fmt.Errorf("IAK cannot be reached safely: %w", err)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("IAK's answer was cut off")
	default:
		return errors.New("IAK's answer is no HTTP, or was cut off")
	}
}
