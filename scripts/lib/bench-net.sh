# shellcheck shell=bash
# What the benchmark measures of networks and shared folders: iperf3 between the guest and this host, and reading what the
# host shares.
# shellcheck disable=SC2154 # its caller's: work, with_qemu, results, pids
# shellcheck disable=SC2034 # and inside

# shellcheck disable=SC2034 # scripts/lib/bench-io.sh lists them
net_rows=(net-user-send net-user-receive net-tap-send net-tap-receive)
# shellcheck disable=SC2034
share_rows=(share-read share-tar)

# --- networks ------------------------------------------------------------------------------------------------------------------

# A network namespace with nothing but its own loopback and, where that is possible, two tap devices: what a guest sends
# stays there. Leaves in network_prefix the command that enters it; false where none can be made.
make_network() {
    local holder own=()
    [[ -z ${network_prefix[*]:-} ]] || return 0
    if ((EUID != 0)); then own=(--user --map-root-user); fi
    unshare "${own[@]}" --net sleep 3600 2>"$work/log" &
    holder=$!
    pids+=("$holder")
    # Until it is in its own namespace, it is in ours.
    for _ in {1..100}; do
        [[ $(readlink "/proc/$holder/ns/net" 2>/dev/null) == "$(readlink /proc/self/ns/net)" ]] || break
        sleep 0.02
    done
    kill -0 "$holder" 2>/dev/null || return 1
    network_prefix=(nsenter --target "$holder" --net)
    if ((EUID != 0)); then network_prefix+=(--user --preserve-credentials); fi
    "${network_prefix[@]}" ip link set lo up 2>"$work/log" || return 1
    # All interfaces of the namespace.
    "${network_prefix[@]}" iperf3 --server >/dev/null 2>&1 &
    pids+=("$!")
    has_taps=''
    # shellcheck disable=SC2016 # the inner shell expands it
    if "${network_prefix[@]}" sh -c 'for tap in 0 1; do
        ip tuntap add dev tap$tap mode tap vnet_hdr && ip addr add 10.9.$tap.1/24 dev tap$tap && ip link set tap$tap up ||
            exit
    done' 2>"$work/log"; then
        has_taps=yes
    else
        say "Rows net-tap-*: skipped, tap devices cannot be made here: $(tail -n 1 "$work/log")"
    fi
}

measure_networks() {
    local round=$1 kind row jobs
    shift
    if ! command -v iperf3 >/dev/null || ! command -v ip >/dev/null || ! make_network; then
        [[ -n ${said_network:-} ]] ||
            say "Rows net-*: skipped, they need iperf3, iproute2, and the right to make a network namespace."
        said_network=yes
        return 0
    fi
    build_io_initrd iperf3 iperf3
    inside=("${network_prefix[@]}")
    for kind in user tap; do
        [[ $kind == user || -n $has_taps ]] || continue
        jobs=()
        for row in "$@"; do
            [[ $row != net-$kind-* ]] || jobs+=("${row#"net-$kind-"}=$row")
        done
        ((${#jobs[@]} > 0)) || continue
        without native "$round" MiB "${jobs[@]#*=}"
        "measure_$kind" "$round" "${jobs[*]}"
    done
    inside=()
}

measure_user() {
    run_io_guest martlet "$1" "iperf3, user" iperf3 "net 10.0.2.15/24 10.0.2.2 $2" --net user,egress=host
    [[ -z $with_qemu ]] || run_io_guest qemu "$1" "iperf3, user" iperf3 "net 10.0.2.15/24 10.0.2.2 $2" \
        -netdev user,id=n,ipv6=off -device virtio-net-pci,netdev=n
}

measure_tap() {
    run_io_guest martlet "$1" "iperf3, tap" iperf3 "net 10.9.0.2/24 10.9.0.1 $2" --net tap,name=tap0
    [[ -z $with_qemu ]] || run_io_guest qemu "$1" "iperf3, tap" iperf3 "net 10.9.1.2/24 10.9.1.1 $2" \
        -netdev tap,id=n,ifname=tap1,script=no,downscript=no,vhost=off -device virtio-net-pci,netdev=n
}

# --- shared folders --------------------------------------------------------------------------------------------------------------

share_files=10000

# A file of 512 MiB, and 10,000 of 1 to 4 KiB in a hundred folders.
build_share() {
    [[ ! -e $work/share/large ]] || return 0
    mkdir -p "$work/share/small"
    awk -v count="$share_files" -v folder="$work/share/small" 'BEGIN {
        line = "A martlet is the heraldic swift: a bird drawn without feet.\n"
        for (i = 0; i < 64; i++) text = text line
        for (i = 0; i < count; i++) {
            where = sprintf("%s/%02d", folder, i % 100)
            if (i < 100) system("mkdir " where)
            file = where "/" i
            printf "%s", substr(text, 1, 1024 + i * 37 % 3072) >file
            close(file)
        }
    }'
    head -c "$disk_size" /dev/urandom >"$work/share/large"
}

measure_shares() {
    local round=$1 row jobs=() daemon=/usr/lib/qemu/virtiofsd socket=$work/virtiofsd machine
    shift
    for row in "$@"; do jobs+=("${row#share-}=$row"); done
    build_share
    build_io_initrd share
    without native "$round" - "$@"
    run_io_guest martlet "$round" "shared folder" share "share $share_files ${jobs[*]}" --share "$work/share:bench"
    [[ -n $with_qemu ]] || return 0
    if [[ ! -x $daemon ]] || ((EUID != 0)); then
        [[ -n ${said_share:-} ]] || say "Rows share-*: without QEMU, its virtiofsd is missing or needs root."
        said_share=yes
        without qemu "$round" - "$@"
        return 0
    fi
    rm -f "$socket"
    "$daemon" --socket-path="$socket" -o source="$work/share" -o cache=auto >"$work/virtiofsd.log" 2>&1 &
    machine=$!
    pids+=("$machine")
    for _ in {1..250}; do
        [[ ! -S $socket ]] || break
        sleep 0.02
    done
    run_io_guest qemu "$round" "shared folder" share "share $share_files ${jobs[*]}" \
        -object memory-backend-memfd,id=m,size=512M,share=on -machine memory-backend=m \
        -chardev "socket,id=c,path=$socket" -device vhost-user-fs-pci,chardev=c,tag=bench
    # It ends with its machine.
    wait "$machine" || true
}
