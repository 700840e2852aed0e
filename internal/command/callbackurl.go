package command

import (
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"
)

// callbackURLs are the callback_urls of the running Caddy's handlers, by the names of
// their accounts. A Caddy that does not answer has none.
func callbackURLs(cmd *cobra.Command) map[string]string {
	found := make(map[string]string)
	body, err := askAdmin(cmd, http.MethodGet, "/config/apps/http", url.Values{})
	if err != nil {
		return found
	}
	defer body.Close()
	var config any
	if json.NewDecoder(body).Decode(&config) == nil {
		findCallbackURLs(config, found)
	}
	return found
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
