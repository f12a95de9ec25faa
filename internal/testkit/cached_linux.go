package testkit

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Cached returns how many bytes of a file are in the page cache, counted in whole pages,
// between two offsets of which the first is a page's; 0 for the second is its end.
func Cached(t *testing.T, name string, from, to int64) int64 {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if to == 0 {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		to = info.Size()
	}
	mapped, err := unix.Mmap(int(f.Fd()), from, int(to-from), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mapped) }()
	page := os.Getpagesize()
	resident := make([]byte, (len(mapped)+page-1)/page)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(len(mapped)), uintptr(unsafe.Pointer(&resident[0]))); errno != 0 {
		t.Fatal(errno)
	}
	var pages int64
	for _, r := range resident {
		pages += int64(r & 1)
	}
	return pages * int64(page)
}

// Dirty returns how many bytes of a file are in the page cache, counted in whole pages,
// and neither on the disk nor on their way there.
func Dirty(t *testing.T, f *os.File) int64 {
	t.Helper()
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &stat, 0)
	if errors.Is(err, unix.ENOSYS) {
		Lacking(t, "cachestat", "Linux 6.5 has it")
	}
	if err != nil {
		t.Fatal(err)
	}
	return int64(stat.Dirty) * int64(os.Getpagesize())
}
