package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/oci"
)

func TestExitCodes(t *testing.T) {
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		b := newBox(t, runtime)
		for script, want := range map[string]int{"true": 0, "exit 7": 7, "exit 255": 255, "(kill -9 $BASHPID); exec sh -c 'exit 3'": 3} {
			if code, out, said := b.sh(t, script, oci.ImageConfig{}, Options{}); code != want {
				t.Errorf("%s: code %d, want %d: %s%s", script, code, want, out, said)
			}
		}
	})
}

func TestContainerSees(t *testing.T) {
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "file"), []byte("from outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	volume := func(options string) []Mount {
		m, err := ParseVolume(shared + ":/mnt/deep/vol" + options)
		if err != nil {
			t.Fatal(err)
		}
		return []Mount{m}
	}
	tmpfs, err := ParseTmpfs("/scratch:size=1m,mode=0700")
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		script string
		image  oci.ImageConfig
		o      Options
		want   string // standard output
	}{
		"user":              {script: "id -u; id -g; id -G", image: oci.ImageConfig{User: "app"}, want: "1000\n1001\n1001 10 29"},
		"number":            {script: "id -u; id -g; echo $HOME", image: oci.ImageConfig{User: "4242:7"}, want: "4242\n7\n/"},
		"no capabilities":   {script: "grep CapEff /proc/self/status", image: oci.ImageConfig{User: "app"}, want: "CapEff:\t0000000000000000"},
		"capabilities":      {script: "grep CapEff /proc/self/status", want: "CapEff:\t00000000a80425fb"},
		"filtered":          {script: "grep Seccomp: /proc/self/status", want: "Seccomp:\t2"},
		"cwd":               {script: "pwd", image: oci.ImageConfig{WorkingDir: "/made/by/runtime"}, want: "/made/by/runtime"},
		"env":               {script: "echo $A $B $HOME", image: oci.ImageConfig{Env: []string{"A=1", "B=2"}}, o: Options{Env: []string{"B=3 4"}}, want: "1 3 4 /root"},
		"volume":            {script: "cat /mnt/deep/vol/file; echo x >/mnt/deep/vol/written && echo; echo wrote", o: Options{Mounts: volume("")}, want: "from outside\nwrote"},
		"read-only volume":  {script: "touch /mnt/deep/vol/no 2>/dev/null || echo refused", o: Options{Mounts: volume(":ro")}, want: "refused"},
		"tmpfs":             {script: "stat -f -c %T /scratch; stat -c %a /scratch", o: Options{Mounts: []Mount{tmpfs}}, want: "tmpfs\n700"},
		"writable root":     {script: "touch /new && echo wrote", want: "wrote"},
		"read-only root":    {script: "touch /new2 2>/dev/null || echo refused; touch /dev/shm/x && echo wrote", o: Options{ReadonlyRootfs: true}, want: "refused\nwrote"},
		"volume, read-only": {script: "cat /data/seed; stat -c '%a %u' /data; touch /data/x && echo wrote", image: oci.ImageConfig{Volumes: map[string]struct{}{"/data": {}}}, o: Options{ReadonlyRootfs: true}, want: "seeded750 1000\nwrote"},
		"volume, missing":   {script: "touch /made-up/x && stat -f -c %T /made-up", image: oci.ImageConfig{Volumes: map[string]struct{}{"/made-up": {}}}, want: "tmpfs"},
		"no network":        {script: "ls /sys/class/net; ip addr show lo | grep -o 'inet 127.0.0.1/8'", o: Options{Net: NetNone}, want: "lo\ninet 127.0.0.1/8"},
		"host network":      {script: "readlink /proc/self/ns/net; cat /etc/hosts; echo x 2>/dev/null >/etc/hosts || echo refused", want: link(t, "/proc/self/ns/net") + "\n" + strings.TrimSpace(string(hosts)) + "\nrefused"},
		"host name":         {script: "hostname; echo is $HOSTNAME", o: Options{Hostname: "den"}, want: "den\nis den"},
		"no host name":      {script: "hostname", want: hostname},
		"hidden":            {script: "ls /proc/acpi /sys/firmware; cat /proc/kcore /proc/interrupts; echo 1 2>/dev/null >/proc/sys/kernel/hostname || echo refused", want: "/proc/acpi:\n\n/sys/firmware:\nrefused"},
		"devices":           {script: "ls /dev/null /dev/pts/ptmx; mount | grep -c 'cgroup.*ro,'  >/dev/null && echo cgroup", want: "/dev/null\n/dev/pts/ptmx\ncgroup"},
		"its own processes": {script: "echo $$", want: "1"},
	}
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		b := newBox(t, runtime)
		b.put(t, "data/seed", "seeded")
		if err := errors.Join(os.Chmod(filepath.Join(b.root, "data"), 0o750), os.Chown(filepath.Join(b.root, "data"), 1000, 1000)); err != nil {
			t.Fatal(err)
		}
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				code, out, said := b.sh(t, test.script, test.image, test.o)
				if out != test.want {
					t.Errorf("code %d, got:\n%s\nwant:\n%s\nstderr: %s", code, out, test.want, said)
				}
			})
		}
	})
}

