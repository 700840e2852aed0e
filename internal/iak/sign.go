package iak

import (
	"crypto/md5"
	"encoding/hex"
)

// Secret is what IAK signs with: a username and its api key, which the signature
// does not tell apart.
type Secret string

// NewSecret is the secret of a username, as registered at IAK, and an api key.
func NewSecret(username, apiKey string) Secret { return Secret(username + apiKey) }

// Sign is IAK's signature of a ref_id: md5(username + api_key + ref_id). It proves
// the order and nothing else that a callback says.
func (s Secret) Sign(refID string) Signature { return md5.Sum([]byte(string(s) + refID)) }

// Signature is one sign, as bytes.
type Signature [md5.Size]byte

// String is the signature as IAK writes it, 32 hex digits in lower case.
func (s Signature) String() string { return hex.EncodeToString(s[:]) }

// ParseSignature reads 32 hex digits of either case. What it returns with false is
// no signature.
func ParseSignature(sign string) (s Signature, ok bool) {
	if len(sign) != hex.EncodedLen(len(s)) {
		return s, false
	}
	_, err := hex.Decode(s[:], []byte(sign))
	return s, err == nil
}

// Sign is the callback's signature as it came, which ParseSignature reads; empty
// when it is absent or no string. It can be asked for before any check.
func (c *Callback) Sign() string {
	if sign := c.find("sign"); sign.kind == text {
		return sign.text
	}
	return ""
}
