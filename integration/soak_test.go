package integration

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/redis/go-redis/v9"
)

// make test gives the soak a few seconds, so that it does not rot; make soak
// gives it an hour.
var soakTime = flag.Duration("soak", 5*time.Second, "how long TestSoak runs")

const (
	soakUpstreamTimeout = 4 * time.Second
	soakGoods           = "SN-1" // what comes late
)

// soakCaddy is a Caddy process that can be killed, started again on its old
// data, and reloaded.
type soakCaddy struct {
	name, port, dir string
	store           string // the lines of the configuration that choose the store
	app             string // the app's address
	versions        atomic.Int64

	mu    sync.Mutex
	cmd   *exec.Cmd
	kills []time.Time
}

func (p *soakCaddy) url() string { return "http://127.0.0.1:" + p.port }

// configure writes the next version of the configuration.
func (p *soakCaddy) configure(t testing.TB) (version string) {
	n := p.versions.Add(1)
	version = strconv.FormatInt(n, 10)
	block := sitetest.Block(p.store, "upstream_timeout "+soakUpstreamTimeout.String(), fmt.Sprintf("retention %dh", 48+n))
	writeFile(t, filepath.Join(p.dir, "Caddyfile"), []byte(`{
	admin off
	persist_config off
	grace_period 1s
	log {
		output file `+filepath.Join(p.dir, "log")+` {
			roll_disabled
		}
		format json
	}
}
`+p.url()+` {
	handle /version {
		respond "`+version+`"
	}
	handle {
		`+block+`
		request_header Test-Via `+p.name+`
		reverse_proxy `+p.app+`
	}
}
`))
	return version
}

func (p *soakCaddy) start(t testing.TB) {
	version := p.configure(t)
	cmd := exec.Command(sitetest.BuiltCaddy(t), "run", "--config", filepath.Join(p.dir, "Caddyfile"))
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+p.dir, "XDG_CONFIG_HOME="+p.dir)
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	p.mu.Lock()
	p.cmd = cmd
	p.mu.Unlock()
	p.await(t, version)
}

// await waits until a version of the configuration is in use.
func (p *soakCaddy) await(t testing.TB, version string) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		answer, err := sitetest.Client.Get(p.url() + "/version")
		if err != nil {
			continue
		}
		b := make([]byte, 20)
		n, _ := answer.Body.Read(b)
		answer.Body.Close()
		if string(b[:n]) == version {
			return
		}
	}
	t.Errorf("Caddy %s does not come up with its configuration %s", p.name, version)
}

// kill ends the process without any warning.
func (p *soakCaddy) kill() { p.end(syscall.SIGKILL) }

// end ends the process by a signal.
func (p *soakCaddy) end(by syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(by)
	_ = p.cmd.Wait()
	p.kills = append(p.kills, time.Now())
}

// reload makes Caddy load another version of its file.
func (p *soakCaddy) reload(t testing.TB) {
	version := p.configure(t)
	p.mu.Lock()
	err := p.cmd.Process.Signal(syscall.SIGUSR1)
	p.mu.Unlock()
	if err != nil {
		t.Error(err)
		return
	}
	p.await(t, version)
}

// killedBetween tells whether the process was killed in this time.
func (p *soakCaddy) killedBetween(from, to time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.kills {
		if at.After(from) && at.Before(to) {
			return true
		}
	}
	return false
}

// usage is what the process holds: megabytes of memory, and open files.
func (p *soakCaddy) usage() (megabytes, files int) {
	p.mu.Lock()
	proc := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	p.mu.Unlock()
	status, _ := os.ReadFile(proc + "/status")
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, "VmRSS:"); found {
			kB, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			megabytes = kB / 1024
		}
	}
	open, _ := os.ReadDir(proc + "/fd")
	return megabytes, len(open)
}

// log gives what the process has said about a ref_id.
func (p *soakCaddy) log(ref string) (lines string) {
	b, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, `"`+ref+`"`) || strings.Contains(line, ":"+ref+`"`) {
			lines += line
		}
	}
	return lines
}

