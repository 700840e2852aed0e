package sqlitestore

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/caddy-iak/iakcallback/internal/guard"
)

// resolveTimeout is how long Resolve waits for a disk.
const resolveTimeout = time.Second

// resolving are the paths that Resolve asks the disk about.
var resolving = struct {
	sync.Mutex
	paths map[string]*resolution
}{paths: make(map[string]*resolution)}

type resolution struct {
	path string
	err  error
	done chan struct{}
}

// Resolve returns the one name of a store's file: absolute, without symbolic
// links, whether the file exists already or not. Two paths that lead to one
// file are the same store. It reads directories, so it may meet a disk that
// hangs: then, as when the path cannot be followed, it returns the path as
// it is, made absolute, after a second at most.
func Resolve(path string) string {
	resolving.Lock()
	r, ok := resolving.paths[path]
	if !ok { // no more than one thread waits for a disk that hangs
		r = &resolution{done: make(chan struct{})}
		resolving.paths[path] = r
		go guard.Do("following a path", func() {
			r.path, r.err = resolve(path)
			resolving.Lock()
			delete(resolving.paths, path)
			resolving.Unlock()
			close(r.done)
		})
	}
	resolving.Unlock()
	timer := time.NewTimer(resolveTimeout)
	defer timer.Stop()
	select {
	case <-r.done:
		if r.err == nil {
			return r.path
		}
	case <-timer.C:
	}
	if absolute, err := filepath.Abs(path); err == nil {
		return absolute
	}
	return path
}

// resolve follows a path, as the system does when it opens or makes the file.
func resolve(path string) (string, error) {
	if !filepath.IsAbs(path) {
		dir, err := os.Getwd()
		if err != nil {
			return "", err
		}
		path = dir + string(filepath.Separator) + path // not cleaned: a/link/../b is not a/b
	}
	const links = 40 // as many as Linux follows
	for range links {
		followed, err := filepath.EvalSymlinks(path)
		if !errors.Is(err, os.ErrNotExist) {
			return followed, err
		}
		// The file is missing, or where its symbolic link leads to, or a directory.
		dir, name := filepath.Split(path)
		if name == "" || name == "." || name == ".." {
			return filepath.Clean(path), nil
		}
		target, err := os.Readlink(path)
		if err != nil {
			if above := strings.TrimRight(dir, string(filepath.Separator)); above != "" {
				dir = above
			}
			parent, err := resolve(dir)
			return filepath.Join(parent, name), err
		}
		if !filepath.IsAbs(target) {
			target = dir + target
		}
		path = target
	}
	return "", &os.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
}
