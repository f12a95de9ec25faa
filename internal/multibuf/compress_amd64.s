//go:build !noasm

#include "textflag.h"

// The compression function of SHA-256 (FIPS 180-4, section 6.2.2) for two streams at
// once, with the SHA extensions: SHA256RNDS2 does two rounds on the state as two
// registers, ABEF and CDGH, SHA256MSG1 and SHA256MSG2 extend the message by four
// words. Each SHA256RNDS2 waits for the one before it, so that one stream keeps the
// unit half idle; the other stream's go between.
//
// Lane 1: state X1, X2, message X3 to X6. Lane 2: state X7, X8, message X9 to X12.
// X0 has the words of the next rounds with their constants, X13 is scratch, X15 turns
// words round.

// Four words of the message, from memory.
#define LOAD(at, P, M) \
	MOVOU  at(P), M \
	PSHUFB X15, M

// Four rounds: words M and constants at k.
#define ROUNDS(k, M, ABEF, CDGH) \
	MOVO        M, X0            \
	PADDD       k(R10), X0       \
	SHA256RNDS2 X0, ABEF, CDGH   \
	PSHUFD      $0x0e, X0, X0    \
	SHA256RNDS2 X0, CDGH, ABEF

// Words 4 to 7 after M: what is in NEXT, from EXTEND1, and words 9 to 12 of the past.
#define EXTEND2(BEFORE, M, NEXT) \
	MOVO       M, X13           \
	PALIGNR    $4, BEFORE, X13  \
	PADDD      X13, NEXT        \
	SHA256MSG2 M, NEXT

// The first half of the words that will replace BEFORE.
#define EXTEND1(BEFORE, M) \
	SHA256MSG1 M, BEFORE

// The state in memory, eight words, as ABEF and CDGH.
#define UNPACK(H, ABEF, CDGH) \
	MOVOU   (H), X13          \
	MOVOU   16(H), CDGH       \
	PSHUFD  $0xb1, X13, X13   \
	PSHUFD  $0x1b, CDGH, CDGH \
	MOVO    X13, ABEF         \
	PALIGNR $8, CDGH, ABEF    \
	PBLENDW $0xf0, X13, CDGH

// And back.
#define PACK(H, ABEF, CDGH) \
	PSHUFD  $0x1b, ABEF, X13  \
	PSHUFD  $0xb1, CDGH, CDGH \
	MOVO    X13, ABEF         \
	PBLENDW $0xf0, CDGH, ABEF \
	PALIGNR $8, X13, CDGH     \
	MOVOU   ABEF, (H)         \
	MOVOU   CDGH, 16(H)

// func compress2(h1, h2 *[8]uint32, p1, p2 *byte, blocks int)
TEXT ·compress2(SB), NOSPLIT, $64-40
	MOVQ h1+0(FP), DI
	MOVQ h2+8(FP), SI
	MOVQ p1+16(FP), R8
	MOVQ p2+24(FP), R9
	MOVQ blocks+32(FP), CX
	LEAQ constants<>(SB), R10
	MOVOU wordOrder<>(SB), X15
	UNPACK(DI, X1, X2)
	UNPACK(SI, X7, X8)

