// Package command is caddy iak-callback: it talks to a running Caddy by the admin
// API, and to a site as IAK does.
package command

import (
	"fmt"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// Command is caddy iak-callback.
func Command() caddycmd.Command {
	return caddycmd.Command{
		Name:  "iak-callback",
		Usage: "<command>",
		Short: "Tools for the callbacks of IAK, a seller of prepaid products",
		Long: `
Tools for a merchant who receives IAK's callbacks through the iak_callback
handler. Each command has a help page of its own:

	$ caddy iak-callback <command> --help`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Example = `  Play IAK: send a successful order to the demo of this module, whose account is public.

  $ export IAK_USERNAME=081234567890 IAK_API_KEY=demo-api-key
  $ caddy iak-callback send --to http://localhost:8080/iak/callback`
			cmd.DisableFlagsInUseLine = true
			// Without this a mistyped command would print the help and count as a success.
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return fmt.Errorf("%s has no command %q: see %[1]s --help", cmd.CommandPath(), args[0])
				}
				return cmd.Help()
			}
			cmd.AddCommand(subcommands()...)
		},
	}
}

// subcommands are all commands below caddy iak-callback.
func subcommands() []*cobra.Command {
	return append([]*cobra.Command{sendCommand(), checkCommand(), tailCommand(), consoleCommand(), askCommand(), standInCommand(), versionCommand()}, recordCommands()...)
}