// window is a time in which something was broken.
type window struct {
	what     string
	from, to time.Time
}

func (w window) String() string {
	return fmt.Sprintf("%s from %s to %s", w.what, w.from.Format("05.000"), w.to.Format("05.000"))
}

// soak is the whole of it: two Caddy processes on one Redis, one that is never
// killed, one on its embedded store, an app, and what breaks between them.
type soak struct {
	t        *testing.T
	tally    *sitetest.Tally
	caddies  []*soakCaddy
	redis    *redistest.Clocked
	packets  *redistest.Drops // on one Caddy's way to Redis
	toRedis  *toxiproxy.Proxy
	toApp    *toxiproxy.Proxy
	client   *http.Client
	over     chan bool
	orders   atomic.Int64
	rejected atomic.Int64 // forged and contradicting callbacks

	mu      sync.Mutex
	windows []window
}

// An hour, or what -soak says, of mixed callbacks with random faults: nothing
// is lost, and every extra delivery is one that cannot be helped, because the
// app's answer did not arrive or the process that waited for it was killed.
func TestSoak(t *testing.T) {
	s := &soak{
		t: t, tally: sitetest.NewTally(), over: make(chan bool),
		client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
	}
	app := sitetest.StartApp(t, s.tally.Counting(s.app))
	s.redis = redistest.StartClocked(t, "--appendonly", "yes", "--appendfsync", "always")
	s.toRedis, s.toApp = startToxicLink(t, s.redis.Addr()).proxy, startToxicLink(t, app.Addr()).proxy
	s.packets = redistest.StartDrops(t, s.toRedis.Listen)
	for name, store := range map[string]string{
		"steady": "redis redis://" + s.toRedis.Listen, "killed": "redis " + s.packets.URL(), "embedded": "",
	} {
		p := &soakCaddy{name: name, port: sitetest.FreePort(t), dir: t.TempDir(), store: store, app: s.toApp.Listen}
		p.start(t)
		t.Cleanup(p.kill)
		s.caddies = append(s.caddies, p)
	}

	var senders, breaker sync.WaitGroup
	for worker := range 24 {
		senders.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 1)) // #nosec G404 -- no secret
			for n := 0; !s.ended(); n++ {
				s.order(random, s.caddies[worker%len(s.caddies)], fmt.Sprintf("w%d-%d", worker, n))
			}
		})
	}
	breaker.Go(func() { s.breakThings(rand.New(rand.NewPCG(0, 2))) }) // #nosec G404 -- no secret
	breaker.Go(s.report)
	time.Sleep(*soakTime)
	close(s.over)
	breaker.Wait()
	senders.Wait()
	s.repeat(5000)
	s.judge()
}

// repeat sends callbacks once more that were accepted, when nothing is broken
// any more: whose settlement was lost now reaches the app again.
func (s *soak) repeat(n int) {
	keys := make(chan string, n)
	for key := range s.tally.Told {
		if len(keys) == n {
			break
		}
		keys <- key
	}
	close(keys)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for key := range keys {
				part := strings.Split(key, ":") // test:w<worker>-<n>:<status>, and perhaps :goods
				var worker, order int
				if _, err := fmt.Sscanf(part[1], "w%d-%d", &worker, &order); err != nil {
					s.t.Errorf("%s: %v", key, err)
				}
				sn := ""
				if len(part) == 4 {
					sn = soakGoods
				}
				s.outcome(rand.New(rand.NewPCG(uint64(order), 4)), s.caddies[worker%len(s.caddies)], key, part[1], part[2], sn) // #nosec G404 -- no secret
			}
		})
	}
	wg.Wait()
}

func (s *soak) ended() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

