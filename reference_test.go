package iakcallback

import "testing"

// Every example of IAK's reference, JSON and XML, version 1 and 2, reaches the
// app as the same bytes.
func TestReference(t *testing.T) {
	for _, body := range []string{"iak", "flat"} {
		for _, example := range []string{"game", "esim", "other", "failed"} {
			for _, input := range []string{"v1.json", "v1.xml", "v2.json", "v2.xml"} {
				t.Run(body+"/"+example+"/"+input, func(t *testing.T) {
					app := startApp(t, nil)
					s := startSite(t, "iak_callback {\n"+testAccount+"\nbody "+body+"\n}\nreverse_proxy "+app.addr())
					contentType := "application/json"
					if input[3:] == "xml" {
						contentType = "application/xml"
					}
					if got := s.send(contentType, reference(t, example+"."+input)); got.status != 200 {
						t.Fatalf("status %d, want 200", got.status)
					}
					if got, want := app.last(t).body, reference(t, example+"."+body+".json"); got != want {
						t.Errorf("the app received\n%s\nwant\n%s", got, want)
					}
				})
			}
		}
	}
}
