package apply

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What is under way to the disk at once, and the least that a file has which is sent
// there: each takes three calls, and smaller ones are most files with few of the bytes.
const (
	leavingFiles = 32
	leavingBytes = bulkSteps * bulkStepBytes
	leavesFrom   = 256 << 10
)

// leaving holds the files that have no room in the [PageCache] while the disk writes
// them, and drops them from there when it has.
type leaving struct {
	files []leavingFile // the oldest first
	bytes int64         // of all of them
}

type leavingFile struct {
	fd   int
	name string // of its entry, for errors
	size int64
}

// add takes over a file that is complete, to close it later.
func (l *leaving) add(fd int, name string, size int64) error {
	l.files = append(l.files, leavingFile{fd, name, size})
	l.bytes += size
	if _, err := writeOut(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	for len(l.files) > leavingFiles || l.bytes > leavingBytes {
		if err := l.drop(); err != nil {
			return err
		}
	}
	return nil
}

// drop waits for the oldest, takes it from the page cache and closes it.
func (l *leaving) drop() error {
	f := l.files[0]
	l.files = l.files[:copy(l.files, l.files[1:])]
	l.bytes -= f.size
	_, err := writeOut(f.fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
	if err == nil {
		_ = unix.Fadvise(f.fd, 0, 0, unix.FADV_DONTNEED) // an advice
	}
	if err = errors.Join(err, unix.Close(f.fd)); err != nil {
		return fmt.Errorf("write %q: %w", f.name, err)
	}
	return nil
}

// close drops all.
func (l *leaving) close() error {
	var err error
	for len(l.files) > 0 {
		err = errors.Join(err, l.drop())
	}
	return err
}

// writeOut is sync_file_range(2); a length of 0 is to the end. It makes nothing durable:
// that is for whoever syncs the file system. It tells whether that is possible here.
func writeOut(fd int, from, length int64, flags int) (bool, error) {
	for {
		err := unix.SyncFileRange(fd, from, length, flags)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			return false, nil
		default:
			return err == nil, err
		}
	}
}
