package iakcallback

import (
	"crypto/md5"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"
	"testing"
)

// signedBy is IAK's signature of a ref_id by any username and api key.
func signedBy(username, apiKey, refID string) string {
	sum := md5.Sum([]byte(username + apiKey + refID))
	return hex.EncodeToString(sum[:])
}

// The sign of each account's credentials, current or being rotated, leads to
// that account wherever it stands in the configuration; everything else leads
// to none, and always with the same error.
func TestVerify(t *testing.T) {
	var two accounts
	for _, c := range [][3]string{
		{"prod", "0811", "old-key"},
		{"prod", "0811", "new-key"},
		{"sandbox", "0811", "dev-key"},
		{"prod", "0822", "third-key"}, // another username under a name that was there before
		{"shop2", "0833", "key"},
	} {
		if err := two.add(c[0], c[1], c[2]); err != nil {
			t.Fatal(err)
		}
	}
	const refID = "order001"
	right := signedBy("0811", "new-key", refID)
	for _, test := range []struct {
		name     string
		accounts accounts
		refID    string
		sign     value
		want     string
	}{
		{"the first credential", two, refID, value{text, signedBy("0811", "old-key", refID)}, "prod"},
		{"its rotation", two, refID, value{text, right}, "prod"},
		{"another account of the same username", two, refID, value{text, signedBy("0811", "dev-key", refID)}, "sandbox"},
		{"the same name with another username", two, refID, value{text, signedBy("0822", "third-key", refID)}, "prod"},
		{"the last credential", two, refID, value{text, signedBy("0833", "key", refID)}, "shop2"},
		{"upper case", two, refID, value{text, strings.ToUpper(right)}, "prod"},
		{"mixed case", two, refID, value{text, strings.ToUpper(right[:16]) + right[16:]}, "prod"},
		{"ref_id byte for byte", two, " Ü/%20 ", value{text, signedBy("0833", "key", " Ü/%20 ")}, "shop2"},

		{"no accounts", nil, refID, value{text, right}, ""},
		{"the zero digest", two, refID, value{text, strings.Repeat("0", 32)}, ""},
		{"one digit off at the end", two, refID, value{text, flipLast(right)}, ""},
		{"one digit off at the start", two, refID, value{text, flipFirst(right)}, ""},
		{"another ref_id", two, "order002", value{text, right}, ""},
		{"the ref_id in another case", two, "Order001", value{text, right}, ""},
		{"username and key of two accounts", two, refID, value{text, signedBy("0833", "new-key", refID)}, ""},
		{"without ref_id", two, refID, value{text, signedBy("0811", "new-key", "")}, ""},
		{"31 digits", two, refID, value{text, right[:31]}, ""},
		{"33 digits", two, refID, value{text, right + "0"}, ""},
		{"64 digits", two, refID, value{text, right + right}, ""},
		{"no hex digit at the end", two, refID, value{text, right[:31] + "g"}, ""},
		{"no hex digit at the start", two, refID, value{text, "g" + right[1:]}, ""},
		{"white space before", two, refID, value{text, " " + right[:31]}, ""},
		{"32 bytes of two-byte characters", two, refID, value{text, strings.Repeat("é", 16)}, ""},
		{"empty", two, refID, value{text, ""}, ""},
		{"absent", two, refID, value{}, ""},
		{"a number", two, refID, value{number, "12345678901234567890123456789012"}, ""},
		{"the right digits, but no string", two, refID, value{number, right}, ""},
		{"a boolean", two, refID, value{boolean, "true"}, ""},
		{"nested", two, refID, value{kind: nested}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.accounts.verify(test.refID, test.sign)
			if got != test.want {
				t.Errorf("account %q, want %q", got, test.want)
			}
			if (err == nil) != (test.want != "") {
				t.Errorf("error %v", err)
			}
			if err != nil && err != errSignature { //nolint:errorlint // the very same, so that nothing tells them apart
				t.Errorf("error %v, want the one that says nothing more", err)
			}
		})
	}
}

