//go:build linux

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// site is where one rival runs: its directory and its control groups.
type site struct {
	dir    string // everything of the run
	store  string // what the rival keeps
	state  string // sockets, configuration, what is no part of the store
	socket string
	groups *groups
	family *family
	disk   *disk // whose file system dir is; nil: a directory as any other
	server *process
	helper *process // which the server needs; nil: none
	made   []string // directories outside, which go again if they are empty

	environment []string // NAME=VALUE, of all that is started here

	mu           sync.Mutex // guards the fields below; the sampler reads them
	endedSeconds float64    // CPU time of one-shot commands that have ended
	startedPeak  int64      // largest VmHWM of a program just after it was started
}

// newSite makes the site of the next run.
func (h *harness) newSite(ctx context.Context) (*site, error) {
	h.order++
	id := strconv.Itoa(h.order)
	s := &site{dir: filepath.Join(h.Work, id), family: h.family, disk: h.disk}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make site: %w", err)
	}
	if s.disk != nil {
		if err := s.disk.mount(ctx, s.dir); err != nil {
			return nil, fmt.Errorf("make site: %w", errors.Join(err, os.Remove(s.dir)))
		}
	}
	s.store, s.state = filepath.Join(s.dir, "store"), filepath.Join(s.dir, "state")
	s.socket = filepath.Join(s.state, "s.socket")
	for _, d := range []string{s.store, s.state} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make site: %w", errors.Join(err, s.remove(ctx)))
		}
	}
	var err error
	s.groups, err = newGroups(groupPrefix+strconv.Itoa(os.Getpid())+"-"+id, h.MemoryLimit)
	if err != nil && h.MemoryLimit > 0 {
		return nil, errors.Join(err, s.groups.remove(), s.remove(ctx))
	}
	return s, nil
}

// processes returns who belongs to the run now.
func (s *site) processes() []int {
	if s.groups.memory != "" {
		return s.groups.processes()
	}
	return s.family.living()
}

// cpuSeconds returns the CPU time of the run so far: of its control group or, where
// there is none, of the processes that still run and of commands that have ended.
func (s *site) cpuSeconds() float64 {
	if s.groups.cpu != "" {
		return s.groups.cpuSeconds()
	}
	s.mu.Lock()
	used := s.endedSeconds
	s.mu.Unlock()
	used += s.family.orphanSeconds()
	for _, m := range s.family.members() {
		used += processSeconds(m.pid)
	}
	return used
}

// process is a program that the bench has started.
type process struct {
	cmd    *exec.Cmd
	log    *os.File      // what it complains of
	output *os.File      // files, not pipes: those would be waited for after it has ended
	ended  chan struct{} // closed when it has
	err    error         // how; to be read after ended
}

// joinScript puts itself into the groups and becomes the program.
const joinScript = `n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ >"$1" || exit 125; shift; n=$((n-1)); done; exec "$@"`

// start starts a program inside the site's groups. Its complaints go to a log file.
func (s *site) start(argv []string, environment ...string) (*process, error) {
	files := s.groups.joinFiles()
	args := append([]string{"-c", joinScript, "join", strconv.Itoa(len(files))}, append(files, argv...)...)
	p := &process{cmd: exec.Command("/bin/sh", args...), ended: make(chan struct{})} //nolint:gosec,noctx // the user's own program, stopped in order
	p.cmd.Env = slices.Concat(os.Environ(), s.environment, environment, []string{siteVariable + "=" + s.dir})
	p.cmd.Dir = s.state
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var err error
	if p.log, err = memoryFile("log"); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	if p.output, err = memoryFile("output"); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", argv[0], err), p.log.Close())
	}
	p.cmd.Stderr, p.cmd.Stdout = p.log, p.output
	if err := s.family.start(p.cmd); err != nil {
		p.close()
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	s.look(p.cmd.Process.Pid)
	go func() { // ends with the process, which close and run wait for
		p.err = s.family.wait(p.cmd)
		close(p.ended)
	}()
	return p, nil
}

// look takes note of the memory of a program that has just been started and is not yet
// waited for: it may have ended when the sampler comes.
func (s *site) look(pid int) {
	_, peak := residentBytes(pid)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.startedPeak = max(s.startedPeak, peak)
}

// peakAtStarts returns the largest VmHWM that look has seen.
func (s *site) peakAtStarts() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.startedPeak
}

// memoryFile makes a file in memory: what a program has to say of a full disk does not
// go to that disk.
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// maxLog bounds how much is read of what a program complained of.
const maxLog = 4 << 20

