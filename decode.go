package iakcallback

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

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
func decode(body []byte) (c *callback, err error) {
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

// jsonReaders keeps the memory of decoders for the next callbacks: it would
// be half of what a callback takes. A decoder that is put back holds no
// document any more.
var jsonReaders = sync.Pool{New: func() any { return &jsonReader{decoder: jsontext.NewDecoder(new(bytes.Buffer))} }}

// jsonReader reads one JSON document. The texts that it returns are parts of
// one string, so that a document is copied once.
type jsonReader struct {
	decoder  *jsontext.Decoder
	buffer   bytes.Buffer // which the decoder reads
	document string
}

// decodeJSON relies on jsontext for what encoding/json lets pass: repeated
// names, invalid UTF-8 and lone surrogates are errors there.
func decodeJSON(body []byte) (*callback, error) {
	r := jsonReaders.Get().(*jsonReader)
	r.buffer = *bytes.NewBuffer(body)
	r.decoder.Reset(&r.buffer)
	r.document = string(body)
	defer func() {
		r.buffer = bytes.Buffer{}
		r.decoder.Reset(&r.buffer)
		r.document = ""
		jsonReaders.Put(r)
	}()
	return r.callback()
}

func (r *jsonReader) callback() (*callback, error) {
	d := r.decoder
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
		name, err := r.scalar()
		if err != nil {
			return nil, err
		}
		if name.text == "data" && d.PeekKind() == '{' {
			c = callbacks.Get().(*callback)
			err = r.data(c)
		} else {
			_, err = r.value()
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

func (r *jsonReader) data(c *callback) error {
	if _, err := r.decoder.ReadToken(); err != nil {
		return jsonError(err)
	}
	for r.decoder.PeekKind() != '}' {
		name, err := r.scalar()
		if err != nil {
			return err
		}
		v, err := r.value()
		if err != nil {
			return err
		}
		c.members = append(c.members, member{name.text, v})
	}
	if _, err := r.decoder.ReadToken(); err != nil {
		return jsonError(err)
	}
	return nil
}

// value reads the next value to its end.
func (r *jsonReader) value() (value, error) {
	d := r.decoder
	if kind := d.PeekKind(); kind != '{' && kind != '[' {
		return r.scalar()
	}
	for base := d.StackDepth(); ; {
		if _, err := d.ReadToken(); err != nil {
			return value{}, jsonError(err)
		}
		switch depth := d.StackDepth(); {
		case depth > maxDepth:
			return value{}, errTooDeep
		case depth == base:
			return value{kind: nested}, nil
		}
	}
}

// scalar reads the next value, or name, which is neither a list nor an object.
func (r *jsonReader) scalar() (value, error) {
	raw, err := r.decoder.ReadValue()
	if err != nil {
		return value{}, jsonError(err)
	}
	end := int(r.decoder.InputOffset())
	written := r.document[end-len(raw) : end]
	switch raw.Kind() {
	case 'n':
		return value{}, nil
	case '"':
		if strings.IndexByte(written, '\\') < 0 {
			return value{text, written[1 : len(written)-1]}, nil
		}
		unquoted, err := jsontext.AppendUnquote(nil, raw)
		if err != nil {
			return value{}, jsonError(err)
		}
		return value{text, string(unquoted)}, nil
	case '0':
		return value{number, written}, nil
	default: // true or false
		return value{boolean, written}, nil
	}
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
