package integration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"html/template"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-iak/iakcallback/internal/redistest"
	"github.com/caddy-iak/iakcallback/internal/sitetest"
	"github.com/chromedp/chromedp"
)

// In pixels: a column and a row of Grafana's grid, and what is left of and above a plot. A line
// has a point each step, in seconds.
const column, row, left, above, step = 52, 29, 56, 8, 0.5

// Quiet colours, which also differ in their lightness.
var palette = []string{"#1b4f91", "#c98a1b", "#2f8f63", "#a3241f", "#6aa5d8", "#6b4e9e", "#7d8894", "#8a5a3b"}
var thresholds = map[string]string{"green": "#1e6b45", "orange": "#8a5a00", "red": "#a3241f"}

// drawn is a panel of docs/grafana.json, and what is drawn of it.
type drawn struct {
	Type, Title string
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults struct {
			Unit, NoValue string
			Thresholds    struct{ Steps []map[string]any }
		}
	}
	Targets []struct{ Expr, LegendFormat string }

	Values, Across, Up                       []figure
	Lines                                    []*line
	Left, Top, Width, Height, Right, PlotEnd int
	most                                     float64 // of all lines
}

// figure is a number of its own, or beside an axis.
type figure struct {
	Text, Name, Color string
	At                float64
}

type line struct {
	Name, Color, Dash, Path string
	points                  [][2]float64 // time and value
}

// docs/pictures/dashboard.png has the panels of docs/grafana.json, with what a real Prometheus
// answers to them after a real run. Without IAK_PICTURES, a directory, it is made and not kept.
func TestPictureDashboard(t *testing.T) {
	dir := cmp.Or(os.Getenv("IAK_PICTURES"), t.TempDir())
	var d struct{ Panels []*drawn }
	if err := json.Unmarshal([]byte(page(t, "docs/grafana.json")), &d); err != nil {
		t.Fatal(err)
	}
	p, from, to := busyShop(t)
	tall := 0
	for _, panel := range d.Panels {
		panel.ask(p, from, to)
		panel.place(float64(from.UnixMilli())/1000, to.Sub(from).Seconds())
		tall = max(tall, panel.Top+panel.Height)
		// Redis is not away for so long that an answer of the app is lost.
		if len(panel.Values)+len(panel.Lines) == 0 && panel.Title != "Answers not recorded in time" {
			t.Errorf("panel %q has no data", panel.Title)
		}
	}
	file, html := filepath.Join(t.TempDir(), "dashboard.html"), new(strings.Builder)
	if err := dashboardPage.Execute(html, map[string]any{"Panels": d.Panels, "Left": left, "Wide": 24 * column, "Tall": tall, "From": from, "To": to}); err != nil {
		t.Fatal(err)
	}
	writeFile(t, file, []byte(html.String()))

	ctx := browser(t)
	for _, action := range []chromedp.Action[chromedp.Void]{chromedp.EmulateViewport(24*column+32, 700), chromedp.Navigate("file://" + file)} {
		if err := chromedp.Do(ctx, action); err != nil {
			t.Fatal(err)
		}
	}
	// Of lines those count that are where the plot is, and nothing may be cut off.
	seen, err := chromedp.Run(ctx, chromedp.Evaluate[[]struct{ Lines, Values, CutOff int }](`[...document.querySelectorAll("section")].map(s => ({
		values: s.querySelectorAll(".number:not(.none)").length, cutOff: Math.max(s.scrollHeight - s.clientHeight, s.scrollWidth - s.clientWidth),
		lines: [...s.querySelectorAll("path")].map(p => [p.getBBox(), s.querySelector("g").getBBox()]).filter(([p, g]) =>
			p.x > g.x - 1 && p.y > g.y - 1 && p.x + p.width < g.x + g.width + 1 && p.y + p.height < g.y + g.height + 1).length }))`))
	if err != nil || len(seen) != len(d.Panels) {
		t.Fatalf("%d of %d panels are on the page, %v", len(seen), len(d.Panels), err)
	}
	for i, panel := range d.Panels {
		if got := seen[i]; got.Lines != len(panel.Lines) || got.Values != len(panel.Values) || got.CutOff > 0 {
			t.Errorf("panel %q has %d lines and %d values, and shows %+v", panel.Title, len(panel.Lines), len(panel.Values), got)
		}
	}
	picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil || len(picture) < 10_000 {
		t.Fatalf("%d bytes, %v", len(picture), err)
	}
	writeFile(t, filepath.Join(dir, "dashboard.png"), picture)
}

