internal import CHost
public import Host

extension GuestMemory {
    /// A copy of all regions as they are now; nobody may write to them meanwhile. Pages of zeroes take no memory.
    public func copy() throws(HostError) -> [MemoryRegion] {
        var copies: [MemoryRegion] = []
        for region in regions {
            let copy = try HostMapping(size: region.mapping.size)
            host_copy_used_pages(copy.address, region.mapping.address, region.mapping.size)
            copies.append(MemoryRegion(base: region.base, isReadOnly: region.isReadOnly, mapping: copy))
        }
        return copies
    }

    /// Memory of its own with what `copies` hold.
    public convenience init(copying copies: [MemoryRegion]) throws(HostError) {
        self.init(regions: try GuestMemory(regions: copies).copy())
    }
}