func link(t *testing.T, name string) string {
	t.Helper()
	to, err := os.Readlink(name)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func TestStandardInput(t *testing.T) {
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		b := newBox(t, runtime)
		b.write(t, oci.ImageConfig{Cmd: []string{"/bin/cat"}}, Options{})
		in, feed, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		run := b.o
		run.Stdin, run.Stdout = in, &out
		if _, err = feed.WriteString("through"); err == nil {
			err = feed.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		if code, err := Run(limited(t), run); code != 0 || err != nil || out.String() != "through" {
			t.Errorf("code %d, %v, output %q", code, err, out.String())
		}
	})
}

func TestNotStarted(t *testing.T) {
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		b := newBox(t, runtime)
		b.put(t, "bin/plain", "not a program")
		for name, test := range map[string]struct {
			image oci.ImageConfig
			o     Options
			want  string
		}{
			"no such program": {image: oci.ImageConfig{Cmd: []string{"nope"}}, want: "not found"},
			"not executable":  {image: oci.ImageConfig{Cmd: []string{"/bin/plain"}}, want: "ermi"}, // permission denied, not permitted
			"bad mount":       {image: oci.ImageConfig{Cmd: []string{"true"}}, o: Options{Mounts: []Mount{{Source: "/etc", Target: "/proc/x", Options: []string{"rbind"}}}}, want: "proc"},
		} {
			t.Run(name, func(t *testing.T) {
				b.write(t, test.image, test.o)
				var said bytes.Buffer
				run := b.o
				run.Stderr = &said
				code, err := Run(limited(t), run)
				start, ok := errors.AsType[*StartError](err)
				if !ok || code == 0 || !strings.Contains(start.Message, test.want) || strings.Contains(start.Message, "\n") {
					t.Fatalf("code %d, error %v, want a StartError with %q", code, err, test.want)
				}
				if !start.Printed || said.Len() == 0 {
					t.Errorf("printed is %t, standard error is %q", start.Printed, said.String())
				}
			})
		}
		t.Run("no configuration", func(t *testing.T) {
			run := b.o
			run.Bundle = t.TempDir()
			if _, err := Run(limited(t), run); !isStartError(err) {
				t.Errorf("error is %v, want a StartError", err)
			}
		})
	})
}

func isStartError(err error) bool {
	_, ok := errors.AsType[*StartError](err)
	return ok
}

// stopScript says that it runs, and how it was stopped. It is a loop of short
// sleeps because a shell heeds signals between commands only.
const stopScript = `trap 'echo stopped >/stopped; exit 42' %s; touch /ready; while true; do sleep 0.02; done`

func TestCancelStops(t *testing.T) {
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		for name, test := range map[string]struct {
			script string
			signal syscall.Signal
			code   int
		}{
			"heeds":          {script: fmt.Sprintf(stopScript, "TERM"), code: 42},
			"heeds another":  {script: fmt.Sprintf(stopScript, "QUIT"), signal: unix.SIGQUIT, code: 42},
			"real-time":      {script: fmt.Sprintf(stopScript, "37"), signal: 37, code: 42},
			"does not heed":  {script: `touch /ready; while true; do sleep 0.02; done`, code: 137},
			"with processes": {script: `sleep 1000 & sleep 1000 & touch /ready; while true; do sleep 0.02; done`, code: 137},
		} {
			t.Run(name, func(t *testing.T) {
				b := newBox(t, runtime)
				b.write(t, oci.ImageConfig{Cmd: []string{"sh", "-c", test.script}}, Options{})
				cause := errors.New("enough")
				ctx, cancel := context.WithCancelCause(limited(t))
				defer cancel(nil)
				go func() {
					until(t, "start", func() bool { return b.has("ready") })
					cancel(cause)
				}()
				run := b.o
				if run.StopSignal = test.signal; test.code == 42 {
					run.Grace = time.Minute
				}
				code, err := Run(ctx, run)
				if !errors.Is(err, cause) || code != test.code {
					t.Errorf("code %d, error %v, want %d and the cause", code, err, test.code)
				}
			})
		}
		t.Run("before start", func(t *testing.T) {
			b := newBox(t, runtime)
			b.write(t, oci.ImageConfig{Cmd: []string{"true"}}, Options{})
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := Run(ctx, b.o); !errors.Is(err, context.Canceled) {
				t.Errorf("error is %v, want the context's", err)
			}
		})
	})
}

