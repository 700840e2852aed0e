package iak

import (
	"bytes"
	"errors"
	"fmt"
)

// maxDepth is the deepest nesting of a document, its root counted.
const maxDepth = 16

var (
	errTooDeep  = fmt.Errorf("the document is nested deeper than %d", maxDepth)
	errRepeated = errors.New("a name is repeated")
	errTrailing = errors.New("something follows the document")

	utf8BOM    = []byte("\xef\xbb\xbf")
	utf16BEBOM = []byte("\xfe\xff")
	utf16LEBOM = []byte("\xff\xfe")
)

// Sniff tells whether a body begins as JSON or XML that Decode could read, behind
// a byte order mark and white space.
func Sniff(body []byte) bool {
	first := firstByte(body)
	return first == '{' || first == '<'
}

// firstByte is the first byte of a body behind a byte order mark and white
// space: '{' for JSON, '<' for XML, 0 when there is none.
func firstByte(body []byte) byte {
	body = bytes.TrimPrefix(body, utf8BOM)
	if utf16 := bytes.HasPrefix(body, utf16BEBOM) || bytes.HasPrefix(body, utf16LEBOM); utf16 {
		body = bytes.Trim(body[2:], "\x00 \t\r\n")
	}
	body = bytes.TrimLeft(body, " \t\r\n")
	if len(body) == 0 {
		return 0
	}
	return body[0]
}

// Decode reads one well-formed JSON or XML document, whichever it is, at most 16
// levels deep. The callback keeps nothing of body. Errors say what is wrong and
// where, and never quote the document: it holds goods.
func Decode(body []byte) (c *Callback, err error) {
	if firstByte(body) == '<' {
		c, err = decodeXML(body)
	} else {
		c, err = decodeJSON(bytes.TrimPrefix(body, utf8BOM))
	}
	if err != nil {
		return nil, err
	}
	c.size = len(body)
	return c, nil
}
