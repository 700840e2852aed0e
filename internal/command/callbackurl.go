package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"
)

// httpConfig is the configuration of the running Caddy's sites, nil if it does not answer.
func httpConfig(cmd *cobra.Command) (config any) {
	body, err := askAdmin(cmd, http.MethodGet, "/config/apps/http", url.Values{})
	if err != nil {
		return nil
	}
	defer body.Close()
	if json.NewDecoder(body).Decode(&config) != nil {
		return nil
	}
	return config
}

// callbackURLs are the callback_urls of the running Caddy's handlers, by the names of
// their accounts.
func callbackURLs(cmd *cobra.Command) map[string]string {
	found := make(map[string]string)
	findCallbackURLs(httpConfig(cmd), found)
	return found
}

// callbackURLFor is the callback_url of an account; without a name that of all, if they
// have the same.
func callbackURLFor(found map[string]string, account string) (string, error) {
	if account == "" {
		return oneCallbackURL(found)
	}
	if to := found[account]; to != "" {
		return to, nil
	}
	return "", fmt.Errorf("--to is missing, and the running Caddy has no callback_url for the account %q: it has one for %s", account, either(found))
}

func either(found map[string]string) string {
	if len(found) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(found)), ", ")
}

// oneCallbackURL is the only url that the running Caddy's handlers name.
func oneCallbackURL(found map[string]string) (string, error) {
	switch urls := slices.Compact(slices.Sorted(maps.Values(found))); len(urls) {
	case 1:
		return urls[0], nil
	case 0:
		return "", errors.New("--to is missing: give the callback's url, such as http://localhost:8080/iak/callback, or give the running Caddy's iak_callback a callback_url")
	default:
		return "", fmt.Errorf("--to is missing, and the accounts %s have several callback_urls: give one of them", either(found))
	}
}

// appPorts are the ports to which the running Caddy's proxies send.
func appPorts(cmd *cobra.Command) (ports []string) {
	findPorts(httpConfig(cmd), &ports)
	slices.Sort(ports)
	return slices.Compact(ports)
}

func findPorts(config any, ports *[]string) {
	switch c := config.(type) {
	case []any:
		for _, inner := range c {
			findPorts(inner, ports)
		}
	case map[string]any:
		if dial, _ := c["dial"].(string); dial != "" {
			if _, port, err := net.SplitHostPort(dial); err == nil && port != "" {
				*ports = append(*ports, port)
			}
		}
		for _, inner := range c {
			findPorts(inner, ports)
		}
	}
}

// findCallbackURLs looks for handlers wherever they are in a configuration.
func findCallbackURLs(config any, found map[string]string) {
	switch c := config.(type) {
	case []any:
		for _, inner := range c {
			findCallbackURLs(inner, found)
		}
	case map[string]any:
		to, _ := c["callback_url"].(string)
		accounts, _ := c["accounts"].([]any)
		if c["handler"] == "iak_callback" && to != "" {
			for _, account := range accounts {
				one, _ := account.(map[string]any)
				if name, _ := one["name"].(string); name != "" {
					found[name] = caddy.NewReplacer().ReplaceAll(to, "") // the configuration has placeholders
				}
			}
		}
		for _, inner := range c {
			findCallbackURLs(inner, found)
		}
	}
}
