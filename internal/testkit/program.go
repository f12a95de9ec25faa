package testkit

import (
	"os"
	"syscall"
)

// WriteProgram writes an executable that the test starts afterwards. No child of this
// process is forked meanwhile: one would hold the file open for writing until it
// executes its own program, and starting the file failed with ETXTBSY.
func WriteProgram(path string, content []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, content, 0o755)
}
