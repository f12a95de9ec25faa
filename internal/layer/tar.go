package layer

import (
	"errors"
	"fmt"
	"io"
	"math"

	"dray/internal/stream"
)

// Tar walks the entries of a tar. Not safe for concurrent use.
type Tar struct {
	src    stream.Blocks
	limits Limits

	block []byte // what is left of the block that src lent
	pos   int64  // offset in the tar of block
	end   error  // what src said at its end

	body  int64 // bytes left of the current body
	pad   int64 // and of the padding behind it
	err   error // the first of Next or Body
	count int64 // entries so far

	entry   Entry
	global  pax // what PAX global headers say
	local   pax // what the current entry's PAX header says
	header  block
	paxBuf  []byte // the current entry's PAX header; local points into it
	longs   [2]longName
	extents []Extent // the current entry's sparse map
}

// longName is the text of a GNU L or K entry.
type longName struct {
	text []byte
	set  bool
}

// Kinds of [longName].
const (
	longPath = iota
	longLink
)

// NewTar returns a Tar at the start of src, whose blocks may be of any size.
func NewTar(src stream.Blocks, l Limits) *Tar {
	return &Tar{src: src, limits: l.withDefaults()}
}

// Next skips what is left of the body and returns the following entry, valid
// until the next call, or io.EOF at the end of the archive. Its first error is
// final.
func (t *Tar) Next() (*Entry, error) {
	if t.err != nil {
		return nil, t.err
	}
	if err := t.next(); err != nil {
		t.err = t.explain(err)
		return nil, t.err
	}
	return &t.entry, nil
}

// explain adds where it was to an error of ours.
func (t *Tar) explain(err error) error {
	switch {
	case err == io.EOF: //nolint:errorlint // our own mark of the end
		return io.EOF
	case t.end != nil && errors.Is(err, t.end) && !errors.Is(t.end, io.EOF):
		return t.end
	}
	return fmt.Errorf("read tar at offset %d: %w", t.pos, err)
}

// malformed returns an error that wraps [ErrFormat].
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), ErrFormat)
}

func (t *Tar) next() error {
	if err := t.skipBody(); err != nil {
		return err
	}
	t.local.reset()
	t.longs[longPath].set, t.longs[longLink].set = false, false
	meta := false // a header for the following entry came already
	for {
		b, err := t.readHeader()
		if err != nil {
			if meta && err == io.EOF { //nolint:errorlint // our own mark of the end
				return malformed("extended header without an entry")
			}
			return err
		}
		if err := t.checkBytes(); err != nil {
			return err
		}
		switch kind, err := t.readMeta(b); {
		case err != nil:
			return err
		case kind == metaNone:
			return t.readEntry(b)
		case kind == metaNext:
			meta = true
		}
	}
}

// readHeader returns the next header, or io.EOF at the end of the archive. The
// block is valid until more is read.
func (t *Tar) readHeader() (*block, error) {
	b, err := t.readBlock()
	if err != nil {
		return nil, err
	}
	if b.isZero() {
		b, err = t.readBlock()
		switch {
		case err != nil:
			return nil, err
		case b.isZero():
			return nil, io.EOF
		}
		return nil, malformed("one block of zeros amid the archive")
	}
	if !b.checksumOK() {
		return nil, malformed("header with a wrong checksum")
	}
	return b, nil
}

// metaKind is what a header says about others.
type metaKind uint8

const (
	metaNone metaKind = iota // nothing: it is an entry
	metaNext                 // it belongs to the next entry
	metaElse                 // it stands for itself
)

// readMeta reads the body of a header that is no entry.
func (t *Tar) readMeta(b *block) (metaKind, error) {
	flag := b.typeflag()
	switch flag {
	case 'x', 'g', 'L', 'K', 'V':
	default:
		return metaNone, nil
	}
	size, ok := parseNumber(b.size())
	if !ok || size < 0 {
		return 0, malformed("invalid size of an extended header")
	}
	switch flag {
	case 'V':
		t.body, t.pad = size, padding(size)
		return metaElse, t.skipBody()
	case 'L':
		return metaNext, t.readLong(&t.longs[longPath], "name bytes", size)
	case 'K':
		return metaNext, t.readLong(&t.longs[longLink], "link target bytes", size)
	}
	var buf []byte // a global header may stand between an entry's own and the entry
	if flag == 'x' {
		buf = t.paxBuf
	}
	buf, err := t.readSmall(buf, size, "extended header bytes", int64(t.limits.MaxHeaderBytes))
	if err != nil {
		return 0, err
	}
	if flag == 'g' {
		return metaElse, t.global.merge(buf, t.limits)
	}
	t.paxBuf = buf
	t.local.reset()
	return metaNext, t.local.parse(t.paxBuf, t.limits)
}

