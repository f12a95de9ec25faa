package testkit

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"path"
	"strings"
)

// Epoch is the modification time of entries that say nothing else, in seconds.
const Epoch = 1_700_000_000

// Types of entries, as tar has them.
const (
	TypeFile     = '0'
	TypeHardlink = '1'
	TypeSymlink  = '2'
	TypeChar     = '3'
	TypeBlock    = '4'
	TypeDir      = '5'
	TypeFifo     = '6'
	TypeGNULong  = 'L'
	TypeSparse   = 'S'
	TypePAX      = 'x'
	TypeGlobal   = 'g'
)

// Entry is one member of a layer's tar. It is a value: every method returns a
// changed copy.
//
//	testkit.File("usr/bin/ping", "…").Chmod(0o755).Chown(0, 0).Setxattr("security.capability", testkit.Capability(1<<13))
type Entry struct {
	Name, Link   string
	Type         byte
	Mode         uint32 // permissions, setuid, setgid and sticky bit
	UID, GID     int64
	Sec, Nsec    int64 // modification time
	Major, Minor int64
	Size         int64            // of the body in bytes
	Body         func() io.Reader // nil for none
	Xattrs       []Pair           // in the order of the archive
	PAX          []Pair           // more records, as they are
	Sparse       []Extent         // what the body holds of a sparse file
	SparseAs     SparseFormat
	GNU          bool   // GNU's extensions instead of PAX's for what ustar cannot say
	Raw          []byte // the bytes of the archive themselves; nothing else counts
}

// Pair is a name and a value, of any bytes.
type Pair struct{ Key, Value string }

// Extent is a part of a sparse file that has data, in bytes.
type Extent struct{ Offset, Size int64 }

// SparseFormat is one of the four ways to store a sparse file.
type SparseFormat uint8

// Formats of sparse files (GNU tar manual, "Storing Sparse Files").
const (
	NotSparse SparseFormat = iota
	SparseGNU
	SparsePAX00
	SparsePAX01
	SparsePAX10
)

func entry(kind byte, name, link string, mode uint32) Entry {
	return Entry{Type: kind, Name: name, Link: link, Mode: mode, Sec: Epoch}
}

// File returns a regular file.
func File(name, content string) Entry {
	e := entry(TypeFile, name, "", 0o644)
	e.Size = int64(len(content))
	e.Body = func() io.Reader { return strings.NewReader(content) }
	return e
}

// Zeros returns a file of size zero bytes, which compresses to nothing.
func Zeros(name string, size int64) Entry {
	return generated(name, size, func() io.Reader { return zeroReader{} })
}

// Random returns a file of size bytes that do not compress, the same for one seed.
func Random(name string, size int64, seed uint64) Entry {
	return generated(name, size, func() io.Reader {
		var key [32]byte
		binary.LittleEndian.PutUint64(key[:], seed)
		return rand.NewChaCha8(key)
	})
}

// Text returns a file of size bytes that compress about as programs do, to a
// third: each random word three times.
func Text(name string, size int64, seed uint64) Entry {
	return generated(name, size, func() io.Reader {
		var key [32]byte
		binary.LittleEndian.PutUint64(key[:], seed)
		return &textReader{src: rand.NewChaCha8(key)}
	})
}

