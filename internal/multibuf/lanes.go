package multibuf

import (
	"crypto/sha256"
	"hash"
	"slices"
	"sync"
)

// aloneBytes is how much of a block is hashed alone before somebody is looked for again.
const aloneBytes = 16 << 10

// Lanes is where streams meet. It is safe for concurrent use.
type Lanes struct {
	mu      sync.Mutex // guards the fields below, and those of digests from blocks on
	idle    sync.Cond  // a digest is no longer busy
	waiting []*Digest  // that have blocks, in no order
}

// New returns Lanes without streams.
func New() *Lanes {
	l := &Lanes{}
	l.idle.L = &l.mu
	return l
}

// Digest is the hash of one stream. Its methods are for one goroutine, or one after another.
type Digest struct {
	lanes *Lanes
	hash  hash.Hash // touched by who made it busy, as is state
	state state
	pairs bool // it is a SHA-256 that compress2 can go on with

	blocks []block // that wait, the oldest first
	size   int     // bytes of them that are not hashed
	odd    int     // bytes beyond the last whole block of the hash
	busy   bool    // somebody hashes the oldest
}

// block is what waits to be hashed.
type block struct {
	left   []byte
	hashed func()
}

// Digest returns a digest that h computes.
func (l *Lanes) Digest(h hash.Hash) *Digest {
	d := &Digest{lanes: l, hash: h}
	d.pairs = hasLanes() && d.state.save(h) == nil
	return d
}

// Add takes a block of at least one byte, which must not change until it was hashed. Then hashed
// is called, in a goroutine that has a digest of the same lanes; it must not block.
func (d *Digest) Add(p []byte, hashed func()) {
	d.lanes.mu.Lock()
	defer d.lanes.mu.Unlock()
	if len(d.blocks) == 0 {
		d.lanes.waiting = append(d.lanes.waiting, d)
	}
	d.blocks = append(d.blocks, block{p, hashed})
	d.size += len(p)
}

// Settle hashes until no more than most blocks wait. Beyond that it goes on only as long as there
// is somebody to hash along with, and leaves one block for others to do so.
func (d *Digest) Settle(most int) {
	l := d.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(d.blocks) > min(1, most) {
		other := l.partner(d)
		switch {
		case d.busy && len(d.blocks) > most:
			l.idle.Wait() // it is somebody's second lane
		case !d.busy && (other != nil || len(d.blocks) > most):
			l.step(d, other)
		default:
			return
		}
	}
}

// Drop forgets the blocks that wait: when it returns, nobody looks at them.
func (d *Digest) Drop() {
	l := d.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	for d.busy {
		l.idle.Wait()
	}
	if len(d.blocks) > 0 {
		d.blocks, d.size = nil, 0
		l.leave(d)
	}
}

// Hash returns the hash of all blocks.
func (d *Digest) Hash() hash.Hash {
	d.Settle(0)
	return d.hash
}

// step hashes some of the oldest block of d, and as much of the other digest's, which may be
// nil. The lock is held before and after, not meanwhile.
func (l *Lanes) step(d, other *Digest) {
	mine, n := d.blocks[0], len(d.blocks[0].left)
	theirs := block{}
	d.busy = true
	if other == nil {
		n = min(n, aloneBytes-d.odd)
	} else {
		theirs = other.blocks[0]
		n = min(n, len(theirs.left)) / sha256.BlockSize * sha256.BlockSize
		other.busy = true
	}
	l.mu.Unlock()
	if other == nil {
		_, _ = d.hash.Write(mine.left[:n]) // never fails
	} else {
		write2(d, other, mine.left[:n], theirs.left[:n])
	}
	for _, b := range []block{mine, theirs} {
		if len(b.left) == n {
			b.hashed()
		}
	}
	l.mu.Lock()
	d.advance(n)
	if other != nil {
		other.advance(n)
	}
	l.idle.Broadcast()
}

// partner returns the digest to hash along with d, or nil.
func (l *Lanes) partner(d *Digest) (best *Digest) {
	if !d.ready() {
		return nil
	}
	for _, o := range l.waiting {
		if o != d && o.ready() && (best == nil || o.size > best.size) {
			best = o
		}
	}
	return best
}

// ready reports whether the oldest block can be one of two.
func (d *Digest) ready() bool {
	return d.pairs && !d.busy && d.odd == 0 && len(d.blocks[0].left) >= sha256.BlockSize
}

// advance notes that n bytes of the oldest block are hashed.
func (d *Digest) advance(n int) {
	d.busy = false
	d.size -= n
	d.odd = (d.odd + n) % sha256.BlockSize
	if b := &d.blocks[0]; len(b.left) > n {
		b.left = b.left[n:]
		return
	}
	if d.blocks = d.blocks[1:]; len(d.blocks) == 0 {
		d.lanes.leave(d)
	}
}

// leave takes d from those that wait.
func (l *Lanes) leave(d *Digest) {
	l.waiting = slices.DeleteFunc(l.waiting, func(o *Digest) bool { return o == d })
}
