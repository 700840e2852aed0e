package iak

import (
	"crypto/md5"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
)

// A signature is md5 over username, api key and ref_id, in this order and with
// nothing between (the digest is md5sum's), and IAK's own examples are signed so.
func TestSign(t *testing.T) {
	const want = "758d19376550f08e70fa9506ca5175aa"
	if got := NewSecret(testUsername, testAPIKey).Sign("order001").String(); got != want {
		t.Errorf("order001 is signed %s, want %s", got, want)
	}
	for name, body := range references(t) {
		if c := normalized(t, body, false); c.Sign() != sign(c.RefID) {
			t.Errorf("%s: %q is signed %s, want %s", name, c.RefID, c.Sign(), sign(c.RefID))
		}
	}
}

// 32 hex digits of either case are a signature, and nothing else is.
func TestParseSignature(t *testing.T) {
	right := sign("order001")
	for _, written := range []string{right, strings.ToUpper(right), strings.ToUpper(right[:16]) + right[16:]} {
		if got, ok := ParseSignature(written); !ok || got.String() != right {
			t.Errorf("%q is read as %s, %t", written, got, ok)
		}
	}
	for _, wrong := range []string{
		"", right[:31], right + "0", right + right, right[:31] + "g", "g" + right[1:], right[:30] + "  ", " " + right[:31], strings.Repeat("é", 16),
	} {
		if _, ok := ParseSignature(wrong); ok {
			t.Errorf("%q is a signature", wrong)
		}
	}
}

// A sign that is no string is none, be its digits right or not; nor is one under
// another name.
func TestCallbackSign(t *testing.T) {
	right := sign("order001")
	for _, test := range []struct{ document, want string }{
		{`{"data":{"sign":` + quote(right) + `}}`, right},
		{`{"data":{"sign":` + quote(strings.ToUpper(right)) + `}}`, strings.ToUpper(right)},
		{"<mp><sign> " + right + "\n</sign></mp>", right},
		{`{"data":{}}`, ""},
		{`{"data":{"sign":""}}`, ""},
		{`{"data":{"sign":null}}`, ""},
		{`{"data":{"sign":true}}`, ""},
		{`{"data":{"sign":12345678901234567890123456789012}}`, ""},
		{`{"data":{"sign":[` + quote(right) + `]}}`, ""},
		{`{"data":{"sign":{"sign":` + quote(right) + `}}}`, ""},
		{`{"data":{"Sign":` + quote(right) + `}}`, ""},
		{`{"sign":` + quote(right) + `,"data":{}}`, ""},
		{"<mp><sign><sign>" + right + "</sign></sign></mp>", ""},
	} {
		c, err := Decode([]byte(test.document))
		if err != nil {
			t.Fatalf("%s: %v", test.document, err)
		}
		if got := c.Sign(); got != test.want {
			t.Errorf("%s is signed %q, want %q", test.document, got, test.want)
		}
	}
}

// md5 can be extended: from the signature of a ref_id follows that of the
// ref_id with md5's padding and any suffix behind it, without the key. The
// signature is right, and yet no document gets such a ref_id through.
func TestLengthExtension(t *testing.T) {
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

	if sign(extended) != forged {
		t.Fatal("the attack itself is wrong")
	}
	for _, body := range []string{
		`{"data":{"ref_id":"` + extended + `","sign":"` + forged + `"}}`,
		"<mp><ref_id>" + extended + "</ref_id><sign>" + forged + "</sign></mp>",
		`<?xml version="1.0" encoding="ISO-8859-1"?><mp><ref_id>` + extended + "</ref_id><sign>" + forged + "</sign></mp>",
	} {
		if c, err := Decode([]byte(body)); err == nil && c.CheckRefID() == nil {
			t.Errorf("accepted: %q", body)
		}
	}
	if c := (&Callback{members: []member{{"ref_id", value{text, extended}}}}); c.CheckRefID() == nil {
		t.Error("a ref_id with md5's padding is accepted")
	}
}