// A sign that is no hex is refused even where the bytes that could be read, and
// zeros for the rest, are right.
func TestVerifyZeros(t *testing.T) {
	var a accounts
	if err := a.add("prod", "0811", "key"); err != nil {
		t.Fatal(err)
	}
	refID, right := "", ""
	for i := 0; !strings.HasSuffix(right, "00"); i++ {
		refID = strconv.Itoa(i)
		right = signedBy("0811", "key", refID)
	}
	if _, err := a.verify(refID, value{text, right}); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []string{right[:30] + "gg", right[:30] + "0g", right[:30] + "  ", right[:30]} {
		if account, err := a.verify(refID, value{text, wrong}); err == nil {
			t.Errorf("%q is accepted for %s", wrong, account)
		}
	}
}

func flipLast(sign string) string  { return sign[:len(sign)-1] + flip(sign[len(sign)-1]) }
func flipFirst(sign string) string { return flip(sign[0]) + sign[1:] }

// flip returns another hex digit, one bit off.
func flip(digit byte) string {
	const digits = "0123456789abcdef"
	return string(digits[strings.IndexByte(digits, digit)^1])
}

// Credentials that sign alike may stand under one name only, whichever way
// username and api key are cut; the refusal names no key.
func TestAddAccount(t *testing.T) {
	for _, test := range []struct {
		name      string
		add       [3]string
		ambiguous bool
	}{
		{"rotation", [3]string{"prod", "0811", "other"}, false},
		{"the same again", [3]string{"prod", "0811", "secret"}, false},
		{"another account", [3]string{"sandbox", "0811", "other"}, false},
		{"the same pair under another name", [3]string{"sandbox", "0811", "secret"}, true},
		{"the same bytes cut elsewhere", [3]string{"sandbox", "0811s", "ecret"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var a accounts
			if err := a.add("prod", "0811", "secret"); err != nil {
				t.Fatal(err)
			}
			err := a.add(test.add[0], test.add[1], test.add[2])
			if (err != nil) != test.ambiguous {
				t.Fatalf("error %v", err)
			}
			if err == nil {
				return
			}
			for _, secret := range []string{"0811", "ecret"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error %q tells a credential", err)
				}
			}
			if got, err := a.verify("x", value{text, signedBy("0811", "secret", "x")}); got != "prod" {
				t.Errorf("account %q, %v after the refusal", got, err)
			}
		})
	}
}

// md5 can be extended: from the signature of a ref_id follows that of the
// ref_id with md5's padding and any suffix behind it, without the key. The
// signature is right, and yet no document gets such a ref_id through.
func TestLengthExtension(t *testing.T) {
	var known accounts
	if err := known.add("test", testUsername, testAPIKey); err != nil {
		t.Fatal(err)
	}
	const refID, suffix = "order001", "-again"
	signed := len(testUsername + testAPIKey + refID) // its length can be guessed
	padding := make([]byte, 1+(64+56-(signed+1)%64)%64)
	padding[0] = 0x80
	padding = binary.LittleEndian.AppendUint64(padding, uint64(signed)*8)

	// the digest is md5's state, which continues with the suffix
	digest, err := hex.DecodeString(sign(refID))
	if err != nil {
		t.Fatal(err)
	}
	state := []byte("md5\x01")
	for i := 0; i < len(digest); i += 4 {
		state = binary.BigEndian.AppendUint32(state, binary.LittleEndian.Uint32(digest[i:]))
	}
	state = append(state, make([]byte, md5.BlockSize)...)
	state = binary.BigEndian.AppendUint64(state, uint64(signed+len(padding)))
	h := md5.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		t.Fatal(err)
	}
	h.Write([]byte(suffix))
	extended, forged := refID+string(padding)+suffix, hex.EncodeToString(h.Sum(nil))

	if _, err := known.verify(extended, value{text, forged}); err != nil {
		t.Fatalf("the attack itself is wrong: %v", err)
	}
	for _, body := range []string{
		`{"data":{"ref_id":"` + extended + `","sign":"` + forged + `"}}`,
		"<mp><ref_id>" + extended + "</ref_id><sign>" + forged + "</sign></mp>",
		`<?xml version="1.0" encoding="ISO-8859-1"?><mp><ref_id>` + extended + "</ref_id><sign>" + forged + "</sign></mp>",
	} {
		if c, err := decode([]byte(body)); err == nil && c.checkRefID() == nil {
			t.Errorf("accepted: %q", body)
		}
	}
	if c := (&callback{members: []member{{"ref_id", value{text, extended}}}}); c.checkRefID() == nil {
		t.Error("a ref_id with md5's padding is accepted")
	}
}
