// The state of one software vCPU: one allocation, fixed offsets, shared by Swift, assembly and (later) translated code.
// Owned by the vCPU's thread; only `attention` is written by others.
#ifndef MARTLET_CPU_STATE_H
#define MARTLET_CPU_STATE_H

#include <stddef.h>
#include <stdint.h>

#include "cpu_counters.h"
#include "cpu_trace.h"

// General registers by encoding; two more make every effective address one formula:
// a register that is always zero, and the rip of the start of the current code page.
enum {
    MARTLET_REGISTER_COUNT = 18,
    MARTLET_ZERO_REGISTER = 16,
    MARTLET_PAGE_RIP_REGISTER = 17,
    MARTLET_TLB_ENTRIES = 4096,
    MARTLET_TLB_PLANE = MARTLET_TLB_ENTRIES + 64,
    MARTLET_JUMP_ENTRIES = 4096,
    MARTLET_FETCH_ENTRIES = 256,
    MARTLET_SHARED_TARGETS = 65536,
    MARTLET_SITE_PAGE_WORDS = 64,
    MARTLET_RETURN_ENTRIES = 16, // the stack pointer is a byte that wraps
    MARTLET_TLB_TABLES = 3,
    MARTLET_TLB_USER = 0,
    MARTLET_TLB_SUPERVISOR = 1,           // keeps off user pages (SMAP)
    MARTLET_TLB_SUPERVISOR_WITH_USER = 2, // may touch them: no SMAP, or AC
    MARTLET_LARGE_REGIONS = 15,
    MARTLET_ADDRESS_SPACES = 8,           // Linux uses six PCIDs at a time, and 0 while it boots
    MARTLET_MAX_SLOTS = 64,
    MARTLET_MMIO_FRAGMENTS = 384, // XSAVE's 2,688 bytes and its header twice, in quads, and a page crossing
    MARTLET_EXTENDED_SIZE = 2688, // XSAVE area with all state components up to Hi16_ZMM
    MARTLET_ZMM_COUNT = 32,
    MARTLET_ZMM_SIZE = 64,
    MARTLET_PORT_BATCH = 1024, // KVM's limit for one exit: 1,024 bytes of INS
};

// A segment register with its hidden part (SDM vol. 3A §3.4.3). `attributes` has the descriptor's bits 40–55 without the
// limit: type 0–3, S 4, DPL 5–6, P 7, AVL 12, L 13, D/B 14, G 15; bit 8, a limit bit in the descriptor: unusable.
typedef struct martlet_segment {
    uint16_t selector;
    uint16_t attributes;
    uint32_t limit;
    uint64_t base;
} martlet_segment;

typedef struct martlet_table_register {
    uint64_t base;
    uint16_t limit;
} martlet_table_register;

// The software TLB. Each field of its lines has a plane of its own, so that a line's number times 8 leads to all of them.
// The planes are a little further apart than they are long: the fields of a line shall not share a set of the host's
// caches. A tag is the page's guest-virtual address when that kind of access may go straight to host memory; otherwise it
// is an address that this line can never be asked for.
typedef struct martlet_tlb {
    uint64_t read_tags[MARTLET_TLB_PLANE];
    uint64_t write_tags[MARTLET_TLB_PLANE];
    uint64_t addends[MARTLET_TLB_PLANE]; // host address - guest address
    uint64_t flags[MARTLET_TLB_PLANE]; // MARTLET_TLB_*, and from bit 12 on the page's guest-physical address
} martlet_tlb;

enum {
    MARTLET_TLB_GLOBAL = 1,
    MARTLET_TLB_NOT_IN_SITES = 2, // a user page that supervisor mode may touch only while RFLAGS.AC is set
    MARTLET_TLB_CODE = 4,         // could be written but for the page's decoded code: a store must look for that first
};

// Where the instructions at a guest-virtual page come from. `tag` is the page's address, or all ones. User mode and
// supervisor mode have a table each.
typedef struct martlet_fetch_entry {
    uint64_t tag;
    uint64_t guest_physical;
    uint8_t *_Nullable host;
    uint64_t page_index;
} martlet_fetch_entry;

