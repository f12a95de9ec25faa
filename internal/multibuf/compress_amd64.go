//go:build !noasm

package multibuf

// compress2 goes on with two SHA-256 states by so many blocks of p1 and of p2.
//
//go:noescape
func compress2(h1, h2 *[8]uint32, p1, p2 *byte, blocks int)

// features returns EBX of CPUID's leaf 7 and ECX of its leaf 1.
//
//go:noescape
func features() (ebx7, ecx1 uint32)

// hasLanes reports whether this processor can run compress2: SHA, SSSE3, SSE4.1.
func hasLanes() bool {
	const sha, ssse3, sse41 = 1 << 29, 1 << 9, 1 << 19
	ebx7, ecx1 := features()
	return ebx7&sha != 0 && ecx1&ssse3 != 0 && ecx1&sse41 != 0
}
