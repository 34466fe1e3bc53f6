# shellcheck shell=bash
# How every script talks: progress and trouble on standard error, one line each.

say() { printf '%s\n' "$*" >&2; }

# what failed, why, what to do: one line, and out.
stop() {
    say "${0##*/}: $*"
    exit 1
}
