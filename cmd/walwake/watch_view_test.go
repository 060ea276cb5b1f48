package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walwake/walwake/tracker"
)

// paused is a replica whose replay has been paused for ten seconds, after four minutes without lag and a crash before.
func paused() *sight {
	now := time.Date(2026, 11, 22, 16, 52, 31, 0, time.UTC)
	p := &sight{
		now: now, interval: time.Second, server: "db2:5432", primary: "db1:5432", lags: true,
		state: tracker.State{
			Known: true, Position: tracker.Observation{LSN: 0x3000148, System: 7711042283740198062, Timeline: 1, Epoch: 3}, ObservedAt: now,
			Primary: tracker.Token{System: 7711042283740198062, Timeline: 1, LSN: 0x3120000}, PrimaryHeard: now.Add(-5 * time.Second),
			Source: "poll", Note: "replay is paused on the standby: SELECT pg_wal_replay_resume()",
			Ladder: []tracker.Rung{
				{Source: "physical", Reason: "starts when a wait lasts", Resting: true},
				{Source: "logical", Reason: "no publication walwake: on the primary, in the database of the replica's connection string: CREATE PUBLICATION walwake"},
				{Source: "waitfor", Reason: "needs PostgreSQL 19, the server is 18"},
				{Source: "poll", Up: true},
			},
		},
		stats: tracker.Stats{Observations: 1234, Epochs: 3, Failures: 12, SourceChanges: 1},
		lag:   lagNow{known: true, bytes: 1179320, late: 10 * time.Second, from: "measured"},
	}
	p.last = p.state
	for i := range 260 {
		s := sample{at: now.Add(time.Duration(i-259) * time.Second), epoch: 2, lsn: 0x3000148, lag: lagNow{known: true, from: "measured"}}
		switch {
		case i == 0:
			s.lag = lagNow{}
		case i < 20: // the standby is down
		case i >= 30 && i < 40:
			s.epoch, s.lag = 0, lagNow{}
		case i >= 250:
			s.lag.bytes, s.lag.late = uint64(117932*(i-249)), time.Duration(i-249)*time.Second
		}
		p.samples = append(p.samples, s)
		p.looks++
	}
	p.events = []happening{
		{1, now.Add(-260 * time.Second), "epoch", "the position is known, 0/3000060 of timeline 1", 1},
		{2, now.Add(-220 * time.Second), "failed", "connection refused", 12},
		{3, now.Add(-218 * time.Second), "epoch", "the position is known, 0/3000060 of timeline 1", 1},
		{4, now.Add(-10 * time.Second), "note", "replay is paused on the standby: SELECT pg_wal_replay_resume()", 1},
	}
	return p
}

// down is paused with the standby gone.
func down() *sight {
	p := paused()
	p.state.Known, p.state.Failure, p.state.Note = false, errors.New("connection refused"), ""
	p.state.Source, p.state.Ladder = "", nil
	p.state.ObservedAt = p.now.Add(-time.Minute)
	p.lag = lagNow{reason: "the replica's position is not known"}
	return p
}

// alone is paused without a primary.
func alone() *sight {
	p := paused()
	p.primary, p.lags, p.state.Primary = "", false, tracker.Token{}
	p.lag = lagNow{reason: "name the primary in --primary"}
	for i := range p.samples {
		p.samples[i].lsn += tracker.LSN(i * i * 100)
	}
	return p
}

func drawn(p *sight, width, height int) string {
	var b strings.Builder
	for _, l := range p.view(width, height) {
		b.WriteString(l.String() + "\n")
	}
	return b.String()
}

func TestWatchView(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		sight         *sight
		width, height int
		want          string
	}{
		{"80", paused(), 80, 24, view80},
		{"40", paused(), 40, 24, view40},
		{"200", paused(), 200, 40, view200},
		{"the standby is down", down(), 80, 24, viewDown},
		{"without a primary", alone(), 80, 24, viewAlone},
		{"a strip", paused(), 60, 6, viewStrip},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := drawn(c.sight, c.width, c.height); got != strings.TrimPrefix(c.want, "\n") {
				t.Errorf("got\n%s", got)
			}
		})
	}
}

func TestWatchViewFitsAnyTerminal(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := []*sight{paused(), down(), alone(), {}}[rapid.IntRange(0, 3).Draw(t, "sight")]
		p.interval = time.Duration(rapid.Int64Range(int64(shortestInterval), int64(time.Hour)).Draw(t, "interval"))
		p.server = rapid.String().Draw(t, "server")
		p.state.Note = rapid.String().Draw(t, "note")
		width, height := rapid.IntRange(0, 250).Draw(t, "width"), rapid.IntRange(0, 80).Draw(t, "height")
		lines := p.view(width, height)
		if len(lines) > height {
			t.Fatalf("%d lines in %d", len(lines), height)
		}
		for _, l := range lines {
			if columnsOf(l.String()) > width {
				t.Fatalf("%q is wider than %d", l, width)
			}
		}
	})
}

