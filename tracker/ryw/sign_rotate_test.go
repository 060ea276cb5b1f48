package ryw

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestSecretsThatAreSetTakeThePlaceOfThoseBefore(t *testing.T) {
	k := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('o')}, MaxAge: time.Minute, Audience: "shop"})
	old := k.Sign(signToken, signTime)
	if err := k.SetSecrets(secretOf('n'), secretOf('o')); err != nil {
		t.Fatal(err)
	}
	text := k.Sign(signToken, signTime)
	for _, s := range []string{old, text} {
		if got, err := k.Open(s, signTime); err != nil || got != signToken {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	if want := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('n')}, Audience: "shop"}).Sign(signToken, signTime); text != want {
		t.Errorf("signed %s, want %s: the audience stays", text, want)
	}
	if _, err := k.Open(text, signTime.Add(2*time.Minute)); !errors.Is(err, ErrStale) {
		t.Errorf("MaxAge stays: %v", err)
	}
	for want, secrets := range map[string][]Secret{
		"Secrets is empty":          {},
		"Secrets[1] has 31 bytes":   {secretOf('x'), secretOf('y')[1:]},
		"Secrets[1] is Secrets[0] ": {secretOf('x'), secretOf('x')},
	} {
		if err := k.SetSecrets(secrets...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		if k.Sign(signToken, signTime) != text {
			t.Fatal("what was refused changes the secrets")
		}
	}
	if err := k.SetSecrets(secretOf('n')); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(old, signTime); !errors.Is(err, ErrForged) {
		t.Errorf("of a secret that was dropped: %v", err)
	}
	if err := new(Keys).SetSecrets(secretOf('n')); err == nil {
		t.Error("the zero Keys take secrets")
	}
}

// Two processes change the secret in the three steps of KeysConfig.Secrets, one
// after the other, while both sign and open.
func TestNobodysTokenIsRefusedWhileTheSecretIsChangedUnderWay(t *testing.T) {
	processes := []*Keys{
		keysOf(t, KeysConfig{Secrets: []Secret{secretOf('o')}}),
		keysOf(t, KeysConfig{Secrets: []Secret{secretOf('o')}}),
	}
	var done atomic.Bool
	var opened [2]atomic.Int64
	var users sync.WaitGroup
	for i, signs := range processes {
		opens := processes[1-i]
		users.Go(func() {
			for !done.Load() {
				if got, err := opens.Open(signs.Sign(signToken, signTime), signTime); err != nil || got != signToken {
					t.Errorf("%v, %v", got, err)
					return
				}
				opened[i].Add(1)
			}
		})
	}
	for _, secrets := range [][]Secret{{secretOf('o'), secretOf('n')}, {secretOf('n'), secretOf('o')}} {
		for _, k := range processes {
			if err := k.SetSecrets(secrets...); err != nil {
				t.Error(err)
			}
			for i := range opened {
				for before := opened[i].Load(); opened[i].Load() < before+50 && !t.Failed(); {
					time.Sleep(time.Millisecond)
				}
			}
		}
	}
	done.Store(true)
	users.Wait()
	// Dropped once what it has signed is too old.
	old := keysOf(t, KeysConfig{Secrets: []Secret{secretOf('o')}}).Sign(signToken, signTime)
	for _, k := range processes {
		if err := k.SetSecrets(secretOf('n')); err != nil {
			t.Error(err)
		}
		if _, err := k.Open(old, signTime); !errors.Is(err, ErrForged) {
			t.Errorf("of a secret that was dropped: %v", err)
		}
	}
}
