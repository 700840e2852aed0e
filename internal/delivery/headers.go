package delivery

import (
	"net/http"
	"strings"
)

// The headers of what the app receives.
const (
	IdempotencyKey     = "Idempotency-Key"
	HeaderAccount      = "Iak-Account"
	HeaderAttempt      = "Iak-Attempt"
	HeaderConflict     = "Iak-Conflict"
	HeaderDeduplicated = "Iak-Deduplicated"
	HeaderConfirmed    = "Iak-Confirmed"
	HeaderSource       = "Iak-Source"
)

// Header is one header of the request that the app receives, its name in
// canonical form.
type Header struct{ Name, Value string }

// staleHeaders speak of the body as it came, or of how it was sent.
var staleHeaders = map[string]bool{
	"Content-Encoding": true, "Transfer-Encoding": true, "Trailer": true, "Expect": true, "Upgrade": true,
	"Connection":  true, // reverse_proxy drops every header that it names, ours too
	"Incremental": true, // keeps reverse_proxy from buffering, which FastCGI needs
	"Content-Md5": true, "Digest": true, "Content-Digest": true, "Repr-Digest": true, "Content-Range": true,
	"Signature": true, "Signature-Input": true, // RFC 9421, may cover the digest
}

// plainName is a header's name in canonical form, with hyphens. FastCGI and WSGI
// turn hyphens into underscores, so an alias that Caddy was told to let pass
// (expected_underscore_headers) would arrive under the name itself.
func plainName(name string) string {
	return http.CanonicalHeaderKey(hyphens.Replace(name))
}

var hyphens = strings.NewReplacer("_", "-", ".", "-")

// reserved tells whether a plain name is one that only this module may set.
func reserved(plain string) bool {
	return strings.HasPrefix(plain, "Iak-") || plain == IdempotencyKey || plain == "X-Idempotency-Key"
}
