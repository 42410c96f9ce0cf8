#!/usr/bin/env bash
# A program that links glibc statically gets no randomness from the crate getrandom where there is no /dev.
#
# Versions: crates.io getrandom 0.4.3 and libc 0.2.191, with Rust's target x86_64-unknown-linux-gnu and crt-static.
# Guess: on any kernel since 3.17 the crate uses the system call, so an empty root, such as that of an image built
#   "from scratch", needs no device files.
# Behaviour: the crate looks the function up with dlsym. In a static program nothing is found, although glibc's own
#   function is linked in and works: the crate takes the system for an old one, and reads /dev/urandom. Without that
#   file every call fails. (For musl it links the function, so there the guess is right. Container engines make /dev;
#   a bare chroot doesn't.)
# Seen, in a root with this one program:
#   function of glibc: 32 bytes
#   crate: No such file or directory (os error 2)
# Prints both. Exits with 1 if any of this differs.
# Needs root (for chroot), cargo, a C compiler and glibc's static library (Debian's libc6-dev), on x86-64.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p program/src root
cat >program/Cargo.toml <<'TOML'
[package]
name = "program"
version = "0.0.0"
edition = "2021"
[dependencies]
getrandom = "=0.4.3"
libc = "=0.2.191"
TOML
cat >program/src/main.rs <<'RUST'
fn main() {
    let mut bytes = [0u8; 32];
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    println!("function of glibc: {count} bytes");
    match getrandom::fill(&mut bytes) {
        Ok(()) => println!("crate: {} bytes", bytes.len()),
        Err(error) => println!("crate: {}", std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(0))),
    }
}
RUST
target=x86_64-unknown-linux-gnu
RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --manifest-path program/Cargo.toml --target $target
cp program/target/$target/debug/program root/
seen=$($(command -v chroot || echo /usr/sbin/chroot) root /program)
echo "$seen"
[ "$seen" = "function of glibc: 32 bytes
crate: No such file or directory (os error 2)" ] || { echo "the behaviour differs" >&2; exit 1; }
