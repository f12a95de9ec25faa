//go:build linux

package bench_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dray/internal/bench"
	"dray/internal/testkit"
)

// The files of both versions, as the kernel's documentation has them.
func TestGroupFiles(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		version     int
		directories []string
		files       map[string]string
		limit       string
	}{
		"v1": {
			1,
			[]string{"memory", "cpuacct"},
			map[string]string{
				"memory/g/memory.max_usage_in_bytes": "5000\n", "memory/g/memory.stat": "cache 900\nrss 1\ntotal_cache 7\ntotal_rss 3000\n",
				"memory/g/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "cpuacct/g/cpuacct.usage": "1500000000\n",
				"memory/g/cgroup.procs": "11\n12\n",
			},
			"memory/g/memory.limit_in_bytes",
		},
		"v2": {
			2,
			[]string{"."},
			map[string]string{
				"cgroup.controllers": "cpu memory\n", "g/memory.peak": "5000\n", "g/memory.stat": "anon 3000\nfile 900\n",
				"g/memory.events": "low 0\nhigh 0\nmax 4\noom 3\noom_kill 2\n", "g/cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
				"g/cgroup.procs": "11\n12\n",
			},
			"g/memory.max",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			for _, d := range c.directories {
				if err := os.MkdirAll(filepath.Join(root, d, "g"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for file, content := range c.files {
				if err := os.WriteFile(filepath.Join(root, file), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(root, c.limit), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			g, err := bench.NewGroups(root, "g", 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprint(g.Version(), g.Peak(), g.Anonymous(), g.OOMKills(), g.CPUSeconds(), g.Processes(), g.Lacks())
			if want := fmt.Sprint(c.version, 5000, 3000, 2, 1.5, []int{11, 12}, ""); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if raw, err := os.ReadFile(filepath.Join(root, c.limit)); err != nil || string(raw) != "1048576" {
				t.Errorf("limit %q, %v", raw, err)
			}
		})
	}
}

// A real hierarchy of version 2: the unified one, or the one beside version 1's. What
// its controllers do not count is said.
func TestGroupsOfVersion2(t *testing.T) {
	testkit.Need(t, testkit.Root())
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	root := ""
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); strings.Contains(line, " - cgroup2 ") {
			root = fields[4]
		}
	}
	if root == "" {
		testkit.Lacking(t, "cgroup2", "it is not mounted")
	}
	id := fmt.Sprintf("dray-bench-test-%d", os.Getpid())
	g, err := bench.NewGroups(root, id, 0)
	if err != nil {
		t.Skipf("no groups of version 2 can be made here: %v", err)
	}
	defer func() {
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	}()
	if g.Version() != 2 || len(g.JoinFiles()) != 1 {
		t.Fatalf("version %d, %v", g.Version(), g.JoinFiles())
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `echo $$ >"$1" && "$2" use && exec sleep 1000`, "sh", g.JoinFiles()[0], self(t))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for g.CPUSeconds() < usedTime.Seconds()*0.95 {
		if cmd.ProcessState != nil {
			t.Fatal("it ended early")
		}
	}
	if pids := g.Processes(); len(pids) == 0 {
		t.Error("nobody is in the group")
	}
	if _, err := os.Stat(filepath.Join(root, id, "memory.peak")); (err == nil) != (g.Lacks() == "") {
		t.Errorf("lacks %q, memory.peak: %v", g.Lacks(), err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
}
