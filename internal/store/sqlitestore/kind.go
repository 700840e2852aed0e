package sqlitestore

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
)

// inspect tells a file that is not a store's before SQLite touches it: what
// SQLite opens, it may write to.
func inspect(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() { // to open a pipe would wait for its writer
		return errOther
	}
	f, err := os.Open(path) //nolint:gosec // the path is the operator's own
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	header := make([]byte, 100)
	n, err := io.ReadFull(f, header)
	switch {
	case errors.Is(err, io.EOF):
		return nil // empty, as a file that was just made
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	}
	// https://sqlite.org/fileformat2.html#the_database_header
	if strings.HasPrefix(string(header), "SQLite format 3\x00") {
		if n < len(header) {
			return errDamaged
		}
		application := binary.BigEndian.Uint32(header[68:])
		// A process that died while it made the file has left it without a table, and so
		// short: SQLite sees then whether there is one.
		if application == applicationID || application == 0 && info.Size() <= pageSize {
			return nil
		}
		return errOther
	}
	// go.etcd.io/bbolt: a page's header of 16 bytes, then this number in the order of the
	// machine's bytes (internal/common/meta.go).
	const bolt = 0xED0CDAED
	if n >= 20 && (binary.LittleEndian.Uint32(header[16:]) == bolt || binary.BigEndian.Uint32(header[16:]) == bolt) {
		return errBolt
	}
	if strings.Trim(string(header[:n]), "\x00") == "" { // overwritten with zeros
		return errDamaged
	}
	return errOther
}
