package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// report is what the benchmark has found.
type report struct {
	Environment []fact       `json:"environment,omitempty"`
	Rows        []*rowReport `json:"rows"`
	Problems    []string     `json:"problems"`
}

// rowReport is a row with its runs. Run i of every row belongs to round i.
type rowReport struct {
	Name      string   `json:"name"`
	What      string   `json:"what"`
	CPUTarget float64  `json:"cpu_target,omitempty"`
	P99Target float64  `json:"p99_target,omitempty"`
	Runs      []result `json:"runs"`

	RequestsPerSecond spread `json:"requests_per_second"`
	CPU               spread `json:"cpu_us"`
	RedisCPU          spread `json:"redis_cpu_us"`
	Ratio             spread `json:"cpu_ratio"` // to the bare row, each within its round
	P50               spread `json:"p50_us"`
	P99               spread `json:"p99_us"`
	P99Ratio          spread `json:"p99_ratio"`
	Allocs            spread `json:"allocs"`
	RedisCalls        spread `json:"redis_calls"`
	Resident          spread `json:"resident_bytes"`
	ResidentFiles     spread `json:"resident_file_bytes"`

	Stored *stored `json:"stored,omitempty"` // before the first round

	row row
}

// spread is what the runs of a row say together.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func newReport(environment []fact, measured []row) *report {
	r := &report{Environment: environment, Problems: []string{}}
	for _, row := range measured {
		r.Rows = append(r.Rows, &rowReport{
			Name: row.name, What: row.what, CPUTarget: row.cpuTarget, P99Target: row.p99Target, row: row,
		})
	}
	return r
}

// over computes a spread of all runs. f also gets the bare row's run of the
// same round.
func (r *rowReport) over(bare *rowReport, f func(run, bare result) float64) spread {
	var values []float64
	for i, run := range r.Runs {
		values = append(values, f(run, bare.Runs[i]))
	}
	slices.Sort(values)
	n := len(values)
	return spread{Median: (values[(n-1)/2] + values[n/2]) / 2, Min: values[0], Max: values[n-1]}
}

func (r *report) summarize() {
	bare := r.Rows[0]
	for _, row := range r.Rows {
		row.RequestsPerSecond = row.over(bare, func(run, _ result) float64 { return run.perSecond() })
		row.CPU = row.over(bare, func(run, _ result) float64 { return run.CPU })
		row.RedisCPU = row.over(bare, func(run, _ result) float64 { return run.RedisCPU })
		row.Ratio = row.over(bare, func(run, bare result) float64 { return run.CPU / bare.CPU })
		row.P50 = row.over(bare, func(run, _ result) float64 { return float64(run.P50) })
		row.P99 = row.over(bare, func(run, _ result) float64 { return float64(run.P99) })
		row.P99Ratio = row.over(bare, func(run, bare result) float64 { return float64(run.P99) / float64(bare.P99) })
		row.Allocs = row.over(bare, func(run, _ result) float64 { return run.Allocs })
		row.RedisCalls = row.over(bare, func(run, _ result) float64 { return run.RedisCalls })
		row.Resident = row.over(bare, func(run, _ result) float64 { return float64(run.Resident) })
		row.ResidentFiles = row.over(bare, func(run, _ result) float64 { return float64(run.ResidentFiles) })
		if row.Stored != nil {
			for _, problem := range row.Stored.Run.problems(row.row) {
				r.Problems = append(r.Problems, fmt.Sprintf("%s, before the first round: %s", row.Name, problem))
			}
		}
		for i, run := range row.Runs {
			for _, problem := range run.problems(row.row) {
				r.Problems = append(r.Problems, fmt.Sprintf("%s, round %d: %s", row.Name, i+1, problem))
			}
		}
	}
}

// sums are how many callbacks of all runs have reached the app, and were begun.
func (r *rowReport) sums() (reached, begun int64) {
	for _, run := range r.Runs {
		reached, begun = reached+run.Reached, begun+run.Begun
	}
	return reached, begun
}

func (l load) perSecond() float64 { return float64(l.Requests) / (float64(l.Microseconds) / 1e6) }

