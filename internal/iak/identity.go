package iak

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/caddy-iak/iakcallback/internal/record"
)

// Outcome is what the callback tells of its order, for the record of this account;
// its Code is 0. It compares the text that is forwarded, absent and empty alike, so
// that the JSON and the XML of one callback agree. Its digests are a truncated
// SHA-256 over the account and ref_id too, so that goods cannot be looked up in a
// table made for all orders. CheckFields comes first.
func (c *Callback) Outcome(account string) record.Outcome {
	o := record.Outcome{Status: c.Status, Fixed: c.digest(account, fieldTrID, fieldProduct, fieldCustomer, fieldPrice, fieldRC)}
	if c.hasGoods() {
		o.Goods = c.digest(account, fieldSN, fieldPIN, fieldActivationCode)
	}
	return o
}

// fingerprint tells one outcome of an order from its others.
func (c *Callback) fingerprint(account string) []byte {
	o := c.Outcome(account)
	sum := sha256.Sum256(slices.Concat([]byte{byte(o.Status)}, o.Fixed[:], o.Goods[:]))
	return sum[:4]
}

func (c *Callback) hasGoods() bool {
	return c.fields[fieldSN].text != "" || c.fields[fieldPIN].text != "" || c.fields[fieldActivationCode].text != ""
}

func (c *Callback) digest(account string, fields ...field) (sum [8]byte) {
	b := make([]byte, 0, 256)
	add := func(s string) { // the length before each text keeps "a","bc" and "ab","c" apart
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	add(account)
	add(c.RefID)
	for _, f := range fields {
		add(c.fields[f].text)
	}
	full := sha256.Sum256(b)
	copy(sum[:], full[:])
	return sum
}

// IdempotencyKey names one outcome of one order: <account>:<ref_id>:<status>, with
// ":goods" behind it for goods that came after their success, and ":conflict-" with
// 8 hex digits of the outcome's fingerprint for one that contradicts what the app was
// told before: it would else have the key of an outcome that the app knows. The
// ref_id is percent-encoded but for RFC 3986's unreserved characters, so that the key
// is a valid header and the colons stay unambiguous. It has at most 792 bytes beside
// the account. CheckFields comes first.
func (c *Callback) IdempotencyKey(account string, lateGoods, conflict bool) string {
	const hexDigits = "0123456789ABCDEF"
	b := make([]byte, 0, 64)
	b = append(b, account...)
	b = append(b, ':')
	for i := range len(c.RefID) {
		ch := c.RefID[i]
		if 'a' <= ch && ch <= 'z' || 'A' <= ch && ch <= 'Z' || '0' <= ch && ch <= '9' || strings.IndexByte("-._~", ch) >= 0 {
			b = append(b, ch)
		} else {
			b = append(b, '%', hexDigits[ch>>4], hexDigits[ch&15])
		}
	}
	b = append(b, ':')
	b = append(b, c.Status.Digit()...)
	if lateGoods {
		b = append(b, ":goods"...)
	}
	if conflict {
		b = append(b, ":conflict-"...)
		b = hex.AppendEncode(b, c.fingerprint(account))
	}
	return string(b)
}
