// The program gen writes the amd64 assembly of the fast loop to standard
// output. It knows three things that plain assembly would repeat: the refill of
// the bit buffer, the literal entry, and the match copy.
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
var names = strings.NewReplacer(
	"{in}", "SI", "{out}", "DI", "{bits}", "R8", "{n}", "R9",
	"{lit}", "R10", "{dist}", "R11", "{inLimit}", "R12", "{outLimit}", "R13", "{low}", "BX",
	"{e}", "AX", "{length}", "R14", "{src}", "R15",
)

type generator struct{ w io.Writer }

func (g generator) emit(text string) {
	for line := range strings.Lines(names.Replace(strings.Trim(text, "\n") + "\n")) {
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

// lookup loads the litlen entry of the next bits into reg.
func (g generator) lookup(reg string) {
	g.emit(fmt.Sprintf(`
	MOVL {bits}, %[1]s
	ANDL $4095, %[1]s
	MOVL ({lit})(%[1]s*4), %[1]s
`, reg))
}

// literals writes the literals of the entry, and loads the next entry.
func (g generator) literals(loaded string) {
	g.drop("{e}")
	g.emit(`
	MOVL {e}, DX
	SHRL $8, DX
	MOVW DX, ({out})
	SHRL $30, {e}
	ADDQ {e}, {out}
`)
	g.lookup(loaded)
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
	g := generator{w}
	g.emit(head)
	g.refill()
	g.lookup("{e}")
	g.emit("\tJMP round\n\n\tPCALIGN $32\nloop:")
	g.emit(`
	CMPQ {in}, {inLimit}
	JA   slack
	CMPQ {out}, {outLimit}
	JA   slack
`)
	g.refill()
	g.emit("round:")
	for i := range 3 {
		g.emit(`
	TESTL $0x10000000, {e}
	JZ    other
`)
		g.literals("{e}")
		if i == 2 {
			g.emit("\tJMP loop\n")
		}
	}
	g.emit(`
other:
	TESTL $0x20000000, {e}
	JNZ   special
match:
	MOVL  {e}, DX
	SHRL  $8, DX
	MOVB  DX, ({out})
	MOVL  {e}, DX
	SHRL  $30, DX
	ADDQ  DX, {out}
	BZHIQ {e}, {bits}, {length}
`)
	g.drop("{e}")
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
	TESTL DX, DX
	JS    farDistance
distance:
	BZHIQ DX, {bits}, CX
`)
	g.drop("DX")
	g.lookup("{e}")
	g.emit(`
	MOVL  DX, {src}
	SHRL  $8, {src}
	SHRXQ {src}, CX, CX
	SHRL  $16, DX
	ADDQ  CX, DX // the distance
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
	MOVL {e}, DX
	SHRL $30, DX
	CMPL DX, $2
	JEQ  end
	CMPL DX, $1
	JNE  invalid
	SHRXQ {e}, {bits}, {bits}
	SUBL {e}, {n}
	MOVL {e}, DX
	SHRL $24, DX
	ANDL $15, DX
	BZHIQ DX, {bits}, CX
	SHRL $8, {e}
	MOVWLZX {e}, {e}
	ADDQ CX, {e}
	MOVL ({lit})({e}*4), {e}
	TESTL $0x10000000, {e}
	JNZ  literal
	TESTL $0x20000000, {e}
	JZ   match
	MOVL {e}, DX
	SHRL $30, DX
	CMPL DX, $2
	JNE  invalid
	JMP  end

literal:
`)
	g.literals("{e}")
	g.emit(`
	JMP loop

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
	g.tables()
	if err := w.Flush(); err != nil {
		os.Exit(1)
	}
}

const head = `
// Code generated by internal/inflate/gen. DO NOT EDIT.

//go:build !noasm

#include "go_asm.h"
#include "textflag.h"

// func fastLoop(s *fastState) fastResult
TEXT ·fastLoop(SB), NOSPLIT, $0-16
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
	SHRXQ {e}, {bits}, {bits}
	SUBL  {e}, {n}
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