// A set of numbers below 4096; bit n of `summary`: word n is not 0.
typedef struct martlet_line_set {
    uint64_t summary;
    uint64_t words[MARTLET_TLB_ENTRIES / 64];
} martlet_line_set;

// What is known of one address space, by its PCID (SDM vol. 3A §4.10.1). All zeros but lines 0: empty.
typedef struct martlet_address_space {
    // What jump entries and links made in it carry. supervisor_generation is 0 as long as supervisor mode has fetched
    // from global pages only: then the generation that all address spaces share counts.
    uint64_t user_generation;
    uint64_t supervisor_generation;
    uint64_t last_used;
    uint32_t pcid;
    uint32_t is_used;
    uint32_t jump_salt;
    // Where lines of pages of 2 MiB and more may be: bit (address >> 21) & 511, and the regions of 1 GiB
    // (address >> 30 << 1, bit 0: with pages of more than 2 MiB). More regions than there is room for: anywhere.
    uint64_t large_pages[8];
    uint64_t large_regions[MARTLET_LARGE_REGIONS];
    uint32_t large_region_count;
    // Pages of the lower half that user mode has fetched from, by a hash: others have no jump entry.
    uint64_t fetched[64];
    // Entries of the fetch tables that are filled, and of pages that are not global.
    uint64_t fetch_filled[2][MARTLET_FETCH_ENTRIES / 64];
    uint64_t fetch_local[2][MARTLET_FETCH_ENTRIES / 64];
    // Lines of the tables that may be filled, so that a flush costs what was filled.
    martlet_line_set local_lines[MARTLET_TLB_TABLES];
    martlet_line_set global_lines[MARTLET_TLB_TABLES];
    martlet_fetch_entry fetch[2][MARTLET_FETCH_ENTRIES]; // supervisor, user
    martlet_tlb tlb[MARTLET_TLB_TABLES];
} martlet_address_space;

struct martlet_insn;

// A data access in translated code and the page that it last used: one compare, off the address path. The tag of an
// unused site is an address that no access can be expected to have (`no_page`).
typedef struct martlet_site {
    uint64_t tag;
    uint64_t addend; // host address - guest address
    void *_Nullable retry; // where the compare starts
    struct martlet_insn *_Nullable insn;
    uint8_t after;   // distance from `retry` to behind the compare
    uint8_t kind;    // 1 read, 2 write, 3 both; 4 aligned; 8 of supervisor code; 16 the guest's flags are in the host's
    uint8_t size;
    uint8_t flags;   // MARTLET_SITE_*
    uint16_t limit;  // page size - size of what is accessed
    uint8_t misses;  // counts and wraps
    uint8_t rounds;  // how often it has
    uint32_t wrapped; // time stamp of the last time that it did, low half
    uint32_t local_index; // in the lists of sites
    void *_Nullable alternative; // of a site for several accesses: the same code with a compare for each
    uint32_t global_index;
    int32_t group_start : 27; // of a site for several accesses: the first byte, from the register's value at `insn`
    uint32_t group_register : 4;
    uint32_t is_split : 1; // its block is such an alternative already
} martlet_site;

enum {
    MARTLET_SITE_LOCAL = 1,   // in the state's list of sites whose page is not global
    MARTLET_SITE_GLOBAL = 16, // in the other list
    MARTLET_SITE_GROUP = 2,
    MARTLET_SITE_ADDEND = 4,  // the access adds the addend itself; else it uses a host address
    MARTLET_SITE_FLAGS = 8,   // the guest's status flags wait in `status`
    MARTLET_SITE_HOPS = 32,   // has looked at the TLB itself
    MARTLET_SITE_FLAT32 = 64, // of 32-bit code: what is beyond 4 GiB wraps there, and is the interpreter's
    MARTLET_SITE_MAY_HOP = 128, // takes its addend from the TLB each time if it is found to miss often
};

