//! FTP over [`Gateway`](super::Gateway): `/<bucket>/<key>`, in clear or with explicit TLS.
//!
//! RFC 959 (commands, replies), 2228 and 4217 (TLS), 2389 (`FEAT`, `OPTS`), 2428 (`EPSV`, `EPRT`), 2577 (security),
//! 2640 (UTF-8), 3659 (`MLSD`, `SIZE`, `MDTM`, `REST`). No byte of content is ever changed: `TYPE A` is accepted, and
//! means the same as `TYPE I`.
//!
//! **Whole files.** The data of an upload ends with its connection, so a client that dies looks like one that is done.
//! The server takes an upload for whole only if the control connection is still open when the data ends, and over TLS
//! only if the client said that it ends. Else the old file stays.
//!
//! The parsers are our own. `libunftp` 0.24 ends the session at each reply 501, which ordinary clients cause at login,
//! has no `SITE UTIME`, and answers `MFMT` with an error; its commands are a closed list.

mod command;
mod data;
mod entry;
mod folders;
mod login;
mod place;
mod reply;
pub mod server;
mod session;
mod transfer;
mod verbs;
mod wire;

use std::time::Duration;

/// Longest time without a byte on a data connection.
const STALL: Duration = Duration::from_secs(60);

/// Bytes from the control connection: any line, no panic, and a path stays where it belongs.
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub(super) fn fuzz(line: &[u8]) {
    use command::{Command, Site};
    let Ok(command) = command::parse(line) else { return };
    match &command {
        Command::Port(text) => drop(data::parse_port(text)),
        Command::Eprt(text) => drop(data::parse_eprt(text)),
        Command::Opts(text) => drop(entry::Facts::parse(text).names()),
        Command::Mfmt(time, _) | Command::Site(Site::Utime(time, _)) => {
            let again = command::parse_time(&command::format_time(*time));
            assert_eq!(again, Some(*time));
        }
        _ => {}
    }
    let Some(argument) = command.path() else { return };
    let start = place::Place::Root.at(&place::Argument::new("/b/c")).expect("a path");
    let Ok(place) = start.at(argument) else { return };
    let text = place.to_text();
    assert!(text.starts_with('/') && text.split('/').all(|name| name != "." && name != ".."));
    assert!(!text.chars().any(char::is_control));
    assert!(place::Place::Root.at(&place::Argument::new(&text)).is_ok_and(|again| again == place));
}
