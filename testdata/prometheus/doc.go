// Package prometheus holds what Prometheus is given, and has no code but its tests: of alerts.yml, and of Grafana's
// dashboard. Each of their queries is run by PromQL's own engine, over what the metrics of a real replica were while it
// was written to, paused, crashed, kept from streaming and promoted.
package prometheus