// Whether an instruction's accesses look at the TLB instead of a page that they remember.
enum {
    MARTLET_HOPS_UNKNOWN = 0,
    MARTLET_HOPS_YES = 1,
    MARTLET_HOPS_TRIAL = 2, // so it will be, if it misses often before its block was entered a number of times
    MARTLET_HOPS_NO = 3,    // it did not
};

// A direct branch inside a page that does not lead to its target yet.
typedef struct martlet_link {
    struct martlet_insn *_Nonnull insn;
    uint32_t place; // of its distance in the code; all ones: it stays as it is
    int32_t offset; // of its target from the page's start
} martlet_link;

// Where a translated indirect (or page-crossing) branch last went, and under which fetch generation.
typedef struct martlet_target {
    uint64_t negative_rip;
    uint64_t negative_key;
    void *_Nullable host;
    uint64_t page_rip;
    uint64_t rip;
    struct martlet_insn *_Nullable insn;
    uint64_t reserved[2];
} martlet_target;

// The same for branches that change their target: found by the target's low 16 bits.
typedef struct martlet_shared_target {
    uint64_t negative_rip;
    uint64_t negative_key;
    void *_Nullable host;
    uint64_t page_rip;
} martlet_shared_target;

// A call that translated code expects to return: the complement of the return address, and the code there.
typedef struct martlet_return {
    uint64_t not_rip;
    void *_Nullable host;
} martlet_return;

typedef struct martlet_jump_entry {
    uint64_t rip;
    uint64_t key;
    struct martlet_insn *_Nullable target;
    uint64_t page_rip;
} martlet_jump_entry;

// A decoded instruction. Registers are byte offsets into `gpr` (so that AH is 1).
typedef struct martlet_insn {
    void *_Nullable handler;
    uint64_t immediate;
    void *_Nullable link; // branch: the target's first instruction; vector: the stub
    uint64_t link_key;    // branch: the fetch generation for which a link to another page holds, 0: same page;
                          // VEX and EVEX: the prefix, and what handlers want to know (CPU/Vector/WideBinding.swift)
    int32_t displacement;
    uint16_t page_offset;
    uint8_t length;
    uint8_t reg;
    uint8_t rm;
    uint8_t base;
    uint8_t index;
    uint8_t scale;
    uint8_t segment;
    uint8_t flags;
    uint8_t size; // operand size in bytes
    uint8_t operation;
    uint16_t mnemonic;
    uint8_t address_size;
    uint8_t modrm;
    uint8_t prefixes;
    uint8_t rex;
    uint8_t opcode;
    uint8_t map;
    uint8_t position; // number of this instruction in its block
    uint8_t hops;     // its data accesses change their page often: MARTLET_HOPS_*
    uint8_t block_length; // of the first instruction: how many its block has
    uint8_t is_flat32;    // decoded while `is_flat32` of the state was set
    int32_t countdown; // block entries until the translator takes the block; behind that, until a trial ends
    void *_Nullable interpreted; // the interpreter's handler, whatever `handler` is
    void *_Nullable host_code;   // translated code that starts here
} martlet_insn;

// Memory slots as the engine sees them: guest-physical to host (KVM_SET_USER_MEMORY_REGION).
typedef struct martlet_slot {
    uint64_t guest_physical;
    uint64_t size;
    uint8_t *_Nullable host;
    uint64_t page_index; // number of this slot's first page in the per-page tables
    uint32_t identifier;
    uint32_t flags; // KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
} martlet_slot;

// Code that was decoded from one guest-physical page: a bit for each 64 bytes, and the list of its blocks.
typedef struct martlet_page_code {
    uint64_t granules;
    uint32_t first_block;
    uint32_t writable_epoch; // the TLB's epoch when a line was last filled through which the page can be written
} martlet_page_code;

// For other threads than the page's owner.
static inline uint64_t martlet_page_granules(const martlet_page_code *_Nonnull page) {
    return __atomic_load_n(&page->granules, __ATOMIC_RELAXED);
}

