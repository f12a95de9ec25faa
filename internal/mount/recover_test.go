package mount

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"dray/internal/store"
	"dray/internal/userns"
)

// edit changes a record as a crash, or another boot, would have left it.
func (b *bench) edit(id string, change func(map[string]any)) {
	b.t.Helper()
	path := filepath.Join(b.store.Root(), "mounts", id, "state.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		b.t.Fatal(err)
	}
	change(fields)
	if raw, err = json.Marshal(fields); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func set(key string, value any) func(map[string]any) {
	return func(fields map[string]any) { fields[key] = value }
}

func TestRecover(t *testing.T) {
	const otherBoot = "00000000-1111-2222-3333-444444444444"
	nothing := func(*bench, *store.Mount) {}
	for _, tt := range []struct {
		name  string
		harm  func(b *bench, mounted *store.Mount)
		after func(b *bench) // what must be done by hand after it
		want  Report         // with "it" for the mount's ID
		left  bool           // the mount is still there
	}{
		{name: "complete", harm: nothing, want: Report{Live: []string{"it"}}, left: true},
		{
			name: "killed before the mount was made",
			harm: func(b *bench, mounted *store.Mount) {
				b.edit(mounted.ID, set("state", "preparing"))
				b.umount(mounted.Target)
			},
			want: Report{Removed: []string{"it"}},
		},
		{
			name: "killed before the record was complete",
			harm: func(b *bench, mounted *store.Mount) { b.edit(mounted.ID, set("state", "preparing")) },
			want: Report{Removed: []string{"it"}},
		},
		{
			name: "killed between umount and removal",
			harm: func(b *bench, mounted *store.Mount) { b.umount(mounted.Target) },
			want: Report{Removed: []string{"it"}},
		},
		{
			name: "killed while the files were removed",
			harm: func(b *bench, mounted *store.Mount) {
				b.umount(mounted.Target)
				_ = os.RemoveAll(mounted.Upper())
			},
			want: Report{Removed: []string{"it"}},
		},
		{
			name: "of another boot",
			harm: func(b *bench, mounted *store.Mount) {
				b.umount(mounted.Target)
				b.edit(mounted.ID, set("boot_id", otherBoot))
			},
			want: Report{Removed: []string{"it"}},
		},
	} {
		for mode, readOnly := range modes() {
			t.Run(tt.name+"/"+mode, func(t *testing.T) {
				b := newBench(t)
				layers := []*store.Layer{b.layer("a", tree{"a": file("1")})}
				untouched := b.mount(Request{Image: imageOf("other"), Layers: layers, Target: b.target("other")})
				mounted := b.mount(Request{Image: imageOf("one"), Layers: layers, Target: b.target("rootfs"), ReadOnly: readOnly})
				tt.harm(b, mounted)
				got, err := b.Recover(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				got.Live = slices.DeleteFunc(got.Live, func(id string) bool { return id == untouched.ID })
				for _, ids := range [][]string{got.Live, got.Removed, got.InUse} {
					for i, id := range ids {
						if id == mounted.ID {
							ids[i] = "it"
						}
					}
				}
				if len(got.Live) == 0 {
					got.Live = nil
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("report (-want +got):\n%s", diff)
				}
				if tt.left {
					b.unmount(b.target("rootfs"))
				}
				b.unmount(b.target("other"))
				b.wantClean()
			})
		}
	}
}

func TestRecoverDamagedRecord(t *testing.T) {
	b := newBench(t)
	mounted := b.mount(Request{Image: imageOf("one"), Target: b.target("rootfs")})
	other := b.mount(Request{Image: imageOf("one"), Target: b.target("other")})
	b.umount(other.Target)
	path := filepath.Join(mounted.Path, "state.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	report, err := b.Recover(t.Context())
	if err == nil || len(report.Removed) != 1 {
		t.Errorf("report %+v, error %v: want the damage told and the rest done", report, err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	b.unmount(b.target("rootfs"))
	b.wantClean()
}

// TestMountOverHalfDone mounts where a killed process left a mount, without
// recovery before.
func TestMountOverHalfDone(t *testing.T) {
	b := newBench(t)
	r := Request{Image: imageOf("one"), Target: b.target("rootfs")}
	first := b.mount(r)
	b.edit(first.ID, set("state", "preparing"))
	if second := b.mount(r); second.ID == first.ID {
		t.Error("the half-done mount was taken for a complete one")
	}
	b.unmount(r.Target)
	b.wantClean()
}

// TestNamespaces has a mount in the mount namespace of another process.
func TestNamespaces(t *testing.T) {
	for mode, readOnly := range modes() {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t)
			r := Request{Image: imageOf("one"), Layers: []*store.Layer{b.layer("a", tree{"a": file("1")})}, Target: b.target("rootfs"), ReadOnly: readOnly}
			v := startVictim(t, b, readOnly, true)
			v.line(t) // mounted, there
			list, err := b.List(t.Context())
			if err != nil || len(list) != 1 || list[0].Live {
				t.Fatalf("list %+v, %v: want one that is not seen here", list, err)
			}
			id := list[0].ID
			if report, err := b.Recover(t.Context()); err != nil || !slices.Equal(report.InUse, []string{id}) {
				t.Errorf("recover: %+v, %v: want it left alone", report, err)
			}
			if err := b.Unmount(t.Context(), id); err == nil {
				t.Error("unmounted from outside")
			}
			mine := b.mount(r) // the same path is another place here
			if mine.ID == id {
				t.Error("taken for the mount of the other namespace")
			}
			b.unmount(r.Target)
			v.kill()
			report, err := b.Recover(t.Context())
			if err != nil {
				t.Error(err)
			}
			if readOnly && len(report.Removed) == 0 {
				// Which processes are in it cannot be told here; the boot will tell.
				b.edit(id, set("boot_id", "00000000-1111-2222-3333-444444444444"))
				if _, err := b.Recover(t.Context()); err != nil {
					t.Error(err)
				}
			}
			b.wantClean()
		})
	}
}

// TestKilledAtAnyMoment kills a process that mounts and unmounts, again and again,
// and recovers.
func TestKilledAtAnyMoment(t *testing.T) {
	b := newBench(t)
	for i := range 4 {
		b.layer(fmt.Sprint(i), tree{"f": file(fmt.Sprint(i))})
	}
	random := rand.New(rand.NewPCG(3, 4))
	rounds, half, complete := 80, 0, 0
	if testing.Short() {
		rounds = 20
	}
	for range rounds {
		v := startVictim(t, b, false, false)
		v.line(t) // it has begun
		wait := time.NewTimer(time.Duration(random.IntN(12_000)) * time.Microsecond)
		<-wait.C
		v.kill()
		records, err := b.store.Mounts()
		if err != nil {
			t.Fatal(err)
		}
		mounts, err := readTable(ownTable)
		if err != nil {
			t.Fatal(err)
		}
		before := map[string]bool{} // whether each mount was complete, by ID
		for _, record := range records {
			before[record.ID] = record.State == store.MountMounted && len(mounts.ofRecord(record.ID)) > 0
			if !before[record.ID] {
				half++
			}
		}
		report, err := b.Recover(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range report.Removed {
			if before[id] {
				t.Errorf("complete mount %s was removed", id)
			}
		}
		list, err := b.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			complete++
			if !s.Live || s.State != store.MountMounted {
				t.Errorf("after recovery: %+v", s)
			}
			b.unmount(s.Target)
		}
		openStore(t, b.store.Root()) // sweeps what was killed while it removed files
		b.wantClean()
	}
	t.Logf("%d kills: %d mounts half done, %d complete", rounds, half, complete)
}

// victimProcess is a running [victim].
type victimProcess struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	stdin io.Closer
}

// startVictim starts the program that [victim] is.
func startVictim(t *testing.T, b *bench, readOnly, elsewhere bool) *victimProcess {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), victimEnv+"=loop", "VICTIM_BASE="+b.base, fmt.Sprint("VICTIM_READ_ONLY=", readOnly))
	if elsewhere {
		cmd.Env = append(cmd.Env, victimEnv+"=once")
		cmd.SysProcAttr = ownNamespaces(false)
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &victimProcess{cmd, bufio.NewScanner(stdout), stdin}
	t.Cleanup(v.kill)
	return v
}

