package iakcallback

import (
	"context"
	"crypto/tls"
	_ "embed" // the scripts
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store/batch"
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
	lanes    sync.Map // from a server's address to its *batch.Queue[*scriptCall]
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
	// A connection is begun again within each retry of a trip: up to 15 pauses,
	// which must leave time to fail by what is wrong, and not by the timeout.
	all.MinRetryBackoff = cfg.timeout / 64
	all.MaxRetryBackoff = cfg.timeout / 64
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

func (s *redisStore) claim(_ context.Context, c *claimRequest) (decision, error) {
	b := make([]byte, 0, 64)
	b = append(b, byte(c.outcome.status), 0)
	if c.forwardConflict {
		b[1] |= 1
	}
	if c.hold {
		b[1] |= 2
	}
	b = append(b, c.outcome.fixed[:]...)
	b = append(b, c.outcome.goods[:]...)
	b = append(b, c.owner[:]...)
	b = appendInt64(b, c.lease.Milliseconds())
	b = appendInt64(b, c.retention.Milliseconds())
	reply, err := s.run(claimScript, c.key, string(b)).Text()
	if err != nil {
		return decision{}, redisError(err)
	}
	return readDecision(reply)
}

// readDecision reads claim.lua's answer.
func readDecision(reply string) (decision, error) {
	const fixed = 22
	if len(reply) <= fixed {
		return decision{}, errors.New("unexpected answer from Redis to a claim")
	}
	b, word := []byte(reply[:fixed]), reply[fixed:]
	return decision{
		verdict:     verdict(word),
		attempt:     int(binary.BigEndian.Uint16(b)),
		leaseEnd:    readInt64(b[2:]),
		wait:        time.Duration(readInt64(b[10:])) * time.Millisecond,
		lateGoods:   b[18] == 1,
		contradicts: int(int8(b[19])), //nolint:gosec // -1 to 2
		code:        int(binary.BigEndian.Uint16(b[20:])),
	}, nil
}

func (s *redisStore) settle(_ context.Context, st *settlement) error {
	b := make([]byte, 0, 64)
	b = append(b, st.owner[:]...)
	b = appendInt64(b, st.leaseEnd)
	b = appendInt64(b, st.retention.Milliseconds())
	b = st.outcome.append(b)
	b = append(b, st.verdict...)
	_, err := s.run(settleScript, st.key, string(b)).Int()
	return redisError(err)
}

// scriptCall is one call of a script on one key.
type scriptCall struct {
	script *redis.Script
	key    string
	packed string // ARGV[1]
	since  time.Time
	reply  *redis.Cmd
	done   sync.WaitGroup
}

// run calls a script within twice the store's timeout: most of it to wait for
// the trip before, and its own trip.
func (s *redisStore) run(script *redis.Script, key, packed string) *redis.Cmd {
	c := &scriptCall{script: script, key: key, packed: packed, since: time.Now()}
	c.done.Add(1)
	s.lane(key).Add(c)
	c.done.Wait()
	return c.reply
}

// lane is where the calls for one server wait: the one server, or the key's
// master in a cluster, so that one that hangs does not hold up the others.
func (s *redisStore) lane(key string) *batch.Queue[*scriptCall] {
	node := ""
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
		defer cancel()
		if master, err := cluster.MasterForKey(ctx, key); err == nil {
			node = master.Options().Addr
		}
	}
	if lane, ok := s.lanes.Load(node); ok {
		return lane.(*batch.Queue[*scriptCall])
	}
	lane, _ := s.lanes.LoadOrStore(node, &batch.Queue[*scriptCall]{Run: s.send})
	return lane.(*batch.Queue[*scriptCall])
}

// send makes the calls in one trip, within the store's timeout. One that has
// waited for three quarters of that is not made, so that its caller is answered
// well within twice the timeout.
func (s *redisStore) send(calls []*scriptCall) {
	ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
	defer cancel()
	pipe := s.client.Pipeline()
	calls = slices.DeleteFunc(calls, func(c *scriptCall) bool {
		if time.Since(c.since) < s.timeout*3/4 {
			c.reply = pipe.Do(ctx, "evalsha", c.script.Hash(), "1", &c.key, &c.packed)
			return false
		}
		c.reply = redis.NewCmd(ctx)
		c.reply.SetErr(context.DeadlineExceeded)
		c.done.Done()
		return true
	})
	err := carryOut(ctx, pipe)
	for _, c := range calls { // a server that was restarted does not know the script
		if err := c.reply.Err(); err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
			c.reply = c.script.Eval(ctx, pipe, []string{c.key}, c.packed)
		}
	}
	if pipe.Len() > 0 {
		err = carryOut(ctx, pipe)
	}
	if cluster, ok := s.client.(*redis.ClusterClient); ok && err != nil {
		// A replica may have taken over. By itself go-redis looks once a minute, since
		// only redirections make it look at once (v9.23.0, osscluster.go, process).
		cluster.ReloadState(ctx)
	}
	for _, c := range calls {
		c.done.Done()
	}
}

// carryOut sends a pipeline. go-redis leaves the commands without an error
// when Redis refuses the connection, for its password say (v9.23.0, redis.go,
// generalProcessPipelineFrom).
func carryOut(ctx context.Context, pipe redis.Pipeliner) error {
	calls, err := pipe.Exec(ctx)
	for _, c := range calls {
		if reply := c.(*redis.Cmd); err != nil && reply.Err() == nil && reply.Val() == nil {
			reply.SetErr(err)
		}
	}
	return err
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