func generated(name string, size int64, body func() io.Reader) Entry {
	e := entry(TypeFile, name, "", 0o644)
	e.Size = size
	e.Body = func() io.Reader { return io.LimitReader(body(), size) }
	return e
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// textReader repeats each random word three times.
type textReader struct {
	src  *rand.ChaCha8
	left []byte
	word [24]byte
}

func (r *textReader) Read(p []byte) (int, error) {
	for n := 0; n < len(p); {
		if len(r.left) == 0 {
			_, _ = r.src.Read(r.word[:8]) // never fails
			copy(r.word[8:], r.word[:8])
			copy(r.word[16:], r.word[:8])
			r.left = r.word[:]
		}
		copied := copy(p[n:], r.left)
		r.left = r.left[copied:]
		n += copied
	}
	return len(p), nil
}

// Dir returns a directory.
func Dir(name string) Entry { return entry(TypeDir, strings.TrimSuffix(name, "/")+"/", "", 0o755) }

// Symlink returns a symbolic link called name.
func Symlink(name, target string) Entry { return entry(TypeSymlink, name, target, 0o777) }

// Hardlink returns another name for target.
func Hardlink(name, target string) Entry { return entry(TypeHardlink, name, target, 0o644) }

// Fifo returns a named pipe.
func Fifo(name string) Entry { return entry(TypeFifo, name, "", 0o644) }

// Char returns a character device.
func Char(name string, major, minor int64) Entry {
	e := entry(TypeChar, name, "", 0o644)
	e.Major, e.Minor = major, minor
	return e
}

// Block returns a block device.
func Block(name string, major, minor int64) Entry {
	e := Char(name, major, minor)
	e.Type = TypeBlock
	return e
}

// Whiteout deletes name of the layers below.
func Whiteout(name string) Entry {
	dir, base := path.Split(name)
	return File(dir+".wh."+base, "")
}

// Opaque deletes everything that the layers below have in directory dir.
func Opaque(dir string) Entry { return File(strings.TrimSuffix(dir, "/")+"/.wh..wh..opq", "") }

// SparseFile returns a file of size bytes that has data, "data of extent i", only
// where the extents say.
func SparseFile(name string, format SparseFormat, size int64, extents ...Extent) Entry {
	e := entry(TypeFile, name, "", 0o644)
	e.Size, e.Sparse, e.SparseAs = size, extents, format
	e.Body = func() io.Reader {
		var parts []io.Reader
		for i, x := range extents {
			parts = append(parts, io.LimitReader(repeat{byte('a' + i)}, x.Size))
		}
		return io.MultiReader(parts...)
	}
	return e
}

type repeat struct{ b byte }

func (r repeat) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r.b
	}
	return len(p), nil
}

// RawBytes returns bytes of the archive that are none of the above; what tar they
// make is the caller's affair.
func RawBytes(raw []byte) Entry { return Entry{Raw: raw} }

// Chmod sets permissions, setuid, setgid and sticky bit.
func (e Entry) Chmod(mode uint32) Entry { e.Mode = mode; return e }

// Chown sets the owner.
func (e Entry) Chown(uid, gid int64) Entry { e.UID, e.GID = uid, gid; return e }

// At sets the modification time.
func (e Entry) At(sec, nsec int64) Entry { e.Sec, e.Nsec = sec, nsec; return e }

// Setxattr adds an extended attribute.
func (e Entry) Setxattr(name, value string) Entry {
	e.Xattrs = append(e.Xattrs[:len(e.Xattrs):len(e.Xattrs)], Pair{name, value})
	return e
}

// WithPAX adds a PAX record.
func (e Entry) WithPAX(key, value string) Entry {
	e.PAX = append(e.PAX[:len(e.PAX):len(e.PAX)], Pair{key, value})
	return e
}

// AsGNU says with GNU's extensions what ustar cannot.
func (e Entry) AsGNU() Entry { e.GNU = true; return e }

// Capability returns the attribute security.capability that permits and grants
// the capabilities of a bit set, as setcap =ep does.
func Capability(bits uint64) string {
	raw := binary.LittleEndian.AppendUint32(nil, 0x02000001) // revision 2, effective
	raw = binary.LittleEndian.AppendUint32(raw, uint32(bits))
	raw = binary.LittleEndian.AppendUint32(raw, 0)
	raw = binary.LittleEndian.AppendUint32(raw, uint32(bits>>32))
	return string(binary.LittleEndian.AppendUint32(raw, 0))
}

// ACL returns the attribute system.posix_acl_access (or _default) that gives user
// and group as mode says, and one more user the permissions perm.
func ACL(mode uint32, uid, perm uint16) string {
	raw := binary.LittleEndian.AppendUint32(nil, 2) // version
	const nobody = 1<<32 - 1
	for _, a := range []struct {
		tag, perm uint16
		id        uint32
	}{
		{0x01, uint16(mode >> 6 & 7), nobody}, // the owner
		{0x02, perm, uint32(uid)},
		{0x04, uint16(mode >> 3 & 7), nobody}, // the group
		{0x10, uint16(mode >> 3 & 7), nobody}, // the mask is what chmod sees
		{0x20, uint16(mode & 7), nobody},
	} {
		raw = binary.LittleEndian.AppendUint16(raw, a.tag)
		raw = binary.LittleEndian.AppendUint16(raw, a.perm)
		raw = binary.LittleEndian.AppendUint32(raw, a.id)
	}
	return string(raw)
}
