GOLANGCI_LINT = go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: help build test lint smoke fuzz soak bench dist

help:
	@echo "make build   Caddy with this module, as ./caddy"
	@echo "make test    all tests, with the race detector"
	@echo "make lint    gofmt, go vet, golangci-lint, go mod tidy"
	@echo "make smoke   the commands of README.md, run against the demo"
	@echo "make fuzz    the fuzz targets, FUZZTIME=10m each"
	@echo "make bench   CPU time a callback against bare reverse_proxy, BENCH=flags (Linux)"
	@echo "make dist    Caddy with this module for all platforms, with checksums, in dist/"
	@echo "make soak    mixed callbacks and random faults, MINUTES=60"

build:
	go build -o caddy ./cmd/caddy

# The race detector is built on cgo, which needs a C compiler.
test:
	@cc=$$(go env CC); command -v "$${cc%% *}" >/dev/null || { \
		echo "make test: no C compiler ($$cc), which go test -race needs; on Debian: apt-get install gcc libc6-dev" >&2; exit 1; }
	scripts/install-test-deps
	@echo "make test: ten minutes or so on two cores, a line for each package; integration takes nearly all of them."
	CGO_ENABLED=1 go test -race -timeout 20m ./...

lint:
	@bad=$$(git ls-files -z '*.go' | xargs -0 gofmt -l) && [ -z "$$bad" ] || { \
		echo "gofmt would change:" >&2; echo "$$bad" >&2; exit 1; }
	go vet ./...
	$(GOLANGCI_LINT) run ./...
	go mod tidy -diff

smoke:
	scripts/smoke

dist:
	scripts/dist

# Ten minutes for each target; FUZZTIME=1m for a quick look. Findings are kept in testdata/fuzz and run with the tests.
FUZZTIME ?= 10m
fuzz:
	@for target in iak:FuzzDecodeJSON iak:FuzzDecodeXML iak:FuzzNormalize iak:FuzzFormatsAgree record:FuzzDecode; do \
		go test -run '^$$' -fuzz "^$${target#*:}\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s "./internal/$${target%:*}" || exit 1; done
	go test -run '^$$' -fuzz '^FuzzHandler$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 5s .

# Two Caddys on one Redis, one on its embedded store, an app on a bad day, and one fault after another (Linux).
MINUTES ?= 60
soak:
	scripts/install-test-deps
	go test -run '^TestSoak$$' -timeout 0 -v ./integration -soak $(MINUTES)m

# BENCH="-rows redis -rounds 10 -json bench.json", BENCH="-scale DIR" for how the cost grows, with plots; go run ./bench -h lists the flags.
bench:
	scripts/install-bench-deps
	go run ./bench $(BENCH)
