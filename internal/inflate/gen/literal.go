package main

import "fmt"

const (
	// literalGroup is how many literals are decoded between two refills: 56
	// bits are there, and a literal takes literalMaxBits at most, which is 9.
	literalGroup = 6

	// literalFrame is the room for what the ordinary loop has in registers.
	literalFrame = 48
)

// literalMode writes the part of a loop that decodes nothing but the literals of
// its mode, and leaves what it meets else to the round that follows.
//
// In it, {bits} holds the next input bit highest, so that the length of a code
// follows from comparing all of {bits} with two bounds: no load is between one
// literal and the next. X1 holds the 8 bytes at {in}, in the same order.
func (g generator) literalMode() {
	g.emit(`
	MOVQ {lit}, lit-8(SP)
	MOVQ {dist}, dist-16(SP)
	MOVQ {inLimit}, inLimit-24(SP)
	MOVQ {outLimit}, outLimit-32(SP)
	MOVQ {low}, low-40(SP)
	MOVOU nibbles<>(SB), X5
	MOVOU reversedHigh<>(SB), X6
	MOVOU reversedLow<>(SB), X7
	MOVOU backwards<>(SB), X8
	JMP   literals

loop:
`)
	g.limits()
	g.emit(`
literals:
	MOVQ {out}, entered-48(SP)
	MOVBLZX {n}, {n}
	MOVQ {bits}, X0
	MOVQ ({in}), X1
`)
	g.reverse("X0")
	g.reverse("X1")
	g.emit(`
	MOVQ X0, {bits}
	MOVQ s+0(FP), CX
	MOVQ (fastState_literals)(CX), {syms}
	MOVQ (literals_mid)({syms}), {firstMid}
	MOVQ (literals_max)({syms}), {firstMax}
	LEAQ (literals_syms)({syms}), {syms}
	MOVL $const_literalMinBits, {min}
	MOVL $const_literalMidBits, {mid}
	MOVL $const_literalMaxBits, {max}
	MOVL $(64-const_literalMaxBits), {index}
	JMP  group

	PCALIGN $32
group:
	MOVQ  X1, AX
	SHRXQ {n}, AX, AX
	ORQ   AX, {bits}
	MOVL  {n}, AX
	XORL  $63, AX
	SHRL  $3, AX
	ADDQ  AX, {in}
	ORL   $56, {n}
	MOVQ  ({in}), X1
`)
	// All of the group is consumed at once, in front: {n} is what the next group
	// waits for.
	g.emit(fmt.Sprintf("\tSUBL $(%d*const_literalMaxBits), {n}", literalGroup))
	g.reverse("X1")
	from, to := "{bits}", "DX"
	for i := range literalGroup {
		g.literal(i, from, to)
		from, to = to, from
	}
	g.emit(fmt.Sprintf("\tADDQ $%d, {out}", literalGroup*g.element()))
	g.emit(`
	CMPQ {in}, inLimit-24(SP)
	JA   groups
	CMPQ {out}, outLimit-32(SP)
	JBE  group
groups:
	MOVL $1, CX
	JMP  leave
`)
	for i := range literalGroup {
		g.emit(fmt.Sprintf("\nescape%d:", i))
		if i%2 != 0 {
			g.emit("\tMOVQ DX, {bits}")
		}
		g.emit(fmt.Sprintf(`
	ADDL $(%d*const_literalMaxBits), {n}
	ADDQ $%d, {out}
	MOVL $%d, CX
	JMP  leave
`, literalGroup-i, i*g.element(), i))
	}
	g.emit(`
leave:
	MOVQ {bits}, X0
`)
	g.reverse("X0")
	g.emit(`
	MOVQ X0, {bits}
	MOVQ lit-8(SP), {lit}
	MOVQ dist-16(SP), {dist}
	MOVQ inLimit-24(SP), {inLimit}
	MOVQ outLimit-32(SP), {outLimit}
	MOVQ low-40(SP), {low}
	MOVQ {out}, DX
	SUBQ entered-48(SP), DX
`)
	if g.wide {
		g.emit("\tSHRQ $1, DX")
	}
	g.emit(`
	MOVQ s+0(FP), AX
	MOVQ (fastState_literals)(AX), AX
	ADDQ DX, (literals_count)(AX)
	ADDQ (literals_credit)(AX), DX
	SUBQ $const_literalCost, DX
	MOVL $const_literalCredit, {length}
	CMPQ DX, {length}
	CMOVQGT {length}, DX
	MOVQ DX, (literals_credit)(AX)
	TESTQ DX, DX
	JS   slack
`)
	// With no literal since the last refill there are bits for a round. To look for
	// slack would be wrong then: without any, a call would have decoded nothing.
	g.emit(`
	TESTL CX, CX
	JZ    refilled
`)
	g.limits()
	g.refill()
	g.emit("refilled:")
	g.lookup()
}

// element returns the size of an element of the output.
func (g generator) element() int {
	if g.wide {
		return 2
	}
	return 1
}

// literal decodes the literal at the top of from, and leaves what follows it in to.
// It adds to {n} how much shorter than literalMaxBits its code is.
func (g generator) literal(i int, from, to string) {
	store := "MOVB"
	if g.wide {
		store = "MOVW"
	}
	g.emit(fmt.Sprintf(`
	SHRXQ {index}, %[1]s, AX
	MOVWLZX ({syms})(AX*2), AX
	TESTW AX, AX
	JS    escape%[3]d
	%[4]s AX, %[5]d({out})
	SHLXQ {max}, %[1]s, %[2]s
	SHLXQ {mid}, %[1]s, CX
	CMPQ  %[1]s, {firstMax}
	CMOVQCS CX, %[2]s
	ADCL  $0, {n}
	SHLXQ {min}, %[1]s, CX
	CMPQ  %[1]s, {firstMid}
	CMOVQCS CX, %[2]s
	ADCL  $0, {n}
`, from, to, i, store, i*g.element()))
}

// reverse reverses the low 64 bits of the register: the bits of each half of each
// byte by look-up, the halves, and the bytes. It needs X2 to X4.
func (g generator) reverse(reg string) {
	g.emit(fmt.Sprintf(`
	MOVO   %[1]s, X2
	PSRLW  $4, X2
	PAND   X5, %[1]s
	PAND   X5, X2
	MOVO   X6, X3
	MOVO   X7, X4
	PSHUFB %[1]s, X3
	PSHUFB X2, X4
	POR    X3, X4
	PSHUFB X8, X4
	MOVO   X4, %[1]s
`, reg))
}

// reversal writes the constants of reverse.
func (g generator) reversal() {
	table := func(name string, value func(i int) int) {
		for i := range 16 {
			g.emit(fmt.Sprintf("DATA %s<>+%d(SB)/1, $%d", name, i, value(i)))
		}
		g.emit(fmt.Sprintf("GLOBL %s<>(SB), RODATA|NOPTR, $16\n", name))
	}
	reversed := func(i int) int { return i&1<<3 | i&2<<1 | i&4>>1 | i&8>>3 }
	table("nibbles", func(int) int { return 15 })
	table("reversedHigh", func(i int) int { return reversed(i) << 4 })
	table("reversedLow", reversed)
	table("backwards", func(i int) int { return 7 - i&7 })
}