func (v *victimProcess) line(t *testing.T) {
	t.Helper()
	if !v.lines.Scan() {
		t.Fatalf("the program ended: %v", v.cmd.Wait())
	}
}

func (v *victimProcess) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

// victim mounts and unmounts until it is killed, or mounts once and waits.
func victim() int {
	err := func() error {
		base := os.Getenv("VICTIM_BASE")
		ctx := context.Background()
		s, err := store.Open(ctx, store.Options{Root: filepath.Join(base, "store")})
		if err != nil {
			return err
		}
		m, err := New(Options{Store: s, UserXattr: userns.Inside()})
		if err != nil {
			return err
		}
		layers, err := s.Layers()
		if err != nil {
			return err
		}
		r := Request{Image: imageOf("one"), Layers: layers, Target: filepath.Join(base, "rootfs"), ReadOnly: os.Getenv("VICTIM_READ_ONLY") == "true"}
		if os.Getenv(victimEnv) == "once" {
			if _, err := m.Mount(ctx, r); err != nil {
				return err
			}
			fmt.Println("mounted")
			_, err := os.Stdin.Read(make([]byte, 1))
			return err
		}
		fmt.Println("begin")
		for i := 0; ; i++ {
			r.ReadOnly, r.Replace, r.Image = i%3 == 0, i%4 == 3, imageOf(fmt.Sprint(i))
			if _, err := m.Mount(ctx, r); err != nil {
				return err
			}
			if i%4 == 2 {
				continue // replaced by the next
			}
			if err := m.Unmount(ctx, r.Target); err != nil {
				return err
			}
		}
	}()
	fmt.Fprintln(os.Stderr, "victim:", err)
	return 1
}