// A column of the chart has the highest lag of its time, for as long as it is shown.
func TestWatchChartKeepsItsShape(t *testing.T) {
	t.Parallel()
	p := &sight{interval: time.Second}
	const width = 60 // 5 seconds a column
	var was string
	for i := range 300 {
		lag := lagNow{known: true, from: "measured"}
		if i == 12 {
			lag.bytes = 1000
		}
		p.samples = append(p.samples, sample{epoch: 1, lag: lag})
		p.looks++
		bars, highest := p.bars(lagInBytes, width)
		is := chart(bars, max(highest, 1000), 1)[0].String()
		if i >= 12 && strings.Count(is, "█") != 1 {
			t.Fatalf("after %d: %q", i, is)
		}
		if i > 0 && i%5 != 0 && i != 12 && is != was {
			t.Fatalf("after %d: %q, before it was %q", i, is, was)
		}
		was = is
	}
}

// What draws the eye is what keeps a better source from being used.
func TestWatchTones(t *testing.T) {
	t.Parallel()
	p := paused()
	p.state.Source, p.state.Ladder[2].Up = "waitfor", true
	p.state.Ladder = append(p.state.Ladder, tracker.Rung{Source: "worse", Reason: "needs what is not there"})
	want := map[string]tone{"lag": toneWarn, "note": toneWarn, "physical": toneDim, "logical": toneWarn, "waitfor": toneGood, "poll": toneText, "worse": toneDim, "16:48:51": toneBad}
	for _, l := range p.view(80, 24) {
		label, _, _ := strings.Cut(l.String(), " ")
		if of, there := want[label]; there {
			if got := l[len(l)-1].tone; got != of {
				t.Errorf("%s: got tone %d, want %d", l, got, of)
			}
			delete(want, label)
		}
	}
	if len(want) > 0 {
		t.Errorf("not shown: %v", want)
	}
	for _, l := range down().view(80, 24) {
		if strings.HasPrefix(l.String(), "logical   was not up") && l[len(l)-1].tone != toneDim {
			t.Errorf("what was there draws the eye: %v", l)
		}
	}
	p.lag = lagNow{known: true, from: "measured"}
	if lag := p.view(80, 24)[4]; !strings.HasPrefix(lag.String(), "lag       none") || lag[1].tone != toneGood {
		t.Errorf("got %v", lag)
	}
}

func TestWatchWraps(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text        string
		width, most int
		want        string
	}{
		{"", 5, 3, `[""]`},
		{"one two three", 20, 3, `["one two three"]`},
		{"one two three", 7, 3, `["one two" "three"]`},
		{"one two three", 8, 3, `["one two" "three"]`},
		{"one two three", 5, 2, `["one" "two …"]`},
		{"onetwothree", 4, 3, `["onet" "woth" "ree"]`},
		{"日本語", 3, 3, `["日" "本" "語"]`},
		{"日本", 1, 3, `["…"]`},
	} {
		if got := fmt.Sprintf("%q", wrapped(c.text, c.width, c.most)); got != c.want {
			t.Errorf("%q in %d: got %s, want %s", c.text, c.width, got, c.want)
		}
	}
}

func TestSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[float64]string{0: "0 B", 1: "1 B", 999: "999 B", 1000: "1 kB", 999499: "999 kB", 999600: "1 MB", 1179320: "1.18 MB", 1.8e19: "18 EB"} {
		if got := size(n); got != want {
			t.Errorf("%v: got %s, want %s", n, got, want)
		}
	}
}

