package iak

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// A JSON body that is accepted says the same to the parsers that the apps use:
// what Python, Node and PHP read under data of the body as it came is what the
// module reads and what they read from what the app is sent, in either form. So
// nobody can show one callback to the module and another to an app that keeps,
// or used to read, the original.
//
// Numbers are compared as each parser reads them: 12345678901234567890 is
// 12345678901234567000 to Node, so is the number that Node makes of the string
// that the app is sent.
func TestParsersAgree(t *testing.T) {
	cases, made := acceptedBodies(t)
	lenient := 0
	var documents bytes.Buffer
	for _, c := range cases {
		if c.lenient {
			lenient++
		}
		for _, document := range [][]byte{c.raw, c.iak, c.flat} {
			documents.WriteString(base64.StdEncoding.EncodeToString(document) + "\n")
		}
	}
	t.Logf("%d bodies were made, %d accepted, %d of them only under lenient", made, len(cases), lenient)
	if len(cases) < made/2 {
		t.Errorf("only %d of %d bodies were accepted: they are too odd to show anything", len(cases), made)
	}
	for name, command := range map[string][]string{
		"Python":      {"python3", "parse.py"},
		"Node":        {"node", "parse.js"},
		"PHP objects": {"php", "-d", "display_errors=stderr", "parse.php"},
		"PHP arrays":  {"php", "-d", "display_errors=stderr", "parse.php", "arrays"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			version, lines := runParser(t, command, documents.Bytes())
			if len(lines) != 3*len(cases) {
				t.Fatalf("%s read %d documents, want %d", version, len(lines), 3*len(cases))
			}
			compared, refused, problems := 0, make(map[string]int), 0
			for i, c := range cases {
				var readings [3]reading
				var problem string
				for j, document := range [][]byte{c.raw, c.iak, c.flat} {
					var err error
					if readings[j], err = parseReading(lines[3*i+j]); err == nil {
						continue
					}
					which := [...]string{"the raw body", "body iak", "body flat"}[j]
					if why := knownRefusal(name, document, j > 0, err); why != "" {
						refused[which+": "+why]++
					} else if problem == "" {
						problem = fmt.Sprintf("%s is refused: %v", which, err)
					}
				}
				if problem == "" {
					problem = difference(c.Callback, readings[0], readings[1], readings[2])
				}
				if readings[0] != nil {
					compared++
				}
				if problem == "" {
					continue
				}
				t.Errorf("%s\nraw   %q\niak   %q\nflat  %q\nraw is read as   %v\niak is read as   %v\nflat is read as  %v",
					problem, c.raw, c.iak, c.flat, readings[0], readings[1], readings[2])
				if problems++; problems == 5 {
					t.Fatal("and maybe more")
				}
			}
			t.Logf("%s: %d bodies compared, known refusals: %v", version, compared, refused)
		})
	}
}

// knownRefusals are the accepted documents that a parser does not read at all,
// which is not reading them differently.
var knownRefusals = []struct {
	parser, reason string
	document       func([]byte) bool
	sent           bool // the app may be sent such a document
	why            string
}{
	{
		"PHP", "Syntax error", func(document []byte) bool { return bytes.HasPrefix(document, utf8BOM) }, false,
		"a byte order mark, which json_decode does not skip; the app is sent none",
	},
	{
		"PHP objects", "The decoded property name is invalid", func(document []byte) bool { return bytes.Contains(document, []byte(`"\u0000`)) }, false,
		"a name that begins with U+0000, which no property of a PHP object can have; the app is sent none",
	},
	{
		"Python", "Exceeds the limit", func(document []byte) bool { return longestNumber(document) > 4300 }, true,
		"an integer of more than 4300 digits, which Python converts only when told to (sys.set_int_max_str_digits)",
	},
}

func knownRefusal(parser string, document []byte, sent bool, reason error) string {
	for _, known := range knownRefusals {
		if (known.sent || !sent) && strings.HasPrefix(parser, known.parser) && strings.HasPrefix(reason.Error(), known.reason) && known.document(document) {
			return known.why
		}
	}
	return ""
}

