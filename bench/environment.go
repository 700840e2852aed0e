package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// fact is a line of the report's head.
type fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// environment is what the numbers depend on.
func (b *bench) environment() []fact {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	idle := "32 (the default)"
	if b.idle > 0 {
		idle = strconv.Itoa(b.idle)
	}
	stamp := time.Now().UTC().Format("2006-01-02 15:04 UTC")
	return []fact{
		{"date", stamp},
		{"command", "go run ./bench " + strings.Join(os.Args[1:], " ")},
		{"machine", fmt.Sprintf("%s, %d processors, Linux %s", processor(), runtime.NumCPU(), strings.TrimSpace(string(kernel)))},
		{"load", fmt.Sprintf("wrk, %d connections kept alive, %d threads, %d rounds of %d s, %d s before the first",
			b.connections, b.threads, b.rounds, b.seconds, b.warmup)},
		{"Caddy", fmt.Sprintf("log level %s, written to a file; reverse_proxy's keepalive_idle_conns_per_host: %s", b.log, idle)},
		{"versions", strings.Join([]string{
			"Go " + strings.TrimPrefix(runtime.Version(), "go"),
			"Caddy " + version(b.caddy, "version"),
			"Redis " + version("redis-server", "--version") + " (nothing written to the disk)",
			"nginx " + version("nginx", "-v"),
			"node " + version("node", "--version"),
			"wrk " + version("wrk", "-v"),
		}, ", ")},
	}
}

// processor is the name of the machine's processor.
func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	if name := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(info); name != nil {
		return string(name[1])
	}
	return runtime.GOARCH
}

// version asks a program for its version.
func version(program, argument string) string {
	output, _ := exec.Command(program, argument).CombinedOutput() //nolint:gosec // wrk says it and fails
	if number := regexp.MustCompile(`\d+(\.\d+)+`).Find(output); number != nil {
		return string(number)
	}
	return "not found"
}
