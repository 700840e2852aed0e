package iakcallback

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	"github.com/caddy-iak/iakcallback/internal/iak"
)

// errSignature says the same whatever is wrong with a signature, so that an
// answer tells nobody how near he came.
var errSignature = errors.New("sign is not md5(username + api_key + ref_id) of any configured account: " +
	"check the username as registered at IAK, and production against development key")

// credential is one username and api key of an account. An account has more
// than one while its key is being rotated.
type credential struct {
	account  string
	username string
	secret   iak.Secret
}

// accounts are all credentials of a handler.
type accounts []credential

// add refuses credentials that would sign alike under two names: the record's
// key would depend on which of them is tried first.
func (a *accounts) add(name, username, apiKey string) error {
	secret := iak.NewSecret(username, apiKey)
	for _, c := range *a {
		if c.secret == secret && c.account != name {
			return fmt.Errorf("accounts %q and %q have the same username and api_key: remove one", c.account, name)
		}
	}
	*a = append(*a, credential{account: name, username: username, secret: secret})
	return nil
}

// verify returns the name of the account whose credentials signed ref_id. Every
// account is tried, each in constant time.
func (a accounts) verify(refID, sign string) (account string, err error) {
	given, wellFormed := iak.ParseSignature(sign)
	matched := false
	for _, c := range a {
		want := c.secret.Sign(refID)
		if subtle.ConstantTimeCompare(given[:], want[:]) == 1 {
			account, matched = c.account, true
		}
	}
	if !wellFormed || !matched {
		return "", errSignature
	}
	return account, nil
}

// of are the credentials of an account, the one that was given last first.
func (a accounts) of(account string) (found []credential) {
	for _, c := range slices.Backward(a) {
		if c.account == account {
			found = append(found, c)
		}
	}
	return found
}

// signer is the credential of an account that signed ref_id; or, when its key is not
// valid any more, the one that was given last.
func (a accounts) signer(account, refID, sign string) (found credential) {
	given, _ := iak.ParseSignature(sign)
	all := a.of(account)
	for _, c := range all {
		if want := c.secret.Sign(refID); subtle.ConstantTimeCompare(given[:], want[:]) == 1 {
			return c
		}
	}
	if len(all) > 0 {
		found = all[0]
	}
	return found
}
