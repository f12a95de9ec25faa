package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What does not fit in memory is in order as well, from files that nobody sees.
func TestSortsMoreThanMemory(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	rnd := rand.New(rand.NewPCG(1, 2))
	var s sorter
	defer s.close()
	var want [][]byte
	for size := 0; size < 3*memoryBytes; {
		item := fmt.Appendf(nil, "%x%0*d", rnd.Uint64(), rnd.IntN(3000), 0)
		want = append(want, item)
		size += len(item)
		if err := s.add(item); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.runs) < 2 {
		t.Fatalf("%d pieces", len(s.runs))
	}
	slices.SortFunc(want, bytes.Compare)
	i := 0
	for got, err := range s.sorted(t.Context()) {
		if err != nil || i == len(want) || !bytes.Equal(got, want[i]) {
			t.Fatalf("item %d: %v", i, err)
		}
		i++
	}
	if i != len(want) {
		t.Errorf("%d of %d items", i, len(want))
	}
	if files, err := filepath.Glob(filepath.Join(os.TempDir(), "*")); err != nil || files != nil {
		t.Errorf("%q, %v", files, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range s.sorted(ctx) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		break
	}
}

// A list that is in a file says what one in memory says.
func TestListInFile(t *testing.T) {
	t.Parallel()
	l := &List{}
	defer l.Close()
	var want []Entry
	for l.Size() < memoryBytes+memoryBytes/2 {
		want = append(want, Entry{Path: fmt.Sprintf("usr/%0*d", 1+len(want)*7919%100_000, len(want))})
		if err := l.Add(&want[len(want)-1]); err != nil {
			t.Fatal(err)
		}
	}
	got := entriesOf(t, l)
	if !slices.EqualFunc(got, want, func(a, b Entry) bool { return a.Path == b.Path }) || l.Len() != len(want) || l.text.file == nil {
		t.Errorf("%d entries of %d", len(got), len(want))
	}
	merged, err := Merge(t.Context(), []Weighted{{Entries: l}, {Entries: l}})
	if err != nil {
		t.Fatal(err)
	}
	defer merged.Close()
	if got := entriesOf(t, merged); !slices.EqualFunc(got, want, func(a, b Entry) bool { return a.Path == b.Path }) {
		t.Errorf("merged: %d entries of %d", len(got), len(want))
	}
	if err := l.Add(&Entry{Path: "a\x00b"}); !errors.Is(err, ErrFormat) {
		t.Errorf("zero byte: got %v", err)
	}
}

// A list that has gone into its file and was read takes more entries.
func TestListGrowsAfterItWasRead(t *testing.T) {
	l := &List{}
	defer l.Close()
	long := strings.Repeat("a", 1<<20)
	for i := range 6 {
		if err := l.Add(&Entry{Path: fmt.Sprintf("%s/%d", long, i)}); err != nil {
			t.Fatal(err)
		}
		n := 0
		for e, err := range l.All() {
			if want := fmt.Sprintf("%s/%d", long, n); err != nil || e.Path != want {
				t.Fatalf("entry %d of %d: %v, or another path", n, i+1, err)
			}
			n++
		}
		if n != i+1 {
			t.Fatalf("%d entries, want %d", n, i+1)
		}
	}
}
