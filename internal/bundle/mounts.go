package bundle

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"dray/internal/oci"
)

// mounts returns all mounts of a container in the order in which they are made.
// A place has one mount: the user's wins over the image's volume and over the
// default, and hides the defaults below it.
func mounts(config *oci.ImageConfig, rootfs *os.File, o *Options) ([]specs.Mount, error) {
	user, err := userMounts(o.Mounts)
	if err != nil {
		return nil, err
	}
	volumes, err := volumeMounts(config, rootfs, o)
	if err != nil {
		return nil, err
	}
	var network []specs.Mount
	if o.Net == NetHost {
		if network, err = networkMounts(rootfs, o); err != nil {
			return nil, err
		}
	}
	all := slices.DeleteFunc(defaultMounts(o), func(d specs.Mount) bool {
		return slices.ContainsFunc(user, func(m specs.Mount) bool { return below(d.Destination, m.Destination) })
	})
	var rest []specs.Mount
	for _, m := range slices.Concat(user, network, volumes) {
		taken := func(other specs.Mount) bool { return other.Destination == m.Destination }
		if !slices.ContainsFunc(rest, taken) {
			rest = append(rest, m)
		}
	}
	sort.SliceStable(rest, func(i, j int) bool {
		return strings.Count(rest[i].Destination, "/") < strings.Count(rest[j].Destination, "/")
	})
	return append(all, rest...), nil
}

// below tells whether name is dir or in it.
func below(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

// defaultMounts returns the mounts that Docker gives to every container, without
// those that a user namespace cannot have.
func defaultMounts(o *Options) []specs.Mount {
	devpts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	const tty = 5 // the group of terminals everywhere
	if hasID(o.GIDs, tty) {
		devpts = append(devpts, "gid=5")
	}
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: devpts},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	if o.Rootless && o.Net == NetHost {
		// sysfs belongs to the network namespace: it can be mounted by that
		// namespace's owner only. A bind mount is what is left.
		return append(all, specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}})
	}
	all = append(all, specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}})
	if !o.Rootless {
		all = append(all, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}})
	}
	return all
}

func userMounts(wanted []Mount) ([]specs.Mount, error) {
	var all []specs.Mount
	for _, m := range wanted {
		if clean, err := target(m.Target); err != nil || clean != m.Target {
			return nil, fmt.Errorf("mount %q: destination must be absolute, clean and not the root: %w", m.Target, ErrMount)
		}
		if slices.ContainsFunc(all, func(other specs.Mount) bool { return other.Destination == m.Target }) {
			return nil, fmt.Errorf("mount %s: two mounts have this destination: %w", m.Target, ErrMount)
		}
		if m.Source == "" {
			all = append(all, specs.Mount{Destination: m.Target, Type: "tmpfs", Source: "tmpfs", Options: m.Options})
			continue
		}
		if _, err := os.Stat(m.Source); err != nil {
			return nil, fmt.Errorf("mount %s at %s: %w: %w", m.Source, m.Target, ErrMount, err)
		}
		all = append(all, specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: m.Options})
	}
	return all, nil
}

// networkMounts gives a container in the caller's network the files that name
// its hosts. On a root file system that is read-only by itself the runtime cannot
// make what they are mounted on.
func networkMounts(rootfs *os.File, o *Options) ([]specs.Mount, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(rootfs.Fd()), &fs); err != nil {
		return nil, fmt.Errorf("look at the root file system: %w", err)
	}
	readonly := fs.Flags&unix.ST_RDONLY != 0
	var all []specs.Mount
	for _, name := range []string{"/etc/hosts", "/etc/resolv.conf"} {
		if _, err := os.Stat(name); err != nil {
			continue // the caller has none either
		}
		if _, err := statBelow(rootfs, name); err != nil && readonly {
			o.Log.Warn("file of the caller's network left out: the image has none and its root is read-only", slog.String("file", name))
			continue
		}
		all = append(all, specs.Mount{Destination: name, Type: "bind", Source: name, Options: []string{"bind", "rprivate", "nosuid", "noexec", "nodev", "ro"}})
	}
	return all, nil
}

// volumeMounts returns a tmpfs for each of the image's volumes that would not be
// a writable directory without it (package comment).
func volumeMounts(config *oci.ImageConfig, rootfs *os.File, o *Options) ([]specs.Mount, error) {
	var all []specs.Mount
	for _, volume := range slices.Sorted(maps.Keys(config.Volumes)) {
		dst, err := target(path.Clean("/" + volume))
		if err != nil || below(dst, "/proc") || below(dst, "/sys") || below(dst, "/dev") {
			o.Log.Warn("volume of the image left out", slog.String("volume", volume))
			continue
		}
		m := specs.Mount{Destination: dst, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev"}}
		stat, err := statBelow(rootfs, dst)
		switch {
		case errors.Is(err, unix.ENOENT):
			all = append(all, m)
		case err != nil:
			return nil, fmt.Errorf("look at the image's volume %s: %w", dst, err)
		case stat.Mode&unix.S_IFMT != unix.S_IFDIR:
			o.Log.Warn("volume of the image left out: not a directory", slog.String("volume", volume))
		case o.ReadonlyRootfs:
			m.Options = append(m.Options, fmt.Sprintf("mode=%04o", stat.Mode&0o7777))
			if hasID(o.UIDs, stat.Uid) && hasID(o.GIDs, stat.Gid) {
				m.Options = append(m.Options, fmt.Sprintf("uid=%d", stat.Uid), fmt.Sprintf("gid=%d", stat.Gid))
			}
			m.Options = append(m.Options, "tmpcopyup")
			all = append(all, m)
		}
	}
	return all, nil
}
