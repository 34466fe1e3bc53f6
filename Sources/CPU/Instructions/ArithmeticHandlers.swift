// One specialised handler for each operation, operand shape and size: the table that `bind` picks from.

/// Where destination and source are.
enum OperandShape {
    case registerRegister, registerImmediate, registerMemory, memoryRegister, memoryImmediate
}

func arithmeticHandler(_ mnemonic: Mnemonic, _ shape: OperandShape, _ size: UInt8) -> Handler? {
    switch mnemonic {
    case .add: addHandler(shape, size)
    case .or: orHandler(shape, size)
    case .adc: adcHandler(shape, size)
    case .sbb: sbbHandler(shape, size)
    case .and: andHandler(shape, size)
    case .sub: subHandler(shape, size)
    case .xor: xorHandler(shape, size)
    case .cmp: cmpHandler(shape, size)
    case .test: testHandler(shape, size)
    default: nil
    }
}

private func addHandler(_ shape: OperandShape, _ size: UInt8) -> Handler {
    switch (shape, size) {
    case (.registerRegister, 1): { aluRegisterRegister($0, $1, UInt8.self, AddOperation.self) }
    case (.registerRegister, 2): { aluRegisterRegister($0, $1, UInt16.self, AddOperation.self) }
    case (.registerRegister, 4): { aluRegisterRegister($0, $1, UInt32.self, AddOperation.self) }
    case (.registerRegister, _): { aluRegisterRegister($0, $1, UInt64.self, AddOperation.self) }
    case (.registerImmediate, 1): { aluRegisterImmediate($0, $1, UInt8.self, AddOperation.self) }
    case (.registerImmediate, 2): { aluRegisterImmediate($0, $1, UInt16.self, AddOperation.self) }
    case (.registerImmediate, 4): { aluRegisterImmediate($0, $1, UInt32.self, AddOperation.self) }
    case (.registerImmediate, _): { aluRegisterImmediate($0, $1, UInt64.self, AddOperation.self) }
    case (.registerMemory, 1): { aluRegisterMemory($0, $1, UInt8.self, AddOperation.self) }
    case (.registerMemory, 2): { aluRegisterMemory($0, $1, UInt16.self, AddOperation.self) }
    case (.registerMemory, 4): { aluRegisterMemory($0, $1, UInt32.self, AddOperation.self) }
    case (.registerMemory, _): { aluRegisterMemory($0, $1, UInt64.self, AddOperation.self) }
    case (.memoryRegister, 1): { aluMemoryRegister($0, $1, UInt8.self, AddOperation.self) }
    case (.memoryRegister, 2): { aluMemoryRegister($0, $1, UInt16.self, AddOperation.self) }
    case (.memoryRegister, 4): { aluMemoryRegister($0, $1, UInt32.self, AddOperation.self) }
    case (.memoryRegister, _): { aluMemoryRegister($0, $1, UInt64.self, AddOperation.self) }
    case (.memoryImmediate, 1): { aluMemoryImmediate($0, $1, UInt8.self, AddOperation.self) }
    case (.memoryImmediate, 2): { aluMemoryImmediate($0, $1, UInt16.self, AddOperation.self) }
    case (.memoryImmediate, 4): { aluMemoryImmediate($0, $1, UInt32.self, AddOperation.self) }
    case (.memoryImmediate, _): { aluMemoryImmediate($0, $1, UInt64.self, AddOperation.self) }
    }
}

