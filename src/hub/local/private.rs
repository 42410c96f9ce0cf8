//! The directory of an embedded Hub is for its owner only: the database holds the key of all CAS
//! tokens and signed URLs.
//!
//! Missing files are created with that mode, whatever the umask is, and existing ones are tightened. A directory that
//! holds other things too is left as it is, because other programs may rely on it. Each of our files in it has a mode
//! that closes it.

use super::db;
use super::disk::Publisher;
use rustix::process::geteuid;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Mode of the directory.
const FOLDER: u32 = 0o700;
/// Mode of the database.
const FILE: u32 = 0o600;
/// Mode bits by which others get at something.
const OTHERS: u32 = 0o077;
/// Mode bits by which others can put something into a directory.
const OTHERS_WRITE: u32 = 0o022;
/// What SQLite puts behind the name of a database for its log and the index of that.
const COMPANIONS: [&str; 3] = ["", "-wal", "-shm"];
/// The folders of a Hub, and that of a file system at its root.
const FOLDERS: [&str; 3] = ["staging", "xorbs", "lost+found"];

/// Makes the directory, or sees to it that an existing one is private.
pub(super) fn make_folder(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER).create(dir)?;
    let found = fs::metadata(dir)?;
    if found.mode() & OTHERS == 0 {
        return Ok(());
    }
    if is_ours(&found) && holds_only_a_hub(dir)? {
        tracing::info!(dir = %dir.display(), "closing the directory of the embedded Hub to other users");
        return fs::set_permissions(dir, Permissions::from_mode(FOLDER));
    }
    if found.mode() & OTHERS_WRITE != 0 {
        // Whoever can rename in it can put another database, with another key, in the place of ours.
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "other users can write in it (chmod 700)"));
    }
    tracing::warn!(dir = %dir.display(), "other users can list the directory of the embedded Hub");
    Ok(())
}

/// Makes the database file before SQLite does, which would take the umask's word for its mode; the log and its index
/// get that of the database. Existing ones are tightened.
pub(super) fn make_database(dir: &Path, publisher: &Publisher) -> io::Result<()> {
    let path = dir.join(db::FILE);
    // Never opened here under its name: closing it would drop the locks that SQLite holds on it in this process.
    if !path.try_exists()? {
        publisher.stage()?.publish_new(db::FILE)?;
    }
    COMPANIONS.iter().try_for_each(|suffix| tighten(&dir.join(format!("{}{suffix}", db::FILE))))
}

fn tighten(file: &Path) -> io::Result<()> {
    match fs::metadata(file) {
        Ok(found) if found.mode() & OTHERS != 0 => fs::set_permissions(file, Permissions::from_mode(FILE)),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_ours(found: &Metadata) -> bool {
    found.uid() == geteuid().as_raw()
}

fn holds_only_a_hub(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let database = name.to_str().and_then(|name| name.strip_prefix(db::FILE));
        if !FOLDERS.iter().any(|folder| name == **folder) && !database.is_some_and(|rest| COMPANIONS.contains(&rest)) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::LocalHub;
    use super::*;
    use rustix::fs::Mode;
    use std::path::PathBuf;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn files(dir: &Path) -> [PathBuf; 3] {
        COMPANIONS.map(|suffix| dir.join(format!("{}{suffix}", db::FILE)))
    }

    /// Names the directory that a child process is to open.
    const CHILD_DIR: &str = "HFCRYPT_TEST_PRIVATE_DIR";

    #[test]
    #[ignore = "runs as a child process, as a umask is one process's"]
    fn child_that_opens_with_a_permissive_umask() {
        let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
        let dir = Path::new(&dir);
        rustix::process::umask(Mode::empty());
        let hub = LocalHub::open(dir).unwrap();
        // While it is open: the last one to close removes the log.
        assert_eq!(files(dir).map(|file| mode(&file)), [FILE; 3]);
        for folder in [dir.to_owned(), dir.join("staging")] {
            assert_eq!(mode(&folder), FOLDER, "{}", folder.display());
        }
        drop(hub);
    }

    #[test]
    fn a_permissive_umask_opens_nothing_to_others() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["made", "there"] {
            let hub = dir.path().join(name);
            if name == "there" {
                fs::create_dir(&hub).unwrap();
                set_mode(&hub, 0o777);
            }
            let child = "hub::local::private::tests::child_that_opens_with_a_permissive_umask";
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", child, "--ignored"])
                .env(CHILD_DIR, &hub)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            assert_eq!((mode(&hub), mode(&hub.join(db::FILE))), (FOLDER, FILE), "{name}: the child ran");
        }
    }

    #[test]
    fn an_open_hub_is_closed_when_it_is_opened_next() {
        let dir = tempfile::tempdir().unwrap();
        let first = LocalHub::open(dir.path()).unwrap();
        set_mode(dir.path(), 0o755);
        files(dir.path()).iter().for_each(|file| set_mode(file, 0o644));
        let _second = LocalHub::open(dir.path()).unwrap();
        assert_eq!(mode(dir.path()), FOLDER);
        assert_eq!(files(dir.path()).map(|file| mode(&file)), [FILE; 3]);
        drop(first);
    }

    #[test]
    fn a_folder_with_other_things_is_not_touched_and_refused_where_others_write() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "").unwrap();
        set_mode(dir.path(), 0o755);
        LocalHub::open(dir.path()).unwrap();
        assert_eq!((mode(dir.path()), mode(&dir.path().join(db::FILE))), (0o755, FILE));
        for writable in [0o777, 0o1777, 0o770] {
            set_mode(dir.path(), writable);
            let error = LocalHub::open(dir.path()).err().unwrap();
            assert!(error.to_string().contains("other users can write in it"), "{error}");
            assert_eq!(mode(dir.path()), writable);
        }
    }
}
