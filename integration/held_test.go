package integration

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
)

// What is held waits for an operator for as long as it takes: it does not expire, from
// the claim on, since its owner may die. When it is settled, or was never in doubt, it is
// kept for retention.
func TestHeldDoesNotExpire(t *testing.T) {
	shortLease(t)
	redis := redistest.Start(t)
	client := redis.Client()
	for name, option := range map[string]string{"redis": "redis " + redis.URL(), "embedded": ""} {
		t.Run(name, func(t *testing.T) {
			g := startGates(t)
			s := sitetest.StartOperated(t, sitetest.Block(option, "on_doubt hold", "upstream_timeout 500ms", "retention 48h")+"reverse_proxy "+g.app.Addr())
			// forever tells what Redis has, or an operator sees, of a record's end.
			forever := func(ref string) bool {
				t.Helper()
				if name == "redis" {
					life, err := client.PTTL(context.Background(), "iak:test:"+ref).Result()
					if err != nil || life <= 0 {
						t.Fatalf("%s lives for %s, %v", ref, life, err)
					}
					if shown := s.Show(ref)[0].Expires.IsZero(); shown != (life > 49*time.Hour) {
						t.Errorf("%s lives for %s, and an operator sees that it does not expire: %t", ref, life, shown)
					}
				}
				return s.Show(ref)[0].Expires.IsZero()
			}
			expect := func(ref, state string, want bool) {
				t.Helper()
				s.ComesTo(ref, state)
				if forever(ref) != want {
					t.Errorf("%s, %s: it does not expire: %t, want %t", ref, state, !want, want)
				}
			}
			for _, ref := range []string{"accept", "release", "process", "right"} {
				status := "1"
				if ref == "process" {
					status = "0"
				}
				first := make(chan sitetest.Reply, 1)
				go func() { first <- s.Post(sitetest.Order(ref, status)) }()
				<-g.arrived
				if forever(ref) != (ref != "process") {
					t.Errorf("%s in flight: it does not expire: %t", ref, forever(ref))
				}
				if ref == "right" {
					g.open("test:" + ref + ":1")
					(<-first).Expect(t, ref, http.StatusOK)
				} else {
					(<-first).Expect(t, ref, http.StatusGatewayTimeout)
				}
			}
			expect("right", "accepted", false)
			expect("accept", "held", true)
			expect("release", "held", true)
			expect("process", "released", false)
			s.Must("accept", "test", "accept")
			s.Must("release", "test", "release")
			expect("accept", "accepted", false)
			expect("release", "released", false)
		})
	}
}
