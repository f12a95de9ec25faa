package guest

import (
	"errors"
	"fmt"
	"os"

	"dray/internal/registry"
	"dray/internal/stream"
)

// ErrUnsupported reports a setting that is known, but that this version of dray
// cannot honour. Going on without it could accept what its author forbids.
var ErrUnsupported = errors.New("not supported by this version")

const maxConfigBytes = 1 << 20

// Config is what the configuration file of a predecessor says. Zero values mean
// that it says nothing.
type Config struct {
	// Store is the directory of the store, Sockets are addresses for
	// [Options].Listen.
	Store   string
	Sockets []string
	// AuthFiles, CAs and Hosts are for registry.Options.
	AuthFiles []string
	CAs       []byte // PEM
	Hosts     []registry.Host
	// SearchRegistries complete names without a host, in order.
	SearchRegistries []string
	// ExtraEnv has HTTP_PROXY, HTTPS_PROXY and NO_PROXY, if set.
	ExtraEnv map[string]string
	// MaxLayers is how many layers of an image may be pulled at once.
	MaxLayers int
	// RequireDigest refuses references without a digest, as imagepuller does.
	RequireDigest bool
	// Ignored names sections that do not concern images, sorted. Whoever loads
	// the file logs them once.
	Ignored []string
}

// ConfigError reports a file that [LoadConfig] does not take. It never quotes
// the file's values: some of them are secrets.
type ConfigError struct {
	Path string
	Line int    // 0 if unknown
	Key  string // "" if the file as a whole is meant
	Err  error
}

// Error returns path, line, key and cause.
func (e *ConfigError) Error() string {
	where := e.Path
	if e.Line > 0 {
		where = fmt.Sprintf("%s: line %d", where, e.Line)
	}
	if e.Key != "" {
		where = fmt.Sprintf("%s: key %s", where, e.Key)
	}
	return fmt.Sprintf("read config %s: %v", where, e.Err)
}

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

// LoadConfig reads an imagepuller.toml or the configuration file of the
// Confidential Data Hub, in TOML or JSON; it tells them apart by their sections.
// What concerns images is taken, or refused with a [*ConfigError] that names it;
// an error wraps [ErrUnsupported] if the key is known.
func LoadConfig(path string) (*Config, error) {
	text, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	return parseConfig(path, text)
}

func parseConfig(path, text string) (*Config, error) {
	d, err := newDocument(path, text)
	if err != nil {
		return nil, err
	}
	puller, hub := "", ""
	for _, name := range d.sections() {
		switch name {
		case "registries", "extra-env":
			puller = name
		default:
			hub = name
		}
	}
	switch {
	case puller != "" && hub != "":
		if !isHubSection(hub) {
			return nil, d.fail(errors.New("unknown to imagepuller"), hub)
		}
		return nil, d.fail(fmt.Errorf("belongs to the Hub's configuration, but %q to imagepuller's", puller), hub)
	case hub != "":
		return parseHub(d)
	default:
		return parsePuller(d)
	}
}

func readFile(path string) (string, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := stream.ReadAll(f, maxConfigBytes)
	return string(text), err
}
