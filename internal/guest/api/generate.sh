#!/bin/sh
# Generates the Go code of every .proto below internal/guest. Needs protoc (in
# Debian: protobuf-compiler); the generators come through the Go module proxy, in
# the versions of go.mod.
set -eu
cd "$(dirname "$0")/.."
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
find . -name '*.proto' | sort | while read -r file; do
	PATH=$bin:$PATH protoc -I "$(dirname "$file")" --go_out="$(dirname "$file")" --go_opt=paths=source_relative \
		--go-ttrpc_out="$(dirname "$file")" --go-ttrpc_opt=paths=source_relative "$(basename "$file")"
done
# A comment right above the package clause would be its documentation.
find . -name "*_ttrpc.pb.go" -exec sed -i "s/^package /\n&/" {} +
find . -name "*.pb.go" -exec gofmt -w {} +
