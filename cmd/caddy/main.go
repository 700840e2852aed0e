// Command caddy is Caddy with its standard modules and iak_callback: the
// same build that `xcaddy build --with github.com/caddy-iak/iakcallback` makes.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-iak/iakcallback"
)

func main() {
	caddycmd.Main()
}
