//go:build noasm || !amd64

package inflate

// fast decodes symbols as long as there is slack on both sides.
func (d *decoder) fast(out *output) fastResult {
	return d.fastGo(out)
}

// wide is fast for an output of 16-bit elements. Matches never reach before it.
func (d *decoder) wide(out []uint16, pos int) (int, fastResult) {
	return d.wideGo(out, pos)
}
