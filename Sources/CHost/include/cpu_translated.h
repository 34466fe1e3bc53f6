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
#define MARTLET_INVALIDATED 9632
#define MARTLET_LEAVE 9672
#define MARTLET_JUMP 9680
#define MARTLET_SLOW_ACCESS 9688
#define MARTLET_CALL_INTERPRETER 9696
#define MARTLET_RESOLVE 9704
#define MARTLET_HELPER_ACCESS 9712
#define MARTLET_HELPER_JUMP 9720
#define MARTLET_HELPER_RESOLVE 9728
#define MARTLET_LEAVE_WITH 9736
#define MARTLET_ACCESS_KIND 9744
#define MARTLET_BRANCH_TARGET 9776
#define MARTLET_JUMPS 424216

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
