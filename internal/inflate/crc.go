package inflate

import "hash/crc32"

// combineCRC returns the CRC-32 of a then b, of which the sums and the size of
// the second are given.
func combineCRC(a, b uint32, sizeB int) uint32 {
	// Appending a zero bit to a message multiplies its sum by x.
	shifted, power := a, uint32(1)<<23 // x^8, bits reversed: x^0 is the highest
	for n := sizeB; n > 0; n >>= 1 {
		if n&1 != 0 {
			shifted = mulCRC(shifted, power)
		}
		power = mulCRC(power, power)
	}
	return shifted ^ b
}

// mulCRC multiplies polynomials over GF(2) modulo that of CRC-32.
func mulCRC(a, b uint32) uint32 {
	var product uint32
	for ; a != 0; a <<= 1 {
		if a>>31 != 0 {
			product ^= b
		}
		b = b>>1 ^ crc32.IEEE*(b&1)
	}
	return product
}
