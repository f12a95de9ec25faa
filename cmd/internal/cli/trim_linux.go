package cli

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dray"
)

// spareMemory prepares a service to take little: it lets go of what start-up touched, and
// no buffer is rounded up to a huge page, whatever the guest's kernel prefers.
func spareMemory() {
	collectAt(serveGCPercent)
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)
	program.drop()
}

// programPages are the pages of the program itself, of which start-up, a handshake or a
// collection touches far more than pulling does: the kernel maps 64 KiB around each
// fault. They are its page cache: what is needed again is mapped again. Letting go of
// them is up to 6 MB less in a guest, and where it is not possible, nothing is lost. It
// costs some hundredths of a processor, so it is done while much is in memory only.
type programPages struct {
	mu     sync.Mutex   // guards what follows
	ranges [][2]uintptr // start and end; nil: not yet known
	until  time.Time    // when a pull is held to have ended
	going  bool         // a timer is set
}

// program is what this process runs.
var program programPages //nolint:gochecknoglobals // there is one

const (
	trimEvery = 10 * time.Millisecond
	trimFor   = 250 * time.Millisecond // a layer in flight reports more often
	trimAbove = 16 << 20               // bytes in memory, of the 24 MB that a guest is promised
)

// drop lets go of the pages.
func (p *programPages) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ranges == nil {
		p.ranges = programRanges()
	}
	for _, r := range p.ranges {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, r[0], r[1]-r[0], unix.MADV_DONTNEED)
	}
}

// pulling drops them again and again for as long as it is called.
func (p *programPages) pulling() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = time.Now().Add(trimFor)
	if !p.going {
		p.going = true
		time.AfterFunc(trimEvery, p.tick)
	}
}

func (p *programPages) tick() {
	if residentBytes() > trimAbove {
		p.drop()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.going = time.Now().Before(p.until); p.going {
		time.AfterFunc(trimEvery, p.tick)
	}
}

// residentBytes returns what this process has in memory; 0 if that is not to be known.
func residentBytes() int64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}

// programRanges returns where the program's unchanging parts are mapped; empty if that is
// not to be known.
func programRanges() [][2]uintptr {
	ranges := [][2]uintptr{}
	self, err := os.Executable()
	if err != nil {
		return ranges
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return ranges
	}
	defer func() { _ = maps.Close() }()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		// 00400000-00a3f000 r-xp 00000000 fe:00 1234   /usr/local/bin/dray
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[5] != self || strings.Contains(fields[1], "w") {
			continue
		}
		var r [2]uintptr
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &r[0], &r[1]); err == nil {
			ranges = append(ranges, r)
		}
	}
	return ranges
}

// trimming is next, with the program's pages let go of while there are events. Nil is
// no next.
func trimming(next func(dray.Event)) func(dray.Event) {
	program.drop() // what start-up touched is more than a pull ever has at once
	program.pulling()
	return func(e dray.Event) {
		program.pulling()
		if next != nil {
			next(e)
		}
	}
}
