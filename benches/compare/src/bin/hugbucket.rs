//! The program of this name as it is, built beside the others.

fn main() -> std::process::ExitCode {
    hfcrypt::cli::hugbucket::hugbucket()
}
