//go:build linux

package bench_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dray/internal/bench"
)

const (
	blockBytes = 1 << 20
	keptBlocks = 32
	lostBlocks = 200
	smallBytes = 256
	smallCount = 50_000
)

// kept is global so that its blocks are on the heap.
var kept [][]byte

//go:noinline
func keep() { kept = append(kept, make([]byte, blockBytes)) }

//go:noinline
func lose(n, sizeBytes int) { kept[n%keptBlocks] = make([]byte, sizeBytes) }

// allocate records itself allocating known amounts, in a second recording.
func allocate(dir string) error {
	stop, err := bench.StartProfile(dir)
	if err != nil {
		return err
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		return err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "1")); err == nil {
			break
		}
	}
	for range keptBlocks {
		keep()
	}
	for n := range lostBlocks {
		lose(n, blockBytes)
	}
	for n := range smallCount {
		lose(n, smallBytes)
	}
	err = stop()
	fmt.Println(len(kept)) // alive until now
	return err
}

func TestRecordingOfKnownAmounts(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), self, "profile", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "2", "recording.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r bench.Recording
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	// what the recorder allocates is estimated, and taken off
	const all, slack = (keptBlocks+lostBlocks)*blockBytes + smallCount*smallBytes, 4 << 20
	if r.AllocatedBytes < all-slack || r.AllocatedBytes > all+slack {
		t.Errorf("allocated %d, want %d", r.AllocatedBytes, all)
	}
	if r.Allocations < smallCount*9/10 || r.Allocations > smallCount*14/10 || r.Temporary < r.Allocations*9/10 || r.Temporary > r.Allocations {
		t.Errorf("%d allocations, %d temporary, want about %d and nearly all", r.Allocations, r.Temporary, smallCount)
	}
	// what is allocated while the collector marks counts as live
	if r.PeakLiveBytes < keptBlocks*blockBytes/2 || r.PeakLiveBytes > 3*keptBlocks*blockBytes || r.PeakHeapBytes < keptBlocks*blockBytes/2 {
		t.Errorf("peak %d, live %d, want %d live", r.PeakHeapBytes, r.PeakLiveBytes, keptBlocks*blockBytes)
	}
	if len(r.Peak) == 0 || !strings.Contains(r.Peak[0].Place, "profile_test.go") || r.Peak[0].Bytes < keptBlocks*blockBytes/3 {
		t.Errorf("live at the peak: %v", r.Peak)
	}
	for _, name := range []string{"allocs.pb.gz", "heap-peak.pb.gz", "cpu.pb.gz"} {
		if info, err := os.Stat(filepath.Join(dir, "2", name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOnlyDrayIsProfiled(t *testing.T) {
	t.Parallel()
	_, err := bench.Bench(t.Context(), bench.Options{Corpus: corpus(t), Rivals: []*bench.Rival{rival(t, "floor")}, ProfileDir: t.TempDir()})
	if !errors.Is(err, bench.ErrNoProfile) {
		t.Errorf("got %v", err)
	}
}
