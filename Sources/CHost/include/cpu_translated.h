// Offsets for translated code and the assembly around it, and the entry into translated code.
#ifndef MARTLET_CPU_TRANSLATED_H
#define MARTLET_CPU_TRANSLATED_H

#define MARTLET_PAGE_RIP 136
#define MARTLET_RIP 144
#define MARTLET_TLB 152
#define MARTLET_TLB_PLANE_SIZE 33280
#define MARTLET_STATUS 160
#define MARTLET_ATTENTION 164
#define MARTLET_FETCH_KEY 168
#define MARTLET_RFLAGS 176
#define MARTLET_SEGMENT_BASE 184
#define MARTLET_COUNT 248
#define MARTLET_ZMM 256
#define MARTLET_OPMASK 2304
#define MARTLET_XCR0 2368
#define MARTLET_VECTOR_LEVEL 2376
#define MARTLET_VECTOR_UNITS 2392
#define MARTLET_SEGMENT_END 2400
#define MARTLET_FX 2624
#define MARTLET_FX_HEADER 3136
#define MARTLET_X87_OPCODE 3200
#define MARTLET_X87_INSTRUCTION 3208
#define MARTLET_X87_DATA 3216
#define MARTLET_X87_NEXT_DATA 3224
#define MARTLET_MXCSR 2648
#define MARTLET_INVALIDATED 19896
#define MARTLET_JUMP 19936
#define MARTLET_SITE_MISS 19944
#define MARTLET_CALL_INTERPRETER 19952
#define MARTLET_HELPER_TRIAL 19960
#define MARTLET_LOST_RETURN 19968
#define MARTLET_LOAD_VECTORS 19976
#define MARTLET_HELPER_ACCESS 19984
#define MARTLET_HELPER_JUMP 19992
#define MARTLET_HELPER_RESOLVE 20000
#define MARTLET_HELPER_ALTERNATIVE 20008
#define MARTLET_HELPER_HOP 20016
#define MARTLET_SHARED_TARGETS_OFFSET 152792
#define MARTLET_LEAVE_WITH 20024
#define MARTLET_ACCESS_ADDRESS 20032
#define MARTLET_ACCESS_KIND 20040
#define MARTLET_RECORDS 20072
#define MARTLET_LOCAL_SITES 20088
#define MARTLET_GLOBAL_SITES 20096
#define MARTLET_LOCAL_SITE_COUNT 20104
#define MARTLET_GLOBAL_SITE_COUNT 20108
#define MARTLET_USER_RETURN_TOP 20112
#define MARTLET_SUPERVISOR_RETURN_TOP 20116
#define MARTLET_USER_RETURNS 20120
#define MARTLET_SUPERVISOR_RETURNS 20376
#define MARTLET_SITE_PAGES 20648
#define MARTLET_HOST_MXCSR 21672
#define MARTLET_SITE_MISSES 21696
#define MARTLET_TARGET_MISSES 21704
#define MARTLET_COUNTS 21676
#define MARTLET_CR0 3416
#define MARTLET_CR4 3440
#define MARTLET_BRANCH_TARGET 21712
#define MARTLET_JUMPS 21720
#define MARTLET_STRING_OPERATIONS 2256808
#define MARTLET_LOCAL_SITE_NUMBERS 2257064
#define MARTLET_GLOBAL_SITE_NUMBERS 2257072
#define MARTLET_JUMP_SALT 2252656

#define MARTLET_INSN_SIZE 80
#define MARTLET_INSN_POSITION 56
#define MARTLET_INSN_COUNTDOWN 60
#define MARTLET_INSN_INTERPRETED 64
#define MARTLET_INSN_HOST_CODE 72

