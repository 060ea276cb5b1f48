//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package replicationtest

import (
	"errors"
	"testing"
)

func TestNewSaysThatItNeedsUnix(t *testing.T) {
	if _, err := New(t.Context(), Options{}); !errors.Is(err, errUnsupported) {
		t.Errorf("got %v", err)
	}
}
