package command

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Prints the version of iak_callback, Caddy and Go",
		Long:    "Prints the version of iak_callback, of the Caddy that it is built into, and of Go, in one line.",
		Example: "  caddy iak-callback version",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, _ := debug.ReadBuildInfo()
			_, of := caddy.Version()
			fmt.Fprintf(cmd.OutOrStdout(), "iak_callback %s, Caddy %s, %s %s/%s\n", moduleVersion(info), of, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

const modulePath = "github.com/caddy-iak/iakcallback"

// moduleVersion is that of this module, whether it is what was built or a part of it, as
// xcaddy builds it.
func moduleVersion(info *debug.BuildInfo) string {
	if info == nil {
		return "unknown"
	}
	if info.Main.Path == modulePath && info.Main.Version != "" {
		return info.Main.Version
	}
	for _, d := range info.Deps {
		if d.Path == modulePath {
			return d.Version
		}
	}
	return "unknown"
}