// longestNumber is the length of the longest row of digits.
func longestNumber(document []byte) (longest int) {
	for _, digits := range bytes.FieldsFunc(document, func(r rune) bool { return r < '0' || r > '9' }) {
		longest = max(longest, len(digits))
	}
	return longest
}

// reading is one object as a parser reads it. testdata/parsers/parse.py says
// what the fields are.
type reading map[string]readMember

type readMember struct {
	kind, lower, text, number, digits string
	members                           reading
}

func (r reading) String() string {
	if r == nil {
		return "refused"
	}
	var members []string
	for _, name := range slices.Sorted(maps.Keys(r)) {
		members = append(members, fmt.Sprintf("%q: %s", name, r[name]))
	}
	return "{" + strings.Join(members, ", ") + "}"
}

func (m readMember) String() string {
	switch {
	case m.kind == "string":
		return fmt.Sprintf("%q", m.text)
	case m.kind == "number":
		return m.number
	case len(m.members) > 0:
		return m.members.String()
	}
	return m.kind + m.text
}

// runParser runs a program of testdata/parsers on documents, one a line.
func runParser(t *testing.T, command []string, documents []byte) (version string, lines []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Dir = filepath.Join("..", "..", "testdata", "parsers")
	cmd.Stdin = bytes.NewReader(documents)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s cannot be started (make test installs it): %v", command[0], err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s", command, err, stderr.Bytes())
	}
	lines = strings.Split(strings.TrimSuffix(stdout.String(), "\n"), "\n")
	return lines[0], lines[1:]
}

// parseReading reads a line of a program of testdata/parsers. An error is the
// parser's reason to refuse the document.
func parseReading(line string) (reading, error) {
	if reason, refused := strings.CutPrefix(line, "!"); refused {
		return nil, fmt.Errorf("%s", reason)
	}
	top := make(reading)
	parent := ""
	for word := range strings.FieldsSeq(line) {
		fields := strings.Split(word, ",")
		if len(fields) != 7 {
			return nil, fmt.Errorf("the test's parser wrote %q", word)
		}
		for _, i := range []int{2, 3, 4} {
			plain, err := hex.DecodeString(fields[i])
			if err != nil {
				return nil, err
			}
			fields[i] = string(plain)
		}
		name, m := fields[2], readMember{fields[1], fields[3], fields[4], fields[5], fields[6], nil}
		object := top
		if fields[0] == "2" {
			object = top[parent].members
		} else if parent = name; m.kind == "nested" {
			m.members = make(reading)
		}
		if _, repeated := object[name]; repeated {
			return nil, fmt.Errorf("the name %q is repeated", name)
		}
		object[name] = m
	}
	return top, nil
}

// kindNames are the kinds of values as the programs of testdata/parsers call
// them.
var kindNames = map[kind]string{absent: "null", text: "string", number: "number", boolean: "boolean", nested: "nested"}

// jsonNumber is the grammar of RFC 8259, section 6.
var jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)

// twins are the two names of a field in version 1 and version 2.
var twins = map[string]string{"code": "product_code", "product_code": "code", "hp": "customer_id", "customer_id": "hp"}

func isDocumented(name string) bool {
	for _, d := range documented {
		if d.name == name {
			return true
		}
	}
	return false
}

// difference says where one parser's readings of the raw body and of what the
// app is sent differ from each other or from what the module decoded. A reading
// is nil where the parser is known to refuse the document.
func difference(c *Callback, raw, iak, flat reading) string {
	if raw != nil {
		if problem := differenceRaw(c, raw["data"].members); problem != "" {
			return "raw body: " + problem
		}
	}
	if iak != nil {
		if len(iak) != 1 {
			return fmt.Sprintf("body iak has %d members, want data alone", len(iak))
		}
		if problem := differenceIAK(c, raw["data"].members, iak["data"].members); problem != "" {
			return "body iak: " + problem
		}
	}
	if flat != nil {
		if problem := differenceFlat(c, raw["data"].members, flat); problem != "" {
			return "body flat: " + problem
		}
	}
	return ""
}

