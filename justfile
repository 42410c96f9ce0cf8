# Shorthands; every recipe is a command that works without `just`.

# What CI runs on a change.
pre-pr:
    ./scripts/test

# Some seconds, on every save.
check:
    cargo check --all-targets

# The tests of one layer or module: `just unit store::`
unit filter="":
    cargo nextest run {{ filter }}

# Counts of the source beside their bounds.
counts:
    scripts/counts

# Formats everything that has a format.
fmt:
    cargo fmt --all
    cargo fmt --manifest-path fuzz/Cargo.toml
    cargo fmt --manifest-path benches/compare/Cargo.toml

# Fuzzes longer than CI does: `just fuzz 600 xorb`
fuzz seconds="60" *targets:
    ./scripts/fuzz {{ seconds }} {{ targets }}

# Known vulnerabilities and yanked versions; asks an online database.
advisories:
    cargo deny check advisories