private func orHandler(_ shape: OperandShape, _ size: UInt8) -> Handler {
    switch (shape, size) {
    case (.registerRegister, 1): { aluRegisterRegister($0, $1, UInt8.self, OrOperation.self) }
    case (.registerRegister, 2): { aluRegisterRegister($0, $1, UInt16.self, OrOperation.self) }
    case (.registerRegister, 4): { aluRegisterRegister($0, $1, UInt32.self, OrOperation.self) }
    case (.registerRegister, _): { aluRegisterRegister($0, $1, UInt64.self, OrOperation.self) }
    case (.registerImmediate, 1): { aluRegisterImmediate($0, $1, UInt8.self, OrOperation.self) }
    case (.registerImmediate, 2): { aluRegisterImmediate($0, $1, UInt16.self, OrOperation.self) }
    case (.registerImmediate, 4): { aluRegisterImmediate($0, $1, UInt32.self, OrOperation.self) }
    case (.registerImmediate, _): { aluRegisterImmediate($0, $1, UInt64.self, OrOperation.self) }
    case (.registerMemory, 1): { aluRegisterMemory($0, $1, UInt8.self, OrOperation.self) }
    case (.registerMemory, 2): { aluRegisterMemory($0, $1, UInt16.self, OrOperation.self) }
    case (.registerMemory, 4): { aluRegisterMemory($0, $1, UInt32.self, OrOperation.self) }
    case (.registerMemory, _): { aluRegisterMemory($0, $1, UInt64.self, OrOperation.self) }
    case (.memoryRegister, 1): { aluMemoryRegister($0, $1, UInt8.self, OrOperation.self) }
    case (.memoryRegister, 2): { aluMemoryRegister($0, $1, UInt16.self, OrOperation.self) }
    case (.memoryRegister, 4): { aluMemoryRegister($0, $1, UInt32.self, OrOperation.self) }
    case (.memoryRegister, _): { aluMemoryRegister($0, $1, UInt64.self, OrOperation.self) }
    case (.memoryImmediate, 1): { aluMemoryImmediate($0, $1, UInt8.self, OrOperation.self) }
    case (.memoryImmediate, 2): { aluMemoryImmediate($0, $1, UInt16.self, OrOperation.self) }
    case (.memoryImmediate, 4): { aluMemoryImmediate($0, $1, UInt32.self, OrOperation.self) }
    case (.memoryImmediate, _): { aluMemoryImmediate($0, $1, UInt64.self, OrOperation.self) }
    }
}

private func adcHandler(_ shape: OperandShape, _ size: UInt8) -> Handler {
    switch (shape, size) {
    case (.registerRegister, 1): { aluRegisterRegister($0, $1, UInt8.self, AdcOperation.self) }
    case (.registerRegister, 2): { aluRegisterRegister($0, $1, UInt16.self, AdcOperation.self) }
    case (.registerRegister, 4): { aluRegisterRegister($0, $1, UInt32.self, AdcOperation.self) }
    case (.registerRegister, _): { aluRegisterRegister($0, $1, UInt64.self, AdcOperation.self) }
    case (.registerImmediate, 1): { aluRegisterImmediate($0, $1, UInt8.self, AdcOperation.self) }
    case (.registerImmediate, 2): { aluRegisterImmediate($0, $1, UInt16.self, AdcOperation.self) }
    case (.registerImmediate, 4): { aluRegisterImmediate($0, $1, UInt32.self, AdcOperation.self) }
    case (.registerImmediate, _): { aluRegisterImmediate($0, $1, UInt64.self, AdcOperation.self) }
    case (.registerMemory, 1): { aluRegisterMemory($0, $1, UInt8.self, AdcOperation.self) }
    case (.registerMemory, 2): { aluRegisterMemory($0, $1, UInt16.self, AdcOperation.self) }
    case (.registerMemory, 4): { aluRegisterMemory($0, $1, UInt32.self, AdcOperation.self) }
    case (.registerMemory, _): { aluRegisterMemory($0, $1, UInt64.self, AdcOperation.self) }
    case (.memoryRegister, 1): { aluMemoryRegister($0, $1, UInt8.self, AdcOperation.self) }
    case (.memoryRegister, 2): { aluMemoryRegister($0, $1, UInt16.self, AdcOperation.self) }
    case (.memoryRegister, 4): { aluMemoryRegister($0, $1, UInt32.self, AdcOperation.self) }
    case (.memoryRegister, _): { aluMemoryRegister($0, $1, UInt64.self, AdcOperation.self) }
    case (.memoryImmediate, 1): { aluMemoryImmediate($0, $1, UInt8.self, AdcOperation.self) }
    case (.memoryImmediate, 2): { aluMemoryImmediate($0, $1, UInt16.self, AdcOperation.self) }
    case (.memoryImmediate, 4): { aluMemoryImmediate($0, $1, UInt32.self, AdcOperation.self) }
    case (.memoryImmediate, _): { aluMemoryImmediate($0, $1, UInt64.self, AdcOperation.self) }
    }
}

