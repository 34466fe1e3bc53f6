internal import CHost
internal import Glibc

/// Whose files are in the guest.
///
/// As root of the host, owners are the same on both sides, and what the guest makes belongs to the user and group that
/// asked for it. As another user nothing can belong to anyone else: what is this user's is root's in the guest, all other
/// files are nobody's, and whatever the guest makes is this user's.
struct OwnerMapping: Equatable, Sendable {
    /// nil: owners are the same on both sides.
    private let user: UInt32?
    private let group: UInt32?

    /// Linux's overflow user and group.
    private static let nobody: UInt32 = 65534

    init() {
        let effective = host_share_user()
        self.init(user: effective == 0 ? nil : effective, group: effective == 0 ? nil : host_share_group())
    }

    /// For a process of that user and group.
    init(user: UInt32?, group: UInt32?) {
        self.user = user
        self.group = group
    }

    var isIdentity: Bool { user == nil }

    func shown(user owner: UInt32) -> UInt32 {
        guard let user else { return owner }
        return owner == user ? 0 : Self.nobody
    }

    func shown(group owner: UInt32) -> UInt32 {
        guard let group else { return owner }
        return owner == group ? 0 : Self.nobody
    }

    /// What a change of owner asks of the host; nil: nothing. EPERM where it cannot be.
    func requested(user owner: UInt32) throws(ShareFault) -> UInt32? {
        if isIdentity { return owner }
        guard owner == 0 else { throw ShareFault(EPERM) }
        return nil
    }

    func requested(group owner: UInt32) throws(ShareFault) -> UInt32? {
        if isIdentity { return owner }
        guard owner == 0 else { throw ShareFault(EPERM) }
        return nil
    }
}
