#include "test_zydis.h"

#include <string.h>

#if __has_include(<Zydis/Zydis.h>)
#include <Zydis/Zydis.h>

int test_zydis_available(void) { return 1; }

int test_zydis_decode(const uint8_t *bytes, size_t count, int bits, const char **mnemonic, const char **set) {
    ZydisDecoder decoder;
    ZydisDecodedInstruction instruction;
    *mnemonic = *set = "";
    ZydisDecoderInit(&decoder,
                     bits == 64   ? ZYDIS_MACHINE_MODE_LONG_64
                     : bits == 32 ? ZYDIS_MACHINE_MODE_LEGACY_32
                                  : ZYDIS_MACHINE_MODE_LEGACY_16,
                     bits == 64   ? ZYDIS_STACK_WIDTH_64
                     : bits == 32 ? ZYDIS_STACK_WIDTH_32
                                  : ZYDIS_STACK_WIDTH_16);
    ZyanStatus status = ZydisDecoderDecodeInstruction(&decoder, NULL, bytes, count, &instruction);
    if (status == ZYDIS_STATUS_NO_MORE_DATA || status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG) return -1;
    if (!ZYAN_SUCCESS(status)) return 0;
    *mnemonic = ZydisMnemonicGetString(instruction.mnemonic);
    *set = ZydisISASetGetString(instruction.meta.isa_set);
    return instruction.length;
}

static const char *exception_class(ZydisExceptionClass class) {
    switch (class) {
    case ZYDIS_EXCEPTION_CLASS_E1NF: return "E1NF";
    case ZYDIS_EXCEPTION_CLASS_E2NF: return "E2NF";
    case ZYDIS_EXCEPTION_CLASS_E3NF: return "E3NF";
    case ZYDIS_EXCEPTION_CLASS_E4NF: return "E4NF";
    case ZYDIS_EXCEPTION_CLASS_E5NF: return "E5NF";
    case ZYDIS_EXCEPTION_CLASS_E6NF: return "E6NF";
    case ZYDIS_EXCEPTION_CLASS_E9NF: return "E9NF";
    case ZYDIS_EXCEPTION_CLASS_E10NF: return "E10NF";
    case ZYDIS_EXCEPTION_CLASS_E11NF: return "E11NF";
    default: return NULL;
    }
}

int test_zydis_operands(const uint8_t *bytes, size_t count, int bits, test_zydis_memory *memory) {
    ZydisDecoder decoder;
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    memset(memory, 0, sizeof *memory);
    ZydisDecoderInit(&decoder, bits == 64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
                     bits == 64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes, count, &instruction, operands))) return 0;
    memory->unsuppressed = exception_class(instruction.meta.exception_class);
    for (int index = 0; index < instruction.operand_count_visible; index++) {
        const ZydisDecodedOperand *operand = &operands[index];
        if (operand->type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
        memory->size = operand->size / 8;
        memory->element = operand->element_size / 8;
        memory->displacement = operand->mem.disp.value;
        memory->is_written = (operand->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    }
    return instruction.length;
}
#else
int test_zydis_operands(const uint8_t *bytes, size_t count, int bits, test_zydis_memory *memory) {
    (void)bytes;
    (void)count;
    (void)bits;
    (void)memory;
    return 0;
}

int test_zydis_available(void) { return 0; }

int test_zydis_decode(const uint8_t *bytes, size_t count, int bits, const char **mnemonic, const char **set) {
    (void)bytes;
    (void)count;
    (void)bits;
    *mnemonic = *set = "";
    return 0;
}
#endif
