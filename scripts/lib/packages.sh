# shellcheck shell=bash
# Installs what is missing of Debian's packages, or names it in one line and stops.

# require_packages COMMAND:PACKAGE… installs the package of each command that is not there.
require_packages() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    ((${#missing[@]} == 0)) && return
    command -v apt-get >/dev/null ||
        stop "These are missing: ${missing[*]}. This system has no apt-get; install them with its package manager."
    local as_root=()
    if ((EUID != 0)); then
        # -n: a script never sits waiting for a password.
        sudo -n true 2>/dev/null ||
            stop "These Debian packages are missing: ${missing[*]}. Run: sudo apt-get install ${missing[*]}"
        as_root=(sudo -n)
    fi
    say "Installing Debian packages: ${missing[*]}"
    { "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
        { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"; }; } \
        >/dev/null 2>&1 </dev/null ||
        stop "apt-get could not install ${missing[*]}. Run it by hand to see why: apt-get install ${missing[*]}"
}