func (t *Tar) readLong(l *longName, what string, size int64) error {
	var err error
	// One more for the NUL that ends the text.
	l.text, err = t.readSmall(l.text, size, what, int64(t.limits.MaxNameBytes)+1)
	l.text = cString(l.text)
	l.set = len(l.text) > 0
	return err
}

// readSmall reads a body of size bytes into buf.
func (t *Tar) readSmall(buf []byte, size int64, what string, limit int64) ([]byte, error) {
	if size > limit {
		return nil, &LimitError{What: what, Limit: limit, Got: size}
	}
	// Grown with what is there, not with what was promised.
	buf = buf[:0]
	t.body, t.pad = size, padding(size)
	for t.body > 0 {
		part, err := t.part()
		if err != nil {
			return nil, err
		}
		buf = append(buf, part...)
	}
	return buf, t.skipBody()
}

// Body returns the following part of the current entry's stored body, lent until
// the next call of any method, or io.EOF at its end.
func (t *Tar) Body() ([]byte, error) {
	if t.body == 0 {
		return nil, io.EOF
	}
	part, err := t.part()
	if err != nil {
		t.err = t.explain(err)
		return nil, t.err
	}
	return part, nil
}

// part returns the following part of a body that has not ended.
func (t *Tar) part() ([]byte, error) {
	if err := t.fill(); err != nil {
		return nil, noEOF(err)
	}
	part := t.block[:min(int64(len(t.block)), t.body)]
	t.body -= int64(len(part))
	t.advance(len(part))
	return part, nil
}

// Offset returns the offset in the tar of what [Tar.Body] will return next:
// after [Tar.Next], of the first stored byte.
func (t *Tar) Offset() int64 { return t.pos }

// Drain reads the source to its end and returns how many bytes there were. What
// the source says at its end, other than io.EOF, is returned.
func (t *Tar) Drain() (int64, error) {
	n := int64(len(t.block))
	t.block = nil
	if t.end == nil {
		m, err := stream.Drain(t.src)
		n += m
		t.end = io.EOF
		if err != nil {
			t.end = err
		}
	}
	t.pos += n
	if t.err == nil {
		t.err = io.EOF
	}
	if errors.Is(t.end, io.EOF) {
		return n, nil
	}
	return n, t.end
}

// fill makes sure that there is a block.
func (t *Tar) fill() error {
	for len(t.block) == 0 {
		if t.end != nil {
			return t.end
		}
		if t.block, t.end = t.src.Next(); t.end != nil {
			t.block = nil
			return t.end
		}
	}
	return t.checkBytes()
}

func (t *Tar) checkBytes() error {
	if t.pos > t.limits.MaxBytes {
		return &LimitError{What: "bytes", Limit: t.limits.MaxBytes, Got: t.pos}
	}
	return nil
}

func (t *Tar) advance(n int) {
	t.block = t.block[n:]
	t.pos += int64(n)
}

// readBlock returns the next 512 bytes, valid until more is read, or io.EOF if
// there are none at all.
func (t *Tar) readBlock() (*block, error) {
	if len(t.block) >= blockBytes {
		b := (*block)(t.block)
		t.advance(blockBytes)
		return b, nil
	}
	for n := 0; n < blockBytes; {
		if err := t.fill(); err != nil {
			if n > 0 {
				err = noEOF(err)
			}
			return nil, err
		}
		m := copy(t.header[n:], t.block)
		t.advance(m)
		n += m
	}
	return &t.header, nil
}

// skipBody skips what is left of the current body and its padding. The archive
// may end within the padding.
func (t *Tar) skipBody() error {
	for t.body > 0 {
		if err := t.fill(); err != nil {
			return noEOF(err)
		}
		n := min(int64(len(t.block)), t.body)
		t.body -= n
		t.advance(int(n))
	}
	for t.pad > 0 {
		if err := t.fill(); err != nil {
			return err
		}
		n := min(int64(len(t.block)), t.pad)
		t.pad -= n
		t.advance(int(n))
	}
	return nil
}

// padding returns how many bytes follow a body of size bytes.
func padding(size int64) int64 { return -size & (blockBytes - 1) }

// readEntry makes t.entry of header b and what the extended headers said.
func (t *Tar) readEntry(b *block) error {
	t.count++
	if t.count > t.limits.MaxEntries {
		return &LimitError{What: "entries", Limit: t.limits.MaxEntries, Got: t.count}
	}
	e := &t.entry
	*e = Entry{Xattrs: e.Xattrs[:0]}
	f := b.format()
	flag := b.typeflag()
	if err := t.names(b, f); err != nil {
		return err
	}
	var err error
	if e.Type, err = entryType(flag, e.Name); err != nil {
		return err
	}
	if err := t.numbers(b, f); err != nil {
		return err
	}
	if err := t.xattrs(); err != nil {
		return err
	}
	// From here on more may be read, after which b is no longer valid.
	if e.Type != Reg {
		// GNU's listings of directories are the one body that is no file's.
		t.body, t.pad = 0, 0
		if flag == 'D' {
			t.body, t.pad = e.StoredSize, padding(e.StoredSize)
			err = t.skipBody()
		}
		e.Size, e.StoredSize = 0, 0
		return err
	}
	if e.StoredSize > t.limits.MaxBytes {
		return &LimitError{What: "bytes", Limit: t.limits.MaxBytes, Got: e.StoredSize}
	}
	t.body, t.pad = e.StoredSize, padding(e.StoredSize)
	return t.sparse(b, flag, f)
}

