package apply

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What a [Bulk] reserves, writes out and drops at once, and how many of these lie
// between what is written out and what is dropped, so that the disk has had its time.
const (
	bulkStepBytes = 8 << 20
	bulkSteps     = 8
)

// Bulk writes a large new file from its start to its end.
//
// Its space is reserved ahead: writing then takes the kernel a third less time than
// when it looks for each block, and what is written at once to several files lies
// together.
//
// What the [PageCache] has no room for is written out at once, and leaves the cache
// once it is on the disk. The next bytes get the pages that it had. That keeps the
// cache of the machine for others, and a virtual machine from getting all its memory from
// its host anew, which takes several times as long as the copy (docs/bench.md). What stays
// is written out as well where the cache says so ([NewPageCache]).
type Bulk struct {
	fd       int
	cache    *PageCache
	size     int64 // what the file will have, 0: not known
	at       int64 // where the next byte goes
	reserved int64 // what has its place on the disk
	stepped  int64 // the end of the last whole step that was looked at
	cached   int64 // the end of those that stay in the cache
	dropping bool  // the cache has no room for more
	bare     bool  // nothing can be reserved here
}

// NewBulk returns a writer to fd, which is empty and at its start. size is what the
// file will have; 0 if that is not known. Without a cache, all stays in memory as long as the
// kernel keeps it.
func NewBulk(fd int, size int64, cache *PageCache) *Bulk {
	return &Bulk{fd: fd, cache: cache, size: size}
}

// Write implements [io.Writer].
func (b *Bulk) Write(p []byte) (int, error) {
	b.reserve(int64(len(p)))
	if err := writeAll(b.fd, p); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	b.at += int64(len(p))
	for b.stepped+bulkStepBytes <= b.at {
		if err := b.step(); err != nil {
			return 0, fmt.Errorf("write: %w", err)
		}
	}
	return len(p), nil
}

// reserve makes room for the next n bytes. Without it they are written as well, and
// what is the matter is told then.
func (b *Bulk) reserve(n int64) {
	small := max(b.size, b.at) < bulkStepBytes // reserving would cost more than it gains
	if small || b.bare || b.at+n <= b.reserved {
		return
	}
	length := max(n, bulkStepBytes)
	if b.size > 0 {
		length = min(length, b.size-b.at)
	}
	if length < n || unix.Fallocate(b.fd, 0, b.at, length) != nil {
		b.bare = true
		return
	}
	b.reserved = b.at + length
}

// step decides about the whole step that was written last.
func (b *Bulk) step() error {
	from := b.stepped
	b.stepped += bulkStepBytes
	b.dropping = b.dropping || !b.cache.take(bulkStepBytes)
	if !b.dropping {
		b.cached = b.stepped
	}
	if b.dropping || b.cache.writesEarly() {
		if err := b.writeOut(from, bulkStepBytes, unix.SYNC_FILE_RANGE_WRITE); err != nil {
			return err
		}
	}
	old := from - bulkSteps*bulkStepBytes
	if !b.dropping || old < b.cached {
		return nil
	}
	if err := b.writeOut(old, bulkStepBytes, unix.SYNC_FILE_RANGE_WAIT_BEFORE); err != nil {
		return err
	}
	_ = unix.Fadvise(b.fd, old, bulkStepBytes, unix.FADV_DONTNEED) // an advice
	return nil
}

// writeOut is sync_file_range(2).
func (b *Bulk) writeOut(from, length int64, flags int) error {
	possible, err := writeOut(b.fd, from, length, flags)
	if err == nil && !possible {
		b.cache, b.dropping = nil, false
	}
	return err
}

// leaves tells of a file that is complete whether it is to leave the page cache.
func (b *Bulk) leaves() bool {
	if rest := b.at - b.stepped; b.at >= leavesFrom && !b.dropping && rest > 0 {
		b.dropping = !b.cache.take(rest)
	}
	return b.dropping
}

// Close takes back what was reserved and not written. The file stays open.
func (b *Bulk) Close() error {
	if b.reserved > b.at {
		if err := unix.Ftruncate(b.fd, b.at); err != nil {
			return fmt.Errorf("set size to %d: %w", b.at, err)
		}
	}
	if rest := b.at - b.stepped; b.cache.writesEarly() && rest > 0 && b.at >= leavesFrom {
		if err := b.writeOut(b.stepped, rest, unix.SYNC_FILE_RANGE_WRITE); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

// PageCache is how much of what one pull writes may stay in the page cache. Many
// may use it at once. nil is without a limit.
type PageCache struct {
	left  atomic.Int64
	early bool
}

// cacheShare is the part of the memory that is available which one pull may fill.
const cacheShare = 8

// tooLargeShare is the part of that which a pull has that does not fit.
const tooLargeShare = 4

// NewPageCache returns the eighth of the memory that is available now (MemAvailable,
// proc(5)); no limit where that is not known. Early has what stays written out as soon as
// it is complete, for a pull that waits until all is on the disk: that is then done while
// it still inflates. Files below 256 KiB are left to the kernel.
func NewPageCache(early bool) *PageCache {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return nil
			}
			return PageCacheOf(kib<<10/cacheShare, early)
		}
	}
	return nil
}

// PageCacheOf is [NewPageCache] of a given size.
func PageCacheOf(bytes int64, early bool) *PageCache {
	c := &PageCache{early: early}
	c.left.Store(bytes)
	return c
}

// Room returns how many bytes may still stay.
func (c *PageCache) Room() int64 {
	if c == nil {
		return math.MaxInt64
	}
	return max(0, c.left.Load())
}

// Share deals out the room to files by the sizes that they are expected to have. Where
// there is not enough for all there is a quarter of it: what would stay of so much is a
// guess, and new memory is dear (docs/bench.md). The room belongs to the smallest,
// together, as far as they fit; the first that does not fit has what they leave, and the
// larger ones have none: whichever is written first, the large ones do not push out the
// small.
func (c *PageCache) Share(sizes []int64) []*PageCache {
	shares := make([]*PageCache, len(sizes))
	if c == nil {
		return shares
	}
	order := make([]int, len(sizes))
	var sum int64
	for i := range order {
		order[i] = i
		sum += max(0, sizes[i])
	}
	if room := c.Room(); sum > room {
		c.left.Add(room/tooLargeShare - room)
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(sizes[i], sizes[j]) })
	fits := true
	left := c.Room()
	for _, i := range order {
		switch {
		case fits && sizes[i] <= left:
			shares[i] = c
			left -= max(0, sizes[i])
		case fits:
			fits = false
			shares[i] = PageCacheOf(left, c.early)
			c.left.Add(-left)
		default:
			shares[i] = PageCacheOf(0, c.early)
		}
	}
	return shares
}

func (c *PageCache) writesEarly() bool { return c != nil && c.early }

// take tells whether n more bytes may stay.
func (c *PageCache) take(n int64) bool {
	return c == nil || c.left.Add(-n) >= 0
}
