# shellcheck shell=bash
# Installs what is missing of Debian's packages, or names it in one line and stops.

# want_packages WHAT:PACKAGE… installs what is missing where that is possible, and otherwise goes without.
want_packages() {
    if ((EUID == 0)) || sudo -n true 2>/dev/null; then
        (require_packages "$@") || say "Going on without it."
    fi
}

# require_packages WHAT:PACKAGE… installs the package of each command, or of each file (an absolute path, which may be a
# pattern), that is not there.
require_packages() {
    local pair what missing=()
    for pair in "$@"; do
        what=${pair%:*}
        if [[ $what == /* ]]; then
            compgen -G "$what" >/dev/null || missing+=("${pair##*:}")
        else
            command -v "$what" >/dev/null || missing+=("${pair##*:}")
        fi
    done
    ((${#missing[@]} == 0)) || install_packages "${missing[@]}"
}

install_packages() {
    local as_root=()
    command -v apt-get >/dev/null ||
        stop "These are missing: $*. This system has no apt-get; install them with its package manager."
    if ((EUID != 0)); then
        # -n: a script never sits waiting for a password.
        sudo -n true 2>/dev/null ||
            stop "These Debian packages are missing: $*. Run: sudo apt-get install $*"
        as_root=(sudo -n)
    fi
    say "Installing Debian packages: $*"
    apt_install "$@" || { "${as_root[@]}" apt-get update -qq >/dev/null 2>&1 && apt_install "$@"; } ||
        stop "apt-get could not install $*. Run it by hand to see why: apt-get install $*"
}

# Uses its caller's as_root.
apt_install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 </dev/null
}
