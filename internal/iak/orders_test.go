package iak

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"
)

// The test account of testdata/README.md.
const (
	testUsername = "081234567890"
	testAPIKey   = "test-api-key-1"
)

// sign is IAK's signature of a ref_id for the test account.
func sign(refID string) string { return NewSecret(testUsername, testAPIKey).Sign(refID).String() }

// order is a signed callback as JSON, a complete one of version 1. Each change
// is a name and its JSON value; an empty value leaves the field out.
func order(refID, status string, changes ...string) string {
	fields := []string{
		"ref_id", quote(refID), "status", quote(status), "code", `"xld25000"`, "hp", `"0817777215"`,
		"price", `"25000"`, "message", `"MESSAGE"`, "balance", `"997061249"`, "tr_id", `"3482"`, "rc", `"00"`,
		"sign", quote(sign(refID)),
	}
next:
	for i := 0; i < len(changes); i += 2 {
		for j := 0; j < len(fields); j += 2 {
			if fields[j] == changes[i] {
				fields[j+1] = changes[i+1]
				continue next
			}
		}
		fields = append(fields, changes[i], changes[i+1])
	}
	var members []string
	for j := 0; j < len(fields); j += 2 {
		if fields[j+1] != "" {
			members = append(members, quote(fields[j])+":"+fields[j+1])
		}
	}
	return `{"data":{` + strings.Join(members, ",") + `}}`
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// orderXML is a signed callback as XML without a declaration. Each change is a
// name and the markup inside its element.
func orderXML(refID string, changes ...string) string {
	fields := []string{
		"ref_id", refID, "status", "1", "code", "xld25000", "hp", "0817777215", "price", "25000",
		"message", "MESSAGE", "balance", "997061249", "tr_id", "3482", "rc", "00", "sign", sign(refID),
	}
next:
	for i := 0; i < len(changes); i += 2 {
		for j := 0; j < len(fields); j += 2 {
			if fields[j] == changes[i] {
				fields[j+1] = changes[i+1]
				continue next
			}
		}
		fields = append(fields, changes[i], changes[i+1])
	}
	var b strings.Builder
	b.WriteString("<mp>\n")
	for j := 0; j < len(fields); j += 2 {
		fmt.Fprintf(&b, "<%s>%s</%s>\n", fields[j], fields[j+1], fields[j])
	}
	b.WriteString("</mp>")
	return b.String()
}

// utf16Text is a text in UTF-16 with a byte order mark.
func utf16Text(bigEndian bool, text string) string {
	var b strings.Builder
	for _, u := range append([]uint16{0xfeff}, utf16.Encode([]rune(text))...) {
		if bigEndian {
			b.WriteByte(byte(u >> 8))
		}
		b.WriteByte(byte(u))
		if !bigEndian {
			b.WriteByte(byte(u >> 8))
		}
	}
	return b.String()
}

func abbreviate(s string) string {
	if len(s) > 40 {
		return fmt.Sprintf("%s... (%d bytes)", s[:20], len(s))
	}
	return s
}

// reference reads a file of testdata/reference.
func reference(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "testdata", "reference", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// references are all inputs of IAK's reference.
func references(t testing.TB) map[string]string {
	t.Helper()
	inputs := make(map[string]string)
	for _, example := range []string{"game", "esim", "other", "failed"} {
		for _, input := range []string{"v1.json", "v1.xml", "v2.json", "v2.xml"} {
			inputs[example+"."+input] = reference(t, example+"."+input)
		}
	}
	return inputs
}

// normalized leads a body through every step before the claim.
func normalized(t *testing.T, body string, lenient bool) *Callback {
	t.Helper()
	c, err := Decode([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckRefID(); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckFields(lenient); err != nil {
		t.Fatal(err)
	}
	return c
}

// passed leads a body through all steps before the claim but the comparison of
// the signature, which no mutation would pass: a sign of 32 hex digits is taken
// for right.
func passed(body []byte, lenient bool) (*Callback, error) {
	c, err := Decode(body)
	if err != nil {
		return nil, err
	}
	if err := c.CheckRefID(); err != nil {
		return nil, err
	}
	given := c.find("sign")
	if given.kind != text || len(given.text) != 32 || strings.Trim(given.text, "0123456789abcdefABCDEF") != "" {
		return nil, errors.New("sign is no signature")
	}
	return c, c.CheckFields(lenient)
}
