package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// axis is one thing that grows, or (the Cluster) is there more than once. Its points are measured one after the other;
// at each, the servers of all rows take turns, as those of the table do.
type axis struct {
	name   string // also of its plot
	what   string
	unit   string // of the values; without any it is one point, and its plot has bars
	values []int
	log    bool // the plot's x axis
	show   func(value int) string
	rows   func(value int) []row
	panels []panel // of the plot
}

// axes are all, in the order in which they are measured. The Cluster is the
// last, since it runs from its first use to the end.
func axes(records []int) []axis {
	return []axis{
		{
			name: "records", what: "new callbacks, with so many records in the store before the first round",
			unit: "records in the store", values: records, log: true, show: thousands,
			rows: func(n int) []row {
				return vary(func(r *row) {
					if r.options != "" {
						r.records = n
					}
				}, "bare", "redis", "embedded")
			},
			panels: []panel{cpuPanel, memoryPanel},
		},
		{
			name: "connections", what: "new callbacks, over so many of wrk's connections",
			unit: "connections", values: []int{1, 8, 64, 128, 256, 512}, log: true, show: thousands,
			rows:   func(n int) []row { return vary(func(r *row) { r.connections = n }, "bare", "redis", "embedded") },
			panels: []panel{cpuPanel, p99Panel},
		},
		{
			name: "body", what: "new and forged callbacks, their bodies padded to so many bytes",
			unit: "size of the body", values: []int{300, 1 << 10, 4 << 10, 16 << 10, 63 << 10}, log: true, show: bytesText,
			rows:   func(n int) []row { return vary(func(r *row) { r.size = n }, "bare", "redis", "forged") },
			panels: []panel{cpuPanel},
		},
		{
			name: "accounts", what: "callbacks signed by the last of so many accounts (forged: by none)",
			unit: "accounts", values: []int{1, 2, 3, 4}, show: thousands,
			rows: func(n int) []row {
				return vary(func(r *row) { r.accounts = n }, "bare", "redis", "duplicates", "forged")
			},
			panels: []panel{cpuPanel},
		},
		{
			name: "cluster", what: "new and known callbacks, one Redis and a Cluster of three masters",
			values: []int{0}, rows: func(int) []row { return clusterRows() },
		},
	}
}

func axisNames() (names []string) {
	for _, a := range axes(nil) {
		names = append(names, a.name)
	}
	return names
}

// chooseAxes returns the axes of a list of names.
func chooseAxes(names string, records []int) ([]axis, error) {
	wanted, err := choose("axis", names, axisNames())
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(axes(records), func(a axis) bool { return !slices.Contains(wanted, a.name) }), nil
}

// vary returns changed copies of some rows of the table.
func vary(change func(*row), names ...string) (varied []row) {
	for _, r := range rows {
		if slices.Contains(names, r.name) {
			change(&r)
			varied = append(varied, r)
		}
	}
	return varied
}

// clusterRows are the rows of one Redis, each followed by that of the Cluster.
func clusterRows() (all []row) {
	for _, r := range vary(func(*row) {}, "bare", "redis", "duplicates") {
		all = append(all, r)
		if r.options != "" {
			r.options = "redis {{cluster}} {\ncluster\n}"
			r.name, r.what = r.name+" in a Cluster", r.what+" Cluster"
			all = append(all, r)
		}
	}
	return all
}

// parseNumbers reads numbers with commas between.
func parseNumbers(text string) (numbers []int, err error) {
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no number above 0; give numbers with commas between, such as 1000,10000", word)
		}
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return slices.Compact(numbers), nil
}

// scaleAll measures the axes. The files are written after each, so that what
// was measured is there when a later one fails.
func (b *bench) scaleAll(growing []axis) (problems []string, err error) {
	r := &scaleReport{Environment: b.environment(), Problems: []string{}}
	r.printHead(os.Stdout)
	for _, a := range growing {
		found := &axisReport{axis: a, Name: a.name, What: a.what, Unit: a.unit}
		for _, value := range a.values {
			p, err := b.measurePoint(a, value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", strings.TrimSpace(a.name+" "+a.text(value)), err)
			}
			found.Points = append(found.Points, p)
			for _, problem := range p.Problems {
				r.Problems = append(r.Problems, strings.TrimSpace(a.name+" "+a.text(value))+", "+problem)
			}
		}
		r.Axes = append(r.Axes, found)
		found.print(os.Stdout)
		if err := writeJSON(filepath.Join(b.scale, "scale.json"), r); err != nil {
			return nil, err
		}
		if err := b.plot(found, filepath.Join(b.scale, a.name+".png")); err != nil {
			return nil, err
		}
	}
	r.printProblems(os.Stdout)
	return r.Problems, nil
}

// measurePoint measures all rows at one value, each with an empty store at the
// start.
func (b *bench) measurePoint(a axis, value int) (*point, error) {
	fmt.Fprintln(os.Stderr, a.name, a.text(value))
	if err := b.emptyRedis(); err != nil {
		return nil, err
	}
	measured := a.rows(value)
	p := &point{Value: value, report: newReport(nil, measured)}
	if err := b.takeTurns(measured, p.report); err != nil {
		return nil, err
	}
	p.summarize()
	return p, nil
}

// stored is what a store holds before the first round.
type stored struct {
	Records int64  `json:"records"`
	Bytes   int64  `json:"bytes"` // of Redis's memory, or of the embedded store's file
	Run     result `json:"run"`   // the load that has put them there
}

// fillSeconds is longer than the filling of any store takes: wrk wants a time,
// and ends when it has had its answers.
const fillSeconds = 6 * 3600

// fill loads a row's server until its store holds as many records as the row
// wants. It stands for the warm-up.
func (b *bench) fill(s *subject) error {
	// Some requests more are under way when the last answer comes.
	c, err := b.prepare(s.dir, fresh, s.records+2*max(b.connections, s.connections))
	if err != nil {
		return err
	}
	defer c.forget()
	c.limit = s.records
	reached, err := b.app.quiet(b.ctx)
	if err != nil {
		return err
	}
	empty, err := b.storeSize(s)
	if err != nil {
		return err
	}
	l, err := b.send(s.addr, s.row, c, fillSeconds)
	if err != nil {
		return err
	}
	now, err := b.app.quiet(b.ctx)
	if err != nil {
		return err
	}
	size, err := b.storeSize(s)
	if err != nil {
		return err
	}
	// A callback that reached the app has a record.
	s.stored = &stored{Records: now - reached, Bytes: size - empty, Run: result{load: l, Reached: now - reached}}
	return nil
}

// storeSize is how many bytes a row's store takes.
func (b *bench) storeSize(s *subject) (int64, error) {
	if strings.HasPrefix(s.options, "redis") {
		return b.redis.memory(b.ctx)
	}
	var size int64
	for _, name := range []string{"records.sqlite", "records.sqlite-wal"} {
		info, err := os.Stat(filepath.Join(s.dir, name))
		switch {
		case errors.Is(err, os.ErrNotExist): // it is made when it is needed
		case err != nil:
			return 0, err
		default:
			size += info.Size()
		}
	}
	return size, nil
}
