# shellcheck shell=bash
# Shared by the scripts beside it; sourced, not run.

say() { printf '\n== %s\n' "$*" >&2; }

# die CODE MESSAGE HINT: the form of docs/cli.md, and its exit codes.
die() {
    printf 'error: %s\n' "$2" >&2
    [ -z "${3:-}" ] || printf 'hint: %s\n' "$3" >&2
    exit "$1"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die 7 "installing packages needs root, and there is no sudo" "as root: $*"
    fi
}

# install PACKAGE…: by Debian's names.
install() {
    command -v apt-get >/dev/null ||
        die 7 "missing: $*" "install what your system calls these Debian packages, then run this again"
    say "installing $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# needs PROGRAM PACKAGE [PROGRAM PACKAGE]…: installs the packages whose program is missing.
needs() {
    local missing=()
    while [ $# -gt 0 ]; do
        command -v "$1" >/dev/null || missing+=("$2")
        shift 2
    done
    [ ${#missing[@]} = 0 ] || install "${missing[@]}"
}

# Rust itself is left to its own installer: which one is the user's choice.
needs_rust() {
    command -v cargo >/dev/null ||
        die 7 "no Rust toolchain: cargo is not in the PATH" \
            "install Rust $(rust_version) or newer: https://www.rust-lang.org/tools/install"
}

rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }

# failed_tests STEP RESULTS: one line for each failed test of a step. RESULTS is a folder with JUnit
# files and, in doctests, the output of `cargo test --doc --quiet`. Prints one line for the step
# itself if no test of it is known to have failed: its build broke, or it has none.
failed_tests() {
    python3 - "$1" "$2" <<'EOF'
import re
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

step, results = sys.argv[1], Path(sys.argv[2])
names = []
for file in sorted(results.glob("*.xml")):
    try:
        cases = list(xml.parse(file).iter("testcase"))
    except xml.ParseError:
        # The step was stopped while it wrote.
        continue
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            names.append(f"{case.get('classname')} {case.get('name')}")
doctests = results / "doctests"
if doctests.is_file():
    names += re.findall(r"^    (\S+ - .*\(line \d+\))$", doctests.read_text(errors="replace"), re.MULTILINE)
for name in dict.fromkeys(names):
    print(f"{step}: {name}")
if not names:
    print(f"{step}: no single test; its output is above")
EOF
}

# Where cargo puts its output.
target_dir() { printf '%s\n' "${CARGO_TARGET_DIR:-$PWD/target}"; }
