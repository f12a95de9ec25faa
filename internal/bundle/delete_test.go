package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/oci"
)

// TestKilledCaller kills the process that runs a container: one that heeds
// SIGTERM ends by itself, the other is removed by Delete.
func TestKilledCaller(t *testing.T) {
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		b := newBox(t, runtime)
		start := func(script string) {
			_ = os.Remove(filepath.Join(b.root, "ready"))
			b.write(t, oci.ImageConfig{Cmd: []string{"sh", "-c", script}}, Options{})
			cmd := b.command(t, nil)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			until(t, "start", func() bool { return b.has("ready") })
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
		}
		start(fmt.Sprintf(stopScript, "TERM"))
		until(t, "the container's end", func() bool { return b.has("stopped") && len(b.processes(t)) == 0 })

		start("touch /ready; while true; do sleep 0.02; done")
		if len(b.processes(t)) == 0 {
			t.Fatal("the container did not survive: this test tests nothing")
		}
		if err := Delete(t.Context(), b.o); err != nil {
			t.Fatal(err)
		}
		until(t, "the container's removal", func() bool { return len(b.processes(t)) == 0 })
		if err := Delete(t.Context(), b.o); err != nil {
			t.Errorf("deleting what is not there: %v", err)
		}
	})
}

// TestHalfDeleted has Delete meet what crun leaves of a container when one crun deletes
// what another makes: a container that runs, and a state without its configuration.
func TestHalfDeleted(t *testing.T) {
	b := newBox(t, "crun")
	b.write(t, oci.ImageConfig{Cmd: []string{"sh", "-c", "touch /ready; while true; do sleep 0.02; done"}}, Options{})
	cmd := b.command(t, nil)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "start", func() bool { return b.has("ready") })
	if err := os.Remove(filepath.Join(b.o.state(), ConfigName)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := Delete(t.Context(), b.o); err != nil {
		t.Error(err)
	}
	if left := b.processes(t); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

// TestKilledCallerAtAnyTime kills the process that runs a container while the
// runtime makes it; after Delete, the box asserts that nothing is left.
func TestKilledCallerAtAnyTime(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		for after := time.Duration(0); after < 120*time.Millisecond; after += 6 * time.Millisecond {
			t.Run(after.String(), func(t *testing.T) {
				b := newBox(t, runtime)
				b.write(t, oci.ImageConfig{Cmd: []string{"sh", "-c", "while true; do sleep 0.02; done"}}, Options{Net: NetNone})
				cmd := b.command(t, nil)
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				timer := time.NewTimer(after)
				defer timer.Stop()
				<-timer.C
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
			})
		}
	})
}

func TestRootless(t *testing.T) {
	runtimes(t, func(t *testing.T, runtime string) {
		t.Helper()
		b := newBox(t, runtime)
		const first, count = 100000, 65536
		b.o.Rootless = true
		b.o.Runtime = runtime // the wrapper may not unmount
		// The caller owns everything, as it would have unpacked it.
		err := filepath.WalkDir(b.dir, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, first, first))
		})
		if err != nil {
			t.Fatal(err)
		}
		mapped := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: count}}
		single := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: 1}}
		for name, test := range map[string]struct {
			ids    []syscall.SysProcIDMap
			o      Options
			script string
			want   string
		}{
			"host network": {ids: mapped, script: "id -u; touch /new && ls -d /sys/class && ls /etc/hosts", want: "0\n/sys/class\n/etc/hosts"},
			"no network":   {ids: mapped, o: Options{Net: NetNone}, script: "id -u; ls /sys/class/net", want: "0\nlo"},
			"user":         {ids: mapped, o: Options{User: "app"}, script: "id -u; id -G", want: "1000\n1001 10 29"},
			"one ID":       {ids: single, script: "id -u; ls /dev/null", want: "0\n/dev/null"},
			"volume":       {ids: mapped, o: Options{Mounts: []Mount{{Source: "/etc", Target: "/host", Options: []string{"rbind", "ro"}}}}, script: "ls /host/passwd", want: "/host/passwd"},
		} {
			t.Run(name, func(t *testing.T) {
				test.o.Args, test.o.Rootless = []string{"sh", "-c", test.script}, true
				cmd := b.command(t, &test.o)
				cmd.SysProcAttr = &syscall.SysProcAttr{
					Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
					UidMappings: test.ids, GidMappings: test.ids,
					GidMappingsEnableSetgroups: len(test.ids) > 0 && test.ids[0].Size > 1,
					Credential:                 &syscall.Credential{},
				}
				if test.ids[0].Size == 1 {
					cmd.SysProcAttr.Credential.NoSetGroups = true
				}
				var out, said bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &said
				err := withoutHybrid(cmd)
				if got := strings.TrimSpace(out.String()); err != nil || got != test.want {
					t.Errorf("%v, got:\n%s\nwant:\n%s\nstderr: %s", err, got, test.want, said.String())
				}
			})
		}
	})
}
