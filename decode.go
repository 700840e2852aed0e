package iakcallback

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
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

// decode reads one well-formed JSON or XML document, whichever it is. Its
// errors say what is wrong and where, and never quote the document: it holds
// goods.
func decode(body []byte) (*callback, error) {
	if firstByte(body) == '<' {
		return decodeXML(body)
	}
	return decodeJSON(bytes.TrimPrefix(body, utf8BOM))
}

// decodeJSON relies on jsontext for what encoding/json lets pass: repeated
// names, invalid UTF-8 and lone surrogates are errors there.
func decodeJSON(body []byte) (*callback, error) {
	d := jsontext.NewDecoder(bytes.NewBuffer(body))
	if d.PeekKind() != '{' {
		if _, err := d.ReadToken(); err != nil {
			return nil, jsonError(err)
		}
		return nil, errors.New("the JSON document is not an object")
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, jsonError(err)
	}
	var c *callback
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, jsonError(err)
		}
		if name.String() == "data" && d.PeekKind() == '{' {
			c = new(callback)
			err = decodeJSONData(d, c)
		} else {
			_, err = decodeJSONValue(d)
		}
		if err != nil {
			return nil, err
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, jsonError(err)
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errTrailing
	}
	if c == nil {
		return nil, errors.New("the JSON document has no object under data")
	}
	return c, nil
}

func decodeJSONData(d *jsontext.Decoder, c *callback) error {
	if _, err := d.ReadToken(); err != nil {
		return jsonError(err)
	}
	for d.PeekKind() != '}' {
		token, err := d.ReadToken()
		if err != nil {
			return jsonError(err)
		}
		name := token.String() // before the next read, which overwrites the token
		v, err := decodeJSONValue(d)
		if err != nil {
			return err
		}
		c.members = append(c.members, member{name, v})
	}
	if _, err := d.ReadToken(); err != nil {
		return jsonError(err)
	}
	return nil
}

// decodeJSONValue reads the next value to its end.
func decodeJSONValue(d *jsontext.Decoder) (value, error) {
	base := d.StackDepth()
	token, err := d.ReadToken()
	if err != nil {
		return value{}, jsonError(err)
	}
	switch token.Kind() {
	case 'n':
		return value{}, nil
	case '"':
		return value{text, token.String()}, nil
	case '0':
		return value{number, token.String()}, nil
	case 't', 'f':
		return value{boolean, token.String()}, nil
	}
	for d.StackDepth() > base {
		if d.StackDepth() > maxDepth {
			return value{}, errTooDeep
		}
		if _, err := d.ReadToken(); err != nil {
			return value{}, jsonError(err)
		}
	}
	return value{kind: nested}, nil
}

// jsonError keeps the place and drops the text of jsontext's error, which
// quotes names.
func jsonError(err error) error {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return errRepeated
	}
	if syntax := new(jsontext.SyntacticError); errors.As(err, &syntax) {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("the JSON document ends too early, at byte %d", syntax.ByteOffset)
		}
		return fmt.Errorf("JSON syntax error at byte %d", syntax.ByteOffset)
	}
	return errors.New("the JSON document ends too early")
}
