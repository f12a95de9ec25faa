// The program gen writes the amd64 assembly of the fast loop to standard
// output: for both forms of output, with and without the literal mode. It knows what
// plain assembly would repeat, such as the refill of the bit buffer and an entry's literals.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

// Registers of the loop. AX holds the litlen entry of the next bits whenever a
// round starts.
func names() *strings.Replacer {
	return strings.NewReplacer(
		"{in}", "SI", "{out}", "DI", "{bits}", "R8", "{n}", "R9",
		"{lit}", "R10", "{dist}", "R11", "{inLimit}", "R12", "{outLimit}", "R13", "{low}", "BX",
		"{e}", "AX", "{length}", "R14", "{src}", "R15",
		"{index}", "BX", "{min}", "R10", "{mid}", "R11", "{max}", "R12", "{firstMid}", "R13", "{firstMax}", "R14", "{syms}", "R15",
	)
}

type generator struct {
	w        io.Writer
	names    *strings.Replacer
	wide     bool // elements of the output are 16 bits
	literals bool // the loop has a literal mode
}

func (g generator) emit(text string) {
	for line := range strings.Lines(g.names.Replace(strings.Trim(text, "\n") + "\n")) {
		_, _ = io.WriteString(g.w, line)
	}
}

// refill loads 8 bytes above the bits there are, and consumes the whole bytes of
// them that fit. Only the low byte of {n} counts: entries are subtracted whole.
func (g generator) refill() {
	g.emit(`
	MOVQ  ({in}), DX
	SHLXQ {n}, DX, DX
	ORQ   DX, {bits}
	MOVBLZX {n}, DX
	XORL  $63, DX
	SHRL  $3, DX
	ADDQ  DX, {in}
	ORL   $56, {n}
`)
}

// drop consumes the bits of the entry in reg.
func (g generator) drop(reg string) {
	g.emit(fmt.Sprintf(`
	SHRXQ %s, {bits}, {bits}
	SUBL  %s, {n}
`, reg, reg))
}

// lookup loads the litlen entry of the next bits.
func (g generator) lookup() {
	g.emit(`
	MOVL {bits}, {e}
	ANDL $4095, {e}
	MOVL ({lit})({e}*4), {e}
`)
}

// entry writes the literals of the entry, if it has any, and consumes its bits,
// which are left in {length} for a match's extra ones.
func (g generator) entry() {
	g.emit(`
	MOVL  {e}, DX
	SHRL  $8, DX
	BZHIQ {e}, {bits}, {length}
`)
	g.drop("{e}")
	if g.wide {
		g.emit(`
	MOVWLZX DX, DX
	MOVL  DX, CX
	SHLL  $8, CX
	ORL   CX, DX
	ANDL  $0x00ff00ff, DX
	MOVL  DX, ({out})
	MOVL  {e}, DX
	SHRL  $30, DX
	LEAQ  ({out})(DX*2), {out}
`)
		return
	}
	g.emit(`
	MOVW  DX, ({out})
	MOVL  {e}, DX
	SHRL  $30, DX
	ADDQ  DX, {out}
`)
}

// double makes a number of elements in reg one of bytes.
func (g generator) double(reg string) {
	if g.wide {
		g.emit("\tADDQ " + reg + ", " + reg)
	}
}

// tables writes, for each distance below 16, the shuffle that repeats as many
// bytes through a register, and the number of bytes of whole repetitions.
func (g generator) tables() {
	for d := range 16 {
		for i := range 16 {
			g.emit(fmt.Sprintf("DATA patterns<>+%d(SB)/1, $%d", 16*d+i, i%max(d, 1)))
		}
	}
	g.emit("GLOBL patterns<>(SB), RODATA|NOPTR, $256\n")
	for d := range 16 {
		g.emit(fmt.Sprintf("DATA steps<>+%d(SB)/1, $%d", d, 16-16%max(d, 1)))
	}
	g.emit("GLOBL steps<>(SB), RODATA|NOPTR, $16")
}

func main() {
	w := bufio.NewWriter(os.Stdout)
	g := generator{w: w, names: names()}
	g.emit(preamble)
	g.loop("fastLoop")
	g.wide = true
	g.loop("wideLoop")
	g.literals = true
	g.loop("wideLiteralLoop")
	g.wide = false
	g.loop("literalLoop")
	g.tables()
	g.reversal()
	if err := w.Flush(); err != nil {
		os.Exit(1)
	}
}

