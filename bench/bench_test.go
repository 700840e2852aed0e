package main

import (
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
