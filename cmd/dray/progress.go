package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"dray"
	"dray/cmd/internal/cli"
	"dray/internal/progress"
)

// newProgress returns the display that kind names.
func newProgress(kind string, w io.Writer) (cli.Progress, error) {
	if kind == "auto" {
		kind = "plain"
		if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			kind = "tty"
		}
	}
	switch kind {
	case "tty":
		return &bars{progress: mpb.New(mpb.WithOutput(w), mpb.WithWidth(48), mpb.WithRefreshRate(100*time.Millisecond)), layers: map[dray.Digest]*mpb.Bar{}}, nil
	case "plain":
		return &lines{w: w, last: time.Now(), layers: map[dray.Digest]dray.Event{}}, nil
	case "json":
		return &events{encoder: json.NewEncoder(w)}, nil
	}
	return nil, fmt.Errorf("--progress %q: want auto, tty, plain, json or none", kind)
}

// bars draws one bar per layer.
type bars struct {
	progress *mpb.Progress

	mu     sync.Mutex // guards layers
	layers map[dray.Digest]*mpb.Bar
}

// Event implements [cli.Progress].
func (b *bars) Event(e dray.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	bar := b.layers[e.Digest]
	if bar == nil {
		name := fmt.Sprintf("%2d/%d %.19s", e.Layer+1, e.Layers, e.Digest)
		bar = b.progress.AddBar(e.TotalBytes,
			mpb.PrependDecorators(decor.Name(name, decor.WC{W: 28, C: decor.DindentRight})),
			mpb.AppendDecorators(
				decor.CountersKibiByte("% .1f / % .1f", decor.WC{W: 22}),
				decor.OnComplete(decor.AverageSpeed(decor.SizeB1024(0), " % .1f", decor.WC{W: 14}), " "),
				decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WC{W: 8}), " done"),
			))
		b.layers[e.Digest] = bar
	}
	switch e.State {
	case progress.Failed:
		bar.Abort(false)
	case progress.Done, progress.Present:
		bar.SetTotal(e.TotalBytes, false)
		bar.SetCurrent(e.TotalBytes)
		bar.SetTotal(-1, true)
	case progress.Waiting, progress.Fetching:
		// the last bytes are not yet a finished layer: verification comes after
		bar.SetCurrent(min(e.FetchedBytes, max(e.TotalBytes-1, 0)))
	}
}

// Close implements [cli.Progress].
func (b *bars) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, bar := range b.layers {
		bar.Abort(false) // no effect on finished ones
	}
	b.progress.Wait()
}

// lineEvery is how often plain progress says how far it is.
const lineEvery = 3 * time.Second

// lines prints a line when a layer ends and every few seconds.
type lines struct {
	mu     sync.Mutex // guards the fields below
	w      io.Writer
	last   time.Time
	layers map[dray.Digest]dray.Event
}

// Event implements [cli.Progress].
func (l *lines) Event(e dray.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.layers[e.Digest] = e
	switch e.State {
	case progress.Done, progress.Present, progress.Failed:
		_, _ = fmt.Fprintf(l.w, "layer %d/%d %.19s %s (%s)\n", e.Layer+1, e.Layers, e.Digest, e.State, cli.Size(e.TotalBytes))
	case progress.Waiting, progress.Fetching:
		if time.Since(l.last) < lineEvery {
			return
		}
		l.last = time.Now()
		var fetched, total int64
		for _, e := range l.layers {
			fetched += e.FetchedBytes
			total += e.TotalBytes
		}
		_, _ = fmt.Fprintf(l.w, "%s of %s fetched\n", cli.Size(fetched), cli.Size(total))
	}
}

// Close implements [cli.Progress].
func (l *lines) Close() {}

// events prints every event as a line of JSON.
type events struct {
	mu      sync.Mutex // guards encoder
	encoder *json.Encoder
}

// Event implements [cli.Progress].
func (p *events) Event(e dray.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.encoder.Encode(e) // a display that cannot be written to stops no pull
}

// Close implements [cli.Progress].
func (p *events) Close() {}
