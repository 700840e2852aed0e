package sqlitestore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
)

func writeFile(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sqliteFile makes a file with SQLite, as another program would.
func sqliteFile(t testing.TB, sql string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "other.sqlite")
	c, err := sqlite3.Open("file:" + path)
	if err == nil {
		err = c.Exec(sql)
	}
	if err == nil {
		err = c.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// What is not a store's file is an error that names it and says what to do, and
// is left as it is.
func TestNotAStore(t *testing.T) {
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "file")
		writeFile(t, path, []byte(content))
		return path
	}
	bolt := make([]byte, 32<<10) // go.etcd.io/bbolt/internal/common/meta.go
	binary.LittleEndian.PutUint32(bolt[16:], 0xED0CDAED)
	text := file("not a database\n")
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	const other, damaged = "not a store of iak_callback", "the file is damaged: stop Caddy, move the file away"
	for name, c := range map[string]struct{ path, says string }{
		"text":            {file(strings.Repeat("not a database\n", 2000)), other},
		"short text":      {text, other},
		"bbolt":           {file(string(bolt)), "an earlier version of iak_callback (bbolt)"},
		"a directory":     {t.TempDir(), other},
		"a pipe":          {pipe, other},
		"below a file":    {filepath.Join(text, "records.sqlite"), "not a directory"},
		"other SQLite":    {sqliteFile(t, "CREATE TABLE records(key)"), other},
		"other SQLite id": {sqliteFile(t, "PRAGMA application_id = 7; CREATE TABLE records(key)"), other},
		"in WAL mode":     {sqliteFile(t, "PRAGMA journal_mode = WAL; CREATE TABLE records(key)"), other},
		"small":           {sqliteFile(t, "PRAGMA page_size = 512; CREATE TABLE records(key)"), other},
		"a newer format": {sqliteFile(t, fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d; CREATE TABLE records(key)",
			applicationID, schemaVersion+1)), "the file has format 3, and this version of Caddy's iak_callback module knows format 2"},
		"zeros":        {file(string(make([]byte, 8192))), damaged},
		"a cut header": {file("SQLite format 3\x00\x10\x00"), damaged},
	} {
		t.Run(name, func(t *testing.T) {
			read := os.ReadFile
			if name == "a pipe" {
				read = func(string) ([]byte, error) { return nil, nil }
			}
			before, _ := read(c.path)
			dir, _ := os.ReadDir(filepath.Dir(c.path))
			s := open(t, c.path)
			for range 2 {
				_, err := put(s, "a", "", "1")
				wantError(t, err, c.path, c.says)
			}
			if err := s.Destruct(); err != nil {
				t.Error(err)
			}
			if after, _ := read(c.path); !bytes.Equal(before, after) {
				t.Error("the file has changed")
			}
			if after, _ := os.ReadDir(filepath.Dir(c.path)); len(after) != len(dir) {
				t.Errorf("files were made: %v", after)
			}
		})
	}
}

// A file that was left half made is finished.
func TestHalfMade(t *testing.T) {
	for name, path := range map[string]string{
		"empty":         filepath.Join(t.TempDir(), "empty"),
		"without table": sqliteFile(t, "PRAGMA journal_mode = WAL"),
	} {
		t.Run(name, func(t *testing.T) {
			if name == "empty" {
				writeFile(t, path, nil)
			}
			s := open(t, path)
			mustPut(t, s, "a", "", "1")
		})
	}
}

