// The KVM ABI: the host's own <linux/kvm.h>, plus what Swift cannot import from it (ioctl numbers built by macros,
// unions with anonymous members). Structures are used as they are by both engines.
#ifndef MARTLET_KVM_ABI_H
#define MARTLET_KVM_ABI_H

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

// MARK: ioctl numbers (Documentation/virt/kvm/api.rst §4)

static const unsigned long kvm_ioctl_get_api_version = KVM_GET_API_VERSION;
static const unsigned long kvm_ioctl_create_vm = KVM_CREATE_VM;
static const unsigned long kvm_ioctl_check_extension = KVM_CHECK_EXTENSION;
static const unsigned long kvm_ioctl_get_vcpu_mmap_size = KVM_GET_VCPU_MMAP_SIZE;
static const unsigned long kvm_ioctl_get_supported_cpuid = KVM_GET_SUPPORTED_CPUID;

static const unsigned long kvm_ioctl_set_user_memory_region = KVM_SET_USER_MEMORY_REGION;
static const unsigned long kvm_ioctl_get_dirty_log = KVM_GET_DIRTY_LOG;
static const unsigned long kvm_ioctl_set_tss_addr = KVM_SET_TSS_ADDR;
static const unsigned long kvm_ioctl_set_identity_map_addr = KVM_SET_IDENTITY_MAP_ADDR;
static const unsigned long kvm_ioctl_create_irqchip = KVM_CREATE_IRQCHIP;
static const unsigned long kvm_ioctl_create_pit2 = KVM_CREATE_PIT2;
static const unsigned long kvm_ioctl_create_vcpu = KVM_CREATE_VCPU;
static const unsigned long kvm_ioctl_irq_line = KVM_IRQ_LINE;
static const unsigned long kvm_ioctl_signal_msi = KVM_SIGNAL_MSI;
static const unsigned long kvm_ioctl_set_gsi_routing = KVM_SET_GSI_ROUTING;
static const unsigned long kvm_ioctl_irqfd = KVM_IRQFD;
static const unsigned long kvm_ioctl_ioeventfd = KVM_IOEVENTFD;
static const unsigned long kvm_ioctl_get_irqchip = KVM_GET_IRQCHIP;
static const unsigned long kvm_ioctl_set_irqchip = KVM_SET_IRQCHIP;
static const unsigned long kvm_ioctl_get_pit2 = KVM_GET_PIT2;
static const unsigned long kvm_ioctl_set_pit2 = KVM_SET_PIT2;
static const unsigned long kvm_ioctl_get_clock = KVM_GET_CLOCK;
static const unsigned long kvm_ioctl_set_clock = KVM_SET_CLOCK;

static const unsigned long kvm_ioctl_run = KVM_RUN;
static const unsigned long kvm_ioctl_get_regs = KVM_GET_REGS;
static const unsigned long kvm_ioctl_set_regs = KVM_SET_REGS;
static const unsigned long kvm_ioctl_get_sregs = KVM_GET_SREGS;
static const unsigned long kvm_ioctl_set_sregs = KVM_SET_SREGS;
static const unsigned long kvm_ioctl_get_fpu = KVM_GET_FPU;
static const unsigned long kvm_ioctl_set_fpu = KVM_SET_FPU;
static const unsigned long kvm_ioctl_get_xsave = KVM_GET_XSAVE;
static const unsigned long kvm_ioctl_get_xsave2 = KVM_GET_XSAVE2;
static const unsigned long kvm_ioctl_set_xsave = KVM_SET_XSAVE;
static const unsigned long kvm_ioctl_get_xcrs = KVM_GET_XCRS;
static const unsigned long kvm_ioctl_set_xcrs = KVM_SET_XCRS;
static const unsigned long kvm_ioctl_get_msrs = KVM_GET_MSRS;
static const unsigned long kvm_ioctl_set_msrs = KVM_SET_MSRS;
static const unsigned long kvm_ioctl_set_cpuid2 = KVM_SET_CPUID2;
static const unsigned long kvm_ioctl_get_lapic = KVM_GET_LAPIC;
static const unsigned long kvm_ioctl_set_lapic = KVM_SET_LAPIC;
static const unsigned long kvm_ioctl_get_vcpu_events = KVM_GET_VCPU_EVENTS;
static const unsigned long kvm_ioctl_set_vcpu_events = KVM_SET_VCPU_EVENTS;
static const unsigned long kvm_ioctl_get_debugregs = KVM_GET_DEBUGREGS;
static const unsigned long kvm_ioctl_set_debugregs = KVM_SET_DEBUGREGS;
static const unsigned long kvm_ioctl_get_mp_state = KVM_GET_MP_STATE;
static const unsigned long kvm_ioctl_set_mp_state = KVM_SET_MP_STATE;
static const unsigned long kvm_ioctl_interrupt = KVM_INTERRUPT;

