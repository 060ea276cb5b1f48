package ryw_test

import (
	"bytes"
	"fmt"
	"time"

	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/ryw"
)

// The secret is changed while the service runs, and nobody's token is refused.
func ExampleKeys_SetSecrets() {
	old := ryw.Secret(bytes.Repeat([]byte("o"), ryw.MinSecretLen)) // yours: 32 bytes of crypto/rand, the same in every process
	next := ryw.Secret(bytes.Repeat([]byte("n"), ryw.MinSecretLen))
	keys, err := ryw.NewKeys(ryw.KeysConfig{Secrets: []ryw.Secret{old}})
	if err != nil {
		fmt.Println(err)
		return
	}
	text := keys.Sign(tracker.Token{System: 7, Timeline: 1, LSN: 0x174FFB0}, time.Now())

	// Each step is taken in every process before the next one.
	for _, step := range [][]ryw.Secret{
		{old, next},
		{next, old},
		{next}, // a day later, when what the old one has signed is not taken any more
	} {
		if err := keys.SetSecrets(step...); err != nil {
			fmt.Println(err)
		}
		tok, err := keys.Open(text, time.Now())
		fmt.Println(tok, err)
	}
	// Output:
	// v1.7.1.0-174FFB0 <nil>
	// v1.7.1.0-174FFB0 <nil>
	// v1.0.0.0-0 ryw: token not signed by these keys: no key of this id
}
