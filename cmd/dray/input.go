package main

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// interruptMillis is how long a read may go on waiting after its context has ended.
const interruptMillis = 100

// input is a file whose reads end with the context, also those that wait for a
// terminal or for what is at the other end of a pipe.
type input struct {
	*os.File

	ctx context.Context //nolint:containedctx // lives as long as one command
}

// Read implements [io.Reader].
func (i *input) Read(p []byte) (int, error) {
	for {
		if err := context.Cause(i.ctx); err != nil {
			return 0, err
		}
		fds := []unix.PollFd{{Fd: int32(i.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, interruptMillis)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, os.NewSyscallError("poll", err)
		}
		if n > 0 { // regular files always are
			return i.File.Read(p)
		}
	}
}

// isRegular tells whether a file can be read more than once.
func isRegular(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}

// interruptible returns r, whose reads end with ctx if it is a file.
func interruptible(ctx context.Context, r io.Reader) io.Reader {
	if f, ok := r.(*os.File); ok {
		return &input{File: f, ctx: ctx}
	}
	return r
}
