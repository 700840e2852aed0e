package storetest

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-iak/iakcallback/internal/store"
)

// ErrLost is what an operation comes to whose reply is lost.
var ErrLost = errors.New("the reply is lost")

// Memory is an engine in memory, for what a real one cannot be made to do at one
// exact operation.
type Memory struct {
	mu     sync.Mutex
	values map[string]string
	hints  map[string]int64
	trips  int
	faults []Fault
	late   []store.Swap
}

// Fault is what becomes of one operation.
type Fault int

// The faults.
const (
	None     Fault = iota
	Lost           // carried out, and the reply is lost
	Again          // the same, and the client sends it again by itself
	Dropped        // not carried out
	Executed       // by Thaw only, some time later
)

// NewMemory returns an engine without bytes and faults.
func NewMemory() *Memory {
	return &Memory{values: make(map[string]string), hints: make(map[string]int64)}
}

// Next says what becomes of the operations from now on, in their order.
func (m *Memory) Next(faults ...Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = faults
}

// Trips returns how many operations there were since it was asked last.
func (m *Memory) Trips() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.trips
	m.trips = 0
	return n
}

// Put puts bytes under a key.
func (m *Memory) Put(key, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.values[key] = value
}

// Get returns the bytes under a key.
func (m *Memory) Get(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.values[key]
}

// Thaw carries out what was to be carried out later.
func (m *Memory) Thaw() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.late {
		m.swap(&s)
	}
	m.late = nil
}

// Swap is that of store.Engine.
func (m *Memory) Swap(s *store.Swap) (store.Found, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.fault() {
	case Lost:
		m.swap(s)
		return store.Found{}, ErrLost
	case Again:
		m.swap(s)
		return m.swap(s), nil
	case Dropped:
		return store.Found{}, ErrLost
	case Executed:
		m.late = append(m.late, *s)
		return store.Found{}, ErrLost
	default:
		return m.swap(s), nil
	}
}

func (m *Memory) swap(s *store.Swap) store.Found {
	if m.values[s.Key] != s.Old {
		return m.found(s.Key)
	}
	value := s.New
	if value != "" && s.Lease != 0 {
		value = string(binary.BigEndian.AppendUint64([]byte(value), uint64(time.Now().Add(s.Lease).UnixMilli())))
	}
	if m.values[s.Key] = value; value == "" {
		delete(m.values, s.Key)
	}
	if s.Is {
		m.hints[s.Key] = int64(binary.BigEndian.Uint64([]byte(value[len(value)-8:]))) //nolint:gosec // milliseconds since 1970
	} else {
		delete(m.hints, s.Key)
	}
	found := m.found(s.Key)
	found.Swapped, found.Waiting = true, len(m.hints)
	return found
}

// Due is that of store.Engine.
func (m *Memory) Due(q *store.DueQuery) (page store.DuePage, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault() != None {
		return page, ErrLost
	}
	page.Now, page.Waiting = time.Now().UnixMilli(), len(m.hints)
	for key, at := range m.hints {
		if strings.HasPrefix(key, q.Index) && (q.All || at <= page.Now) {
			value := m.values[key]
			page.Hints = append(page.Hints, store.Hint{Key: key, At: at, Head: value[:min(len(value), q.Head)]})
		}
	}
	slices.SortFunc(page.Hints, func(a, b store.Hint) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Key, b.Key)) })
	page.Hints = page.Hints[min(q.Skip, len(page.Hints)):]
	page.Hints = page.Hints[:min(q.Limit, len(page.Hints))]
	return page, nil
}

// Correct is that of store.Engine.
func (m *Memory) Correct(_ string, read store.Hint, at int64, _ time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault() != None {
		return ErrLost
	}
	if there, ok := m.hints[read.Key]; ok && there == read.At {
		if m.hints[read.Key] = at; at == 0 {
			delete(m.hints, read.Key)
		}
	}
	return nil
}

// Hint sets a hint, as if its key's record had another.
func (m *Memory) Hint(key string, at int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hints[key] = at
}

// Repair has nothing to do, but may fail.
func (m *Memory) Repair(context.Context, string, func(byte) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault() != None {
		return ErrLost
	}
	return nil
}

// Read is that of store.Engine.
func (m *Memory) Read(key string, _ time.Time) (store.Found, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault() != None {
		return store.Found{}, ErrLost
	}
	return m.found(key), nil
}

func (m *Memory) found(key string) store.Found {
	return store.Found{Value: m.values[key], Now: time.Now().UnixMilli()}
}

func (m *Memory) fault() Fault {
	m.trips++
	if len(m.faults) == 0 {
		return None
	}
	fault := m.faults[0]
	m.faults = m.faults[1:]
	return fault
}

// Scan is not needed here.
func (m *Memory) Scan(context.Context, string, func(string, store.Found) error) error { return nil }

// Destruct has nothing to give up.
func (m *Memory) Destruct() error { return nil }

// Kind is memory.
func (m *Memory) Kind() string { return "memory" }

// String is memory.
func (m *Memory) String() string { return "memory" }
