package main

import (
	"fmt"
	"io"
	"strconv"
)

// scaleReport is what -scale has found.
type scaleReport struct {
	Environment []fact        `json:"environment"`
	Axes        []*axisReport `json:"axes"`
	Problems    []string      `json:"problems"`
}

type axisReport struct {
	axis
	Name   string   `json:"name"`
	What   string   `json:"what"`
	Unit   string   `json:"unit,omitempty"`
	Points []*point `json:"points"`
}

// point is all rows at one value of an axis.
type point struct {
	Value int `json:"value"`
	*report
}

func (r *scaleReport) printHead(w io.Writer) {
	for _, f := range r.Environment {
		fmt.Fprintf(w, "- %s: %s\n", f.Name, f.Value)
	}
	fmt.Fprint(w, "\nEach number is the median of the rounds; a ratio is computed within each round. "+
		"Resident is Caddy's memory after a run, with the pages of files in it.\n")
}

func (r *scaleReport) printProblems(w io.Writer) {
	for _, problem := range r.Problems {
		fmt.Fprintf(w, "\n**Not as it must be:** %s\n", problem)
	}
}

// print writes the axis's table as Markdown.
func (a *axisReport) print(w io.Writer) {
	fmt.Fprintf(w, "\n### %s\n\n%s\n\n", a.name, a.what)
	head := []string{
		"row", "req/s", "CPU us/request", "times bare (min to max)", "p50 ms", "p99 ms", "p99 times bare (min to max)",
		"Redis CPU us/request", "resident MiB (files)", "reached the app / sent",
	}
	if a.unit != "" {
		head = append([]string{a.unit}, head...)
	}
	fills := a.Points[0].stores()
	if fills {
		head = append(head, "records, first round to end", "bytes a record, before the first round")
	}
	table := [][]string{head}
	for _, p := range a.Points {
		for _, row := range p.Rows {
			line := row.cells()
			if a.unit != "" {
				line = append([]string{a.text(p.Value)}, line...)
			}
			if fills {
				line = append(line, row.storeCells()...)
			}
			table = append(table, line)
		}
	}
	printTable(w, table)
}

func (r *rowReport) cells() []string {
	reached, begun := r.sums()
	return []string{
		r.Name, fmt.Sprintf("%.0f", r.RequestsPerSecond.Median), fmt.Sprintf("%.1f", r.CPU.Median), r.Ratio.String(),
		fmt.Sprintf("%.2f", r.P50.Median/1000), fmt.Sprintf("%.2f", r.P99.Median/1000), r.P99Ratio.String(),
		fmt.Sprintf("%.1f", r.RedisCPU.Median), fmt.Sprintf("%.0f (%.0f)", r.Resident.Median/mib, r.ResidentFiles.Median/mib),
		fmt.Sprintf("%d / %d", reached, begun),
	}
}

func (r *rowReport) storeCells() []string {
	if r.Stored == nil {
		return []string{"-", "-"}
	}
	added, _ := r.sums()
	return []string{
		fmt.Sprintf("%d to %d", r.Stored.Records, r.Stored.Records+added),
		fmt.Sprintf("%.0f", float64(r.Stored.Bytes)/float64(r.Stored.Records)),
	}
}

// stores says whether a row of the point has a store that was filled.
func (p *point) stores() bool {
	for _, row := range p.Rows {
		if row.Stored != nil {
			return true
		}
	}
	return false
}

const mib = 1 << 20

// text is a value of the axis as it is shown.
func (a axis) text(value int) string {
	if a.show == nil {
		return ""
	}
	return a.show(value)
}

// thousands writes a number with a comma before each three digits.
func thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func bytesText(n int) string {
	if n%1024 == 0 {
		return fmt.Sprintf("%d KiB", n/1024)
	}
	return fmt.Sprintf("%d B", n)
}
