internal import FileShare
internal import GuestMemory
internal import Host

/// A descriptor chain as a FUSE request: what the device reads is the request, what it writes the reply.
struct ChainBuffers: ShareRequestBuffers {
    let chain: DescriptorChain
    let memory: GuestMemory

    var requestCount: Int { chain.readable.count }
    var replyLimit: Int { chain.writable.count }

    func read(at offset: Int, count: Int) -> [UInt8]? {
        guard let bytes = try? chain.readable.read(from: memory, at: offset, limit: count), bytes.count == count else {
            return nil
        }
        return bytes
    }

    func write(_ bytes: [UInt8], at offset: Int) -> Bool {
        (try? chain.writable.write(bytes, to: memory, at: offset)) == bytes.count
    }

    func source(at offset: Int, count: Int) -> IOSegments? {
        let part = chain.readable.slice(from: offset, limit: count)
        return part.count == count ? try? memory.segments(part.ranges, forWriting: false) : nil
    }

    func target(at offset: Int, count: Int) -> IOSegments? {
        let part = chain.writable.slice(from: offset, limit: count)
        return part.count == count ? try? memory.segments(part.ranges, forWriting: true) : nil
    }

    func noteFilled(at offset: Int, count: Int) {
        memory.noteTransfer(into: chain.writable.slice(from: offset, limit: count).ranges)
    }
}
