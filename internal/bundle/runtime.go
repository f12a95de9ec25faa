package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"dray/internal/stream"
)

// ErrNoRuntime reports a machine without the wanted container runtime.
var ErrNoRuntime = errors.New("no container runtime")

// StartError reports a container whose process never ran.
type StartError struct {
	Runtime string // path of the runtime
	Message string // what the runtime said, one line
	Printed bool   // the runtime has said it on the container's standard error too
}

// Error returns what the runtime said.
func (e *StartError) Error() string {
	return fmt.Sprintf("start container with %s: %s", filepath.Base(e.Runtime), e.Message)
}

// FindRuntime returns the path of a runtime: name may be a path or be looked up
// in PATH; "" is runc, else crun. Errors wrap [ErrNoRuntime].
func FindRuntime(name string) (string, error) {
	candidates := []string{name}
	if name == "" {
		candidates = []string{"runc", "crun"}
	}
	for _, candidate := range candidates {
		if found, err := exec.LookPath(candidate); err == nil {
			return filepath.Abs(found)
		}
	}
	if name == "" {
		return "", fmt.Errorf("find runc or crun: install one of them (Debian, Ubuntu: apt install runc), or name another with --runtime: %w", ErrNoRuntime)
	}
	return "", fmt.Errorf("find %s: install it, or leave --runtime out for runc or crun: %w", name, ErrNoRuntime)
}

// isCrun tells whether the runtime at path takes crun's flags; all others take
// runc's.
func isCrun(path string) bool { return strings.Contains(filepath.Base(path), "crun") }

// globalFlags returns what stands before a runtime's command.
func globalFlags(runtime string, o *RunOptions) []string {
	var flags []string
	if o.Root != "" {
		flags = append(flags, "--root", o.Root)
	}
	if o.Rootless {
		if isCrun(runtime) {
			flags = append(flags, "--cgroup-manager=disabled")
		} else {
			flags = append(flags, "--rootless=true") // its own guess looks at $USER
		}
	}
	return flags
}

// runtimeEnv returns the caller's environment without what would make a runtime
// pass the caller's own sockets, from systemd, on to the container.
func runtimeEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(entry string) bool {
		key, _, _ := strings.Cut(entry, "=")
		return key == "NOTIFY_SOCKET" || strings.HasPrefix(key, "LISTEN_")
	})
}

// lastError returns the last error that a runtime wrote to its log of JSON lines,
// or "".
func lastError(path string) string {
	const maxLogBytes = 1 << 20
	f, err := os.Open(path) //nolint:gosec // a file that the runtime writes for us
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	// What was read before a limit or an error is still worth telling.
	content, _ := stream.ReadAll(f, maxLogBytes)
	last := ""
	for line := range strings.Lines(string(content)) {
		var entry struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Level == "error" && entry.Msg != "" {
			last = entry.Msg
		}
	}
	return last
}