// loop writes the function of the name.
func (g generator) loop(name string) {
	frame := 0
	if g.literals {
		frame = literalFrame
	}
	g.emit(fmt.Sprintf(head, name, frame))
	if g.literals {
		g.literalMode()
	} else {
		g.refill()
		g.lookup()
		g.emit("\tJMP round\n\n\tPCALIGN $32\nloop:")
		g.limits()
		g.refill()
	}
	g.emit("round:")
	for range 3 {
		g.entry()
		g.emit(`
	TESTL $0x10000000, {e}
	JZ    other
`)
		g.lookup()
	}
	g.emit(`
	JMP loop

other:
	TESTL $0x20000000, {e}
	JNZ   special
match:
`)
	g.refill()
	g.emit(`
	MOVL  {bits}, DX
	ANDL  $511, DX
	MOVL  ({dist})(DX*4), DX
	MOVL  {e}, CX
	SHRL  $24, CX
	SHRXQ CX, {length}, {length}
	SHRL  $16, {e}
	MOVBLZX {e}, {e}
	LEAQ  3({length})({e}*1), {length}
`)
	g.double("{length}")
	g.emit(`
	TESTL DX, DX
	JS    farDistance
distance:
	BZHIQ DX, {bits}, CX
`)
	g.drop("DX")
	g.lookup()
	g.emit(`
	MOVL  DX, {src}
	SHRL  $8, {src}
	SHRXQ {src}, CX, CX
	SHRL  $16, DX
	ADDQ  CX, DX // the distance
`)
	g.double("DX")
	g.emit(`
	MOVQ  {out}, {src}
	SUBQ  DX, {src}
	CMPQ  {src}, {low}
	JB    before
	LEAQ  ({out})({length}*1), CX // the end of the match
	CMPQ  DX, $16
	JB    near
	MOVOU ({src}), X0
	MOVOU X0, ({out})
	MOVOU 16({src}), X1
	MOVOU X1, 16({out})
	CMPQ  {length}, $32
	JA    long
	MOVQ  CX, {out}
	JMP   loop

long:
	ADDQ  $32, {out}
	ADDQ  $32, {src}
	MOVOU ({src}), X0
	MOVOU X0, ({out})
	MOVOU 16({src}), X1
	MOVOU X1, 16({out})
	LEAQ  32({out}), DX
	CMPQ  DX, CX
	JB    long
	MOVQ  CX, {out}
	JMP   loop

near:
	// A pattern of fewer than 16 bytes: repeat it through a register, and step
	// by whole patterns.
	MOVOU ({src}), X0
	LEAQ  patterns<>(SB), {src}
	SHLQ  $4, DX
	MOVOU ({src})(DX*1), X1
	PSHUFB X1, X0
	SHRQ  $4, DX
	LEAQ  steps<>(SB), {src}
	MOVBLZX ({src})(DX*1), DX
nearCopy:
	MOVOU X0, ({out})
	ADDQ  DX, {out}
	MOVOU X0, ({out})
	ADDQ  DX, {out}
	CMPQ  {out}, CX
	JB    nearCopy
	MOVQ  CX, {out}
	JMP   loop

special:
	TESTL $0x800000, {e}
	JNZ   end
	TESTL $0x400000, {e}
	JZ    invalid
	MOVL  {e}, DX
	SHRL  $24, DX
	ANDL  $15, DX
	BZHIQ DX, {bits}, CX
	SHRL  $8, {e}
	ANDL  $0x3fff, {e}
	ADDQ  CX, {e}
	MOVL  ({lit})({e}*4), {e}
`)
	g.entry()
	g.emit(`
	TESTL $0x30000000, {e}
	JZ    match
	TESTL $0x20000000, {e}
	JNZ   last
`)
	g.lookup()
	g.emit(`
	JMP loop

last:
	TESTL $0x800000, {e}
	JNZ   end
	JMP   invalid

farDistance:
	TESTL $0x4000, DX
	JZ    invalid
	SHRXQ DX, {bits}, {bits}
	SUBL  DX, {n}
	MOVL  DX, CX
	SHRL  $8, CX
	ANDL  $15, CX
	BZHIQ CX, {bits}, CX
	SHRL  $16, DX
	ANDL  $0x7fff, DX
	ADDQ  CX, DX
	MOVL  ({dist})(DX*4), DX
	TESTL DX, DX
	JNS   distance
	JMP   invalid
`)
	g.emit(tail)
}

// limits leaves the loop if there is no slack for another round.
func (g generator) limits() {
	g.emit(`
	CMPQ {in}, {inLimit}
	JA   slack
	CMPQ {out}, {outLimit}
	JA   slack
`)
}

// preamble starts on the line of its name: a linter would take this file for generated
// if one of its lines started like that.
const preamble = `// Code generated by internal/inflate/gen. DO NOT EDIT.

//go:build !noasm

#include "go_asm.h"
#include "textflag.h"

`

const head = `
// func %[1]s(s *fastState) fastResult
TEXT ·%[1]s(SB), NOSPLIT, $%[2]d-16
	MOVQ s+0(FP), CX
	MOVQ (fastState_in)(CX), {in}
	MOVQ {in}, {inLimit}
	ADDQ (fastState_inPos)(CX), {in}
	ADDQ (fastState_inLimit)(CX), {inLimit}
	MOVQ (fastState_out)(CX), {out}
	MOVQ {out}, {outLimit}
	MOVQ {out}, {low}
	ADDQ (fastState_pos)(CX), {out}
	ADDQ (fastState_limit)(CX), {outLimit}
	ADDQ (fastState_low)(CX), {low}
	MOVQ (fastState_bits)(CX), {bits}
	MOVQ (fastState_n)(CX), {n}
	MOVQ (fastState_lit)(CX), {lit}
	MOVQ (fastState_dist)(CX), {dist}
`

const tail = `
end:
	MOVQ  $1, AX
	JMP   store

before:
	MOVQ s+0(FP), CX
	MOVQ {length}, (fastState_length)(CX)
	MOVQ DX, (fastState_distance)(CX)
	MOVQ $2, AX
	JMP  store

invalid:
	MOVQ $3, AX
	JMP  store

slack:
	XORL AX, AX

store:
	MOVQ s+0(FP), CX
	SUBQ (fastState_in)(CX), {in}
	MOVQ {in}, (fastState_inPos)(CX)
	SUBQ (fastState_out)(CX), {out}
	MOVQ {out}, (fastState_pos)(CX)
	MOVQ {bits}, (fastState_bits)(CX)
	MOVBLZX {n}, {n}
	MOVQ {n}, (fastState_n)(CX)
	MOVQ AX, ret+8(FP)
	RET
`
