//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walwake/walwake/replication/replicationtest"
)

func TestSettingsReachTheServers(t *testing.T) {
	t.Parallel()
	// A name that has to be quoted in each of the places into which it is written.
	odd := filepath.Join(folder(t), `it's an "odd" \ $name`)
	must(t, os.Mkdir(odd, 0o755))
	c := replicationtest.Start(t, replicationtest.Options{
		Dir:             odd,
		Settings:        map[string]string{"max_connections": "20", "Work_Mem": "1MB", "walwake.text": "it's a \\ \n'"},
		PrimarySettings: map[string]string{"max_worker_processes": "4", "work_mem": "2MB"},
		StandbySettings: map[string]string{"work_mem": "3MB"},
	})
	const query = `select concat_ws(' ', current_setting('max_connections'), current_setting('max_worker_processes'), current_setting('work_mem'))`
	if got := value[string](t, c.Primary, query); got != "20 4 2MB" {
		t.Errorf("the primary has %s", got)
	}
	if got := value[string](t, c.Standbys[0], query); got != "20 4 3MB" {
		t.Errorf("the standby has %s", got)
	}
	if got := value[string](t, c.Primary, `select current_setting('walwake.text')`); got != "it's a \\ \n'" {
		t.Errorf("quoting turned the text into %q", got)
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	t.Parallel()
	for _, bad := range []struct {
		options replicationtest.Options
		says    string
	}{
		{replicationtest.Options{Standbys: 13}, "Options.Standbys is 13, the most is 12"},
		{replicationtest.Options{Settings: map[string]string{"Port": "1"}}, "Options.Settings: Port is set by the kit"},
		{replicationtest.Options{PrimarySettings: map[string]string{"a = b\nc": ""}}, "Options.PrimarySettings"},
		{replicationtest.Options{StandbySettings: map[string]string{"": ""}}, "Options.StandbySettings"},
		{replicationtest.Options{Version: "13"}, "14 is the oldest"},
		{replicationtest.Options{Version: t.TempDir()}, "should be a major version such as 17, or a folder"},
		{replicationtest.Options{Dir: "/there/is/no/such/folder"}, "no such file or directory"},
	} {
		c, err := replicationtest.New(t.Context(), bad.options)
		if err == nil {
			must(t, c.Close())
		}
		if err == nil || !strings.Contains(err.Error(), bad.says) {
			t.Errorf("%+v: got %v, want one that says %q", bad.options, err, bad.says)
		}
	}
}

func TestServerThatDoesNotStartIsExplainedAndRemoved(t *testing.T) {
	t.Parallel()
	parent := folder(t)
	_, err := replicationtest.New(t.Context(), replicationtest.Options{
		Dir: parent, Settings: map[string]string{"shared_buffers": "plenty"},
	})
	if err == nil || !strings.Contains(err.Error(), "start ") || !strings.Contains(err.Error(), `"shared_buffers": "plenty"`) {
		t.Errorf("the error does not hold the server's reason: %v", err)
	}
	left, err := os.ReadDir(parent)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("%s is left", left[0].Name())
	}
}
