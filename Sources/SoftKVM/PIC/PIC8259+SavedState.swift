internal import CHost

/// struct kvm_pic_state, field by field.
extension PIC8259 {
    var savedState: kvm_pic_state {
        kvm_pic_state(
            last_irr: lines, irr: request, imr: mask, isr: inService, priority_add: topLine, irq_base: vectorBase,
            read_reg_select: readsInService ? 1 : 0, poll: isPolled ? 1 : 0, special_mask: specialMask ? 1 : 0,
            init_state: initializationStep, auto_eoi: autoEOI ? 1 : 0, rotate_on_auto_eoi: rotatesOnAutoEOI ? 1 : 0,
            special_fully_nested_mode: specialFullyNested ? 1 : 0, init4: wantsICW4 ? 1 : 0, elcr: edgeLevel,
            elcr_mask: edgeLevelWritable)
    }

    init(isMaster: Bool, restoring state: kvm_pic_state) {
        self.init(isMaster: isMaster)
        lines = state.last_irr
        request = state.irr
        mask = state.imr
        inService = state.isr
        topLine = state.priority_add & 7
        vectorBase = state.irq_base & 0xf8
        readsInService = state.read_reg_select != 0
        isPolled = state.poll != 0
        specialMask = state.special_mask != 0
        initializationStep = state.init_state & 3
        autoEOI = state.auto_eoi != 0
        rotatesOnAutoEOI = state.rotate_on_auto_eoi != 0
        specialFullyNested = state.special_fully_nested_mode != 0
        wantsICW4 = state.init4 != 0
        edgeLevel = state.elcr & edgeLevelWritable
    }
}
