package iakcallback

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"github.com/caddyserver/caddy/v2"
)

var (
	// sourcePlaceholder is a placeholder that names where a secret is, and so is
	// none itself.
	sourcePlaceholder = regexp.MustCompile(`\{(env\.[A-Za-z0-9_]+|file\.[^{}]+)\}`)

	shellVariable = regexp.MustCompile(`^\$\{?[A-Za-z_][A-Za-z0-9_]*\}?$`)
)

// resolve replaces the placeholders of one option, when a configuration is
// loaded. Its errors name the option, and a placeholder only if it is known to
// name a place: any other text in braces may be part of a secret.
func resolve(text, option string) (string, error) {
	switch {
	case strings.Count(text, "{") != strings.Count(text, "}"):
		return "", fmt.Errorf("%s has a brace without its other half: write {env.NAME} or {file./path}", option)
	case shellVariable.MatchString(text):
		return "", fmt.Errorf("%s is written as in a shell: write {env.NAME} or {file./path}", option)
	}
	repl := caddy.NewReplacer()
	resolved, err := repl.ReplaceOrErr(text, true, true)
	if err == nil && resolved != "" {
		return resolved, nil
	}
	for _, placeholder := range sourcePlaceholder.FindAllString(text, -1) {
		if repl.ReplaceAll(placeholder, "") == "" {
			return "", fmt.Errorf("%s: %s resolves to nothing: set the variable in Caddy's own environment, "+
				"or let Caddy read the file", option, placeholder)
		}
	}
	return "", fmt.Errorf("%s is empty, or a placeholder in it is unknown or resolves to nothing: "+
		"check the environment variable or file that it names", option)
}

// resolveSecret refuses what a file or variable got around a secret by mistake.
func resolveSecret(text, option string) (string, error) {
	resolved, err := resolve(text, option)
	if err != nil {
		return "", err
	}
	if added := added(resolved); added != "" {
		return "", fmt.Errorf("%s %s", option, added)
	}
	return resolved, nil
}

// resolveURL is resolveSecret for what is made of several parts: each value that a
// variable or file gives to it is looked at by itself, a password say.
func resolveURL(text, option string) (string, error) {
	if _, err := resolve(text, option); err != nil {
		return "", err
	}
	repl := caddy.NewReplacer()
	for _, placeholder := range sourcePlaceholder.FindAllString(text, -1) {
		if added := added(repl.ReplaceAll(placeholder, "")); added != "" {
			return "", fmt.Errorf("%s: the value of %s %s", option, placeholder, added)
		}
	}
	return resolveSecret(text, option)
}

// nameBefore is a line of an environment file, name and all. In base64, = only
// comes at the end.
var nameBefore = regexp.MustCompile(`^(export )?[A-Z_][A-Z0-9_]+=[^=]`)

// added says what an editor, a shell or a container has put around a secret, and
// what to do about it; nothing if it is clean. Accepted, it would make each
// callback fail, far from its cause.
func added(secret string) string {
	switch {
	case strings.HasPrefix(secret, "\xff\xfe") || strings.HasPrefix(secret, "\xfe\xff") || strings.Contains(secret, "\x00"):
		return "is UTF-16 or holds a NUL byte: save the file as UTF-8 without a byte order mark"
	case strings.HasPrefix(secret, "\ufeff"):
		return "begins with a byte order mark: save the file as UTF-8 without it"
	case strings.ContainsFunc(secret, func(r rune) bool { return unicode.Is(unicode.Cf, r) }):
		return "holds a character that cannot be seen, of zero width: type it anew"
	case strings.TrimSpace(secret) != secret:
		return "begins or ends with white space: remove it from the variable or file"
	case len(secret) > 1 && strings.ContainsRune("\"'`", rune(secret[0])) && secret[len(secret)-1] == secret[0]:
		return "has quotes around it, which are taken as a part of it: remove them from the variable or file"
	case nameBefore.MatchString(secret):
		return "begins with the name of a variable and =: keep only what follows it"
	default:
		return ""
	}
}
