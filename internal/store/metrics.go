package store

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The collectors are made once, so that they keep their values across reloads.
var (
	storeDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "iak_callback", Name: "store_duration_seconds",
		Help:    "How long a store operation took.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1},
	}, []string{"store", "operation"})

	storeErrors = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "iak_callback", Name: "store_errors_total",
		Help: "Store operations that failed; operation settle_lost: the app's answer could not be recorded before the lease was over, or before Caddy ended.",
	}, []string{"store", "operation"})
)

// Collectors returns the metrics of all stores.
func Collectors() []prometheus.Collector {
	return []prometheus.Collector{storeDuration, storeErrors}
}

// observe counts one operation that began at start.
func observe(kind, operation string, start time.Time, err error) {
	storeDuration.WithLabelValues(kind, operation).Observe(time.Since(start).Seconds())
	if err != nil {
		storeErrors.WithLabelValues(kind, operation).Inc()
	}
}
