package command

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/words"
	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"
)

var errTaken = errors.New("the app took a forgery: this path does not pass iak_callback; see \"Let nothing get around it\" in docs/configuration.md, " +
	"and try caddy iak-callback check")

// meanings say of each outcome what it means for whoever has sent the callback.
var meanings = map[string]string{
	"forwarded":         "The app has accepted it",
	"duplicate":         "Answered from the record: the app did not see it, since it has accepted the same before",
	"stale":             "Answered from the record: the app did not see it, since it has accepted newer news before",
	"acknowledged":      "Answered by on_process acknowledge: the app did not see it",
	"spooled":           "It is kept, and delivered to the app by itself until that accepts it; caddy iak-callback show tells how that goes",
	"in_flight":         "Not taken: the same order is being delivered right now; send it again in some seconds",
	"held":              "Held: nobody knows whether the app has acted on this order, and an operator has to say",
	"conflict":          "Refused: it contradicts what the app has accepted of this order",
	"unconfirmed":       "Refused by confirm: IAK says another thing of this order",
	"not_confirmed":     "Not taken: IAK has not confirmed it yet",
	"app_failed":        "The app has not accepted it",
	"app_unknown":       "The app gave no whole answer in time: it may have acted",
	"assumed":           "The app did not answer, and on_doubt accept takes that for a yes",
	"store_unavailable": "Not taken: the store does not answer",
}

// refusals say of each status what it most often means, where Caddy cannot be asked.
var refusals = map[int]string{
	http.StatusForbidden:           "Refused: no account signs so; check username, api key, and production against development",
	http.StatusNotFound:            "No such page, or the app does not know the order",
	http.StatusMethodNotAllowed:    "Refused: something on the way has made another method of the POST",
	http.StatusConflict:            "Not taken: the order is being delivered, is held, or says otherwise by now; caddy iak-callback show tells",
	http.StatusUnprocessableEntity: "Refused: a field is missing or wrong; Caddy's log names it",
	http.StatusServiceUnavailable:  "Not taken: the store, IAK or the app does not answer; caddy iak-callback check tells which",
	http.StatusBadGateway:          "The app could not be reached, or its answer does not count",
	http.StatusGatewayTimeout:      "The app did not answer in time: it may have acted",
}

// What an answer means where neither outcome nor status says it.
const (
	meansBroken    = "The answer is not whole: the app may have got the callback"
	meansForgery   = "The app took a forgery: this path does not pass iak_callback"
	meansRefused   = "Right: the forgery was refused, and the app did not see it"
	meansUnseen    = "Something has answered, but the Caddy at --address has not seen the callback: either the path does not pass iak_callback, or it is another Caddy; caddy iak-callback check tells"
	meansRejected  = "Refused by iak_callback, reason %s: %s"
	meansAccepted  = "The app has accepted it, or with a spool it is kept for the app: caddy iak-callback show tells which, with --address if the admin API is not at localhost:2019"
	meansRedirect  = "A redirect, which IAK may not follow: give IAK the url that it leads to"
	meansElsewhere = "Not accepted: see Caddy's log, and the app's"
)

// meaningOf says what an answer means, by what the running Caddy tells of the callback if
// it was asked.
func meaningOf(a *siteAnswer, r *inspect.Recent, asked, forged bool) string {
	say := words.FromEnvironment().Say
	switch {
	case a.err != nil:
		return say(meansBroken)
	case forged && a.code/100 == 2:
		return say(meansForgery)
	case r != nil && r.Outcome == "rejected" && r.Reason == "signature" && forged:
		return say(meansRefused)
	case r != nil && r.Outcome == "rejected" && r.Reason == "signature":
		return say(refusals[http.StatusForbidden])
	case r != nil && r.Outcome == "rejected":
		return fmt.Sprintf(say(meansRejected), r.Reason, r.Error)
	case a.replayed():
		return say(meanings["duplicate"])
	case r != nil && meanings[r.Outcome] != "":
		return say(meanings[r.Outcome])
	case a.code/100 == 2 && asked && r == nil:
		return say(meansUnseen)
	case a.code/100 == 2:
		return say(meansAccepted)
	case a.code/100 == 3:
		return say(meansRedirect)
	case speaksTLS(a):
		return say(doHTTPS)
	case refusals[a.code] != "":
		return say(refusals[a.code])
	default:
		return say(meansElsewhere)
	}
}

// outcomeOf asks the running Caddy what has become of the last callback of an order that
// was answered so: nil if that has none. asked tells whether it has said anything.
func outcomeOf(cmd *cobra.Command, refID string, a *siteAnswer) (last *inspect.Recent, asked bool) {
	err := eachRecent(cmd, url.Values{"ref_id": {refID}, "since": {"1m"}}, func(r inspect.Recent, _ []byte) {
		// Of several that were sent at once the others are something else.
		if replayed := r.Outcome == "duplicate" || r.Outcome == "stale"; replayed == a.replayed() {
			last = &r
		}
	})
	return last, err == nil
}

// resolve resolves what stands for something else, and finds the url if none was given.
func (o *sendOptions) resolve(cmd *cobra.Command) error {
	repl := caddy.NewReplacer()
	for _, flag := range []struct {
		name string
		text *string
	}{{"to", &o.to}, {"username", &o.username}, {"api-key", &o.apiKey}, {"ref-id", &o.refID}} {
		if !strings.Contains(*flag.text, "{env.") && !strings.Contains(*flag.text, "{file.") {
			continue
		}
		resolved, err := repl.ReplaceOrErr(*flag.text, true, true)
		if err != nil || resolved == "" {
			return errors.New("--" + flag.name + " has a placeholder that resolves to nothing: check the environment variable or file that it names")
		}
		*flag.text = strings.TrimSuffix(resolved, "\n")
	}
	if o.to != "" {
		return nil
	}
	var err error
	o.to, err = oneCallbackURL(callbackURLs(cmd))
	return err
}
