package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"dray/internal/layer"
)

var (
	// ErrNoXattrs means that the file system below the root cannot hold an
	// xattr that is needed.
	ErrNoXattrs = errors.New("file system does not support extended attributes")

	// ErrKernel means that the kernel, or a filter before it, refuses openat2,
	// without which names cannot be confined.
	ErrKernel = errors.New("openat2 is not available (Linux 5.6 or later is needed)")
)

// Form says how whiteouts and opaque directories are written.
type Form uint8

const (
	// Trusted is what overlayfs reads by default: character devices 0:0 and
	// trusted.overlay.opaque. It needs CAP_SYS_ADMIN.
	Trusted Form = iota

	// User is what overlayfs reads with its option userxattr: character devices
	// 0:0, which need no capability, and user.overlay.opaque. Where devices are
	// refused, empty files with user.overlay.whiteout (Linux 6.7).
	User
)

// Options of [Apply]. The zero value is for root.
type Options struct {
	Whiteouts Form

	// UserNS says that the process is root in a user namespace only. Devices,
	// trusted.* and most security.* xattrs, which nobody can make there, are
	// left out and counted. Otherwise they are errors.
	UserNS bool

	// IgnoreChownErrors keeps files whose owner is not mapped in the user
	// namespace, with the namespace's root as owner, and counts them.
	IgnoreChownErrors bool

	// Journal receives a record of everything made; nil for none. It is not
	// closed. The form is documented at [JournalMagic].
	Journal io.Writer

	// ContentHash names the checksum of files in the journal: [CRC32C], which
	// "" stands for, or [SHA256].
	ContentHash string

	// Cache is what files may fill of the page cache; nil: as much as they like. Small
	// and sparse ones do not count, and stay.
	Cache *PageCache

	// Log receives one warning if the result is not exact; nil discards it.
	Log *slog.Logger
}

// BlockBytes is the block of the common file systems, for [Result].DiskBytes.
const BlockBytes = 4096

// Result counts what [Apply] did.
type Result struct {
	Entries   int64 // of the tar
	Files     int64
	Dirs      int64 // those with an entry
	Symlinks  int64
	HardLinks int64
	Devices   int64
	FIFOs     int64

	FileBytes   int64 // sizes of files
	StoredBytes int64 // what was written for them: less where they are sparse
	DiskBytes   int64 // the same and directories in blocks of [BlockBytes], before compression or sharing by the file system

	Whiteouts    int64 // names hidden from lower layers
	OpaqueDirs   int64 // opaque marks set
	OpaqueRoot   bool  // the root is opaque: overlayfs does not heed that, so lower layers must not be mounted below
	ImplicitDirs int64 // parents without an entry: they hide the attributes that lower layers give them
	Replaced     int64 // entries that took the place of an earlier one
	AUFSIgnored  int64 // AUFS's bookkeeping

	// What is not as the image says.
	OverlayXattrsDropped int64 // trusted.overlay.* and user.overlay.*: on purpose
	XattrsImpossible     int64 // Linux has no place for them
	XattrsDenied         int64 // not allowed in the user namespace
	DevicesOmitted       int64 // not allowed in the user namespace
	OwnersIgnored        int64 // not mapped in the user namespace
	TimesClamped         int64 // beyond what the file system can store
}

// Exact tells whether all is as the image says, but for what is never taken
// from an image.
func (r *Result) Exact() bool {
	return r.XattrsImpossible+r.XattrsDenied+r.DevicesOmitted+r.OwnersIgnored+r.TimesClamped == 0
}

// LogValue implements [slog.LogValuer]: what is not as the image says.
func (r *Result) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Int64("xattrs_impossible", r.XattrsImpossible),
		slog.Int64("xattrs_denied", r.XattrsDenied),
		slog.Int64("devices_omitted", r.DevicesOmitted),
		slog.Int64("owners_ignored", r.OwnersIgnored),
		slog.Int64("times_clamped", r.TimesClamped),
	)
}

