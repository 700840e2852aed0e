package sitetest

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// Operated is a site with an admin API, for operators.
type Operated struct {
	*Site
	Admin  string // its address
	Global string // more global options
}

// StartOperated runs Caddy as Start does, with the admin API on a free port
// and more global options.
func StartOperated(t *testing.T, block string, global ...string) *Operated {
	t.Helper()
	s := &Operated{Site: Start(t, "respond ok"), Admin: "127.0.0.1:" + FreePort(t), Global: strings.Join(global, "\n")}
	s.Reload(block)
	return s
}

// Reload replaces the configuration. Caddy replaces the admin API too.
func (s *Operated) Reload(block string) {
	s.T.Helper()
	config, err := Adapt(strings.Replace(s.Caddyfile(block), "\tadmin off\n", "\tadmin "+s.Admin+"\n"+s.Global+"\n", 1))
	if err == nil {
		err = s.LoadConfig(config)
	}
	if err != nil {
		s.T.Fatal(err)
	}
	_, port, _ := strings.Cut(s.Admin, ":")
	Eventually(s.T, "the old admin API listens no more", func() bool { return Listeners(port) == 1 })
}

// Ask sends a request to the admin API.
func (s *Operated) Ask(method, target string) Reply {
	s.T.Helper()
	r, err := http.NewRequest(method, "http://"+s.Admin+target, nil)
	if err != nil {
		s.T.Fatal(err)
	}
	return s.Do(r)
}

// RecordQuery is the path of one record.
func RecordQuery(path, refID string, more ...string) string {
	values := url.Values{"account": {"test"}, "ref_id": {refID}}
	for i := 0; i < len(more); i += 2 {
		values.Add(more[i], more[i+1])
	}
	return path + "?" + values.Encode()
}

// Command runs caddy iak-callback in this process.
func (s *Operated) Command(args ...string) (string, error) {
	s.T.Helper()
	return Run(append([]string{args[0], "--address", s.Admin}, args[1:]...)...)
}

// Must runs a command that has to work.
func (s *Operated) Must(args ...string) string {
	s.T.Helper()
	out, err := s.Command(args...)
	if err != nil {
		s.T.Fatalf("%q: %v", args, err)
	}
	return out
}

// Refuses runs a command that has to fail, and say these words.
func (s *Operated) Refuses(words string, args ...string) {
	s.T.Helper()
	out, err := s.Command(args...)
	if err == nil || !strings.Contains(err.Error(), words) {
		s.T.Errorf("%q: %v, want an error with %q; it prints %q", args, err, words, out)
	}
}

// States is what the operator is shown of one ref_id: a state for each place.
func (s *Operated) States(refID string) (states []string) {
	s.T.Helper()
	for _, r := range s.Show(refID) {
		states = append(states, r.State)
	}
	return states
}

// Show is what the operator is shown of one ref_id: a record for each place.
func (s *Operated) Show(refID string) (records []Record) {
	s.T.Helper()
	out, err := s.Command("show", "--json", "test", refID)
	if err != nil && !strings.Contains(err.Error(), "there is no record") && !strings.Contains(err.Error(), "not in all of them") {
		s.T.Fatal(err)
	}
	return Records(s.T, out)
}

// Record is a record as the admin API and --json show it.
type Record struct {
	Account       string     `json:"account"`
	RefID         string     `json:"ref_id"`
	State         string     `json:"state"`
	Accepted      string     `json:"accepted"`
	Code          int        `json:"code"`
	InFlight      string     `json:"in_flight"`
	Until         *time.Time `json:"until"`
	InDoubt       string     `json:"in_doubt"`
	InDoubtBefore string     `json:"in_doubt_before"`
	Kept          *Kept      `json:"kept"`
	Attempt       int        `json:"attempt"`
	Changed       time.Time  `json:"changed"`
	Expires       time.Time  `json:"expires"`
	Store         string     `json:"store"`
	Outage        bool       `json:"outage"`
}

// Kept is what a record tells of a callback that is kept.
type Kept struct {
	Status string     `json:"status"`
	Came   time.Time  `json:"came"`
	Due    *time.Time `json:"due"`
	Dead   bool       `json:"dead"`

	Confirmed bool  `json:"confirmed"`
	Unrouted  bool  `json:"unrouted"`
	Tries     []Try `json:"tries"`
}

// Try is one delivery of it, as it ended.
type Try struct {
	Time      time.Time `json:"time"`
	Result    string    `json:"result"`
	AppStatus int       `json:"app_status"`
	Duration  float64   `json:"duration"`
}

// The paths of the admin API.
const (
	RecordPath       = "/iak_callback/record"
	AcceptPath       = "/iak_callback/record/accept"
	ReleasePath      = "/iak_callback/record/release"
	RedeliverPath    = "/iak_callback/record/redeliver"
	RevealPath       = "/iak_callback/record/reveal"
	RecordsPath      = "/iak_callback/records"
	RedeliverAllPath = "/iak_callback/redeliver"
	HealthPath       = "/iak_callback/health"
	AskPath          = "/iak_callback/ask"
)

// Records reads what --json prints.
func Records(t testing.TB, out string) (records []Record) {
	t.Helper()
	for line := range strings.Lines(out) {
		var r Record
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		records = append(records, r)
	}
	return records
}

// ExpectState waits for nothing: the state is there.
func (s *Operated) ExpectState(refID, want string) {
	s.T.Helper()
	if got := strings.Join(s.States(refID), " "); got != want {
		s.T.Errorf("%s is %q, want %q", refID, got, want)
	}
}

// ComesTo waits until a record is in a state.
func (s *Operated) ComesTo(refID, want string) {
	s.T.Helper()
	Eventually(s.T, refID+" is "+want, func() bool { return strings.Join(s.States(refID), " ") == want })
}
