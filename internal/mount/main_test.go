package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/oci"
	"dray/internal/store"
	"dray/internal/userns"
)

const (
	// stageEnv is set once the tests run in a mount namespace of their own, so that
	// nothing they mount is ever seen outside.
	stageEnv = "DRAY_MOUNT_TEST_STAGE"

	// victimEnv makes the test binary a program that mounts and unmounts until it is
	// killed.
	victimEnv = "DRAY_MOUNT_TEST_VICTIM"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(victimEnv) != "":
		os.Exit(victim())
	case os.Getenv(stageEnv) != "":
		// What others unmount goes here too, where theirs are shared (scripts/test).
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "keep mounts from others:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:noctx // ends with the tests
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = ownNamespaces(userns.Needed())
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run tests in a mount namespace:", err)
		os.Exit(1)
	}
}

// ownNamespaces gives a process a mount namespace, and a user namespace in which
// it is root if it is to have its rights from there.
func ownNamespaces(user bool) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if user {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

// whiteouts is the form that this process's mounts need.
func whiteouts() string {
	if userns.Inside() {
		return store.WhiteoutsUser
	}
	return store.WhiteoutsTrusted
}

func openStore(tb testing.TB, root string) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), store.Options{Root: root})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func newMounter(tb testing.TB, s *store.Store) *Mounter {
	tb.Helper()
	m, err := New(Options{Store: s, UserXattr: userns.Inside()})
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// bench is a mounter with a store, and a directory for targets, all of which are
// gone at the end.
type bench struct {
	*Mounter
	t    testing.TB
	base string
}

func newBench(tb testing.TB) *bench {
	tb.Helper()
	return newBenchAt(tb, "")
}

// newBenchAt has sub in the names of all its paths.
func newBenchAt(tb testing.TB, sub string) *bench {
	tb.Helper()
	base := filepath.Join(tb.TempDir(), sub)
	if err := os.MkdirAll(base, 0o755); err != nil {
		tb.Fatal(err)
	}
	b := &bench{newMounter(tb, openStore(tb, filepath.Join(base, "store"))), tb, base}
	tb.Cleanup(func() { // also after a failure, or TempDir could not be removed
		mounts, err := readTable(ownTable)
		if err != nil {
			tb.Error(err)
		}
		for i := len(mounts) - 1; i >= 0; i-- {
			if strings.HasPrefix(mounts[i].point, base) {
				_ = unix.Unmount(mounts[i].point, unix.MNT_DETACH)
			}
		}
	})
	return b
}

func (b *bench) target(name string) string { return filepath.Join(b.base, name) }

// node is one entry of a layer; the zero value is an empty file with mode 0644.
type node struct {
	dir      bool
	opaque   bool // of a directory
	whiteout bool
	link     string
	content  string
	perm     fs.FileMode
}

func file(content string) node        { return node{content: content} }
func dir(perm fs.FileMode) node       { return node{dir: true, perm: perm} }
func opaqueDir(p fs.FileMode) node    { return node{dir: true, perm: p, opaque: true} }
func whiteout() node                  { return node{whiteout: true} }
func diffIDOf(name string) oci.DiffID { return oci.DiffID(oci.DigestBytes([]byte(name))) }
func imageOf(name string) oci.Digest  { return oci.DigestBytes([]byte("image " + name)) }

// tree is what a layer holds by path; "." is its root. Parents must be in it.
type tree map[string]node

// layer puts a layer into the store, as apply would: a root that the tree does not
// mention is plain.
func (b *bench) layer(name string, content tree) *store.Layer {
	b.t.Helper()
	txn, layer, err := b.store.Begin(b.t.Context(), diffIDOf(name))
	if err != nil {
		b.t.Fatal(err)
	}
	if layer != nil {
		return layer
	}
	root := filepath.Join(txn.Path(), store.FSName)
	if err := errors.Join(os.Mkdir(root, 0o755), content.write(root)); err != nil {
		b.t.Fatal(errors.Join(err, txn.Abort()))
	}
	layer, err = txn.Commit(b.t.Context(), store.LayerRecord{Layout: store.LayoutDir, Whiteouts: whiteouts()})
	if err != nil {
		b.t.Fatal(err)
	}
	return layer
}

func (content tree) write(root string) error {
	for _, path := range sortedKeys(content) {
		n := content[path]
		if err := n.write(filepath.Join(root, path)); err != nil {
			return err
		}
		if !n.whiteout {
			continue
		}
		if err := unix.Lsetxattr(filepath.Join(root, filepath.Dir(path)), whiteouts()+".overlay.origin", nil, 0); err != nil {
			return err
		}
	}
	if _, ok := content["."]; ok {
		return nil
	}
	return errors.Join(os.Chmod(root, 0o755), unix.UtimesNanoAt(unix.AT_FDCWD, root, make([]unix.Timespec, 2), 0))
}

func (n node) write(path string) error {
	switch {
	case n.whiteout:
		return unix.Mknod(path, unix.S_IFCHR, 0)
	case n.link != "":
		return os.Symlink(n.link, path)
	case !n.dir:
		return os.WriteFile(path, []byte(n.content), 0o644)
	}
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if n.opaque {
		if err := unix.Lsetxattr(path, whiteouts()+".overlay.opaque", []byte("y"), 0); err != nil {
			return err
		}
	}
	return os.Chmod(path, n.perm)
}

// read returns what is below root, in the form of [tree.String]'s lines.
func read(tb testing.TB, root string) map[string]string {
	tb.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		switch {
		case d.IsDir():
			got[name] = fmt.Sprintf("dir %04o", info.Mode().Perm())
		case d.Type() == fs.ModeSymlink:
			link, err := os.Readlink(path)
			got[name] = "link " + link
			return err
		case d.Type() == 0:
			content, err := os.ReadFile(path)
			got[name] = "file " + string(content)
			return err
		default:
			got[name] = d.Type().String()
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

// unpack is what the layers come to when they are unpacked one after another, the
// bottom one first.
func unpack(layers ...tree) map[string]string {
	result := map[string]string{".": "dir 0755"}
	removeBelow := func(path string) {
		for name := range result {
			if name != "." && (path == "." || strings.HasPrefix(name, path+"/")) {
				delete(result, name)
			}
		}
	}
	for _, layer := range layers {
		for _, path := range sortedKeys(layer) {
			n := layer[path]
			if !n.dir || n.opaque {
				removeBelow(path)
			}
			switch {
			case n.whiteout:
				delete(result, path)
			case n.dir:
				result[path] = fmt.Sprintf("dir %04o", n.perm)
			case n.link != "":
				result[path] = "link " + n.link
			default:
				result[path] = "file " + n.content
			}
		}
	}
	return result
}

// wantClean fails when a record, a directory of one, or a mount is left.
func (b *bench) wantClean() {
	b.t.Helper()
	left, err := os.ReadDir(filepath.Join(b.store.Root(), "mounts"))
	if err != nil {
		b.t.Error(err)
	}
	for _, e := range left {
		b.t.Errorf("mounts/%s is left", e.Name())
	}
	left, err = os.ReadDir(filepath.Join(b.store.Root(), "staging"))
	if err != nil || len(left) > 0 {
		b.t.Errorf("staging: %v, %v", left, err)
	}
	if points := b.points(); len(points) > 0 {
		b.t.Errorf("mounted: %q", points)
	}
}

// points lists what is mounted below the bench's directory.
func (b *bench) points() []string {
	b.t.Helper()
	mounts, err := readTable(ownTable)
	if err != nil {
		b.t.Fatal(err)
	}
	var points []string
	for _, e := range mounts {
		if strings.HasPrefix(e.point, b.base) {
			points = append(points, e.point)
		}
	}
	return points
}

func (b *bench) mount(r Request) *store.Mount {
	b.t.Helper()
	mounted, err := b.Mount(b.t.Context(), r)
	if err != nil {
		b.t.Fatal(err)
	}
	return mounted
}

func (b *bench) unmount(target string) {
	b.t.Helper()
	if err := b.Unmount(b.t.Context(), target); err != nil {
		b.t.Fatal(err)
	}
}