// differenceRaw compares what a parser reads under data of the raw body with
// what the module decoded.
func differenceRaw(c *Callback, data reading) string {
	if len(data) != len(c.members) {
		return fmt.Sprintf("it has %d members, to the module %d", len(data), len(c.members))
	}
	for _, m := range c.members {
		got, ok := data[m.name]
		if !ok {
			return fmt.Sprintf("it has no %q", m.name)
		}
		if got.kind != kindNames[m.value.kind] {
			return fmt.Sprintf("%q is of kind %s, to the module %s", m.name, got.kind, kindNames[m.value.kind])
		}
		// The value of a number is compared with the string in body iak.
		want := m.value.text
		if m.value.kind == number {
			want = ""
		}
		if got.text != want {
			return fmt.Sprintf("%q is %q, to the module %q", m.name, got.text, want)
		}
		if got.digits != "" && got.digits != m.value.text {
			return fmt.Sprintf("%q has the digits %s, to the module %s", m.name, got.digits, m.value.text)
		}
		if got.lower != m.name && isDocumented(got.lower) {
			return fmt.Sprintf("%q is %s to an app that ignores case", m.name, got.lower)
		}
	}
	return ""
}

// notSent tells what the app is not sent because PHP could not read the rest.
func notSent(m member) bool { return strings.HasPrefix(m.name, "\x00") }

// differenceIAK compares what a parser reads from body iak with what the
// module decoded, and with what it reads from the raw body.
func differenceIAK(c *Callback, data, sent reading) string {
	want := make(map[string]string)
	for _, m := range c.members {
		if m.value.kind == absent || m.value.kind == nested || notSent(m) {
			continue
		}
		text := m.value.text
		switch m.name {
		case "status":
			text = c.Status.Digit()
		case "sign":
			text = strings.ToLower(text)
		}
		names := []string{m.name}
		if twin, ok := twins[m.name]; ok {
			names = append(names, twin)
		}
		for _, name := range names {
			want[name] = text
			// A number is the same to an app that makes one of the string.
			if raw, ok := data[m.name]; ok && raw.kind == "number" && raw.number != sent[name].number {
				return fmt.Sprintf("%q is the number %s, in the raw body it is %s", name, sent[name].number, raw.number)
			}
		}
		if raw, ok := data[m.name]; ok && raw.kind == "string" && m.name != "sign" && raw.text != sent[m.name].text {
			return fmt.Sprintf("%q is %q, in the raw body it is %q", m.name, sent[m.name].text, raw.text)
		}
	}
	for name, got := range sent {
		if text, ok := want[name]; !ok || got.kind != "string" || got.text != text {
			return fmt.Sprintf("%q is %s, to the module %q (%t)", name, got, text, ok)
		}
		if got.lower != name && isDocumented(got.lower) {
			return fmt.Sprintf("%q is %s to an app that ignores case", name, got.lower)
		}
	}
	if len(sent) != len(want) {
		return fmt.Sprintf("it has %d members, want %d", len(sent), len(want))
	}
	// What the store, the log and the Idempotency-Key take from the callback.
	if sent["ref_id"].text != c.RefID {
		return fmt.Sprintf("ref_id is %q, to the module %q", sent["ref_id"].text, c.RefID)
	}
	for _, d := range documented {
		if d.field != fieldStatus && d.field != fieldSign && sent[d.name].text != c.fields[d.field].text {
			return fmt.Sprintf("%s is %q, to the module %q", d.name, sent[d.name].text, c.fields[d.field].text)
		}
	}
	return ""
}

