//! See `hfcrypt::cli::hfcrypt`.

fn main() -> std::process::ExitCode {
    hfcrypt::cli::hfcrypt::hfcrypt()
}