// complaints returns the beginning of what the program wrote to its log.
func (p *process) complaints() []byte {
	raw := make([]byte, maxLog)
	n, _ := p.log.ReadAt(raw, 0) // what there is
	return raw[:n]
}

// close closes the program's files.
func (p *process) close() {
	_ = p.log.Close()
	_ = p.output.Close()
}

// printed returns the beginning of what the program printed.
func (p *process) printed() (string, error) {
	const limit = 64 << 10
	raw := make([]byte, limit)
	n, err := p.output.ReadAt(raw, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read output: %w", err)
	}
	return string(raw[:n]), nil
}

// said returns the end of what the program complained of, without what dray's log
// says of its progress.
func (p *process) said() string {
	var complaints strings.Builder
	for line := range strings.Lines(string(p.complaints())) {
		var l logLine
		if json.Unmarshal([]byte(line), &l) != nil || l.Level != "DEBUG" && l.Level != "INFO" {
			_, _ = complaints.WriteString(line) // never fails
		}
	}
	text := strings.TrimSpace(complaints.String())
	return text[max(0, len(text)-maxSaid):]
}

// run runs a program to its end.
func (s *site) run(ctx context.Context, argv []string, environment ...string) (string, error) {
	p, err := s.start(argv, environment...)
	if err != nil {
		return "", err
	}
	defer p.close()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if state := p.cmd.ProcessState; state != nil {
			s.endedSeconds += (state.UserTime() + state.SystemTime()).Seconds()
		}
	}()
	select {
	case <-p.ended:
	case <-ctx.Done():
		_ = p.cmd.Process.Kill() // it may have ended; what it started, close ends
		<-p.ended
		return "", context.Cause(ctx)
	}
	if p.err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(argv[0]), said(p.err, p.said()))
	}
	return p.printed()
}

// close ends everything that the run has started and removes everything it has
// made: processes, mounts, directories, groups.
func (s *site) close(ctx context.Context, grace time.Duration) error {
	problems := []error{s.server.stop("server", grace), s.helper.stop("server's helper", grace)}
	left := func() []int { return append(s.groups.processes(), s.family.living()...) }
	problems = append(problems, killAll(ctx, left), unmountBelow(s.dir), s.remove(ctx), s.groups.remove())
	for _, dir := range s.made {
		_ = os.Remove(dir) // somebody else may use it now
	}
	return errors.Join(problems...)
}

// remove removes the site's directory or, with all that is in it, its file system.
func (s *site) remove(ctx context.Context) error {
	if s.disk == nil {
		return removeAll(s.dir)
	}
	if err := s.disk.unmount(ctx, s.dir); err != nil {
		return err
	}
	return os.Remove(s.dir)
}

// stop asks the process to end, and kills it when it has not done so in time. A nil
// process has ended.
func (p *process) stop(what string, grace time.Duration) error {
	if p == nil {
		return nil
	}
	defer p.close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.ended:
		return nil
	case <-timer.C:
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.ended
		return fmt.Errorf("the %s did not stop when asked to, and was killed", what)
	}
}

// removeAll removes a directory with all that is in it, also where its owner may not
// write, as an ordinary user's store of an image has it.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() { // before it is read
			_ = os.Chmod(path, 0o700) //nolint:gosec // a directory, to be removed
		}
		return nil // what cannot be removed is reported below
	})
	return os.RemoveAll(dir)
}

// unmountBelow takes away every mount in a directory, the innermost first.
func unmountBelow(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if e := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", m, e))
		}
	}
	return err
}

// mountsBelow lists the mount points in a directory, outer ones first.
func mountsBelow(dir string) ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var found []string
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if target := unescape.Replace(fields[4]); strings.HasPrefix(target, dir+"/") {
			found = append(found, target)
		}
	}
	return found, nil
}

// diskUsage measures dir without what is mounted in it.
func diskUsage(dir string) (u Usage, err error) {
	type inode struct{ device, number uint64 }
	seen := map[inode]bool{}
	var device uint64
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went away meanwhile
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return nil //nolint:nilerr // as above
		}
		if path == dir {
			device = st.Dev
		}
		if st.Dev != device {
			return fs.SkipDir
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			id := inode{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		u.Blocks += st.Blocks * 512
		u.Apparent += st.Size
		u.Files++
		return nil
	})
	if err != nil {
		return u, fmt.Errorf("measure %s: %w", dir, err)
	}
	return u, nil
}