// busyShop runs a Caddy to which about everything happens, until Prometheus has enough of it,
// and returns when that began and ended. The traffic goes on as long as the test.
func busyShop(t *testing.T) (p *promServer, from, to time.Time) {
	t.Helper()
	app := sitetest.StartApp(t, func(w http.ResponseWriter, r *http.Request) {
		switch key := r.Header.Get("Idempotency-Key"); {
		case strings.Contains(key, "hangs"):
			<-r.Context().Done()
		case strings.Contains(key, "fails"), strings.Contains(key, "mends") && r.Header.Get("Iak-Attempt") == "1":
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			time.Sleep(rand.N(60 * time.Millisecond))
		}
	})
	iak := startOracle(t)
	iak.forAll(func(w http.ResponseWriter, r *http.Request, q map[string]string) bool {
		if strings.Contains(q["ref_id"], "silent") {
			return hangs(w, r, q)
		}
		time.Sleep(rand.N(40 * time.Millisecond))
		write(w, status(q["ref_id"], "1"))
		return true
	})
	redis := redistest.Start(t)
	account := func(name, options string) string {
		return "iak_callback /" + name + "/callback {\naccount " + name + " " + sitetest.Username + " " + sitetest.APIKey +
			"\nredis " + redis.URL() + " {\ntimeout 200ms\n}\nupstream_timeout 500ms\n" + options + "\n}\n"
	}
	caddy := sitetest.StartProcess(t, t.TempDir(), "metrics /metrics\n"+account("kiosk", "on_doubt hold")+
		account("shop", confirmOption(iak, "timeout 300ms")+"\nspool {\nanswer_within 300ms\nbackoff 300ms 1s\nmax_age 4s\n}")+"reverse_proxy "+app.Addr())
	p = startPrometheus(t, strings.TrimPrefix(caddy.URL, "http://"))
	sitetest.Eventually(t, "Prometheus has scraped Caddy", func() bool { return p.exists("caddy_iak_callback_in_flight") })
	from = time.Now()

	var traffic sync.WaitGroup
	t.Cleanup(traffic.Wait)
	often := func(milliseconds time.Duration, do func(n string)) {
		pause := milliseconds * time.Millisecond
		traffic.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-t.Context().Done():
					return
				case <-time.After(pause/2 + rand.N(pause)):
					do(strconv.Itoa(n))
				}
			}
		})
	}
	for _, c := range []struct {
		every               time.Duration
		account, id, status string // # is a number, another each time
	}{
		{60, "kiosk", "sold#", "1"}, {400, "kiosk", "again", "1"}, {1900, "kiosk", "again", "2"}, {900, "kiosk", "fails#", "1"},
		{1500, "kiosk", "hangs#", "1"}, {900, "kiosk", "hangs", "1"}, {1700, "kiosk", "odd#", "3"},
		{90, "shop", "sold#", "1"}, {800, "shop", "forged#", "2"}, {1700, "shop", "silent#", "1"},
		{1500, "shop", "fails#", "1"}, {500, "shop", "mends#", "1"}, {3000, "shop", "hangs#", "1"},
	} {
		site := &sitetest.Site{T: t, URL: caddy.URL + "/" + c.account}
		often(c.every, func(n string) { site.Post(sitetest.Order(strings.ReplaceAll(c.id, "#", n), c.status)) })
	}
	shop := &sitetest.Site{T: t, URL: caddy.URL + "/shop"}
	often(300, func(n string) { shop.Post(sitetest.Order(n, "1", "sign", sitetest.Quote(sitetest.Sign("other")))) })
	often(1200, func(string) { shop.Post(`{"data":{`) })
	often(7000, func(string) { redis.Pause(); time.Sleep(400 * time.Millisecond); redis.Continue() })
	// What hangs is held when its lease is over. What is kept is counted every 15 seconds.
	for _, event := range []string{
		`store_errors_total > 0`, `requests_total{account="kiosk", outcome="held"} > 1`, `redeliveries_total{result="held"} > 0`,
		`dead > 0`, `in_flight and count_over_time(caddy_iak_callback_in_flight[5m]) > 70`,
	} {
		asked := time.NewTicker(50 * time.Millisecond) // or Prometheus has time for nothing else
		sitetest.Eventually(t, event, func() bool { <-asked.C; return len(p.query("caddy_iak_callback_"+event)) > 0 })
	}
	return p, from, time.Now()
}

