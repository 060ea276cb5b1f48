package prometheus_test

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
)

// rules are those of alerts.yml, as Prometheus reads it: with no field that it does not know, and templates that work.
func rules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.Parse(text(t, "alerts.yml"), false, model.UTF8Validation, language, slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Fatal(err)
	}
	var all []rulefmt.Rule
	for _, g := range groups.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

func TestAlertsAreRaisedWhenTheyShouldAndOnlyThen(t *testing.T) {
	p := play(t)
	when := map[string]string{
		"WalwakePositionUnknown": crashed,
		"WalwakeReplicaLags":     paused,
		"WalwakeWaitsTimeOut":    paused,
		"WalwakeOnlyPolls":       refused,
		"WalwakeWritesLost":      promoted,
	}
	// Half a minute is too long for a test. Everything else is as it is deployed.
	shorter := strings.NewReplacer("walwake_replay_lag_seconds > 30", "walwake_replay_lag_seconds > 0.002")
	all := rules(t)
	if len(all) != len(when) {
		t.Errorf("%d rules, %d of them known here", len(all), len(when))
	}
	for _, r := range all {
		p.check(t, r.Expr)
		for _, s := range p.scenes {
			for form, from := range map[string]series{"native": p.native, "classic": p.classic} {
				raised := from.query(t, shorter.Replace(r.Expr), s.end)
				if want := when[r.Alert] == s.name; (len(raised) == 1) != want || len(raised) > 1 {
					t.Errorf("%s, while the replica is %s (%s): %v", r.Alert, s.name, form, raised)
				}
				for _, one := range raised {
					if one.Metric.Get("replica") != "db2" {
						t.Errorf("%s does not say of which replica: %v", r.Alert, one)
					}
				}
			}
		}
		if !slices.Contains([]string{"info", "warning", "critical"}, r.Labels["severity"]) || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s: %v, %v", r.Alert, r.Labels, r.Annotations)
		}
	}
}