// applier is one run of [Apply].
type applier struct {
	dirs
	o       Options
	tar     *layer.Tar
	journal *journal // nil for none
	filler  *filler  // nil on one core
	leaving leaving
	result  Result

	uid, gid  uint32 // whose new files are
	umask     uint32
	xwhiteout bool // devices 0:0 are refused: whiteouts are xattrs
	fractions bool // the file system has stored a fraction of a second
}

// Apply makes the entries of t below root, which must be empty and not used by
// anybody else, and sets root's own attributes. It returns at t's end, of which
// the caller then reads the rest with [layer.Tar.Drain]. After an error, or
// cancellation, which is looked at between entries and parts of files, what was
// made stays for the caller to remove. Root stays open.
//
// Errors: those of t, [ErrNoXattrs], [ErrKernel], the kernel's ([unix.Errno]),
// wrapped with the entry's name, and the cause of ctx.
func Apply(ctx context.Context, root *os.File, t *layer.Tar, o Options) (Result, error) {
	a := &applier{o: o, tar: t, uid: uint32(unix.Geteuid()), gid: uint32(unix.Getegid()), umask: readUmask()}
	return a.applyAll(ctx, root)
}

func (a *applier) applyAll(ctx context.Context, root *os.File) (Result, error) {
	var err error
	if a.o.Journal != nil {
		if a.journal, err = newJournal(a.o.Journal, a.o.ContentHash); err != nil {
			return a.result, err
		}
	}
	if err = a.openRoot(root); err == nil {
		err = a.runAll(ctx)
	}
	err = errors.Join(err, a.closeAll())
	if a.journal != nil && err == nil {
		err = a.journal.close()
	}
	if err == nil && !a.result.Exact() && a.o.Log != nil {
		a.o.Log.LogAttrs(ctx, slog.LevelWarn, "layer could not be applied exactly", slog.Any("inexact", &a.result))
	}
	return a.result, err
}

// runAll is run, with a filler beside it where there is a core for it, until all files
// are closed.
func (a *applier) runAll(ctx context.Context) error {
	if runtime.GOMAXPROCS(0) == 1 {
		return errors.Join(a.run(ctx), a.leaving.close())
	}
	a.filler = newFiller()
	err := a.run(ctx)
	return errors.Join(err, a.filler.close(), a.leaving.close())
}

func (a *applier) run(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, err := a.tar.Next()
		if err == io.EOF { //nolint:errorlint // the tar's own mark of its end
			return nil
		}
		if err != nil {
			return err
		}
		a.result.Entries++
		if err := a.apply(ctx, e); err != nil {
			return fmt.Errorf("apply %s %q: %w", e.Type, e.Name, err)
		}
	}
}

// apply makes one entry.
func (a *applier) apply(ctx context.Context, e *layer.Entry) error {
	name := cleanName(e.Name)
	if strings.Contains(name, whiteoutPrefix) {
		if done, err := a.whiteout(e, name); done || err != nil {
			return err
		}
	}
	if name == "" {
		if e.Type != layer.Dir {
			return fmt.Errorf("the root must be a directory: %w", layer.ErrFormat)
		}
		return a.rootEntry(e)
	}
	parent, base := split(name)
	d, err := a.dir(parent)
	if err != nil {
		return err
	}
	switch e.Type {
	case layer.Reg:
		return a.file(ctx, d, base, e)
	case layer.Dir:
		return a.directory(d, base, e)
	case layer.Symlink:
		return a.symlink(d, base, e)
	case layer.HardLink:
		return a.hardLink(d, base, e)
	case layer.Char, layer.Block, layer.FIFO:
		return a.node(d, base, e)
	}
	panic(fmt.Sprintf("apply: internal error: entry of type %s", e.Type))
}

// cleanName returns name as if below a root, without a slash at either end; ""
// is the root.
func cleanName(name string) string {
	name = strings.Trim(strings.TrimPrefix(name, "./"), "/")
	for rest := name; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if part == "" || part == "." || part == ".." {
			return cleanPath(name)
		}
	}
	return name
}

func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}
