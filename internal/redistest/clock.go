//go:build unix

package redistest

import (
	_ "embed"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

//go:embed testdata/clock.c
var clockSource []byte

// Clocked is a server whose wall clock can be set.
type Clocked struct {
	*Server
	clock *os.File // which the server has mapped: seconds ahead
}

// StartClocked starts a server whose wall clock can be set. It needs the C compiler
// that the race detector needs too, and Linux: elsewhere it skips the test.
func StartClocked(t testing.TB, args ...string) *Clocked {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("a server's clock is replaced on Linux only")
	}
	dir := t.TempDir()
	source, library, path := filepath.Join(dir, "clock.c"), filepath.Join(dir, "clock.so"), filepath.Join(dir, "clock")
	if err := os.WriteFile(source, clockSource, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-O", "-o", library, source).CombinedOutput(); err != nil { // #nosec G204 -- of tests
		t.Fatalf("the clock cannot be built: %v\n%s", err, out)
	}
	clock, err := os.Create(path) // #nosec G304 -- of tests
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = clock.Close() })
	c := &Clocked{clock: clock}
	c.Set(t, 0)
	c.Server = start(t, []string{"LD_PRELOAD=" + library, "CLOCK_FILE=" + path}, args)
	return c
}

// Set sets the server's clock to so many seconds ahead of the true time.
func (c *Clocked) Set(t testing.TB, ahead time.Duration) {
	t.Helper()
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], uint64(ahead/time.Second)) //nolint:gosec // its bits
	if _, err := c.clock.WriteAt(b[:], 0); err != nil {
		t.Fatal(err)
	}
}
