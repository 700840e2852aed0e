package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server that the benchmark has started.
type process struct {
	name   string
	cmd    *exec.Cmd
	cancel context.CancelFunc
	done   chan struct{}
	output string // the file of what it writes to its standard output and error
}

// startProcess starts a program in a directory that it keeps its files in.
func startProcess(ctx context.Context, dir, path string, env []string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(path), done: make(chan struct{}), output: filepath.Join(dir, "output")}
	output, err := os.Create(p.output)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	ctx, p.cancel = context.WithCancel(ctx)
	p.cmd = exec.CommandContext(ctx, path, args...) //nolint:gosec // the benchmark's own programs
	p.cmd.Dir, p.cmd.Env = dir, append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = output, output
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 10 * time.Second // then it is killed
	if err := p.cmd.Start(); err != nil {
		p.cancel()
		return nil, fmt.Errorf("%w (scripts/install-bench-deps installs what is needed)", err)
	}
	go func() {
		_ = p.cmd.Wait() // a server that was stopped, or whose end the next request finds
		close(p.done)
	}()
	return p, nil
}

// ready waits until the process accepts connections.
func (p *process) ready(ctx context.Context, addr string) error {
	err := eventually(ctx, p.name+" accepts connections", func() bool {
		if p.ended() {
			return true
		}
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	if err == nil && p.ended() {
		err = errors.New(p.name + " has ended")
	}
	if err != nil {
		output, _ := os.ReadFile(p.output)
		return fmt.Errorf("%w; its output:\n%s", err, output)
	}
	return nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop ends the process and waits for its end.
func (p *process) stop() {
	if p != nil {
		p.cancel()
		<-p.done
	}
}

// cpu is the processor time that the process and all below it have used.
func (p *process) cpu() (time.Duration, error) {
	children, used := make(map[int][]int), make(map[int]time.Duration)
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file) //nolint:gosec // names that /proc gave
		if err != nil {
			continue // it has ended in the meantime
		}
		pid, parent, cpu, err := parseStat(text)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		children[parent] = append(children[parent], pid)
		used[pid] = cpu
	}
	if _, alive := used[p.cmd.Process.Pid]; !alive {
		return 0, errors.New(p.name + " has ended")
	}
	var sum func(pid int) time.Duration
	sum = func(pid int) time.Duration {
		total := used[pid]
		for _, child := range children[pid] {
			total += sum(child)
		}
		return total
	}
	return sum(p.cmd.Process.Pid), nil
}

// tick is the unit of /proc's times: 100 a second on every Linux.
const tick = 10 * time.Millisecond

// parseStat reads a line of /proc/<pid>/stat (proc_pid_stat(5)): the process,
// its parent, and the time of all its threads, in user mode and in the kernel.
func parseStat(line []byte) (pid, parent int, cpu time.Duration, err error) {
	// The name in parentheses may hold anything, parentheses included.
	opening, closing := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if opening < 0 || closing < 0 {
		return 0, 0, 0, errors.New("no name in parentheses")
	}
	fields := strings.Fields(string(line[closing+1:])) // from field 3, the state
	if len(fields) < 13 {
		return 0, 0, 0, errors.New("too few fields")
	}
	number := func(text string) int {
		n, failed := strconv.Atoi(strings.TrimSpace(text))
		err = errors.Join(err, failed)
		return n
	}
	pid, parent = number(string(line[:opening])), number(fields[1])
	cpu = time.Duration(number(fields[11])+number(fields[12])) * tick
	return pid, parent, cpu, err
}

// resident is how many bytes of a process are in memory (proc_pid_status(5)):
// all, and those of them that are pages of files, which the kernel can drop and
// read again.
func (p *process) resident() (all, files int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	return parseStatus(string(text))
}

func parseStatus(text string) (all, files int64, err error) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		if name != "VmRSS" && name != "RssFile" {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", name, err)
		}
		if name == "VmRSS" {
			all = kib * 1024
		} else {
			files = kib * 1024
		}
	}
	if all == 0 {
		return 0, 0, errors.New("no VmRSS in /proc's status of the process")
	}
	return all, files, nil
}

// freeAddr returns an address that nobody listened on a moment ago.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
