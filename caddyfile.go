package iakcallback

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("iak_callback", parseCaddyfile)
	httpcaddyfile.RegisterDirectiveOrder("iak_callback", httpcaddyfile.Before, "basic_auth")
}

func parseCaddyfile(helper httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	h := new(Handler)
	err := h.UnmarshalCaddyfile(helper.Dispenser)
	return h, err
}

// UnmarshalCaddyfile reads the directive:
//
//	iak_callback [<matcher>] {
//		account  <name> <username> <api_key>
//		redis    <url>... {
//			master_name <name>
//			cluster
//			key_prefix  <prefix>
//			timeout     <duration>
//			pool_size   <n>
//		}
//		embedded         <file>
//		body             iak|flat
//		upstream_timeout <duration>
//		retention        <duration>
//		max_body_size    <size>
//		validate         strict|lenient
//		on_process       forward|acknowledge
//		on_conflict      reject|forward
//		on_doubt         retry|hold|accept
//		on_store_error   reject|forward|keep
//		accept_when      [not] body <regexp>
//		accept_when      [not] header <name> [<regexp>]
//		callback_url     <url>
//		spool {
//			answer_within <duration>
//			delay         <duration>
//			backoff       <first pause> <longest pause>
//			max_age       <duration>
//			max_pending   <n>
//			concurrency   <n>
//		}
//		confirm [final|conflict] {
//			base     <url>
//			base     <account> <url>
//			timeout  <duration>
//			rate     <n>
//			on_error retry|forward
//		}
//	}
//
// Sizes are read by go-humanize: 64KiB is 65536 bytes, 64KB is 64000.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() {
		return d.ArgErr()
	}
	return unmarshalBlock(d, "", []string{"account", "accept_when"}, h.unmarshalOption)
}

// unmarshalBlock reads the options of a block, of which only several may be given more
// than once.
func unmarshalBlock(d *caddyfile.Dispenser, block string, several []string, unmarshal func(d *caddyfile.Dispenser, option string) error) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] && !slices.Contains(several, option) {
			return d.Errf("%s%s is given twice", block, option)
		}
		seen[option] = true
		if err := unmarshal(d, option); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "account":
		var a Account
		if !d.AllArgs(&a.Name, &a.Username, &a.APIKey) {
			return d.Err("account takes <name> <username> <api_key>") // ArgErr would quote the last of them
		}
		h.Accounts = append(h.Accounts, a)
		return noBlock(d)
	case "redis":
		return h.unmarshalRedis(d)
	case "embedded":
		h.Embedded = new(Embedded)
		return unmarshalText(d, &h.Embedded.File)
	case "body":
		return unmarshalWord(d, &h.Body, bodyIAK, bodyFlat)
	case "upstream_timeout":
		return unmarshalDuration(d, &h.UpstreamTimeout)
	case "retention":
		return unmarshalDuration(d, &h.Retention)
	case "max_body_size":
		return unmarshalSize(d, &h.MaxBodySize)
	case "validate":
		return unmarshalWord(d, &h.Validation, validateStrict, validateLenient)
	case "on_process":
		return unmarshalWord(d, &h.OnProcess, processForward, processAcknowledge)
	case "on_conflict":
		return unmarshalWord(d, &h.OnConflict, conflictReject, conflictForward)
	case "on_doubt":
		return unmarshalWord(d, &h.OnDoubt, doubtRetry, doubtHold, doubtAccept)
	case "on_store_error":
		return unmarshalWord(d, &h.OnStoreError, storeErrorReject, storeErrorForward, storeErrorKeep)
	case "accept_when":
		return h.unmarshalAcceptWhen(d)
	case "callback_url":
		return h.unmarshalCallbackURL(d)
	case "spool":
		return h.unmarshalSpool(d)
	case "confirm":
		return h.unmarshalConfirm(d)
	default:
		return d.Errf("unknown option%s", word(option))
	}
}

