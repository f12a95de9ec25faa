package userns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	osuser "os/user"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
)

const (
	subuidPath = "/etc/subuid"
	subgidPath = "/etc/subgid"
)

// errNoRange reports a user without subordinate IDs.
var errNoRange = errors.New("no subordinate IDs")

// mapIDs gives the namespace of process pid its IDs: the caller as root, and the
// caller's subordinate IDs from 1 on. When those cannot be had, why says so, and
// the caller is alone in the namespace. Called once, by the process that made it.
func mapIDs(ctx context.Context, pid int) (why, err error) {
	if why = mapRanges(ctx, pid); why == nil {
		return nil, nil
	}
	// A user may write a map of one line for itself once the namespace has
	// given up setgroups (user_namespaces(7)). newuidmap has written its map in
	// one step or not at all; one that is there already is an error here.
	dir := fmt.Sprintf("/proc/%d/", pid)
	for _, file := range []struct{ name, text string }{
		{"setgroups", "deny"},
		{"uid_map", fmt.Sprintf("0 %d 1\n", os.Geteuid())},
		{"gid_map", fmt.Sprintf("0 %d 1\n", os.Getegid())},
	} {
		if err := os.WriteFile(dir+file.name, []byte(file.text), 0); err != nil {
			return why, fmt.Errorf("map the caller's IDs, as there is no range (%w): %w", why, err)
		}
	}
	return why, nil
}

// HasRange tells whether the caller has subordinate IDs and the helpers that map them, so
// that files can have many owners in a namespace.
func HasRange() bool {
	for _, path := range []string{subuidPath, subgidPath} {
		if _, err := subordinate(path); err != nil {
			return false
		}
	}
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(name); err != nil {
			return false
		}
	}
	return true
}

// mapRanges maps all subordinate IDs with the helpers that are allowed to. The
// group map goes first: a failure there leaves nothing that is in the way.
func mapRanges(ctx context.Context, pid int) error {
	uids, err := subordinate(subuidPath)
	if err != nil {
		return err
	}
	gids, err := subordinate(subgidPath)
	if err != nil {
		return err
	}
	newuidmap, err := exec.LookPath("newuidmap")
	if err != nil {
		return err
	}
	newgidmap, err := exec.LookPath("newgidmap")
	if err != nil {
		return err
	}
	if err := helper(ctx, newgidmap, pid, mapping(os.Getegid(), gids)); err != nil {
		return err
	}
	return helper(ctx, newuidmap, pid, mapping(os.Geteuid(), uids))
}

// subordinate returns the caller's ranges in an /etc/subuid or /etc/subgid. Both
// name users, by name or by number.
func subordinate(path string) ([]user.SubID, error) {
	number := strconv.Itoa(os.Getuid())
	name := number
	if u, err := osuser.Current(); err == nil {
		name = u.Username
	}
	ranges, err := user.ParseSubIDFileFilter(path, func(s user.SubID) bool {
		return s.Count > 0 && (s.Name == name || s.Name == number)
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(ranges) == 0 {
		return nil, fmt.Errorf("%w for %s in %s", errNoRange, name, path)
	}
	return ranges, nil
}

// mapping returns a helper's arguments: triples of the first ID inside, the first
// outside and their count.
func mapping(caller int, ranges []user.SubID) []string {
	args := []string{"0", strconv.Itoa(caller), "1"}
	inside := int64(1)
	for _, r := range ranges {
		args = append(args, strconv.FormatInt(inside, 10), strconv.FormatInt(r.SubID, 10), strconv.FormatInt(r.Count, 10))
		inside += r.Count
	}
	return args
}

func helper(ctx context.Context, path string, pid int, args []string) error {
	//nolint:gosec // the helper is found on the caller's PATH and has the caller's rights, or those the system gave it
	out, err := exec.CommandContext(ctx, path, append([]string{strconv.Itoa(pid)}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	return nil
}