// struct martlet_site
#define SITE_TAG 0
#define SITE_ADDEND 8
#define SITE_RETRY 16
#define SITE_INSN 24
#define SITE_AFTER 32
#define SITE_KIND 33
#define SITE_SIZE 34
#define SITE_FLAGS 35
#define SITE_LIMIT 36
#define SITE_MISSES 38
#define SITE_WRAPPED 40
#define SITE_ALTERNATIVE 48
#define SITE_LOCAL_INDEX 44
#define SITE_GLOBAL_INDEX 56
#define SITE_RECORD 64 // 1 << 6

// struct martlet_target
#define TARGET_NEGATIVE_RIP 0
#define TARGET_NEGATIVE_KEY 8
#define TARGET_HOST 16
#define TARGET_PAGE_RIP 24
#define TARGET_RIP 32
#define TARGET_INSN 40

#ifndef __ASSEMBLER__
#include "cpu_state.h"

_Static_assert(offsetof(martlet_cpu, gpr[MARTLET_PAGE_RIP_REGISTER]) == MARTLET_PAGE_RIP, "offset");
_Static_assert(offsetof(martlet_cpu, rip) == MARTLET_RIP, "offset");
_Static_assert(offsetof(martlet_cpu, tlb) == MARTLET_TLB, "offset");
_Static_assert(offsetof(martlet_tlb, write_tags) == MARTLET_TLB_PLANE_SIZE, "offset");
_Static_assert(offsetof(martlet_tlb, addends) == 2 * MARTLET_TLB_PLANE_SIZE, "offset");
_Static_assert(offsetof(martlet_tlb, flags) == 3 * MARTLET_TLB_PLANE_SIZE, "offset");
_Static_assert(offsetof(martlet_cpu, status) == MARTLET_STATUS, "offset");
_Static_assert(offsetof(martlet_cpu, attention) == MARTLET_ATTENTION, "offset");
_Static_assert(offsetof(martlet_cpu, fetch_key) == MARTLET_FETCH_KEY, "offset");
_Static_assert(offsetof(martlet_cpu, rflags) == MARTLET_RFLAGS, "offset");
_Static_assert(offsetof(martlet_cpu, string_operations) == MARTLET_STRING_OPERATIONS, "offset");
_Static_assert(offsetof(martlet_cpu, jump_salt) == MARTLET_JUMP_SALT, "offset");
_Static_assert(offsetof(martlet_cpu, segment_base) == MARTLET_SEGMENT_BASE, "offset");
_Static_assert(offsetof(martlet_cpu, instruction_count) == MARTLET_COUNT, "offset");
_Static_assert(offsetof(martlet_cpu, zmm) == MARTLET_ZMM, "offset");
_Static_assert(offsetof(martlet_cpu, opmask) == MARTLET_OPMASK, "offset");
_Static_assert(offsetof(martlet_cpu, xcr0) == MARTLET_XCR0, "offset");
_Static_assert(offsetof(martlet_cpu, vector_level) == MARTLET_VECTOR_LEVEL, "offset");
_Static_assert(offsetof(martlet_cpu, vector_units) == MARTLET_VECTOR_UNITS, "offset");
_Static_assert(offsetof(martlet_cpu, segment_end) == MARTLET_SEGMENT_END, "offset");
_Static_assert(offsetof(martlet_cpu, fx) == MARTLET_FX, "offset");
_Static_assert(offsetof(martlet_cpu, fx[24]) == MARTLET_MXCSR, "offset");
_Static_assert(offsetof(martlet_cpu, fx_header) == MARTLET_FX_HEADER, "offset");
_Static_assert(MARTLET_FX % 64 == 0 && MARTLET_FX_HEADER == MARTLET_FX + 512, "an XSAVE area");
_Static_assert(offsetof(martlet_cpu, x87_opcode) == MARTLET_X87_OPCODE, "offset");
_Static_assert(offsetof(martlet_cpu, x87_instruction) == MARTLET_X87_INSTRUCTION, "offset");
_Static_assert(offsetof(martlet_cpu, x87_data) == MARTLET_X87_DATA, "offset");
_Static_assert(offsetof(martlet_cpu, x87_next_data) == MARTLET_X87_NEXT_DATA, "offset");
_Static_assert(offsetof(martlet_cpu, invalidated_pages) == MARTLET_INVALIDATED, "offset");
_Static_assert(offsetof(martlet_cpu, jump) == MARTLET_JUMP, "offset");
_Static_assert(offsetof(martlet_cpu, site_miss) == MARTLET_SITE_MISS, "offset");
_Static_assert(offsetof(martlet_cpu, call_interpreter) == MARTLET_CALL_INTERPRETER, "offset");
_Static_assert(offsetof(martlet_cpu, lost_return) == MARTLET_LOST_RETURN, "offset");
_Static_assert(offsetof(martlet_cpu, load_vectors) == MARTLET_LOAD_VECTORS, "offset");
_Static_assert(offsetof(martlet_cpu, helper_access) == MARTLET_HELPER_ACCESS, "offset");
_Static_assert(offsetof(martlet_cpu, helper_jump) == MARTLET_HELPER_JUMP, "offset");
_Static_assert(offsetof(martlet_cpu, helper_trial) == MARTLET_HELPER_TRIAL, "offset");
_Static_assert(offsetof(martlet_cpu, helper_resolve) == MARTLET_HELPER_RESOLVE, "offset");
_Static_assert(offsetof(martlet_cpu, helper_alternative) == MARTLET_HELPER_ALTERNATIVE, "offset");
_Static_assert(offsetof(martlet_cpu, helper_hop) == MARTLET_HELPER_HOP, "offset");
_Static_assert(offsetof(martlet_cpu, shared_targets) == MARTLET_SHARED_TARGETS_OFFSET, "offset");
_Static_assert(offsetof(martlet_cpu, leave_with) == MARTLET_LEAVE_WITH, "offset");
_Static_assert(offsetof(martlet_cpu, access_address) == MARTLET_ACCESS_ADDRESS, "offset");
_Static_assert(offsetof(martlet_cpu, access_kind) == MARTLET_ACCESS_KIND, "offset");
_Static_assert(offsetof(martlet_cpu, records) == MARTLET_RECORDS, "offset");
_Static_assert(offsetof(martlet_cpu, local_sites) == MARTLET_LOCAL_SITES, "offset");
_Static_assert(offsetof(martlet_cpu, global_sites) == MARTLET_GLOBAL_SITES, "offset");
_Static_assert(offsetof(martlet_cpu, local_site_count) == MARTLET_LOCAL_SITE_COUNT, "offset");
_Static_assert(offsetof(martlet_cpu, global_site_count) == MARTLET_GLOBAL_SITE_COUNT, "offset");
_Static_assert(offsetof(martlet_cpu, user_return_top) == MARTLET_USER_RETURN_TOP, "offset");
_Static_assert(offsetof(martlet_cpu, supervisor_return_top) == MARTLET_SUPERVISOR_RETURN_TOP, "offset");
_Static_assert(offsetof(martlet_cpu, user_returns) == MARTLET_USER_RETURNS, "offset");
_Static_assert(offsetof(martlet_cpu, supervisor_returns) == MARTLET_SUPERVISOR_RETURNS, "offset");
_Static_assert(offsetof(martlet_cpu, site_pages) == MARTLET_SITE_PAGES, "offset");
_Static_assert(offsetof(martlet_cpu, host_mxcsr) == MARTLET_HOST_MXCSR, "offset");
_Static_assert(offsetof(martlet_cpu, site_misses) == MARTLET_SITE_MISSES, "offset");
_Static_assert(offsetof(martlet_cpu, target_misses) == MARTLET_TARGET_MISSES, "offset");
_Static_assert(offsetof(martlet_cpu, counts_instructions) == MARTLET_COUNTS, "offset");
_Static_assert(offsetof(martlet_cpu, cr0) == MARTLET_CR0, "offset");
_Static_assert(offsetof(martlet_cpu, cr4) == MARTLET_CR4, "offset");
_Static_assert(offsetof(martlet_cpu, jumps) == MARTLET_JUMPS, "offset");
_Static_assert(offsetof(martlet_cpu, branch_target) == MARTLET_BRANCH_TARGET, "offset");
_Static_assert(sizeof(martlet_insn) == MARTLET_INSN_SIZE, "size");
_Static_assert(offsetof(martlet_insn, position) == MARTLET_INSN_POSITION, "offset");
_Static_assert(offsetof(martlet_insn, countdown) == MARTLET_INSN_COUNTDOWN, "offset");
_Static_assert(offsetof(martlet_insn, interpreted) == MARTLET_INSN_INTERPRETED, "offset");
_Static_assert(offsetof(martlet_insn, host_code) == MARTLET_INSN_HOST_CODE, "offset");

