package iakcallback

import (
	"context"
	"crypto/tls"
	_ "embed" // the scripts
	"errors"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

var (
	//go:embed lua/record.lua
	recordLua string
	//go:embed lua/claim.lua
	claimLua string
	//go:embed lua/settle.lua
	settleLua string

	// Without a shebang, Redis refuses a script on a full memory at its first
	// write, so duplicates are still answered.
	claimScript = redis.NewScript(recordLua + claimLua)
	// A settlement shrinks the record, so it may run on a full memory
	// (Redis documentation, "Eval scripts", script flags, since 7.0).
	settleScript = redis.NewScript("#!lua flags=allow-oom\n" + recordLua + settleLua)
)

// redisConfig is what shapes a connection to Redis, with every placeholder
// resolved.
type redisConfig struct {
	urls       []string
	masterName string
	cluster    bool
	poolSize   int
	timeout    time.Duration
}

// redisStore keeps the records in Redis 7.0 or later, one key and one script
// call for each operation.
type redisStore struct {
	client   redis.UniversalClient
	timeout  time.Duration
	sentinel bool
}

// newRedisStore makes a client that dials on first use.
func newRedisStore(cfg redisConfig) (*redisStore, error) {
	options, err := cfg.options()
	if err != nil {
		return nil, err
	}
	return &redisStore{client: redis.NewUniversalClient(options), timeout: cfg.timeout, sentinel: cfg.masterName != ""}, nil
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
		all.Dialer = boundedDialer(cfg.timeout, all.TLSConfig)
	}
	all.ReadTimeout = cfg.timeout
	all.WriteTimeout = cfg.timeout
	all.PoolTimeout = cfg.timeout
	all.MinRetryBackoff = 8 * time.Millisecond
	all.MaxRetryBackoff = cfg.timeout / 8
	// Or each connection begins with CLIENT SETINFO, a right more to be given.
	all.DisableIdentity = true
	// It asks each connection for a feature of Redis Enterprise.
	all.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return all, nil
}

// boundedDialer connects within the timeout, handshake included.
func boundedDialer(timeout time.Duration, config *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{Timeout: timeout, KeepAliveConfig: net.KeepAliveConfig{ // as go-redis's own dialer
		Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}
	if config == nil {
		return d.DialContext
	}
	return (&tls.Dialer{NetDialer: d, Config: config}).DialContext
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

func (s *redisStore) claim(ctx context.Context, c *claimRequest) (decision, error) {
	forward := 0
	if c.forwardConflict {
		forward = 1
	}
	reply, err := s.run(ctx, claimScript, c.key,
		int(c.outcome.status), c.outcome.fixed[:], c.outcome.goods[:], c.owner[:],
		c.lease.Milliseconds(), c.retention.Milliseconds(), forward).Slice()
	if err != nil {
		return decision{}, redisError(err)
	}
	return readDecision(reply)
}

// readDecision reads claim.lua's answer.
func readDecision(reply []any) (decision, error) {
	var n [6]int64
	if len(reply) != 1+len(n) {
		return decision{}, errors.New("unexpected answer from Redis to a claim")
	}
	name, ok := reply[0].(string)
	for i := range n {
		v, isInt := reply[1+i].(int64)
		n[i], ok = v, ok && isInt
	}
	if !ok {
		return decision{}, errors.New("unexpected answer from Redis to a claim")
	}
	return decision{
		verdict:     verdict(name),
		attempt:     int(n[0]),
		leaseEnd:    n[1],
		wait:        time.Duration(n[2]) * time.Millisecond,
		lateGoods:   n[3] == 1,
		contradicts: int(n[4]),
		code:        int(n[5]),
	}, nil
}

func (s *redisStore) settle(ctx context.Context, st *settlement) error {
	o := st.outcome
	return redisError(s.run(ctx, settleScript, st.key,
		string(st.verdict), st.owner[:], st.leaseEnd, st.retention.Milliseconds(),
		int(o.status), o.code, o.fixed[:], o.goods[:]).Err())
}

// run calls a script within the store's timeout.
func (s *redisStore) run(ctx context.Context, script *redis.Script, key string, args ...any) *redis.Cmd {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	reply := script.Run(ctx, s.client, []string{key}, args...)
	if cluster, ok := s.client.(*redis.ClusterClient); ok && reply.Err() != nil {
		// A replica may have taken over. By itself go-redis looks once a minute, since
		// only redirections make it look at once (v9.23.0, osscluster.go, process).
		cluster.ReloadState(ctx)
	}
	return reply
}

// redisError adds what to do to the errors that an operator has to mend.
func redisError(err error) error {
	switch {
	case err == nil:
		return nil
	case strings.HasPrefix(err.Error(), "IAKRECORD"), strings.HasPrefix(err.Error(), "WRONGTYPE"):
		return errRecord
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("redis did not answer in time: %w", err)
	default:
		return fmt.Errorf("redis: %w", err)
	}
}

// Destruct closes the connections, when the last user is gone. With Sentinel it
// does not wait: Close waits for a question to a sentinel that is under way, and
// the last user may be a request or a reload.
func (s *redisStore) Destruct() error {
	if s.sentinel {
		go func() { _ = s.client.Close() }()
		return nil
	}
	return s.client.Close()
}
