package integration

import (
	"testing"

	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// Every example of IAK's reference, JSON and XML, version 1 and 2, reaches the
// app as the same bytes.
func TestReference(t *testing.T) {
	for _, body := range []string{"iak", "flat"} {
		for _, example := range []string{"game", "esim", "other", "failed"} {
			for _, input := range []string{"v1.json", "v1.xml", "v2.json", "v2.xml"} {
				t.Run(body+"/"+example+"/"+input, func(t *testing.T) {
					app := sitetest.StartApp(t, nil)
					s := sitetest.Start(t, "iak_callback {\n"+sitetest.Account+"\nbody "+body+"\n}\nreverse_proxy "+app.Addr())
					contentType := "application/json"
					if input[3:] == "xml" {
						contentType = "application/xml"
					}
					if got := s.Send(contentType, sitetest.Reference(t, example+"."+input)); got.Status != 200 {
						t.Fatalf("status %d, want 200", got.Status)
					}
					if got, want := app.Last(t).Body, sitetest.Reference(t, example+"."+body+".json"); got != want {
						t.Errorf("the app received\n%s\nwant\n%s", got, want)
					}
				})
			}
		}
	}
}
