package command

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// An app that does not answer in time is an error.
func TestSendTimeout(t *testing.T) {
	never := make(chan bool)
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case <-never:
		case <-time.After(20 * time.Second): // for a command that waits for ever
		}
	}))
	t.Cleanup(slow.Close)
	t.Cleanup(func() { close(never) })
	sendTimeout = 100 * time.Millisecond
	t.Cleanup(func() { sendTimeout = 60 * time.Second })
	t.Setenv(envUsername, "081234567890")
	t.Setenv(envKey, "test-api-key-1")
	cmd := sendCommand()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetOut(new(strings.Builder))
	cmd.SetArgs([]string{"--to", slow.URL})
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "within 100ms") {
		t.Errorf("an app that does not answer: got the error %v", err)
	}
}
