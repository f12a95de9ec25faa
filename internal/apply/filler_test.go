package apply

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"dray/internal/testkit"
)

// What is left to the filler ends as what is not, in the tree and in the journal, whatever
// becomes of its name meanwhile: batches full of files and of bytes, sizes on both sides of the
// limit, files that are replaced, linked and removed at once.
func TestFillerMakesNoDifference(t *testing.T) {
	testkit.Need(t, testkit.Root()) // not parallel: it sets the number of cores
	var items []item
	add := func(i ...item) { items = append(items, i...) }
	for i := range 3 * batchFiles {
		add(reg(fmt.Sprintf("tiny/%d", i), strings.Repeat("t", i)).at(time.Unix(int64(i), 0)))
	}
	for i, size := range []int{0, 1, smallFileBytes - 1, smallFileBytes, smallFileBytes + 1, batchBytes, batchBytes + 1, smallFileBytes, smallFileBytes, smallFileBytes} {
		add(reg(fmt.Sprintf("sizes/%d", i), strings.Repeat(string(rune('a'+i)), size)).at(time.Unix(int64(i), 5)))
	}
	for range 10 {
		add(reg("again/a", "1"), reg("again/a", "22"), link("again/b", "again/a"), reg("again/a", "333"), link("again/c", "again/a"))
		add(reg("gone/d/e", "1"), reg("gone/d/f", "2"), reg("gone/d", "3"), dirItem("gone/d").at(time.Unix(7, 0)), reg("gone/.wh.d", ""))
		add(reg("mixed/owner", "1").owner(7, 8), reg("mixed/plain", "2"), reg("mixed/set", "3").mode(0o4755), reg("mixed/x", "4").xattr("user.a", "b"))
	}
	in := tarOf(t, items...)
	before := openFDs(t)
	trees, journals := map[int]map[string]string{}, map[int][]byte{}
	for _, cores := range []int{1, 2} {
		was := runtime.GOMAXPROCS(cores)
		root, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		a, err := applyTo(t, root, in, Options{})
		runtime.GOMAXPROCS(was)
		if err != nil {
			t.Fatal(err)
		}
		a.check(t, CheckOptions{})
		trees[cores], journals[cores] = tree(t, a.dir), a.journal
		_ = root.Close()
	}
	if diff := cmp.Diff(trees[1], trees[2]); diff != "" || len(trees[2]) < 3*batchFiles {
		t.Errorf("%d entries with a filler (-without +with):\n%s", len(trees[2]), diff)
	}
	if !bytes.Equal(journals[1], journals[2]) {
		t.Error("the journals differ")
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// What cannot be written is told once, by its name, when the next batch is asked for or
// at the end, and every file that came is closed.
func TestFillerFails(t *testing.T) { // not parallel: it counts descriptors
	for name, count := range map[string]int{"at the end": 3, "before": 4 * batchFiles} {
		t.Run(name, func(t *testing.T) {
			before, dir := openFDs(t), t.TempDir()
			f := newFiller()
			var told []error
			for i := range count {
				b, err := f.room(1)
				if err != nil {
					told = append(told, err)
					break
				}
				flags := unix.O_WRONLY
				if i == 1 {
					flags = unix.O_RDONLY // refuses to be written
				}
				fd, err := unix.Open(filepath.Join(dir, "file"), flags|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				b.content = append(b.content, 'x')
				b.files = append(b.files, madeFile{fd: fd, name: fmt.Sprintf("file%d", i), end: len(b.content)})
			}
			if err := f.close(); err != nil {
				told = append(told, err)
			}
			if len(told) != 1 || !errors.Is(told[0], unix.EBADF) || !strings.Contains(told[0].Error(), `"file1"`) {
				t.Errorf("told %v", told)
			}
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors are open, %d were", after, before)
			}
		})
	}
}
