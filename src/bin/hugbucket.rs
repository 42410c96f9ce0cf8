//! See `hfcrypt::cli::hugbucket`.

fn main() -> std::process::ExitCode {
    hfcrypt::cli::hugbucket::hugbucket()
}
