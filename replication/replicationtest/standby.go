package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// AddStandby starts another standby, which streams from a node that runs, the primary (also meant by nil)
// or a standby. It blocks until the new one streams and has replayed what its upstream had at that time, and
// appends it to Standbys: do not read that field meanwhile.
func (c *Cluster) AddStandby(ctx context.Context, from *Node) (*Node, error) {
	c.adding.Lock()
	defer c.adding.Unlock()
	if from == nil {
		from = c.Primary
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	n, err := c.newNode(fmt.Sprintf("standby%d", len(c.Standbys)+1), from)
	if err != nil {
		return nil, fmt.Errorf("replicationtest: add a standby: %w", err)
	}
	if err := n.join(ctx, from); err != nil {
		return nil, errors.Join(fmt.Errorf("replicationtest: add a standby to %s: %w", from.name, err), c.drop(n))
	}
	c.Standbys = append(c.Standbys, n)
	return n, nil
}

// drop takes back a node that did not become one.
func (c *Cluster) drop(n *Node) error {
	err := n.end(context.Background(), immediateShutdown)
	c.mu.Lock()
	c.nodes = slices.DeleteFunc(c.nodes, func(m *Node) bool { return m == n })
	c.mu.Unlock()
	freePort(n.Port())
	return errors.Join(err, os.RemoveAll(n.dir))
}

func (n *Node) join(ctx context.Context, from *Node) error {
	if err := n.backup(ctx, from); err != nil {
		return err
	}
	if err := n.dropSystemSettings(); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		if err := n.configure(); err != nil {
			return err
		}
		err := n.launch(ctx)
		if err == nil {
			break
		}
		if attempt == portAttempts || !errors.Is(err, errPortTaken) {
			return err
		}
		if err := n.movePort(); err != nil {
			return err
		}
	}
	return n.WaitStreaming(ctx)
}

// backup copies the data of a server that runs, between the calls that begin and end an online backup: see
// "Making a Base Backup Using the Low Level API" in PostgreSQL's documentation. pg_basebackup is not part
// of every installation, and this is quicker on one machine.
func (n *Node) backup(ctx context.Context, from *Node) error {
	begin, end := `select pg_backup_start('walwake', true)`, `select labelfile from pg_backup_stop(false)`
	if n.cluster.Version < 15 {
		begin, end = `select pg_start_backup('walwake', true, false)`, `select labelfile from pg_stop_backup(false, false)`
	}
	return from.with(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, begin); err != nil {
			return fmt.Errorf("begin a backup: %w", err)
		}
		if err := n.copyRunning(from); err != nil {
			return fmt.Errorf("copy data: %w", err)
		}
		var label string
		if err := conn.QueryRow(ctx, end).Scan(&label); err != nil {
			return fmt.Errorf("end a backup: %w", err)
		}
		return n.cluster.write(filepath.Join(n.data, "backup_label"), label)
	})
}

const controlFile = "global/pg_control"

// copyRunning copies the files of a server that runs. The control file comes last, because in a copy of a
// standby it says how far recovery must go until all the other files fit together.
func (n *Node) copyRunning(from *Node) error {
	if err := copyTree(from.data, n.data, n.cluster.account, notInBackup); err != nil {
		return err
	}
	return copyFile(filepath.Join(from.data, controlFile), filepath.Join(n.data, controlFile), n.cluster.account)
}

// notInBackup names what does not belong into the copy of a server that runs, as in the list of
// pg_basebackup's documentation. Of a folder named here the copy holds the empty folder.
func notInBackup(rel string) bool {
	base := filepath.Base(rel)
	if strings.HasPrefix(base, "pgsql_tmp") || strings.HasPrefix(base, "pg_internal.init") {
		return true
	}
	switch filepath.ToSlash(filepath.Dir(rel)) {
	case "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans", "pg_wal":
		return true
	}
	return slices.Contains([]string{
		controlFile, "backup_label", "tablespace_map", "backup_manifest", "current_logfiles", "postmaster.opts",
		"postmaster.pid", "postgresql.auto.conf.tmp", "recovery.signal", "standby.signal",
	}, filepath.ToSlash(rel))
}

// dropSystemSettings takes from a copy what ALTER SYSTEM set on the other node for that node alone.
func (n *Node) dropSystemSettings() error {
	path := filepath.Join(n.data, "postgresql.auto.conf")
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the copied settings: %w", err)
	}
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, " ")
		if !slices.Contains([]string{"recovery_min_apply_delay", "primary_conninfo", "primary_slot_name"}, name) {
			kept.WriteString(line)
		}
	}
	return n.cluster.write(path, kept.String())
}
