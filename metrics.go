package iakcallback

import (
	"errors"
	"fmt"
	"time"

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

	storeDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "iak_callback", Name: "store_duration_seconds",
		Help:    "How long a store operation took.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1},
	}, []string{"store", "operation"})

	storeErrorsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "iak_callback", Name: "store_errors_total",
		Help: "Store operations that failed; operation settle_lost: the app's answer could not be recorded before the lease was over.",
	}, []string{"store", "operation"})

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
	for _, c := range []prometheus.Collector{requestsTotal, upstreamDuration, storeDuration, storeErrorsTotal, inFlight} {
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

// observeStore counts one store operation that began at start.
func observeStore(store, operation string, start time.Time, err error) {
	storeDuration.WithLabelValues(store, operation).Observe(time.Since(start).Seconds())
	if err != nil {
		storeErrorsTotal.WithLabelValues(store, operation).Inc()
	}
}
