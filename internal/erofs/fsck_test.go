package erofs_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"dray/internal/erofs"
	"dray/internal/testkit"
)

// fsckVariable names another fsck.erofs than the one on the PATH, which then has to know
// our images.
const fsckVariable = "DRAY_FSCK_EROFS"

// fsck returns the checker of another project: what it thinks of an image with tars as
// devices; nil where it does not know such images. Debian 12's 1.5 knows no blocks of 512
// bytes, Debian 13's 1.8.6 crashes on every image with a device; 1.9.4 reads them all.
func fsck(t *testing.T) func(index string, tars ...string) (string, error) {
	t.Helper()
	program := os.Getenv(fsckVariable)
	chosen := program != ""
	if !chosen {
		testkit.Need(t, testkit.Tool("fsck.erofs"))
		program = "fsck.erofs"
	}
	check := func(index string, tars ...string) (string, error) {
		var args []string
		for _, tar := range tars {
			args = append(args, "--device="+tar)
		}
		out, err := exec.CommandContext(t.Context(), program, append(args, "--extract", index)...).CombinedOutput()
		return string(out), err
	}
	version, err := exec.CommandContext(t.Context(), program, "-V").CombinedOutput()
	if err != nil {
		t.Fatalf("%s -V: %v", program, err)
	}
	first, _, _ := strings.Cut(string(version), "\n")
	s, err := store(t, t.TempDir(), bytes.NewReader(testkit.Tar(testkit.File("f", "x"))))
	if err != nil {
		t.Fatal(err)
	}
	if said, err := check(s.index.Name(), s.tar.Name()); err != nil {
		if chosen {
			t.Fatalf("%s: %v: %s", first, err, said)
		}
		t.Logf("%s cannot read the simplest image (%v: %s): the kernel's reading has to do", first, err, strings.TrimSpace(said))
		return nil
	}
	t.Log(first)
	return check
}

// TestFsck asks fsck.erofs what it thinks of the index of each layer of each odd image,
// and of what they are merged.
func TestFsck(t *testing.T) {
	check := fsck(t)
	if check == nil {
		return
	}
	var indexes [][]byte
	var tars []string
	dir := t.TempDir()
	count := 0
	for _, odd := range testkit.Odd() {
		if odd.Large {
			continue
		}
		for i, entries := range odd.Layers {
			at := filepath.Join(dir, strconv.Itoa(count))
			if err := os.Mkdir(at, 0o700); err != nil {
				t.Fatal(err)
			}
			count++
			s, err := store(t, at, bytes.NewReader(testkit.Tar(entries...)))
			if err != nil {
				continue // malformed, or inexpressible
			}
			if said, err := check(s.index.Name(), s.tar.Name()); err != nil {
				t.Errorf("%s, layer %d: %v: %s", odd.Name, i, err, said)
			}
			raw, err := os.ReadFile(s.index.Name())
			if err != nil {
				t.Fatal(err)
			}
			indexes, tars = append(indexes, raw), append(tars, s.tar.Name())
		}
	}
	for _, n := range []int{2, 10, len(indexes)} {
		n = min(n, len(indexes))
		merged, err := merge(t, erofs.Options{}, indexes[:n]...)
		path := filepath.Join(dir, "merged")
		if err = errors.Join(err, os.WriteFile(path, merged, 0o600)); err != nil {
			t.Fatal(err)
		}
		if said, err := check(path, tars[:n]...); err != nil {
			t.Errorf("%d layers merged: %v: %s", n, err, said)
		}
	}
	t.Logf("%d indexes", len(indexes))
}
