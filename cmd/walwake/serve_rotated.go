package main

import (
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// rotated is what was read from files that others replace while it is in use: a certificate that is renewed, a secret
// that is changed. It looks at them when it is asked for, and no more than once in rotatedEvery.
type rotated[T any] struct {
	what  string // for the log
	log   *slog.Logger
	read  func() (T, error)
	names []string // none: it never changes

	value atomic.Pointer[T] // the latest that could be read

	mu     sync.Mutex // guards what follows
	looked time.Time
	seen   []os.FileInfo // of names, before they were read last; nil where there was no file
	failed string        // why they could not be read then; empty: they could
}

const rotatedEvery = time.Second

// newRotated reads for the first time. read's errors must hold no secret.
func newRotated[T any](what string, log *slog.Logger, read func() (T, error), names ...string) (*rotated[T], error) {
	r := &rotated[T]{what: what, log: log, read: read, names: names, looked: time.Now(), seen: infos(names)}
	v, err := read()
	if err != nil {
		return nil, err
	}
	r.value.Store(&v)
	return r, nil
}

// now is the latest that could be read. It may read files; who comes while another one does gets what there is.
func (r *rotated[T]) now() T {
	if r.mu.TryLock() {
		r.lookLocked()
		r.mu.Unlock()
	}
	return *r.value.Load()
}

// lookLocked reads again what has changed, or could not be read: of two files one may be replaced before the other.
func (r *rotated[T]) lookLocked() {
	now := time.Now()
	if now.Sub(r.looked) < rotatedEvery {
		return
	}
	r.looked = now
	seen := infos(r.names) // before they are read: what changes meanwhile is read once more
	if r.failed == "" && slices.EqualFunc(seen, r.seen, unchanged) {
		return
	}
	r.seen = seen
	v, err := r.read()
	switch {
	case err == nil:
		r.value.Store(&v)
		r.failed = ""
		r.log.Info("read again", "what", r.what)
	case err.Error() != r.failed:
		r.failed = err.Error()
		r.log.Warn("cannot be read again: the one before stays in use", "what", r.what, "err", oneLine(r.failed))
	}
}

func infos(names []string) []os.FileInfo {
	all := make([]os.FileInfo, len(names))
	for i, name := range names {
		all[i], _ = os.Stat(name) // reading says why not
	}
	return all
}

func unchanged(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
