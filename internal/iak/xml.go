package iak

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/html/charset"
	"golang.org/x/text/encoding/unicode"
)

// decodeXML reads the root mp and a child for each field.
func decodeXML(body []byte) (*Callback, error) {
	body, err := xmlToUTF8(body)
	if err != nil {
		return nil, err
	}
	d := &xmlDecoder{Decoder: xml.NewDecoder(bytes.NewReader(body)), body: body} //nolint:gosec // reading untrusted XML is the task; tokens only, no types are filled
	d.CharsetReader = func(_ string, input io.Reader) (io.Reader, error) {
		return input, nil // already decoded
	}
	var c *Callback
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
			c = new(Callback)
			if c.members, _, err = decodeXMLChildren(d, 1); err != nil {
				return nil, err
			}
		case xml.CharData:
			// as it stands: neither CDATA nor a reference is white space here
			if len(bytes.Trim(d.raw, " \t\r\n")) > 0 {
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
func decodeXMLChildren(d *xmlDecoder, depth int) (children []member, content string, err error) {
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
		if strings.EqualFold(t.Target, "xml") && (!first || t.Target != "xml") {
			return errors.New("an XML declaration stands inside the document")
		}
	}
	return nil
}

// xmlError keeps the line and drops the text, which quotes names.
func xmlError(err error) error {
	if syntax := new(xml.SyntaxError); errors.As(err, &syntax) {
		if code, is := strings.CutPrefix(syntax.Msg, "illegal character code "); is { // by a reference
			return errCharacter(code, syntax.Line)
		}
		return fmt.Errorf("XML syntax error on line %d", syntax.Line)
	}
	if errors.Is(err, errCharset) || errors.Is(err, errRepeated) {
		return err
	}
	return errors.New("the XML document cannot be read")
}

// errCharacter tells of a character that no XML document may hold (XML 1.0, section 2.2).
func errCharacter(code string, line int) error {
	return fmt.Errorf("the XML document holds the character %s on line %d, which XML does not allow", code, line)
}

var errCharset = errors.New("the XML document is not in the charset it declares, or the charset is unknown")

// xmlDecoder refuses what xml.Decoder lets pass: references to surrogates,
// which it replaces by U+FFFD, and repeated attributes.
type xmlDecoder struct {
	*xml.Decoder
	body []byte
	raw  []byte // the latest token as it stands in the document
}

func (d *xmlDecoder) Token() (xml.Token, error) {
	start := d.InputOffset()
	token, err := d.Decoder.Token()
	if err != nil {
		return nil, err
	}
	d.raw = d.body[start:d.InputOffset()]
	switch t := token.(type) {
	case xml.StartElement:
		seen := make(map[xml.Name]bool, len(t.Attr))
		for _, a := range t.Attr {
			if seen[a.Name] {
				return nil, errRepeated
			}
			seen[a.Name] = true
		}
	case xml.CharData:
		if bytes.HasPrefix(d.raw, []byte("<![CDATA[")) {
			return token, nil
		}
	default:
		return token, nil
	}
	if surrogateReference.Match(d.raw) {
		return nil, errCharset
	}
	return token, nil
}

var (
	// Numbers with more digits than these are above U+10FFFF, which xml.Decoder
	// refuses: U+D800 to DFFF is 55296 to 57343.
	surrogateReference = regexp.MustCompile(`&#(x0*[dD][89a-fA-F][0-9a-fA-F]{2}|0*(55(29[6-9]|[3-9][0-9]{2})|56[0-9]{3}|57([0-2][0-9]{2}|3[0-3][0-9]|34[0-3])));`)

	// XML 1.0, section 2.8. encoding/xml looks for encoding="..." only, without
	// the white space that may stand around the equals sign.
	xmlDeclaration = regexp.MustCompile(`^<\?xml[ \t\r\n]+version[ \t\r\n]*=[ \t\r\n]*["']1\.0["']` +
		`(?:[ \t\r\n]+encoding[ \t\r\n]*=[ \t\r\n]*["']([A-Za-z][A-Za-z0-9._-]*)["'])?` +
		`(?:[ \t\r\n]+standalone[ \t\r\n]*=[ \t\r\n]*["'](?:yes|no)["'])?[ \t\r\n]*\?>`)
)

// xmlToUTF8 decodes a document by its byte order mark or its declaration, and
// refuses one that is in another charset, or that holds what no XML document
// may hold.
func xmlToUTF8(body []byte) ([]byte, error) {
	mark := ""
	switch {
	case bytes.HasPrefix(body, utf16BEBOM), bytes.HasPrefix(body, utf16LEBOM):
		mark = "utf-16"
		decoded, err := unicode.UTF16(unicode.BigEndian, unicode.ExpectBOM).NewDecoder().Bytes(body)
		if err != nil || bytes.ContainsRune(decoded, '\uFFFD') {
			return nil, errCharset
		}
		body = decoded
	case bytes.HasPrefix(body, utf8BOM):
		mark = "utf-8"
		body = body[len(utf8BOM):]
	}
	body = bytes.TrimLeft(body, " \t\r\n")
	if bytes.HasPrefix(body, []byte("<?xml")) && len(body) > 5 && bytes.IndexByte([]byte(" \t\r\n?"), body[5]) >= 0 {
		declaration := xmlDeclaration.FindSubmatch(body)
		if declaration == nil {
			return nil, errors.New("the XML declaration cannot be read, or the version is not 1.0")
		}
		label := strings.ToLower(string(declaration[1]))
		switch {
		case label == "", label == mark, mark == "utf-8" && label == "utf8", mark == "utf-16" && strings.HasPrefix(label, "utf-16"):
		case mark != "", strings.HasPrefix(label, "utf-16"):
			return nil, errCharset
		case label != "utf-8":
			decoder, err := charset.NewReaderLabel(label, bytes.NewReader(body))
			if err != nil {
				return nil, errCharset
			}
			decoded, err := io.ReadAll(decoder)
			if err != nil || bytes.ContainsRune(decoded, '\uFFFD') {
				return nil, errCharset
			}
			body = decoded
		}
	}
	for rest := body; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && size == 1:
			return nil, errCharset
		case r < 0x20 && r != '\t' && r != '\r' && r != '\n' || r == 0xFFFE || r == 0xFFFF:
			line := bytes.Count(body[:len(body)-len(rest)], []byte("\n")) + 1
			return nil, errCharacter(fmt.Sprintf("%U", r), line)
		}
		rest = rest[size:]
	}
	return body, nil
}