// The engine around the processor. A hook that returns 0 has handled the access.
typedef struct martlet_cpu_hooks {
    void *_Nullable context;
    // Memory-mapped access of 1–8 bytes inside the engine (local APIC, I/O APIC). Non-zero: leave to user space.
    int (*_Nullable mmio)(void *_Nullable context, uint64_t address, uint32_t size, int is_write,
                          uint64_t *_Nonnull value);
    // Port access of 1, 2 or 4 bytes inside the engine (PIC, PIT). Non-zero: leave to user space.
    int (*_Nullable port)(void *_Nullable context, uint16_t port, uint32_t size, int is_write,
                          uint32_t *_Nonnull value);
    // MSRs that the processor itself does not keep. Non-zero: #GP(0).
    int (*_Nullable read_msr)(void *_Nullable context, uint32_t index, uint64_t *_Nonnull value);
    int (*_Nullable write_msr)(void *_Nullable context, uint32_t index, uint64_t value);
    // CR8, the task priority's upper nibble.
    uint64_t (*_Nullable read_cr8)(void *_Nullable context);
    void (*_Nullable write_cr8)(void *_Nullable context, uint64_t value);
} martlet_cpu_hooks;

// Why the interpreter's inner loop stopped.
enum {
    MARTLET_STOP_NONE = 0,      // go on at rip
    MARTLET_STOP_EXCEPTION = 1, // deliver exception_vector
    MARTLET_STOP_PORT = 2,
    MARTLET_STOP_MMIO = 3,
    MARTLET_STOP_HALT = 4,
    MARTLET_STOP_SHUTDOWN = 5,
    MARTLET_STOP_ATTENTION = 6,
    MARTLET_STOP_REPEAT = 7,    // go on at rip, with the rest of a repetition
};

// What a vCPU's thread is at, for who samples it: kept in `activity` on cold paths, from where it is told by the program
// counter in samples (cpu_profile.h).
enum {
    MARTLET_AT_OUTSIDE = 0, // the engine's user handles an exit
    MARTLET_AT_ENGINE = 1,  // the run loop around the processor
    MARTLET_AT_GUEST = 2,   // guest code
    MARTLET_AT_PAGE_WALK = 3,
    MARTLET_AT_DECODER = 4,
    MARTLET_AT_TRANSLATOR = 5,
    MARTLET_AT_DEVICE = 6, // the engine's own devices
    MARTLET_AT_HALTED = 7,
    // Guest code, in samples:
    MARTLET_AT_INTERPRETER = 8,
    MARTLET_AT_TRANSLATED = 9,
    MARTLET_AT_HELPER = 10, // the assembly beside translated code
};

// Bits of `vector_units`: what CR0, CR4, XCR0 and the mode allow at the moment.
enum {
    MARTLET_UNIT_X87 = 1, // x87 and MMX: CR0.EM and CR0.TS clear
    MARTLET_UNIT_SSE = 2,
    MARTLET_UNIT_AVX = 4,
    MARTLET_UNIT_AVX512 = 8,
    MARTLET_UNIT_VEX = 16, // VEX-encoded instructions on general registers: protected mode
};

// Bits of `debug_armed`.
enum {
    MARTLET_DEBUG_INSTRUCTION = 1,
    MARTLET_DEBUG_DATA = 2,
    MARTLET_DEBUG_PORT = 4,
};

typedef struct martlet_mmio_fragment {
    uint64_t address;
    uint64_t value;
    uint32_t size;
    uint32_t is_write;
} martlet_mmio_fragment;

