package apply

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dray/internal/testkit"
)

// Files for which the page cache has no room leave it, at once or when the layer is complete,
// whatever becomes of their names; those before have what room there is, and small files stay.
func TestFilesLeaveThePageCache(t *testing.T) {
	testkit.Need(t, testkit.Root()) // not parallel: it counts descriptors
	const size, stay = leavesFrom + 4321, 3
	body := strings.Repeat("layer ", 3<<20)
	var items []item
	for i := range 2*leavingFiles + stay {
		items = append(items, reg(fmt.Sprintf("files/%03d", i), body[:size]))
	}
	items = append(items, reg("files/large", body[:2*bulkStepBytes+4321]), reg("small/a", body[:leavesFrom-1]),
		reg("x/again", body[:size]), reg("x/again", body[:size+1]), link("x/linked", "x/again"),
		reg("x/gone", body[:size]), reg("x/.wh.gone", ""), reg("x/set", body[:size]).mode(0o4755))
	dir, err := os.MkdirTemp("/var/tmp", "dray-leaving-") //nolint:usetesting // what is in a tmpfs has no other place
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	before := openFDs(t)
	a, err := applyTo(t, root, tarOf(t, items...), Options{Cache: PageCacheOf(stay*size+size/2, false)})
	if err != nil {
		t.Fatal(err)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, before it were %d", after, before)
	}
	in := func(name string) int64 { return testkit.Cached(t, filepath.Join(dir, name), 0, 0) }
	var gone int64
	for i := range 2*leavingFiles + stay {
		got := in(fmt.Sprintf("files/%03d", i))
		if i < stay && got < size {
			t.Errorf("file %d: %d of %d bytes are in memory, and there is room for all", i, got, size)
		}
		if i >= stay {
			gone += got
		}
	}
	gone += in("files/large") + in("x/again") + in("x/set")
	if gone > size { // a page that is used just then may stay
		t.Errorf("%d bytes that there is no room for are in memory", gone)
	}
	if got := in("small/a"); got < leavesFrom-1 {
		t.Errorf("%d bytes of a small file are in memory", got)
	}
	a.check(t, CheckOptions{})
}
