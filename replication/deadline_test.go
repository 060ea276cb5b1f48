package replication

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestADeadlineIsMissedOnlyByWhatIsNotDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var missed []time.Duration
		start := time.Now()
		d := newDeadline(func() { missed = append(missed, time.Since(start)) })
		for range 100 { // each in time, all of them longer than one may take
			d.begin(5 * time.Second)
			time.Sleep(400 * time.Millisecond)
			d.done()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(missed) > 0 {
			t.Fatalf("missed at %s", missed)
		}
		start = time.Now()
		d.begin(5 * time.Second)
		time.Sleep(time.Second)
		d.done()
		d.begin(5 * time.Second) // due at 6 s, while the timer is set for 5
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(missed) != 1 || missed[0] != 6*time.Second {
			t.Errorf("missed at %s, want 6 s", missed)
		}
		start = time.Now()
		d.begin(time.Second)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(missed) != 2 || missed[1] != time.Second {
			t.Errorf("missed at %s, want 1 s", missed)
		}
	})
}
