package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/walwake/walwake/replication"
	"github.com/walwake/walwake/tracker"
	"github.com/walwake/walwake/tracker/metrics"
)

// Two replicas, with a label for the service that reads from them.
func Example() {
	collector := metrics.New(metrics.Config{})
	registry := prometheus.NewRegistry() // or prometheus.DefaultRegisterer
	prometheus.WrapRegistererWith(prometheus.Labels{"service": "shop"}, registry).MustRegister(collector)
	for _, name := range []string{"db2", "db3"} {
		source, err := replication.New(replication.Config{Replica: replication.Server{DSN: "host=" + name + " user=app"}})
		if err != nil {
			fmt.Println(err)
			return
		}
		// What it returns is to be Run, and closed at the end.
		if _, err := collector.NewTracker(tracker.Config{Source: source, Name: name}); err != nil {
			fmt.Println(err)
			return
		}
	}
	families, err := registry.Gather() // what promhttp.HandlerFor(registry, …) serves
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, f := range families {
		if f.GetName() == "walwake_replay_position_known" {
			for _, m := range f.GetMetric() {
				fmt.Println(m.GetLabel()[0].GetValue(), m.GetLabel()[1].GetValue(), m.GetGauge().GetValue())
			}
		}
	}
	// Output:
	// db2 shop 0
	// db3 shop 0
}

// Span and Tracer are what tracing needs of OpenTelemetry, so that this package does
// not depend on it. With OpenTelemetry itself, where tracer is a trace.Tracer:
//
//	WaitStart: func(ctx context.Context, tok tracker.Token) context.Context {
//		ctx, _ = tracer.Start(ctx, "walwake.wait", trace.WithAttributes(attribute.Stringer("walwake.lsn", tok.LSN)))
//		return ctx
//	},
//	WaitEnd: func(ctx context.Context, r tracker.WaitResult) {
//		span := trace.SpanFromContext(ctx)
//		if r.Err != nil {
//			span.RecordError(r.Err)
//			span.SetStatus(codes.Error, "the write is not on the replica")
//		}
//		span.End()
//	},
type (
	Span interface {
		SetAttribute(key, value string)
		RecordError(err error)
		End()
	}
	Tracer interface {
		Start(ctx context.Context, name string) (context.Context, Span)
	}
)

// spanKey is the context's key for the Span; trace.SpanFromContext does it for
// OpenTelemetry.
type spanKey struct{}

// tracing makes each wait that blocks a span.
func tracing(tracer Tracer) tracker.Observer {
	return tracker.Observer{
		WaitStart: func(ctx context.Context, tok tracker.Token) context.Context {
			ctx, span := tracer.Start(ctx, "walwake.wait")
			span.SetAttribute("walwake.lsn", tok.LSN.String())
			return context.WithValue(ctx, spanKey{}, span)
		},
		WaitEnd: func(ctx context.Context, r tracker.WaitResult) {
			span, _ := ctx.Value(spanKey{}).(Span)
			if late, ok := errors.AsType[*tracker.TimeoutError](r.Err); ok {
				span.SetAttribute("walwake.behind_bytes", fmt.Sprint(late.Behind))
			}
			if r.Err != nil {
				span.RecordError(r.Err)
			}
			span.End()
		},
	}
}

// Spans of OpenTelemetry, and metrics of Prometheus, of the same waits.
func Example_tracing() {
	collector := metrics.New(metrics.Config{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector)
	replica, err := collector.NewTracker(tracker.Config{Source: source{}, Name: "db2", Observer: tracing(printer{})})
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() { _ = replica.Run(context.Background()) }()
	defer replica.Close()
	<-replica.Ready()

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	_ = replica.Wait(ctx, token(1064)) // the replica stays at 1000
	families, err := registry.Gather()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, f := range families {
		if f.GetName() == "walwake_wait_duration_seconds" {
			for _, m := range f.GetMetric() {
				fmt.Println(m.GetLabel()[1].GetValue(), m.GetHistogram().GetSampleCount())
			}
		}
	}
	// Output:
	// start walwake.wait
	// walwake.lsn=0/428
	// walwake.behind_bytes=64
	// timeout: true
	// end
	// replayed 0
	// timeout 1
}

// printer is a Tracer, and its Span.
type printer struct{}

func (p printer) Start(ctx context.Context, name string) (context.Context, Span) {
	fmt.Println("start", name)
	return ctx, p
}

func (printer) SetAttribute(key, value string) { fmt.Println(key + "=" + value) }
func (printer) RecordError(err error)          { fmt.Println("timeout:", errors.Is(err, tracker.ErrTimeout)) }
func (printer) End()                           { fmt.Println("end") }
