package iakcallback

import (
	"reflect"
	"slices"
	"strings"

	"github.com/caddy-iak/iakcallback/internal/iak"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// What is told when a configuration has started: each of these works, but not as
// its owner means it.
const (
	warnNothingBehind = "nothing comes after iak_callback on its route: put the app's reverse_proxy or php_fastcgi there, " +
		"or each right callback is answered 502 (with a spool 200, and kept) and none reaches the app"
	warnBehindItself = "iak_callback stands behind itself on one route: the second cannot verify what the first has forwarded, " +
		"so each right callback is answered 500 (with a spool 200, and kept) and none reaches the app; remove one"
	warnTwoKeys = "one account name has different usernames or keys on one store: the orders of both share their records, " +
		"so an order of one can be taken for a repeat of the other's; give them names of their own, or a redis key_prefix or embedded file"
)

// lookOver warns of what can be seen when all handlers are known.
func (a *App) lookOver() {
	a.mu.Lock()
	handlers := slices.Clone(a.handlers)
	a.mu.Unlock()
	warn := func(text, of string, field zap.Field) {
		logger().Warn(text, field)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.warnings = append(a.warnings, of+": "+text)
	}
	for _, name := range twoKeys(handlers) {
		warn(warnTwoKeys, name, zap.String("account", name))
	}
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return // handlers that are not reached by HTTP
	}
	for _, server := range app.(*caddyhttp.App).Servers {
		all := steps(server.Routes, nil)
		for i, at := range all {
			h, ok := at.handler.(*Handler)
			if !ok {
				continue
			}
			behind := at.behind(all[i+1:])
			accounts := zap.Stringer("handler", h)
			switch {
			case slices.ContainsFunc(behind, func(s step) bool { return isOurs(s.handler) && s.always(at) }):
				warn(warnBehindItself, h.String(), accounts)
			case !slices.ContainsFunc(behind, func(s step) bool { return !isOurs(s.handler) }):
				warn(warnNothingBehind, h.String(), accounts)
			}
		}
	}
}

func isOurs(h caddyhttp.MiddlewareHandler) bool {
	_, ok := h.(*Handler)
	return ok
}

// step is a handler with the routes that lead to it, outermost first.
type step struct {
	handler caddyhttp.MiddlewareHandler
	routes  []position
}

type position struct {
	route *caddyhttp.Route
	at    int // in its list
}

// steps are the handlers of a list of routes, in the order in which a request meets
// them if all matchers match.
func steps(routes caddyhttp.RouteList, above []position) (all []step) {
	for i := range routes {
		here := append(slices.Clip(above), position{&routes[i], i})
		for _, h := range routes[i].Handlers {
			if sub, ok := h.(*caddyhttp.Subroute); ok {
				all = append(all, steps(sub.Routes, here)...)
			} else {
				all = append(all, step{h, here})
			}
		}
	}
	return all
}

// behind are those of the later steps that a request can meet after s: where both
// ways part, s's route must not be terminal, nor of the same group (Caddy v2.11.9,
// caddyhttp/routes.go, wrapRoute).
func (s step) behind(later []step) (found []step) {
	for _, l := range later {
		common := 0
		for common < min(len(s.routes), len(l.routes)) && s.routes[common] == l.routes[common] {
			common++
		}
		ends := slices.ContainsFunc(s.routes[common:], func(p position) bool { return p.route.Terminal })
		apart := common < len(s.routes) && common < len(l.routes)
		if ends || apart && s.routes[common].route.Group != "" && s.routes[common].route.Group == l.routes[common].route.Group {
			continue
		}
		found = append(found, l)
	}
	return found
}

// always tells whether a request that has met other meets s too: each of its
// conditions is one of other's.
func (s step) always(other step) bool {
	for _, p := range s.routes {
		same := func(q position) bool { return reflect.DeepEqual(p.route.MatcherSets, q.route.MatcherSets) }
		if len(p.route.MatcherSets) > 0 && !slices.ContainsFunc(other.routes, same) {
			return false
		}
	}
	return true
}

// twoKeys finds the accounts' names that stand for different credentials on one
// store. While a key is being rotated, the handlers that know both have one in common
// with each of the others.
func twoKeys(handlers []*Handler) (names []string) {
	secrets := make(map[string]map[iak.Secret]bool) // by store, prefix and name
	for _, h := range handlers {
		own := make(map[string]map[iak.Secret]bool)
		for _, c := range h.accounts {
			place := strings.Join([]string{h.store.ID(), h.keyPrefix, c.account}, "\x00")
			if own[place] == nil {
				own[place] = make(map[iak.Secret]bool)
			}
			own[place][c.secret] = true
		}
		for place, now := range own {
			before, name := secrets[place], place[strings.LastIndexByte(place, 0)+1:]
			common := len(before) == 0
			for secret := range now {
				common = common || before[secret]
			}
			if !common && !slices.Contains(names, name) {
				names = append(names, name)
			}
			if before == nil {
				before = make(map[iak.Secret]bool)
			}
			for secret := range now {
				before[secret] = true
			}
			secrets[place] = before
		}
	}
	slices.Sort(names)
	return names
}
