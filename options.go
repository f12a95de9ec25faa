package dray

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"dray/internal/oci"
	"dray/internal/progress"
	"dray/internal/registry"
)

// rootStore is where the store of the system is.
const rootStore = "/var/lib/dray"

// Options of a [Client]. The zero value of each field is a good default.
type Options struct {
	Store    string // directory; "": [DefaultStore]
	ReadOnly bool   // never write: what is there can be inspected

	Platform string // "os/arch[/variant]"; "": this machine's

	AuthFiles          []string                              // credentials; nil: where docker, podman and skopeo keep them
	CertDirs           []string                              // certificates in the layout of certs.d; nil: the usual places
	CAs                []byte                                // authorities beside the system's, PEM
	Hosts              []Host                                // settings of single registries: mirrors, CAs, credentials
	SearchRegistries   []string                              // hosts that complete names without one, in order; nil: docker.io
	PlainHTTP          bool                                  // HTTP for every registry
	InsecureSkipVerify bool                                  // any certificate will do
	Proxy              func(*http.Request) (*url.URL, error) // nil: as the environment says

	// Seeds are what is there before anyone pulls: directories and files that "dray
	// store seed" made, stores, OCI image layouts. nil: /usr/share/dray/seed and
	// /var/lib/dray/seeds/*, as far as they exist; empty: none. What is in TrustedSeeds
	// is believed without being hashed: it lies where only a trusted party can write.
	Seeds        []string
	TrustedSeeds []string
	ForeignDisks bool // whoever provides this machine's disks is not trusted, as a confidential guest's host

	Layout Layout // how new layers are stored; "": [LayoutAuto]

	// Reuse takes files that the store has from there when a seekable layer is pulled
	// (eStargz, zstd:chunked), see [ReuseFiles]; nil: every layer is fetched whole.
	Reuse *Reuse

	MaxLayerBytes int64 // uncompressed size of one layer; 0: [layer.DefaultMaxBytes]
	MaxEntries    int64 // files of one layer; 0: [layer.DefaultMaxEntries]

	Workers int           // layers in flight at once; 0: one per CPU
	Memory  int64         // bytes that buffers may take together; 0: what the workers need
	Linger  time.Duration // how long a layer goes on when nobody waits for it any more; 0: not at all
	Sync    SyncMode      // when what was pulled is made safe from power loss; zero: before Pull returns

	Log *slog.Logger // nil: silence
}

// Host is what is special about a registry.
type Host = registry.Host

// Event is one step of a pull, a conversion or a copy.
type Event = progress.Event

// SyncMode says when what was pulled is made safe from power loss.
type SyncMode uint8

// Modes of syncing, those of the engine.
const (
	SyncBefore SyncMode = iota // before Pull returns
	SyncAfter                  // in the background; Close waits for it
	SyncNever                  // when the kernel pleases
)

// Digest names stored bytes.
type Digest = oci.Digest

// Layout says how layers are stored.
type Layout string

// Layouts.
const (
	LayoutAuto  Layout = "auto"  // [LayoutEROFS] where the kernel takes it, else [LayoutDir]
	LayoutDir   Layout = "dir"   // unpacked
	LayoutEROFS Layout = "erofs" // the tar as it came, and an EROFS image that points into it
)

// ErrLayout reports a layout that does not exist, or that is not possible here.
var ErrLayout = errors.New("layout is not possible")

func (l Layout) check() error {
	switch l {
	case "", LayoutAuto, LayoutDir, LayoutEROFS:
		return nil
	}
	return fmt.Errorf("%w: %q: want auto, dir or erofs", ErrLayout, string(l))
}

// DefaultStore returns the store's usual place: /var/lib/dray for root, else
// dray in the user's data directory.
func DefaultStore() string {
	if systemWide() {
		return rootStore
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "dray")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return rootStore
	}
	return filepath.Join(home, ".local", "share", "dray")
}
