package iak

import (
	"strings"
	"testing"
)

// Numbers keep the digits that were sent, at any length.
func TestDecodeNumbers(t *testing.T) {
	for _, digits := range []string{
		"0", "-0", "1.0", "1.50", "1e5", "1E+05", "12345678901234567890", "0.1000000000000000055511151231257827",
		strings.Repeat("1234567890", 100), "0." + strings.Repeat("1234567890", 100), "1e" + strings.Repeat("9", 100),
	} {
		c, err := Decode([]byte(order("n", "1", "price", digits, "tr_id", digits, "unknown", digits)))
		if err != nil {
			t.Fatal(err)
		}
		c.RefID = "n"
		if err := c.CheckFields(false); err != nil {
			t.Fatalf("%s: %v", abbreviate(digits), err)
		}
		for _, name := range []string{"price", "tr_id", "unknown"} {
			if got := c.find(name); got != (value{number, digits}) {
				t.Errorf("%s is %q, want %q", name, got.text, digits)
			}
			if iak := string(c.AppendIAK(nil)); !strings.Contains(iak, quote(name)+":"+quote(digits)) {
				t.Errorf("body iak has not %s %q: %s", name, digits, iak)
			}
		}
		if flat := string(c.AppendFlat(nil)); !strings.Contains(flat, `"price":`+digits+`,`) {
			t.Errorf("body flat has not the price %s: %s", digits, flat)
		}
	}
}