// ask asks Prometheus what the panel does, of all jobs and accounts: numbers over some minutes,
// lines over the run, each of whose points looks back over ten scrapes.
func (d *drawn) ask(p *promServer, from, to time.Time) {
	for _, target := range d.Targets {
		expr := strings.NewReplacer("$__rate_interval", "3s", "$__range", "5m", "$job", ".*", "$account", ".*").Replace(target.Expr)
		name := func(labels map[string]string) string {
			return legend.ReplaceAllStringFunc(target.LegendFormat, func(s string) string { return labels[legend.FindStringSubmatch(s)[1]] })
		}
		if d.Type == "stat" {
			for _, s := range p.query(expr) {
				shown := figure{Name: name(s.Metric), Text: d.text(s.number(p.t))}
				for _, threshold := range d.FieldConfig.Defaults.Thresholds.Steps {
					if least, _ := threshold["value"].(float64); s.number(p.t) >= least { // the first has null
						shown.Color = thresholds[fmt.Sprint(threshold["color"])]
					}
				}
				d.Values = append(d.Values, shown)
			}
			continue
		}
		var data struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
		p.get("query_range", url.Values{"query": {expr}, "start": {from.Format(time.RFC3339Nano)}, "end": {to.Format(time.RFC3339Nano)}, "step": {fmt.Sprint(step)}}, &data)
		for _, series := range data.Result {
			l := &line{Name: name(series.Metric)}
			for _, v := range series.Values {
				if n := (sample{Value: v}).number(p.t); !math.IsNaN(n) { // as a quantile of nothing is
					l.points, d.most = append(l.points, [2]float64{v[0].(float64), n}), max(d.most, n)
				}
			}
			if len(l.points) > 0 {
				d.Lines = append(d.Lines, l)
			}
		}
	}
}

// place says where the panel is, and its lines, whose time begins at from.
func (d *drawn) place(from, seconds float64) {
	d.Left, d.Top, d.Width, d.Height = d.GridPos.X*column, d.GridPos.Y*row, d.GridPos.W*column-8, d.GridPos.H*row-8
	d.Right, d.PlotEnd = d.Width-38, d.Height-100
	// The axis has at most four parts, of 1, 2 or 5 times a power of ten.
	quarter := cmp.Or(d.most, 1) / 4
	apart := math.Pow(10, math.Ceil(math.Log10(quarter)))
	for _, smaller := range []float64{apart / 2, apart / 5} {
		if smaller >= quarter {
			apart = smaller
		}
	}
	top := apart * math.Ceil(4*quarter/apart)
	across := func(at float64) float64 { return left + float64(d.Right-left)*(at-from)/seconds }
	up := func(v float64) float64 { return above + float64(d.PlotEnd-above)*(1-v/top) }
	for v := 0.0; v < top+apart/2; v += apart {
		d.Up = append(d.Up, figure{At: up(v), Text: d.text(v)})
	}
	for at := math.Ceil(from/5) * 5; at < from+seconds-0.5; at += 5 {
		d.Across = append(d.Across, figure{At: across(at), Text: time.Unix(int64(at), 0).Format(time.TimeOnly)})
	}
	for i, l := range d.Lines {
		l.Color, l.Dash = palette[i%len(palette)], []string{"", "5 4"}[i/len(palette)%2]
		before := 0.0
		for _, p := range l.points {
			form := "L%.1f %.1f"
			if p[0]-before > 1.5*step { // a gap: a new line, and a dot if it ends here
				form = "M%.1f %.1fh0"
			}
			l.Path += fmt.Sprintf(form, across(p[0]), up(p[1]))
			before = p[0]
		}
	}
}