// app is a merchant's app on a bad day. It takes a moment for everything, so
// that whatever breaks meets callbacks between claim and settlement.
func (s *soak) app(w http.ResponseWriter, r *http.Request) {
	time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond) // #nosec G404 -- no secret
	if s.ended() {
		return
	}
	switch n := rand.IntN(100); { // #nosec G404 -- no secret
	case n < 3:
		w.WriteHeader(http.StatusInternalServerError)
	case n < 4:
		w.WriteHeader(http.StatusServiceUnavailable)
	case n < 5: // works on and on
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case n < 6:
		panic(http.ErrAbortHandler)
	case n < 7: // slow
		select {
		case <-time.After(soakUpstreamTimeout / 2):
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
}

// order sends what IAK might send for one order.
func (s *soak) order(random *rand.Rand, p *soakCaddy, ref string) {
	chance := func(percent int) bool { return random.IntN(100) < percent }
	s.orders.Add(1)
	if chance(5) {
		s.never(p, "forged-"+ref, "1", sitetest.Order("forged-"+ref, "1", "sign", sitetest.Quote(sitetest.Sign(ref))))
		return
	}
	if chance(30) {
		s.outcome(random, p, "test:"+ref+":0", ref, "0", "")
	}
	status, other := "1", "2"
	if chance(30) {
		status, other = "2", "1"
	}
	s.outcome(random, p, "test:"+ref+":"+status, ref, status, "")
	if chance(15) { // again, later
		s.outcome(random, p, "test:"+ref+":"+status, ref, status, "")
	}
	if chance(5) {
		s.never(p, ref, other, sitetest.Order(ref, other))
	}
	if status == "1" && chance(10) {
		s.outcome(random, p, "test:"+ref+":1:goods", ref, "1", soakGoods)
	}
}

// outcome sends one outcome until it is accepted: as JSON or XML, sometimes
// twice at once, and sometimes hanging up before the answer comes.
func (s *soak) outcome(random *rand.Rand, p *soakCaddy, key, ref, status, sn string) {
	copies := 1
	if random.IntN(100) < 15 {
		copies = 2
	}
	var wg sync.WaitGroup
	for range copies {
		seed := random.Uint64()
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, 3)) // #nosec G404 -- no secret
			for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
				ctx, cancel := context.WithCancel(context.Background())
				if random.IntN(100) < 3 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(random.IntN(10))*time.Millisecond)
				}
				got := s.tally.Do(s.client, key, soakRequest(ctx, p, ref, status, sn, random.IntN(3) == 0))
				cancel()
				if got/100 == 2 {
					return
				}
				time.Sleep(time.Duration(50+random.IntN(100)) * time.Millisecond)
			}
			s.t.Errorf("%s was not accepted within a minute", key)
		})
	}
	wg.Wait()
}

