# From scripts/bench-guests/requirements, the results of an earlier run (or /dev/null) and the results to the table.
# Exit status 1 if a row failed, gave different results on different machines, or is missing.
# Variables: engine, its name; best, "yes" for the fastest round instead of the median.

FILENAME == ARGV[1] {
    if ($1 !~ /^#/ && NF == 4) { kind[$1] = $2; must[$1] = $3; aim[$1] = $4 }
    next
}

FILENAME == ARGV[2] {
    if ($1 == "martlet" && $4 + 0 > 0) values["before", $3, ++count["before", $3]] = $4
    next
}

{
    name = $1; round = $2; row = $3
    if (!(row in known)) { known[row] = 1; rows[++row_count] = row }
    machines[name] = 1
    if (round > rounds) rounds = round
    if ($4 == "failed") {
        sub(/^.* failed /, "")
        complain(row " on " name ": " $0)
        failed[name, row] = present[name, row] = 1
        next
    }
    if (!(row in operation) || $5 != "-") operation[row] = $5
    present[name, row] = 1
    if ($4 == "-") next
    values[name, row, ++count[name, row]] = $4
    if ($6 == "-") next
    if (!(row in checksum)) { checksum[row] = $6; first[row] = name }
    else if (checksum[row] != $6) complain(row ": " name " computed " $6 ", " first[row] " " checksum[row])
}

function complain(text) { if (!said[text]++) complaints[++complaint_count] = text }

# The median (or the best) of the rounds, or 0 where there is nothing.
function median(name, row,    n, i, j, list, x) {
    n = count[name, row]
    if (n == 0) return 0
    for (i = 1; i <= n; i++) {
        x = values[name, row, i]
        for (j = i - 1; j > 0 && list[j] > x; j--) list[j + 1] = list[j]
        list[j + 1] = x
    }
    if (best == "yes") return list[1]
    return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
}

function text_of(ns) {
    if (ns <= 0) return "-"
    if (ns < 1000) return sprintf("%.3g ns", ns)
    if (ns < 1e6) return sprintf("%.3g us", ns / 1e3)
    if (ns < 1e9) return sprintf("%.3g ms", ns / 1e6)
    return sprintf("%.3g s", ns / 1e9)
}

function ratio_text(a, b) { return a > 0 && b > 0 ? sprintf("%.2f", a / b) : "-" }

# The row of the requirements that is for this one: by its name, or by the longest start of it (disk-*); "" for none.
function required(row,    length_of, name) {
    if (row in kind) return row
    for (length_of = length(row); length_of > 0; length_of--) {
        name = substr(row, 1, length_of) "*"
        if (name in kind) return name
    }
    return ""
}

# What to say of a row against its requirement.
function verdict(row, native, martlet, qemu,    value, good, name, is_ratio) {
    note = ""
    name = required(row)
    if (martlet == 0) {
        if (qemu == 0 && native == 0) return ""
        missed++
        return (("martlet", row) in failed) || !(("martlet", row) in present) ? "FAILED" : "NOT OFFERED"
    }
    if (name != "") {
        is_ratio = kind[name] != "nanoseconds"
        value = martlet
        if (kind[name] == "of-native") value = native > 0 ? native / martlet : -1
        if (kind[name] == "of-tcg") value = qemu > 0 ? qemu / martlet : -1
        if (value >= 0) {
            good = is_ratio ? value >= must[name] : value <= must[name]
            if (!good) { note = "MISSES " (is_ratio ? must[name] : text_of(must[name])); missed++ }
            else {
                good = is_ratio ? value >= aim[name] : value <= aim[name]
                note = good ? "aim reached" : "reached"
            }
        }
    }
    if (qemu > 0 && martlet > qemu) { note = note (note == "" ? "" : ", ") "SLOWER THAN TCG"; slower++ }
    return note
}

# Not rows of whole machines that repeat what other rows measure, or measure no kernel; nor disks, networks and folders.
function counts(row) { return row !~ /^(loop|shell|load|login)$|^(disk|alloc|net|share)-/ }

END {
    has_before = ARGV[2] != "/dev/null"
    printf "%-20s %-15s %10s %10s %10s %9s %8s %s %s\n", "row", "for each", "native", engine, "qemu tcg", \
        "of native", "x tcg", has_before ? "x before" : "", "required"
    for (i = 1; i <= row_count; i++) {
        row = rows[i]
        native = median("native", row); martlet = median("martlet", row); qemu = median("qemu", row)
        before = has_before ? sprintf("%8s", ratio_text(median("before", row), martlet)) : ""
        printf "%-20s %-15s %10s %10s %10s %9s %8s %s %s\n", row, operation[row], text_of(native), text_of(martlet), \
            text_of(qemu), ratio_text(native, martlet), ratio_text(qemu, martlet), before, \
            verdict(row, native, martlet, qemu)
        if (counts(row) && martlet > 0 && qemu > 0) { logarithms += log(qemu / martlet); compared++ }
        for (name in machines) {
            if (!((name, row) in present) && !(name == "native" && (row == "boot" || !counts(row))))
                complain(row ": nothing from " name)
        }
    }
    for (row in known) if (row ~ /^alloc-|^disk-(20|1tib)$/) has_base = 1
    if (has_base) print "\"native\" is qemu-img bench in alloc-*; in disk-20, disk-1tib and alloc-1tib Martlet with one disk, of 4 GiB"
    if (compared > 0) {
        mean = exp(logarithms / compared)
        printf "geometric mean of %d rows: %.2f times TCG's speed (must %s, aim %s)\n", compared, mean, must["all"], aim["all"]
    }
    printf "%d rows miss what they must reach, %d are slower than TCG; %s of %d rounds\n", missed, slower, \
        best == "yes" ? "the best" : "medians", rounds
    for (i = 1; i <= complaint_count; i++) print "WRONG: " complaints[i]
    exit complaint_count > 0
}