// text is a number with the panel's unit, as Grafana writes it.
func (d *drawn) text(v float64) string {
	unit := d.FieldConfig.Defaults.Unit
	switch {
	case unit == "cps":
		unit = " c/s"
	case unit != "s":
		unit = ""
	case v < 1:
		v, unit = v*1e3, " ms"
	case v < 60:
		unit = " s"
	default:
		v, unit = v/60, " min"
	}
	return strconv.FormatFloat(math.Round(v*100)/100, 'f', -1, 64) + unit
}

var dashboardPage = template.Must(template.New("").Parse(`<!doctype html><meta charset="utf-8"><title>IAK callbacks</title><style>
body { margin: 0; padding: 14px 20px 14px 16px; font: 13px/1.35 Arial, sans-serif; color: #1c2530; background: #f5f7f9 } h2 { font-size: 13px; margin: 0; white-space: nowrap }
h1 { font-size: 19px; margin: 0 8px 12px 0 } h1 small { float: right; font-size: 13px; font-weight: normal } main { position: relative; width: {{.Wide}}px; height: {{.Tall}}px }
section { position: absolute; box-sizing: border-box; padding: 8px 10px; background: #fff; border: 1px solid #d9dee4; border-radius: 6px; overflow: hidden }
.numbers { display: flex; justify-content: space-around; text-align: center; padding-top: 8px } .number { font-size: 26px; font-weight: 600; white-space: nowrap }
.number small { display: block; font-size: 12px; font-weight: normal } small, .none { color: #5b6673 } ul { list-style: none; margin: 2px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 14px }
svg { display: block } text { font-size: 12px; fill: #5b6673 } line { stroke: #e6eaee } path { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round }
li { white-space: nowrap } li svg { display: inline; margin: 0 5px 3px 0 }</style>
<h1>IAK callbacks <small>{{.From.Format "2006-01-02 15:04:05"}} to {{.To.Format "15:04:05"}}</small></h1><main>
{{range $p := .Panels}}<section style="left:{{.Left}}px;top:{{.Top}}px;width:{{.Width}}px;height:{{.Height}}px"><h2>{{.Title}}</h2>
{{if .Lines}}<svg width="{{.Right}}" height="{{.PlotEnd}}" style="padding:0 16px 24px 0;overflow:visible"><g>{{range .Up}}<line x1="{{$.Left}}" x2="{{$p.Right}}" y1="{{.At}}" y2="{{.At}}"/>{{end}}</g>
{{range .Up}}<text x="{{$.Left}}" y="{{.At}}" dx="-6" dy="4" text-anchor="end">{{.Text}}</text>{{end}}
{{range .Across}}<text x="{{.At}}" y="{{$p.PlotEnd}}" dy="19" text-anchor="middle">{{.Text}}</text>{{end}}
{{range .Lines}}<path d="{{.Path}}" stroke="{{.Color}}" stroke-dasharray="{{.Dash}}"/>{{end}}</svg>
<ul>{{range .Lines}}<li><svg width="16" height="4"><line x2="16" y1="2" y2="2" style="stroke:{{.Color}};stroke-width:3" stroke-dasharray="{{.Dash}}"/></svg>{{.Name}}</li>{{end}}</ul>
{{else}}<div class="numbers">{{range .Values}}<div class="number" style="color:{{.Color}}">{{.Text}}<small>{{.Name}}</small></div>
{{else}}<div class="number none">{{or .FieldConfig.Defaults.NoValue "No data"}}</div>{{end}}</div>{{end}}</section>{{end}}</main>`))