const (
	view80 = `
walwake watch  db2:5432                                       16:52:31  q leaves

standby   0/3000148 of timeline 1, by poll
system    7711042283740198062
lag       1.18 MB, for 10 s
primary   db1:5432, at 0/3120000 of timeline 1, 5s ago
note      replay is paused on the standby: SELECT pg_wal_replay_resume()

  1.18 MB                   ▁▁▁▁▁▁xx▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▄█
     10 s                   ▁▁▁▁▁▁xx▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▄█
          5m50s ago                                                          now

physical  rests: starts when a wait lasts
logical   not up: no publication walwake: on the primary, in the database of the
          replica's connection string: CREATE PUBLICATION walwake
waitfor   not up: needs PostgreSQL 19, the server is 18
poll      in use
counts    1234 observations, 3 epochs, 12 failures, 1 source change

16:52:21  note: replay is paused on the standby: SELECT pg_wal_replay_resume()
16:48:53  epoch: the position is known, 0/3000060 of timeline 1
16:48:51  failed: connection refused (12 times)
16:48:11  epoch: the position is known, 0/3000060 of timeline 1
`
	view40 = `
walwake watch  db2:5432         16:52:31
standby   0/3000148 of timeline 1, by
          poll
lag       1.18 MB, for 10 s
primary   db1:5432, at 0/3120000 of
          timeline 1, 5s ago
note      replay is paused on the
          standby: SELECT pg_wal_replay…
  1.18 MB     ▁▁▁x▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁█
     10 s     ▁▁▁x▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁█
          5m ago                     now
physical  rests: starts when a wait
          lasts
logical   not up: no publication
          walwake: on the primary, in t…
waitfor   not up: needs PostgreSQL 19,
          the server is 18
poll      in use
counts    1234 observations, 3 epochs,
          12 failures, 1 source change
16:52:21  note: replay is paused on the
          standby: SELECT pg_wal_replay…
16:48:53  epoch: the position is known,
          0/3000060 of timeline 1
`
	view200 = `
walwake watch  db2:5432                                                                                                                                                               16:52:31  q leaves

standby   0/3000148 of timeline 1, by poll
system    7711042283740198062
lag       1.18 MB, for 10 s
primary   db1:5432, at 0/3120000 of timeline 1, 5s ago
note      replay is paused on the standby: SELECT pg_wal_replay_resume()

  1.18 MB                                                                                                                                                                                              █
                                                                                                                                                                                                      ▇█
                                                                                                                                                                                                     ▅██
                                                                                                                                                                                                    ▄███
                                                                                                                                                                                                   ▂████
        0                                                             ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁xxxxx▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁█████
     10 s                                                                                                                                                                                              █
                                                                                                                                                                                                      ▇█
                                                                                                                                                                                                     ▅██
                                                                                                                                                                                                    ▄███
                                                                                                                                                                                                   ▂████
        0                                                             ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁xxxxx▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁█████
          6m20s ago                                                                                                                                                                                  now

physical  rests: starts when a wait lasts
logical   not up: no publication walwake: on the primary, in the database of the replica's connection string: CREATE PUBLICATION walwake
waitfor   not up: needs PostgreSQL 19, the server is 18
poll      in use
counts    1234 observations, 3 epochs, 12 failures, 1 source change

16:52:21  note: replay is paused on the standby: SELECT pg_wal_replay_resume()
16:48:53  epoch: the position is known, 0/3000060 of timeline 1
16:48:51  failed: connection refused (12 times)
16:48:11  epoch: the position is known, 0/3000060 of timeline 1
`
	viewDown = `
walwake watch  db2:5432                                       16:52:31  q leaves

replica   its position is not known: last seen 1m ago
lag       not known: the replica's position is not known
primary   db1:5432, at 0/3120000 of timeline 1, 5s ago
note      connection refused

  1.18 MB                                                                      █
        0                   ▁▁▁▁▁▁xx▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁██
     10 s                                                                      █
        0                   ▁▁▁▁▁▁xx▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁██
          5m50s ago                                                          now

physical  rested: starts when a wait lasts
logical   was not up: no publication walwake: on the primary, in the database of
          the replica's connection string: CREATE PUBLICATION walwake
waitfor   was not up: needs PostgreSQL 19, the server is 18
poll      was in use
counts    1234 observations, 3 epochs, 12 failures, 1 source change

16:52:21  note: replay is paused on the standby: SELECT pg_wal_replay_resume()
16:48:53  epoch: the position is known, 0/3000060 of timeline 1
16:48:51  failed: connection refused (12 times)
16:48:11  epoch: the position is known, 0/3000060 of timeline 1
`
	viewAlone = `
walwake watch  db2:5432                                       16:52:31  q leaves

standby   0/3000148 of timeline 1, by poll
system    7711042283740198062
lag       not known: name the primary in --primary
note      replay is paused on the standby: SELECT pg_wal_replay_resume()

51.7 kB/s                                                     ▁▁▂▂▂▃▃▄▄▅▅▆▆▇▇███
                                             ▁▁▂▂▃▃▄▄▄▅▅▆▆▇▇████████████████████
        0                   ▂▂▂▂▃▃xx▅▅▅▆▆▇▇█████████████████████████████████████
          5m50s ago                                                          now

physical  rests: starts when a wait lasts
logical   not up: no publication walwake: on the primary, in the database of the
          replica's connection string: CREATE PUBLICATION walwake
waitfor   not up: needs PostgreSQL 19, the server is 18
poll      in use
counts    1234 observations, 3 epochs, 12 failures, 1 source change

16:52:21  note: replay is paused on the standby: SELECT pg_wal_replay_resume()
16:48:53  epoch: the position is known, 0/3000060 of timeline 1
16:48:51  failed: connection refused (12 times)
16:48:11  epoch: the position is known, 0/3000060 of timeline 1
`
	viewStrip = `
walwake watch  db2:5432                   16:52:31  q leaves
standby   0/3000148 of timeline 1, by poll
lag       1.18 MB, for 10 s
primary   db1:5432, at 0/3120000 of timeline 1, 5s ago
note      replay is paused on the standby: SELECT pg_wal_re…
physical  rests: starts when a wait lasts
`
)
