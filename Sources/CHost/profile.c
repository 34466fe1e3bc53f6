#define _GNU_SOURCE
#include "cpu_profile.h"
#include "cpu_translated.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)

// How far up the stack a decoded instruction's address is looked for, in words.
enum { STACK_WORDS = 128, PROBES = 64 };

static int contains(martlet_range range, uint64_t address) { return address - range.start < range.size; }

// The decoded instruction that a value leads to: by its address, or by the record of an access or branch of it.
static const martlet_insn *instruction_at(const martlet_profile *profile, uint64_t value) {
    if (contains(profile->records, value) && (value - profile->records.start) % sizeof(martlet_site) == 0) {
        // The two kinds of record have it at different places, and none but an instruction's address where the other has.
        uint64_t of_site = (uint64_t)((const martlet_site *)value)->insn;
        value = contains(profile->instructions, of_site) ? of_site : (uint64_t)((const martlet_target *)value)->insn;
    }
    if (!contains(profile->instructions, value)) return NULL;
    return (value - profile->instructions.start) % sizeof(martlet_insn) == 0 ? (const martlet_insn *)value : NULL;
}

// The instruction being executed: handlers and helpers keep its address in a register or on the stack.
static const martlet_insn *current_instruction(const martlet_profile *profile, const uint64_t *registers, uint32_t count,
                                               uint64_t stack_pointer) {
    const martlet_insn *found = NULL;
    for (uint32_t index = 0; index < count && !found; index++) found = instruction_at(profile, registers[index]);
    const uint64_t *word = (const uint64_t *)(stack_pointer & ~7ull);
    for (int index = 0; index < STACK_WORDS && (uint64_t)(word + index + 1) <= profile->stack_end && !found; index++)
        found = instruction_at(profile, word[index]);
    return found;
}

// The block whose translated code is at an address.
static const martlet_code_place *place_of(const martlet_profile *profile, uint64_t address) {
    uint32_t low = 0, high = __atomic_load_n(&profile->place_count, __ATOMIC_ACQUIRE);
    uint64_t distance = address - profile->code.start;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (profile->places[middle].host <= distance) low = middle + 1;
        else high = middle;
    }
    return low == 0 ? NULL : &profile->places[low - 1];
}

static void add(martlet_profile *profile, uint64_t rip, uint32_t at, uint32_t flags) {
    uint64_t mask = (1ull << profile->sample_bits) - 1;
    uint64_t slot = (rip ^ ((uint64_t)at << 4 | flags)) * 0x9E3779B97F4A7C15ull >> (64 - profile->sample_bits);
    for (int probe = 0; probe < PROBES; probe++) {
        martlet_sample *sample = &profile->samples[(slot + (uint64_t)probe) & mask];
        if (sample->count == 0) *sample = (martlet_sample){.rip = rip, .at = at, .flags = flags};
        else if (sample->rip != rip || sample->at != at || sample->flags != flags) continue;
        sample->count++;
        return;
    }
    profile->lost++;
}

// The assembly beside translated code is one piece, these two at its ends.
static int is_assembly(uint64_t address) {
    return address - (uint64_t)martlet_enter_translated
           < (uint64_t)martlet_install_exits - (uint64_t)martlet_enter_translated;
}

void martlet_profile_count(martlet_profile *profile, const uint64_t *registers, uint32_t register_count,
                           uint64_t program_counter, uint64_t stack_pointer) {
    const martlet_cpu *cpu = profile->cpu;
    uint32_t at = martlet_activity(cpu);
    uint32_t flags = cpu->cpl == 3 ? MARTLET_SAMPLE_USER : 0;
    uint64_t rip = cpu->rip;
    // Elsewhere the guest's instruction pointer is in the state.
    if (at == MARTLET_AT_GUEST || at == MARTLET_AT_PAGE_WALK || at == MARTLET_AT_TRANSLATOR || at == MARTLET_AT_DEVICE) {
        uint64_t page = cpu->gpr[MARTLET_PAGE_RIP_REGISTER];
        const martlet_code_place *place = NULL;
        const martlet_insn *insn = NULL;
        if (at == MARTLET_AT_GUEST && contains(profile->code, program_counter)) {
            at = MARTLET_AT_TRANSLATED;
            place = place_of(profile, program_counter);
        } else {
            if (at == MARTLET_AT_GUEST) at = is_assembly(program_counter) ? MARTLET_AT_HELPER : MARTLET_AT_INTERPRETER;
            insn = current_instruction(profile, registers, register_count, stack_pointer);
        }
        rip = page + (place ? place->page_offset : insn ? insn->page_offset : 0);
        if (!place && !insn) flags |= MARTLET_SAMPLE_PAGE;
        if (cpu->mode != 2) rip &= 0xFFFFFFFF;
    }
    add(profile, rip, at, flags);
}

static void take_sample(int number, siginfo_t *info, void *context) {
    (void)number;
    if (info->si_code != SI_TIMER) return;
    martlet_profile *profile = info->si_value.sival_ptr;
    if (!profile->is_running) return;
    const greg_t *all = ((ucontext_t *)context)->uc_mcontext.gregs;
    // First those in which a handler or a helper has its instruction.
    static const int order[] = {REG_RSI, REG_R14, REG_RBX, REG_R12, REG_R13, REG_RBP, REG_R15, REG_RDI,
                                REG_RDX, REG_RCX, REG_RAX, REG_R8,  REG_R9,  REG_R10, REG_R11};
    enum { COUNT = sizeof order / sizeof *order };
    uint64_t registers[COUNT];
    for (int index = 0; index < COUNT; index++) registers[index] = (uint64_t)all[order[index]];
    martlet_profile_count(profile, registers, COUNT, (uint64_t)all[REG_RIP], (uint64_t)all[REG_RSP]);
}

static uint64_t end_of_stack(void) {
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) return 0;
    void *start = NULL;
    size_t size = 0;
    int error = pthread_attr_getstack(&attributes, &start, &size);
    pthread_attr_destroy(&attributes);
    return error ? 0 : (uint64_t)start + size;
}

static void set_blocked(int is_blocked) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPROF);
    pthread_sigmask(is_blocked ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

long martlet_profile_start(martlet_profile *profile, uint64_t interval_ns) {
    struct sigaction action = {.sa_sigaction = take_sample, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&action.sa_mask);
    if (sigaction(SIGPROF, &action, NULL) < 0) return -errno;
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGPROF;
    event.sigev_value.sival_ptr = profile;
    event._sigev_un._tid = (int)syscall(SYS_gettid);
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &profile->timer) < 0) return -errno;
    profile->stack_end = end_of_stack();
    profile->is_running = 1;
    set_blocked(0);
    struct timespec interval = {.tv_sec = (time_t)(interval_ns / 1000000000), .tv_nsec = (long)(interval_ns % 1000000000)};
    struct itimerspec setting = {.it_value = interval, .it_interval = interval};
    if (syscall(SYS_timer_settime, profile->timer, 0, &setting, NULL) == 0) return 0;
    long result = -errno;
    martlet_profile_stop(profile);
    return result;
}

void martlet_profile_stop(martlet_profile *profile) {
    if (!profile->is_running) return;
    // A signal that is pending for this thread is delivered before the call returns.
    syscall(SYS_timer_delete, profile->timer);
    profile->is_running = 0;
    set_blocked(1);
}

#endif
