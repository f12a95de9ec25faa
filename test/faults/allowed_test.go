package faults

import (
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// rule names calls that may fail in a command that ends well all the same.
type rule struct {
	scenarios []string       // nil: all
	call      *regexp.Regexp // of call.String
	err       unix.Errno     // 0: any
	first     bool           // no call with the same arguments has been made before
	after     string         // a call of this name has been made before
	says      string         // what must be in standard error
	why       string
}

// rules are all that may be ignored. A rule that is too wide hides a bug: each
// names its calls and, where the program goes on worse than before, what it must say.
var rules = []rule{
	{
		call: regexp.MustCompile(`^(openat|write)\(store/\.tmp-RANDOM\) |^renameat\(store/\.tmp-RANDOM, store/boot\) `), err: unix.ENOSPC,
		why: "a full store has to open, to be emptied: what is written is that nothing of another boot is left, and the next opening looks again",
	},
	{
		call: regexp.MustCompile(`^unlinkat\(store/(images/sha256|refs)/DIGEST\.BOOT\.json\) `),
		why:  "there is no such file: os.Remove tries rmdir after unlink, which says so",
	},
	{
		scenarios: []string{"mount-and-pull"}, call: regexp.MustCompile(`^unlinkat\(store/staging/lease-RANDOM\.lock\) `),
		why: "the look for the image in the store found none, and that is its answer; its lock holds nothing and is swept by the next command",
	},
	{
		scenarios: []string{"mount-and-pull"}, call: regexp.MustCompile(`.`), says: "not safe from power loss",
		why: "what a mount has pulled is synced after the mount is there: a failure takes nothing away and is said",
	},
	{
		call: regexp.MustCompile(`^(fsopen\(overlay\)|fsconfig\((no-such-option|lowerdir\+)\)) `), first: true,
		why: "the kernel is asked what it can do; where it can less, overlays are made in the older way",
	},
	{
		call: regexp.MustCompile(`^(openat\(store/lock\)|[a-z]+\(store/facts)`), says: "what the kernel can do is asked again next time",
		why: "what was found out of the kernel is only remembered to be faster, and that it is not is said",
	},
	{
		scenarios: []string{"mount-replace"}, call: regexp.MustCompile(`^(fsopen|fsconfig|mkdirat)\((overlay|store/mounts/MOUNT/probe-[a-z]*|index|ro|lowerdir|upperdir|workdir|)\) `), after: "move_mount",
		why: "whether the replaced mount is in use elsewhere is asked in two ways; one failed",
	},
	{
		scenarios: []string{"mount-replace", "unmount"}, call: regexp.MustCompile(`^(renameat\(store/mounts/MOUNT, |unlinkat\()store/staging/trash-RANDOM`), after: "umount2", says: "directories of a mount are left",
		why: "the mount is gone, which is what was asked for; its files are said to be left, and the next command removes them",
	},
}

// mayPass says why a command may end well although its last call failed; "" where
// it may not.
func mayPass(scenario string, err unix.Errno, ran outcome) string {
	for _, r := range rules {
		made := func(c call) bool { return c.name == r.after }
		same := func(c call) bool { return c.name == ran.hit.name && c.what == ran.hit.what && c.at < ran.hit.at }
		if (r.scenarios == nil || slices.Contains(r.scenarios, scenario)) && (r.err == 0 || r.err == err) &&
			r.call.MatchString(ran.hit.String()) && !(r.first && slices.ContainsFunc(ran.calls, same)) && (r.after == "" || slices.ContainsFunc(ran.calls, made)) && strings.Contains(ran.stderr, r.says) {
			return r.why
		}
	}
	return ""
}
