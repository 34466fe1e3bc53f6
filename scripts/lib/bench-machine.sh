# shellcheck shell=bash
# What the benchmark measures of whole machines: a bare integer loop, the default guest to its shell, a load typed into
# that shell, and Martlet's own memory there.
# shellcheck disable=SC2154 # its caller's: work, guest, martlet, engine, results, options, qemu, with_qemu, pids, qemu_cpu,
# real_time

# Not rows of the bench guest: each is a machine of its own.
# shellcheck disable=SC2034 # its caller lists them
machine_rows=(loop shell load)

own_memory='' instructions=''

# report NAME ROUND ROW START OPERATION [COUNT]: the time since START for each of COUNT operations.
report() {
    local elapsed=$(($(microseconds) - $4))
    echo "$1 $2 $3 $(awk -v us="$elapsed" -v count="${6:-1}" 'BEGIN { printf "%.3f", us * 1000 / count }') $5 -" >>"$results"
}

measure_machine_rows() {
    ! selected loop || measure_loop "$1"
    ! selected shell || measure_shell "$1"
    ! selected load || measure_load "$1"
}

# --- a loop of 32-bit integer instructions, without a kernel --------------------------------------------------------------

loop_instructions=600000000

build_loop() {
    [[ ! -e $work/loop.elf ]] || return 0
    gcc -m32 -c scripts/bench-guests/integer-loop.S -o "$work/loop.o"
    ld -m elf_i386 -z max-page-size=4096 -N --no-warn-rwx-segments -Ttext=0x100000 "$work/loop.o" -o "$work/loop.elf"
}

measure_loop() {
    local start
    build_loop
    start=$(microseconds)
    "$martlet" run --accel soft --engine "$engine" --timeout 5m --kernel "$work/loop.elf" --device isa-debug-exit \
        </dev/null >/dev/null || (($? == 1))
    report martlet "$1" loop "$start" instruction "$loop_instructions"
    [[ -n $with_qemu ]] || return 0
    start=$(microseconds)
    "${qemu[@]}" -device isa-debug-exit,iobase=0xf4,iosize=4 -kernel "$work/loop.elf" </dev/null >/dev/null || (($? == 1))
    report qemu "$1" loop "$start" instruction "$loop_instructions"
}

# --- the default guest to its shell, and our own memory there ----------------------------------------------------------------

# wait_for TEXT FILE PID: until the file has the text, or the process is gone.
wait_for() {
    until grep -q "$1" "$2" 2>/dev/null; do
        kill -0 "$3" 2>/dev/null || stop "The guest ended before its shell was there: $(tail -n 1 "$2")"
        sleep 0.02
    done
}

# memory_of PID: the KiB of a Martlet with the default size of guest. The guest's memory is the one mapping of that size;
# the rest is ours.
memory_of() {
    awk '/^[0-9a-f]+-[0-9a-f]+ /{ guest = 0 } /^Size:/{ guest = ($2 == 524288) }
        /^Rss:/{ if (!guest) sum += $2 } END { print sum }' "/proc/$1/smaps"
}

measure_shell() {
    local start machine
    rm -f "$work/in"
    mkfifo "$work/in"
    start=$(microseconds)
    "$martlet" run --accel soft --engine "$engine" --verbose --timeout 5m <"$work/in" >"$work/out" 2>"$work/log" &
    machine=$!
    pids+=("$machine")
    exec 7>"$work/in"
    wait_for '\] shell' "$work/log" "$machine"
    report martlet "$1" shell "$start" boot
    own_memory=$(awk -v kib="$(memory_of "$machine")" 'BEGIN { printf "%.1f", kib / 1024 }')
    echo 'exit' >&7
    exec 7>&-
    wait "$machine" || stop "The default guest did not switch itself off: $(tail -n 1 "$work/log")"
    cp "$work/log" "$work/shell.log"
    instructions=$(sed -n 's/^martlet: \([0-9]*\) guest instructions.*/\1/p' "$work/log")
    [[ -z $with_qemu ]] || measure_shell_in_qemu "$1"
}

measure_shell_in_qemu() {
    local start machine
    : >"$work/control"
    start=$(microseconds)
    "${qemu[@]}" -kernel "$guest/vmlinuz" -initrd "$guest/initramfs.cpio" -append "$options" \
        -serial "file:$work/qemu" -serial "file:$work/control" </dev/null >/dev/null 2>&1 &
    machine=$!
    pids+=("$machine")
    wait_for ready "$work/control" "$machine"
    report qemu "$1" shell "$start" boot
    kill "$machine"
    wait "$machine" || true
}

