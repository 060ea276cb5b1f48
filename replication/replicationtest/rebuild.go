package replicationtest

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Rebuild makes the node a fresh standby of another one that runs, whatever it was before: its data is
// thrown away and copied anew. It is what becomes of a primary that failed, and of a standby that had
// replayed what the new primary never had. It returns when the node streams; its port stays the same.
func (n *Node) Rebuild(ctx context.Context, from *Node) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if from == nil || from == n {
		return fmt.Errorf("rebuild %s: it has nobody to be copied from", n.name)
	}
	if err := n.renew(ctx, from); err != nil {
		return fmt.Errorf("rebuild %s from %s: %w", n.name, from.name, err)
	}
	return n.WaitStreaming(ctx)
}

func (n *Node) renew(ctx context.Context, from *Node) error {
	n.op.Lock()
	defer n.op.Unlock()
	if err := n.end(ctx, immediateShutdown); err != nil {
		return err
	}
	if err := os.RemoveAll(n.data); err != nil {
		return err
	}
	n.mu.Lock()
	n.upstream = from
	n.mu.Unlock()
	if err := errors.Join(n.backup(ctx, from), n.dropSystemSettings(), n.configure()); err != nil {
		return err
	}
	return n.launch(ctx)
}
