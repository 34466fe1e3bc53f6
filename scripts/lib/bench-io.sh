# shellcheck shell=bash
# What the benchmark measures of disks: fio in the guest on raw and qcow2, what a larger disk and more disks change, what a
# new cluster costs beside qemu-img bench, and a Debian to its login.
# shellcheck disable=SC2154 # its caller's: work, guest, martlet, engine, options, qemu_cpu, with_qemu, results, pids, debian

disk_jobs=(read-1 read-32 write-1 write-32 seq-read seq-write)
disk_rows=() allocation_rows=(alloc-64k alloc-sparse alloc-flush alloc-1tib)
for format in raw qcow2; do
    for job in "${disk_jobs[@]}"; do disk_rows+=("disk-$format-$job"); done
done
# shellcheck disable=SC2034 # its caller lists them
io_rows=("${disk_rows[@]}" disk-20 disk-1tib "${allocation_rows[@]}" idle-disk "${net_rows[@]}" "${share_rows[@]}" login)

mebibyte=1048576
# Of the disk that is read and written, all of it data: not more than the host keeps in memory.
disk_size=$((512 * mebibyte))

# selected_of ROW…: those of them that --rows asks for.
selected_of() {
    local row
    for row in "$@"; do ! selected "$row" || printf '%s\n' "$row"; done
}

