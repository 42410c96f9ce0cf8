//! See `hfcrypt::cli::mount`.

fn main() -> std::process::ExitCode {
    hfcrypt::cli::mount::hf_mount_fuse()
}
