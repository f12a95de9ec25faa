package mount

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"dray/internal/userns"
)

// entry is one line of /proc/PID/mountinfo (proc_pid_mountinfo(5)), unescaped.
type entry struct {
	id, parent uint64
	root       string // of the mount within its file system
	point      string
	fsType     string
	source     string
}

// recordID returns the ID of the record that the mount belongs to, or "" when it
// is not an overlay of dray's.
func (e *entry) recordID() string {
	id, ok := strings.CutPrefix(e.source, userns.MountSource)
	if !ok || e.fsType != overlay {
		return ""
	}
	return id
}

// table is what this mount namespace holds.
type table []entry

// ownTable is the thread's own file: namespaces belong to threads.
const ownTable = "/proc/thread-self/mountinfo"

// readTable reads the mounts of a process's namespace.
func readTable(path string) (table, error) {
	f, err := os.Open(path) //nolint:gosec // below /proc
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	t, err := parseTable(f)
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return t, nil
}

func parseTable(r io.Reader) (table, error) {
	var t table
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n') // an overlay of 500 layers has a long one
		if line = strings.TrimSuffix(line, "\n"); line != "" {
			e, parseErr := parseEntry(line)
			if parseErr != nil {
				return nil, parseErr
			}
			t = append(t, e)
		}
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func parseEntry(line string) (entry, error) {
	const id, parent, root, point, least = 0, 1, 3, 4, 6
	head, tail, ok := strings.Cut(line, " - ")
	before, after := strings.Split(head, " "), strings.Split(tail, " ")
	if !ok || len(before) < least || len(after) < 2 {
		return entry{}, fmt.Errorf("mountinfo line %.200q: too few fields", line)
	}
	e := entry{root: unescape(before[root]), point: unescape(before[point]), fsType: unescape(after[0]), source: unescape(after[1])}
	var errs [2]error
	e.id, errs[0] = strconv.ParseUint(before[id], 10, 64)
	e.parent, errs[1] = strconv.ParseUint(before[parent], 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return entry{}, fmt.Errorf("mountinfo line %.200q: %w", line, err)
	}
	return e, nil
}

// unescape undoes the kernel's \ooo for bytes that would end a field.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// byID returns the mount with the kernel's ID, or the zero entry.
func (t table) byID(id uint64) entry {
	if i := slices.IndexFunc(t, func(e entry) bool { return e.id == id }); i >= 0 {
		return t[i]
	}
	return entry{}
}

// ofRecord returns the mounts that belong to a record, the last made first. There
// is one, but for copies and bind mounts that somebody else made of it.
func (t table) ofRecord(id string) []entry {
	var found []entry
	for _, e := range slices.Backward(t) {
		if e.recordID() == id {
			found = append(found, e)
		}
	}
	return found
}

// below returns the mount points of the mounts on a mount.
func (t table) below(id uint64) []string {
	var points []string
	for _, e := range t {
		if e.parent == id {
			points = append(points, e.point)
		}
	}
	return points
}
