package sqlitestore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
)

const (
	// applicationID tells this store's files from other SQLite files: "iakc".
	applicationID = 0x69616b63

	// schemaVersion is that of the table below.
	schemaVersion = 2

	// checkpointFrames is how many pages the write-ahead log holds before they are moved
	// into the file: some are written several times, so more means less work, and a longer
	// wait for those who come meanwhile.
	checkpointFrames = 1000

	pageSize = 4096 // of a new file

	// The write-ahead log's header, and what it adds to each page:
	// https://sqlite.org/fileformat2.html#the_write_ahead_log
	logHeader   = 32
	frameHeader = 24
)

// The key is the table's own order: one tree, and no index beside it, but for the few
// records that have to be found at a time.
const createSQL = "CREATE TABLE records(key BLOB PRIMARY KEY, value BLOB NOT NULL, expires INTEGER NOT NULL, due INTEGER) WITHOUT ROWID; " +
	"CREATE INDEX due ON records(due, key) WHERE due IS NOT NULL"

// pragmas are set before the file is read for the first time. With the exclusive
// lock before the first access in WAL mode there is no -shm file, and nothing is
// mapped: https://sqlite.org/wal.html#noshm.
var pragmas = []string{
	"PRAGMA locking_mode = EXCLUSIVE",
	"PRAGMA mmap_size = 0",
	"PRAGMA temp_store = MEMORY",
	"PRAGMA cache_size = -4000", // KiB
	"PRAGMA page_size = " + strconv.Itoa(pageSize),
}

// file is the open file.
type file struct {
	conn *sqlite3.Conn
	disk *disk
	path string // without symbolic links
	free func() // lets others in this process have the file

	begin, commit, rollback, insert, update, delete, sel *sqlite3.Stmt

	pageBytes int64
	frames    int64     // pages in the write-ahead log, by the last commit
	size      int64     // of the file, when it was last looked at
	looked    time.Time // when it was last looked at
	waiting   int       // records that have to be found at a time
	more      int       // what the transaction under way adds to them
}

// openFile opens the file, if it is not open, and looks after it, if it is.
func (s *Store) openFile(until time.Time) error {
	if s.file != nil && time.Since(s.file.looked) >= lookInterval {
		if err := guarded(s.look); err != nil {
			s.giveUp(err)
			return describe(err)
		}
	}
	if s.file != nil {
		return nil
	}
	// Slightly less than the operation's own time, so that the callers get this error
	// and not their own.
	if !until.IsZero() {
		until = until.Add(-s.timeout / 5)
	}
	path, err := resolve(s.path)
	if err != nil {
		return describe(err)
	}
	free, err := hold(path, until)
	if err != nil {
		return err
	}
	var f *file
	for {
		err = guarded(func() error { f, err = s.open(path); return err })
		if !errors.Is(err, sqlite3.BUSY) || time.Until(until) <= 0 {
			break
		}
		time.Sleep(min(10*time.Millisecond, time.Until(until)))
	}
	if err != nil {
		free()
		return describe(err)
	}
	f.free = free
	s.file = f
	if !s.sweeping {
		s.sweeping = true
		go guard.Do("the embedded store's sweeper", s.sweeper)
	}
	return nil
}

// open opens the file, or makes it.
func (s *Store) open(path string) (*file, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil { //nolint:gosec // the path is the operator's own
		return nil, err
	}
	if err := inspect(path); err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil {
		s.clock.wrote(info.ModTime())
	}
	f := &file{path: path, disk: newDisk(s.disk)}
	opened := false
	defer func() { // also after a panic
		if !opened {
			_ = f.close(false)
		}
	}()
	var err error
	f.conn, err = sqlite3.Open("file:" + (&url.URL{Path: filepath.ToSlash(path)}).EscapedPath() + "?vfs=" + f.disk.name)
	if err != nil {
		return nil, err
	}
	for _, pragma := range pragmas {
		if err := f.conn.Exec(pragma); err != nil {
			return nil, err
		}
	}
	if err := f.format(); err != nil {
		return nil, err
	}
	if err := f.prepare(); err != nil {
		return nil, err
	}
	f.conn.WALHook(func(_ *sqlite3.Conn, _ string, frames int) error {
		f.frames = int64(frames)
		return nil
	})
	// What a failed write has left in the log may not be on the disk, although it can be
	// read (https://wiki.postgresql.org/wiki/Fsync_Errors): written anew it is, before
	// anything is built on it. On a full disk this waits, and so do new records.
	if _, _, err := f.conn.WALCheckpoint("main", sqlite3.CHECKPOINT_TRUNCATE); err != nil && !isFull(err) {
		return nil, err
	}
	if f.size, err = f.disk.main.Size(); err != nil {
		return nil, err
	}
	waiting, err := f.number(waitingSQL)
	if err != nil {
		return nil, err
	}
	f.waiting, f.looked = int(waiting), time.Now()
	opened = true
	return f, nil
}

