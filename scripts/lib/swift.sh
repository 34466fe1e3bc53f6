# shellcheck shell=bash
# Finds a Swift toolchain that is new enough, and builds with it.

swift_minimum=6.2
swift_advice="Install Swift $swift_minimum or later (https://www.swift.org/install/linux) and put its usr/bin into PATH."

# What SwiftPM and the compiler need of Debian, and have themselves no word for.
require_build_packages() {
    require_packages git:git /usr/include/stdio.h:libc6-dev '/usr/lib/gcc/x86_64-linux-gnu/*/libstdc++.so:libstdc++-12-dev' \
        /usr/lib/x86_64-linux-gnu/libz.a:zlib1g-dev /usr/lib/x86_64-linux-gnu/libzstd.a:libzstd-dev \
        /usr/include/slirp/libslirp.h:libslirp-dev /usr/include/yaml.h:libyaml-dev \
        /usr/lib/x86_64-linux-gnu/liburing.a:liburing-dev
}

require_swift() {
    local swift version lost
    swift=$(command -v swift) || stop "Swift is missing. $swift_advice"
    # A toolchain unpacked on a bare system lacks shared libraries.
    lost=$(ldd "$(dirname "$(readlink -f "$swift")")/swift-build" 2>/dev/null | awk '/not found/ { print $1 }')
    if [[ -n $lost ]]; then
        local packages
        mapfile -t packages < <(swift_libraries "$lost")
        install_packages "${packages[@]}"
    fi
    version=$("$swift" --version 2>/dev/null | sed -n 's/.*Swift version \([0-9][0-9.]*\).*/\1/p' | head -n 1)
    [[ -n $version ]] || stop "$swift does not answer to --version. $swift_advice"
    [[ $(printf '%s\n' "$swift_minimum" "$version" | sort -V | head -n 1) == "$swift_minimum" ]] ||
        stop "$swift is Swift $version, which is too old. $swift_advice"
}

# The Debian packages of the shared libraries in $1.
swift_libraries() {
    local library
    for library in $1; do
        case $library in
            libcurl.so*) echo libcurl4 ;;
            libxml2.so*) echo libxml2 ;;
            libsqlite3.so*) echo libsqlite3-0 ;;
            libedit.so*) echo libedit2 ;;
            libz3.so*) echo libz3-4 ;;
            libncurses.so* | libtinfo.so*) echo libncurses6 ;;
            libstdc++.so*) echo libstdc++6 ;;
            *) echo "$library" ;;
        esac
    done | sort -u
}

# build_martlet leaves the release binary's path in $martlet. Quiet when there is nothing to do.
build_martlet() {
    local log started=$SECONDS
    log=$(mktemp)
    if [[ -x .build/release/martlet ]]; then
        # Says so only if it takes long after all.
        (sleep 10 && say "Building Martlet") &
    else
        say "Building Martlet (a few minutes the first time)"
        sleep 0 &
    fi
    local reminder=$!
    if ! swift build -c release --static-swift-stdlib --product martlet >"$log" 2>&1; then
        kill "$reminder" 2>/dev/null
        grep -E '(error|warning):' "$log" | sort -u | head -n 20 >&2 || tail -n 20 "$log" >&2
        rm -f "$log"
        stop "The build failed; the messages are above. If a download failed, check the network and run this again."
    fi
    kill "$reminder" 2>/dev/null || true
    rm -f "$log"
    ((SECONDS - started < 10)) || say "Built in $((SECONDS - started)) s"
    # shellcheck disable=SC2034 # its callers use it
    martlet=$PWD/.build/release/martlet
}
