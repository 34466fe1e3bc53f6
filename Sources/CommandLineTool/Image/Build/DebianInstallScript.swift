/// What turns a fresh Debian tree into a disk image: a POSIX shell script for mmdebstrap's customize hook, where the
/// owners of files are right whoever runs it.
///
/// `$1` is the tree. Descriptor 3, inherited, is a directory with the files that it reads and fills, rather than a path:
/// the hook of an unprivileged build runs as another user, who may not enter the directory of the output. It is one
/// descriptor because mmdebstrap wants its own to be below 10. In it: `disk`, of its final size; `kernel` and `initrd`,
/// empty; `keys` for authorized_keys, `password` as `user:password` and `user-data` of cloud-init, each of which may be
/// empty. Values come from the environment, by `MARTLET_…`. Lines that begin with `martlet-` are for `BuildOutput`.
enum DebianInstallScript {
    static let text = #"""
        set -eu
        tree=$1
        work=/proc/self/fd/3
        phase() { echo "martlet-phase $*" >&2; }
        in_tree() { chroot "$tree" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }

        phase configure
        # What the build needed of this machine's apt and dpkg is not the image's business.
        rm -f "$tree/etc/apt/apt.conf.d/99mmdebstrap" "$tree/etc/dpkg/dpkg.cfg.d/99mmdebstrap" \
            "$tree/etc/apt/sources.list" "$tree"/etc/apt/sources.list.d/*
        printf '%s\n' "$MARTLET_SOURCES" >"$tree/etc/apt/sources.list.d/debian.sources"
        printf '%s\n' "$MARTLET_HOSTNAME" >"$tree/etc/hostname"
        printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost ip6-loopback\n' \
            "$MARTLET_HOSTNAME" >"$tree/etc/hosts"
        printf 'UUID=%s / ext4 errors=remount-ro 0 1\n' "$MARTLET_ROOT_UUID" >"$tree/etc/fstab"
        printf 'LANG=C.UTF-8\n' >"$tree/etc/default/locale"

        # The network: every wired interface by DHCP. A machine without one has nothing to wait for.
        printf '[Match]\nType=ether\nKind=!*\n\n[Network]\nDHCP=yes\n' >"$tree/etc/systemd/network/80-wired.network"
        mkdir -p "$tree/etc/systemd/system/systemd-networkd-wait-online.service.d"
        printf '[Unit]\nConditionPathExistsGlob=/sys/class/net/[!l]*\n' \
            >"$tree/etc/systemd/system/systemd-networkd-wait-online.service.d/without-network.conf"
        in_tree systemctl --quiet enable systemd-networkd.service
        if [ -e "$tree/lib/systemd/system/systemd-resolved.service" ]; then
            in_tree systemctl --quiet enable systemd-resolved.service
            ln -sf ../run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
        fi

        # Keys of its own for each machine that starts from this image. A first start's login prompt waits for what is
        # being started: the search for an RSA key's prime numbers is not.
        rm -f "$tree"/etc/ssh/ssh_host_*
        cat >"$tree/etc/systemd/system/ssh-host-keys.service" <<'END'
        [Unit]
        Description=Host keys of the SSH server
        ConditionFileNotEmpty=!/etc/ssh/ssh_host_ed25519_key
        Before=ssh.service
        After=cloud-init.service

        [Service]
        Type=oneshot
        RemainAfterExit=yes
        ExecStart=/bin/sh -ec 'for type in ecdsa ed25519; do file=/etc/ssh/ssh_host_$${type}_key; rm -f $$file; ssh-keygen -q -N "" -t $$type -f $$file; done'

        [Install]
        RequiredBy=ssh.service
        END
        cat >"$tree/etc/systemd/system/ssh-rsa-key.service" <<'END'
        [Unit]
        Description=RSA host key of the SSH server (for old clients, from its next start)
        ConditionFileNotEmpty=!/etc/ssh/ssh_host_rsa_key
        After=ssh.service

        [Service]
        Type=simple
        CPUSchedulingPolicy=idle
        ExecStart=/bin/sh -c 'rm -f /etc/ssh/ssh_host_rsa_key; exec ssh-keygen -A'

        [Install]
        WantedBy=multi-user.target
        END
        in_tree systemctl --quiet enable ssh-host-keys.service ssh-rsa-key.service

        user=$MARTLET_USER
        if [ "$user" != root ]; then
            in_tree useradd --create-home --shell /bin/bash --groups sudo,adm,systemd-journal "$user"
            # Its password is locked or unknown to sudo's caller over SSH: sudo does not ask for it.
            printf '%s ALL=(ALL:ALL) NOPASSWD: ALL\n' "$user" >"$tree/etc/sudoers.d/90-$user"
            chmod 440 "$tree/etc/sudoers.d/90-$user"
        fi
        cp "$work/keys" "$tree/.keys"
        if [ -s "$tree/.keys" ]; then
            home=$(in_tree getent passwd "$user" | cut -d : -f 6)
            group=$(in_tree id -gn "$user")
            in_tree install -d -m 700 -o "$user" -g "$group" "$home/.ssh"
            in_tree install -m 600 -o "$user" -g "$group" /.keys "$home/.ssh/authorized_keys"
        fi
        rm -f "$tree/.keys"
        [ ! -s "$work/password" ] || in_tree chpasswd <"$work/password"
        if [ "$MARTLET_AUTOLOGIN" = 1 ]; then
            mkdir -p "$tree/etc/systemd/system/serial-getty@ttyS0.service.d"
            printf '[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin %s --keep-baud 115200,57600,38400,9600 - $TERM\n' \
                "$user" >"$tree/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf"
        fi

        # cloud-init's data in the place where NoCloud looks first.
        if [ -s "$work/user-data" ]; then
            mkdir -p "$tree/var/lib/cloud/seed/nocloud" "$tree/etc/cloud/cloud.cfg.d"
            cat "$work/user-data" >"$tree/var/lib/cloud/seed/nocloud/user-data"
            chmod 600 "$tree/var/lib/cloud/seed/nocloud/user-data"
            printf 'instance-id: %s\nlocal-hostname: %s\n' "$MARTLET_ROOT_UUID" "$MARTLET_HOSTNAME" \
                >"$tree/var/lib/cloud/seed/nocloud/meta-data"
            printf 'datasource_list: [ NoCloud, None ]\nnetwork: {config: disabled}\n' \
                >"$tree/etc/cloud/cloud.cfg.d/90-martlet.cfg"
        fi

        # What has to be new in each machine, and what only the build needed.
        : >"$tree/etc/machine-id"
        rm -f "$tree/var/lib/dbus/machine-id" "$tree/var/lib/systemd/random-seed"
        find "$tree/var/lib/apt/lists" "$tree/var/cache/apt" "$tree/var/log/apt" -type f -delete
        rm -f "$tree"/var/log/*.log

        kernel=
        for file in "$tree"/boot/vmlinuz-*; do
            [ ! -e "$file" ] || kernel=${file##*/vmlinuz-}
        done
        if [ -z "$kernel" ] || [ ! -s "$tree/boot/initrd.img-$kernel" ]; then
            echo "E: the packages brought no kernel with an initial RAM disk" >&2
            exit 1
        fi
        echo "martlet-kernel $kernel" >&2

        phase filesystem
        cat "$tree/boot/vmlinuz-$kernel" >"$work/kernel"
        cat "$tree/boot/initrd.img-$kernel" >"$work/initrd"
        # One partition behind room for those of a firmware's boot loader, so that it can grow at the disk's end.
        printf 'label: gpt\nlabel-id: %s\nstart=%s, size=%s, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709, name=root\n' \
            "$MARTLET_DISK_UUID" "$MARTLET_ROOT_SECTOR" "$MARTLET_ROOT_SECTORS" |
            sfdisk --quiet --no-reread --no-tell-kernel --lock=no "$work/disk"
        # A view of the tree without what is mounted there (/proc, /sys), and with nothing in /tmp and /run: mmdebstrap
        # still needs its own files there, without which its apt would turn to this machine's lists.
        unshare --mount sh -euc '
            mount --bind "$1" "$1"
            mount -t tmpfs -o mode=1777 none "$1/tmp"
            mount -t tmpfs -o mode=755 none "$1/run"
            tree=$1
            shift
            exec mkfs.ext4 -d "$tree" "$@"' sh "$tree" \
            -q -F -L root -U "$MARTLET_ROOT_UUID" \
            -E "offset=$((MARTLET_ROOT_SECTOR * 512)),nodiscard,lazy_itable_init=0,lazy_journal_init=0" \
            "$work/disk" "$((MARTLET_ROOT_SECTORS / 2))k"
        """#

    /// Makes the tree with debootstrap, where there is no mmdebstrap: root's, in a mount namespace of its own.
    /// Arguments: debootstrap, packages, suite, mirror, the script above.
    static let debootstrapWrapper = #"""
        set -eu
        tree=$(mktemp -d "${TMPDIR:-/tmp}/martlet-debian.XXXXXX")
        clean() {
            umount --recursive --lazy "$tree/proc" "$tree/sys" 2>/dev/null || true
            rm -rf --one-file-system "$tree"
        }
        trap clean EXIT
        trap 'exit 143' INT TERM HUP
        chmod 755 "$tree"
        "$1" --variant=minbase --include="$2" "$3" "$tree" "$4"
        sh -c "$5" sh "$tree"
        """#
}
