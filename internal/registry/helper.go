package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// helperFunc asks the credential helper of that name for a server's credentials.
type helperFunc func(ctx context.Context, helper, server string) (Credentials, error)

// tokenUser is the user name by which helpers say that the secret is an identity
// token.
const tokenUser = "<token>"

// helper returns a helperFunc that runs docker-credential-NAME get (docker's
// credential helper protocol): the server on standard input, JSON on standard
// output.
func (o *Options) helper() helperFunc {
	return func(ctx context.Context, helper, server string) (Credentials, error) {
		if strings.ContainsAny(helper, "/\\\x00") {
			return Credentials{}, fmt.Errorf("run credential helper %q: not a name", printable(helper))
		}
		ctx, cancel := context.WithTimeout(ctx, o.Timeouts.Helper)
		defer cancel()
		name := "docker-credential-" + helper
		cmd := exec.CommandContext(ctx, name, "get") //nolint:gosec // the user's own settings name it
		cmd.Stdin = strings.NewReader(server)
		cmd.WaitDelay = time.Second
		out := &clippedBuffer{limit: maxHelperBytes}
		cmd.Stdout = out
		err := cmd.Run()
		if ctx.Err() != nil {
			return Credentials{}, fmt.Errorf("run %s: %w", name, context.Cause(ctx))
		}
		if err != nil {
			if noCredentials(out.String()) {
				return Credentials{}, nil
			}
			return Credentials{}, fmt.Errorf("run %s: %w", name, err) // its output may hold secrets
		}
		return decodeHelper(name, out)
	}
}

// noCredentials recognizes how helpers say that they know nothing of a server.
func noCredentials(output string) bool {
	return strings.Contains(output, "credentials not found") || strings.Contains(output, "no credentials server URL") ||
		strings.Contains(output, "no credentials username")
}

func decodeHelper(name string, out *clippedBuffer) (Credentials, error) {
	var answer struct{ Username, Secret string }
	if out.clipped || json.Unmarshal(out.Bytes(), &answer) != nil {
		return Credentials{}, fmt.Errorf("run %s: %w", name, errors.New("answer is not JSON"))
	}
	if answer.Username == tokenUser {
		return Credentials{IdentityToken: answer.Secret}, nil
	}
	return Credentials{Username: answer.Username, Password: answer.Secret}, nil
}

// clippedBuffer keeps the first limit bytes that are written to it.
type clippedBuffer struct {
	bytes.Buffer

	limit   int
	clipped bool
}

// Write implements [io.Writer] and never fails: the writer is a process that is
// to end by itself.
func (b *clippedBuffer) Write(p []byte) (int, error) {
	room := b.limit - b.Len()
	if len(p) > room {
		b.clipped = true
	}
	_, _ = b.Buffer.Write(p[:min(len(p), room)]) // never fails
	return len(p), nil
}
