#include "test_zydis.h"

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
#else
int test_zydis_available(void) { return 0; }

int test_zydis_decode(const uint8_t *bytes, size_t count, int bits, const char **mnemonic, const char **set) {
    (void)bytes;
    (void)count;
    (void)bits;
    *mnemonic = *set = "";
    return 0;
}
#endif
