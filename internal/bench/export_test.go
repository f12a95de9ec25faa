//go:build linux

package bench

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// ServerRival is a rival that is a server of that command line, {socket} replaced.
func ServerRival(name string, argv ...string) *Rival {
	return &Rival{
		Name: name, Kind: "other", driver: driver{ready: listening, ask: pullByService(bareReference), server: func(s *site) []string {
			words := slices.Clone(argv)
			for i := range words {
				words[i] = strings.ReplaceAll(words[i], "{socket}", s.socket)
			}
			return words
		}},
	}
}

var (
	ParseURIs = parseURIs
	Merged    = merge
	DiskUsage = diskUsage
	Sweep     = sweep
	KillAll   = killAll
)

// PeakWithoutSamples returns the most memory that a run knows of after its one program,
// argv with a script, which waits until it has been started, has ended.
func PeakWithoutSamples(dir string, argv ...string) (int64, error) {
	family, err := newFamily()
	if err != nil {
		return 0, err
	}
	s := &site{dir: dir, state: dir, groups: &groups{}, family: family}
	started := filepath.Join(dir, "started")
	p, err := s.start(append(argv, "until test -e "+started+"; do :; done"))
	if err != nil {
		return 0, errors.Join(err, family.close())
	}
	err = os.WriteFile(started, nil, 0o600)
	<-p.ended
	p.close()
	m := &sampler{site: s, every: 1}
	m.sample()
	return m.peakProcess, errors.Join(err, p.err, family.close())
}

// Wanted is what apt is asked for, given the name of a package's file.
func Wanted(name string) (string, error) { return debPackage{name}.wanted() }

// Groups are control groups below another root.
type Groups struct{ *groups }

// NewGroups makes groups below root.
func NewGroups(root, id string, memoryLimit int64) (Groups, error) {
	g, err := newGroupsIn(root, id, memoryLimit)
	return Groups{g}, err
}

func (g Groups) Version() int                   { return g.version }
func (g Groups) JoinFiles() []string            { return g.joinFiles() }
func (g Groups) Processes() []int               { return g.processes() }
func (g Groups) Peak() int64                    { return g.peakBytes() }
func (g Groups) Anonymous() int64               { return g.anonymousBytes() }
func (g Groups) OOMKills() int64                { return g.oomKills() }
func (g Groups) CPUSeconds() float64            { return g.cpuSeconds() }
func (g Groups) Lacks() string                  { return g.lacks() }
func (g Groups) Remove() error                  { return g.remove() }
func (g Groups) Kill(ctx context.Context) error { return killAll(ctx, g.processes) }
