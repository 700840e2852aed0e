package iakcallback

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/net/html/charset"
	"golang.org/x/text/encoding/unicode"
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

// decodeXML reads the root mp and a child for each field.
func decodeXML(body []byte) (*callback, error) {
	body, utf16, err := utf16ToUTF8(body)
	if err != nil {
		return nil, err
	}
	body = bytes.TrimLeft(bytes.TrimPrefix(body, utf8BOM), " \t\r\n")
	d := xml.NewDecoder(bytes.NewReader(body)) //nolint:gosec // reading untrusted XML is the task; tokens only, no types are filled
	d.CharsetReader = func(label string, input io.Reader) (io.Reader, error) {
		if utf16 && strings.HasPrefix(strings.ToLower(label), "utf-16") {
			return input, nil // already decoded by its byte order mark
		}
		return decodeCharset(label, input)
	}
	var c *callback
	for first := true; ; first = false {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, xmlError(err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			if c != nil {
				return nil, errTrailing
			}
			if t.Name.Local != "mp" {
				return nil, errors.New("the root of the XML document is not mp")
			}
			c = new(callback)
			if c.members, _, err = decodeXMLChildren(d, 1); err != nil {
				return nil, err
			}
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return nil, errTrailing
			}
		default:
			if err := checkXMLMarkup(token, first); err != nil {
				return nil, err
			}
		}
	}
	if c == nil {
		return nil, errors.New("the XML document has no root")
	}
	return c, nil
}

// decodeXMLChildren reads an element to its end: its child elements, and the
// text between them without its outer white space.
func decodeXMLChildren(d *xml.Decoder, depth int) (children []member, content string, err error) {
	if depth > maxDepth {
		return nil, "", errTooDeep
	}
	var b strings.Builder
	seen := map[string]bool{}
	for {
		token, err := d.Token()
		if err != nil {
			return nil, "", xmlError(err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			if seen[t.Name.Local] {
				return nil, "", errRepeated
			}
			seen[t.Name.Local] = true
			grandchildren, content, err := decodeXMLChildren(d, depth+1)
			if err != nil {
				return nil, "", err
			}
			v := value{text, content}
			if len(grandchildren) > 0 {
				v = value{kind: nested}
			}
			children = append(children, member{t.Name.Local, v})
		case xml.EndElement:
			content = strings.Trim(b.String(), " \t\r\n")
			if depth == 1 && content != "" {
				return nil, "", errors.New("the root of the XML document holds text between its fields")
			}
			return children, content, nil
		case xml.CharData:
			b.Write(t)
		default:
			if err := checkXMLMarkup(token, false); err != nil {
				return nil, "", err
			}
		}
	}
}

// checkXMLMarkup lets comments and processing instructions pass. A second XML
// declaration could change the charset half way, and a DTD can define entities.
func checkXMLMarkup(token xml.Token, first bool) error {
	switch t := token.(type) {
	case xml.Directive:
		return errors.New("the XML document has a DTD")
	case xml.ProcInst:
		if !first && strings.EqualFold(t.Target, "xml") {
			return errors.New("an XML declaration stands inside the document")
		}
	}
	return nil
}

// xmlError keeps the line and drops the text, which quotes names.
func xmlError(err error) error {
	if syntax := new(xml.SyntaxError); errors.As(err, &syntax) {
		return fmt.Errorf("XML syntax error on line %d", syntax.Line)
	}
	if errors.Is(err, errCharset) {
		return errCharset
	}
	return errors.New("the XML document cannot be read")
}

var errCharset = errors.New("the XML document is not in the charset it declares, or the charset is unknown")

// decodeCharset decodes what follows an XML declaration. The decoders replace
// what they cannot read by U+FFFD; a callback with a hole in it is refused.
func decodeCharset(label string, input io.Reader) (io.Reader, error) {
	decoder, err := charset.NewReaderLabel(label, input)
	if err != nil || strings.HasPrefix(strings.ToLower(label), "utf-16") {
		return nil, errCharset // its declaration was readable as ASCII: not UTF-16
	}
	decoded, err := io.ReadAll(decoder)
	if err != nil || bytes.ContainsRune(decoded, '\uFFFD') {
		return nil, errCharset
	}
	return bytes.NewReader(decoded), nil
}

// utf16ToUTF8 decodes a body that starts with the byte order mark of UTF-16,
// as XML allows (XML 1.0, section 4.3.3).
func utf16ToUTF8(body []byte) (decoded []byte, utf16 bool, err error) {
	if !bytes.HasPrefix(body, utf16BEBOM) && !bytes.HasPrefix(body, utf16LEBOM) {
		return body, false, nil
	}
	decoded, err = unicode.UTF16(unicode.BigEndian, unicode.ExpectBOM).NewDecoder().Bytes(body)
	if err != nil || bytes.ContainsRune(decoded, '\uFFFD') {
		return nil, true, errCharset
	}
	return decoded, true, nil
}