private func sbbHandler(_ shape: OperandShape, _ size: UInt8) -> Handler {
    switch (shape, size) {
    case (.registerRegister, 1): { aluRegisterRegister($0, $1, UInt8.self, SbbOperation.self) }
    case (.registerRegister, 2): { aluRegisterRegister($0, $1, UInt16.self, SbbOperation.self) }
    case (.registerRegister, 4): { aluRegisterRegister($0, $1, UInt32.self, SbbOperation.self) }
    case (.registerRegister, _): { aluRegisterRegister($0, $1, UInt64.self, SbbOperation.self) }
    case (.registerImmediate, 1): { aluRegisterImmediate($0, $1, UInt8.self, SbbOperation.self) }
    case (.registerImmediate, 2): { aluRegisterImmediate($0, $1, UInt16.self, SbbOperation.self) }
    case (.registerImmediate, 4): { aluRegisterImmediate($0, $1, UInt32.self, SbbOperation.self) }
    case (.registerImmediate, _): { aluRegisterImmediate($0, $1, UInt64.self, SbbOperation.self) }
    case (.registerMemory, 1): { aluRegisterMemory($0, $1, UInt8.self, SbbOperation.self) }
    case (.registerMemory, 2): { aluRegisterMemory($0, $1, UInt16.self, SbbOperation.self) }
    case (.registerMemory, 4): { aluRegisterMemory($0, $1, UInt32.self, SbbOperation.self) }
    case (.registerMemory, _): { aluRegisterMemory($0, $1, UInt64.self, SbbOperation.self) }
    case (.memoryRegister, 1): { aluMemoryRegister($0, $1, UInt8.self, SbbOperation.self) }
    case (.memoryRegister, 2): { aluMemoryRegister($0, $1, UInt16.self, SbbOperation.self) }
    case (.memoryRegister, 4): { aluMemoryRegister($0, $1, UInt32.self, SbbOperation.self) }
    case (.memoryRegister, _): { aluMemoryRegister($0, $1, UInt64.self, SbbOperation.self) }
    case (.memoryImmediate, 1): { aluMemoryImmediate($0, $1, UInt8.self, SbbOperation.self) }
    case (.memoryImmediate, 2): { aluMemoryImmediate($0, $1, UInt16.self, SbbOperation.self) }
    case (.memoryImmediate, 4): { aluMemoryImmediate($0, $1, UInt32.self, SbbOperation.self) }
    case (.memoryImmediate, _): { aluMemoryImmediate($0, $1, UInt64.self, SbbOperation.self) }
    }
}

