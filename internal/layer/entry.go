package layer

import "fmt"

// EntryType says what an entry is.
type EntryType uint8

// The types of entries.
const (
	Reg EntryType = iota
	Dir
	Symlink
	HardLink
	Char
	Block
	FIFO
)

// String returns the type in words.
func (t EntryType) String() string {
	switch t {
	case Reg:
		return "file"
	case Dir:
		return "directory"
	case Symlink:
		return "symlink"
	case HardLink:
		return "hard link"
	case Char:
		return "character device"
	case Block:
		return "block device"
	case FIFO:
		return "fifo"
	}
	return fmt.Sprintf("EntryType(%d)", uint8(t))
}

// Entry is one name of the archive and what it says about it. The Entry, its
// slices and what they point to are valid until the next call of [Tar.Next];
// strings stay.
type Entry struct {
	Name     string // as it is in the archive: bytes without NUL, of any encoding, possibly hostile
	Linkname string // of a Symlink or a HardLink, as it is
	Type     EntryType
	Mode     uint32 // permissions, setuid, setgid and sticky: 07777 at most
	UID, GID uint32 // never 4294967295, which system calls take as "unchanged"

	Size       int64 // of a Reg, in bytes; 0 for all else
	StoredSize int64 // of what the archive holds of it: less than Size for sparse files

	MTimeSec  int64 // seconds since 1970, possibly before it
	MTimeNsec uint32

	Major, Minor uint32 // of a Char or Block

	Xattrs []Xattr  // by name; none twice
	Sparse []Extent // what is stored of a sparse file, in order, none empty; not nil if the file is sparse
}

// Xattr is an extended attribute.
type Xattr struct {
	Name  string // with its namespace: "security.capability"
	Value []byte // any bytes, possibly none
}

// Extent is a part of a sparse file that is stored. What lies between extents
// reads as zeros.
type Extent struct {
	Offset int64 // in the file
	Size   int64 // in bytes, at least 1
}
