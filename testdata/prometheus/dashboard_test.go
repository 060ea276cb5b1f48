package prometheus_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dashboard is what of Grafana's model the tests look at.
type dashboard struct {
	UID, Title    string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type, Definition string
			Query                  any
			Datasource             *datasource
		}
	}
	Panels []panel
}

type panel struct {
	ID          int
	Type        string
	Title       string
	Description string
	Datasource  *datasource
	GridPos     struct{ X, Y, W, H int }
	Targets     []target
}

type target struct {
	Expr, LegendFormat, RefID string
	Datasource                *datasource
}

type datasource struct{ Type, UID string }

const dashboardFile = "../grafana/walwake.json"

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	if err := json.NewDecoder(bytes.NewReader(text(t, dashboardFile))).Decode(&d); err != nil {
		t.Fatal(err)
	}
	return d
}

type dashboardQuery struct{ panel, expr, legend string }

// dashboardQueries are all panels' with what Grafana puts in for variables, all replicas being chosen.
func dashboardQueries(t *testing.T) []dashboardQuery {
	t.Helper()
	put := strings.NewReplacer("$__rate_interval", "1m", "$__range", "90s", "$replica", ".*", "$instance", ".*")
	var all []dashboardQuery
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			expr := put.Replace(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("%s: a variable that is not known here: %s", p.Title, target.Expr)
			}
			all = append(all, dashboardQuery{p.Title, expr, target.LegendFormat})
		}
	}
	return all
}

func TestEachQueryOfTheDashboardHasAnAnswer(t *testing.T) {
	p := play(t)
	queries := dashboardQueries(t)
	if len(queries) < 20 {
		t.Errorf("%d queries", len(queries))
	}
	for _, q := range queries {
		p.check(t, q.expr)
		for form, from := range map[string]series{"native": p.native, "classic": p.classic} {
			answers := 0
			for _, s := range p.scenes {
				for _, one := range from.query(t, q.expr, s.end) {
					answers++
					if one.H != nil {
						t.Errorf("%s: %s is a histogram, which this panel cannot show", q.panel, q.expr)
					}
					for _, m := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(q.legend, -1) {
						if one.Metric.Get(m[1]) == "" {
							t.Errorf("%s: the legend names %s, which %s has not", q.panel, m[1], one.Metric)
						}
					}
				}
			}
			if answers == 0 {
				t.Errorf("%s (%s histograms): no answer to %s", q.panel, form, q.expr)
			}
		}
	}
}

// What the panels say at some of the times, as somebody on call would read them.
func TestTheDashboardShowsWhatHappened(t *testing.T) {
	p := play(t)
	queries := map[string][]string{}
	for _, q := range dashboardQueries(t) {
		queries[q.panel] = append(queries[q.panel], q.expr)
	}
	for _, c := range []struct {
		panel, scene string
		want         float64
	}{
		{"Position", healthy, 1},
		{"Position", crashed, 0},
		{"Timed out", healthy, 0},
		{"Writes lost", healthy, 0},
		{"Timeline", paused, 1},
		{"Timeline", promoted, 2},
		{"Waiting now", paused, 1},
		{"Waiting now", healthy, 0},
		{"Lag", healthy, 0},
		{"Part of the waits that timed out", paused, 1},
		{"Part of the waits that timed out", healthy, 0},
	} {
		for _, s := range p.scenes {
			if s.name != c.scene {
				continue
			}
			got := p.native.query(t, queries[c.panel][0], s.end)
			if len(got) != 1 || got[0].F != c.want {
				t.Errorf("%s, while the replica is %s: %v, want %v", c.panel, s.name, got, c.want)
			}
		}
	}
	for _, s := range p.scenes {
		states := map[string]float64{}
		for _, one := range p.native.query(t, queries["Sources"][0], s.end) {
			states[one.Metric.Get("source")] = one.F
		}
		var want map[string]float64
		switch s.name {
		case healthy, paused:
			want = map[string]float64{"physical": 2, "poll": 1} // logical rests, or there is none before PostgreSQL 16
		case refused:
			want = map[string]float64{"physical": -1, "logical": -1, "poll": 2}
		}
		for source, state := range want {
			if states[source] != state {
				t.Errorf("while the replica is %s source %s is at %v, want %v", s.name, source, states[source], state)
			}
		}
		if s.name == healthy {
			for _, quantile := range queries["Time until replayed"] {
				native, classic := p.native.query(t, quantile, s.end), p.classic.query(t, quantile, s.end)
				if len(native) != 1 || len(classic) != 1 || native[0].F <= 0 || classic[0].F <= 0 {
					t.Errorf("%s: %v and %v", quantile, native, classic)
				}
			}
		}
	}
}

func TestTheDashboardCanBeImported(t *testing.T) {
	d := readDashboard(t)
	if d.UID == "" || d.Title == "" || d.SchemaVersion < 36 {
		t.Errorf("%+v", d)
	}
	ids := map[int]bool{}
	for i, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] {
			t.Errorf("%s: id %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Title == "" || p.GridPos.X < 0 || p.GridPos.W < 1 || p.GridPos.H < 1 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d is at %+v", p.ID, p.GridPos)
		}
		for _, o := range d.Panels[:i] {
			a, b := p.GridPos, o.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s lies on %s", p.Title, o.Title)
			}
		}
		if p.Type == "row" {
			continue
		}
		if !slices.Contains([]string{"stat", "timeseries", "state-timeline"}, p.Type) || p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("%s: type %q, %d targets, described by %q", p.Title, p.Type, len(p.Targets), p.Description)
		}
		sources, refs := []*datasource{p.Datasource}, map[string]bool{}
		for _, target := range p.Targets {
			sources = append(sources, target.Datasource)
			if target.RefID == "" || refs[target.RefID] {
				t.Errorf("%s: refId %q", p.Title, target.RefID)
			}
			refs[target.RefID] = true
		}
		for _, s := range sources {
			if s == nil || *s != (datasource{"prometheus", "${datasource}"}) {
				t.Errorf("%s: data source %v", p.Title, s)
			}
		}
	}
	variables := map[string]string{}
	played := play(t)
	for _, v := range d.Templating.List {
		variables[v.Name] = v.Type
		if v.Type != "query" {
			continue
		}
		m := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(v.Definition)
		if m == nil || m[2] != v.Name || played.native.names()[m[1]][m[2]] == nil || v.Datasource == nil {
			t.Errorf("variable %s is of %q", v.Name, v.Definition)
		}
	}
	if variables["datasource"] != "datasource" || variables["replica"] != "query" || variables["instance"] != "query" || len(variables) != 3 {
		t.Errorf("variables %v", variables)
	}
}
