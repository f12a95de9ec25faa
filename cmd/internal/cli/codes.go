package cli

import (
	"fmt"
	"io"
	"strings"

	"dray"
)

// ExitCodes is the part of every command's help that scripts rely on.
func ExitCodes(codes ...dray.Kind) string {
	meaning := map[dray.Kind]string{
		dray.KindNotFound:     "not found",
		dray.KindUnauthorized: "not authorized by the registry",
		dray.KindDenied:       "denied by policy (a tag where a digest is required)",
		dray.KindUnverified:   "content failed verification",
		dray.KindBusy:         "store or target busy",
		dray.KindCorrupt:      "store corrupt or of a newer version",
		dray.KindNoSpace:      "no space",
		dray.KindUnreachable:  "registry unreachable",
	}
	var b strings.Builder
	b.WriteString("\n\nExit codes: 0 done, 1 other, 2 usage")
	for _, code := range codes {
		_, _ = fmt.Fprintf(&b, ", %d %s", code, meaning[code])
	}
	b.WriteString(", 130 interrupted.")
	return b.String()
}

// Example returns examples for a command's help: what follows the program's name.
func (a *App) Example(lines ...string) string {
	return "  " + a.Name + " " + strings.Join(lines, "\n  "+a.Name+" ")
}

// PullCodes are the exit codes of everything that may pull.
func PullCodes() string {
	return ExitCodes(dray.KindNotFound, dray.KindUnauthorized, dray.KindDenied, dray.KindUnverified,
		dray.KindBusy, dray.KindCorrupt, dray.KindNoSpace, dray.KindUnreachable)
}

// ReferenceHelp says what REF is.
const ReferenceHelp = `

REF is nginx, ghcr.io/a/b:tag@sha256:…, http://127.0.0.1:5000/x (plain HTTP),
local:///path[:tag] (an OCI image layout) or oci-archive:/path.tar[:tag].`

// JoinClose closes c and keeps the first error.
func JoinClose(err error, c io.Closer) error {
	if closeErr := c.Close(); err == nil {
		return closeErr
	}
	return err
}