func soakRequest(ctx context.Context, p *soakCaddy, ref, status, sn string, asXML bool) *http.Request {
	contentType, body := "application/json", sitetest.Order(ref, status, "sn", sitetest.Quote(sn))
	if asXML {
		contentType = "application/xml"
		body = "<mp><ref_id>" + ref + "</ref_id><status>" + status + "</status><code>xld25000</code><hp>0817777215</hp>" +
			"<price>25000</price><message>MESSAGE</message><balance>997061249</balance><tr_id>3482</tr_id><rc>00</rc>" +
			"<sn>" + sn + "</sn><sign>" + sitetest.Sign(ref) + "</sign></mp>"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url(), strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", contentType)
	return r
}

// never sends what must not reach the app, with any fault there may be.
func (s *soak) never(p *soakCaddy, ref, status, body string) {
	answer, err := s.client.Post(p.url(), "application/json", strings.NewReader(body))
	if err != nil {
		return
	}
	answer.Body.Close()
	s.rejected.Add(1)
	if answer.StatusCode/100 == 2 {
		s.t.Errorf("%s with status %s was answered %d", ref, status, answer.StatusCode)
	}
}

// poison lets a proxy misbehave for a while.
func poison(t testing.TB, p *toxiproxy.Proxy, json string, wait func()) {
	added, err := p.Toxics.AddToxicJson(strings.NewReader(json))
	if err != nil {
		t.Error(err)
		return
	}
	wait()
	if err := p.Toxics.RemoveToxic(context.Background(), added.Name); err != nil {
		t.Error(err)
	}
}

// cutOff stops a proxy for a while: connections are refused.
func cutOff(t testing.TB, p *toxiproxy.Proxy, wait func()) {
	p.Stop()
	wait()
	if err := p.Start(); err != nil {
		t.Error(err)
	}
}

// breakThings breaks one thing after another, for up to three seconds each: a
// lease is upstream_timeout and five seconds long, and a store that is away
// for longer than the rest of it makes extra deliveries possible.
func (s *soak) breakThings(random *rand.Rand) {
	t := s.t
	wait := func() { time.Sleep(time.Duration(200+random.IntN(2800)) * time.Millisecond) }
	redis := func() *redis.Client { return s.redis.Client() }
	mortals := slices.DeleteFunc(slices.Clone(s.caddies), func(p *soakCaddy) bool { return p.name == "steady" })
	faults := []struct {
		name string
		run  func()
	}{
		{"redis hangs", func() {
			s.redis.Signal(syscall.SIGSTOP)
			wait()
			s.redis.Signal(syscall.SIGCONT)
		}},
		{"redis is killed", func() {
			s.redis.Kill()
			wait()
			s.redis.Start()
		}},
		{"redis ends all connections", func() { redis().Do(context.Background(), "CLIENT", "KILL", "TYPE", "normal") }},
		{"redis forgets its scripts", func() { redis().ScriptFlush(context.Background()) }},
		{"redis is slow", func() { poison(t, s.toRedis, `{"type":"latency","attributes":{"latency":300,"jitter":300}}`, wait) }},
		{"redis's replies are lost", func() { poison(t, s.toRedis, `{"type":"timeout","attributes":{"timeout":50}}`, wait) }},
		{"redis's connections are reset", func() {
			poison(t, s.toRedis, `{"type":"reset_peer","attributes":{"timeout":20},"toxicity":0.5}`, wait)
		}},
		{"redis is out of reach", func() { cutOff(t, s.toRedis, wait) }},
		{"packets to redis are dropped", func() {
			back := s.packets.Break()
			wait()
			if closes, _ := back(); closes != 0 {
				t.Errorf("%d connections to Redis were closed with something on its way, want them reset", closes)
			}
		}},
		{"redis's clock is set", func() {
			by := []time.Duration{time.Second, time.Hour, 24 * time.Hour}[random.IntN(3)] // within retention: beyond, Redis forgets
			if random.IntN(2) == 0 {
				by = -by
			}
			s.redis.Set(t, by)
			wait()
			s.redis.Set(t, 0)
		}},
		{appFault + " is out of reach", func() { cutOff(t, s.toApp, wait) }},
		{appFault + "'s connections are reset", func() {
			poison(t, s.toApp, `{"type":"reset_peer","attributes":{"timeout":20},"toxicity":0.5}`, wait)
		}},
		{appFault + "'s answers are lost", func() { poison(t, s.toApp, `{"type":"timeout","attributes":{"timeout":0},"toxicity":0.5}`, wait) }},
		{"caddy is killed", func() {
			victim := mortals[random.IntN(len(mortals))]
			victim.kill()
			victim.start(t)
		}},
		{"caddy is told to end", func() {
			victim := mortals[random.IntN(len(mortals))]
			victim.end(syscall.SIGTERM)
			victim.start(t)
		}},
		{"redis is killed, and caddy told to end", func() {
			s.redis.Kill()
			ended := make(chan bool)
			victim := mortals[random.IntN(len(mortals))]
			go func() {
				victim.end(syscall.SIGTERM)
				close(ended)
			}()
			time.Sleep(200 * time.Millisecond)
			s.redis.Start()
			<-ended
			victim.start(t)
		}},
		{"caddy is reloaded", func() { s.caddies[random.IntN(len(s.caddies))].reload(t) }},
	}
	for !s.ended() {
		fault := faults[random.IntN(len(faults))]
		from := time.Now()
		fault.run()
		s.mu.Lock()
		s.windows = append(s.windows, window{fault.name, from, time.Now()})
		s.mu.Unlock()
		// Long enough for the backlog, which tries every two seconds, to catch up.
		time.Sleep(2*time.Second + time.Second/2)
	}
}

// appFault begins the names of the faults that keep the app's answers back.
const appFault = "app"

// report prints a line a minute.
func (s *soak) report() {
	start := time.Now()
	for {
		select {
		case <-s.over:
			return
		case <-time.After(time.Minute):
		}
		var used []string
		for _, p := range s.caddies {
			megabytes, files := p.usage()
			used = append(used, fmt.Sprintf("%s %d MB, %d files", p.name, megabytes, files))
		}
		s.tally.Mu.Lock()
		reached := 0
		for _, arrivals := range s.tally.Delivered {
			reached += len(arrivals)
		}
		s.t.Logf("%v: %d requests, %d callbacks, %d accepted, %d reached the app; %s", time.Since(start).Round(time.Second),
			s.tally.Sent, len(s.tally.All), len(s.tally.Told), reached, strings.Join(used, "; "))
		s.tally.Mu.Unlock()
	}
}

// judge says what became of all callbacks, and why the extra deliveries were
// made.
func (s *soak) judge() {
	n := s.tally.Count(s.t)
	s.tally.Mu.Lock()
	defer s.tally.Mu.Unlock()
	why, faults := make(map[string]int), make(map[string]int)
	for key, arrivals := range s.tally.Delivered {
		for i := range len(arrivals) - 1 {
			before, after := arrivals[i], arrivals[i+1]
			if before.Status >= 300 {
				continue
			}
			reason := s.reason(before, after)
			why[reason]++
			if reason == "" {
				s.unexplained(key, before, after)
			}
		}
	}
	for _, w := range s.windows {
		faults[w.what]++
	}
	for _, p := range s.caddies {
		megabytes, files := p.usage()
		s.t.Logf("%s: killed or ended %d times, %d configurations; %d MB of memory and %d files in the end", p.name, len(p.kills), p.versions.Load(), megabytes, files)
	}
	s.t.Logf("%v, %d orders, %d forged or contradicting requests rejected, faults: %v", *soakTime, s.orders.Load(), s.rejected.Load(), faults)
	s.t.Logf("extra deliveries, by reason: %v", why)
	if n.Lost > 0 {
		s.t.Errorf("%d callbacks are lost", n.Lost)
	}
}

// reason tells what made a second delivery necessary. A second more on each
// side: a busy app notes an arrival late, and a proxy takes a moment to end
// what its toxic has spoilt.
func (s *soak) reason(before, after sitetest.Arrival) string {
	if before.Status == 0 {
		return "the app did not answer"
	}
	for _, w := range s.windows {
		if strings.HasPrefix(w.what, appFault) && before.At.Before(w.to.Add(time.Second)) && before.At.Add(soakUpstreamTimeout+time.Second).After(w.from) {
			return "the app's answer did not arrive"
		}
	}
	for _, p := range s.caddies {
		if p.name == before.Via && p.killedBetween(before.At.Add(-time.Second), after.At) {
			return "Caddy was killed or ended"
		}
	}
	return ""
}

// unexplained reports an extra delivery that should not have been made, with
// all that is known of it.
func (s *soak) unexplained(key string, before, after sitetest.Arrival) {
	report := fmt.Sprintf("%s reached the app again without a reason: attempt %d at %s through %s, attempt %d at %s through %s", key,
		before.Attempt, before.At.Format("05.000"), before.Via, after.Attempt, after.At.Format("05.000"), after.Via)
	for _, w := range s.windows {
		if w.to.After(before.At.Add(-5*time.Second)) && w.from.Before(after.At) {
			report += "\n" + w.String()
		}
	}
	for _, p := range s.caddies {
		report += "\n" + p.name + " says\n" + p.log(strings.Split(key, ":")[1])
	}
	s.t.Error(report)
}
