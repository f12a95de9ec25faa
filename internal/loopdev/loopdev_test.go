package loopdev_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"dray/internal/loopdev"
	"dray/internal/testkit"
)

// Everybody who wants a device at once gets one of his own, over his own file.
func TestAttachAtOnce(t *testing.T) {
	testkit.Need(t, testkit.Root())
	const count = 8
	var wait sync.WaitGroup
	for n := range count {
		wait.Go(func() {
			if err := writeAndRead(t.TempDir(), byte('a'+n)); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}

// writeAndRead writes through a device, and finds it in the file; a device that is
// read-only refuses.
func writeAndRead(dir string, letter byte) error {
	const size = 1 << 20
	name := filepath.Join(dir, "file")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(size); err != nil {
		return err
	}
	loop, err := loopdev.Attach(int(f.Fd()), 0, 0)
	if err != nil {
		return err
	}
	_, err = loop.WriteAt([]byte{letter}, 5000)
	if err := errors.Join(err, loop.Sync(), loop.Close()); err != nil {
		return err
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if raw[5000] != letter {
		return errors.New("the file does not have what was written")
	}
	if loop, err = loopdev.Attach(int(f.Fd()), 4096, unix.LO_FLAGS_READ_ONLY); err != nil {
		return err
	}
	defer func() { _ = loop.Close() }()
	if block, err := unix.IoctlGetInt(int(loop.Fd()), unix.BLKSSZGET); err != nil || block != 4096 {
		return errors.Join(errors.New("the device has other sectors"), err)
	}
	if _, err := loop.WriteAt([]byte{letter}, 0); err == nil {
		return errors.New("what is read-only was written")
	}
	return nil
}
