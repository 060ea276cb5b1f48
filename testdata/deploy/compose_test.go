package deploy_test

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// top is the repository's own folder.
const top = "../.."

// compose reads docker-compose.yml as docker compose does, all profiles, with some environment.
func compose(t *testing.T, environment ...string) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{filepath.Join(top, "docker-compose.yml")},
		cli.WithProfiles([]string{"*"}), cli.WithEnv(environment), cli.WithResolvedPaths(true))
	if err != nil {
		t.Fatal(err)
	}
	p, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// oneShot reports whether a service does its work and ends.
func oneShot(p *types.Project, name string) bool {
	for _, s := range p.Services {
		if d, ok := s.DependsOn[name]; ok && d.Condition == types.ServiceConditionCompletedSuccessfully {
			return true
		}
	}
	return false
}

func TestThereIsWhatTheIssueAsksFor(t *testing.T) {
	t.Parallel()
	p := compose(t)
	want := []string{"grafana", "primary", "prometheus", "secrets", "standby1", "standby2", "walwake1", "walwake2"}
	if got := p.ServiceNames(); !slices.Equal(got, want) {
		t.Errorf("services %q, want %q", got, want)
	}
	for name, s := range p.Services {
		metrics := name == "prometheus" || name == "grafana"
		if slices.Contains(s.Profiles, "metrics") != metrics {
			t.Errorf("%s: profiles %q", name, s.Profiles)
		}
	}
	for _, image := range []string{"primary", "standby1", "standby2", "secrets"} {
		if got := p.Services[image].Image; got != "postgres:18" {
			t.Errorf("%s: image %s", image, got)
		}
		if got := compose(t, "WALWAKE_PG=17").Services[image].Image; got != "postgres:17" {
			t.Errorf("%s: image %s with WALWAKE_PG=17", image, got)
		}
	}
	for name, s := range p.Services {
		if s.Build == nil && !regexp.MustCompile(`:v?\d`).MatchString(s.Image) {
			t.Errorf("%s: image %s has no version", name, s.Image)
		}
	}
}

func TestEachMountedFileExistsAndCannotBeChanged(t *testing.T) {
	t.Parallel()
	p := compose(t)
	root, err := filepath.Abs(top)
	if err != nil {
		t.Fatal(err)
	}
	mounted := 0
	for name, s := range p.Services {
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeVolume {
				if _, ok := p.Volumes[v.Source]; !ok {
					t.Errorf("%s: no volume %s", name, v.Source)
				}
				continue
			}
			mounted++
			if in, err := filepath.Rel(filepath.Join(root, "testdata"), v.Source); err != nil || !filepath.IsLocal(in) {
				t.Errorf("%s mounts %s, which is not in testdata", name, v.Source)
			}
			info, err := os.Stat(v.Source)
			switch {
			case err != nil:
				t.Errorf("%s: %v", name, err)
			case !v.ReadOnly:
				t.Errorf("%s may write to %s", name, v.Source)
			case strings.HasSuffix(v.Source, ".sh") && info.Mode()&0o111 != 0o111:
				t.Errorf("%s: %s cannot be executed", name, v.Source)
			case info.Mode()&0o444 != 0o444:
				t.Errorf("%s: %s cannot be read by all", name, v.Source)
			}
		}
	}
	if mounted < 10 {
		t.Errorf("only %d files are mounted", mounted)
	}
}

func TestEachServiceHasAHealthCheckThatOthersWaitFor(t *testing.T) {
	t.Parallel()
	p := compose(t)
	for name, s := range p.Services {
		if once := oneShot(p, name); once == (s.HealthCheck != nil) {
			t.Errorf("%s: ends: %t, health check: %v", name, once, s.HealthCheck)
		}
		for on, d := range s.DependsOn {
			want := types.ServiceConditionHealthy
			if oneShot(p, on) {
				want = types.ServiceConditionCompletedSuccessfully
			}
			if d.Condition != want || !d.Required {
				t.Errorf("%s: waits for %s: %+v", name, on, d)
			}
		}
		if h := s.HealthCheck; h != nil && (h.Test[0] != "CMD" || h.Interval == nil || h.Timeout == nil || h.StartPeriod == nil) {
			t.Errorf("%s: health check %+v", name, h)
		}
	}
}