measure_io_rows() {
    local rows_here
    mapfile -t rows_here < <(selected_of "${disk_rows[@]}")
    ((${#rows_here[@]} == 0)) || measure_disks "$1" "${rows_here[@]}"
    ! selected disk-20 || measure_more_disks "$1"
    ! selected disk-1tib || measure_larger_disk "$1"
    mapfile -t rows_here < <(selected_of "${allocation_rows[@]}")
    ((${#rows_here[@]} == 0)) || measure_allocation "$1" "${rows_here[@]}"
    ! selected idle-disk || measure_idle_disks "$1"
    mapfile -t rows_here < <(selected_of "${net_rows[@]}")
    ((${#rows_here[@]} == 0)) || measure_networks "$1" "${rows_here[@]}"
    mapfile -t rows_here < <(selected_of "${share_rows[@]}")
    ((${#rows_here[@]} == 0)) || measure_shares "$1" "${rows_here[@]}"
    ! selected login || measure_login "$1"
}

# without NAME ROUND OPERATION ROW…: that these rows have nothing by that name, and are not expected to.
without() {
    local name=$1 round=$2 operation=$3 row
    [[ $name != qemu || -n $with_qemu ]] || return 0
    shift 3
    for row in "$@"; do echo "$name $round $row - $operation -" >>"$results"; done
}

# --- the guest: the default guest's kernel with the host's fio or iperf3 -------------------------------------------------------

# build_io_initrd NAME [PROGRAM]: the default guest's initramfs with scripts/bench-guests/io-init, the program and the
# libraries that it needs, as $work/NAME.cpio.
build_io_initrd() {
    local program name file libraries=()
    [[ ! -e $work/$1.cpio ]] || return 0
    if [[ -n ${2:-} ]]; then
        program=$(readlink -f "$(command -v "$2")")
        mapfile -t libraries < <(ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }')
    fi
    {
        cat "$guest/initramfs.cpio"
        cpio_entry bench-io $((0100755)) scripts/bench-guests/io-init
        if [[ -n ${2:-} ]]; then
            cpio_entry "bin/$2" $((0100755)) "$program"
            cpio_entry lib64 $((0040755))
            cpio_entry lib64/ld-linux-x86-64.so.2 $((0100755)) "$(readlink -f /lib64/ld-linux-x86-64.so.2)"
            cpio_entry lib/x86_64-linux-gnu $((0040755))
            for file in "${libraries[@]}"; do
                name=${file%% *}
                cpio_entry "lib/x86_64-linux-gnu/${name##*/}" $((0100755)) "$(readlink -f "${file#* }")"
            done
        fi
        cpio_entry 'TRAILER!!!' 0
    } >"$work/$1.cpio"
}

# run_io_guest NAME ROUND WHAT INITRD ARGUMENTS [OPTION…]: a machine of NAME ("martlet", "qemu" or, for a row that Martlet
# is compared with itself in, "native") with more options, in the prefix command $inside if there is one.
run_io_guest() {
    local name=$1 round=$2 what=$3 initrd=$4 append="$options rdinit=/bench-io -- $5" program log=$work/$1.log
    shift 5
    if [[ $name == qemu ]]; then
        program=("${io_qemu[@]}" -kernel "$guest/vmlinuz" -initrd "$work/$initrd.cpio" -append "$append" -serial stdio)
    else
        program=("$martlet" run --accel soft --engine "$engine" --timeout 5m --kernel "$guest/vmlinuz"
            --initrd "$work/$initrd.cpio" --append "$append")
    fi
    "${inside[@]}" "${program[@]}" "$@" </dev/null 2>"$log" | tee "$work/console" | record "$name" "$round" 0 ||
        say "$what, $name: $(tail -n 1 "$log")"
}

# As in scripts/bench, on a machine with PCI Express as Martlet's; five minutes end one that hangs.
prepare_io() {
    io_qemu=(timeout 300 qemu-system-x86_64 -M q35 -accel tcg -cpu "$qemu_cpu" -m 512 -nodefaults -display none -no-reboot)
    inside=()
    # The back end of QEMU's disks: io_uring where the host allows it.
    disk_aio=threads
    if [[ -n $with_qemu ]] && : >"$work/probe" && truncate -s 1M "$work/probe" &&
        qemu-io -c quit --image-opts "driver=file,filename=$work/probe,aio=io_uring" >/dev/null 2>&1; then
        disk_aio=io_uring
    fi
}

# --- fio ------------------------------------------------------------------------------------------------------------------------

has_fio() {
    command -v fio >/dev/null || {
        [[ -n ${said_fio:-} ]] || say "Rows disk-*: skipped, fio is not installed."
        said_fio=yes
        return 1
    }
    build_io_initrd fio fio
}

build_disk_images() {
    [[ ! -e $work/disk.qcow2 ]] || return 0
    head -c "$disk_size" /dev/urandom >"$work/disk.raw"
    "$martlet" image convert --from raw --to qcow2 "$work/disk.raw" "$work/disk.qcow2" 2>/dev/null
}

# jobs_of FORMAT ROW…: JOB=ROW for each row of that format.
jobs_of() {
    local format=$1 row
    shift
    for row in "$@"; do
        [[ $row != disk-$format-* ]] || printf '%s=%s\n' "${row#"disk-$format-"}" "$row"
    done
}

measure_disks() {
    local round=$1 format jobs
    shift
    has_fio || return 0
    build_disk_images
    without native "$round" - "$@"
    for format in raw qcow2; do
        mapfile -t jobs < <(jobs_of "$format" "$@")
        ((${#jobs[@]} > 0)) || continue
        # Who comes first must not be the one that reads the image from the host's disk.
        cat "$work/disk.$format" >/dev/null
        run_io_guest martlet "$round" "fio on $format" fio "disk 0 $disk_size ${jobs[*]}" \
            --disk "$work/disk.$format,format=$format,cache=writeback"
        [[ -z $with_qemu ]] || run_io_guest qemu "$round" "fio on $format" fio "disk 0 $disk_size ${jobs[*]}" \
            -drive "file=$work/disk.$format,format=$format,if=none,id=d,cache=writeback,aio=$disk_aio" \
            -device virtio-blk-pci,drive=d
    done
}

# The same requests with nineteen disks beside the one that gets them; "native" is the machine with that one alone.
measure_more_disks() {
    local number more=()
    has_fio || return 0
    build_disk_images
    for ((number = 2; number <= 20; number++)); do
        truncate -s 16M "$work/more-$number"
        more+=(--disk "$work/more-$number,format=raw")
    done
    run_io_guest native "$1" "fio, one disk" fio "disk 0 $disk_size read-1=disk-20" \
        --disk "$work/disk.raw,format=raw"
    run_io_guest martlet "$1" "fio, twenty disks" fio "disk 0 $disk_size read-1=disk-20" \
        --disk "$work/disk.raw,format=raw" "${more[@]}"
    without qemu "$1" - disk-20
}

# The same requests to the last 256 MiB of a qcow2 disk of 1 TiB; "native" is one of 4 GiB.
measure_larger_disk() {
    local name size offset
    has_fio || return 0
    for name in native martlet; do
        size=$((4096 * mebibyte))
        [[ $name == native ]] || size=$((1024 * 1024 * mebibyte))
        offset=$((size - 256 * mebibyte))
        if [[ ! -e $work/size-$name ]]; then
            "$martlet" image create --format qcow2 "$work/size-$name" "$size" 2>/dev/null
            "$martlet" image bench --write --size 1M --count 256 --offset "$offset" "$work/size-$name" >/dev/null
        fi
        run_io_guest "$name" "$1" "fio, a disk of $size bytes" fio \
            "disk $offset $((256 * mebibyte)) read-1=disk-1tib" --disk "$work/size-$name,format=qcow2"
    done
    without qemu "$1" - disk-1tib
}

# --- what new clusters cost, beside qemu-img bench ----------------------------------------------------------------------------

# time_allocation NAME ROUND ROW DISKSIZE COUNT SIZE STEP FLUSH OFFSET: from the start of the program to its end, for each
# request; "native" is qemu-img bench with one request at a time, or for alloc-1tib Martlet on the smaller disk.
time_allocation() {
    local name=$1 round=$2 row=$3 disk_bytes=$4 count=$5 size=$6 step=$7 flush=$8 offset=$9 start
    rm -f "$work/alloc.qcow2"
    "$martlet" image create --format qcow2 "$work/alloc.qcow2" "$disk_bytes" 2>/dev/null
    start=$(microseconds)
    if [[ $name == native && $row != alloc-1tib ]]; then
        qemu-img bench -q -w -d 1 -f qcow2 -t writeback -c "$count" -s "$size" -S "$step" -o "$offset" \
            --flush-interval "$flush" --no-drain "$work/alloc.qcow2" >/dev/null
    else
        "$martlet" image bench --write --count "$count" --size "$size" --step "$step" --offset "$offset" \
            --flush-interval "$flush" "$work/alloc.qcow2" >/dev/null
    fi || {
        echo "$name $round $row failed its program ended with an error" >>"$results"
        return 0
    }
    report "$name" "$round" "$row" "$start" write "$count"
}

measure_allocation() {
    local round=$1 row name arguments size
    shift
    for row in "$@"; do
        for name in native martlet; do
            # A disk's bytes, then how many requests, their bytes, their distance, a flush after so many, the first one.
            case $row in
                alloc-64k) arguments=($((4096 * mebibyte)) 16000 65536 65536 0 0) ;;
                alloc-sparse) arguments=($((4096 * mebibyte)) 30000 4096 65536 0 0) ;;
                alloc-flush) arguments=($((4096 * mebibyte)) 20000 4096 4096 64 0) ;;
                alloc-1tib)
                    size=$((4096 * mebibyte))
                    [[ $name == native ]] || size=$((1024 * 1024 * mebibyte))
                    arguments=("$size" 30000 4096 65536 0 $((size - 2048 * mebibyte)))
                    ;;
            esac
            if [[ $name == native && $row != alloc-1tib ]] && ! command -v qemu-img >/dev/null; then
                without native "$round" write "$row"
            else
                time_allocation "$name" "$round" "$row" "${arguments[@]}"
            fi
        done
        without qemu "$round" write "$row"
    done
}

# --- memory of idle disks ------------------------------------------------------------------------------------------------------

# own_memory_with COUNT: leaves in own_kibibytes our own memory at the shell of the default guest with so many disks.
own_memory_with() {
    local number disks=() machine
    for ((number = 1; number <= $1; number++)); do
        truncate -s 16M "$work/more-$number"
        disks+=(--disk "$work/more-$number,format=raw")
    done
    rm -f "$work/in"
    mkfifo "$work/in"
    "$martlet" run --accel soft --engine "$engine" --verbose --timeout 5m "${disks[@]}" \
        <"$work/in" >"$work/out" 2>"$work/log" &
    machine=$!
    pids+=("$machine")
    exec 7>"$work/in"
    wait_for '\] shell' "$work/log" "$machine"
    own_kibibytes=$(memory_of "$machine")
    echo 'exit' >&7
    exec 7>&-
    wait "$machine" || stop "The default guest did not switch itself off: $(tail -n 1 "$work/log")"
}

idle_memory=''

# The difference of one disk and of 21, for each of the twenty.
measure_idle_disks() {
    local few
    own_memory_with 1
    few=$own_kibibytes
    own_memory_with 21
    idle_memory+="$(((own_kibibytes - few) / 20)) "
}

print_idle_memory() {
    [[ -n $idle_memory ]] || return 0
    awk -v list="$idle_memory" 'NF == 4 && $1 == "idle-disk" { must = $3 }
        END {
            count = split(list, kib, " ")
            for (i = 1; i <= count; i++) if (i == 1 || kib[i] > most) most = kib[i]
            printf "own memory for each idle disk: %d KiB (%s %d)\n", most,
                most < must ? "reached: under" : "MISSES", must
        }' scripts/bench-guests/requirements
}

# --- a Debian to its login -------------------------------------------------------------------------------------------------------

# value_of NAME FILE: a text in the manifest of an image.
value_of() { sed -n 's/^ *"'"$1"'": "\(.*\)",\{0,1\}$/\1/p' "$2"; }

measure_login() {
    local image=$debian start machine directory append
    if [[ ! -s $image.json ]]; then
        [[ -n ${said_debian:-} ]] || say "Row login: skipped, there is no Debian image: run scripts/debian-image."
        said_debian=yes
        return 0
    fi
    without native "$1" boot login
    start=$(microseconds)
    "$martlet" run --accel soft --engine "$engine" --verbose --snapshot --memory 2G --timeout 10m "$image" \
        </dev/null >"$work/out" 2>"$work/log" &
    machine=$!
    pids+=("$machine")
    wait_for 'login: ' "$work/out" "$machine"
    report martlet "$1" login "$start" boot
    kill "$machine"
    wait "$machine" || true
    [[ -n $with_qemu ]] || return 0
    append=$(sed -n 's/.*command line: //p' "$work/log" | head -n 1)
    directory=$(dirname "$image")
    : >"$work/out"
    start=$(microseconds)
    "${io_qemu[@]}" -m 2048 -smp 1 -snapshot -kernel "$directory/$(value_of kernel "$image.json")" \
        -initrd "$directory/$(value_of initrd "$image.json")" -append "${append:-$(value_of append "$image.json")}" \
        -drive "file=$image,format=qcow2,if=none,id=d,cache=writeback,aio=$disk_aio" -device virtio-blk-pci,drive=d \
        -serial "file:$work/out" </dev/null >/dev/null 2>"$work/log" &
    machine=$!
    pids+=("$machine")
    wait_for 'login: ' "$work/out" "$machine"
    report qemu "$1" login "$start" boot
    kill "$machine"
    wait "$machine" || true
}
