package userns_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestReexecKeepsTheProgramsSurroundings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	odd := []string{"a b", "", "-x", "--", "$HOME", "*\n'\"", "\xff"}
	got := w.show(odd...)
	if got.UID != 0 || !got.Inside {
		t.Errorf("uid %d, inside %v: want root of a user namespace", got.UID, got.Inside)
	}
	if got.Dir != w.dir("work") || got.Home != w.dir("home") {
		t.Errorf("dir %q, home %q", got.Dir, got.Home)
	}
	want := append([]string{w.program, "show"}, odd...)
	want[len(want)-1] = "\ufffd" // as JSON has it
	if fmt.Sprintf("%q", got.Args) != fmt.Sprintf("%q", want) {
		t.Errorf("args\n%q, want\n%q", got.Args, want)
	}
	w.wantNoHolder()
}

func TestReexecKeepsTheNameItWasCalledBy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.dir("other-name")
	if err := os.Symlink(w.program, other); err != nil {
		t.Fatal(err)
	}
	cmd := w.command("show")
	cmd.Path, cmd.Args[0] = other, other
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got shown
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Args[0] != other {
		t.Errorf("called as %q, want %q", got.Args[0], other)
	}
}

func TestReexecExitCode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, tt := range []struct {
		name string
		args []string
		want int
	}{
		{"zero", []string{"exit", "0"}, 0},
		{"of the program", []string{"exit", "17"}, 17},
		{"of a signal", []string{"kill", "9"}, 128 + 9},
	} {
		if out, got := w.run(tt.args...); got != tt.want {
			t.Errorf("%s: code %d, want %d: %s", tt.name, got, tt.want, out)
		}
	}
	w.wantNoHolder()
}

func TestSignalsArePassedOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cmd := w.command("wait")
	cmd.SysProcAttr = withSession(cmd.SysProcAttr)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	if got, want := lines.Text(), "got "+syscall.SIGUSR1.String(); got != want {
		t.Errorf("program says %q, want %q", got, want)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	w.wantNoHolder()
}

func TestProgramInsideDiesWithItsParent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cmd := w.command("wait")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	inside, err := strconv.Atoi(strings.TrimPrefix(lines.Text(), "ready "))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	waitGone(t, inside)
	w.must("show") // joins the holder that was left, and stops it
	w.wantNoHolder()
}

// withSession gives a process a session without a terminal, so that no signal is
// taken for the terminal's.
func withSession(attr *syscall.SysProcAttr) *syscall.SysProcAttr {
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Setsid = true
	return attr
}
