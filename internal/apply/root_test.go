package apply

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMakeRoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root, err := MakeRoot(dir, "fs")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	if want := filepath.Join(dir, "fs"); root.Name() != want {
		t.Errorf("made %q, want %q", root.Name(), want)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("made %v, %v, want one directory", entries, err)
	}
	const ext4Magic = 0xef53
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	parent, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = parent.Close() }()
	flags, err := unix.IoctlGetInt(int(parent.Fd()), unix.FS_IOC_GETFLAGS)
	if fs.Type == ext4Magic && (err != nil || flags&topDir == 0) {
		t.Errorf("directory on ext4 has flags %#x, %v", flags, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fs", "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if second, err := MakeRoot(dir, "fs"); err == nil {
		_ = second.Close()
		t.Error("made a root where one with files is")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left %v", entries)
	}
}
