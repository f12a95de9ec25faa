package bundle

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ConfigName is the file of a bundle that holds its configuration.
const ConfigName = "config.json"

// Write replaces dir/config.json in one step: readers see the old configuration
// or the new. dir and what its config.json was may be hostile: neither is
// followed when it is a symbolic link. The file is its owner's alone, because
// environments hold secrets. It is not synced: a bundle does not outlive its
// machine.
func Write(dir string, spec *specs.Spec) error {
	content, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return fmt.Errorf("encode bundle configuration: %w", err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open bundle: %w", &os.PathError{Op: "open", Path: dir, Err: err})
	}
	defer func() { _ = unix.Close(fd) }()
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return fmt.Errorf("open bundle %s: %w", dir, err)
	}
	defer func() { _ = root.Close() }()
	temp := ".tmp-" + rand.Text()
	err = root.WriteFile(temp, append(content, '\n'), 0o600)
	if err == nil {
		err = root.Rename(temp, ConfigName)
	}
	if err != nil {
		return fmt.Errorf("write %s of bundle %s: %w", ConfigName, dir, errors.Join(err, ignoreMissing(root.Remove(temp))))
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
