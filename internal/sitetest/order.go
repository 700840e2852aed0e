package sitetest

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The test account of testdata/README.md.
const (
	Username = "081234567890"
	APIKey   = "test-api-key-1"
	Account  = "account test " + Username + " " + APIKey
)

// Sign is IAK's signature of a ref_id for the test account.
func Sign(refID string) string {
	sum := md5.Sum([]byte(Username + APIKey + refID))
	return hex.EncodeToString(sum[:])
}

// Order is a signed callback as JSON, a complete one of version 1. Each change
// is a name and its JSON value; an empty value leaves the field out.
func Order(refID, status string, changes ...string) string {
	fields := []string{
		"ref_id", Quote(refID), "status", Quote(status), "code", `"xld25000"`, "hp", `"0817777215"`,
		"price", `"25000"`, "message", `"MESSAGE"`, "balance", `"997061249"`, "tr_id", `"3482"`, "rc", `"00"`,
		"sign", Quote(Sign(refID)),
	}
	return Document(fields, changes...)
}

// Document is a JSON document with the names and values under data. Each change is as in
// Order.
func Document(fields []string, changes ...string) string {
	fields = change(fields, changes)
	var members []string
	for j := 0; j < len(fields); j += 2 {
		if fields[j+1] != "" {
			members = append(members, Quote(fields[j])+":"+fields[j+1])
		}
	}
	return `{"data":{` + strings.Join(members, ",") + `}}`
}

// change replaces values by their names, or adds them.
func change(fields, changes []string) []string {
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
	return fields
}

// Quote is a text as a JSON string.
func Quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// Reference reads a file of testdata/reference.
func Reference(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(), "testdata", "reference", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// SignedBy is IAK's signature of a ref_id by any username and api key.
func SignedBy(username, apiKey, refID string) string {
	sum := md5.Sum([]byte(username + apiKey + refID))
	return hex.EncodeToString(sum[:])
}

// FlipLast changes one bit of a signature's last digit.
func FlipLast(sign string) string { return sign[:len(sign)-1] + flip(sign[len(sign)-1]) }

// FlipFirst changes one bit of its first.
func FlipFirst(sign string) string { return flip(sign[0]) + sign[1:] }

// flip returns another hex digit, one bit off.
func flip(digit byte) string {
	const digits = "0123456789abcdef"
	return string(digits[strings.IndexByte(digits, digit)^1])
}

// OrderXML is a signed callback as XML without a declaration. Each change is a
// name and the markup inside its element.
func OrderXML(refID string, changes ...string) string {
	fields := []string{
		"ref_id", refID, "status", "1", "code", "xld25000", "hp", "0817777215", "price", "25000",
		"message", "MESSAGE", "balance", "997061249", "tr_id", "3482", "rc", "00", "sign", Sign(refID),
	}
	fields = change(fields, changes)
	var b strings.Builder
	b.WriteString("<mp>\n")
	for j := 0; j < len(fields); j += 2 {
		fmt.Fprintf(&b, "<%s>%s</%s>\n", fields[j], fields[j+1], fields[j])
	}
	b.WriteString("</mp>")
	return b.String()
}
