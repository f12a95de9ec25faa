package erofs

import (
	"encoding/binary"
	"slices"
)

// ACLs as attributes hold them: linux/posix_acl_xattr.h.
const (
	aclHeader  = 4
	aclEntry   = 8
	aclVersion = 2

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclNoID = 0xffffffff
)

// normalACL returns an ACL as the kernel gives it back once it was set on a file
// of this mode: what stands for owner, group and others follows the mode unless
// the ACL is a default one. It returns nothing for an ACL that says no more than
// the mode, and false for one that the kernel does not take.
func normalACL(acl []byte, mode uint32, access bool) ([]byte, bool) {
	if len(acl) == 0 {
		return nil, true
	}
	if len(acl) < aclHeader || (len(acl)-aclHeader)%aclEntry != 0 || binary.LittleEndian.Uint32(acl) != aclVersion {
		return nil, false
	}
	if len(acl) == aclHeader {
		return nil, true
	}
	acl = slices.Clone(acl)
	more, masked, ok := checkACL(acl)
	if !ok {
		return nil, false
	}
	if !access {
		return acl, true
	}
	if !more {
		return nil, true
	}
	for e := acl[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		perm := -1
		switch binary.LittleEndian.Uint16(e) {
		case aclUserObj:
			perm = int(mode >> 6 & 7)
		case aclMask:
			perm = int(mode >> 3 & 7)
		case aclGroupObj:
			if !masked {
				perm = int(mode >> 3 & 7)
			}
		case aclOther:
			perm = int(mode & 7)
		}
		if perm >= 0 {
			binary.LittleEndian.PutUint16(e[2:], uint16(perm))
		}
	}
	return acl, true
}

// checkACL checks an ACL as the kernel does (posix_acl_valid), and clears what it
// ignores. It tells whether there is more than owner, group and others.
func checkACL(acl []byte) (more, masked, ok bool) {
	want, needMask := uint16(aclUserObj), false
	for e := acl[aclHeader:]; len(e) > 0; e = e[aclEntry:] {
		tag := binary.LittleEndian.Uint16(e)
		if binary.LittleEndian.Uint16(e[2:])&^7 != 0 {
			return false, false, false
		}
		valid := false
		switch tag {
		case aclUserObj:
			valid, want = want == aclUserObj, aclUser
		case aclUser:
			valid, needMask, more = want == aclUser, true, true
		case aclGroupObj:
			valid, want = want == aclUser, aclGroup
		case aclGroup:
			valid, needMask, more = want == aclGroup, true, true
		case aclMask:
			valid, want, masked, more = want == aclGroup, aclOther, true, true
		case aclOther:
			valid, want = want == aclOther || want == aclGroup && !needMask, 0
		}
		named := tag == aclUser || tag == aclGroup
		if !valid || named && binary.LittleEndian.Uint32(e[4:]) == aclNoID {
			return false, false, false
		}
		if !named {
			binary.LittleEndian.PutUint32(e[4:], aclNoID)
		}
	}
	return more, masked, want == 0
}
