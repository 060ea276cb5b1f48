package deploy_test

import (
	"bytes"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v4"
)

// parse reads a YAML file into v, which must know every field.
func parse(t *testing.T, path string, v any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, path))
	if err != nil {
		t.Fatal(err)
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// mountedAt returns the file that a service has at a path.
func mountedAt(t *testing.T, s types.ServiceConfig, path string) string {
	t.Helper()
	for _, v := range s.Volumes {
		if below, err := filepath.Rel(v.Target, path); err == nil && filepath.IsLocal(below) && v.Type == types.VolumeTypeBind {
			return filepath.Join(v.Source, below)
		}
	}
	t.Errorf("%s has nothing at %s", s.Name, path)
	return ""
}

func TestPrometheusAsksEachSidecarWhereItListens(t *testing.T) {
	t.Parallel()
	p := compose(t)
	var config struct {
		Global struct {
			ScrapeInterval     string `yaml:"scrape_interval"`
			EvaluationInterval string `yaml:"evaluation_interval"`
		} `yaml:"global"`
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName       string `yaml:"job_name"`
			Native        bool   `yaml:"scrape_native_histograms"`
			StaticConfigs []struct {
				Targets []string `yaml:"targets"`
			} `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	parse(t, "testdata/prometheus/prometheus.yml", &config)
	for _, file := range config.RuleFiles {
		if at := mountedAt(t, p.Services["prometheus"], file); at != "" && !strings.HasSuffix(at, filepath.Base(file)) {
			t.Errorf("%s is %s", file, at)
		}
	}
	var asked []string
	for _, target := range config.ScrapeConfigs[0].StaticConfigs[0].Targets {
		name, port, err := net.SplitHostPort(target)
		if err != nil {
			t.Fatal(err)
		}
		asked = append(asked, name)
		command, image := p.Services[name].Command, readDockerfile(t).env
		if slices.Contains(command, "--listen") || !slices.Contains(image, "WALWAKE_LISTEN=0.0.0.0:"+port) {
			t.Errorf("%s is asked at port %s, and runs %q with %q", name, port, command, image)
		}
	}
	var sidecars []string
	for name, s := range p.Services {
		if s.Build != nil {
			sidecars = append(sidecars, name)
		}
	}
	slices.Sort(sidecars)
	if !slices.Equal(asked, sidecars) {
		t.Errorf("asks %q of %q", asked, sidecars)
	}
}

func TestGrafanaFindsPrometheusAndTheDashboard(t *testing.T) {
	t.Parallel()
	p := compose(t)
	var sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name, UID, Type, Access, URL string
			IsDefault                    bool           `yaml:"isDefault"`
			JSONData                     map[string]any `yaml:"jsonData"`
		}
	}
	parse(t, "testdata/grafana/provisioning/datasources/prometheus.yml", &sources)
	at, err := url.Parse(sources.Datasources[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	prometheus, ok := p.Services[at.Hostname()]
	if !ok || at.Port() != "9090" || prometheus.Ports[0].Target != 9090 {
		t.Errorf("the data source is at %s", at)
	}
	var dashboards struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Type string
			Options    struct{ Path string }
		}
	}
	parse(t, "testdata/grafana/provisioning/dashboards/walwake.yml", &dashboards)
	grafana := p.Services["grafana"]
	home := *grafana.Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	if filepath.Dir(home) != dashboards.Providers[0].Options.Path {
		t.Errorf("%s is not in %s", home, dashboards.Providers[0].Options.Path)
	}
	text, err := os.ReadFile(mountedAt(t, grafana, home))
	if err != nil {
		t.Fatal(err)
	}
	// Each panel's data source is the one that is provisioned, or a variable that offers it.
	for _, m := range regexp.MustCompile(`"datasource":\s*\{[^}]*"uid":\s*"([^"]+)"`).FindAllSubmatch(text, -1) {
		if uid := string(m[1]); uid != sources.Datasources[0].UID && !strings.HasPrefix(uid, "$") && uid != "-- Grafana --" {
			t.Errorf("the dashboard wants data source %s", uid)
		}
	}
}
