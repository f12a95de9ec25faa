package inflate

// edgeSlack is how much input must be on hand for an entry and a distance to be
// looked up and to leave as much as the careful code would ask for.
const edgeSlack = 8

// edge decodes symbols by table, as the fast loop does, but one at a time, with
// less slack for input and none for output. It returns false if it has done nothing,
// because the careful code must be asked.
func (d *decoder) edge(out *output) (done bool, err error) {
	for d.stage == stageCodes && len(d.src.buf)-d.src.pos >= edgeSlack && out.pos < len(out.buf) {
		d.gather()
		e := d.litTable[d.bits&(1<<litTableBits-1)]
		skipped := uint(0)
		if e&entrySubtable == entrySubtable {
			skipped = litTableBits
			e = d.litTable[e>>entryPlace&entryPlaces+uint32(d.bits>>litTableBits)&(1<<(e>>entryExtra&15)-1)]
		}
		count := int(e >> entryCount)
		if e&entryInvalid == 0 && count > len(out.buf)-out.pos {
			break // half of a pair
		}
		d.drop(skipped)
		extra := uint(d.bits) & (1<<(e&63) - 1) >> (e >> entryExtra & 15)
		d.drop(uint(e & entryDrop))
		done = true
		if e&entryOther != 0 {
			if e&entryEnd != entryEnd {
				err = d.corrupt()
				break
			}
			d.stage = stageBlock
			break
		}
		for i := range count {
			out.buf[out.pos] = byte(e >> (entryLit1 + 8*i))
			out.pos++
		}
		if e&entryLitOnly != 0 {
			continue
		}
		d.matchLen = minMatch + int(e>>entryLength&0xff) + int(extra)
		if err = d.edgeDistance(); err == nil {
			err = d.match(out)
		}
		if err != nil {
			break
		}
	}
	d.giveBack()
	return done, err
}

// edgeDistance looks the distance of a match up. As many bits as it can have are on
// hand.
func (d *decoder) edgeDistance() error {
	e := d.distTable[d.bits&(1<<distTableBits-1)]
	if e&distSubtable == distSubtable {
		d.drop(distTableBits)
		e = d.distTable[e>>distBase&0x7fff+uint32(d.bits)&(1<<(e>>distExtra&15)-1)]
	}
	if e&distOther != 0 {
		return d.corrupt()
	}
	d.matchDist = int(e>>distBase) + int(d.bits&(1<<(e&63)-1)>>(e>>distExtra&63))
	d.drop(uint(e & entryDrop))
	d.stage = stageMatch
	return nil
}
