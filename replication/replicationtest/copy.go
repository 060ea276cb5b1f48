package replicationtest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// copyTree copies a data directory and gives the copy to an account. With skip, it is that of a server
// that runs: what skip names (by its path within the directory) is left out, and files may vanish.
func copyTree(from, to string, as *account, skip func(rel string) bool) error {
	running := skip != nil
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if running && errors.Is(err, fs.ErrNotExist) && path != from {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if running && skip(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			if err := os.Mkdir(target, 0o700); err != nil {
				return err
			}
			return as.own(target)
		case d.Type().IsRegular():
			err := copyFile(path, target, as)
			if running && errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		return fmt.Errorf("%s is neither a file nor a folder: tablespaces cannot be copied", rel)
	})
}

// copyFile copies one file. It fails with fs.ErrNotExist only when there is none to copy.
func copyFile(from, to string, as *account) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), as.own(to))
}
