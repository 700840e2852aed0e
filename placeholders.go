package iakcallback

import (
	"fmt"
	"regexp"
	"strings"

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
	if err == nil && strings.TrimSpace(resolved) != resolved {
		return "", fmt.Errorf("%s begins or ends with white space: remove it from the variable or file", option)
	}
	return resolved, err
}