func (h *Handler) unmarshalRedis(d *caddyfile.Dispenser) error {
	h.Redis = &Redis{URLs: d.RemainingArgs()}
	if len(h.Redis.URLs) == 0 {
		return d.ArgErr()
	}
	return unmarshalBlock(d, "redis: ", nil, h.Redis.unmarshalOption)
}

func (r *Redis) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	switch option {
	case "master_name":
		return unmarshalText(d, &r.MasterName)
	case "cluster":
		if d.NextArg() {
			return d.ArgErr()
		}
		r.Cluster = true
		return noBlock(d)
	case "key_prefix":
		return unmarshalText(d, &r.KeyPrefix)
	case "timeout":
		return unmarshalDuration(d, &r.Timeout)
	case "pool_size":
		return unmarshalCount(d, "redis: ", &r.PoolSize)
	default:
		return d.Errf("redis: unknown option%s", word(option))
	}
}

var optionWord = regexp.MustCompile(`^[A-Za-z_]+$`)

// word quotes what could be meant as an option, and nothing else: an api key or
// a url may have slipped onto a line of its own.
func word(text string) string {
	if !optionWord.MatchString(text) {
		return ""
	}
	return fmt.Sprintf(" %q", text)
}

// unmarshalText reads exactly one argument, and no block behind it.
func unmarshalText(d *caddyfile.Dispenser, text *string) error {
	if !d.AllArgs(text) || *text == "" {
		return d.ArgErr()
	}
	return noBlock(d)
}

// noBlock refuses a block where none belongs: left alone, its words would be
// read as options.
func noBlock(d *caddyfile.Dispenser) error {
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		return d.Err("a block is not expected here")
	}
	return nil
}

func unmarshalWord(d *caddyfile.Dispenser, word *string, words ...string) error {
	option := d.Val()
	if err := unmarshalText(d, word); err != nil {
		return err
	}
	if !slices.Contains(words, *word) {
		return d.Errf("%s %q: use %s", option, *word, either(words))
	}
	return nil
}

func unmarshalDuration(d *caddyfile.Dispenser, duration *caddy.Duration) error {
	option := d.Val()
	var text string
	if err := unmarshalText(d, &text); err != nil {
		return err
	}
	return parseDuration(d, option, text, duration)
}

func parseDuration(d *caddyfile.Dispenser, option, text string, duration *caddy.Duration) error {
	parsed, err := caddy.ParseDuration(text)
	if err != nil || parsed <= 0 {
		return d.Errf("%s %q is not a positive duration, such as 30s or 30d", option, text)
	}
	*duration = caddy.Duration(parsed)
	return nil
}

// unmarshalPause reads a duration that may be 0.
func unmarshalPause(d *caddyfile.Dispenser, duration *caddy.Duration) error {
	option := d.Val()
	var text string
	if err := unmarshalText(d, &text); err != nil {
		return err
	}
	parsed, err := caddy.ParseDuration(text)
	if err != nil || parsed < 0 {
		return d.Errf("%s %q is not a duration, such as 0s or 5s", option, text)
	}
	*duration = caddy.Duration(parsed)
	return nil
}

func unmarshalCount(d *caddyfile.Dispenser, block string, count *int) error {
	option := d.Val()
	var text string
	if err := unmarshalText(d, &text); err != nil {
		return err
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return d.Errf("%s%s %q is not a positive number", block, option, text)
	}
	*count = n
	return nil
}

func unmarshalSize(d *caddyfile.Dispenser, size *int64) error {
	option := d.Val()
	var text string
	if err := unmarshalText(d, &text); err != nil {
		return err
	}
	parsed, err := humanize.ParseBytes(text)
	if err != nil || parsed == 0 || parsed > maxMaxBodySize {
		return d.Errf("%s %q is not a size between 1B and 1GiB, such as 64KiB", option, text)
	}
	*size = int64(parsed) //nolint:gosec // bounded above
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Handler)(nil)
