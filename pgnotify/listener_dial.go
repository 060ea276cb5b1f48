package pgnotify

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// dials are the network connections of a link, also those that the driver makes
// by itself to cancel what it gave up on, for up to 15 s. With close, all are
// over.
type dials struct {
	over context.Context //nolint:containedctx // ends with close
	end  context.CancelFunc

	mu               sync.Mutex
	open             []net.Conn // guarded by mu
	network, address string     // guarded by mu; where the latest one led
}

func newDials() *dials {
	d := &dials{}
	d.over, d.end = context.WithCancel(context.Background())
	return d
}

func (d *dials) counted(dial pgconn.DialFunc) pgconn.DialFunc {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stop := context.AfterFunc(d.over, cancel)
		defer stop()
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.over.Err() != nil {
			_ = conn.Close()
			return nil, net.ErrClosed
		}
		d.open = append(d.open, conn)
		d.network, d.address = network, address
		return conn, nil
	}
}

// latest is where the latest one led.
func (d *dials) latest() (network, address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.network, d.address
}

func (d *dials) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.end()
	for _, conn := range d.open {
		_ = conn.Close()
	}
}

// interrupt has all that is read or written fail.
func (d *dials) interrupt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, conn := range d.open {
		_ = conn.SetDeadline(time.Unix(1, 0))
	}
}
