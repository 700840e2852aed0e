// Package sitetest runs the whole for tests: Caddy in this process or in one of
// its own, an app behind it, IAK's signed callbacks before it, an operator beside
// it, and the tally of what became of every callback.
//
// It does not import the module, whose own tests use it: a test that runs Caddy
// in its process imports the module itself. Only one Caddy can run in a process
// at a time, so tests that use it run one after another.
package sitetest

import (
	"os"
	"path/filepath"
	"testing"
)

// Main runs the tests of a package in the repository's root, so that they name
// its files as users do.
func Main(m *testing.M) int {
	if err := os.Chdir(root()); err != nil {
		panic(err)
	}
	defer func() {
		if buildOnce.path != "" {
			_ = os.RemoveAll(filepath.Dir(buildOnce.path))
		}
	}()
	return m.Run()
}

// root is the directory of go.mod, at or above the working directory.
func root() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		panic("no go.mod at or above the working directory")
	}
}