// problems is what makes a run worthless: answers that are not the row's, and
// callbacks that were lost or delivered more than once. What was begun and not
// answered when wrk stopped may have reached the app or not.
func (l result) problems(r row) (problems []string) {
	right := l.Status2xx
	if r.traffic == forged {
		right = l.Status4xx
	}
	if right != l.Requests {
		problems = append(problems, fmt.Sprintf("%d of %d answers are not as they must be (2xx: %d, 3xx: %d, 4xx: %d, 5xx: %d)",
			l.Requests-right, l.Requests, l.Status2xx, l.Status3xx, l.Status4xx, l.Status5xx))
	}
	if n := l.ConnectErrors + l.ReadErrors + l.WriteErrors + l.Timeouts; n > 0 {
		problems = append(problems, fmt.Sprintf("%d connections failed", n))
	}
	switch {
	case !r.delivers() && l.Reached > 0:
		problems = append(problems, fmt.Sprintf("%d deliveries, none was to be", l.Reached))
	case r.delivers() && l.Reached > l.Begun:
		problems = append(problems, fmt.Sprintf("%d deliveries more than callbacks", l.Reached-l.Begun))
	case r.delivers() && l.Reached < l.Status2xx:
		problems = append(problems, fmt.Sprintf("%d callbacks accepted that the app has not got", l.Status2xx-l.Reached))
	}
	return problems
}

// print writes the report as Markdown.
func (r *report) print(w io.Writer) {
	for _, f := range r.Environment {
		fmt.Fprintf(w, "- %s: %s\n", f.Name, f.Value)
	}
	table := [][]string{{
		"row", "req/s", "CPU us/request", "times bare (min to max)", "target", "p50 ms", "p99 ms", "p99 times bare (min to max)",
		"target", "allocs/request", "Redis calls/request", "reached the app / sent",
	}}
	for _, row := range r.Rows {
		reached, begun := row.sums()
		allocs := "-"
		if row.row.program == caddy {
			allocs = fmt.Sprintf("%.0f", row.Allocs.Median)
		}
		table = append(table, []string{
			row.Name, fmt.Sprintf("%.0f", row.RequestsPerSecond.Median), fmt.Sprintf("%.1f", row.CPU.Median),
			row.Ratio.String(), verdict(row.Ratio, row.CPUTarget),
			fmt.Sprintf("%.2f", row.P50.Median/1000), fmt.Sprintf("%.2f", row.P99.Median/1000),
			row.P99Ratio.String(), verdict(row.P99Ratio, row.P99Target),
			allocs, fmt.Sprintf("%.2f", row.RedisCalls.Median), fmt.Sprintf("%d / %d", reached, begun),
		})
	}
	fmt.Fprintln(w)
	printTable(w, table)
	fmt.Fprintln(w)
	for _, row := range r.Rows {
		fmt.Fprintf(w, "- %s: %s\n", row.Name, row.What)
	}
	fmt.Fprint(w, "\nEach number is the median of the rounds; a ratio is computed within each round. "+
		"Sent are the callbacks that were begun: those without an answer when a run ends may have reached the app or not.\n")
	for _, problem := range r.Problems {
		fmt.Fprintf(w, "\n**Not as it must be:** %s\n", problem)
	}
}

func (s spread) String() string { return fmt.Sprintf("%.2f (%.2f to %.2f)", s.Median, s.Min, s.Max) }

// verdict compares the median with a target.
func verdict(s spread, target float64) string {
	switch {
	case target == 0:
		return "-"
	case s.Median <= target:
		return fmt.Sprintf("%.2f met", target)
	default:
		return fmt.Sprintf("%.2f missed", target)
	}
}

// printTable aligns the columns, so that the text is readable as it is.
func printTable(w io.Writer, table [][]string) {
	aligned := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	for i, line := range table {
		fmt.Fprintf(aligned, "| %s\t|\n", strings.Join(line, "\t| "))
		if i == 0 {
			fmt.Fprintf(aligned, "|%s\n", strings.Repeat("---\t|", len(line)))
		}
	}
	_ = aligned.Flush()
}

func writeJSON(file string, report any) error {
	text, err := json.MarshalIndent(report, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o600)
}
