package bench

import (
	"context"
	"net"
	"sync/atomic"
)

// BuildRecipe builds one image of generated layers.
func BuildRecipe(ctx context.Context, dir, name string, layers int, sizeBytes int64) (*Corpus, error) {
	c := &Corpus{Version: corpusVersion, dir: dir}
	b := &builder{corpus: c, say: func(string, ...any) {}}
	return c, b.image(ctx, recipe{name: name, about: "generated", layers: fillers(layers, sizeBytes)})
}

// Shape returns a listener with the network's properties, and its count of bytes.
func Shape(l net.Listener, n Network) (net.Listener, *atomic.Int64) {
	c := &counters{}
	return newShapedListener(l, n, c), &c.bytes
}

// ServerRival is a rival that is a server of that command line.
func ServerRival(name string, argv ...string) *Rival {
	return &Rival{
		Name: name, Kind: "imagepuller", server: func(*site) []string { return argv }, ready: listening, ask: pullByService(bareReference),
	}
}

var (
	ParseURIs = parseURIs
	Merged    = merge
	DiskUsage = diskUsage
	Sweep     = sweep
)

// Wanted is what apt is asked for, given the name of a package's file.
func Wanted(name string) (string, error) { return debPackage{name}.wanted() }