loop:
	MOVOU X1, saved-64(SP)
	MOVOU X2, saved-48(SP)
	MOVOU X7, saved-32(SP)
	MOVOU X8, saved-16(SP)

	LOAD(0, R8, X3)
	LOAD(0, R9, X9)
	ROUNDS(0, X3, X1, X2)
	ROUNDS(0, X9, X7, X8)

	LOAD(16, R8, X4)
	LOAD(16, R9, X10)
	ROUNDS(16, X4, X1, X2)
	EXTEND1(X3, X4)
	ROUNDS(16, X10, X7, X8)
	EXTEND1(X9, X10)

	LOAD(32, R8, X5)
	LOAD(32, R9, X11)
	ROUNDS(32, X5, X1, X2)
	EXTEND1(X4, X5)
	ROUNDS(32, X11, X7, X8)
	EXTEND1(X10, X11)

	LOAD(48, R8, X6)
	LOAD(48, R9, X12)
	ROUNDS(48, X6, X1, X2)
	EXTEND2(X5, X6, X3)
	EXTEND1(X5, X6)
	ROUNDS(48, X12, X7, X8)
	EXTEND2(X11, X12, X9)
	EXTEND1(X11, X12)

	ROUNDS(64, X3, X1, X2)
	EXTEND2(X6, X3, X4)
	EXTEND1(X6, X3)
	ROUNDS(64, X9, X7, X8)
	EXTEND2(X12, X9, X10)
	EXTEND1(X12, X9)

	ROUNDS(80, X4, X1, X2)
	EXTEND2(X3, X4, X5)
	EXTEND1(X3, X4)
	ROUNDS(80, X10, X7, X8)
	EXTEND2(X9, X10, X11)
	EXTEND1(X9, X10)

	ROUNDS(96, X5, X1, X2)
	EXTEND2(X4, X5, X6)
	EXTEND1(X4, X5)
	ROUNDS(96, X11, X7, X8)
	EXTEND2(X10, X11, X12)
	EXTEND1(X10, X11)

	ROUNDS(112, X6, X1, X2)
	EXTEND2(X5, X6, X3)
	EXTEND1(X5, X6)
	ROUNDS(112, X12, X7, X8)
	EXTEND2(X11, X12, X9)
	EXTEND1(X11, X12)

	ROUNDS(128, X3, X1, X2)
	EXTEND2(X6, X3, X4)
	EXTEND1(X6, X3)
	ROUNDS(128, X9, X7, X8)
	EXTEND2(X12, X9, X10)
	EXTEND1(X12, X9)

	ROUNDS(144, X4, X1, X2)
	EXTEND2(X3, X4, X5)
	EXTEND1(X3, X4)
	ROUNDS(144, X10, X7, X8)
	EXTEND2(X9, X10, X11)
	EXTEND1(X9, X10)

	ROUNDS(160, X5, X1, X2)
	EXTEND2(X4, X5, X6)
	EXTEND1(X4, X5)
	ROUNDS(160, X11, X7, X8)
	EXTEND2(X10, X11, X12)
	EXTEND1(X10, X11)

	ROUNDS(176, X6, X1, X2)
	EXTEND2(X5, X6, X3)
	EXTEND1(X5, X6)
	ROUNDS(176, X12, X7, X8)
	EXTEND2(X11, X12, X9)
	EXTEND1(X11, X12)

	ROUNDS(192, X3, X1, X2)
	EXTEND2(X6, X3, X4)
	EXTEND1(X6, X3)
	ROUNDS(192, X9, X7, X8)
	EXTEND2(X12, X9, X10)
	EXTEND1(X12, X9)

	ROUNDS(208, X4, X1, X2)
	EXTEND2(X3, X4, X5)
	ROUNDS(208, X10, X7, X8)
	EXTEND2(X9, X10, X11)

	ROUNDS(224, X5, X1, X2)
	EXTEND2(X4, X5, X6)
	ROUNDS(224, X11, X7, X8)
	EXTEND2(X10, X11, X12)

	ROUNDS(240, X6, X1, X2)
	ROUNDS(240, X12, X7, X8)

	MOVOU saved-64(SP), X13
	PADDD X13, X1
	MOVOU saved-48(SP), X13
	PADDD X13, X2
	MOVOU saved-32(SP), X13
	PADDD X13, X7
	MOVOU saved-16(SP), X13
	PADDD X13, X8
	ADDQ  $64, R8
	ADDQ  $64, R9
	DECQ  CX
	JNZ   loop

	PACK(DI, X1, X2)
	PACK(SI, X7, X8)
	RET

// func features() (ebx7, ecx1 uint32)
TEXT ·features(SB), NOSPLIT, $0-8
	XORL AX, AX
	CPUID
	MOVL AX, R8 // the highest leaf
	MOVL $1, AX
	XORL CX, CX
	CPUID
	MOVL CX, ecx1+4(FP)
	XORL BX, BX
	CMPL R8, $7
	JLT  done
	MOVL $7, AX
	XORL CX, CX
	CPUID

done:
	MOVL BX, ebx7+0(FP)
	RET

DATA wordOrder<>+0(SB)/8, $0x0405060700010203
DATA wordOrder<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL wordOrder<>(SB), RODATA|NOPTR, $16

