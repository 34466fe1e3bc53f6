internal import SoftKVM
internal import Testing

@testable internal import VMM

@Suite("Profile report")
struct ProfileReportTests {
    private typealias Sample = GuestProfile.Sample

    private let symbols = SymbolTable([
        SymbolTable.Symbol(address: 0x40_1000, size: 0x100, name: "main loop;fast")
    ])
    private let kernel = SymbolTable([
        SymbolTable.Symbol(address: 0xFFFF_FFFF_8100_0000, name: "_stext"),
        SymbolTable.Symbol(address: 0xFFFF_FFFF_8100_0100, name: "schedule"),
    ])

    @Test("Folded stacks: privilege, function, what executed, count")
    func folded() {
        var report = ProfileReport()
        report.add(
            GuestProfile(
                samples: [
                    Sample(address: 0xFFFF_FFFF_8100_0180, isUser: false, activity: .translated, count: 5),
                    Sample(address: 0xFFFF_FFFF_8100_0140, isUser: false, activity: .translated, count: 2),
                    Sample(address: 0xFFFF_FFFF_8100_0140, isUser: false, activity: .pageWalk, count: 1),
                    Sample(address: 0xFFFF_FFFF_8100_0000, isPage: true, isUser: false, activity: .helper, count: 3),
                    Sample(address: 0x40_1010, isUser: true, activity: .interpreter, count: 4),
                    Sample(address: 0x7F12_3456, isUser: true, activity: .translated, count: 1),
                    Sample(address: 0x7F12_3FFF, isUser: true, activity: .translated, count: 1),
                    Sample(address: 0x99, isUser: false, activity: .halted, count: 10),
                    Sample(address: 0x100_0200, isUser: false, activity: .exit, count: 1),
                ], lostCount: 2), symbols: symbols, kernel: kernel)
        #expect(
            report.folded == """
                halted 10
                kernel;0x1000000;exit 1
                kernel;0xffffffff81000000;helper 3
                kernel;schedule;page walk 1
                kernel;schedule;translated 7
                lost 2
                user;0x7f123000;translated 2
                user;main_loop:fast;interpreter 4

                """)
        #expect(report.sampleCount == 30)
    }

    @Test("Restarts add up; the map is of the last machine")
    func restarts() {
        var report = ProfileReport()
        for number in UInt64(1)...2 {
            report.add(
                GuestProfile(
                    samples: [Sample(address: 0x1000, isUser: true, activity: .translated, count: number)],
                    blocks: [
                        .init(hostAddress: 0x7000_0000 + number, size: 0x40, guestAddress: 0x40_1020, isUser: true),
                        .init(hostAddress: 0x7000_1000, size: 0x10, guestAddress: 0x9000, isUser: false),
                    ]), symbols: symbols)
        }
        #expect(report.folded == "user;0x1000;translated 3\n")
        #expect(
            report.perfMap == """
                70000002 40 guest:user:main_loop:fast+0x20
                70001000 10 guest:kernel:0x9000

                """)
    }
}
