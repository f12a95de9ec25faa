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
	follows   string         // the last call for mounts before it was about this
	before    string         // nothing that contains this has been touched before
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
		call: regexp.MustCompile(`^unlinkat\(store/staging/lease-RANDOM\.lock\) `), says: "the file of a lease is left",
		why: "the mount is there, and its record holds the image; a file that nobody has locked keeps nothing and is swept by the next command",
	},
	{
		scenarios: []string{"mount-and-pull"}, call: regexp.MustCompile(`.`), says: "not safe from power loss",
		why: "what a mount has pulled is synced after the mount is there: a failure takes nothing away and is said",
	},
	{
		scenarios: []string{"merge", "mount-merged", "pull-seeded", "merge-seeded", "mount-seeded"}, call: regexp.MustCompile(`.`), says: "layers are stacked one by one, not merged",
		why: "a merged index that cannot be made or mounted is done without, and that is said",
	},
	{
		scenarios: []string{"pull-seeded"}, call: regexp.MustCompile(`^(fsopen\(erofs\)|fsconfig\((source|device|ro|)\)|fsmount\(\)) `), before: "store/staging/merged-",
		why: "the kernel is asked whether it mounts a layer where it lies in the seed; where not, the layer is copied, and the evidence says so",
	},
	{
		call: regexp.MustCompile(`^fsopen\(overlay\) `), says: "overlays are made with mount(2)",
		why: "the kernel is asked what it can do; where it can less, overlays are made in the older way, and that is said",
	},
	{
		call: regexp.MustCompile(`^fsconfig\(no-such-option\) `),
		why:  "the kernel is asked what it can do with an option that it has to refuse",
	},
	{
		call: regexp.MustCompile(`^fsconfig\(lowerdir\+\) `), follows: "no-such-option",
		why: "the kernel is asked what it can do; where it takes no descriptors, it gets paths",
	},
	{
		call: regexp.MustCompile(`^fsconfig\(lowerdir\+\) `), before: "store/mounts/MOUNT",
		why: "no mount is being made: the kernel is asked what it can do with EROFS, by descriptor and then by path",
	},
	{
		call: regexp.MustCompile(`^(openat\(store/lock\)|[a-z0-9]+\(store/facts|(fsopen|fsconfig|fsmount)\()`), says: "what the kernel can do is asked again next time",
		why: "the kernel is asked what it can do with EROFS; an answer that may be wrong, or cannot be kept, is not remembered, and that is said",
	},
	{
		call: regexp.MustCompile(`^unlinkat\(store/staging/probe/probe-`),
		why:  "os.RemoveAll tries in two ways; what is left goes with the scratch directory that it is in",
	},
	{
		call: regexp.MustCompile(`^write\(stderr\) `),
		why:  "there is nowhere to say that the log cannot be written",
	},
	{
		scenarios: []string{"mount-replace"}, call: regexp.MustCompile(`^(fsopen|fsconfig|mkdirat)\((overlay|store/mounts/MOUNT/probe-[a-z]*|index|ro|lowerdir|upperdir|workdir|)\) `), after: "move_mount",
		why: "whether the replaced mount is in use elsewhere is asked in two ways; one failed",
	},
	{
		scenarios: []string{"mount-replace", "unmount", "unmount-merged"}, call: regexp.MustCompile(`^(renameat\(store/mounts/MOUNT, |unlinkat\()store/staging/trash-RANDOM`), after: "umount2", says: "directories of a mount are left",
		why: "the mount is gone, which is what was asked for; its files are said to be left, and the next command removes them",
	},
}

// mayPass says why a command may end well although its last call failed; "" where
// it may not.
func mayPass(scenario string, err unix.Errno, ran outcome) string {
	for _, r := range rules {
		if r.fits(scenario, err, ran) {
			return r.why
		}
	}
	return ""
}

func (r rule) fits(scenario string, err unix.Errno, ran outcome) bool {
	touched := func(c call) bool { return strings.Contains(c.what, r.before) }
	made := func(c call) bool { return c.name == r.after }
	previous := call{}
	for _, c := range ran.calls[:len(ran.calls)-1] { // the last is the one that failed
		if mounting(c.name) {
			previous = c
		}
	}
	switch {
	case r.scenarios != nil && !slices.Contains(r.scenarios, scenario),
		r.err != 0 && r.err != err,
		r.follows != "" && r.follows != previous.what,
		r.before != "" && slices.ContainsFunc(ran.calls, touched),
		r.after != "" && !slices.ContainsFunc(ran.calls, made):
		return false
	}
	return r.call.MatchString(ran.hit.String()) && strings.Contains(ran.stderr, r.says)
}
