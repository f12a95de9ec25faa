package bundle

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrMount reports a mount that cannot be parsed or made.
var ErrMount = errors.New("invalid mount")

// Mount is a file or directory of the caller's, or an empty file system, at a
// place in a container. [ParseVolume] and [ParseTmpfs] make one.
type Mount struct {
	Source  string   // absolute; "" is a tmpfs
	Target  string   // absolute and clean, not the root
	Options []string // as runtimes take them
}

// ParseVolume reads the value of -v: SRC:DST or SRC:DST:OPTIONS, or DST alone for
// a tmpfs. A SRC that begins with a dot is relative to the working directory.
// OPTIONS are comma-separated: ro or rw; bind or rbind; a propagation (private,
// rprivate, slave, rslave, shared, rshared); exec, suid, dev, each also with no.
// Read-only goes for the mounts below SRC too where the kernel can do it. Errors
// wrap [ErrMount] and say what is meant.
func ParseVolume(s string) (Mount, error) {
	m, err := parseVolume(s)
	if err != nil {
		return Mount{}, fmt.Errorf("parse volume %q: %w: %w", s, ErrMount, err)
	}
	return m, nil
}

func parseVolume(s string) (m Mount, err error) {
	parts := strings.Split(s, ":")
	switch len(parts) {
	case 1:
		m.Target, err = target(s)
		m.Options = tmpfsDefaults()
		return m, err
	case 2:
		parts = append(parts, "")
	case 3:
	default:
		return m, errors.New("want SRC:DST or SRC:DST:OPTIONS")
	}
	if m.Source, err = source(parts[0]); err != nil {
		return m, err
	}
	if m.Target, err = target(parts[1]); err != nil {
		return m, err
	}
	m.Options, err = bindOptions(parts[2])
	return m, err
}

func source(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("no source before the colon")
	case strings.ContainsRune(s, 0):
		return "", errors.New("source has a zero byte")
	case path.IsAbs(s):
		return path.Clean(s), nil
	case s[0] == '.':
		return filepath.Abs(s)
	}
	return "", fmt.Errorf("named volumes do not exist here; for a directory write ./%s", s)
}

func target(s string) (string, error) {
	clean := path.Clean(s)
	switch {
	case !path.IsAbs(s):
		return "", fmt.Errorf("destination %q is not an absolute path", s)
	case strings.ContainsRune(s, 0):
		return "", errors.New("destination has a zero byte")
	case clean == "/":
		return "", errors.New("destination is the root of the container")
	}
	return clean, nil
}

// bindOptions checks the options of a bind mount and adds the defaults.
func bindOptions(s string) ([]string, error) {
	var options []string
	bind, propagation := "rbind", "rprivate"
	for option := range strings.SplitSeq(s, ",") {
		switch option {
		case "", "rw":
		case "ro":
			options = append(options, option)
			if canMountSetattr() {
				options = append(options, "rro")
			}
		case "bind", "rbind":
			bind = option
		case "private", "rprivate", "slave", "rslave", "shared", "rshared":
			propagation = option
		case "exec", "noexec", "suid", "nosuid", "dev", "nodev":
			options = append(options, option)
		case "z", "Z":
			return nil, fmt.Errorf("option %s is not supported: dray sets no SELinux labels", option)
		default:
			return nil, fmt.Errorf("unknown option %q; want ro, rw, bind, rbind, [r]private, [r]slave, [r]shared, [no]exec, [no]suid, [no]dev", option)
		}
	}
	if err := contradiction(s, "ro", "rw"); err != nil {
		return nil, err
	}
	return append([]string{bind, propagation}, options...), nil
}

// contradiction returns an error when the list has both words.
func contradiction(list, a, b string) error {
	words := strings.Split(list, ",")
	if slices.Contains(words, a) && slices.Contains(words, b) {
		return fmt.Errorf("options %s and %s contradict", a, b)
	}
	return nil
}

// canMountSetattr tells whether the kernel has mount_setattr(2), Linux 5.12,
// which makes a tree of mounts read-only.
func canMountSetattr() bool {
	return !errors.Is(unix.MountSetattr(-1, "", 0, &unix.MountAttr{}), unix.ENOSYS)
}

// ParseTmpfs reads the value of --tmpfs: DST or DST:OPTIONS with ro or rw, exec,
// suid, dev (each also with no), size=N[k|m|g|%], mode=OCTAL, uid=N, gid=N,
// nr_inodes=N[k|m|g]. Errors wrap [ErrMount].
func ParseTmpfs(s string) (Mount, error) {
	dst, list, _ := strings.Cut(s, ":")
	m := Mount{Options: tmpfsDefaults()}
	var err error
	if m.Target, err = target(dst); err == nil {
		err = contradiction(list, "ro", "rw")
	}
	for option := range strings.SplitSeq(list, ",") {
		if err == nil && option != "" {
			err = tmpfsOption(option)
			m.Options = append(m.Options, option)
		}
	}
	if err != nil {
		return Mount{}, fmt.Errorf("parse tmpfs %q: %w: %w", s, ErrMount, err)
	}
	return m, nil
}

func tmpfsDefaults() []string { return []string{"nosuid", "nodev", "noexec"} }

func tmpfsOption(option string) error {
	key, value, hasValue := strings.Cut(option, "=")
	valid := false
	switch key {
	case "ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev":
		valid = !hasValue
	case "size":
		valid = isNumber([]byte(strings.TrimRight(value, "kmgKMG%"))) && len(strings.TrimRight(value, "kmgKMG%")) >= len(value)-1
	case "nr_inodes":
		valid = isNumber([]byte(strings.TrimRight(value, "kmgKMG"))) && len(strings.TrimRight(value, "kmgKMG")) >= len(value)-1
	case "mode":
		_, err := strconv.ParseUint(value, 8, 12)
		valid = err == nil
	case "uid", "gid":
		_, err := strconv.ParseUint(value, 10, 31)
		valid = err == nil
	}
	if !valid {
		return fmt.Errorf("unknown option %q; want ro, rw, [no]exec, [no]suid, [no]dev, size=, mode=, uid=, gid=, nr_inodes=", option)
	}
	return nil
}
