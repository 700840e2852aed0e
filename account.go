package iakcallback

import (
	"fmt"
	"regexp"

	"go.uber.org/zap"
)

// Account is one IAK account. The same name given again with another key is a
// key rotation: both keys are valid.
type Account struct {
	// The account's name: letters, digits, `_` and `-`. It is part of each
	// record's key and of the Idempotency-Key, so it should never change.
	Name string `json:"name,omitempty"`

	// The username at IAK, the registered phone number. Placeholders such as
	// `{env.IAK_USERNAME}` are resolved when the configuration is loaded.
	Username string `json:"username,omitempty"`

	// The api key at IAK, production or development. Placeholders such as
	// `{file./run/secrets/iak_key}` are resolved when the configuration is loaded. A
	// byte order mark, UTF-16, invisible characters, white space or quotes around it, or
	// `NAME=` before it, are errors; the same holds for the username and Redis' urls.
	APIKey string `json:"api_key,omitempty"`
}

// phoneNumber is IAK's username: a registered phone number, in digits.
var phoneNumber = regexp.MustCompile(`^[0-9]{8,15}$`)

var accountName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func (h *Handler) resolveAccounts() error {
	for _, a := range h.Accounts {
		username, err := resolveSecret(a.Username, fmt.Sprintf("account %q: username", a.Name))
		if err != nil {
			return err
		}
		apiKey, err := resolveSecret(a.APIKey, fmt.Sprintf("account %q: api_key", a.Name))
		if err != nil {
			return err
		}
		if err = h.accounts.add(a.Name, username, apiKey); err != nil {
			return err
		}
		if !phoneNumber.MatchString(username) {
			h.logger.Warn("the username is no phone number in digits, such as 0811222333: IAK signs with the number "+
				"that is registered there, and if it is another text, each callback is refused with 403", zap.String("account", a.Name))
		}
	}
	return nil
}
