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

// lowered passes records on one level lower: what the library warns of, a command that tells it itself need not say twice.
type lowered struct{ slog.Handler }

const oneLevel = slog.LevelWarn - slog.LevelInfo

func (h lowered) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, level-oneLevel)
}

func (h lowered) Handle(ctx context.Context, r slog.Record) error {
	r.Level -= oneLevel
	return h.Handler.Handle(ctx, r)
}

func (h lowered) WithAttrs(attrs []slog.Attr) slog.Handler {
	return lowered{h.Handler.WithAttrs(attrs)}
}

func (h lowered) WithGroup(name string) slog.Handler { return lowered{h.Handler.WithGroup(name)} }

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}