// format makes the table in a new file, and makes sure of what it finds in others.
func (f *file) format() error {
	application, err := f.number("PRAGMA application_id")
	if err != nil {
		return err
	}
	version, err := f.number("PRAGMA user_version")
	if err != nil {
		return err
	}
	switch {
	case application == 0 && version == 0: // new, or left by a process that died while it made it
		tables, err := f.number("SELECT count(*) FROM sqlite_schema")
		if err != nil {
			return err
		}
		if tables > 0 {
			return errOther
		}
	case application != applicationID:
		return errOther
	case version != schemaVersion:
		return fmt.Errorf("the file has format %d, and this version of Caddy's iak_callback module knows format %d: "+
			"run the version that wrote it, or name another file", version, schemaVersion)
	}
	if f.pageBytes, err = f.number("PRAGMA page_size"); err != nil {
		return err
	}
	limit := checkpointFrames * (f.pageBytes + frameHeader)
	err = f.conn.Exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = " + strconv.FormatInt(limit, 10))
	if err != nil || application != 0 {
		return err
	}
	return f.conn.Exec(fmt.Sprintf("BEGIN IMMEDIATE; %s; PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT",
		createSQL, applicationID, schemaVersion))
}

func (f *file) number(sql string) (int64, error) {
	stmt, _, err := f.conn.Prepare(sql)
	if err != nil {
		return 0, err
	}
	defer func() { _ = stmt.Close() }()
	stmt.Step()
	return stmt.ColumnInt64(0), finish(stmt)
}

func (f *file) prepare() error {
	for _, p := range []struct {
		stmt **sqlite3.Stmt
		sql  string
	}{
		{&f.begin, "BEGIN IMMEDIATE"}, {&f.commit, "COMMIT"}, {&f.rollback, "ROLLBACK"},
		{&f.insert, insertSQL}, {&f.update, updateSQL}, {&f.delete, deleteSQL}, {&f.sel, selectSQL},
	} {
		stmt, _, err := f.conn.PrepareFlags(p.sql, sqlite3.PREPARE_PERSISTENT)
		if err != nil {
			return err
		}
		*p.stmt = stmt
	}
	return nil
}

// checkpoint moves the write-ahead log into the file.
func (f *file) checkpoint() error {
	_, _, err := f.conn.WALCheckpoint("main", sqlite3.CHECKPOINT_PASSIVE)
	if err == nil {
		f.frames = 0
	}
	return err
}

// closeFile closes the file, if it is open, and lets others have it.
func (s *Store) closeFile(checkpoint bool) error {
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	defer f.free()
	return f.close(checkpoint)
}

// close gives up everything, whatever state it is in.
func (f *file) close(checkpoint bool) error {
	err := guarded(func() error {
		if f.conn == nil {
			return nil
		}
		for _, stmt := range []*sqlite3.Stmt{f.begin, f.commit, f.rollback, f.insert, f.update, f.delete, f.sel} {
			_ = stmt.Close() // tells of the statement's last error
		}
		if !checkpoint {
			_, _ = f.conn.Config(sqlite3.DBCONFIG_NO_CKPT_ON_CLOSE, true)
		}
		return f.conn.Close()
	})
	return errors.Join(err, f.disk.close())
}

// disk is SQLite's way to the disk for one connection: SQLite's ordinary one,
// but for the files' mode. It knows what is open, so that it can be closed
// whatever has become of the connection.
type disk struct {
	vfs.VFSFilename
	name      string
	main, wal vfs.File
	all       []vfs.File
}

var disks atomic.Int64

func newDisk(change func(vfs.VFSFilename) vfs.VFSFilename) *disk {
	d := &disk{
		VFSFilename: change(vfs.Find("").(vfs.VFSFilename)),
		name:        "iak_callback-" + strconv.FormatInt(disks.Add(1), 10),
	}
	vfs.Register(d.name, d)
	return d
}

// OpenFilename opens a file. The library's own way makes it with mode 0666
// (vfs/file.go:85), so it is made before, with a mode that keeps others from
// reading what has been bought.
func (d *disk) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	if flags&vfs.OPEN_CREATE != 0 && name.String() != "" {
		made, err := os.OpenFile(name.String(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			err = made.Close()
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return nil, 0, err
		}
	}
	file, flags, err := d.VFSFilename.OpenFilename(name, flags)
	if err != nil {
		return nil, flags, err
	}
	d.all = append(d.all, file)
	switch {
	case flags&vfs.OPEN_MAIN_DB != 0:
		d.main = file
	case flags&vfs.OPEN_WAL != 0:
		d.wal = file
	}
	return file, flags, nil
}

func (d *disk) close() (err error) {
	vfs.Unregister(d.name)
	for _, file := range d.all { // again for most: no harm
		err = errors.Join(err, file.Close())
	}
	return err
}

// held are the files that this process has open. A file's lock would tell as
// much, but not that it is this process that closes it, nor when it has.
var held = struct {
	sync.Mutex
	files map[string]chan struct{} // closed when the file is free
}{files: make(map[string]chan struct{})}

// hold waits until no other store in this process has the file.
func hold(path string, until time.Time) (free func(), err error) {
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	for {
		held.Lock()
		other, taken := held.files[path]
		if !taken {
			freed := make(chan struct{})
			held.files[path] = freed
			held.Unlock()
			return sync.OnceFunc(func() {
				held.Lock()
				delete(held.files, path)
				held.Unlock()
				close(freed)
			}), nil
		}
		held.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, errClosing
		}
	}
}
