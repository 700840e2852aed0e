package iakcallback

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
	"github.com/caddy-iak/iakcallback/internal/store/sqlitestore"
	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// embeddedTimeout is what one operation may take, opening the file included. A
// variable, since the disk of a test machine may be busy.
var embeddedTimeout = 500 * time.Millisecond

// Embedded keeps the records in one file, for one Caddy process. It is opened
// on the first callback.
type Embedded struct {
	// The file. Placeholders are resolved when the configuration is loaded.
	// Default: `iak_callback/records.sqlite` in Caddy's data directory.
	File string `json:"file,omitempty"`
}

// use resolves the file's placeholders and returns the way to the store. Without
// the option e is nil.
func (e *Embedded) use() (*storeUse, error) {
	path := filepath.Join(caddy.AppDataDir(), "iak_callback", "records.sqlite")
	if e != nil && e.File != "" {
		var err error
		if path, err = resolve(e.File, "embedded: file"); err != nil {
			return nil, err
		}
	}
	return embeddedUse(path)
}

// embeddedUse is the way to the store in a file.
func embeddedUse(path string) (*storeUse, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("embedded: file: %w", err)
	}
	path = sqlitestore.Resolve(path) // the same file under two names is one store
	return &storeUse{
		kind: "embedded",
		id:   storeID("embedded", path),
		path: path,
		open: func() (store.Engine, error) {
			return sqlitestore.New(path, embeddedTimeout, func(err error) { logger().Error("the embedded store", zap.Error(err)) }), nil
		},
	}, nil
}
