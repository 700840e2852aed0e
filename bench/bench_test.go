package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	line := "4711 (a (very) odd name) S 42 4711 42 0 -1 4194304 1 0 0 0 150 25 7 9 20 0 3 0 100 0 0\n"
	pid, parent, cpu, err := parseStat([]byte(line))
	if err != nil || pid != 4711 || parent != 42 || cpu != 1750*time.Millisecond {
		t.Errorf("%d, %d, %v, %v; want 4711, 42, 1.75s", pid, parent, cpu, err)
	}
	for _, wrong := range []string{"", "4711 name S 42", "4711 (name) S 42", "x (name) S 42 1 1 0 -1 0 1 0 0 0 150 25 7"} {
		if _, _, _, err := parseStat([]byte(wrong)); err == nil {
			t.Errorf("%q was read", wrong)
		}
	}
}

func TestSpread(t *testing.T) {
	bare := &rowReport{Runs: []result{{CPU: 100}, {CPU: 50}, {CPU: 80}, {CPU: 100}}}
	row := &rowReport{Runs: []result{{CPU: 120}, {CPU: 100}, {CPU: 120}, {CPU: 90}}}
	got := row.over(bare, func(run, bare result) float64 { return run.CPU / bare.CPU })
	if want := (spread{Median: 1.35, Min: 0.9, Max: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A run counts only when each answer is the row's, and the app has got no more
// than was sent and no less than was answered.
func TestProblems(t *testing.T) {
	newOnes, forgeries := row{traffic: fresh}, row{traffic: forged}
	for _, c := range []struct {
		name string
		row  row
		run  result
		want int
	}{
		{"all answered", newOnes, result{load: load{Requests: 10, Begun: 10, Status2xx: 10}, Reached: 10}, 0},
		{"the last ones not answered", newOnes, result{load: load{Requests: 8, Begun: 10, Status2xx: 8}, Reached: 9}, 0},
		{"one delivered twice", newOnes, result{load: load{Requests: 10, Begun: 10, Status2xx: 10}, Reached: 11}, 1},
		{"one lost", newOnes, result{load: load{Requests: 10, Begun: 10, Status2xx: 10}, Reached: 9}, 1},
		{"one refused", newOnes, result{load: load{Requests: 10, Begun: 10, Status2xx: 9, Status5xx: 1}, Reached: 9}, 1},
		{"a timeout", newOnes, result{load: load{Requests: 9, Begun: 10, Status2xx: 9, Timeouts: 1}, Reached: 10}, 1},
		{"all refused", forgeries, result{load: load{Requests: 10, Begun: 10, Status4xx: 10}}, 0},
		{"a forgery delivered", forgeries, result{load: load{Requests: 10, Begun: 10, Status2xx: 1, Status4xx: 9}, Reached: 1}, 2},
	} {
		if got := c.run.problems(c.row); len(got) != c.want {
			t.Errorf("%s: %q, want %d problems", c.name, got, c.want)
		}
	}
}

func TestParseStatus(t *testing.T) {
	all, files, err := parseStatus("Name:\tcaddy\nVmRSS:\t   75000 kB\nRssAnon:\t   25000 kB\nRssFile:\t   50000 kB\nThreads:\t9\n")
	if err != nil || all != 75000*1024 || files != 50000*1024 {
		t.Errorf("%d, %d, %v", all, files, err)
	}
	for _, wrong := range []string{"", "Name:\tcaddy\n", "VmRSS:\tmuch kB\n"} {
		if _, _, err := parseStatus(wrong); err == nil {
			t.Errorf("%q was read", wrong)
		}
	}
}

func TestParseNumbers(t *testing.T) {
	got, err := parseNumbers("10000,1000,1000")
	if want := []int{1000, 10000}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for _, wrong := range []string{"", "0", "-1", "1000,", "1e3", "1000 10000"} {
		if _, err := parseNumbers(wrong); err == nil {
			t.Errorf("%q was read", wrong)
		}
	}
}

// What varies is the rows' of one value alone, and each has its bare row first.
func TestAxes(t *testing.T) {
	for _, a := range axes([]int{1000}) {
		for _, value := range a.values {
			if measured := a.rows(value); measured[0].options != "" || len(measured) < 3 {
				t.Errorf("%s %d: %+v", a.name, value, measured)
			}
		}
	}
	for _, r := range rows {
		if r.connections+r.size+r.accounts+r.records > 0 {
			t.Errorf("the table's row %s has changed: %+v", r.name, r)
		}
	}
	if _, err := chooseAxes("body,bodies", nil); err == nil {
		t.Error("an axis that is not there was chosen")
	}
}

func TestPlotScript(t *testing.T) {
	all, err := chooseAxes("body", nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &axisReport{axis: all[0]}
	for _, value := range []int{300, 63 << 10} {
		p := &point{Value: value, report: newReport(nil, a.rows(value))}
		p.Rows[1].CPU = spread{Median: 120, Min: 110, Max: 130.5}
		a.Points = append(a.Points, p)
	}
	script := a.script("body.png")
	for _, part := range []string{
		`set output "body.png"`, `set xtics ("300 B" 300, "63 KiB" 64512)`, "set logscale x",
		"$panel0_1 << EOD\n300 120 110 130.5\n64512 120 110 130.5\nEOD\n", `title "forged"`,
	} {
		if !strings.Contains(script, part) {
			t.Errorf("no %q in the script:\n%s", part, script)
		}
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int]string{1: "1", 512: "512", 1000: "1,000", 1000000: "1,000,000"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