private func andHandler(_ shape: OperandShape, _ size: UInt8) -> Handler {
    switch (shape, size) {
    case (.registerRegister, 1): { aluRegisterRegister($0, $1, UInt8.self, AndOperation.self) }
    case (.registerRegister, 2): { aluRegisterRegister($0, $1, UInt16.self, AndOperation.self) }
    case (.registerRegister, 4): { aluRegisterRegister($0, $1, UInt32.self, AndOperation.self) }
    case (.registerRegister, _): { aluRegisterRegister($0, $1, UInt64.self, AndOperation.self) }
    case (.registerImmediate, 1): { aluRegisterImmediate($0, $1, UInt8.self, AndOperation.self) }
    case (.registerImmediate, 2): { aluRegisterImmediate($0, $1, UInt16.self, AndOperation.self) }
    case (.registerImmediate, 4): { aluRegisterImmediate($0, $1, UInt32.self, AndOperation.self) }
    case (.registerImmediate, _): { aluRegisterImmediate($0, $1, UInt64.self, AndOperation.self) }
    case (.registerMemory, 1): { aluRegisterMemory($0, $1, UInt8.self, AndOperation.self) }
    case (.registerMemory, 2): { aluRegisterMemory($0, $1, UInt16.self, AndOperation.self) }
    case (.registerMemory, 4): { aluRegisterMemory($0, $1, UInt32.self, AndOperation.self) }
    case (.registerMemory, _): { aluRegisterMemory($0, $1, UInt64.self, AndOperation.self) }
    case (.memoryRegister, 1): { aluMemoryRegister($0, $1, UInt8.self, AndOperation.self) }
    case (.memoryRegister, 2): { aluMemoryRegister($0, $1, UInt16.self, AndOperation.self) }
    case (.memoryRegister, 4): { aluMemoryRegister($0, $1, UInt32.self, AndOperation.self) }
    case (.memoryRegister, _): { aluMemoryRegister($0, $1, UInt64.self, AndOperation.self) }
    case (.memoryImmediate, 1): { aluMemoryImmediate($0, $1, UInt8.self, AndOperation.self) }
    case (.memoryImmediate, 2): { aluMemoryImmediate($0, $1, UInt16.self, AndOperation.self) }
    case (.memoryImmediate, 4): { aluMemoryImmediate($0, $1, UInt32.self, AndOperation.self) }
    case (.memoryImmediate, _): { aluMemoryImmediate($0, $1, UInt64.self, AndOperation.self) }
    }
}

private func subHandler(_ shape: OperandShape, _ size: UInt8) -> Handler {
    switch (shape, size) {
    case (.registerRegister, 1): { aluRegisterRegister($0, $1, UInt8.self, SubOperation.self) }
    case (.registerRegister, 2): { aluRegisterRegister($0, $1, UInt16.self, SubOperation.self) }
    case (.registerRegister, 4): { aluRegisterRegister($0, $1, UInt32.self, SubOperation.self) }
    case (.registerRegister, _): { aluRegisterRegister($0, $1, UInt64.self, SubOperation.self) }
    case (.registerImmediate, 1): { aluRegisterImmediate($0, $1, UInt8.self, SubOperation.self) }
    case (.registerImmediate, 2): { aluRegisterImmediate($0, $1, UInt16.self, SubOperation.self) }
    case (.registerImmediate, 4): { aluRegisterImmediate($0, $1, UInt32.self, SubOperation.self) }
    case (.registerImmediate, _): { aluRegisterImmediate($0, $1, UInt64.self, SubOperation.self) }
    case (.registerMemory, 1): { aluRegisterMemory($0, $1, UInt8.self, SubOperation.self) }
    case (.registerMemory, 2): { aluRegisterMemory($0, $1, UInt16.self, SubOperation.self) }
    case (.registerMemory, 4): { aluRegisterMemory($0, $1, UInt32.self, SubOperation.self) }
    case (.registerMemory, _): { aluRegisterMemory($0, $1, UInt64.self, SubOperation.self) }
    case (.memoryRegister, 1): { aluMemoryRegister($0, $1, UInt8.self, SubOperation.self) }
    case (.memoryRegister, 2): { aluMemoryRegister($0, $1, UInt16.self, SubOperation.self) }
    case (.memoryRegister, 4): { aluMemoryRegister($0, $1, UInt32.self, SubOperation.self) }
    case (.memoryRegister, _): { aluMemoryRegister($0, $1, UInt64.self, SubOperation.self) }
    case (.memoryImmediate, 1): { aluMemoryImmediate($0, $1, UInt8.self, SubOperation.self) }
    case (.memoryImmediate, 2): { aluMemoryImmediate($0, $1, UInt16.self, SubOperation.self) }
    case (.memoryImmediate, 4): { aluMemoryImmediate($0, $1, UInt32.self, SubOperation.self) }
    case (.memoryImmediate, _): { aluMemoryImmediate($0, $1, UInt64.self, SubOperation.self) }
    }
}

