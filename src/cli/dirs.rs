//! Where our files lie by default (XDG base directories; `~/.hf-mount` for logs, pids and sockets).

use super::exit::{Exit, Failure, Outcome};
use std::io;
use std::path::{Path, PathBuf};

fn home() -> Outcome<PathBuf> {
    std::env::home_dir()
        .filter(|home| home.is_absolute())
        .ok_or_else(|| Failure::new(Exit::System, "no home folder: HOME is not set"))
}

fn xdg(variable: &str, fallback: &str) -> Outcome<PathBuf> {
    match std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(path) => Ok(path),
        None => Ok(home()?.join(fallback)),
    }
}

/// `$XDG_CACHE_HOME`, else `~/.cache`.
pub fn cache_home() -> Outcome<PathBuf> {
    xdg("XDG_CACHE_HOME", ".cache")
}

/// `$XDG_DATA_HOME`, else `~/.local/share`.
pub fn data_home() -> Outcome<PathBuf> {
    xdg("XDG_DATA_HOME", ".local/share")
}

/// `~/.hf-mount/logs`, made private.
pub fn logs() -> Outcome<PathBuf> {
    private(home()?.join(".hf-mount/logs"))
}

/// `~/.hf-mount/pids`, made private: a pid file and a control socket for each mount.
pub fn pids() -> Outcome<PathBuf> {
    private(home()?.join(".hf-mount/pids"))
}

fn private(path: PathBuf) -> Outcome<PathBuf> {
    make_private(&path).map_err(|e| Failure::from(e).about(path.display()))?;
    Ok(path)
}

/// Makes a folder and its parents, for this user only.
pub fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