// TestCancelAtAnyTime cancels while the runtime makes the container; the box
// asserts that nothing is left.
func TestCancelAtAnyTime(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	b := newBox(t, "runc")
	b.write(t, oci.ImageConfig{Cmd: []string{"sleep", "1000"}}, Options{Net: NetNone})
	b.o.Grace = time.Millisecond
	for after := time.Duration(0); after < 60*time.Millisecond; after += 4 * time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		_, err := Run(ctx, b.o)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: error is %v, want the context's", after, err)
		}
	}
}

func TestSignalsReachTheContainer(t *testing.T) {
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		for _, s := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2} {
			t.Run(unix.SignalName(s), func(t *testing.T) {
				b := newBox(t, runtime)
				b.write(t, oci.ImageConfig{Cmd: []string{"sh", "-c", fmt.Sprintf(stopScript, strings.TrimPrefix(unix.SignalName(s), "SIG"))}}, Options{})
				signals := make(chan os.Signal, 1)
				go func() {
					until(t, "start", func() bool { return b.has("ready") })
					signals <- s
				}()
				run := b.o
				run.Signals = signals
				if code, err := Run(limited(t), run); code != 42 || err != nil {
					t.Errorf("code %d, %v, want 42", code, err)
				}
			})
		}
	})
}

func TestThirdInterruptEnds(t *testing.T) {
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		b := newBox(t, runtime)
		b.write(t, oci.ImageConfig{Cmd: []string{"sh", "-c", "trap '' INT TERM; touch /ready; while true; do sleep 0.02; done"}}, Options{})
		signals := make(chan os.Signal, impatience)
		go func() {
			until(t, "start", func() bool { return b.has("ready") })
			for range impatience {
				signals <- unix.SIGINT
			}
		}()
		run := b.o
		run.Signals = signals
		if code, err := Run(limited(t), run); code != 137 || err != nil {
			t.Errorf("code %d, %v, want 137", code, err)
		}
	})
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	runtime := "/bin/true"
	for name, test := range map[string]struct {
		o    RunOptions
		want error
	}{
		"no ID":               {RunOptions{Runtime: runtime, Bundle: "/b", Root: "/r"}, ErrOption},
		"ID like a flag":      {RunOptions{Runtime: runtime, Bundle: "/b", Root: "/r", ID: "--help"}, ErrOption},
		"ID with a directory": {RunOptions{Runtime: runtime, Bundle: "/b", Root: "/r", ID: "../x"}, ErrOption},
		"no bundle":           {RunOptions{Runtime: runtime, ID: "x", Root: "/r"}, ErrOption},
		"no state":            {RunOptions{Runtime: runtime, ID: "x", Bundle: "/b"}, ErrOption},
		"no terminal":         {RunOptions{Runtime: runtime, Bundle: "/b", Root: "/r", ID: "x", Terminal: true}, ErrOption},
		"no runtime":          {RunOptions{Runtime: "no-such-runtime", Bundle: "/b", Root: "/r", ID: "x"}, ErrNoRuntime},
	} {
		if _, err := Run(limited(t), test.o); !errors.Is(err, test.want) {
			t.Errorf("%s: error is %v, want %v", name, err, test.want)
		}
	}
}

func TestFindRuntime(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := FindRuntime(""); !errors.Is(err, ErrNoRuntime) || !strings.Contains(err.Error(), "apt install runc") {
		t.Errorf("error is %v, want ErrNoRuntime with what to do", err)
	}
	for _, name := range []string{"crun", "runc"} { // each is preferred to those before
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got, err := FindRuntime(""); got != path || err != nil {
			t.Errorf("got %s, %v, want %s", got, err, path)
		}
	}
}

// TestRuntimesSockets asserts that sockets which systemd gave to the caller do
// not become the container's.
func TestRuntimesSockets(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/x")
	t.Setenv("LISTEN_FDS", "1")
	for _, entry := range runtimeEnv() {
		if strings.HasPrefix(entry, "NOTIFY_SOCKET=") || strings.HasPrefix(entry, "LISTEN_FDS=") {
			t.Errorf("the runtime gets %s", entry)
		}
	}
}

// TestBrokenOutput has a reader of the output that goes away.
func TestBrokenOutput(t *testing.T) {
	b := newBox(t, "runc")
	b.write(t, oci.ImageConfig{Cmd: []string{"sh", "-c", "while echo x; do true; done; exit 3"}}, Options{})
	r, w := io.Pipe()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	run := b.o
	run.Stdout = w
	if code, err := Run(limited(t), run); code == 0 {
		t.Errorf("code %d, %v, although the output was lost", code, err)
	}
}