// differenceFlat compares what a parser reads from body flat with what the
// module decoded, and with what it reads from the raw body.
func differenceFlat(c *Callback, data, flat reading) string {
	wantText := func(name string, f field, empty bool) string {
		v := c.fields[f]
		want := readMember{kind: "string", text: v.text}
		if v.kind == absent || v.text == "" && !empty {
			want = readMember{kind: "null"}
		}
		if got, ok := flat[name]; !ok || got.kind != want.kind || got.text != want.text {
			return fmt.Sprintf("%s is %s, to the module %s", name, got, want)
		}
		return ""
	}
	wantAmount := func(name string, f field) string {
		digits, got := c.fields[f].text, flat[name]
		if !jsonNumber.MatchString(digits) {
			if got.kind != "null" {
				return fmt.Sprintf("%s is %s, to the module it is no number", name, got)
			}
			return ""
		}
		if got.kind != "number" || got.digits != "" && got.digits != digits {
			return fmt.Sprintf("%s is %s with the digits %s, to the module %s", name, got, got.digits, digits)
		}
		// number is what an app makes of the raw value, be it a number or a string
		if raw, ok := data[name]; ok && got.number != raw.number {
			return fmt.Sprintf("%s is the number %s, in the raw body it is %s", name, got.number, raw.number)
		}
		return ""
	}
	for _, problem := range []string{
		wantText("ref_id", fieldRefID, true), wantText("tr_id", fieldTrID, true), wantText("rc", fieldRC, true),
		wantText("message", fieldMessage, true), wantText("product_code", fieldProduct, true),
		wantText("customer_id", fieldCustomer, true), wantAmount("price", fieldPrice), wantAmount("balance", fieldBalance),
		wantText("sn", fieldSN, false), wantText("pin", fieldPIN, false), wantText("activation_code", fieldActivationCode, false),
	} {
		if problem != "" {
			return problem
		}
	}
	word := map[string]string{"0": "process", "1": "success", "2": "failed"}[c.Status.Digit()]
	if got := flat["status"]; got.kind != "string" || got.text != word {
		return fmt.Sprintf("status is %s, to the module %s", got, word)
	}
	want, unknown := 12, 0
	for _, m := range c.members {
		if isDocumented(m.name) || m.value.kind == absent || m.value.kind == nested || notSent(m) {
			continue
		}
		unknown++
		got := flat["extra"].members[m.name]
		if got.kind != "string" || got.text != m.value.text {
			return fmt.Sprintf("%q is %s, to the module %q", m.name, got, m.value.text)
		}
		if raw, ok := data[m.name]; ok && raw.kind == "number" && raw.number != got.number {
			return fmt.Sprintf("%q is the number %s, in the raw body it is %s", m.name, got.number, raw.number)
		}
	}
	if unknown > 0 {
		want++
	}
	if len(flat) != want || len(flat["extra"].members) != unknown {
		return fmt.Sprintf("it has %d members and %d in extra, want %d and %d", len(flat), len(flat["extra"].members), want, unknown)
	}
	return ""
}

// acceptedBody is a signed JSON body that the module accepts, and what the app
// is sent for it.
type acceptedBody struct {
	*Callback
	raw, iak, flat []byte
	lenient        bool // refused under strict
}

// acceptedBodies makes JSON bodies from the reference's examples, from the
// fuzzer's findings and from what is special about names, strings and numbers,
// always the same, and returns those that are accepted.
func acceptedBodies(t *testing.T) (bodies []acceptedBody, made int) {
	t.Helper()
	add := func(raw string) {
		made++
		raw = signAgain(raw)
		if firstByte([]byte(raw)) == '<' {
			return
		}
		strict := true
		c, err := passed([]byte(raw), false)
		if err != nil {
			strict = false
			if c, err = passed([]byte(raw), true); err != nil {
				return
			}
		}
		if !strings.EqualFold(c.Sign(), sign(c.RefID)) {
			return
		}
		bodies = append(bodies, acceptedBody{c, []byte(raw), c.AppendIAK(nil), c.AppendFlat(nil), !strict})
	}
	random := tricky{rand.New(rand.NewSource(1))}
	inputs := references(t)
	maps.DeleteFunc(inputs, func(name, _ string) bool { return !strings.HasSuffix(name, ".json") })
	examples := slices.Sorted(maps.Values(inputs))
	for _, body := range examples {
		add(body)
		for _, s := range newMembers {
			add(strings.Replace(body, `"ref_id"`, s+`"ref_id"`, 1))
		}
	}
	for _, name := range trickyNames {
		add(order("name", "1", name, `"x"`))
		add(order("name", "1", name, "5"))
	}
	for _, text := range trickyTexts {
		add(order(text, "1"))
		for _, name := range []string{"message", "code", "sn", "unknown"} {
			add(order("text", "1", name, random.spell(text)))
		}
	}
	for _, n := range trickyNumbers {
		add(order(n, "1", "ref_id", n))
		for _, name := range []string{"status", "customer_id", "price", "balance", "tr_id", "pin", "unknown"} {
			add(order("number", "1", name, n))
			add(order("number", "1", name, quote(n)))
		}
	}
	for _, status := range slices.Concat(trickyStatuses, wrongStatuses) {
		add(order("status", "1", "status", status))
	}
	found, err := filepath.Glob(filepath.Join("testdata", "fuzz", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range found {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			quoted := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "[]byte("), ")")
			if body, err := strconv.Unquote(quoted); err == nil {
				add(body)
			}
		}
	}
	for i := range 3_000 {
		body := random.body()
		if i%4 == 0 {
			body = string(mutate(random.Rand, []byte(body), random.pick(examples)))
		}
		add(body)
	}
	return bodies, made
}

