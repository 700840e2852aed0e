package sqlitestore

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/ncruces/go-sqlite3"
)

var (
	errDamaged = errors.New("the file is damaged: stop Caddy, move the file away together with its -wal file or bring back a copy of both, " +
		"and expect repeats of what it remembered to reach the app again")
	errOther   = errors.New("the file is not a store of iak_callback, and is left as it is: name another file")
	errBolt    = errors.New("the file is a store of an earlier version of iak_callback (bbolt), which is not read any more, and is left as it is: move it away or name another file")
	errHeld    = errors.New("another process holds the file; stop it, give each process a file of its own, or use redis to share records")
	errClosing = errors.New("this process has not closed the file yet, because the disk does not answer or another of its stores uses the file")
)

// describe tells in words what is wrong with the file or its disk, and what to do.
func describe(err error) error {
	text := ""
	switch {
	case err == nil:
		return nil
	case isFull(err):
		text = "the disk is full, or a quota or limit on the file's size is reached: make room, and it works again"
	case errors.Is(err, syscall.EROFS), errors.Is(err, sqlite3.READONLY):
		text = "the disk or the file is read-only: make it writable, and it works again"
	case errors.Is(err, os.ErrPermission), errors.Is(err, sqlite3.PERM):
		text = "Caddy's user may not use the file: give it and its directory to that user"
	case errors.Is(err, sqlite3.BUSY), errors.Is(err, sqlite3.LOCKED):
		return errHeld
	case errors.Is(err, sqlite3.CORRUPT), errors.Is(err, sqlite3.NOTADB):
		return fmt.Errorf("%w (%w)", errDamaged, err)
	case errors.Is(err, sqlite3.IOERR):
		text = "the disk has failed: look at the disk and the kernel's log; it works again when the disk does"
	default:
		return err
	}
	return fmt.Errorf("%s (%w)", text, err)
}

// isFull tells an error for want of room.
func isFull(err error) bool {
	return errors.Is(err, sqlite3.FULL) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// guarded turns a panic of the engine into an error: it runs in memory of its own
// (a translation of WebAssembly), and panics where C would end the process.
func guarded(work func() error) error {
	err := guard.Catch(work)
	if errors.As(err, new(*guard.PanicError)) {
		return fmt.Errorf("the database engine has failed: %w", err)
	}
	return err
}