private func xorHandler(_ shape: OperandShape, _ size: UInt8) -> Handler {
    switch (shape, size) {
    case (.registerRegister, 1): { aluRegisterRegister($0, $1, UInt8.self, XorOperation.self) }
    case (.registerRegister, 2): { aluRegisterRegister($0, $1, UInt16.self, XorOperation.self) }
    case (.registerRegister, 4): { aluRegisterRegister($0, $1, UInt32.self, XorOperation.self) }
    case (.registerRegister, _): { aluRegisterRegister($0, $1, UInt64.self, XorOperation.self) }
    case (.registerImmediate, 1): { aluRegisterImmediate($0, $1, UInt8.self, XorOperation.self) }
    case (.registerImmediate, 2): { aluRegisterImmediate($0, $1, UInt16.self, XorOperation.self) }
    case (.registerImmediate, 4): { aluRegisterImmediate($0, $1, UInt32.self, XorOperation.self) }
    case (.registerImmediate, _): { aluRegisterImmediate($0, $1, UInt64.self, XorOperation.self) }
    case (.registerMemory, 1): { aluRegisterMemory($0, $1, UInt8.self, XorOperation.self) }
    case (.registerMemory, 2): { aluRegisterMemory($0, $1, UInt16.self, XorOperation.self) }
    case (.registerMemory, 4): { aluRegisterMemory($0, $1, UInt32.self, XorOperation.self) }
    case (.registerMemory, _): { aluRegisterMemory($0, $1, UInt64.self, XorOperation.self) }
    case (.memoryRegister, 1): { aluMemoryRegister($0, $1, UInt8.self, XorOperation.self) }
    case (.memoryRegister, 2): { aluMemoryRegister($0, $1, UInt16.self, XorOperation.self) }
    case (.memoryRegister, 4): { aluMemoryRegister($0, $1, UInt32.self, XorOperation.self) }
    case (.memoryRegister, _): { aluMemoryRegister($0, $1, UInt64.self, XorOperation.self) }
    case (.memoryImmediate, 1): { aluMemoryImmediate($0, $1, UInt8.self, XorOperation.self) }
    case (.memoryImmediate, 2): { aluMemoryImmediate($0, $1, UInt16.self, XorOperation.self) }
    case (.memoryImmediate, 4): { aluMemoryImmediate($0, $1, UInt32.self, XorOperation.self) }
    case (.memoryImmediate, _): { aluMemoryImmediate($0, $1, UInt64.self, XorOperation.self) }
    }
}

