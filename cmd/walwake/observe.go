package main

import (
	"context"

	"github.com/walwake/walwake/tracker"
)

// observers calls all, in their order.
func observers(all ...tracker.Observer) tracker.Observer {
	return tracker.Observer{
		Position: func(o tracker.Observation) {
			for _, a := range all {
				if a.Position != nil {
					a.Position(o)
				}
			}
		},
		Failed: func(source string, err error) {
			for _, a := range all {
				if a.Failed != nil {
					a.Failed(source, err)
				}
			}
		},
		SourceChanged: func(from, to string) {
			for _, a := range all {
				if a.SourceChanged != nil {
					a.SourceChanged(from, to)
				}
			}
		},
		WaitStart: func(ctx context.Context, tok tracker.Token) context.Context {
			for _, a := range all {
				if a.WaitStart != nil {
					ctx = a.WaitStart(ctx, tok) //nolint:fatcontext // each adds to what those before it have put in
				}
			}
			return ctx
		},
		WaitEnd: func(ctx context.Context, r tracker.WaitResult) {
			for _, a := range all {
				if a.WaitEnd != nil {
					a.WaitEnd(ctx, r)
				}
			}
		},
	}
}
