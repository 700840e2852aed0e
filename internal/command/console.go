package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/caddy-iak/iakcallback/internal/console"
	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/spf13/cobra"
)

func consoleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "console",
		Short: "Shows the callbacks and orders as pages, for the person on duty",
		Long: `Shows what has come, what waits and what needs a hand, as pages in a browser, and
settles it by clicking. The pages are served by this command on this machine, and talk to
the running Caddy by its admin API: the site gets no new address by it.

It prints an address that works once, in one browser. Whoever has it first can do all that
the other commands can. Ctrl-C ends it. On a server without a browser, forward its port:
ssh -L 8800:127.0.0.1:8800, and here --listen 127.0.0.1:8800.

To send test callbacks from it, set IAK_USERNAME and IAK_API_KEY as for send.`,
		Example: "  caddy iak-callback console\n  caddy iak-callback console --listen 127.0.0.1:8800",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			return runConsole(cmd)
		},
	}
	cmd.Flags().String("listen", "127.0.0.1:0", "The address to listen on, of this machine alone")
	cmd.Flags().String("address", "", "The address of Caddy's admin API")
	return cmd
}

// listen listens, or says what to do.
func listen(ctx context.Context, at string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", at)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is taken: choose another with --listen (%w)", at, err)
	}
	return listener, err
}

func runConsole(cmd *cobra.Command) error {
	at, _ := cmd.Flags().GetString("listen")
	host, _, err := net.SplitHostPort(at)
	if ip := net.ParseIP(host); err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return errors.New("--listen must be an address of this machine alone, such as 127.0.0.1:8800: the pages are not encrypted, and whoever reaches them first can do all")
	}
	if err := askForHealth(cmd, new(inspect.Health)); err != nil {
		return err
	}
	listener, err := listen(cmd.Context(), at)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, once := console.New(func(_ context.Context, method, path string, query url.Values) (io.ReadCloser, error) {
		return askAdmin(cmd, method, path, query)
	}, func(ctx context.Context, to, sample, refID string) (string, error) {
		return sendTest(ctx, cmd, to, sample, refID)
	})
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	server := &http.Server{
		Handler:           c.Handler(listener.Addr().String(), net.JoinHostPort("localhost", port)),
		ReadHeaderTimeout: 10 * time.Second,
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	fmt.Fprintf(cmd.OutOrStdout(), "Open this address; it works once. Ctrl-C ends the console.\n\n  http://%s%s\n\n", listener.Addr(), once)
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// sendTest sends one of the samples, as send does, and returns what that prints.
func sendTest(ctx context.Context, cmd *cobra.Command, to, sample, refID string) (string, error) {
	send := sendCommand()
	send.SilenceErrors, send.SilenceUsage = true, true
	var out bytes.Buffer
	send.SetOut(&out)
	send.SetErr(&out)
	args := []string{"--sample", sample}
	address, _ := cmd.Flags().GetString("address")
	for _, flag := range [][2]string{{"--to", to}, {"--ref-id", refID}, {"--address", address}} {
		if flag[1] != "" {
			args = append(args, flag[0], flag[1])
		}
	}
	send.SetArgs(args)
	err := send.ExecuteContext(ctx)
	return out.String(), err
}
