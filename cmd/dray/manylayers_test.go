package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dray"
	"dray/internal/testkit"
)

// maxMountLine is what readers of mountinfo take of a line: bufio.Scanner, in runc
// and many others, gives up at 64 KiB.
const maxMountLine = 64 << 10

// A mount of 500 layers does not break programs that read /proc/self/mountinfo.
func TestMountOf500LayersInMountinfo(t *testing.T) { //nolint:paralleltest // mounts
	testkit.Need(t, testkit.Root(), testkit.Overlay())
	for _, layout := range []dray.Layout{"dir", ""} { //nolint:paralleltest // mounts
		t.Run("layout "+string(layout), func(t *testing.T) {
			dir := t.TempDir()
			testkit.Big(t, 500, 10, testkit.Random).Write(testkit.LayoutAt(t, filepath.Join(dir, "layout")), "v1")
			client, err := dray.New(t.Context(), dray.Options{Store: filepath.Join(dir, "store"), Layout: layout})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			target := filepath.Join(dir, "m")
			if _, err := client.Mount(t.Context(), "local://"+filepath.Join(dir, "layout")+":v1", target, dray.MountOptions{}); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				t.Error(err)
			}
			for line := range strings.Lines(string(raw)) {
				if strings.Contains(line, " "+target+" ") {
					t.Logf("%d bytes: %.300s", len(line), line)
					if len(line) >= maxMountLine {
						t.Errorf("the mount's line has %d bytes", len(line))
					}
				}
			}
			if err := client.Unmount(t.Context(), target); err != nil {
				t.Error(err)
			}
		})
	}
}
