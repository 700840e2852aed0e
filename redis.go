package iakcallback

import (
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/redisstore"
	"github.com/caddyserver/caddy/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Redis keeps the records in Redis 7.0 or later, or Valkey. It is dialed on the
// first callback, so that a Redis that is down stops neither start nor reload.
type Redis struct {
	// `redis://[user:password@]host:port[/db]`, `rediss://` for TLS, or
	// `unix://[user:password@]/path[?db=n]`, with the query options of go-redis
	// but its timeouts, min_idle_conns and pipeline settings. Several for Sentinel and Cluster:
	// they may differ in host and port only. Placeholders are resolved when the
	// configuration is loaded.
	URLs []string `json:"urls,omitempty"`

	// The master's name at Sentinel; the urls are the sentinels. User and
	// password in the url are for the Redis servers; the sentinels' own are the
	// query options `sentinel_username` and `sentinel_password`.
	MasterName string `json:"master_name,omitempty"`

	// The urls are seed nodes of a Redis Cluster. Default: false.
	Cluster bool `json:"cluster,omitempty"`

	// What each record's key begins with. Default: `iak:`.
	KeyPrefix string `json:"key_prefix,omitempty"`

	// The budget of one trip to Redis, dialing included, which callbacks share. A
	// callback that comes during a trip waits for the next, three quarters of the
	// timeout at most. At most 5s. Default: 500ms.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The most connections to one server. Default: 10 for each processor.
	PoolSize int `json:"pool_size,omitempty"`
}

// use resolves the urls' placeholders and returns the way to the store.
func (r *Redis) use() (*storeUse, error) {
	cfg := redisConfig{masterName: r.MasterName, cluster: r.Cluster, poolSize: r.PoolSize, timeout: time.Duration(r.Timeout)}
	for i, u := range r.URLs {
		resolved, err := resolveURL(u, fmt.Sprintf("redis: url %d", i+1))
		if err != nil {
			return nil, err
		}
		cfg.urls = append(cfg.urls, resolved)
	}
	return &storeUse{
		kind: "redis",
		id:   storeID("redis", fmt.Sprintf("%#v", cfg)),
		open: cfg.engine,
	}, nil
}

// redisConfig is what shapes a connection to Redis, with every placeholder
// resolved.
type redisConfig struct {
	urls       []string
	masterName string
	cluster    bool
	poolSize   int
	timeout    time.Duration
}

// engine makes a client that dials on first use. Its own messages go to stderr,
// as go-redis has it: its logger is one for all clients of a process (v9.23.0,
// redis.go, SetLogger), and those of other modules must not fall silent. What
// matters comes back as an error.
func (cfg redisConfig) engine() (store.Engine, error) {
	options, err := cfg.options()
	if err != nil {
		return nil, err
	}
	return redisstore.New(redis.NewUniversalClient(options), cfg.timeout, cfg.masterName != ""), nil
}

// options reads the urls. Its errors never quote a url: it may hold a password,
// which go-redis's own errors would print.
func (cfg redisConfig) options() (*redis.UniversalOptions, error) {
	switch {
	case len(cfg.urls) == 0:
		return nil, errors.New("redis: no url given")
	case cfg.cluster && cfg.masterName != "":
		return nil, errors.New("redis: cluster and master_name exclude each other")
	case len(cfg.urls) > 1 && !cfg.cluster && cfg.masterName == "":
		return nil, errors.New("redis: several urls need master_name (Sentinel) or cluster")
	}
	var all *redis.UniversalOptions
	for i, u := range cfg.urls {
		options, err := cfg.parse(u)
		if err != nil {
			return nil, fmt.Errorf("redis: url %d: %w", i+1, err)
		}
		if all == nil {
			all = options
			continue
		}
		addrs := slices.Concat(all.Addrs, options.Addrs)
		all.Addrs, options.Addrs = nil, nil
		if !sameSettings(all, options) {
			return nil, fmt.Errorf("redis: url %d differs from url 1 in more than its address: "+
				"user, password, database and options must be the same in all", i+1)
		}
		all.Addrs = addrs
	}
	all.MasterName = cfg.masterName
	all.IsClusterMode = cfg.cluster
	if cfg.poolSize > 0 {
		all.PoolSize = cfg.poolSize
	}
	// The timeout bounds each operation as a whole, through its context. Retries
	// are safe: the scripts recognize their own owner.
	all.ContextTimeoutEnabled = true
	all.DialTimeout = cfg.timeout
	all.DialerRetries = 1
	if cfg.masterName != "" {
		// A new connection begins with a question to a sentinel. One that hangs is
		// asked again and again before it is replaced by another, and only if the time
		// for the dial is not over by then (v9.23.0, sentinel.go, MasterAddr): four
		// timeouts and some, measured. So that gets time, in the background, and each
		// connection a bound of its own.
		all.DialTimeout = 8 * cfg.timeout
	}
	all.Dialer = redisstore.Dialer(cfg.timeout, all.TLSConfig)
	all.ReadTimeout = cfg.timeout
	all.WriteTimeout = cfg.timeout
	all.PoolTimeout = cfg.timeout
	// A connection is begun again within each retry of a trip: up to 15 pauses,
	// which must leave time to fail by what is wrong, and not by the timeout.
	all.MinRetryBackoff = cfg.timeout / 64
	all.MaxRetryBackoff = cfg.timeout / 64
	all.OnConnect = redisstore.CheckVersion
	// Or each connection begins with CLIENT SETINFO, a right more to be given.
	all.DisableIdentity = true
	// It asks each connection for a feature of Redis Enterprise.
	all.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return all, nil
}

// parse reads redis://, rediss:// and unix://, with the query options of
// go-redis. With Sentinel the url's user and password are for the Redis servers,
// sentinel_username and sentinel_password for the sentinels, as in go-redis's
// ParseFailoverURL.
func (cfg redisConfig) parse(text string) (*redis.UniversalOptions, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not a valid url; expected redis://[user:password@]host:port[/db], with special characters of user and password percent-encoded")
	}
	several := cfg.cluster || cfg.masterName != ""
	switch u.Scheme {
	case "redis", "rediss":
	case "unix":
		if several {
			return nil, errors.New("unix:// cannot be used with Sentinel or Cluster")
		}
	default:
		return nil, errors.New("expected redis://, rediss:// or unix://")
	}
	query := u.Query()
	sentinelUsername, sentinelPassword := query.Get("sentinel_username"), query.Get("sentinel_password")
	if cfg.masterName != "" {
		query.Del("sentinel_username")
		query.Del("sentinel_password")
		u.RawQuery = query.Encode()
	}
	o, err := redis.ParseURL(u.String())
	if err != nil {
		return nil, errors.New("not a valid Redis url or an unknown option in its query; " +
			"expected redis://[user:password@]host:port[/db][?option=value], with special characters of user and password percent-encoded")
	}
	if cfg.cluster && o.DB != 0 {
		return nil, errors.New("a cluster has only database 0")
	}
	if several && o.TLSConfig != nil {
		o.TLSConfig.ServerName = "" // each node's own name, which is not known yet
	}
	// Not MinIdleConns: with it, making the client dials.
	return &redis.UniversalOptions{
		Addrs:                 []string{o.Addr},
		DB:                    o.DB,
		Username:              o.Username,
		Password:              o.Password,
		SentinelUsername:      sentinelUsername,
		SentinelPassword:      sentinelPassword,
		Protocol:              o.Protocol,
		ClientName:            o.ClientName,
		MaxRetries:            o.MaxRetries,
		PoolFIFO:              o.PoolFIFO,
		PoolSize:              o.PoolSize,
		MaxConcurrentDials:    o.MaxConcurrentDials,
		MaxIdleConns:          o.MaxIdleConns,
		MaxActiveConns:        o.MaxActiveConns,
		ConnMaxIdleTime:       o.ConnMaxIdleTime,
		ConnMaxLifetime:       o.ConnMaxLifetime,
		ConnMaxLifetimeJitter: o.ConnMaxLifetimeJitter,
		TLSConfig:             o.TLSConfig,
	}, nil
}

// sameSettings compares what two urls of one set say beside their address.
func sameSettings(a, b *redis.UniversalOptions) bool {
	x, y := *a, *b
	tlsAlike := (x.TLSConfig == nil) == (y.TLSConfig == nil) &&
		(x.TLSConfig == nil || x.TLSConfig.InsecureSkipVerify == y.TLSConfig.InsecureSkipVerify)
	x.TLSConfig, y.TLSConfig = nil, nil // they differ in the server's name
	return tlsAlike && reflect.DeepEqual(x, y)
}