typedef struct martlet_cpu {
    uint64_t gpr[MARTLET_REGISTER_COUNT];
    uint64_t rip;
    uint64_t *_Nullable tlb; // the table of the current privilege
    uint16_t status;                  // OF in bit 0; SF ZF AF PF CF in bits 15 14 12 10 8 (seto, lahf)
    uint8_t cpl;
    uint8_t mode;                     // code size: 0 16-bit, 1 32-bit, 2 64-bit
    uint32_t attention;               // atomic; not 0: leave the inner loop at the next branch
    uint64_t fetch_key;               // generation << 8 | privilege and mode bits: what jump entries and links must match
    uint64_t rflags;                  // all flags but the six status flags
    uint64_t segment_base[8];         // what effective addresses add (0 for ES CS SS DS in 64-bit mode)
    uint64_t instruction_count;       // completed instructions; REP is one, when it is done. Exact outside the inner loop

    // The vector registers (SDM vol. 1 §13.5): XMMn is the low 16 bytes of zmm[n], YMMn the low 32. At an offset that is a
    // multiple of 64 (asserted below), in a page-aligned allocation. 16 is as much alignment as Swift can import.
    uint8_t zmm[MARTLET_ZMM_COUNT][MARTLET_ZMM_SIZE] __attribute__((aligned(16)));
    uint64_t opmask[8];
    uint64_t xcr0;
    uint32_t vector_level;            // vector registers that are live in the host's; 0 while the interpreter runs
    uint32_t bounce_size;
    uint64_t bounce_address;
    uint32_t vector_units;            // MARTLET_UNIT_: register files whose instructions neither #UD nor #NM
    uint32_t unused1;
    // Of FS and GS outside 64-bit mode: how many bytes from offset 0 on may be read and written. 0: not that simple.
    uint64_t segment_end[2];
    uint32_t unused[4];               // up to the next multiple of 64
    uint8_t bounce[128];
    uint8_t vector_scratch[64];
    // FXSAVE64 image without its XMM part: x87, MMX, MXCSR. Where XMM registers would be is left to FXSAVE.
    uint8_t fx[512] __attribute__((aligned(16)));
    uint64_t fx_header[8];            // XSAVE's, for the x87 part of `fx`
    // FOP, FIP and FDP while the x87 registers are in the host's, and the next FDP.
    uint64_t x87_opcode, x87_instruction, x87_data, x87_next_data;

    uint32_t stop;
    uint32_t exception_vector;
    uint32_t exception_error;
    uint32_t exception_has_error;
    uint64_t exception_cr2;           // becomes cr2 on delivery of #PF

    martlet_segment segments[6];      // ES CS SS DS FS GS
    martlet_segment ldtr;
    martlet_segment tr;
    martlet_table_register gdtr;
    martlet_table_register idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t debug_registers[8];
    uint64_t star, lstar, cstar, fmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, misc_enable, tsc_aux, mtrr_default, debug_control;
    uint64_t speculation_control;
    uint64_t mtrr_fixed[11];
    uint64_t mtrr_variable[16];
    uint64_t tsc_offset;              // guest TSC = host TSC + offset
    uint64_t apic_base;
    uint64_t physical_address_mask;   // implemented bits of a physical address

    uint8_t interrupt_shadow;         // 1: after STI, MOV SS or POP SS, one instruction long
    uint8_t nmi_blocked;
    uint8_t nmi_pending;
    uint8_t window_requested;         // 1: leave the inner loop when an interrupt could be taken
    uint8_t pending_event;            // 1: delivering an interrupt ended in a triple fault; the next run reports it
    uint8_t last_exception_vector;
    uint8_t last_exception_valid;
    uint8_t last_exception_has_error;
    uint32_t last_exception_error;
    // Breakpoints of the debug registers (CPU/DebugRegisters.swift).
    uint8_t debug_armed;              // MARTLET_DEBUG_: kinds that DR7 enables; not 0: each instruction runs alone
    uint8_t debug_pending;            // DR6.B0-B3 of accesses whose trap is still to come
    uint8_t debug_shadow;             // 1: behind MOV SS or POP SS, no #DB before the next instruction is done
    // 1: 32-bit code in protected mode, ES, CS, SS and DS from 0 to 4 GiB and without a say (CPU/Segments.swift).
    uint8_t is_flat32;
    uint64_t last_exception_rip;
    uint64_t last_exception_cr2;

    // An access that user space must answer; the instruction is restarted with the answer and finds it here.
    uint16_t port_number;
    uint8_t port_size;
    uint8_t port_is_write;
    uint16_t port_answered;           // answers that the restarted instruction has still to take
    uint16_t port_count;              // accesses asked for at once: elements of REP INS, else 1
    uint32_t port_data[MARTLET_PORT_BATCH];
    uint32_t mmio_count;              // fragments answered so far for the current instruction
    uint32_t mmio_cursor;             // next fragment that the restarted instruction will ask for
    uint32_t mmio_pending;            // fragment `mmio_count` is being asked of user space
    martlet_mmio_fragment mmio[MARTLET_MMIO_FRAGMENTS];

    martlet_cpu_hooks hooks;

    uint32_t slot_count;
    martlet_slot slots[MARTLET_MAX_SLOTS];
    martlet_page_code *_Nullable page_code;

    // Counters for statistics.
    uint64_t tlb_misses;
    uint64_t decoded_instructions;
    uint64_t invalidated_pages;
    uint64_t exceptions_delivered;
    uint64_t interrupts_delivered;
    uint64_t cache_flushes;

    void *_Nullable owner;            // the Processor, for cold paths

    // Translated code leaves through these (CHost/translated.S, CPU/Translator).
    void *_Nullable jump;             // to the guest address in r13, by the target in r14
    void *_Nullable site_miss;        // guest address in r13, site in r14
    void *_Nullable call_interpreter; // the instruction in r14
    void *_Nullable helper_trial;
    void *_Nullable lost_return;      // what an unused entry of the return stacks leads to
    void *_Nullable load_vectors;     // the instruction in r14, the level in r13
    void *_Nullable helper_access;
    void *_Nullable helper_jump;
    void *_Nullable helper_resolve;
    void *_Nullable helper_alternative;
    void *_Nullable helper_hop;
    struct martlet_insn *_Nullable leave_with;
    uint64_t access_address;
    uint64_t access_kind;             // kind << 8 | size
    uint64_t generation_count;        // the last generation given to anything
    uint64_t shared_generation;       // of supervisor code in global pages, in whatever address space
    martlet_address_space *_Nullable space; // the current one
    void *_Nullable records;          // of data accesses
    uint64_t no_page;
    void *_Nullable *_Nullable local_sites;  // sites in use whose page is not global
    void *_Nullable *_Nullable global_sites;
    uint32_t local_site_count;
    uint32_t global_site_count;
    uint32_t user_return_top;         // byte offset of the newest entry
    uint32_t supervisor_return_top;
    martlet_return user_returns[MARTLET_RETURN_ENTRIES];
    martlet_return supervisor_returns[MARTLET_RETURN_ENTRIES];
    uint64_t user_returns_key;        // the fetch key that the return stacks hold for
    uint64_t supervisor_returns_key;
    // For each hash of a page: whether a site may have it. First of the local sites, then of the global ones.
    uint64_t site_pages[2][MARTLET_SITE_PAGE_WORDS];
    uint32_t host_mxcsr;
    uint32_t counts_instructions;     // 1: translated code keeps `instruction_count` exact
    uint64_t translated_blocks, translated_instructions, site_misses, target_misses;
    uint64_t branch_target;           // an indirect call's target while its return address is pushed


    martlet_jump_entry jumps[MARTLET_JUMP_ENTRIES];
    martlet_shared_target shared_targets[MARTLET_SHARED_TARGETS];

    // Lockstep (CPU/Lockstep): two processors that must do the same.
    uint8_t in_lockstep;              // 1: attention does not split a repetition, and each fetch translation is kept
    uint64_t (*_Nullable host_tsc)(void *_Nullable context); // instead of the host's own counter; context as for hooks
    // Instead of the host's own RDRAND and RDSEED: whether there was a number.
    int (*_Nullable host_random)(void *_Nullable context, int is_seed, uint64_t *_Nonnull value);
    uint8_t extended[MARTLET_EXTENDED_SIZE] __attribute__((aligned(16))); // an XSAVE area being put together or read
    uint32_t jump_salt;               // of the index in `jumps`: user code of several address spaces has room beside
    uint64_t space_clock;             // of the address spaces' last_used
    uint32_t tlb_epoch;               // complete flushes of all address spaces, from 1
    uint32_t has_low_globals;         // 1: a global page in the lower half of an address space
    uint32_t has_low_fetches;         // 1: supervisor mode has fetched there
    uint64_t upper_fetched[512];      // as `fetched`, for the upper half in all address spaces and both modes
    uint64_t space_switches;          // to translations that were kept, for statistics
    uint64_t space_flushes;
    uint64_t supported_cr4;           // by CPUID
    // REP MOVS and REP STOS of 1, 2, 4 and 8 bytes, each without and with the flags kept, for the instruction in r14; then
    // those of flat 32-bit code.
    void *_Nullable string_operations[32];
    // Beside the lists of sites: the number of the page that each was last given, low half. A site that has a page of the
    // other kind now is still listed with its old one.
    uint32_t *_Nullable local_site_numbers;
    uint32_t *_Nullable global_site_numbers;
    martlet_counters counters;
    uint32_t activity;                // MARTLET_AT_*; read by a signal handler of this thread
    martlet_trace trace;
    martlet_address_space spaces[MARTLET_ADDRESS_SPACES];
    martlet_tlb no_lines; // a table that is always empty: every access takes the slow path
} martlet_cpu;

