package sqlitestore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
)

// lookInterval is how often the open file is looked after.
const lookInterval = time.Second

// look makes sure that the open file is still the one under its name, whole. If
// it is not, it is closed, and told: the next use opens what stands there, or
// begins anew. To refuse callbacks instead would lose them, and to go on with a
// file that has no name would lose all of it at the next start.
func (s *Store) look() error {
	if s.file == nil {
		return nil
	}
	f := s.file
	f.looked = time.Now()
	moved, err := hasMoved(f.disk.main)
	if err != nil {
		return err
	}
	if moved {
		// What is in the log goes into the file, which may only have another name now.
		_, _, _ = f.conn.WALCheckpoint("main", sqlite3.CHECKPOINT_TRUNCATE)
		f.removeLog()
		return s.lost("the file was removed or replaced while Caddy used it")
	}
	size, err := f.disk.main.Size()
	if err != nil {
		return err
	}
	if size < f.size { // as a copy that is written over it does
		f.removeLog()
		return s.lost(fmt.Sprintf("the file was cut from %d to %d bytes while Caddy used it", f.size, size))
	}
	f.size = size
	cut, err := f.logCut()
	if err != nil {
		return err
	}
	if cut {
		return s.lost("the file's -wal was cut while Caddy used it")
	}
	if moved, err = hasMoved(f.disk.wal); err != nil || !moved {
		return err
	}
	// What is in the log can still be read, and goes into the file.
	if _, _, err := f.conn.WALCheckpoint("main", sqlite3.CHECKPOINT_TRUNCATE); err != nil {
		return err
	}
	s.report(s.wrap(errors.New("the file's -wal was removed while Caddy used it; nothing was lost, as it was written into the file: " +
		"leave it alone while Caddy runs")))
	return s.closeFile(true)
}

// lost closes a file that has lost what it held, so that the next use opens
// what stands there now.
func (s *Store) lost(what string) error {
	s.report(s.wrap(fmt.Errorf("%s: leave it alone while Caddy runs. What stands there now is used; "+
		"what it does not remember any more reaches the app again when it is repeated, with the same Idempotency-Key", what)))
	_ = s.closeFile(false)
	return nil
}

// removeLog removes a log that would be taken for that of the file that stands
// there now, and damage it.
func (f *file) removeLog() {
	if elsewhere, err := hasMoved(f.disk.wal); err == nil && !elsewhere {
		_ = os.Remove(f.path + "-wal")
	}
}

func hasMoved(file vfs.File) (bool, error) {
	if file, ok := file.(vfs.FileHasMoved); ok {
		return file.HasMoved()
	}
	return false, nil
}

// logCut tells whether the write-ahead log is shorter than it must be, or was,
// as its header shows: written on, it would be full of zeros.
func (f *file) logCut() (bool, error) {
	if f.frames == 0 || f.disk.wal == nil {
		return false, nil
	}
	size, err := f.disk.wal.Size()
	if err != nil || size < logHeader+f.frames*(f.pageBytes+frameHeader) {
		return err == nil, err
	}
	var magic [4]byte
	if _, err := f.disk.wal.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return binary.BigEndian.Uint32(magic[:])&^1 != 0x377f0682, nil // https://sqlite.org/fileformat2.html#the_write_ahead_log
}
