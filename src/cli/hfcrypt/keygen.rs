//! `keygen` and `key show`.

use crate::cli::args::read_key_file;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::print_json;
use crate::cli::term::say;
use crate::crypto::{Keys, MasterKey, SystemRandom, keyfile};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

/// Makes a key file with mode 0600, durably, and never over another file.
pub fn write_new(path: &Path, hex: bool) -> Outcome<MasterKey> {
    let master = MasterKey::generate(&mut SystemRandom)?;
    let fail = |e: std::io::Error| match e.kind() {
        ErrorKind::AlreadyExists => Failure::new(Exit::Usage, format!("{} exists already", path.display()))
            .hint("a key is never overwritten: choose another file"),
        _ => Failure::from(e).about(path.display()),
    };
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    let written = match hex {
        true => file.write_all(keyfile::to_hex(&master).as_bytes()),
        false => file.write_all(master.expose()),
    };
    // The name must survive a power cut as well: without its key the data is lost.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let durable = || file.sync_all().and_then(|()| File::open(parent)?.sync_all());
    if let Err(error) = written.and_then(|()| durable()) {
        // A partial key file would look like somebody's key.
        let _ = std::fs::remove_file(path);
        return Err(fail(error));
    }
    Ok(master)
}

/// `keygen`.
pub(super) fn keygen(path: &Path, hex: bool) -> Outcome<ExitCode> {
    let master = write_new(path, hex)?;
    say!("{}", Keys::derive(&master).id());
    eprintln!("keep a copy of {} elsewhere: without it the data is lost", path.display());
    Ok(ExitCode::SUCCESS)
}

/// `key show`.
pub(super) fn show(path: &Path, json: bool) -> Outcome<ExitCode> {
    let file = read_key_file(path)?;
    let id = Keys::derive(&file.master).id().to_string();
    let form = match file.form {
        keyfile::Form::Raw => "raw",
        keyfile::Form::Hex => "hex",
    };
    if json {
        print_json(&serde_json::json!({ "key_id": id, "form": form, "passphrase": false, "warnings": file.warnings }))?;
    } else {
        say!("key id {id}\nform   {form}, no passphrase");
    }
    Ok(ExitCode::SUCCESS)
}
