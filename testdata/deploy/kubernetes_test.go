//go:build linux

package deploy_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// manifest is what the tests look at of an object.
type manifest struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name string }
	Spec       struct {
		Selector map[string]any
		Ports    []struct{ Port int }
		Managed  struct {
			Roles []struct {
				Name               string
				Login, Replication bool
				InRoles            []string `yaml:"inRoles"`
			}
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				SecurityContext map[string]any `yaml:"securityContext"`
				Containers      []kubeContainer
				Volumes         []struct{ Name string }
			}
		}
	}
}

type kubeContainer struct {
	Name, Image string
	Args        []string
	Env         []kubeVariable
	Ports       []struct {
		ContainerPort int `yaml:"containerPort"`
	}
	LivenessProbe   *kubeProbe `yaml:"livenessProbe"`
	ReadinessProbe  *kubeProbe `yaml:"readinessProbe"`
	SecurityContext struct {
		RunAsNonRoot             *bool `yaml:"runAsNonRoot"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	} `yaml:"volumeMounts"`
}

type kubeVariable struct {
	Name, Value string
	ValueFrom   map[string]any `yaml:"valueFrom"`
}

type kubeProbe struct {
	HTTPGet struct {
		Path string
		Port int
	} `yaml:"httpGet"`
}

func manifests(t *testing.T, name string) (all []manifest) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("kubernetes", name))
	must(t, err)
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var m manifest
		err := d.Decode(&m)
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		if m.APIVersion == "" || m.Kind == "" || m.Metadata.Name == "" {
			t.Errorf("%s: an object without kind or name: %+v", name, m)
		}
		all = append(all, m)
	}
}

func TestTheKubernetesExamplesRunTheSidecar(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"cloudnativepg.yaml", "patroni.yaml"} {
		found := 0
		for _, m := range manifests(t, file) {
			for _, c := range m.Spec.Template.Spec.Containers {
				found++
				checkContainer(t, m, c)
				dir := t.TempDir()
				must(t, os.WriteFile(filepath.Join(dir, "bearer"), []byte(strings.Repeat("0", 64)), 0o600))
				var env []string
				for _, v := range c.Env {
					value := strings.ReplaceAll(v.Value, "$(POD)", "patronidemo-0")
					if v.Name == "WALWAKE_REPLICA" || v.Name == "WALWAKE_PRIMARY" { // of this machine, nothing answers there
						value = strings.Replace(value, "host="+hostOf(value), "host=127.0.0.1 port=1", 1)
						value = strings.NewReplacer(" sslrootcert=/ca/ca.crt", "", "verify-full", "require", "verify-ca", "require").Replace(value)
					}
					if v.ValueFrom != nil {
						value = "x"
					}
					env = append(env, v.Name+"="+value)
				}
				args := slices.Clone(c.Args)
				for i, arg := range args {
					if strings.HasSuffix(arg, "/bearer") {
						if !mountsOver(c, arg) {
							t.Errorf("%s: nothing is mounted over %s", file, arg)
						}
						args[i] = filepath.Join(dir, "bearer")
					}
				}
				if err := serves(t, args, env...); err != nil {
					t.Errorf("%s: %v", file, err)
				}
			}
		}
		if found != 1 {
			t.Errorf("%s: %d containers", file, found)
		}
	}
}

func hostOf(dsn string) string {
	for word := range strings.FieldsSeq(dsn) {
		if host, ok := strings.CutPrefix(word, "host="); ok {
			return host
		}
	}
	return ""
}

func mountsOver(c kubeContainer, path string) bool {
	for _, v := range c.VolumeMounts {
		if strings.HasPrefix(path, v.MountPath+"/") && v.ReadOnly {
			return true
		}
	}
	return false
}

func checkContainer(t *testing.T, m manifest, c kubeContainer) {
	t.Helper()
	s := c.SecurityContext
	pod := m.Spec.Template.Spec.SecurityContext
	nonRoot := pod["runAsNonRoot"] == true || s.RunAsNonRoot != nil && *s.RunAsNonRoot
	if !nonRoot || !s.ReadOnlyRootFilesystem || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
		t.Errorf("%s may do more than it needs: %+v", m.Metadata.Name, s)
	}
	if c.LivenessProbe == nil || c.LivenessProbe.HTTPGet.Path != "/healthz" || c.LivenessProbe.HTTPGet.Port != c.Ports[0].ContainerPort {
		t.Errorf("%s: %+v", m.Metadata.Name, c.LivenessProbe)
	}
	if ready := c.ReadinessProbe != nil; ready != (m.Kind == "Deployment") { // in PostgreSQL's own pod it would take that out
		t.Errorf("%s: readiness probe: %t", m.Metadata.Name, ready)
	}
	for _, v := range c.Env {
		if passwordLiteral.MatchString(v.Value) || v.Name == "PGPASSWORD" && v.ValueFrom["secretKeyRef"] == nil {
			t.Errorf("%s: %s holds a password", m.Metadata.Name, v.Name)
		}
	}
	var volumes []string
	for _, v := range m.Spec.Template.Spec.Volumes {
		volumes = append(volumes, v.Name)
	}
	for _, v := range c.VolumeMounts {
		if !slices.Contains(volumes, v.Name) {
			t.Errorf("%s: there is no volume %s", m.Metadata.Name, v.Name)
		}
	}
}

func TestCloudNativePGsInstanceIsTheOneThatIsFollowed(t *testing.T) {
	t.Parallel()
	objects := map[string]manifest{}
	for _, m := range manifests(t, "cloudnativepg.yaml") {
		objects[m.Kind+" "+m.Metadata.Name] = m
	}
	direct, deployment, service := objects["Service pg-2"], objects["Deployment walwake-pg-2"], objects["Service walwake-pg-2"]
	if direct.Spec.Selector["cnpg.io/instanceName"] != "pg-2" || direct.Spec.Selector["cnpg.io/cluster"] != objects["Cluster pg"].Metadata.Name {
		t.Errorf("the Service pg-2 selects %v", direct.Spec.Selector)
	}
	c := deployment.Spec.Template.Spec.Containers[0]
	for _, v := range c.Env {
		if v.Name == "WALWAKE_REPLICA" && hostOf(v.Value) != direct.Metadata.Name {
			t.Errorf("it follows %s", v.Value)
		}
		if v.Name == "WALWAKE_PRIMARY" && hostOf(v.Value) != "pg-rw" {
			t.Errorf("its primary is %s", v.Value)
		}
	}
	if deployment.Spec.Template.Metadata.Labels["app"] != service.Spec.Selector["app"] || service.Spec.Ports[0].Port != c.Ports[0].ContainerPort || !slices.Contains(c.Args, service.Metadata.Name) {
		t.Errorf("the Service selects %v", service.Spec.Selector)
	}
	role := objects["Cluster pg"].Spec.Managed.Roles[0]
	if role.Name != "walwake" || !role.Login || !role.Replication || !slices.Equal(role.InRoles, []string{"pg_read_all_stats"}) {
		t.Errorf("the role is %+v", role)
	}
}