// signAgain puts the right signature where another one stands.
func signAgain(raw string) string {
	c, err := Decode([]byte(raw))
	if err != nil || c.CheckRefID() != nil {
		return raw
	}
	given := c.find("sign").text
	if len(given) != 32 || strings.EqualFold(given, sign(c.RefID)) {
		return raw
	}
	return strings.ReplaceAll(raw, given, sign(c.RefID))
}

// tricky makes signed callbacks that parsers could read differently.
type tricky struct{ *rand.Rand }

func (r tricky) pick(from []string) string { return from[r.Intn(len(from))] }

// often is true in most cases, rarely in few.
func (r tricky) often() bool  { return r.Intn(10) < 7 }
func (r tricky) rarely() bool { return r.Intn(50) == 0 }

func (r tricky) body() string {
	// Each a name, as it is spelled, and a value.
	var members [][2]string
	add := func(name, value string) { members = append(members, [2]string{r.spell(name), value}) }
	field := func(name, value string) {
		switch r.Intn(50) {
		case 0: // absent
		case 1:
			add(name, "null")
		default:
			add(name, value)
		}
	}
	pair := func(one, two, value string) {
		switch r.Intn(4) {
		case 0:
			field(one, value)
		case 1:
			field(two, value)
		case 2:
			field(one, value)
			field(two, value)
		default: // the same text, once as a number if it is one
			field(one, value)
			if jsonNumber.MatchString(value) {
				value = `"` + value + `"`
			}
			field(two, value)
		}
	}
	refID := fmt.Sprintf("order%03d", r.Intn(1000))
	spelled := r.spell(refID)
	switch r.Intn(4) {
	case 0:
		refID = r.pick(trickyTexts)
		spelled = r.spell(refID)
	case 1:
		refID = r.pick(trickyNumbers)
		spelled = refID
	}
	add("ref_id", spelled)
	signature := sign(refID)
	if !r.often() {
		signature = strings.ToUpper(signature)
	}
	add("sign", r.spell(signature))
	statuses := trickyStatuses
	if r.rarely() {
		statuses = wrongStatuses
	}
	add("status", r.pick(statuses))
	pair("code", "product_code", r.value("xld25000"))
	pair("hp", "customer_id", r.value("0817777215"))
	field("price", r.amount())
	field("balance", r.amount())
	for _, name := range []string{"message", "tr_id", "rc"} {
		field(name, r.value("00"))
	}
	for _, name := range []string{"sn", "pin", "activation_code"} {
		if !r.often() {
			field(name, r.value("ABCD-EFGH"))
		}
	}
	for range r.Intn(4) {
		add(r.pick(trickyNames), r.unknown())
	}
	if r.often() {
		r.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	}
	switch r.Intn(50) { // what has to be refused
	case 0:
		members = append(members, [2]string{members[r.Intn(len(members))][0], r.unknown()})
	case 1: // maybe a second time, spelled another way
		add(documented[r.Intn(len(documented))].name, r.unknown())
	case 2:
		add(r.caseVariant(documented[r.Intn(len(documented))].name), r.unknown())
	}
	top := [][2]string{{r.spell("data"), r.object(members)}}
	for !r.often() {
		top = append(top, [2]string{r.spell(r.pick(trickyNames)), r.unknown()})
	}
	r.Shuffle(len(top), func(i, j int) { top[i], top[j] = top[j], top[i] })
	body := r.space() + r.object(top) + r.space()
	switch r.Intn(50) {
	case 0, 1:
		body = "\ufeff" + body
	case 2:
		body += r.pick([]string{"\x00", "{}", ",", "}", "x", "\ufeff", "//", `{"data":{}}`})
	}
	return body
}