// MARK: flags that are built by macros

static const uint32_t kvm_irqfd_deassign = KVM_IRQFD_FLAG_DEASSIGN;
static const uint32_t kvm_ioeventfd_datamatch = KVM_IOEVENTFD_FLAG_DATAMATCH;
static const uint32_t kvm_ioeventfd_pio = KVM_IOEVENTFD_FLAG_PIO;
static const uint32_t kvm_ioeventfd_deassign = KVM_IOEVENTFD_FLAG_DEASSIGN;

// MARK: struct kvm_run's union, one accessor for each member that an exit needs

static inline uint8_t kvm_run_io_is_write(const struct kvm_run *_Nonnull run) {
    return run->io.direction == KVM_EXIT_IO_OUT;
}
static inline uint8_t kvm_run_io_size(const struct kvm_run *_Nonnull run) { return run->io.size; }
static inline uint16_t kvm_run_io_port(const struct kvm_run *_Nonnull run) { return run->io.port; }
static inline uint32_t kvm_run_io_count(const struct kvm_run *_Nonnull run) { return run->io.count; }
static inline uint64_t kvm_run_io_data_offset(const struct kvm_run *_Nonnull run) { return run->io.data_offset; }

static inline uint64_t kvm_run_mmio_address(const struct kvm_run *_Nonnull run) { return run->mmio.phys_addr; }
static inline uint32_t kvm_run_mmio_length(const struct kvm_run *_Nonnull run) { return run->mmio.len; }
static inline uint8_t kvm_run_mmio_is_write(const struct kvm_run *_Nonnull run) { return run->mmio.is_write; }
static inline uint8_t *_Nonnull kvm_run_mmio_data(struct kvm_run *_Nonnull run) { return run->mmio.data; }

static inline uint64_t kvm_run_fail_entry_reason(const struct kvm_run *_Nonnull run) {
    return run->fail_entry.hardware_entry_failure_reason;
}
static inline uint32_t kvm_run_system_event_type(const struct kvm_run *_Nonnull run) { return run->system_event.type; }
static inline uint32_t kvm_run_internal_suberror(const struct kvm_run *_Nonnull run) { return run->internal.suberror; }

/// Copies the bytes of the instruction that KVM could not emulate, at most 15, and returns how many it gave
/// (KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES; 0 where it gave none).
static inline uint32_t kvm_run_failed_instruction(const struct kvm_run *_Nonnull run, uint8_t *_Nonnull bytes) {
    if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION || run->emulation_failure.ndata < 3 ||
        !(run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES))
        return 0;
    uint32_t count = run->emulation_failure.insn_size;
    if (count > sizeof run->emulation_failure.insn_bytes) count = sizeof run->emulation_failure.insn_bytes;
    for (uint32_t index = 0; index < count; index++) bytes[index] = run->emulation_failure.insn_bytes[index];
    return count;
}

// MARK: unions and arrays inside other structures

static inline struct kvm_xcr *_Nonnull kvm_xcrs_entries(struct kvm_xcrs *_Nonnull registers) { return registers->xcrs; }

static inline void *_Nonnull kvm_irqchip_bytes(struct kvm_irqchip *_Nonnull chip) { return chip->chip.dummy; }
static inline struct kvm_pic_state *_Nonnull kvm_irqchip_pic(struct kvm_irqchip *_Nonnull chip) {
    return &chip->chip.pic;
}
static inline struct kvm_ioapic_state *_Nonnull kvm_irqchip_ioapic(struct kvm_irqchip *_Nonnull chip) {
    return &chip->chip.ioapic;
}
static inline void kvm_dirty_log_set_bitmap(struct kvm_dirty_log *_Nonnull log, void *_Nonnull bitmap) {
    log->dirty_bitmap = bitmap;
}
static inline void kvm_irq_level_set(struct kvm_irq_level *_Nonnull level, uint32_t gsi, uint32_t value) {
    level->irq = gsi;
    level->level = value;
}

#endif
