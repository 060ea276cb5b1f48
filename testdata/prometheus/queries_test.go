package prometheus_test

import (
	"maps"
	"regexp"
	"slices"
	"testing"

	client "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// unused are the metrics that neither the dashboard nor an alert shows, and why.
var unused = map[string]string{}

// check looks for names that no scrape had in an expression, and returns the metrics in it.
func (p *played) check(t *testing.T, text string) (used []string) {
	t.Helper()
	expr, err := language.ParseExpr(text)
	if err != nil {
		t.Errorf("%s: %v", text, err)
		return nil
	}
	native, classic := p.native.names(), p.classic.names()
	everywhere := map[string]bool{"le": true}
	for _, has := range native {
		for label := range has {
			everywhere[label] = true
		}
	}
	known := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if !everywhere[name] {
				t.Errorf("%s: no metric has a label %s", text, name)
			}
		}
	}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			has, ok := native[n.Name]
			if !ok {
				has, ok = classic[n.Name]
			}
			if !ok {
				t.Errorf("%s: there is no %s", text, n.Name)
			}
			used = append(used, n.Name)
			for _, m := range n.LabelMatchers {
				switch {
				case has[m.Name] == nil:
					t.Errorf("%s: %s has no label %s", text, n.Name, m.Name)
				case m.Type == labels.MatchEqual && !slices.Contains(has[m.Name], m.Value):
					t.Errorf("%s: %s is never %q in %s", text, m.Name, m.Value, n.Name)
				}
			}
		case *parser.AggregateExpr:
			known(n.Grouping...)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				known(n.VectorMatching.MatchingLabels...)
				known(n.VectorMatching.Include...)
			}
		}
		return nil
	})
	return used
}

func TestEachMetricIsUsed(t *testing.T) {
	p := play(t)
	used := map[string]bool{}
	for _, d := range dashboardQueries(t) {
		for _, name := range p.check(t, d.expr) {
			used[name] = true
		}
	}
	for _, r := range rules(t) {
		for _, name := range p.check(t, r.Expr) {
			used[name] = true
		}
	}
	described := make(chan *client.Desc, 1000)
	p.collector.Describe(described)
	close(described)
	all := map[string]bool{}
	for d := range described {
		name := regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(d.String())[1]
		all[name] = true
		if _, without := unused[name]; used[name] == without {
			t.Errorf("%s is used: %t, and in the list of what is not: %t", name, used[name], without)
		}
		if p.native.names()[name] == nil {
			t.Errorf("%s was never there", name)
		}
	}
	if len(all) < 20 {
		t.Errorf("metrics: %q", slices.Sorted(maps.Keys(all)))
	}
	for name := range unused {
		if !all[name] {
			t.Errorf("there is no %s", name)
		}
	}
}
