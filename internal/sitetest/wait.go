package sitetest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/redistest"
)

// FreePort returns a port that nobody listened on a moment ago.
func FreePort(t testing.TB) string {
	t.Helper()
	return redistest.FreePort(t)
}

// Eventually waits for an event that has no other signal, and fails the test
// when it does not come.
func Eventually(t testing.TB, what string, happened func() bool) {
	t.Helper()
	redistest.Eventually(t, what, happened)
}

// Listeners counts the sockets that listen on a port of IPv4, where the system
// tells (Linux, proc(5)).
func Listeners(port string) (n int) {
	table, _ := os.ReadFile("/proc/net/tcp")
	number, _ := strconv.Atoi(port)
	for line := range strings.Lines(string(table)) {
		const listen = "0A"
		if field := strings.Fields(line); strings.HasSuffix(field[1], fmt.Sprintf(":%04X", number)) && field[3] == listen {
			n++
		}
	}
	return n
}
