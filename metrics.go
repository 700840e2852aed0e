package iakcallback

import (
	"errors"
	"fmt"
	"slices"

	"github.com/caddy-iak/iakcallback/internal/spool"
	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/prometheus/client_golang/prometheus"
)

// The collectors are made once and registered in the registry of each
// configuration, so they keep their values across reloads. No label holds
// anything that a callback says.
var (
	requestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "iak_callback", Name: "requests_total",
		Help: "Callbacks by account (empty until the signature is proven), outcome and, for rejections, reason.",
	}, []string{"account", "outcome", "reason"})

	upstreamDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "iak_callback", Name: "upstream_duration_seconds",
		Help:    "How long the app took for a delivery.",
		Buckets: prometheus.DefBuckets,
	}, []string{"account"})

	confirmTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "iak_callback", Name: "confirm_total",
		Help: "Questions to IAK about callbacks, by account and verdict: confirmed, denied, not_yet.",
	}, []string{"account", "verdict"})

	confirmDuration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "iak_callback", Name: "confirm_duration_seconds",
		Help:    "How long a question to IAK took, the wait for its turn included.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	})

	inFlight = prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "iak_callback", Name: "in_flight",
		Help: "Deliveries that wait for the app.",
	})
)

// registerMetrics registers the collectors. That they are there already is no
// error: another handler of the same configuration was first.
func registerMetrics(registry *prometheus.Registry) error {
	if registry == nil { // a context that was made by hand
		return nil
	}
	for _, c := range slices.Concat(store.Collectors(), spool.Collectors(), []prometheus.Collector{requestsTotal, upstreamDuration, inFlight, confirmTotal, confirmDuration}) {
		err := registry.Register(c)
		if already := (prometheus.AlreadyRegisteredError{}); errors.As(err, &already) && already.ExistingCollector == c {
			continue
		}
		if err != nil {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}
