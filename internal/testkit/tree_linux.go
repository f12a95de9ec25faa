package testkit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Tree lists the directory dir with everything in it, and follows nothing.
//
//	if diff := testkit.Diff(testkit.Expect(layers...), testkit.Tree(t, rootfs)); diff != "" {
//		t.Error(diff)
//	}
func Tree(tb testing.TB, dir string) Nodes {
	tb.Helper()
	nodes, err := readTree(dir)
	if err != nil {
		tb.Fatalf("list %s: %v", dir, err)
	}
	return nodes
}

func readTree(dir string) (Nodes, error) {
	nodes := Nodes{}
	type inode struct{ dev, ino uint64 }
	first := map[inode]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		node, err := readNode(path, &st)
		if err != nil {
			return err
		}
		if st.Nlink > 1 && node.Type != "dir" {
			key := inode{st.Dev, st.Ino}
			if first[key] == "" {
				first[key] = name
			}
			node.Same = first[key]
		}
		nodes[name] = node
		return nil
	})
	// A file whose other names lie outside of the tree is linked to nothing in it.
	names := map[string]int{}
	for _, node := range nodes {
		names[node.Same]++
	}
	for name, node := range nodes {
		if names[node.Same] == 1 {
			node.Same = ""
			nodes[name] = node
		}
	}
	return nodes, err
}

func readNode(path string, st *unix.Stat_t) (Node, error) {
	node := Node{Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, MTime: mtime(st.Mtim.Sec, st.Mtim.Nsec)}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		node.Type, node.Size = "file", st.Size
		node.SHA256, err = hashFile(path)
	case unix.S_IFDIR:
		node.Type = "dir"
	case unix.S_IFLNK:
		node.Type, node.Mode = "symlink", 0
		node.Link, err = os.Readlink(path)
	case unix.S_IFCHR:
		node.Type, node.Rdev = "char", rdev(unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		node.Type, node.Rdev = "block", rdev(unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		node.Type = "fifo"
	case unix.S_IFSOCK:
		node.Type = "socket"
	}
	if err != nil {
		return Node{}, err
	}
	node.Xattrs, err = readXattrs(path)
	return node, err
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

func readXattrs(path string) (map[string]string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes of %s: %w", path, err)
	}
	var xattrs map[string]string
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("read attribute %s of %s: %w", name, path, err)
		}
		if xattrs == nil {
			xattrs = map[string]string{}
		}
		xattrs[name] = string(value[:n])
	}
	return xattrs, nil
}
