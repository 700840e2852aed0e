package iak

import (
	"crypto/md5"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"testing"
)

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
