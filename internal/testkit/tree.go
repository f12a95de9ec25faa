package testkit

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
)

// Node is everything about one path that an image can set.
type Node struct {
	Type     string // "file", "dir", "symlink", "char", "block", "fifo", "socket"
	Mode     uint32 // permissions, setuid, setgid, sticky bit; 0 for symbolic links
	UID, GID uint32
	Size     int64             // of files, in bytes
	SHA256   string            // of files
	Link     string            // of symbolic links
	Same     string            // the first path, in byte order, of this file's hard links
	Rdev     string            // of devices, "major:minor"
	MTime    string            // seconds.nanoseconds
	Xattrs   map[string]string // values as they are

	// Implicit and XattrsAny are only in what is wanted: made without an entry, so
	// that only the type is known; and attributes that do not matter.
	Implicit, XattrsAny bool
}

// Nodes is a directory tree by path, without a leading slash; "." is its root.
type Nodes map[string]Node

func mtime(sec, nsec int64) string { return fmt.Sprintf("%d.%09d", sec, nsec) }

func rdev[T int64 | uint32](major, minor T) string { return fmt.Sprintf("%d:%d", major, minor) }

// Diff compares two trees path by path and returns "" when they are equal. What
// does not matter to want is not looked at.
func Diff(want, got Nodes) string {
	const longest, most = 100, 20
	names := maps.Clone(want)
	maps.Copy(names, got)
	var b strings.Builder
	count := 0
	for _, name := range slices.Sorted(maps.Keys(names)) {
		w, wanted := want[name]
		g, found := got[name]
		if found && w.Implicit {
			g = Node{Type: g.Type, Implicit: true}
		}
		if found && w.XattrsAny {
			g.Xattrs, g.XattrsAny = nil, true
		}
		diff := cmp.Diff(w, g)
		if diff == "" && wanted == found {
			continue
		}
		if count++; count > most {
			continue
		}
		shown := name[:min(len(name), longest)]
		switch {
		case !found:
			fmt.Fprintf(&b, "%q is missing\n", shown)
		case !wanted:
			fmt.Fprintf(&b, "%q should not be there: %+v\n", shown, g)
		default:
			fmt.Fprintf(&b, "%q differs (-want +got):\n%s", shown, diff)
		}
	}
	if count > most {
		fmt.Fprintf(&b, "%d more differ\n", count-most)
	}
	return b.String()
}

// String lists the paths, one a line.
func (n Nodes) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(n)) {
		node := n[name]
		fmt.Fprintf(&b, "%-7s %04o %d:%d %q %s%s\n", node.Type, node.Mode, node.UID, node.GID, name, node.Link, node.Same)
	}
	return b.String()
}