// A damaged file costs those who need it an error that says what to do, never
// the process; once it is moved away, the store works.
func TestDamaged(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"zeroed":    func(b []byte) []byte { clear(b[pageSize:]); return b },
		"truncated": func(b []byte) []byte { return b[:2*pageSize+100] },
		"random": func(b []byte) []byte {
			for i := pageSize; i < len(b); i++ {
				b[i] = byte(i*7 + i/256)
			}
			return b
		},
		"schema": func(b []byte) []byte { clear(b[100:pageSize]); return b },
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			s := New(path, patient, nil)
			for i := range 300 {
				mustPut(t, s, fmt.Sprint("shop:", i), "", strings.Repeat("x", 100))
			}
			if err := s.Destruct(); err != nil {
				t.Fatal(err)
			}
			writeFile(t, path, damage(readFile(t, path)))
			s = open(t, path)
			for i := range 3 {
				_, err := put(s, fmt.Sprint("shop:", i), "", "new")
				wantError(t, err, path, "the file is damaged: stop Caddy, move the file away together with its -wal")
				_, err = s.Read(fmt.Sprint("shop:", i), time.Now())
				wantError(t, err, path, "the file is damaged")
			}
			if err := os.Rename(path, path+".damaged"); err != nil {
				t.Fatal(err)
			}
			_ = os.Remove(path + "-wal")
			mustPut(t, s, "shop:0", "", "new")
		})
	}
}

// lookNow makes the next operation look after the file, as it does once a second.
func lookNow(t testing.TB, s *Store) {
	t.Helper()
	inside(t, s, func(f *file) error { f.looked = time.Time{}; return nil })
}