func TestWhatIsPublishedIsOnLoopbackAndEachPortCanBeMoved(t *testing.T) {
	t.Parallel()
	usual, used := compose(t), map[string]string{}
	var moved []string
	for name := range usual.Services {
		moved = append(moved, "WALWAKE_PORT_"+strings.ToUpper(name)+"=1"+strconv.Itoa(len(moved)))
	}
	elsewhere := compose(t, moved...)
	for name, s := range usual.Services {
		for i, port := range s.Ports {
			if ip := net.ParseIP(port.HostIP); ip == nil || !ip.IsLoopback() {
				t.Errorf("%s publishes %d on %q", name, port.Target, port.HostIP)
			}
			if other := used[port.Published]; other != "" {
				t.Errorf("%s and %s publish %s", name, other, port.Published)
			}
			used[port.Published] = name
			if got := elsewhere.Services[name].Ports[i].Published; got == port.Published {
				t.Errorf("%s: port %s stays where it is", name, got)
			}
		}
		if len(s.Ports) == 0 && !oneShot(usual, name) {
			t.Errorf("%s publishes nothing", name)
		}
	}
}

func TestServicesMayDoNoMoreThanTheyNeed(t *testing.T) {
	t.Parallel()
	p := compose(t)
	for name, s := range p.Services {
		if !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: cap_drop %q, security_opt %q", name, s.CapDrop, s.SecurityOpt)
		}
		if once := oneShot(p, name); once != (len(s.CapAdd) > 0) || once != (s.User == "root") || once != (s.NetworkMode == "none") {
			t.Errorf("%s: cap_add %q, user %q, network %q", name, s.CapAdd, s.User, s.NetworkMode)
		}
		if s.Privileged || s.Pid != "" || s.Ipc != "" {
			t.Errorf("%s is privileged: %+v", name, s)
		}
		if s.Build != nil && !s.ReadOnly {
			t.Errorf("%s: its root can be written to", name)
		}
	}
}

var passwordLiteral = regexp.MustCompile(`(?i)\bpassword(\s*=|:)?\s*'[^']|\bpassword=[^\s/]|://[^/\s:@]+:[^@\s]+@`)

// written lists where a service has a password, token or key in its environment or command line.
func written(s types.ServiceConfig) (where []string) {
	for key, value := range s.Environment {
		if value == nil {
			continue
		}
		secret := regexp.MustCompile(`(?i)password|passwd|secret|token|_key`).MatchString(key) && !strings.HasSuffix(key, "_FILE")
		if secret && !strings.HasPrefix(*value, "/") || passwordLiteral.MatchString(*value) {
			where = append(where, key)
		}
	}
	words := slices.Concat(s.Command, s.Entrypoint)
	if s.HealthCheck != nil {
		words = append(words, s.HealthCheck.Test...)
	}
	for _, word := range words {
		if passwordLiteral.MatchString(word) {
			where = append(where, word)
		}
	}
	return where
}

func TestNoPasswordIsWrittenDown(t *testing.T) {
	t.Parallel()
	p := compose(t)
	for name, s := range p.Services {
		if where := written(s); len(where) > 0 {
			t.Errorf("%s: %q", name, where)
		}
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind {
				continue
			}
			text, err := os.ReadFile(v.Source)
			if err == nil && passwordLiteral.Match(text) { // a folder's files are not SQL
				t.Errorf("%s: %s", v.Source, passwordLiteral.Find(text))
			}
		}
	}
	// The check can fail.
	for _, bad := range []string{"POSTGRES_PASSWORD=hunter2", "WALWAKE_REPLICA=host=h password=hunter2", "X=postgres://u:hunter2@h/d"} {
		var s types.ServiceConfig
		s.Environment = types.NewMappingWithEquals([]string{bad})
		if len(written(s)) != 1 {
			t.Errorf("not found: %s", bad)
		}
	}
	var s types.ServiceConfig
	s.Command = types.ShellCommand{"--replica", "postgres://u:hunter2@h/d"}
	if len(written(s)) != 1 {
		t.Errorf("not found: %q", s.Command)
	}
	for _, sql := range []string{"ALTER ROLE x PASSWORD 'hunter2'", "password = 'x'", "password: 'x'"} {
		if !passwordLiteral.MatchString(sql) {
			t.Errorf("not found in %s", sql)
		}
	}
}
