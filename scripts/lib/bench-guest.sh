# shellcheck shell=bash
# The bench guest: one static program (scripts/bench-guests) that runs natively and as a guest's first process.
# shellcheck disable=SC2154 # its caller's: work, guest, martlet, engine, rows, budget, results, qemu, with_qemu

# selected ROW: whether --rows asks for it.
selected() {
    local pattern patterns
    [[ -n $rows ]] || return 0
    IFS=, read -ra patterns <<<"$rows"
    for pattern in "${patterns[@]}"; do
        # shellcheck disable=SC2053 # it is a pattern
        [[ $1 != $pattern ]] || return 0
    done
    return 1
}

any_selected() {
    local row
    for row in "$@"; do ! selected "$row" || return 0; done
    return 1
}

# No vectors but those that the source asks for, and no contraction: the results are the same bits everywhere.
build_bench_program() {
    gcc -std=gnu11 -O2 -fno-tree-vectorize -ffp-contract=off -Wall -Wextra -Werror -static -s \
        -o "$work/bench" scripts/bench-guests/*.c || stop "The bench guest could not be built (see above)."
}

# cpio_entry NAME MODE [FILE]: one entry of an archive in the "newc" format (Linux
# Documentation/driver-api/early-userspace/buffer-format.rst).
cpio_entry() {
    local size=0 name_size=$((${#1} + 1))
    [[ -z ${3:-} ]] || size=$(stat -c %s "$3")
    printf '070701'
    printf '%08X' 1 "$2" 0 0 1 0 "$size" 0 0 0 0 "$name_size" 0
    printf '%s\0' "$1"
    head -c $(((4 - (110 + name_size) % 4) % 4)) /dev/zero
    [[ -z ${3:-} ]] || cat "$3"
    head -c $(((4 - size % 4) % 4)) /dev/zero
}

# The default guest's initramfs with the program behind it.
build_bench_initrd() {
    {
        cat "$guest/initramfs.cpio"
        cpio_entry bench $((0100755)) "$work/bench"
        cpio_entry 'TRAILER!!!' 0
    } >"$work/bench.cpio"
}

# What Martlet tells the default guest's kernel; the bench guest and QEMU get the same.
read_kernel_options() {
    "$martlet" run --accel soft --verbose --timeout 1m -- true </dev/null >/dev/null 2>"$work/log" ||
        stop "The default guest does not run: $(tail -n 1 "$work/log")"
    options=$(sed -n 's/.*command line: //p' "$work/log" | head -n 1)
    [[ -n $options ]] || stop "martlet run --verbose does not tell the kernel's command line any more."
}

# microseconds since the epoch; no process, so that it costs nothing.
microseconds() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }

# record NAME ROUND START: turns what the program prints into results. Its first line as a guest's first process is the
# end of "boot".
record() {
    local line
    while IFS= read -r line; do
        line=${line%$'\r'}
        case $line in
            *bench-init)
                ! selected boot || echo "$1 $2 boot $((($(microseconds) - $3) * 1000)) boot -" >>"$results"
                ;;
            *'row '*) echo "$1 $2 ${line#*row }" >>"$results" ;;
            *'failed '*) line=${line#*failed } && echo "$1 $2 ${line%% *} failed ${line#* }" >>"$results" ;;
        esac
    done
}

# The options of the program, on a kernel's command line.
program_options() {
    printf -- '--budget %s' "$budget"
    [[ -z $rows ]] || printf -- ' --rows %s' "$rows"
}

measure_guest_rows() {
    local round=$1 append
    "$work/bench" --list ${rows:+--rows "$rows"} | grep -q -v '^bench-end$' || selected boot || return 0
    append="$options rdinit=/bench -- $(program_options)"
    timeout 600 "$work/bench" --budget "$budget" ${rows:+--rows "$rows"} | record native "$round" 0
    "$martlet" run --accel soft --engine "$engine" --verbose --timeout 10m --kernel "$guest/vmlinuz" \
        --initrd "$work/bench.cpio" --append "$append" </dev/null 2>"$work/martlet.log" |
        record martlet "$round" "$(microseconds)" || say "Martlet: $(tail -n 1 "$work/martlet.log")"
    [[ -n $with_qemu ]] || return 0
    "${qemu[@]}" -kernel "$guest/vmlinuz" -initrd "$work/bench.cpio" -append "$append" -serial stdio \
        </dev/null 2>"$work/qemu.log" |
        record qemu "$round" "$(microseconds)" || say "QEMU: $(tail -n 1 "$work/qemu.log")"
}
