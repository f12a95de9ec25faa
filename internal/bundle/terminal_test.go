package bundle

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/oci"
)

// TestTerminal runs a container on a pseudo terminal, as a user's shell does.
func TestTerminal(t *testing.T) {
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		b := newBox(t, runtime)
		b.o.Terminal = true
		script := `stty size; tty; test -t 0 -a -t 1 -a -t 2 && echo three; trap 'stty size; exit 5' WINCH; touch /ready; while true; do sleep 0.02; done`
		b.write(t, oci.ImageConfig{Cmd: []string{"sh", "-c", script}}, Options{Terminal: true, Rows: 33, Columns: 99})
		control, terminal := pty(t)
		resize := func(rows, cols uint16) {
			if err := unix.IoctlSetWinsize(int(control.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
				t.Fatal(err)
			}
		}
		resize(33, 99)
		before, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		cmd := b.command(t, nil)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true} // as a login does
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "start", func() bool { return b.has("ready") })
		resize(44, 111) // the kernel tells the foreground group
		err = cmd.Wait()
		exit, ok := errors.AsType[*exec.ExitError](err)
		output := readTerminal(t, control, terminal)
		if !ok || exit.ExitCode() != 5 {
			t.Fatalf("ended with %v, want code 5: %s", err, output)
		}
		wants := []string{"33 99", "/dev/", "three"}
		if runtime == "runc" { // crun leaves the size as it was
			wants = append(wants, "44 111")
		}
		for _, want := range wants {
			if !strings.Contains(output, want) {
				t.Errorf("the terminal has no %q: %s", want, output)
			}
		}
		after, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if *before != *after {
			t.Errorf("the terminal was %+v and is %+v", before, after)
		}
	})
}

// readTerminal returns what was written to a terminal, which it closes.
func readTerminal(t *testing.T, control, terminal *os.File) string {
	t.Helper()
	const end = "--end--"
	if _, err := terminal.WriteString(end + "\n"); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	lines := bufio.NewReader(control)
	for {
		line, err := lines.ReadString('\n')
		all.WriteString(line)
		if err != nil || strings.Contains(line, end) {
			return all.String()
		}
	}
}

// TestTerminalIsRestored kills the runtime while it holds the terminal.
func TestTerminalIsRestored(t *testing.T) {
	b := newBox(t, "runc")
	b.write(t, oci.ImageConfig{Cmd: []string{"sh", "-c", "touch /ready; while true; do sleep 0.02; done"}}, Options{Terminal: true})
	_, terminal := pty(t)
	before, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		until(t, "start", func() bool { return b.has("ready") })
		cancel()
	}()
	run := b.o
	run.Terminal, run.Stdin, run.Stdout, run.Grace = true, terminal, terminal, time.Millisecond
	if _, err := Run(ctx, run); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want the context's", err)
	}
	after, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if *before != *after {
		t.Errorf("the terminal was %+v and is %+v", before, after)
	}
}
