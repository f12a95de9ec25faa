# Everything a newcomer needs: make demo, make test. Everything a change needs: make check.
SHELL := /bin/bash
# net/http without HTTP/2, which dray does not speak (docs/decisions.md): half a megabyte.
# Nothing is inlined in libraries of which no speed is asked: a sixth of a megabyte.
COLD := github.com/BurntSushi/toml github.com/spf13/... google.golang.org/protobuf/...
GOFLAGS_BUILD := -trimpath -tags=nethttpomithttp2 -ldflags=-s\ -w $(COLD:%=-gcflags=%=-l)
export CGO_ENABLED := 0
PREFIX ?= /usr/local

.PHONY: demo test check build bench install setup tools lint fmt nightly clean

build: bin/dray bin/dray-guest

bin/%: FORCE
	go build $(GOFLAGS_BUILD) -o $@ ./cmd/$*
FORCE:

setup:
	scripts/setup demo

demo: setup build
	bin/dray demo

# The whole suite, as it is: with the race detector where that needs no C compiler to be found missing.
test:
	scripts/setup test
	scripts/test

check: tools
	scripts/setup test
	scripts/lint
	$(MAKE) build
	scripts/test

lint: tools
	scripts/lint

fmt: tools
	bin/tools/golangci-lint fmt

tools:
	scripts/tools

# Against podman, skopeo+umoci and containerd, which it installs; as root, see docs/bench.md.
bench: build
	scripts/bench

nightly: build
	scripts/setup test
	scripts/test
	scripts/nightly

install: build
	install -Dm755 -t $(DESTDIR)$(PREFIX)/bin bin/dray bin/dray-guest
	bin/dray man $(DESTDIR)$(PREFIX)/share/man/man1

clean:
	rm -rf bin
