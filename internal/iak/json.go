package iak

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

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
func decodeJSON(body []byte) (*Callback, error) {
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

func (r *jsonReader) callback() (*Callback, error) {
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
	var c *Callback
	for d.PeekKind() != '}' {
		name, err := r.scalar()
		if err != nil {
			return nil, err
		}
		if name.text == "data" && d.PeekKind() == '{' {
			c = callbacks.Get().(*Callback)
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

func (r *jsonReader) data(c *Callback) error {
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
