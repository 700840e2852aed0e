package iakcallback

import (
	"strconv"
	"strings"
	"testing"
)

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
		sign     string
		want     string
	}{
		{"the first credential", two, refID, signedBy("0811", "old-key", refID), "prod"},
		{"its rotation", two, refID, right, "prod"},
		{"another account of the same username", two, refID, signedBy("0811", "dev-key", refID), "sandbox"},
		{"the same name with another username", two, refID, signedBy("0822", "third-key", refID), "prod"},
		{"the last credential", two, refID, signedBy("0833", "key", refID), "shop2"},
		{"upper case", two, refID, strings.ToUpper(right), "prod"},
		{"mixed case", two, refID, strings.ToUpper(right[:16]) + right[16:], "prod"},
		{"ref_id byte for byte", two, " Ü/%20 ", signedBy("0833", "key", " Ü/%20 "), "shop2"},

		{"no accounts", nil, refID, right, ""},
		{"the zero digest", two, refID, strings.Repeat("0", 32), ""},
		{"one digit off at the end", two, refID, flipLast(right), ""},
		{"one digit off at the start", two, refID, flipFirst(right), ""},
		{"another ref_id", two, "order002", right, ""},
		{"the ref_id in another case", two, "Order001", right, ""},
		{"username and key of two accounts", two, refID, signedBy("0833", "new-key", refID), ""},
		{"without ref_id", two, refID, signedBy("0811", "new-key", ""), ""},
		{"31 digits", two, refID, right[:31], ""},
		{"33 digits", two, refID, right + "0", ""},
		{"64 digits", two, refID, right + right, ""},
		{"no hex digit at the end", two, refID, right[:31] + "g", ""},
		{"no hex digit at the start", two, refID, "g" + right[1:], ""},
		{"white space before", two, refID, " " + right[:31], ""},
		{"32 bytes of two-byte characters", two, refID, strings.Repeat("é", 16), ""},
		{"empty", two, refID, "", ""},
		{"absent", two, refID, "", ""},
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
	if _, err := a.verify(refID, right); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []string{right[:30] + "gg", right[:30] + "0g", right[:30] + "  ", right[:30]} {
		if account, err := a.verify(refID, wrong); err == nil {
			t.Errorf("%q is accepted for %s", wrong, account)
		}
	}
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
			if got, err := a.verify("x", signedBy("0811", "secret", "x")); got != "prod" {
				t.Errorf("account %q, %v after the refusal", got, err)
			}
		})
	}
}
