// Offsets for translated code and the assembly around it, and the entry into translated code.
#ifndef MARTLET_CPU_TRANSLATED_H
#define MARTLET_CPU_TRANSLATED_H

#define MARTLET_PAGE_RIP 136
#define MARTLET_RIP 144
#define MARTLET_TLB 152
#define MARTLET_STATUS 160
#define MARTLET_ATTENTION 164
#define MARTLET_FETCH_KEY 168
#define MARTLET_SEGMENT_BASE 184
#define MARTLET_COUNT 248
#define MARTLET_ZMM 256
#define MARTLET_OPMASK 2304
#define MARTLET_XCR0 2368
#define MARTLET_VECTOR_LEVEL 2376
#define MARTLET_VECTOR_UNITS 2392
#define MARTLET_FX 2624
#define MARTLET_MXCSR 2648
#define MARTLET_INVALIDATED 19800
#define MARTLET_LEAVE 19840
#define MARTLET_JUMP 19848
#define MARTLET_SLOW_ACCESS 19856
#define MARTLET_CALL_INTERPRETER 19864
#define MARTLET_RESOLVE 19872
#define MARTLET_HELPER_ACCESS 19880
#define MARTLET_HELPER_JUMP 19888
#define MARTLET_HELPER_RESOLVE 19896
#define MARTLET_LEAVE_WITH 19904
#define MARTLET_ACCESS_KIND 19912
#define MARTLET_BRANCH_TARGET 19944
#define MARTLET_JUMPS 19952

#define MARTLET_INSN_SIZE 88
#define MARTLET_INSN_POSITION 56
#define MARTLET_INSN_INTERPRETED 64
#define MARTLET_INSN_HOST_CODE 72
#define MARTLET_INSN_CHAIN 80

#ifndef __ASSEMBLER__
#include "cpu_state.h"

_Static_assert(offsetof(martlet_cpu, gpr[MARTLET_PAGE_RIP_REGISTER]) == MARTLET_PAGE_RIP, "offset");
_Static_assert(offsetof(martlet_cpu, rip) == MARTLET_RIP, "offset");
_Static_assert(offsetof(martlet_cpu, tlb) == MARTLET_TLB, "offset");
_Static_assert(offsetof(martlet_cpu, status) == MARTLET_STATUS, "offset");
_Static_assert(offsetof(martlet_cpu, attention) == MARTLET_ATTENTION, "offset");
_Static_assert(offsetof(martlet_cpu, fetch_key) == MARTLET_FETCH_KEY, "offset");
_Static_assert(offsetof(martlet_cpu, segment_base) == MARTLET_SEGMENT_BASE, "offset");
_Static_assert(offsetof(martlet_cpu, instruction_count) == MARTLET_COUNT, "offset");
_Static_assert(offsetof(martlet_cpu, zmm) == MARTLET_ZMM, "offset");
_Static_assert(offsetof(martlet_cpu, opmask) == MARTLET_OPMASK, "offset");
_Static_assert(offsetof(martlet_cpu, xcr0) == MARTLET_XCR0, "offset");
_Static_assert(offsetof(martlet_cpu, vector_level) == MARTLET_VECTOR_LEVEL, "offset");
_Static_assert(offsetof(martlet_cpu, vector_units) == MARTLET_VECTOR_UNITS, "offset");
_Static_assert(offsetof(martlet_cpu, fx) == MARTLET_FX, "offset");
_Static_assert(offsetof(martlet_cpu, fx[24]) == MARTLET_MXCSR, "offset");
_Static_assert(offsetof(martlet_cpu, invalidated_pages) == MARTLET_INVALIDATED, "offset");
_Static_assert(offsetof(martlet_cpu, leave) == MARTLET_LEAVE, "offset");
_Static_assert(offsetof(martlet_cpu, jump) == MARTLET_JUMP, "offset");
_Static_assert(offsetof(martlet_cpu, slow_access) == MARTLET_SLOW_ACCESS, "offset");
_Static_assert(offsetof(martlet_cpu, call_interpreter) == MARTLET_CALL_INTERPRETER, "offset");
_Static_assert(offsetof(martlet_cpu, resolve) == MARTLET_RESOLVE, "offset");
_Static_assert(offsetof(martlet_cpu, helper_access) == MARTLET_HELPER_ACCESS, "offset");
_Static_assert(offsetof(martlet_cpu, helper_jump) == MARTLET_HELPER_JUMP, "offset");
_Static_assert(offsetof(martlet_cpu, helper_resolve) == MARTLET_HELPER_RESOLVE, "offset");
_Static_assert(offsetof(martlet_cpu, leave_with) == MARTLET_LEAVE_WITH, "offset");
_Static_assert(offsetof(martlet_cpu, access_kind) == MARTLET_ACCESS_KIND, "offset");
_Static_assert(offsetof(martlet_cpu, jumps) == MARTLET_JUMPS, "offset");
_Static_assert(offsetof(martlet_cpu, branch_target) == MARTLET_BRANCH_TARGET, "offset");
_Static_assert(sizeof(martlet_insn) == MARTLET_INSN_SIZE, "size");
_Static_assert(offsetof(martlet_insn, position) == MARTLET_INSN_POSITION, "offset");
_Static_assert(offsetof(martlet_insn, interpreted) == MARTLET_INSN_INTERPRETED, "offset");
_Static_assert(offsetof(martlet_insn, host_code) == MARTLET_INSN_HOST_CODE, "offset");
_Static_assert(offsetof(martlet_insn, chain) == MARTLET_INSN_CHAIN, "offset");

// Runs the translated code of `insn`; a handler like any other.
struct martlet_insn *_Nullable martlet_enter_translated(martlet_cpu *_Nonnull cpu, martlet_insn *_Nonnull insn);
void martlet_install_exits(martlet_cpu *_Nonnull cpu);
#endif
#endif
