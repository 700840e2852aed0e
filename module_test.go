package iakcallback

import (
	"fmt"
	"strings"
	"testing"
)

// A handler prints its accounts' names and nothing else, in whatever way it is
// printed.
func TestModuleString(t *testing.T) {
	h := Handler{
		Accounts: []Account{{"shop", "0811-user", "5ecret-key"}, {"game", "{env.GAME_USERNAME}", "{env.GAME_KEY}"}},
		Redis:    &Redis{URLs: []string{"redis://:5ecret-password@localhost"}},
	}
	for _, verb := range []string{"%s", "%v", "%+v", "%q"} {
		for _, got := range []string{fmt.Sprintf(verb, h), fmt.Sprintf(verb, &h)} {
			if !strings.Contains(got, "shop") || !strings.Contains(got, "game") {
				t.Errorf("%s prints %s, want the accounts' names", verb, got)
			}
			for _, secret := range []string{"0811", "5ecret", "GAME_KEY"} {
				if strings.Contains(got, secret) {
					t.Errorf("%s prints %q: %s", verb, secret, got)
				}
			}
		}
	}
}
