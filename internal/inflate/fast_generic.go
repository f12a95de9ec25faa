//go:build noasm || !amd64

package inflate

// fast decodes symbols as long as there is slack on both sides.
func (d *decoder) fast(out *output) fastResult {
	return d.fastGo(out)
}
