//go:build linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"dray/internal/loopdev"
)

// disk gives each run a file system that nobody has used: ext4 steps over inodes that
// were freed in the last minutes, so that who unpacks after a store was removed pays for
// the one before. It is made anew in one file, whose blocks are there from the beginning
// and which is written past the page cache, so that the disk below is no other with each
// run.
type disk struct {
	file string // in the work directory
	size int64
	loop string // device of the last run
	id   string // its number, as in mountinfo
}

// spareDisk is what a file system for runs has beside the images.
const spareDisk = 1 << 30

// diskSize returns how much the largest job may need: a copy of the image as it is
// sent, and two that are unpacked.
func diskSize(images []CorpusImage, modes []string) int64 {
	var largest, sum, files int64
	for i := range images {
		size := images[i].CompressedBytes() + images[i].UncompressedBytes()*5/2
		largest, sum, files = max(largest, size), sum+size, files+int64(images[i].Files())
	}
	for _, m := range modes {
		if m == Continuous {
			largest = sum
		}
	}
	const perFile = 4 * bytesPerInode
	return max(largest, files*perFile) + spareDisk
}

// bytesPerInode is what mkfs.ext4 is told.
const bytesPerInode = 8192

// newDisk makes the file below dir and tries it.
func newDisk(ctx context.Context, dir string, size int64) (_ *disk, err error) {
	if kind := fileSystem(dir); kind == "tmpfs" || kind == "ramfs" {
		return nil, fmt.Errorf("%s is a %s, where removing costs the next run nothing", dir, kind)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, err
	}
	if free := int64(st.Bavail) * st.Bsize; free < size {
		return nil, fmt.Errorf("%s has %.1f GB free, and %.1f would be taken", dir, float64(free)/1e9, float64(size)/1e9)
	}
	d := &disk{file: filepath.Join(dir, "disk"), size: size}
	probe := filepath.Join(dir, "probe")
	if err := os.Mkdir(probe, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if e := os.Remove(probe); e != nil || err != nil {
			err = errors.Join(err, e, d.remove())
		}
	}()
	if err := d.mount(ctx, probe); err != nil {
		return nil, err
	}
	return d, d.unmount(ctx, probe)
}

// mount makes a file system and mounts it.
func (d *disk) mount(ctx context.Context, dir string) error {
	f, err := os.OpenFile(d.file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, d.size); err != nil { // nothing where it has its blocks
		return fmt.Errorf("allocate %s: %w", d.file, err)
	}
	mkfs, err := find("mkfs.ext4")
	if err != nil {
		return err
	}
	// nothing is written in the background later: tables are left as they are
	if _, err := runQuiet(ctx, "", mkfs, "-q", "-F", "-m", "0", "-i", strconv.Itoa(bytesPerInode), "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", d.file); err != nil {
		return fmt.Errorf("make file system: %w", err)
	}
	loop, err := loopdev.Attach(int(f.Fd()), 0, unix.LO_FLAGS_DIRECT_IO)
	if err != nil {
		return err
	}
	defer func() { _ = loop.Close() }() // the mount keeps the device
	d.loop = loop.Name()
	var st unix.Stat_t
	if err := unix.Fstat(int(loop.Fd()), &st); err != nil {
		return fmt.Errorf("look at %s: %w", d.loop, err)
	}
	d.id = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if err := unix.Mount(d.loop, dir, "ext4", 0, "noinit_itable"); err != nil {
		return fmt.Errorf("mount %s: %w", d.loop, err)
	}
	if err := os.Remove(filepath.Join(dir, "lost+found")); err != nil {
		return errors.Join(err, d.unmount(ctx, dir))
	}
	return nil
}

// releaseTimeout bounds how long a file system may be in use after its run, and
// useTimeout how long by a process that is known, and is none of the run's.
const (
	releaseTimeout = 30 * time.Second
	useTimeout     = time.Second
)

// unmount takes the file system away and waits until nobody uses its device. When
// somebody goes on, the next run gets another file.
func (d *disk) unmount(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	look := time.NewTimer(useTimeout)
	defer look.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, syscall.EINVAL) { // it is no mount point any more
			if !d.attached() {
				return nil
			}
			err = syscall.EBUSY
		}
		if err != nil && !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		select {
		case <-tick.C:
			continue
		case <-look.C:
			if users := d.users(dir); users != "" {
				err = fmt.Errorf("%s: %w", users, err)
				break
			}
			continue
		case <-ctx.Done():
		}
		_ = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // goes when its user does
		return errors.Join(fmt.Errorf("somebody still uses the file system of the run: %w", err), d.remove())
	}
}

// users names the processes that are in dir, have something of it open or mapped, or
// have its file system in a mount namespace of their own; "" without any.
func (d *disk) users(dir string) string {
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	var users []string
	for _, process := range processes {
		if d.usedBy(process, dir) {
			name, _ := os.ReadFile(filepath.Join(process, "comm")) //nolint:gosec // of the kernel; "" has ended
			users = append(users, fmt.Sprintf("process %s (%s)", filepath.Base(process), strings.TrimSpace(string(name))))
		}
	}
	return strings.Join(users, ", ")
}

func (d *disk) usedBy(process, dir string) bool {
	links, _ := filepath.Glob(filepath.Join(process, "fd", "*")) // none of what has ended
	for _, link := range append(links, filepath.Join(process, "cwd"), filepath.Join(process, "root"), filepath.Join(process, "exe")) {
		if target, err := os.Readlink(link); err == nil && within(target, dir) {
			return true
		}
	}
	maps, _ := os.ReadFile(filepath.Join(process, "maps")) //nolint:gosec // of the kernel
	if strings.Contains(string(maps), " "+dir+"/") {
		return true
	}
	ours, _ := os.Readlink("/proc/self/ns/mnt")
	if theirs, err := os.Readlink(filepath.Join(process, "ns", "mnt")); err != nil || theirs == ours {
		return false
	}
	mounts, _ := os.ReadFile(filepath.Join(process, "mountinfo")) //nolint:gosec // of the kernel
	return strings.Contains(string(mounts), " "+d.id+" ")
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// attached tells whether the device of the last run still has the file.
func (d *disk) attached() bool {
	raw, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.loop), "loop", "backing_file"))
	return err == nil && strings.TrimSpace(string(raw)) == d.file
}

// remove removes the file.
func (d *disk) remove() error {
	err := os.Remove(d.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
