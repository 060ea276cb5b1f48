package sidecar

import (
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A stream remembers what it has written as told, though the timeline that is known is another all the time. Positions
// would be read with the wrong one otherwise.
func TestWhatIsWrittenIsRememberedAsTold(t *testing.T) {
	k := start(t, nil)
	k.script.observe(on(1, 100))
	var over atomic.Bool
	var running sync.WaitGroup
	running.Go(func() {
		for i := uint32(0); !over.Load(); i++ {
			k.script.observe(on(i%2, 100)) // it is known, and is not
		}
	})
	st := &stream{s: k.server}
	wrong := 0
	const states = 1000
	for range states {
		st.buf, st.told = st.buf[:0], about{}
		f, _, _ := k.server.cfg.Hub.since(0)
		st.present(f)
		_, data, _ := strings.Cut(string(st.buf), "data: ")
		var written Position
		if err := json.Unmarshal([]byte(data), &written); err != nil {
			t.Fatalf("%v: %s", err, data)
		}
		if told := named(st.told.timeline); (told == nil) != (written.Timeline == nil) {
			wrong++
		}
	}
	over.Store(true)
	running.Wait()
	if wrong > 0 {
		t.Errorf("%d of %d states say another timeline than is remembered", wrong, states)
	}
}