static inline __attribute__((always_inline)) uint32_t martlet_attention(const martlet_cpu *_Nonnull cpu) {
    return __atomic_load_n(&cpu->attention, __ATOMIC_RELAXED);
}
static inline __attribute__((always_inline)) void martlet_request_attention(martlet_cpu *_Nonnull cpu) {
    __atomic_store_n(&cpu->attention, 1, __ATOMIC_SEQ_CST);
}
static inline __attribute__((always_inline)) void martlet_clear_attention(martlet_cpu *_Nonnull cpu) {
    __atomic_store_n(&cpu->attention, 0, __ATOMIC_SEQ_CST);
}
// Lockstep: lets the inner loop end where it looks at attention next, from whatever thread. Real attention is kept.
static inline void martlet_end_unit(martlet_cpu *_Nonnull cpu) {
    uint32_t none = 0;
    __atomic_compare_exchange_n(&cpu->attention, &none, 4, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline void martlet_forget_end_of_unit(martlet_cpu *_Nonnull cpu) {
    uint32_t ending = 4;
    __atomic_compare_exchange_n(&cpu->attention, &ending, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline __attribute__((always_inline)) uint32_t martlet_activity(const martlet_cpu *_Nonnull cpu) {
    return __atomic_load_n(&cpu->activity, __ATOMIC_RELAXED);
}
// Returns what it was before. Atomic, so that no compiler leaves out a store that a signal handler reads.
static inline __attribute__((always_inline)) uint32_t martlet_set_activity(martlet_cpu *_Nonnull cpu, uint32_t activity) {
    uint32_t before = cpu->activity;
    __atomic_store_n(&cpu->activity, activity, __ATOMIC_RELAXED);
    return before;
}
// Between these two the inner loop ends behind one instruction, as if there were attention. Real attention is kept.
static inline void martlet_begin_step(martlet_cpu *_Nonnull cpu) {
    uint32_t none = 0;
    __atomic_compare_exchange_n(&cpu->attention, &none, 2, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline void martlet_end_step(martlet_cpu *_Nonnull cpu) {
    uint32_t stepping = 2;
    __atomic_compare_exchange_n(&cpu->attention, &stepping, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
// The futex word for a sleeping vCPU.
static inline __attribute__((always_inline)) uint32_t *_Nonnull martlet_attention_word(martlet_cpu *_Nonnull cpu) { return &cpu->attention; }

static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_site_pages(martlet_cpu *_Nonnull cpu, uint32_t global) {
    return cpu->site_pages[global];
}
static inline __attribute__((always_inline)) martlet_return *_Nonnull martlet_return_stack(martlet_cpu *_Nonnull cpu, uint32_t user) {
    return user ? cpu->user_returns : cpu->supervisor_returns;
}
static inline __attribute__((always_inline)) martlet_segment *_Nonnull martlet_segments(martlet_cpu *_Nonnull cpu) { return cpu->segments; }
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_segment_bases(martlet_cpu *_Nonnull cpu) { return cpu->segment_base; }
static inline __attribute__((always_inline)) uint16_t *_Nonnull martlet_status(martlet_cpu *_Nonnull cpu) { return &cpu->status; }
static inline __attribute__((always_inline)) martlet_slot *_Nonnull martlet_slots(martlet_cpu *_Nonnull cpu) { return cpu->slots; }
static inline __attribute__((always_inline)) martlet_mmio_fragment *_Nonnull martlet_mmio(martlet_cpu *_Nonnull cpu) { return cpu->mmio; }
static inline __attribute__((always_inline)) uint8_t *_Nonnull martlet_bounce(martlet_cpu *_Nonnull cpu) { return cpu->bounce; }
static inline __attribute__((always_inline)) uint8_t *_Nonnull martlet_zmm(martlet_cpu *_Nonnull cpu) { return cpu->zmm[0]; }
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_opmask(martlet_cpu *_Nonnull cpu) { return cpu->opmask; }
static inline __attribute__((always_inline)) uint8_t *_Nonnull martlet_extended(martlet_cpu *_Nonnull cpu) { return cpu->extended; }
static inline __attribute__((always_inline)) uint8_t *_Nonnull martlet_fx(martlet_cpu *_Nonnull cpu) { return cpu->fx; }
static inline __attribute__((always_inline)) martlet_jump_entry *_Nonnull martlet_jumps(martlet_cpu *_Nonnull cpu) { return cpu->jumps; }
static inline __attribute__((always_inline)) uint32_t *_Nonnull martlet_port_data(martlet_cpu *_Nonnull cpu) {
    return cpu->port_data;
}
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_debug_registers(martlet_cpu *_Nonnull cpu) { return cpu->debug_registers; }
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_mtrr_fixed(martlet_cpu *_Nonnull cpu) { return cpu->mtrr_fixed; }
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_mtrr_variable(martlet_cpu *_Nonnull cpu) { return cpu->mtrr_variable; }
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_no_lines(martlet_cpu *_Nonnull cpu) {
    return cpu->no_lines.read_tags;
}
static inline __attribute__((always_inline)) martlet_address_space *_Nonnull martlet_space(martlet_cpu *_Nonnull cpu, uint32_t number) {
    return &cpu->spaces[number];
}
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_tlb_table(martlet_address_space *_Nonnull space, uint32_t number) {
    return space->tlb[number].read_tags;
}
static inline __attribute__((always_inline)) martlet_fetch_entry *_Nonnull martlet_fetch_table(martlet_address_space *_Nonnull space, uint32_t user) {
    return space->fetch[user];
}
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_fetch_filled(martlet_address_space *_Nonnull space, uint32_t user) {
    return space->fetch_filled[user];
}
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_fetch_local(martlet_address_space *_Nonnull space, uint32_t user) {
    return space->fetch_local[user];
}
static inline __attribute__((always_inline)) martlet_line_set *_Nonnull martlet_lines(martlet_address_space *_Nonnull space, uint32_t number, uint32_t global) {
    return global ? &space->global_lines[number] : &space->local_lines[number];
}
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_line_words(martlet_line_set *_Nonnull set) { return set->words; }
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_large_pages(martlet_address_space *_Nonnull space) { return space->large_pages; }
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_large_regions(martlet_address_space *_Nonnull space) { return space->large_regions; }
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_fetched(martlet_address_space *_Nonnull space) { return space->fetched; }
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_upper_fetched(martlet_cpu *_Nonnull cpu) { return cpu->upper_fetched; }
static inline __attribute__((always_inline)) uint64_t *_Nonnull martlet_exception_counts(martlet_cpu *_Nonnull cpu) { return cpu->counters.exceptions; }

// The first index from `from` on below `count` at which `number` stands; `count` when there is none. CHost/cpu_sites.c.
uint32_t martlet_next_number(const uint32_t *_Nonnull numbers, uint32_t from, uint32_t count, uint32_t number);

#endif