// What somebody does to the file while it is in use is noticed, told once with
// what it means, and costs no callback.
func TestMeddled(t *testing.T) {
	other := func(t *testing.T) string {
		path := newPath(t)
		s := New(path, patient, nil)
		mustPut(t, s, "other", "", "1")
		if err := s.Destruct(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		meddle func(t *testing.T, path string) error
		says   string
		then   map[string]string // what is known afterwards
	}{
		"removed":              {func(_ *testing.T, path string) error { return os.Remove(path) }, "the file was removed or replaced", map[string]string{"a": "", "b": ""}},
		"removed with its log": {func(_ *testing.T, path string) error { return errors.Join(os.Remove(path), os.Remove(path+"-wal")) }, "the file was removed or replaced", map[string]string{"a": "", "b": ""}},
		"renamed":              {func(_ *testing.T, path string) error { return os.Rename(path, path+".old") }, "the file was removed or replaced", map[string]string{"a": ""}},
		"its directory removed": {func(_ *testing.T, path string) error { return os.RemoveAll(filepath.Dir(path)) },
			"the file was removed or replaced", map[string]string{"a": ""}},
		"replaced": {func(t *testing.T, path string) error { return os.Rename(other(t), path) }, "the file was removed or replaced",
			map[string]string{"a": "", "b": "", "other": "1"}},
		"cut": {func(_ *testing.T, path string) error { return os.Truncate(path, 0) }, "the file was cut from 12288 to 0 bytes", map[string]string{"a": "", "b": ""}},
		"a smaller copy written over it": {func(t *testing.T, path string) error { return os.WriteFile(path, readFile(t, other(t)), 0o600) },
			"the file was cut from 20480 to 12288 bytes", map[string]string{"a": "", "b": "", "other": "1"}},
		"log removed": {func(_ *testing.T, path string) error { return os.Remove(path + "-wal") }, "nothing was lost", map[string]string{"a": "1", "b": "1"}},
		"log cut":     {func(_ *testing.T, path string) error { return os.Truncate(path+"-wal", 0) }, "the file's -wal was cut", map[string]string{"a": "1", "b": ""}},
		"log cut in the middle": {func(_ *testing.T, path string) error { return os.Truncate(path+"-wal", 2000) },
			"the file's -wal was cut", map[string]string{"a": "1"}},
		"log cut and written on": {func(_ *testing.T, path string) error {
			return errors.Join(os.Truncate(path+"-wal", 0), os.Truncate(path+"-wal", 1<<20))
		},
			"the file's -wal was cut", map[string]string{"a": "1", "b": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			s, told := openReporting(t, path, patient)
			mustPut(t, s, "a", "", "1")
			if name == "a smaller copy written over it" {
				mustPut(t, s, "large", "", strings.Repeat("x", 2*pageSize))
			}
			inside(t, s, func(f *file) error { return errors.Join(f.checkpoint(), s.look()) })
			mustPut(t, s, "b", "", "1") // is in the log
			if text := told.all(); text != "" {
				t.Fatalf("before: %s", text)
			}
			if err := c.meddle(t, path); err != nil {
				t.Fatal(err)
			}
			lookNow(t, s)
			mustPut(t, s, "new", "", "1")
			if text := told.all(); strings.Count(text, "while Caddy used it") != 1 || !strings.Contains(text, c.says) || !strings.Contains(text, path) {
				t.Errorf("told %q, want once %q", text, c.says)
			}
			for key, value := range c.then {
				wantValue(t, s, key, value)
			}
			if name == "renamed" { // and is whole under its new name
				old := open(t, path+".old")
				wantValue(t, old, "a", "1")
				wantValue(t, old, "b", "1")
			}
			if err := s.Destruct(); err != nil {
				t.Error(err)
			}
			s = open(t, path) // what stands there is whole
			c.then["new"] = "1"
			for key, value := range c.then {
				wantValue(t, s, key, value)
			}
		})
	}
}

// A file that is replaced just before Caddy stops is not damaged by the log of
// the one before.
func TestReplacedBeforeTheEnd(t *testing.T) {
	path, other := newPath(t), newPath(t)
	for _, s := range []*Store{New(other, patient, nil), New(path, patient, nil)} {
		for i := range 100 {
			mustPut(t, s, fmt.Sprint(s.path, i), "", strings.Repeat("x", 1000))
		}
		if s.path == path {
			if err := os.Rename(other, path); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Destruct(); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, path)
	wantValue(t, s, other+"7", strings.Repeat("x", 1000))
	wantValue(t, s, path+"7", "")
}

// With a first page full of zeros while it is open, nothing hangs, each operation has
// an answer, and the next start heals or says what to do.
func TestFirstPageOverwritten(t *testing.T) {
	path := newPath(t)
	s := New(path, patient, nil)
	mustPut(t, s, "a", "", "1")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 2*pageSize), 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for i := range 3 {
		lookNow(t, s)
		if _, err := put(s, fmt.Sprint("shop:", i), "", "1"); err != nil {
			wantError(t, err, "the file is damaged")
		}
	}
	_ = s.Destruct()
	s = open(t, path)
	if _, err := put(s, "shop:next", "", "1"); err != nil {
		wantError(t, err, "the file is damaged: stop Caddy, move the file away")
	}
}

// Every way to one file has one name, whether it exists or not.
func TestResolve(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, err := range []error{
		os.MkdirAll("d1/sub", 0o700), os.Symlink("d1", "d2"), os.Symlink("d1/sub", "s"), os.Symlink("d2/new", "dangling"),
		os.Symlink(dir+"/dangling", "d1/twice"), os.Symlink("loop", "loop"), os.WriteFile("d1/there", nil, 0o600), os.Symlink("missing/x", "far"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"d1/there": "d1/there", "d2/there": "d1/there", dir + "/d2/./there": "d1/there", "./d1/../d2/there": "d1/there",
		"d1/new": "d1/new", "d2/new": "d1/new", "dangling": "d1/new", "d2/twice": "d1/new", "d2/no/such/dir": "d1/no/such/dir",
		"s/../there": "d1/there", "s/../new": "d1/new", "loop": "loop", "far": "missing/x", "./a/../new": "new",
		"/no-such-directory/records": "/no-such-directory/records",
	} {
		if !filepath.IsAbs(want) {
			want = filepath.Join(dir, want)
		}
		if got := Resolve(path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

// A store is used by any of its file's names.
func TestSymlinks(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "d1"), 0o700), os.Symlink("d1", filepath.Join(dir, "d2")),
		os.Symlink("d2/a #?%20ü.sqlite", filepath.Join(dir, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	value := ""
	for i, name := range []string{"link", "d1/a #?%20ü.sqlite", "d2/a #?%20ü.sqlite", "link"} {
		s := New(filepath.Join(dir, name), patient, nil)
		wantValue(t, s, "a", value)
		mustPut(t, s, "a", value, fmt.Sprint(i))
		value = fmt.Sprint(i)
		if err := s.Destruct(); err != nil {
			t.Fatal(err)
		}
	}
	if files, err := os.ReadDir(filepath.Join(dir, "d1")); err != nil || len(files) != 1 || files[0].Name() != "a #?%20ü.sqlite" {
		t.Errorf("%v, %v, want the file alone", files, err)
	}
}