// names sets the entry's names: GNU's long ones, those of PAX, or the header's.
func (t *Tar) names(b *block, f format) error {
	e, maxBytes := &t.entry, t.limits.MaxNameBytes
	switch name := t.override(paxPath); {
	case t.longs[longPath].set:
		e.Name = string(t.longs[longPath].text)
	case name != nil:
		e.Name = string(name)
	default:
		name, prefix := cString(b.name()), b.prefix(f)
		if len(prefix) == 0 {
			e.Name = string(name)
			break
		}
		var joined [blockBytes]byte
		e.Name = string(append(append(append(joined[:0], prefix...), '/'), name...))
	}
	switch name := t.override(paxLinkpath); {
	case t.longs[longLink].set:
		e.Linkname = string(t.longs[longLink].text)
	case name != nil:
		e.Linkname = string(name)
	case b.linkname()[0] != 0:
		e.Linkname = string(cString(b.linkname()))
	}
	if n := max(len(e.Name), len(e.Linkname)); n > maxBytes {
		return &LimitError{What: "name bytes", Limit: int64(maxBytes), Got: int64(n)}
	}
	return nil
}

func entryType(flag byte, name string) (EntryType, error) {
	switch flag {
	case 0:
		if len(name) > 0 && name[len(name)-1] == '/' {
			return Dir, nil
		}
		return Reg, nil
	case '0', '7', 'S':
		return Reg, nil
	case '1':
		return HardLink, nil
	case '2':
		return Symlink, nil
	case '3':
		return Char, nil
	case '4':
		return Block, nil
	case '5', 'D':
		return Dir, nil
	case '6':
		return FIFO, nil
	case 'M':
		return 0, malformed("%q continues a file of another volume", name)
	}
	return 0, malformed("%q has the unknown type %q", name, flag)
}

// numbers sets the entry's mode, owner, time, size and device.
func (t *Tar) numbers(b *block, f format) error {
	e := &t.entry
	ok := true
	field := func(raw []byte) int64 {
		n, valid := parseNumber(raw)
		ok = ok && valid
		return n
	}
	e.Mode = uint32(field(b.mode()) & 0o7777)
	uid, gid := field(b.uid()), field(b.gid())
	e.MTimeSec, e.StoredSize = field(b.mtime()), field(b.size())
	if p := t.source(paxUID); p != nil {
		uid = p.uid
	}
	if p := t.source(paxGID); p != nil {
		gid = p.gid
	}
	if p := t.source(paxMTime); p != nil {
		e.MTimeSec, e.MTimeNsec = p.mtimeSec, p.mtimeNsec
	}
	if p := t.source(paxSize); p != nil {
		e.StoredSize = p.size
	}
	if e.Type == Char || e.Type == Block {
		// A v7 header has no such fields.
		major, minor := int64(-1), int64(-1)
		if f != formatV7 {
			major, minor = field(b.major()), field(b.minor())
		}
		if major < 0 || major > math.MaxUint32 || minor < 0 || minor > math.MaxUint32 {
			return malformed("%q has an invalid device number", e.Name)
		}
		e.Major, e.Minor = uint32(major), uint32(minor)
	}
	switch {
	case !ok:
		return malformed("%q has an invalid number in its header", e.Name)
	case uid < 0 || uid >= math.MaxUint32 || gid < 0 || gid >= math.MaxUint32:
		return malformed("%q has the invalid owner %d:%d", e.Name, uid, gid)
	case e.StoredSize < 0:
		return malformed("%q has the invalid size %d", e.Name, e.StoredSize)
	}
	e.UID, e.GID, e.Size = uint32(uid), uint32(gid), e.StoredSize
	return nil
}

// source returns the PAX header that holds for key, or nil.
func (t *Tar) source(key paxKey) *pax {
	switch {
	case t.local.has&key != 0:
		return &t.local
	case t.global.has&key != 0 && t.local.cancelled&key == 0:
		return &t.global
	}
	return nil
}

// override returns the name that a PAX header gives, or nil.
func (t *Tar) override(key paxKey) []byte {
	p := t.source(key)
	switch {
	case p == nil:
		return nil
	case key == paxPath:
		return p.path
	}
	return p.linkpath
}