# --- a mixed load: typed into the default guest's shell, timed by the guest's own clock ---------------------------------------

write_load() {
    cat >"$work/load" <<'END'
load() {
  head -c 8000000 /dev/zero | sha256sum
  seq 1 60000 | gzip | gunzip | md5sum
  awk 'BEGIN { for (i = 1; i < 100000; i++) s += i / (i * i + 0.5); printf "%.12f\n", s }'
  seq 1 20000 | sort -r | tail -n 1
  i=0; while [ $i -lt 60 ]; do (true); ls / >/dev/null; i=$((i + 1)); done
}
from=$(cut -d ' ' -f 1 /proc/uptime); load; to=$(cut -d ' ' -f 1 /proc/uptime)
awk -v a=$from -v b=$to 'BEGIN { printf "load-seconds=%.2f\n", b - a }'
exit
END
}

# report_load NAME ROUND FILE: the last such line of a console log.
report_load() {
    local seconds
    seconds=$(tr -d '\r' <"$3" | sed -n 's/^load-seconds=\([0-9.]*\)$/\1/p' | tail -n 1)
    if [[ -n $seconds ]]; then
        echo "$1 $2 load $(awk -v s="$seconds" 'BEGIN { printf "%.0f", s * 1e9 }') load -" >>"$results"
    else
        echo "$1 $2 load failed the shell did not say how long it took" >>"$results"
    fi
}

measure_load() {
    local machine
    write_load
    "$martlet" run --accel soft --engine "$engine" --timeout 5m <"$work/load" >"$work/out" 2>/dev/null || true
    report_load martlet "$1" "$work/out"
    [[ -n $with_qemu ]] || return 0
    rm -f "$work/in"
    mkfifo "$work/in"
    : >"$work/control"
    "${qemu[@]}" -kernel "$guest/vmlinuz" -initrd "$guest/initramfs.cpio" -append "$options" -serial stdio \
        -serial "file:$work/control" <"$work/in" >"$work/out" 2>/dev/null &
    machine=$!
    pids+=("$machine")
    exec 7>"$work/in"
    # QEMU's serial port drops what is typed before the shell is there.
    wait_for ready "$work/control" "$machine"
    sleep 1
    cat "$work/load" >&7
    wait "$machine" || true
    exec 7>&-
    report_load qemu "$1" "$work/out"
}

# --- what is said beside the table ----------------------------------------------------------------------------------------------

describe_machine() {
    local load
    echo "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) processors, Linux $(uname -r)"
    [[ -z $with_qemu ]] || echo "$(qemu-system-x86_64 --version | head -n 1), -accel tcg -cpu $qemu_cpu"
    grep '^package linux' "$guest/manifest" | sed 's/^package/guest:/'
    load=$(cut -d ' ' -f 1 /proc/loadavg)
    # One is ours.
    awk -v load="$load" -v processors="$(nproc)" 'BEGIN { exit load > processors - 0.5 }' || [[ -n $real_time ]] ||
        echo "This machine is busy (load $load): single figures are noise. Try --real-time."
    echo
}

print_machine_figures() {
    [[ -z $instructions ]] || awk -v n="$instructions" \
        'BEGIN { printf "guest instructions of a boot to the shell: %.0f million\n", n / 1e6 }'
    # All that is not the guest's memory.
    [[ -z $own_memory ]] || echo "own memory at the shell: $own_memory MiB"
    awk -v size="$(stat -c %s "$(readlink -f "$martlet")")" 'BEGIN { printf "binary: %.1f MiB\n", size / 1048576 }'
    print_idle_memory
    print_translator_figures
}

# What `martlet run --verbose` says of the translator at the end of the boot to the shell: lines "martlet: NAME: VALUE",
# and what is to be reached (scripts/bench-guests/requirements). The cost of translation is required in host
# instructions, which need hardware counters; the engine has only the time stamp, so cycles stand for them.
print_translator_figures() {
    [[ -e $work/shell.log ]] || return 0
    tr -d '\r' <"$work/shell.log" |
        sed -n 's/^martlet: \(\(translat\|code cache\|TLB\|table\|chain\|block\)[^:]*: .*\)$/\1/p' |
        awk '
            FNR == NR { if (NF == 4) must[$1] = $3; next }
            function judge(value, limit) { return value < limit ? "reached: under " limit : "MISSES " limit }
            /^translation cost: / { $0 = $0 " (" judge($3, must["translation"]) ")" }
            /^code cache and tables: / { $0 = $0 " (" judge($5, must["tables"]) ")" }
            { print }
        ' scripts/bench-guests/requirements -
}