DATA constants<>+0(SB)/4, $0x428a2f98
DATA constants<>+4(SB)/4, $0x71374491
DATA constants<>+8(SB)/4, $0xb5c0fbcf
DATA constants<>+12(SB)/4, $0xe9b5dba5
DATA constants<>+16(SB)/4, $0x3956c25b
DATA constants<>+20(SB)/4, $0x59f111f1
DATA constants<>+24(SB)/4, $0x923f82a4
DATA constants<>+28(SB)/4, $0xab1c5ed5
DATA constants<>+32(SB)/4, $0xd807aa98
DATA constants<>+36(SB)/4, $0x12835b01
DATA constants<>+40(SB)/4, $0x243185be
DATA constants<>+44(SB)/4, $0x550c7dc3
DATA constants<>+48(SB)/4, $0x72be5d74
DATA constants<>+52(SB)/4, $0x80deb1fe
DATA constants<>+56(SB)/4, $0x9bdc06a7
DATA constants<>+60(SB)/4, $0xc19bf174
DATA constants<>+64(SB)/4, $0xe49b69c1
DATA constants<>+68(SB)/4, $0xefbe4786
DATA constants<>+72(SB)/4, $0x0fc19dc6
DATA constants<>+76(SB)/4, $0x240ca1cc
DATA constants<>+80(SB)/4, $0x2de92c6f
DATA constants<>+84(SB)/4, $0x4a7484aa
DATA constants<>+88(SB)/4, $0x5cb0a9dc
DATA constants<>+92(SB)/4, $0x76f988da
DATA constants<>+96(SB)/4, $0x983e5152
DATA constants<>+100(SB)/4, $0xa831c66d
DATA constants<>+104(SB)/4, $0xb00327c8
DATA constants<>+108(SB)/4, $0xbf597fc7
DATA constants<>+112(SB)/4, $0xc6e00bf3
DATA constants<>+116(SB)/4, $0xd5a79147
DATA constants<>+120(SB)/4, $0x06ca6351
DATA constants<>+124(SB)/4, $0x14292967
DATA constants<>+128(SB)/4, $0x27b70a85
DATA constants<>+132(SB)/4, $0x2e1b2138
DATA constants<>+136(SB)/4, $0x4d2c6dfc
DATA constants<>+140(SB)/4, $0x53380d13
DATA constants<>+144(SB)/4, $0x650a7354
DATA constants<>+148(SB)/4, $0x766a0abb
DATA constants<>+152(SB)/4, $0x81c2c92e
DATA constants<>+156(SB)/4, $0x92722c85
DATA constants<>+160(SB)/4, $0xa2bfe8a1
DATA constants<>+164(SB)/4, $0xa81a664b
DATA constants<>+168(SB)/4, $0xc24b8b70
DATA constants<>+172(SB)/4, $0xc76c51a3
DATA constants<>+176(SB)/4, $0xd192e819
DATA constants<>+180(SB)/4, $0xd6990624
DATA constants<>+184(SB)/4, $0xf40e3585
DATA constants<>+188(SB)/4, $0x106aa070
DATA constants<>+192(SB)/4, $0x19a4c116
DATA constants<>+196(SB)/4, $0x1e376c08
DATA constants<>+200(SB)/4, $0x2748774c
DATA constants<>+204(SB)/4, $0x34b0bcb5
DATA constants<>+208(SB)/4, $0x391c0cb3
DATA constants<>+212(SB)/4, $0x4ed8aa4a
DATA constants<>+216(SB)/4, $0x5b9cca4f
DATA constants<>+220(SB)/4, $0x682e6ff3
DATA constants<>+224(SB)/4, $0x748f82ee
DATA constants<>+228(SB)/4, $0x78a5636f
DATA constants<>+232(SB)/4, $0x84c87814
DATA constants<>+236(SB)/4, $0x8cc70208
DATA constants<>+240(SB)/4, $0x90befffa
DATA constants<>+244(SB)/4, $0xa4506ceb
DATA constants<>+248(SB)/4, $0xbef9a3f7
DATA constants<>+252(SB)/4, $0xc67178f2
GLOBL constants<>(SB), RODATA|NOPTR, $256
