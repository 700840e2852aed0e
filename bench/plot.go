package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// panel is one diagram of a plot, with the axis's values as x.
type panel struct {
	label string // of the y axis
	log   bool
	lines func(*axisReport) []line
}

// line is what a panel shows of one row.
type line struct {
	title string
	at    []xy
}

type xy struct {
	x int
	y spread
}

var (
	cpuPanel = panel{label: "CPU of Caddy, us a request", lines: func(a *axisReport) []line {
		return a.each("", func(r *rowReport) (spread, bool) { return r.CPU, true })
	}}
	p99Panel = panel{label: "p99, ms", log: true, lines: func(a *axisReport) []line {
		return a.each("", func(r *rowReport) (spread, bool) { return r.P99.times(1e-3), true })
	}}
	memoryPanel = panel{label: "MiB", log: true, lines: func(a *axisReport) []line {
		resident := a.each(": Caddy resident", func(r *rowReport) (spread, bool) { return r.Resident.times(1. / mib), true })
		return append(resident, a.each(": the records", func(r *rowReport) (spread, bool) {
			if r.Stored == nil {
				return spread{}, false
			}
			size := float64(r.Stored.Bytes) / mib
			return spread{size, size, size}, true
		})...)
	}}
)

func (s spread) times(f float64) spread { return spread{s.Median * f, s.Min * f, s.Max * f} }

// each makes a line of each row that has the number.
func (a *axisReport) each(suffix string, y func(*rowReport) (spread, bool)) (lines []line) {
	for i, row := range a.Points[0].Rows {
		l := line{title: row.Name + suffix}
		for _, p := range a.Points {
			if value, has := y(p.Rows[i]); has {
				l.at = append(l.at, xy{p.Value, value})
			}
		}
		if l.at != nil {
			lines = append(lines, l)
		}
	}
	return lines
}

// plotsTo makes the directory, and looks for gnuplot before anything is
// measured.
func plotsTo(dir string) error {
	if _, err := exec.LookPath("gnuplot"); err != nil {
		return errors.New("gnuplot is not there, which draws the plots (scripts/install-bench-deps installs it)")
	}
	return os.MkdirAll(dir, 0o750)
}

// plot lets gnuplot draw an axis into a PNG file.
func (b *bench) plot(a *axisReport, file string) error {
	cmd := exec.CommandContext(b.ctx, "gnuplot")
	cmd.Stdin = strings.NewReader(a.script(file))
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("gnuplot, for %s (scale.json beside it has the numbers): %w: %s", file, err, output)
	}
	return nil
}

// script is what gnuplot is to do.
func (a *axisReport) script(file string) string {
	height := 500
	if len(a.panels) > 1 {
		height = 800
	}
	var s strings.Builder
	fmt.Fprintf(&s, "set terminal pngcairo noenhanced size 800,%d font 'sans,11' background '#ffffff'\nset output %q\n", height, file)
	s.WriteString("set grid ytics lt 1 dt 1 lw 1 lc rgb '#cccccc'\nset border 3\nset tics nomirror\nset lmargin 10\nset rmargin 4\n" +
		"set key outside bottom center horizontal samplen 2 width 1\n")
	for i, color := range []string{"#777777", "#d62728", "#1f77b4", "#2ca02c", "#9467bd"} {
		fmt.Fprintf(&s, "set linetype %d lc rgb '%s' lw 2 pt %d\n", i+1, color, []int{7, 5, 9, 13, 11}[i])
	}
	if a.unit == "" {
		a.bars(&s)
		return s.String()
	}
	fmt.Fprintf(&s, "set multiplot layout %d,1\nset title %q\nset xlabel %q offset 0,0.4\n", len(a.panels), a.what, a.unit)
	var tics []string
	for _, p := range a.Points {
		tics = append(tics, fmt.Sprintf("%q %d", a.text(p.Value), p.Value))
	}
	fmt.Fprintf(&s, "set xtics (%s)\n", strings.Join(tics, ", "))
	first, last := float64(a.Points[0].Value), float64(a.Points[len(a.Points)-1].Value)
	if a.log {
		fmt.Fprintf(&s, "set logscale x\nset xrange [%g:%g]\n", first/1.4, last*1.4)
	} else {
		fmt.Fprintf(&s, "set xrange [%g:%g]\n", first-0.3, last+0.3)
	}
	for i, p := range a.panels {
		p.draw(&s, i, a)
		s.WriteString("unset title\n") // it stands above the first
	}
	s.WriteString("unset multiplot\n")
	return s.String()
}

// draw writes the lines of one panel, with the span of the rounds at each point.
func (p panel) draw(s *strings.Builder, number int, a *axisReport) {
	lines := p.lines(a)
	var plots []string
	for i, l := range lines {
		data := fmt.Sprintf("$panel%d_%d", number, i)
		fmt.Fprintf(s, "%s << EOD\n", data)
		for _, at := range l.at {
			fmt.Fprintf(s, "%d %g %g %g\n", at.x, at.y.Median, at.y.Min, at.y.Max)
		}
		s.WriteString("EOD\n")
		plots = append(plots, fmt.Sprintf("%s using 1:2:3:4 with yerrorlines title %q", data, l.title))
	}
	if p.log {
		s.WriteString("set logscale y\nset yrange [*:*]\n")
	} else {
		s.WriteString("unset logscale y\nset yrange [0:*]\n")
	}
	fmt.Fprintf(s, "set ylabel %q\nplot %s\n", p.label, strings.Join(plots, ", "))
}

// bars writes the rows of the only point beside each other.
func (a *axisReport) bars(s *strings.Builder) {
	var tics []string
	s.WriteString("$rows << EOD\n")
	for i, row := range a.Points[0].Rows {
		fmt.Fprintf(s, "%g %g\n", row.CPU.Median, row.RedisCPU.Median)
		tics = append(tics, fmt.Sprintf("%q %d", strings.Replace(row.Name, " ", "\n", 1), i))
	}
	fmt.Fprintf(s, "EOD\nset title %q\nset ylabel \"CPU, us a request\"\nset yrange [0:*]\nset xtics (%s)\nset xrange [-0.6:%d.6]\n",
		a.what, strings.Join(tics, ", "), len(tics)-1)
	s.WriteString("set key inside top right vertical\nset bmargin 4\nset style data histograms\nset style histogram clustered gap 1\nset style fill solid 0.8 noborder\n" +
		"plot $rows using 1 lt 3 title \"Caddy\", $rows using 2 lt 2 title \"Redis, all servers\"\n")
}
