package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"
)

// newLogger returns what the library logs to: lines for a person when stderr is a terminal, JSON objects otherwise.
func newLogger(stderr io.Writer, level string, getenv func(string) string) *slog.Logger {
	out := stderr
	if l, ok := stderr.(*lockedWriter); ok && l.terminal {
		out = zerolog.ConsoleWriter{Out: stderr, NoColor: getenv("NO_COLOR") != "", TimeFormat: time.TimeOnly + ".000"}
	}
	parsed, err := zerolog.ParseLevel(level)
	if err != nil {
		parsed = zerolog.WarnLevel // the flag takes no other than the known ones
	}
	return slog.New(zerolog.NewSlogHandler(zerolog.New(out).Level(parsed).With().Timestamp().Logger()))
}

// lowered passes records on with a lower level, down to debug: what the library warns of, a command that tells it itself
// need not say twice. What it says of errors comes on one line each.
type lowered struct {
	slog.Handler
	by slog.Level
}

const oneLevel = slog.LevelWarn - slog.LevelInfo

func (h lowered) level(of slog.Level) slog.Level { return min(of, max(of-h.by, slog.LevelDebug)) }

func (h lowered) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, h.level(level))
}

func (h lowered) Handle(ctx context.Context, r slog.Record) error {
	low := slog.NewRecord(r.Time, h.level(r.Level), r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if err, is := a.Value.Any().(error); is {
			a.Value = slog.StringValue(oneLine(err.Error()))
		}
		low.AddAttrs(a)
		return true
	})
	return h.Handler.Handle(ctx, low)
}

func (h lowered) WithAttrs(attrs []slog.Attr) slog.Handler {
	return lowered{h.Handler.WithAttrs(attrs), h.by}
}

func (h lowered) WithGroup(name string) slog.Handler {
	return lowered{h.Handler.WithGroup(name), h.by}
}

// repeats counts what happens again and again, so that a log says it once in a while. It is not safe for concurrent use.
type repeats map[string]*repeat

type repeat struct {
	said  time.Time
	times int // since then
}

const (
	sayEvery   = 10 * time.Second
	maxRepeats = 64 // texts, which may have numbers in them
)

// again returns how often a text has come since it was last to be said, with this time; 0: it need not be said yet.
func (r repeats) again(text string, now time.Time) int {
	was := r[text]
	if was == nil {
		if len(r) == maxRepeats {
			clear(r)
		}
		r[text] = &repeat{said: now}
		return 1
	}
	was.times++
	if now.Sub(was.said) < sayEvery {
		return 0
	}
	n := was.times
	*was = repeat{said: now}
	return n
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}
