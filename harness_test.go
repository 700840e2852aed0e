package iakcallback

import (
	"os"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// What the tests of single parts take from the tests of the whole.
const (
	testUsername = sitetest.Username
	testAPIKey   = sitetest.APIKey
)

var (
	eventually = sitetest.Eventually
	flipFirst  = sitetest.FlipFirst
	flipLast   = sitetest.FlipLast
	freePort   = sitetest.FreePort
	order      = sitetest.Order
	quote      = sitetest.Quote
	reference  = sitetest.Reference
	sign       = sitetest.Sign
	signedBy   = sitetest.SignedBy
)

func TestMain(m *testing.M) {
	embeddedTimeout *= 10 // a test machine's disk may be busy
	os.Exit(m.Run())
}
