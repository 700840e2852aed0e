package iakcallback

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

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

func (h *Handler) resolveAccounts() error {
	for _, a := range h.Accounts {
		username, err := resolveSecret(a.Username, fmt.Sprintf("account %q: username", a.Name))
		if err != nil {
			return err
		}
		apiKey, err := resolveSecret(a.APIKey, fmt.Sprintf("account %q: api_key", a.Name))
		if err != nil {
			return err
		}
		if err = h.accounts.add(a.Name, username, apiKey); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) resolveStore() error {
	if h.Redis != nil && h.Embedded != nil {
		return errors.New("redis and embedded exclude each other: remove one")
	}
	if h.Redis != nil {
		return h.resolveRedis()
	}
	path := filepath.Join(caddy.AppDataDir(), "iak_callback", "records.db")
	if h.Embedded != nil && h.Embedded.File != "" {
		var err error
		if path, err = resolve(h.Embedded.File, "embedded: file"); err != nil {
			return err
		}
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("embedded: file: %w", err)
	}
	h.store = &storeRef{
		kind: "embedded",
		key:  poolKey("embedded", path),
		open: func() (openStore, error) { return newEmbeddedStore(path), nil },
	}
	return nil
}

func (h *Handler) resolveRedis() error {
	cfg := redisConfig{
		masterName: h.Redis.MasterName,
		cluster:    h.Redis.Cluster,
		poolSize:   h.Redis.PoolSize,
		timeout:    time.Duration(h.Redis.Timeout),
	}
	for i, u := range h.Redis.URLs {
		resolved, err := resolve(u, fmt.Sprintf("redis: url %d", i+1))
		if err != nil {
			return err
		}
		cfg.urls = append(cfg.urls, resolved)
	}
	h.keyPrefix = h.Redis.KeyPrefix
	h.store = &storeRef{
		kind: "redis",
		key:  poolKey("redis", fmt.Sprintf("%#v", cfg)),
		open: func() (openStore, error) { return newRedisStore(cfg) },
	}
	return nil
}

// poolKey hashes what shapes a store's connection, a password perhaps: the
// pool prints its keys when it panics.
func poolKey(kind, settings string) string {
	sum := sha256.Sum256([]byte(settings))
	return kind + ":" + hex.EncodeToString(sum[:])
}
