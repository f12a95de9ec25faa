package record

// filter tells what was not put into it: a Bloom filter. Of what was put in it knows
// all; of the rest it takes some for it, which costs work and nothing else.
type filter struct{ bits []uint64 }

// Bounds of a filter's size.
const (
	minFilterWords = 1 << 10
	maxFilterWords = 1 << 20 // 8 MiB
)

// size makes room for count strings.
func (f *filter) size(count int) {
	words := minFilterWords
	for words < count/4 && words < maxFilterWords { // 16 bits for each
		words *= 2
	}
	f.bits = make([]uint64, words)
}

// FNV-1a's numbers.
const (
	hashStart = 14695981039346656037
	hashPrime = 1099511628211
)

// places calls do with the three bits of a hash while it returns true.
func (f *filter) places(h uint64, do func(word *uint64, bit uint64) bool) bool {
	h ^= h >> 33 // FNV alone leaves the high bits too much alike
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	for range 3 {
		at := h & uint64(len(f.bits)*64-1)
		if !do(&f.bits[at/64], 1<<(at%64)) {
			return false
		}
		h = h>>21 | h<<43
	}
	return true
}

func (f *filter) set(h uint64) {
	f.places(h, func(word *uint64, bit uint64) bool { *word |= bit; return true })
}

func hashOf(s string) uint64 {
	h := uint64(hashStart)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * hashPrime
	}
	return h
}

func (f *filter) add(s string) { f.set(hashOf(s)) }

func (f *filter) has(s string) bool {
	return f.places(hashOf(s), func(word *uint64, bit uint64) bool { return *word&bit != 0 })
}

// addPath adds a path and all that is above it.
func (f *filter) addPath(name string) {
	h := uint64(hashStart)
	for i := range len(name) {
		if name[i] == '/' {
			f.set(h)
		}
		h = (h ^ uint64(name[i])) * hashPrime
	}
	f.set(h)
}