// value is that of a documented field: a string or a number.
func (r tricky) value(usual string) string {
	switch r.Intn(3) {
	case 0:
		return r.spell(usual)
	case 1:
		return r.pick(trickyNumbers)
	default:
		return r.spell(r.pick(trickyTexts))
	}
}

func (r tricky) amount() string {
	switch r.Intn(8) {
	case 0:
		return r.value("25000")
	case 1, 2, 3:
		return r.spell(r.pick(trickyNumbers))
	case 4:
		return fmt.Sprint(r.Int63()) + r.pick([]string{"", ".5", ".0", "e2", "E-20", "e+300"})
	default:
		return r.pick(trickyNumbers)
	}
}

// unknown is the value of a field that is not documented.
func (r tricky) unknown() string {
	switch r.Intn(8) {
	case 0:
		return r.pick([]string{"true", "false"})
	case 1:
		return "null"
	case 2: // at most a little too deep
		value := r.value("x")
		for range r.Intn(18) {
			if r.often() {
				value = r.object([][2]string{{r.spell(r.pick(trickyNames)), value}})
			} else {
				value = "[" + r.space() + value + ",1]"
			}
		}
		return value
	case 3:
		if !r.rarely() {
			return r.pick([]string{"{}", "[]", `[{"status":"2"}]`, `{"sn":"x","ref_id":1}`, `{"__proto__":{"pin":"x"}}`, `[null,[[1e999]]]`})
		}
		return r.pick([]string{ // what has to be refused
			`{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `"\ud800"`, `"\udc00\ud800"`, "\"\xff\"", "\"\xed\xa0\x80\"", "\"\xc0\xaf\"", "\"\x01\"", "'x'", "NaN", "-Infinity", "0x10", "007", "+5", ".5", "5.", "1e", "True", "undefined",
		})
	default:
		return r.value("x")
	}
}

func (r tricky) object(members [][2]string) string {
	var b strings.Builder
	b.WriteString("{" + r.space())
	for i, m := range members {
		if i > 0 {
			b.WriteString("," + r.space())
		}
		b.WriteString(m[0] + r.space() + ":" + r.space() + m[1] + r.space())
	}
	b.WriteString("}")
	return b.String()
}

func (r tricky) space() string {
	if r.often() {
		return ""
	}
	return r.pick([]string{" ", "\n", "\t", "\r", "\r\n", " \t\n\r "})
}

// caseVariant changes the case of a name, or one letter to another that is
// equal to it where case is ignored.
func (r tricky) caseVariant(name string) string {
	i := r.Intn(len(name))
	return r.pick([]string{
		strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:], name[:i] + strings.ToUpper(name[i:]), strings.Replace(name, "s", "ſ", 1),
	})
}

// spell writes a JSON string, its characters plain or escaped in any way.
func (r tricky) spell(s string) string {
	escaped := r.Intn(3) // none that need not be, some, all
	var b strings.Builder
	b.WriteByte('"')
	for len(s) > 0 {
		ch, size := utf8.DecodeRuneInString(s)
		plain := s[:size]
		s = s[size:]
		short := map[rune]string{'"': `\"`, '\\': `\\`, '/': `\/`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}[ch]
		must := ch < 0x20 || ch == '"' || ch == '\\'
		switch escape := must || escaped == 2 || escaped == 1 && r.Intn(2) == 0; {
		case !escape || ch == utf8.RuneError && size == 1:
			b.WriteString(plain)
		case short != "" && r.Intn(2) == 0:
			b.WriteString(short)
		case ch > 0xffff:
			format := r.pick([]string{`\u%04x\u%04x`, `\u%04X\u%04X`})
			fmt.Fprintf(&b, format, 0xd800+(ch-0x10000)>>10, 0xdc00+(ch-0x10000)&0x3ff)
		default:
			fmt.Fprintf(&b, r.pick([]string{`\u%04x`, `\u%04X`}), ch)
		}
	}
	b.WriteByte('"')
	return b.String()
}

var (
	// Names that mean something to a language, that look like a documented one,
	// or that PHP takes for the index of a list.
	trickyNames = []string{
		"__proto__", "constructor", "prototype", "toString", "hasOwnProperty", "length", "toJSON", "__class__", "__dict__", "this", "0", "1", "00", "01", "-1", "-0", "1.5", "1e1",
		"2147483648", "4294967295", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "", " ", "\x00", "\x00x", "\x00*\x00x", "x\x00", "\x1f", "\x7f", "a.b", "a[0]", "a[]",
		"a b", "$ref", "@type", "#text", "true", "null", "NaN", "data", "extra", "Data", "é", "e\u0301", "ß", "K", "İ", "ı", "\u00a0", "\u200b", "\u2028", "\ufeff", "\ufffd", "\uffff", "😀", "\U0010ffff",
		" ref_id", "ref_id ", "ref_id\x00", "\ufeffref_id", "ref-id", "refid", "re\u200bf_id", "\u0455tatus", "st\u0430tus", "ｓｎ", "s\u006e\u0301", `"`, `\`, "/", `\u0073n`, "sn\n", "<&>",
	}
	trickyTexts = []string{
		"", " ", " x ", "\t", "\n", "\x00", "a\x00b", "\x1f", "\x7f", "\u0080", "\u00a0", "é", "e\u0301", "\u200b", "\u2028\u2029", "\ufeff", "\ufffd", "\ufffe", "\uffff", "😀", "\U00010000",
		"\U0010ffff", "<&>'", `"`, `\`, `\"`, "/", "</script>", `\u0041`, `\ud800`, "null", "true", "false", "{}", "[]", "+5", "007", ".5", "5.", " 5", "5 ", "5\n", "1_000", "0x10", "0b1", "1e", "NaN", "Infinity",
		"-Infinity", "٣", "１", "1,5", "Straße", "ﬀ", "İ",
	}
	trickyNumbers = []string{
		"0", "-0", "0.0", "-0.0", "0e0", "-0e-5", "1", "-1", "1.0", "1.50", "10e-1", "1e0", "1E+0", "1e+05", "1e5", "1E5", "1e05", "100e-2", "16500", "25000.00", "0.1", "0.10", "4.35", "0.30000000000000004", "1.005",
		"2147483647", "2147483648", "-2147483649", "4294967296", "9007199254740991", "9007199254740992", "9007199254740993", "9007199254740993.0", "999999999999999.9", "1000000000000000", "1e15", "1e16", "1e21", "1e22",
		"1e23", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "9223372036854775807.0", "18446744073709551615", "18446744073709551616", "12345678901234567890",
		"123456789012345678901234567890.123456789", "1.00000000000000000001", "0.1000000000000000055511151231257827021181583404541015625", "1.7976931348623157e308", "1.7976931348623159e308", "1e308", "1e309", "-1e309",
		"1e999", "1e-999", "-1e-999", "2.2250738585072011e-308", "2.2250738585072014e-308", "5e-324", "2.4703282292062327e-324", "2.4703282292062328e-324", "1e99999999999999999999", "0e99999999999999999999",
		"1e-99999999999999999999", strings.Repeat("9", 250), "1." + strings.Repeat("0", 240) + "1", strings.Repeat("1", 4300), strings.Repeat("1", 4301), "0." + strings.Repeat("0", 400) + "1",
	}
	trickyStatuses = []string{
		`"0"`, `"1"`, `"2"`, `"\u0031"`, "0", "1", "2", "-0", "0.0", "-0.0e7", "1.0", "10e-1", "0.1e1", "1E0", "1e+00", "2.000", "200e-2", "0.02E+2", "0e99999999999999999999",
	}
	// Some parsers would round them to a right one, some languages compare them as equal.
	wrongStatuses = []string{"1.00000000000000000001", "1e-400", "3", "-1", "true", `"01"`, `"1.0"`, `"1e0"`, `" 1"`, `"１"`, `""`}
)
