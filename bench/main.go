// Command bench measures what iak_callback costs: the CPU time of the whole
// server process for each request, against a bare reverse_proxy of the same
// binary, with one nginx as the app behind all. The servers are measured in
// turn, round after round, so that what disturbs the machine for a while
// disturbs all of them.
//
// It runs in the repository's root, on Linux: go run ./bench [flags]. What it
// needs is installed by scripts/install-bench-deps.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// settings are the command line's.
type settings struct {
	rounds      int
	seconds     int
	warmup      int
	connections int
	threads     int
	maxRate     int
	idle        int
	log         string
	rows        string
	json        string
	profiles    string
	dir         string
	scale       string
	axes        string
	records     []int
	drain       int
}

func parseFlags() (settings, error) {
	var s settings
	flag.IntVar(&s.rounds, "rounds", 0, "how often each row is measured (default 25, with -scale 5)")
	flag.IntVar(&s.seconds, "seconds", 1, "how long each measurement takes")
	flag.IntVar(&s.warmup, "warmup", 2, "seconds of load on each server before the first round, which are not counted")
	flag.IntVar(&s.connections, "connections", 64, "wrk's connections, all kept alive")
	flag.IntVar(&s.threads, "threads", 1, "wrk's threads")
	flag.IntVar(&s.maxRate, "max-rate", 100_000, "the most requests a second that callbacks are prepared for; a run that needs more fails")
	flag.IntVar(&s.idle, "idle", 0, "reverse_proxy's keepalive_idle_conns_per_host; with fewer than -connections it dials now and then, the bare row most (default Caddy's, 32)")
	flag.StringVar(&s.log, "log", "INFO", "Caddy's log level; INFO, its default, is a line for each callback")
	flag.StringVar(&s.rows, "rows", "", "the rows to measure, with commas between; bare always is one (default all: "+strings.Join(rowNames(), ",")+"; also "+strings.Join(namesOf(named), ",")+")")
	flag.StringVar(&s.json, "json", "", "a file for all numbers, as JSON")
	flag.StringVar(&s.profiles, "profiles", "", "a directory for CPU profiles of the Caddy rows, taken in one more round that is not counted")
	flag.StringVar(&s.dir, "dir", os.TempDir(), "where the servers keep their files; the embedded store is as fast as this disk")
	flag.StringVar(&s.scale, "scale", "", "a directory for numbers and plots of how the cost grows as work grows; measured instead of the rows")
	flag.StringVar(&s.axes, "axes", "", "with -scale, what grows, with commas between (default all: "+strings.Join(axisNames(), ",")+")")
	flag.IntVar(&s.drain, "drain", 0, "measure a spool instead of the rows: so many callbacks come while the app is down")
	numbers := flag.String("records", "10000,100000,1000000", "with -scale, how many records the stores hold before they are measured")
	flag.Parse()
	if flag.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	var err error
	if s.records, err = parseNumbers(*numbers); err != nil {
		return s, fmt.Errorf("-records: %w", err)
	}
	if s.scale != "" && s.rows+s.json+s.profiles != "" {
		return s, errors.New("-scale measures rows of its own: leave out -rows, -json and -profiles")
	}
	if s.scale == "" && s.axes != "" {
		return s, errors.New("-axes is for -scale: give a directory with it")
	}
	if s.rounds == 0 {
		s.rounds = 25
		if s.scale != "" {
			s.rounds = 5
		}
	}
	for _, n := range []int{s.rounds, s.seconds, s.warmup, s.connections, s.threads, s.maxRate} {
		if n < 1 {
			return s, errors.New("the numbers of the flags are 1 or more")
		}
	}
	return s, nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	s, err := parseFlags()
	if err != nil {
		return err
	}
	measured, err := chooseRows(s.rows)
	if err != nil {
		return err
	}
	growing, err := chooseAxes(s.axes, s.records)
	if err != nil {
		return err
	}
	if s.scale != "" {
		if err := plotsTo(s.scale); err != nil {
			return err
		}
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()

	b, err := newBench(ctx, s)
	if b != nil {
		defer b.close()
	}
	if err != nil {
		return err
	}
	var problems []string
	if s.drain > 0 {
		return b.drainAll(s.drain)
	}
	if s.scale != "" {
		problems, err = b.scaleAll(growing)
	} else {
		problems, err = b.table(measured)
	}
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("%d runs were not as they must be, see above", len(problems))
	}
	return err
}

// table measures rows and prints the table of them.
func (b *bench) table(measured []row) (problems []string, err error) {
	report := newReport(b.environment(), measured)
	if err := b.takeTurns(measured, report); err != nil {
		return nil, err
	}
	report.summarize()
	report.print(os.Stdout)
	if b.json != "" {
		err = writeJSON(b.json, report)
	}
	return report.Problems, err
}

// takeTurns measures rows in turn, round after round.
func (b *bench) takeTurns(measured []row, report *report) error {
	subjects, err := b.open(measured)
	defer func() {
		for _, s := range subjects {
			s.stop()
			_ = os.RemoveAll(s.dir)
		}
	}()
	if err != nil {
		return err
	}
	for i, subject := range subjects {
		report.Rows[i].Stored = subject.stored
	}
	for round := range b.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, b.rounds)
		for i, subject := range subjects {
			result, err := b.measure(subject, "")
			if err != nil {
				return fmt.Errorf("%s: %w", subject.name, err)
			}
			report.Rows[i].Runs = append(report.Rows[i].Runs, result)
		}
	}
	if b.profiles != "" {
		return b.profileAll(subjects)
	}
	return nil
}

// choose reads a list of names; an empty one is all there are.
func choose(what, names string, all []string) ([]string, error) {
	if names == "" {
		return all, nil
	}
	wanted := strings.Split(names, ",")
	for _, name := range wanted {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("there is no %s %q, only %s", what, name, strings.Join(all, ", "))
		}
	}
	return wanted, nil
}

// chooseRows returns the rows of a list of names. The first is always bare.
func chooseRows(names string) ([]row, error) {
	wanted, err := choose("row", names, append(rowNames(), namesOf(named)...))
	if err != nil {
		return nil, err
	}
	if names == "" {
		wanted = rowNames()
	}
	var chosen []row
	for i, r := range slices.Concat(rows, named) {
		if i == 0 || slices.Contains(wanted, r.name) {
			chosen = append(chosen, r)
		}
	}
	return chosen, nil
}

// profileAll measures the Caddy rows once more, with a CPU profile of each.
func (b *bench) profileAll(subjects []*subject) error {
	if err := os.MkdirAll(b.profiles, 0o750); err != nil {
		return err
	}
	for _, s := range subjects {
		if s.program != caddy {
			continue
		}
		file := filepath.Join(b.profiles, s.name+".pprof")
		fmt.Fprintln(os.Stderr, "profile:", file)
		if _, err := b.measure(s, file); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// eventually asks until the answer is yes.
func eventually(ctx context.Context, what string, happened func() bool) error {
	deadline := time.Now().Add(20 * time.Second)
	for !happened() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("did not happen within 20 seconds: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}
