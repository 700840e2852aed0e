package iak

import (
	"slices"
	"strings"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/record"
)

// The Idempotency-Key names account, ref_id and status, and tells late goods from
// the success before. The longest ref_id gives the longest key.
func TestIdempotencyKey(t *testing.T) {
	for _, test := range []struct {
		refID, status       string
		lateGoods, conflict bool
		want                string
	}{
		{"order001", "0", false, false, "shop:order001:0"},
		{"order001", "1", false, false, "shop:order001:1"},
		{"order001", "1", true, false, "shop:order001:1:goods"},
		{"order001", "2", false, false, "shop:order001:2"},
		{"order001:1:goods", "1", false, false, "shop:order001%3A1%3Agoods:1"},
		{"AZaz09-._~ %/ü", "1", false, false, "shop:AZaz09-._~%20%25%2F%C3%BC:1"},
		{strings.Repeat(":", 255), "1", true, false, "shop:" + strings.Repeat("%3A", 255) + ":1:goods"},
		{"order001", "2", false, true, "shop:order001:2:conflict-c231a1b5"},
		{strings.Repeat(":", 255), "1", true, true, "shop:" + strings.Repeat("%3A", 255) + ":1:goods:conflict-732754bd"},
	} {
		got := normalized(t, order(test.refID, test.status), false).IdempotencyKey("shop", test.lateGoods, test.conflict)
		if got != test.want {
			t.Errorf("%q: %s, want %s", test.refID, got, test.want)
		}
		if len(got) > len("shop")+792 {
			t.Errorf("%q: the key has %d bytes", test.refID, len(got))
		}
	}
}

// The fingerprint covers what a customer receives or pays, by value and by
// place, and nothing else.
func TestFingerprint(t *testing.T) {
	base := []string{"sn", `"S"`, "pin", `"P"`, "activation_code", `"A"`}
	of := func(account, refID string, changes ...string) record.Outcome {
		return normalized(t, order(refID, "1", append(slices.Clone(base), changes...)...), true).Outcome(account)
	}
	first := of("test", "f")
	for _, test := range []struct {
		name    string
		changes []string
		same    bool
	}{
		{"nothing", nil, true},
		{"balance", []string{"balance", `"1"`}, true},
		{"message", []string{"message", `"other"`}, true},
		{"an unknown field", []string{"x", `"1"`}, true},
		{"the names of version 2", []string{"code", "", "hp", "", "product_code", `"xld25000"`, "customer_id", `"0817777215"`}, true},
		{"a number for a string", []string{"price", "25000"}, true},
		{"tr_id", []string{"tr_id", `"3483"`}, false},
		{"product", []string{"code", `"xld25001"`}, false},
		{"customer", []string{"hp", `"0817777216"`}, false},
		{"price", []string{"price", `"25001"`}, false},
		{"price in other digits", []string{"price", `"25000.0"`}, false},
		{"rc", []string{"rc", `"0"`}, false},
		{"sn", []string{"sn", `"s"`}, false},
		{"no sn", []string{"sn", ""}, false},
		{"pin", []string{"pin", `"p"`}, false},
		{"activation_code", []string{"activation_code", `"a"`}, false},
		{"goods that changed places", []string{"sn", `"P"`, "pin", `"S"`}, false},
		{"goods cut elsewhere", []string{"sn", `"SP"`, "pin", `""`}, false},
	} {
		if got := of("test", "f", test.changes...); (got == first) != test.same {
			t.Errorf("%s: same is %t, want %t", test.name, got == first, test.same)
		}
	}
	if of("other", "f") == first || of("test", "g") == first {
		t.Error("the fingerprint is the same for another account or ref_id")
	}
	for _, empty := range []string{"", "null", `""`} {
		if got := of("test", "f", "sn", empty, "pin", empty, "activation_code", empty); got.Goods != [8]byte{} {
			t.Errorf("goods %s count as goods", empty)
		}
		if of("test", "f", "tr_id", empty) != of("test", "f", "tr_id", "") {
			t.Errorf("tr_id %s is not like absent", empty)
		}
	}
}