private func cmpHandler(_ shape: OperandShape, _ size: UInt8) -> Handler {
    switch (shape, size) {
    case (.registerRegister, 1): { aluRegisterRegister($0, $1, UInt8.self, CmpOperation.self) }
    case (.registerRegister, 2): { aluRegisterRegister($0, $1, UInt16.self, CmpOperation.self) }
    case (.registerRegister, 4): { aluRegisterRegister($0, $1, UInt32.self, CmpOperation.self) }
    case (.registerRegister, _): { aluRegisterRegister($0, $1, UInt64.self, CmpOperation.self) }
    case (.registerImmediate, 1): { aluRegisterImmediate($0, $1, UInt8.self, CmpOperation.self) }
    case (.registerImmediate, 2): { aluRegisterImmediate($0, $1, UInt16.self, CmpOperation.self) }
    case (.registerImmediate, 4): { aluRegisterImmediate($0, $1, UInt32.self, CmpOperation.self) }
    case (.registerImmediate, _): { aluRegisterImmediate($0, $1, UInt64.self, CmpOperation.self) }
    case (.registerMemory, 1): { aluRegisterMemory($0, $1, UInt8.self, CmpOperation.self) }
    case (.registerMemory, 2): { aluRegisterMemory($0, $1, UInt16.self, CmpOperation.self) }
    case (.registerMemory, 4): { aluRegisterMemory($0, $1, UInt32.self, CmpOperation.self) }
    case (.registerMemory, _): { aluRegisterMemory($0, $1, UInt64.self, CmpOperation.self) }
    case (.memoryRegister, 1): { aluMemoryRegister($0, $1, UInt8.self, CmpOperation.self) }
    case (.memoryRegister, 2): { aluMemoryRegister($0, $1, UInt16.self, CmpOperation.self) }
    case (.memoryRegister, 4): { aluMemoryRegister($0, $1, UInt32.self, CmpOperation.self) }
    case (.memoryRegister, _): { aluMemoryRegister($0, $1, UInt64.self, CmpOperation.self) }
    case (.memoryImmediate, 1): { aluMemoryImmediate($0, $1, UInt8.self, CmpOperation.self) }
    case (.memoryImmediate, 2): { aluMemoryImmediate($0, $1, UInt16.self, CmpOperation.self) }
    case (.memoryImmediate, 4): { aluMemoryImmediate($0, $1, UInt32.self, CmpOperation.self) }
    case (.memoryImmediate, _): { aluMemoryImmediate($0, $1, UInt64.self, CmpOperation.self) }
    }
}

private func testHandler(_ shape: OperandShape, _ size: UInt8) -> Handler {
    switch (shape, size) {
    case (.registerRegister, 1): { aluRegisterRegister($0, $1, UInt8.self, TestOperation.self) }
    case (.registerRegister, 2): { aluRegisterRegister($0, $1, UInt16.self, TestOperation.self) }
    case (.registerRegister, 4): { aluRegisterRegister($0, $1, UInt32.self, TestOperation.self) }
    case (.registerRegister, _): { aluRegisterRegister($0, $1, UInt64.self, TestOperation.self) }
    case (.registerImmediate, 1): { aluRegisterImmediate($0, $1, UInt8.self, TestOperation.self) }
    case (.registerImmediate, 2): { aluRegisterImmediate($0, $1, UInt16.self, TestOperation.self) }
    case (.registerImmediate, 4): { aluRegisterImmediate($0, $1, UInt32.self, TestOperation.self) }
    case (.registerImmediate, _): { aluRegisterImmediate($0, $1, UInt64.self, TestOperation.self) }
    case (.registerMemory, 1): { aluRegisterMemory($0, $1, UInt8.self, TestOperation.self) }
    case (.registerMemory, 2): { aluRegisterMemory($0, $1, UInt16.self, TestOperation.self) }
    case (.registerMemory, 4): { aluRegisterMemory($0, $1, UInt32.self, TestOperation.self) }
    case (.registerMemory, _): { aluRegisterMemory($0, $1, UInt64.self, TestOperation.self) }
    case (.memoryRegister, 1): { aluMemoryRegister($0, $1, UInt8.self, TestOperation.self) }
    case (.memoryRegister, 2): { aluMemoryRegister($0, $1, UInt16.self, TestOperation.self) }
    case (.memoryRegister, 4): { aluMemoryRegister($0, $1, UInt32.self, TestOperation.self) }
    case (.memoryRegister, _): { aluMemoryRegister($0, $1, UInt64.self, TestOperation.self) }
    case (.memoryImmediate, 1): { aluMemoryImmediate($0, $1, UInt8.self, TestOperation.self) }
    case (.memoryImmediate, 2): { aluMemoryImmediate($0, $1, UInt16.self, TestOperation.self) }
    case (.memoryImmediate, 4): { aluMemoryImmediate($0, $1, UInt32.self, TestOperation.self) }
    case (.memoryImmediate, _): { aluMemoryImmediate($0, $1, UInt64.self, TestOperation.self) }
    }
}
