package command

import (
	"runtime/debug"
	"testing"
)

// The version is found in each way of building.
func TestModuleVersion(t *testing.T) {
	for want, info := range map[string]*debug.BuildInfo{
		"unknown": nil,
		"v1.2.3":  {Main: debug.Module{Path: modulePath, Version: "v1.2.3"}},
		"v1.0.0":  {Main: debug.Module{Path: "caddy", Version: "(devel)"}, Deps: []*debug.Module{{Path: "other", Version: "v9"}, {Path: modulePath, Version: "v1.0.0"}}},
	} {
		if got := moduleVersion(info); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := moduleVersion(&debug.BuildInfo{}); got != "unknown" {
		t.Errorf("%s", got)
	}
}
