internal import CHost
internal import Glibc

extension TransferMemory {
    /// Fills it from `offset` of an open file; the number of bytes, which is less only where the file ends, or -errno.
    public func fill(from file: BorrowedDescriptor, at offset: UInt64) -> Int {
        transfer { pieces, count, done in host_preadv(file.rawValue, pieces, count, offset &+ UInt64(done)) }
    }

    /// Fills it with what the page cache has at `offset` of an open file, without waiting. False: it has not all of it, and
    /// some may be there already.
    public func fillFromCache(of file: BorrowedDescriptor, at offset: UInt64) -> Bool {
        pieces.withUnsafeBufferPointer { pieces in
            guard let base = pieces.baseAddress else { return true }
            return retryingInterrupted { host_preadv_cached(file.rawValue, base, pieces.count, offset) } == count
        }
    }

    /// Writes it at `offset` of an open file; the number of bytes, which is less where the file takes no more, or
    /// -errno.
    public func store(in file: BorrowedDescriptor, at offset: UInt64) -> Int {
        transfer { pieces, count, done in host_pwritev(file.rawValue, pieces, count, offset &+ UInt64(done)) }
    }

    /// What a stream socket has now, once; 0 at its end, or -errno (EAGAIN: nothing now).
    public func receive(from socket: BorrowedDescriptor) -> Int {
        pieces.withUnsafeBufferPointer { pieces in
            guard let base = pieces.baseAddress else { return 0 }
            return retryingInterrupted { host_stream_receive(socket.rawValue, base, pieces.count) }
        }
    }

    /// As much as a stream socket takes now, once; or -errno (EAGAIN: nothing now).
    public func send(to socket: BorrowedDescriptor) -> Int {
        pieces.withUnsafeBufferPointer { pieces in
            guard let base = pieces.baseAddress else { return 0 }
            return retryingInterrupted { host_stream_send(socket.rawValue, base, pieces.count) }
        }
    }
}
