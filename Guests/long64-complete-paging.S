// The same with IRET and everything else that KVM's emulator lacks (guest.inc).
#define COMPLETE
#include "long64-paging.S"
