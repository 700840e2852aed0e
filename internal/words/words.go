// Package words is what the console and the commands say to people, in English and in
// Indonesian.
package words

import (
	"os"
	"strings"
)

// Language is one of those that there are texts in.
type Language string

// The languages.
const (
	English    Language = "en"
	Indonesian Language = "id"
)

// text is one text in both languages. Without en the key is the English text.
type text struct{ en, id string }

type catalog map[string]text

// Lookup is the language of a tag, such as id-ID or id_ID.UTF-8.
func Lookup(tag string) (l Language, ok bool) {
	tag, _, _ = strings.Cut(strings.ToLower(strings.TrimSpace(tag)), ".")
	tag, _, _ = strings.Cut(strings.ReplaceAll(tag, "_", "-"), "-")
	switch tag {
	case "id", "in": // in is what older systems call Indonesian
		return Indonesian, true
	case "en":
		return English, true
	default:
		return English, false
	}
}

// FromBrowser is the first of our languages in an Accept-Language header.
func FromBrowser(header string) Language {
	for part := range strings.SplitSeq(header, ",") {
		tag, _, _ := strings.Cut(part, ";")
		if l, ok := Lookup(tag); ok {
			return l
		}
	}
	return English
}

// FromEnvironment is the language of a command: that of the first of LC_ALL, LC_MESSAGES
// and LANG that is set (POSIX, 8.2 Internationalization Variables).
func FromEnvironment() Language {
	for _, name := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if value := os.Getenv(name); value != "" {
			l, _ := Lookup(value)
			return l
		}
	}
	return English
}

// Say is the text of a key, the key itself if there is none: what Caddy says comes as it
// is.
func (l Language) Say(key string) string {
	t := find(key)
	switch {
	case l == Indonesian && t.id != "":
		return t.id
	case t.en != "":
		return t.en
	default:
		return key
	}
}

// Has tells whether there is a text in Indonesian.
func Has(key string) bool { return find(key).id != "" }

func find(key string) text {
	if t, ok := pages[key]; ok {
		return t
	}
	return commands[key]
}
