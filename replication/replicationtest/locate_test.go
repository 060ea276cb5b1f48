//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeServer makes a folder with programs that say what a PostgreSQL of this version says.
func fakeServer(t *testing.T, bin, version string) {
	t.Helper()
	must(t, os.MkdirAll(bin, 0o755))
	script(t, filepath.Join(bin, "postgres"), "echo 'postgres (PostgreSQL) "+version+" (Fake 1.2-3)'")
	script(t, filepath.Join(bin, "initdb"), "exit 1")
}

func script(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755))
	must(t, os.Chmod(path, 0o755)) // whatever the umask is
}

// fakeHost looks for PostgreSQL within a folder alone: packages in root/packages/*/bin, the cache in
// root/cache, PATH at root/path. There is no npm.
func fakeHost(t *testing.T, env map[string]string) (h *host, root string) {
	t.Helper()
	as, err := serverAccount()
	must(t, err)
	root = folder(t)
	must(t, os.MkdirAll(filepath.Join(root, "path"), 0o755))
	all := map[string]string{"PATH": filepath.Join(root, "path") + ":relative"}
	maps.Copy(all, env)
	return &host{
		getenv:  func(name string) string { return all[name] },
		globs:   []string{filepath.Join(root, "packages", "*", "bin")},
		caches:  []string{filepath.Join(root, "cache")},
		account: as,
		npm:     filepath.Join(root, "no-npm"),
	}, root
}

func silent(string, ...any) {}

func TestSearchFindsTheNewestThatWillDo(t *testing.T) {
	h, root := fakeHost(t, nil)
	for _, version := range []string{"13.22", "15.3", "15.18", "17.2", "17.10", "19beta1", "19rc1", "20devel"} {
		fakeServer(t, filepath.Join(root, "packages", "pg-"+version, "bin"), version)
	}
	// What must not be taken: no initdb, no version, a failure.
	fakeServer(t, filepath.Join(root, "packages", "half", "bin"), "18.1")
	must(t, os.Remove(filepath.Join(root, "packages", "half", "bin", "initdb")))
	fakeServer(t, filepath.Join(root, "packages", "mute", "bin"), "")
	fakeServer(t, filepath.Join(root, "packages", "broken", "bin"), "18.2")
	script(t, filepath.Join(root, "packages", "broken", "bin", "postgres"), "exit 127")

	for _, c := range []struct{ version, want string }{
		{"", "17.10"},
		{"15", "15.18"},
		{"17", "17.10"},
		{"20", "20devel"},
		{filepath.Join(root, "packages", "pg-15.3"), "15.3"},
		{filepath.Join(root, "packages", "pg-19beta1", "bin"), "19beta1"},
	} {
		got, err := h.find(t.Context(), c.version, silent)
		if err != nil || got.text != c.want {
			t.Errorf("for %q: %q, want %q (%v)", c.version, got.text, c.want, err)
		}
	}
	if got, err := h.find(t.Context(), "19", silent); err != nil || got.major != 19 {
		t.Errorf("for 19: %q (%v)", got.text, err)
	}
}

func TestSearchLooksEverywhere(t *testing.T) {
	t.Run("PATH, through a link", func(t *testing.T) {
		h, root := fakeHost(t, nil)
		fakeServer(t, filepath.Join(root, "opt", "bin"), "16.1")
		must(t, os.Symlink(filepath.Join(root, "opt", "bin", "postgres"), filepath.Join(root, "path", "postgres")))
		finds(t, h, filepath.Join(root, "opt", "bin"))
	})
	t.Run("pg_config", func(t *testing.T) {
		h, root := fakeHost(t, nil)
		fakeServer(t, filepath.Join(root, "opt", "bin"), "16.1")
		script(t, filepath.Join(root, "path", "pg_config"), "echo "+filepath.Join(root, "opt", "bin"))
		finds(t, h, filepath.Join(root, "opt", "bin"))
	})
	t.Run("the cache, what is complete of it", func(t *testing.T) {
		h, root := fakeHost(t, nil)
		cache := filepath.Join(root, "cache")
		fakeServer(t, filepath.Join(cache, "16", "inner", "bin"), "16.1")
		must(t, os.WriteFile(filepath.Join(cache, "16", markerFile), []byte("inner\n"), 0o644))
		fakeServer(t, filepath.Join(cache, "18", "bin"), "18.1")
		fakeServer(t, filepath.Join(root, "outside", "bin"), "18.2")
		must(t, os.Mkdir(filepath.Join(cache, "17"), 0o755))
		must(t, os.WriteFile(filepath.Join(cache, "17", markerFile), []byte("../../outside\n"), 0o644))
		finds(t, h, filepath.Join(cache, "16", "inner", "bin"))
	})
	t.Run("WALWAKE_PG, by number", func(t *testing.T) {
		h, root := fakeHost(t, map[string]string{versionEnv: " 15 "})
		fakeServer(t, filepath.Join(root, "packages", "a", "bin"), "15.1")
		fakeServer(t, filepath.Join(root, "packages", "b", "bin"), "16.1")
		finds(t, h, filepath.Join(root, "packages", "a", "bin"))
	})
}

func finds(t *testing.T, h *host, bin string) {
	t.Helper()
	bin, err := filepath.EvalSymlinks(bin) // the folder for temporary files may be behind a link
	must(t, err)
	got, err := h.find(t.Context(), "", silent)
	must(t, err)
	if real, err := filepath.EvalSymlinks(got.bin); real != bin {
		t.Errorf("found %s, want %s (%v)", got.bin, bin, err)
	}
}

func TestSearchThatFindsNothingSaysWhatToDo(t *testing.T) {
	h, root := fakeHost(t, nil)
	fakeServer(t, filepath.Join(root, "packages", "old", "bin"), "12.4")
	_, err := h.find(t.Context(), "", silent)
	if !errors.Is(err, ErrNoPostgres) {
		t.Fatalf("got %v", err)
	}
	for _, says := range []string{"no PostgreSQL 14 or newer is installed", "version 12.4", "npm", "apt-get install", "dnf install", "brew install", versionEnv} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("the message has no %q: %v", says, err)
		}
	}
	for _, c := range []struct{ version, says string }{
		{"12", "14 is the oldest"},
		{"16", "PostgreSQL 16 (WALWAKE_PG) is not installed"},
		{filepath.Join(root, "packages", "old"), "version 12.4, and 14 is the oldest"},
		{filepath.Join(root, "nowhere"), "should be a major version such as 17, or a folder"},
		{"seventeen", "should be a major version such as 17, or a folder"},
	} {
		h.getenv = func(name string) string { return map[string]string{versionEnv: c.version}[name] }
		if _, err := h.find(t.Context(), "", silent); err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), versionEnv) {
			t.Errorf("for %q: %v, want one that says %q", c.version, err, c.says)
		}
	}
}

func TestSearchThatIsCancelledSaysSo(t *testing.T) {
	h, root := fakeHost(t, nil)
	fakeServer(t, filepath.Join(root, "packages", "a", "bin"), "16.1")
	reason := fmt.Errorf("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(reason)
	if _, err := h.find(ctx, "", silent); !errors.Is(err, reason) {
		t.Errorf("got %v", err)
	}
}
