package sitetest

import (
	"bytes"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// Command is the command caddy iak-callback.
func Command() *cobra.Command {
	registered := caddycmd.Commands()["iak-callback"]
	cmd := &cobra.Command{Use: registered.Name}
	registered.CobraFunc(cmd)
	return cmd
}

// Run runs caddy iak-callback with these arguments in this process, and returns
// what it prints.
func Run(args ...string) (string, error) {
	cmd := Command()
	cmd.SilenceErrors = true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}
