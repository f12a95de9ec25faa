package bundle

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"dray/internal/oci"
)

// RootfsName is the directory of a bundle that holds its root file system.
const RootfsName = "rootfs"

// specVersion is the oldest runtime specification that has all that is used
// here, so that older runtimes take the bundle too.
const specVersion = "1.0.2"

// Errors that callers tell apart.
var (
	// ErrNoCommand reports an image that says nothing about what to run.
	ErrNoCommand = errors.New("image has no command: give one after --")
	// ErrPlatform reports an image for another operating system.
	ErrPlatform = errors.New("not an image for linux")
	// ErrOption reports an [Options] value that means nothing.
	ErrOption = errors.New("invalid option")
	// ErrUser reports a user or group that the image does not have, or that the
	// user namespace cannot hold.
	ErrUser = errors.New("unknown user")
)

// NetMode says which network a container sees.
type NetMode uint8

// Network modes.
const (
	NetHost NetMode = iota // the caller's network, with its resolv.conf and hosts
	NetNone                // its own, with a loopback interface only
)

// ParseNetMode reads "host" or "none". Errors wrap [ErrOption].
func ParseNetMode(s string) (NetMode, error) {
	switch s {
	case "host":
		return NetHost, nil
	case "none":
		return NetNone, nil
	}
	return 0, fmt.Errorf("parse network %q: want host or none: %w", s, ErrOption)
}

// String returns the word that [ParseNetMode] reads.
func (m NetMode) String() string {
	if m == NetNone {
		return "none"
	}
	return "host"
}

// Options are what a user may change about an image's container. The zero value
// changes nothing.
type Options struct {
	Args        []string          // replaces the image's Cmd; empty keeps it
	Entrypoint  *[]string         // replaces Entrypoint and drops Cmd; empty or one empty string means none
	Env         []string          // KEY=VALUE, or KEY: taken from the caller's environment, removed where that has none
	Mounts      []Mount           // in any order; parents are mounted before what is below them
	WorkingDir  string            // absolute; "" is the image's, or /
	User        string            // user[:group], names or numbers; "" is the image's, or root
	Hostname    string            // "" keeps the caller's host name
	Terminal    bool              // standard streams are a pseudo terminal
	Rows        uint              // of the terminal at first; 0 is the runtime's choice
	Columns     uint              // as Rows
	Net         NetMode           // the zero value is NetHost
	Annotations map[string]string // added to the image's, and win over them
	CgroupsPath string            // absolute; "" is the runtime's choice; not used by Rootless

	ReadonlyRootfs bool // the container cannot write its root file system

	// Rootless says that the caller is root of a user namespace only. UIDs and
	// GIDs are the IDs that exist there; nil reads the caller's own.
	Rootless   bool
	UIDs, GIDs []IDRange

	Log *slog.Logger // told what of the image is left out; nil discards
}

// Spec returns the runtime configuration of a container of image. rootfs is its
// root file system, opened as a directory; it is read, never written. Errors wrap
// one of this package's, or are those of reading rootfs.
func Spec(image *oci.Image, rootfs *os.File, o Options) (*specs.Spec, error) {
	if image.OS != "" && image.OS != "linux" {
		return nil, fmt.Errorf("make bundle: image is for %q: %w", image.OS, ErrPlatform)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Rootless {
		if err := o.fillIDs(); err != nil {
			return nil, fmt.Errorf("make bundle: %w", err)
		}
	}
	process, err := process(&image.Config, rootfs, &o)
	if err != nil {
		return nil, fmt.Errorf("make bundle: %w", err)
	}
	mounts, err := mounts(&image.Config, rootfs, &o)
	if err != nil {
		return nil, fmt.Errorf("make bundle: %w", err)
	}
	spec := &specs.Spec{
		Version:     specVersion,
		Process:     process,
		Root:        &specs.Root{Path: RootfsName, Readonly: o.ReadonlyRootfs},
		Hostname:    o.Hostname,
		Mounts:      mounts,
		Annotations: annotations(image, &o),
		Linux:       linux(&o),
	}
	if spec.Linux.Seccomp, err = seccompFilter(spec); err != nil {
		return nil, fmt.Errorf("make bundle: %w", err)
	}
	return spec, nil
}

func linux(o *Options) *specs.Linux {
	l := &specs.Linux{
		MaskedPaths:   maskedPaths(),
		ReadonlyPaths: readonlyPaths(),
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace},
			{Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace},
			{Type: specs.MountNamespace},
			{Type: specs.CgroupNamespace},
		},
	}
	if o.Net == NetNone {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	if !o.Rootless {
		l.CgroupsPath = o.CgroupsPath
		// Runtimes add the devices that every container has.
		l.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	}
	return l
}
