package erofs_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/erofs"
	"dray/internal/testkit"
)

// TestSeal asks the kernel. Where it has fs-verity a sealed file cannot be written any
// more and measures the same each time; where it has none, it says so.
func TestSeal(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if got, err := erofs.Measure(int(f.Fd())); !errors.Is(err, erofs.ErrNoVerity) {
		t.Errorf("measured %q, %v before it is sealed", got, err)
	}
	sealed, err := erofs.Seal(path)
	if errors.Is(err, erofs.ErrNoVerity) {
		if !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("got %v", err)
		}
		if err := erofs.CheckSealed(int(f.Fd()), "sha256:00", erofs.Measure); !errors.Is(err, erofs.ErrChanged) {
			t.Errorf("got %v for a file that is not sealed any more", err)
		}
		t.Logf("no fs-verity: %v", err)
		return
	}
	if err != nil || !strings.HasPrefix(sealed, "sha256:") {
		t.Fatalf("got %q, %v", sealed, err)
	}
	if again, err := erofs.Seal(path); err != nil || again != sealed {
		t.Errorf("again: %q, %v", again, err)
	}
	if err := erofs.CheckSealed(int(f.Fd()), sealed, erofs.Measure); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("other"), 0o600); err == nil {
		t.Error("a sealed file was written")
	}
}

func TestCheckSealed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		want, got string
		err       error
		expect    error
	}{
		"never measured":  {want: "", got: "sha256:aa"},
		"as it was":       {want: "sha256:aa", got: "sha256:aa"},
		"changed":         {want: "sha256:aa", got: "sha256:bb", expect: erofs.ErrChanged},
		"other algorithm": {want: "sha256:aa", got: "sha512:aa", expect: erofs.ErrChanged},
		"replaced":        {want: "sha256:aa", err: erofs.ErrNoVerity, expect: erofs.ErrChanged},
		"cannot be read":  {want: "sha256:aa", err: unix.EIO, expect: unix.EIO},
	} {
		err := erofs.CheckSealed(7, c.want, func(fd int) (string, error) {
			if fd != 7 {
				t.Errorf("%s: asked for descriptor %d", name, fd)
			}
			return c.got, c.err
		})
		if !errors.Is(err, c.expect) {
			t.Errorf("%s: got %v, want %v", name, err, c.expect)
		}
	}
}

func TestProbeTellsOfVerity(t *testing.T) {
	testkit.Need(t, testkit.Root())
	s, err := erofs.Probe(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if s.Verity == (s.NoVerity != "") {
		t.Errorf("got %+v: want fs-verity, or why not", s)
	}
}
