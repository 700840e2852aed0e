package command

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"unicode"

	"github.com/caddy-iak/iakcallback/internal/iak"
)

func passesIf(ok bool) verdict {
	if ok {
		return passes
	}
	return fails
}

// itself finds out whether the callback's url has met iak_callback.
func (c *checker) itself(target *url.URL) bool {
	const what = "the callback's url"
	a, met := c.forge(target)
	saw := fmt.Sprint(a.code)
	switch {
	case a.err != nil:
		c.add(fails, what, "no answer", (&sender{target: target}).explain(a.err).Error())
	case met:
		c.add(passes, what, saw+", refused by iak_callback", "")
		return true
	case a.code/100 == 3:
		c.add(fails, what, saw+", a redirect", doRedirect)
	case a.code/100 == 2 && !a.byCaddyAlone():
		c.add(fails, what, saw+", the app took a forgery", doForgery)
	case speaksTLS(a):
		c.add(fails, what, saw+", http to a port of https", doHTTPS)
	default:
		c.add(fails, what, saw+", and iak_callback has not seen it", doUnseen)
	}
	return false
}

// sibling is another url that many frameworks route as the callback's.
type sibling struct {
	what    string
	url     *url.URL
	control *url.URL // beside it, with a path that nobody has
}

func siblings(target *url.URL) (all []sibling) {
	nobody := path.Join(path.Dir(target.Path), newRefID())
	add := func(what string, change func(u *url.URL)) {
		s := sibling{what: what}
		for _, one := range []struct {
			to   **url.URL
			path string
		}{{&s.url, target.Path}, {&s.control, nobody}} {
			u := *target
			u.Path, u.RawPath = one.path, ""
			change(&u)
			*one.to = &u
		}
		all = append(all, s)
	}
	add("with a slash at its end", func(u *url.URL) { u.Path = strings.TrimRight(u.Path, "/") + "/" })
	add("in other case", func(u *url.URL) { u.Path = swapCase(u.Path) })
	add("behind /index.php", func(u *url.URL) { u.Path = path.Join("/index.php", u.Path) })
	if target.Scheme == "https" {
		add("by http", func(u *url.URL) { u.Scheme, u.Host = "http", u.Hostname() })
	}
	return all
}

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLower(r) {
			return unicode.ToUpper(r)
		}
		return unicode.ToLower(r)
	}, s)
}

// sibling finds out whether a sibling leads to the app past iak_callback. An app may answer
// 404 there to an order that it does not know, so what the app answers is no proof.
func (c *checker) sibling(s sibling) {
	a, met := c.forge(s.url)
	saw := fmt.Sprint(a.code)
	switch {
	case a.err != nil && s.url.Scheme == "http":
		c.add(passes, s.what, "no answer", "")
	case a.err != nil:
		c.add(fails, s.what, "no answer", (&sender{target: s.url}).explain(a.err).Error())
	case met:
		c.add(passes, s.what, saw+", refused by iak_callback", "")
	case a.code/100 == 3:
		c.add(passes, s.what, saw+", a redirect", "")
	case a.byCaddyAlone() && a.code < 500:
		c.add(passes, s.what, saw+", by Caddy itself", "")
	case a.code/100 == 2:
		c.add(fails, s.what, saw+", the app took a forgery", doSibling)
	case a.code/100 == 4 && c.asAnywhere(a, s):
		c.add(unsure, s.what, saw+", by the app, as on any other path", doLook)
	default:
		c.add(fails, s.what, saw+", by the app, which knows this path", doSibling)
	}
}

// asAnywhere tells whether the app answers the same on a path that nobody has. A page of
// HTML has something new in it each time.
func (c *checker) asAnywhere(a *siteAnswer, s sibling) bool {
	other, _ := c.forge(s.control)
	kind := func(a *siteAnswer) string {
		kind, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
		return strings.ToLower(strings.TrimSpace(kind))
	}
	body := func(a *siteAnswer, u *url.URL) []byte {
		return bytes.ReplaceAll(bytes.ReplaceAll(a.body, []byte(u.EscapedPath()), nil), []byte(u.Path), nil)
	}
	page := kind(a) == "text/html" && bytes.IndexByte(a.body, '<') >= 0 // PHP calls any text so
	return other.err == nil && other.code == a.code && kind(other) == kind(a) &&
		(page || bytes.Equal(body(other, s.control), body(a, s.url)))
}

// byCaddyAlone tells whether Caddy has answered without asking an app: what comes from one
// has Caddy's Via (v2.11.9, reverseproxy.go, finalizeResponse), and an app within Caddy
// names its Content-Type where it answers 2xx.
func (a *siteAnswer) byCaddyAlone() bool {
	if a.header.Get("Server") != "Caddy" || a.header.Get("Via") != "" {
		return false
	}
	return a.code/100 != 2 || len(a.body) == 0 && a.header.Get("Content-Type") == ""
}

// speaksTLS recognizes what Go's server answers to http on a port of https.
func speaksTLS(a *siteAnswer) bool {
	return a.code == http.StatusBadRequest && bytes.Contains(a.body, []byte("HTTP request to an HTTPS server"))
}

// ownPorts finds out whether the app can be reached past Caddy, at the ports that Caddy's
// proxies send to, under the name of the site.
func (c *checker) ownPorts(target *url.URL) {
	for _, port := range appPorts(c.cmd) {
		what := "the app's own port, " + port
		switch {
		case port == target.Port():
			continue
		case target.Hostname() == "localhost" || net.ParseIP(target.Hostname()).IsLoopback():
			c.add(untried, what, "not tried from this machine: give --to with the machine's own name or address", "")
			continue
		}
		u := *target
		u.Scheme, u.Host = "http", net.JoinHostPort(target.Hostname(), port)
		switch a, met := c.forge(&u); {
		case a.err != nil:
			c.add(passes, what, "no answer", "")
		case met:
			c.add(passes, what, fmt.Sprint(a.code)+", refused by iak_callback", "")
		default:
			c.add(fails, what, fmt.Sprint(a.code)+", it answers", doOwnPort)
		}
	}
}

// forge sends a forged callback, and asks the running Caddy whether iak_callback has
// refused it.
func (c *checker) forge(target *url.URL) (a *siteAnswer, met bool) {
	refID := "check-" + newRefID()
	fields := append(iak.Fields{{Name: "ref_id", Value: refID}}, iak.Sample("failed")...)
	fields = append(fields, iak.Field{Name: "sign", Value: iak.Signature(randomBytes(len(iak.Signature{}))).String()})
	s := &sender{target: target, contentType: "application/json", body: fields.JSON()}
	answer := s.sendOne(c.cmd.Context(), c.client)
	if answer.err != nil {
		return &answer, false
	}
	// An app repeats the ref_id perhaps, which is a new one each time.
	answer.body = bytes.ReplaceAll(answer.body, []byte(refID), nil)
	r, _ := outcomeOf(c.cmd, refID, &answer)
	return &answer, r != nil && r.Outcome == "rejected"
}

// get expects that a GET is refused: another method is an early sign that a path is not
// protected.
func (c *checker) get(target *url.URL) {
	r, err := http.NewRequestWithContext(c.cmd.Context(), http.MethodGet, target.String(), nil)
	if err != nil {
		return
	}
	answer, err := c.client.Do(r) //nolint:gosec // the url is the one that the person names
	if err != nil {
		c.add(fails, "a GET", "no answer", (&sender{target: target}).explain(err).Error())
		return
	}
	defer answer.Body.Close()
	c.add(passesIf(answer.StatusCode == http.StatusMethodNotAllowed), "a GET", fmt.Sprint(answer.StatusCode), doGet)
}
