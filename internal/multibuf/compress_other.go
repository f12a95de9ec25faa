//go:build !amd64 || noasm

package multibuf

// hasLanes reports whether this processor can run compress2.
func hasLanes() bool { return false }

func compress2(_, _ *[8]uint32, _, _ *byte, _ int) {
	panic("multibuf: internal error: no lanes here")
}
