package main

import "time"

// program is what runs a row's server.
type program int

const (
	caddy program = iota
	nginxPeer
	nodePeer
)

// traffic is what a row's callbacks are.
type traffic int

const (
	fresh  traffic = iota // ref_ids that were never seen
	known                 // ref_ids whose outcome the app has accepted
	forged                // fresh ones with the signature of another key
)

// row is one line of the table: a server and its traffic.
type row struct {
	name    string
	what    string
	program program

	// options are those of the iak_callback in Caddy's site, {{redis}} being the
	// url of the Redis server and {{cluster}} the urls of the Cluster; without
	// any there is no iak_callback.
	options string
	format  string // json or xml
	traffic traffic

	// {{iak}} in the options is the url of a server that plays IAK, and answers so long
	// after it was asked.
	iak time.Duration

	// What -scale varies; 0 is as in every other row.
	connections int // wrk's
	size        int // of a body, in bytes
	accounts    int // in the Caddyfile; the last one's key signs
	records     int // in the store before the first round

	// The targets, times the bare row; 0 is none.
	cpuTarget, p99Target float64
}

// rows are measured in this order. The first is what the others are compared
// with.
var rows = []row{
	{
		name: "bare", what: "reverse_proxy alone, new callbacks",
		format: "json", traffic: fresh,
	},
	{
		name: "redis", what: "new callbacks, Redis",
		options: "redis {{redis}}", format: "json", traffic: fresh, cpuTarget: 1.25, p99Target: 1.3,
	},
	{
		name: "embedded", what: "new callbacks, embedded store",
		options: "embedded records.sqlite", format: "json", traffic: fresh, cpuTarget: 1.40, p99Target: 1.3,
	},
	{
		name: "redis-spool", what: "new callbacks, Redis, with a spool",
		options: "redis {{redis}}\nspool", format: "json", traffic: fresh,
	},
	{
		name: "embedded-spool", what: "new callbacks, embedded store, with a spool",
		options: "embedded records.sqlite\nspool", format: "json", traffic: fresh,
	},
	{
		name: "duplicates", what: "callbacks that were accepted before, Redis",
		options: "redis {{redis}}", format: "json", traffic: known, cpuTarget: 0.45, p99Target: 1.3,
	},
	{
		name: "forged", what: "callbacks with a wrong signature, Redis",
		options: "redis {{redis}}", format: "json", traffic: forged, cpuTarget: 0.40, p99Target: 1.3,
	},
	{
		name: "xml", what: "new callbacks in XML, Redis",
		options: "redis {{redis}}", format: "xml", traffic: fresh,
	},
	{
		name: "flat", what: "new callbacks, Redis, body flat",
		options: "redis {{redis}}\nbody flat", format: "json", traffic: fresh,
	},
	{
		name: "nginx+lua", what: "new callbacks, peers/nginx, Redis",
		program: nginxPeer, format: "json", traffic: fresh,
	},
	{
		name: "node", what: "new callbacks, peers/node, Redis",
		program: nodePeer, format: "json", traffic: fresh,
	},
}

// named are measured only when -rows names them: IAK is asked at most a thousand times a
// second, so with the connections of the others they would measure that.
var named = []row{
	{
		name: "confirm-1ms", what: "new callbacks, Redis, confirmed by an IAK that answers in 1 ms",
		options: "redis {{redis}}\nconfirm {\nbase {{iak}}\nrate 1000\n}", format: "json", traffic: fresh, iak: time.Millisecond,
	},
	{
		name: "confirm-300ms", what: "new callbacks, Redis, confirmed by an IAK that answers in 300 ms",
		options: "redis {{redis}}\nconfirm {\nbase {{iak}}\nrate 1000\n}", format: "json", traffic: fresh, iak: 300 * time.Millisecond,
	},
}

func rowNames() []string { return namesOf(rows) }

func namesOf(rows []row) (names []string) {
	for _, r := range rows {
		names = append(names, r.name)
	}
	return names
}

// delivers says whether the row's callbacks go to the app.
func (r row) delivers() bool { return r.traffic == fresh }
