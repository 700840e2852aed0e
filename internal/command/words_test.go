package command

import (
	"slices"
	"testing"

	"github.com/caddy-iak/iakcallback/internal/inspect"
	"github.com/caddy-iak/iakcallback/internal/words"
)

// Everything that the commands advise is there in Indonesian.
func TestAdviceInIndonesian(t *testing.T) {
	all := []string{
		meansBroken, meansForgery, meansRefused, meansUnseen, meansRejected, meansAccepted, meansRedirect, meansElsewhere,
		doRedirect, doForgery, doSibling, doLook, doOwnPort, doUnseen, doHTTPS, doGet,
		notUntilSettled, notWhileKept, inOutageFile, dueIfDead, dueIfHeld, dueIfUnrouted,
	}
	for _, text := range meanings {
		all = append(all, text)
	}
	for _, text := range refusals {
		all = append(all, text)
	}
	for _, text := range deliveries {
		all = append(all, text)
	}
	for _, try := range []inspect.Try{
		{Result: inspect.NotConfirmed}, {Result: inspect.Unsent}, {Result: inspect.Unknown}, {Result: inspect.Refused},
		{Result: inspect.Refused, AppStatus: 200}, {Result: inspect.Refused, AppStatus: 500},
	} {
		all = append(all, try.What())
	}
	slices.Sort(all)
	for _, text := range slices.Compact(all) {
		if !words.Has(text) {
			t.Errorf("%q has no Indonesian", text)
		}
	}
}
