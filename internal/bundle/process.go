package bundle

import (
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"dray/internal/oci"
)

func process(config *oci.ImageConfig, rootfs *os.File, o *Options) (*specs.Process, error) {
	args := arguments(config, o)
	if len(args) == 0 {
		return nil, ErrNoCommand
	}
	cwd, err := workingDir(config, o)
	if err != nil {
		return nil, err
	}
	who := config.User
	if o.User != "" {
		who = o.User
	}
	found, err := lookUpUser(rootfs, who, o)
	if err != nil {
		return nil, err
	}
	env, err := environment(config, found.home, o)
	if err != nil {
		return nil, err
	}
	caps := &specs.LinuxCapabilities{Bounding: capabilities()}
	if found.user.UID == 0 {
		caps.Effective, caps.Permitted = capabilities(), capabilities()
	}
	var size *specs.Box
	if o.Terminal && o.Rows > 0 && o.Columns > 0 {
		size = &specs.Box{Height: o.Rows, Width: o.Columns}
	}
	return &specs.Process{
		ConsoleSize:  size,
		Terminal:     o.Terminal,
		User:         found.user,
		Args:         args,
		Env:          env,
		Cwd:          cwd,
		Capabilities: caps,
	}, nil
}

// arguments joins entry point and command. An entry point of the user's makes the
// image's Cmd, which was written for another program, meaningless.
func arguments(config *oci.ImageConfig, o *Options) []string {
	entrypoint, cmd := config.Entrypoint, config.Cmd
	if o.Entrypoint != nil {
		entrypoint, cmd = *o.Entrypoint, nil
	}
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		entrypoint = nil
	}
	if len(o.Args) > 0 {
		cmd = o.Args
	}
	return slices.Concat(entrypoint, cmd)
}

func workingDir(config *oci.ImageConfig, o *Options) (string, error) {
	dir := config.WorkingDir
	if o.WorkingDir != "" {
		if dir = o.WorkingDir; !path.IsAbs(dir) {
			return "", fmt.Errorf("set working directory %q: not an absolute path: %w", dir, ErrOption)
		}
	}
	if strings.ContainsRune(dir, 0) {
		return "", fmt.Errorf("set working directory %q: name has a zero byte: %w", dir, ErrOption)
	}
	return path.Join("/", dir), nil
}

// environment returns the image's variables, changed by the user's, with those
// added that every process expects. The last of several values of a key counts;
// keys keep the place of their first.
func environment(config *oci.ImageConfig, home string, o *Options) ([]string, error) {
	var env variables
	for _, entry := range config.Env {
		key, value, ok := strings.Cut(entry, "=")
		if !ok || key == "" || strings.ContainsRune(entry, 0) {
			o.Log.Warn("environment variable of the image left out", slog.String("entry", entry))
			continue
		}
		env.set(key, value)
	}
	for _, entry := range o.Env {
		key, value, ok := strings.Cut(entry, "=")
		if key == "" || strings.ContainsRune(entry, 0) {
			return nil, fmt.Errorf("set environment variable %q: want KEY=VALUE or KEY: %w", entry, ErrOption)
		}
		if !ok {
			if value, ok = os.LookupEnv(key); !ok {
				env.remove(key)
				continue
			}
		}
		env.set(key, value)
	}
	env.setDefault("PATH", defaultPath)
	if o.Hostname != "" {
		env.setDefault("HOSTNAME", o.Hostname)
	}
	if o.Terminal {
		env.setDefault("TERM", "xterm")
	}
	env.setDefault("HOME", home)
	return env, nil
}

// variables are KEY=VALUE entries, each key once.
type variables []string

func (v variables) index(key string) int {
	return slices.IndexFunc(v, func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return name == key
	})
}

func (v *variables) set(key, value string) {
	if i := v.index(key); i >= 0 {
		(*v)[i] = key + "=" + value
		return
	}
	*v = append(*v, key+"="+value)
}

func (v *variables) setDefault(key, value string) {
	if v.index(key) < 0 {
		v.set(key, value)
	}
}

func (v *variables) remove(key string) {
	if i := v.index(key); i >= 0 {
		*v = slices.Delete(*v, i, i+1)
	}
}
