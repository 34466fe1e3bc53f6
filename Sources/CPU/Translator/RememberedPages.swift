internal import CHost

// What translated code remembers of translations goes with them: the pages of its data accesses (sites), and the return
// stacks. What indirect branches remember carries the fetch generation.

/// Sites forget their pages: those that are not global, or all.
func forgetSites(_ s: State, keepGlobal: Bool) {
    forget(s, s.pointee.local_sites, Int(s.pointee.local_site_count), UInt8(MARTLET_SITE_LOCAL))
    s.pointee.local_site_count = 0
    martlet_site_pages(s, 0).update(repeating: 0, count: Int(MARTLET_SITE_PAGE_WORDS))
    if keepGlobal { return }
    forget(s, s.pointee.global_sites, Int(s.pointee.global_site_count), UInt8(MARTLET_SITE_GLOBAL))
    s.pointee.global_site_count = 0
    martlet_site_pages(s, 1).update(repeating: 0, count: Int(MARTLET_SITE_PAGE_WORDS))
}

private typealias SiteList = UnsafeMutablePointer<UnsafeMutableRawPointer?>

private func forget(_ s: State, _ list: SiteList?, _ count: Int, _ isListed: UInt8) {
    guard let list else { return }
    let noPage = s.pointee.no_page
    for index in 0..<count {
        guard let site = list[index]?.assumingMemoryBound(to: martlet_site.self) else { continue }
        site.pointee.tag = noPage
        site.pointee.flags &= ~isListed
    }
}

/// Sites forget one page. They stay listed. Most pages are of no site: a bit for each hash of a page says so.
@inline(__always) func forgetSites(_ s: State, page: UInt64) {
    let number = Int(truncatingIfNeeded: (page >> 12) & 0xFFF)
    let bit: UInt64 = 1 &<< UInt64(number & 63)
    if martlet_site_pages(s, 0)[number >> 6] & bit != 0 {
        forget(s, s.pointee.local_sites, s.pointee.local_site_numbers, s.pointee.local_site_count, page)
    }
    if martlet_site_pages(s, 1)[number >> 6] & bit != 0 {
        forget(s, s.pointee.global_sites, s.pointee.global_site_numbers, s.pointee.global_site_count, page)
    }
}

@inline(never) private func forget(
    _ s: State, _ list: SiteList?, _ numbers: UnsafeMutablePointer<UInt32>?, _ count: UInt32, _ page: UInt64
) {
    guard let list, let numbers else { return }
    let number = UInt32(truncatingIfNeeded: page >> 12)
    var index = martlet_next_number(numbers, 0, count, number)
    while index < count {
        if let site = list[Int(index)]?.assumingMemoryBound(to: martlet_site.self), site.pointee.tag == page {
            site.pointee.tag = s.pointee.no_page
        }
        index = martlet_next_number(numbers, index + 1, count, number)
    }
}

/// Empties the return stack of the current privilege unless it was filled under the current fetch generation.
@inline(__always) func forgetOldReturns(_ s: State, isUser: Bool) {
    let key = s.pointee.fetch_key
    if isUser {
        if s.pointee.user_returns_key == key { return }
        s.pointee.user_returns_key = key
    } else {
        if s.pointee.supervisor_returns_key == key { return }
        s.pointee.supervisor_returns_key = key
    }
    let stack = martlet_return_stack(s, isUser ? 1 : 0)
    let none = martlet_return(not_rip: ~s.pointee.no_page, host: s.pointee.lost_return)
    for index in 0..<Int(MARTLET_RETURN_ENTRIES) { stack[index] = none }
}
