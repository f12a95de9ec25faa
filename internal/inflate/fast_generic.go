//go:build noasm || !amd64

package inflate

// hasLoops reports whether there is assembly to run.
func hasLoops() bool { return false }

// fast decodes symbols as long as there is slack on both sides.
func (d *decoder) fast(out *output) fastResult {
	return d.fastGo(out)
}

// wide is fast for an output of 16-bit elements. Matches never reach before it.
func (d *decoder) wide(out []uint16, pos int) (int, fastResult) {
	return d.wideGo(out, pos)
}
