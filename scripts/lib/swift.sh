# shellcheck shell=bash
# Finds a Swift toolchain that is new enough, and builds the release binary.

swift_minimum=6.2

require_swift() {
    local swift version
    swift=$(command -v swift) ||
        stop "Swift is missing. Install Swift $swift_minimum or later from https://www.swift.org/install/linux and put its usr/bin into PATH."
    version=$("$swift" --version 2>/dev/null | sed -n 's/.*Swift version \([0-9][0-9.]*\).*/\1/p' | head -n 1)
    [[ -n $version ]] || stop "$swift does not answer to --version. Reinstall Swift $swift_minimum or later from https://www.swift.org/install/linux."
    if [[ $(printf '%s\n' "$swift_minimum" "$version" | sort -V | head -n 1) != "$swift_minimum" ]]; then
        stop "$swift is Swift $version, Martlet needs $swift_minimum or later: https://www.swift.org/install/linux"
    fi
}

# build_martlet [SWIFT BUILD OPTION…] leaves the release binary's path in $martlet. Quiet when there is nothing to do.
build_martlet() {
    local log started=$SECONDS
    log=$(mktemp)
    [[ -x .build/release/martlet ]] || say "Building Martlet (a few minutes the first time)"
    if ! swift build -c release --static-swift-stdlib --product martlet "$@" >"$log" 2>&1; then
        grep -E 'error|warning' "$log" | head -n 20 >&2 || tail -n 20 "$log" >&2
        rm -f "$log"
        stop "The build failed; the compiler's messages are above. If they come from a download, check the network and run this again."
    fi
    rm -f "$log"
    ((SECONDS - started < 20)) || say "Built in $((SECONDS - started)) s"
    # shellcheck disable=SC2034 # its callers use it
    martlet=$PWD/.build/release/martlet
}
