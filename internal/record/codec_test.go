package record

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"
)

// The bytes of a record are a promise between versions: these may not change.
func TestRecordBytes(t *testing.T) {
	outcome := Outcome{Status: Success, Code: 202, Fixed: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}, Goods: [8]byte{9}}
	claim := &Claim{Outcome: Outcome{Status: Failed, Fixed: [8]byte{7}}, Owner: Owner{1, 2}, Lease: 35 * time.Second}
	ended := *claim
	ended.End = 0x0102030405060708
	for _, tc := range []struct {
		name string
		r    Record
		want string
	}{
		{"empty", Record{}, ""},
		{"accepted", Record{Accepted: &outcome, Changed: 1_800_000_000_999}, "01010000" + "6b49d200" + "0100ca0102030405060708" + "0900000000000000"},
		{"assumed", Record{Accepted: &outcome, Assumed: true, Changed: 1_800_000_000_000}, "01090000" + "6b49d200" + "0100ca0102030405060708" + "0900000000000000"},
		{"released", Record{Attempt: 258, Changed: 1_800_000_000_000}, "01000102" + "6b49d200"},
		{"claimed, as it goes to the store", Record{Attempt: 1, Claim: claim}, "01040001" + "0200000700000000000000" + "0000000000000000" +
			"01020000000000000000000000000000" + "00000000000088b8"},
		{"claimed", Record{Attempt: 1, Doubt: &outcome, Claim: &ended}, "01060001" + "0100ca0102030405060708" + "0900000000000000" +
			"0200000700000000000000" + "0000000000000000" + "01020000000000000000000000000000" + "00000000000088b8" + "0102030405060708"},
		{"kept", Record{Attempt: 1, Changed: 1_800_000_000_000, Kept: &Kept{
			Outcome: Outcome{Status: Success, Fixed: [8]byte{1}, LateGoods: true, Contradicts: Failed}, Payload: "xy", Came: 2, Due: 3, Pauses: 4, Panics: 1, Dead: true,
			Tries: []Try{{At: 1_800_000_001_000, Ending: Unsent, Status: 502, Took: 7 * time.Millisecond}},
		}}, "02000001" + "6b49d200" + "1500000100000000000000" + "0000000000000000" + "0000000000000002" + "04010101" +
			"6b49d201" + "01" + "01f6" + "00000007" + "00000002" + "7879" + "0000000000000003"},
	} {
		got := tc.r.Encode()
		if hex.EncodeToString([]byte(got)) != tc.want {
			t.Errorf("%s: %x, want %s", tc.name, got, tc.want)
		}
		if tc.r.Claim != nil && tc.r.Claim.End == 0 {
			got += "\x01\x02\x03\x04\x05\x06\x07\x08" // as the store does
			if End(got) != 0x0102030405060708 {
				t.Errorf("%s: the end is %x", tc.name, End(got))
			}
		}
		r, err := Decode(got)
		if err != nil || r.Encode() != got {
			t.Errorf("%s: read as %+v, %v", tc.name, r, err)
		}
		if want := tc.r.Changed / 1000 * 1000; tc.r.Claim == nil && err == nil && r.Changed != want {
			t.Errorf("%s: changed %d, want %d", tc.name, r.Changed, want)
		}
	}
	accepted := Record{Accepted: &outcome}
	if n := len(accepted.Encode()); n > 28 {
		t.Errorf("an accepted record has %d bytes: beyond 28 Redis takes another block", n)
	}
}

// The time of the last change is kept, while a delivery is under way too: that
// is when it was claimed.
func TestRecordChanged(t *testing.T) {
	const now, lease = 1_800_000_000_000, 35 * time.Second
	r := &Record{Attempt: 1, Claim: &Claim{Lease: lease, End: now + lease.Milliseconds()}}
	r, err := Decode(r.Encode())
	if err != nil || r.Changed != now {
		t.Errorf("claimed: changed %d, %v, want %d", r.Changed, err, now)
	}
	r.Settle(&Settlement{Ending: Released}, now+3000)
	if r, err = Decode(r.Encode()); err != nil || r.Changed != now+3000 {
		t.Errorf("released: changed %d, %v", r.Changed, err)
	}
}

// Whatever is no record of this version is refused, never taken for none: each
// prefix of a record, one byte more, another version, unknown flags, statuses.
func TestRecordDamaged(t *testing.T) {
	outcome := Outcome{Status: Success, Code: 200}
	whole := (&Record{Attempt: 1, Accepted: &outcome, Doubt: &outcome, Claim: &Claim{Outcome: outcome, End: 1}}).Encode()
	damaged := []string{whole + "x", "\x02" + whole[1:], "\x00" + whole[1:], whole[:1] + "\xff" + whole[2:], "x", strings.Repeat("x", 1000)}
	for n := 1; n < len(whole); n++ {
		damaged = append(damaged, whole[:n])
	}
	for _, at := range []int{headSize, headSize + outcomeSize, headSize + 2*outcomeSize} {
		damaged = append(damaged, whole[:at]+"\x03"+whole[at+1:])
	}
	damaged = append(damaged, "\x01\x08\x00\x01\x00\x00\x00\x00") // assumed, and nothing accepted
	for _, b := range damaged {
		if r, err := Decode(b); err != ErrUnreadable { //nolint:errorlint // the very same
			t.Errorf("% x is read as %+v, %v", b, r, err)
		}
	}
}

// What is read is written as the same bytes, or refused.
func FuzzDecode(f *testing.F) {
	outcome := Outcome{Status: Success, Code: 200}
	f.Add([]byte((&Record{Accepted: &outcome, Assumed: true}).Encode()))
	f.Add([]byte((&Record{Attempt: 1, Accepted: &outcome, Doubt: &outcome, Claim: &Claim{Outcome: outcome, End: 1}}).Encode()))
	f.Add([]byte((&Record{Attempt: 1, Kept: &Kept{Outcome: outcome, Payload: "payload", Tries: []Try{{Ending: Released}}}}).Encode()))
	f.Add([]byte((&Record{Accepted: &outcome, Kept: &Kept{Outcome: outcome}, Claim: &Claim{Outcome: outcome, End: 1}}).Encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(string(b))
		if err != nil {
			return
		}
		if r.Claim != nil {
			_ = End(string(b))
		}
		r.Decide(&Request{}, 0)
		r.Redeliver(&Redelivery{}, 0)
		again, err := Decode(string(b))
		if err != nil {
			t.Fatal(err)
		}
		if got := again.Encode(); !again.Empty() && got != string(b) && (again.Claim == nil || again.Claim.End != 0) {
			t.Errorf("% x is written as % x", b, got)
		}
	})
}
