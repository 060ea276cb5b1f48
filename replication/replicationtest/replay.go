package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const replayEvery = 2 * time.Millisecond

// until polls a yes-or-no query on one connection.
func (n *Node) until(ctx context.Context, what, query string, args ...any) error {
	connected := false
	err := n.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		connected = true
		return poll(ctx, replayEvery, what, func(ctx context.Context) (yes bool, err error) {
			return yes, conn.QueryRow(ctx, query, args...).Scan(&yes)
		})
	})
	if err != nil && !connected {
		return fmt.Errorf("wait until %s: %w", what, err)
	}
	return err
}

// Pause stops the standby's replay, and returns when nothing more is replayed; WAL is still received.
// Replay that waits for [Node.Lag] stops only once it is through with that record.
func (n *Node) Pause(ctx context.Context) error {
	if err := n.Exec(ctx, `select pg_wal_replay_pause()`); err != nil {
		return fmt.Errorf("pause replay: %w", err)
	}
	return n.until(ctx, "replay is paused", `select pg_get_wal_replay_pause_state() = 'paused'`)
}

// Resume lets replay go on after Pause.
func (n *Node) Resume(ctx context.Context) error {
	if err := n.Exec(ctx, `select pg_wal_replay_resume()`); err != nil {
		return fmt.Errorf("resume replay: %w", err)
	}
	return n.until(ctx, "replay goes on", `select pg_get_wal_replay_pause_state() = 'not paused'`)
}

// Lag lets the standby replay every commit only when it is d old (recovery_min_apply_delay), from the
// moment in which Lag returns; 0 ends that. It outlives a restart.
func (n *Node) Lag(ctx context.Context, d time.Duration) error {
	ms := d.Milliseconds()
	if ms < 0 || d > 0 && ms == 0 {
		return fmt.Errorf("lag of %s: want 0 or at least 1ms", d)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	err := n.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		var standby bool
		if err := conn.QueryRow(ctx, `select pg_is_in_recovery()`).Scan(&standby); err != nil {
			return err
		}
		if !standby {
			return errors.New("a primary does not replay")
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf(`alter system set recovery_min_apply_delay = %d`, ms)); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, `select pg_reload_conf()`)
		return err
	})
	if err != nil {
		return fmt.Errorf("let %s lag: %w", n.name, err)
	}
	// The postmaster reads the file and signals the startup process before it starts another session, so a
	// new session that has the value knows that replay has it too.
	return poll(ctx, replayEvery, "the lag is in force", func(ctx context.Context) (bool, error) {
		return Value[bool](ctx, n, `select setting::bigint = $1 from pg_settings where name = 'recovery_min_apply_delay'`, ms)
	})
}

// Promote makes a standby a primary of the next timeline, and returns when it accepts writes. Paused replay
// goes on first. Standbys of the node follow it; others do not: see [Node.Follow].
func (n *Node) Promote(ctx context.Context) error {
	n.op.Lock()
	defer n.op.Unlock()
	if err := n.Exec(ctx, `select pg_promote(false)`); err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if err := n.until(ctx, "it is promoted", `select not pg_is_in_recovery()`); err != nil {
		return err
	}
	n.mu.Lock()
	n.upstream = nil
	n.mu.Unlock()
	return nil
}

// Follow makes a standby that runs stream from another node, as after a promotion, and returns when it
// does. Its history must not have gone further than the other's.
func (n *Node) Follow(ctx context.Context, upstream *Node) error {
	n.op.Lock()
	defer n.op.Unlock()
	n.mu.Lock()
	was := n.upstream
	if was != nil {
		n.upstream = upstream
	}
	n.mu.Unlock()
	if was == nil || upstream == nil || upstream == n {
		return fmt.Errorf("follow: %s is a primary, or has nobody else to follow", n.name)
	}
	if err := n.configure(); err != nil {
		return fmt.Errorf("follow %s: %w", upstream.name, err)
	}
	if err := n.Exec(ctx, `select pg_reload_conf()`); err != nil {
		return fmt.Errorf("follow %s: %w", upstream.name, err)
	}
	return n.WaitStreaming(ctx)
}

// WaitStreaming returns when the standby streams from its upstream.
func (n *Node) WaitStreaming(ctx context.Context) error {
	n.mu.Lock()
	upstream := n.upstream
	n.mu.Unlock()
	if upstream == nil {
		return fmt.Errorf("wait for streaming: %s is a primary", n.name)
	}
	err := n.until(ctx, "it streams from "+upstream.name,
		`select exists (select from pg_stat_wal_receiver where status = 'streaming' and sender_port = $1)`, upstream.Port())
	if err != nil {
		return fmt.Errorf("%w. Its log ends with:\n%s", err, n.LogTail(10))
	}
	return nil
}

// WaitForReplay returns when the standby has replayed everything up to lsn, in PostgreSQL's notation. It
// asks again and again, and so depends on nothing that this library has to show.
func (n *Node) WaitForReplay(ctx context.Context, lsn string) error {
	return n.until(ctx, "it has replayed "+lsn, `select coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)`, lsn)
}

// WaitForReplay returns when every standby that runs has replayed all that was committed on the node
// that started as primary before the call.
func (c *Cluster) WaitForReplay(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	lsn, err := c.Primary.Position(ctx)
	if err != nil {
		return err
	}
	for _, n := range c.list() {
		if n == c.Primary || n.running() == nil {
			continue
		}
		if err := n.WaitForReplay(ctx, lsn); err != nil {
			return err
		}
	}
	return nil
}

// Position gives a position up to which a standby must replay to show all that was committed on this
// primary before the call. It writes a small record of its own, so that the position is one which replay
// reaches on an idle primary too.
func (n *Node) Position(ctx context.Context) (lsn string, err error) {
	err = n.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		// The commit of this record is flushed, and with it all that comes before: the flush position is
		// not too low, and unlike the insert position it never lies behind a page header that is yet to come.
		if _, err := conn.Exec(ctx, `set synchronous_commit = local`); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, `select pg_logical_emit_message(true, 'walwake', '')`); err != nil {
			return err
		}
		return conn.QueryRow(ctx, `select pg_current_wal_flush_lsn()::text`).Scan(&lsn)
	})
	return lsn, err
}