_Static_assert(offsetof(martlet_site, tag) == SITE_TAG, "offset");
_Static_assert(offsetof(martlet_site, addend) == SITE_ADDEND, "offset");
_Static_assert(offsetof(martlet_site, retry) == SITE_RETRY, "offset");
_Static_assert(offsetof(martlet_site, insn) == SITE_INSN, "offset");
_Static_assert(offsetof(martlet_site, after) == SITE_AFTER, "offset");
_Static_assert(offsetof(martlet_site, kind) == SITE_KIND, "offset");
_Static_assert(offsetof(martlet_site, size) == SITE_SIZE, "offset");
_Static_assert(offsetof(martlet_site, flags) == SITE_FLAGS, "offset");
_Static_assert(offsetof(martlet_site, limit) == SITE_LIMIT, "offset");
_Static_assert(offsetof(martlet_site, alternative) == SITE_ALTERNATIVE, "offset");
_Static_assert(offsetof(martlet_site, misses) == SITE_MISSES, "offset");
_Static_assert(offsetof(martlet_site, wrapped) == SITE_WRAPPED, "offset");
_Static_assert(offsetof(martlet_site, local_index) == SITE_LOCAL_INDEX, "offset");
_Static_assert(offsetof(martlet_site, global_index) == SITE_GLOBAL_INDEX, "offset");
_Static_assert(offsetof(martlet_cpu, local_site_numbers) == MARTLET_LOCAL_SITE_NUMBERS, "offset");
_Static_assert(offsetof(martlet_cpu, global_site_numbers) == MARTLET_GLOBAL_SITE_NUMBERS, "offset");
_Static_assert(sizeof(martlet_site) == SITE_RECORD && sizeof(martlet_target) == SITE_RECORD, "size");
_Static_assert(offsetof(martlet_target, negative_rip) == TARGET_NEGATIVE_RIP, "offset");
_Static_assert(offsetof(martlet_target, negative_key) == TARGET_NEGATIVE_KEY, "offset");
_Static_assert(offsetof(martlet_target, host) == TARGET_HOST, "offset");
_Static_assert(offsetof(martlet_target, page_rip) == TARGET_PAGE_RIP, "offset");
_Static_assert(offsetof(martlet_target, rip) == TARGET_RIP, "offset");
_Static_assert(offsetof(martlet_target, insn) == TARGET_INSN, "offset");

// Runs the translated code of `insn`; a handler like any other.
struct martlet_insn *_Nullable martlet_enter_translated(martlet_cpu *_Nonnull cpu, martlet_insn *_Nonnull insn);
void martlet_install_exits(martlet_cpu *_Nonnull cpu);
// Where translated code jumps with the number of a site or of a link on the stack.
void martlet_number_missed(void);
void martlet_number_missed_flags(void);
void martlet_resolve_translated(void);
// And at the entry of a block, its first instruction in r14.
void martlet_trial_ended(void);
// A serializing instruction, as needed between changing code through one mapping and running it through another
// (SDM vol. 3A §9.3). Not CPUID, which leaves to the hypervisor in a virtual machine.
void martlet_serialize(void);
#endif
#endif
