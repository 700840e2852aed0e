package console

import (
	"fmt"
	"html/template"
	"net/url"
	"strconv"
	"time"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/words"
)

// functions are what the pages call.
var functions = template.FuncMap{
	"t": func(lang words.Language, key any) string { return lang.Say(fmt.Sprint(key)) },
	"pair": func(lang words.Language, word any) map[string]any {
		return map[string]any{"Lang": lang, "Word": fmt.Sprint(word)}
	},
	"lately": func(lang words.Language, all []inspect.Recent) map[string]any {
		return map[string]any{"Lang": lang, "Lately": all}
	},
	"status": statusOf,
	"clock": func(at any) string {
		switch t := at.(type) {
		case time.Time:
			return t.Local().Format("2006-01-02 15:04:05")
		case *time.Time:
			return t.Local().Format("2006-01-02 15:04:05")
		}
		return ""
	},
	"ms": func(seconds float64) string {
		return time.Duration(seconds * float64(time.Second)).Round(time.Millisecond).String()
	},
	"at": func(path, account, refID string, more ...string) string {
		query := url.Values{"account": {account}, "ref_id": {refID}}
		for i := 0; i+1 < len(more); i += 2 {
			query.Set(more[i], more[i+1])
		}
		return path + "?" + query.Encode()
	},
	"can": can,
	// calm, busy or hand: whether it needs a hand. The word is always beside the colour.
	"tone": func(state string) string { return tones[state] },
}

var tones = map[string]string{
	"in_flight": "busy", "in_doubt": "hand", "held": "hand", "accepted": "calm", "assumed": "busy", "released": "calm", "spooled": "busy", "dead": "hand",

	"forwarded": "calm", "duplicate": "calm", "stale": "calm", "acknowledged": "calm", "rejected": "busy", "app_failed": "busy", "not_confirmed": "busy",
	"conflict": "hand", "unconfirmed": "hand", "app_unknown": "hand", "unrouted": "hand", "store_unavailable": "hand",
}

// can are the actions that a record's state allows, the likeliest first.
func can(r inspect.Record) []string {
	switch r.State {
	case inspect.Held:
		if r.Kept != nil {
			return []string{"accept", "release", "redeliver", "forget"}
		}
		return []string{"accept", "release", "forget"}
	case inspect.Spooled, inspect.Dead:
		return []string{"redeliver", "forget"}
	case inspect.InFlight:
		return nil
	case "in_doubt":
		return []string{"accept", "release", "forget"}
	default:
		return []string{"forget"}
	}
}

// bar is one minute of the plot.
type bar struct {
	X, Y, Height int
	Title        string
}

// plotted are the callbacks of the last hour, by minute.
type plotted struct {
	Bars []bar
	Most int // in one minute
	Sum  int
}

const (
	plotHeight = 60
	barStep    = 10
)

// plot counts callbacks by the minute of the clock, which is not over for the last one.
func plot(recent []inspect.Recent, now time.Time) (p plotted) {
	var minutes [60]int
	for _, r := range recent {
		if age := int(now.Truncate(time.Minute).Sub(r.Time.Truncate(time.Minute)) / time.Minute); age >= 0 && age < len(minutes) {
			minutes[len(minutes)-1-age]++
			p.Sum++
		}
	}
	for _, n := range minutes {
		p.Most = max(p.Most, n)
	}
	for i, n := range minutes {
		height := 0
		if n > 0 {
			height = max(n*plotHeight/p.Most, 2)
		}
		p.Bars = append(p.Bars, bar{
			X: i * barStep, Y: plotHeight - height, Height: height,
			Title: now.Add(time.Duration(i-59)*time.Minute).Local().Format("15:04") + ": " + strconv.Itoa(n),
		})
	}
	return p
}
