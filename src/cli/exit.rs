//! Exit codes and the one sentence that goes with each failure (docs/cli.md).
//!
//! One table per layer maps its errors to a code; nothing is flattened before it gets here.

use super::term;
use crate::{crypto, fs, hub, store, xet};
use std::process::ExitCode;

/// The exit codes that scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Exit {
    /// Another failure.
    Failure = 1,
    /// Wrong usage.
    Usage = 2,
    /// Source not found, or of the wrong kind.
    NotFound = 3,
    /// No access at the Hub (token, permission).
    NoAccess = 4,
    /// Network or service unavailable after retries.
    Unavailable = 5,
    /// Mount point missing, busy or not empty.
    MountPoint = 6,
    /// Something of the system is missing (fuse, helper, privilege).
    System = 7,
    /// Disk full, or a quota reached.
    Full = 8,
    /// Unknown format version.
    NewerFormat = 10,
    /// Wrong key or passphrase.
    WrongKey = 12,
    /// Integrity failure.
    Integrity = 20,
    /// Conflicts were kept.
    Conflicts = 21,
    /// `verify` found problems.
    Problems = 26,
    /// Uploads are still pending.
    Pending = 75,
    /// Interrupted.
    Interrupted = 130,
}

/// A failure as the user sees it: a code, a sentence, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What failed, on which object, why. Lower case, no full stop.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

/// What a command returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure without a hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// With a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With the object it is about in front.
    pub fn about(mut self, object: impl std::fmt::Display) -> Self {
        self.message = format!("{object}: {}", self.message);
        self
    }

    /// Prints it and gives the process's exit code.
    pub fn report(&self) -> ExitCode {
        eprintln!("error: {}", term::escape(&self.message));
        if let Some(hint) = &self.hint {
            eprintln!("hint: {}", term::escape(hint));
        }
        ExitCode::from(self.exit as u8)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let exit = match error.kind() {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Exit::Full,
            _ => Exit::Failure,
        };
        Self::new(exit, error.to_string())
    }
}

/// What to do about bytes that don't authenticate.
const INTEGRITY_HINT: &str = "altered, or made with another key; `hfcrypt verify` lists what is damaged";

/// The way out of a journal that this version can't read.
const EARLIER_JOURNAL_HINT: &str =
    "mount with the version that wrote it, upload its changes with `hf-mount stop`, then remove the file";

impl From<crypto::Error> for Failure {
    fn from(error: crypto::Error) -> Self {
        use crypto::Error as E;
        let message = error.to_string();
        match error {
            E::Unauthentic | E::UnauthenticRecord(_) | E::BytesBehindEnd(_) | E::Malformed(_) | E::FormatMismatch => {
                Self::new(Exit::Integrity, message).hint(INTEGRITY_HINT)
            }
            E::NewerVersion(_) => Self::new(Exit::NewerFormat, message).hint("install a newer hfcrypt"),
            E::KeyFile(_) => Self::new(Exit::Usage, message)
                .hint("a key file is 32 raw bytes or 64 hex digits; `hfcrypt keygen` creates one"),
            E::NameTooLong(_) | E::NameInvalid(_) => Self::new(Exit::Usage, message),
            E::OutOfRange | E::Random(_) => Self::new(Exit::Failure, message),
        }
    }
}

impl From<&hub::Error> for Failure {
    fn from(error: &hub::Error) -> Self {
        use hub::Error as E;
        let message = error.to_string();
        let transient = error.is_transient();
        match error {
            E::InvalidId(_) => Self::new(Exit::Usage, message),
            E::Endpoint { .. } => {
                Self::new(Exit::Usage, message).hint("an endpoint is https://…, http://… or file:///some/dir")
            }
            E::BucketNotFound(_) => Self::new(Exit::NotFound, message)
                .hint("check the name and that the token may see it; `--create` creates a missing bucket"),
            E::NotABucket { id, kind } => {
                let prefix = if *kind == "model" { String::new() } else { format!("{kind}s/") };
                Self::new(Exit::NotFound, message).hint(format!("mount it with `repo {prefix}{id}`"))
            }
            E::InvalidRepoId(_) => Self::new(Exit::Usage, message),
            E::RepoNotFound(_) => Self::new(Exit::NotFound, message)
                .hint("check its name, and that the token may see it if it is private"),
            E::OtherKind { id, found: "bucket" } => {
                Self::new(Exit::NotFound, message).hint(format!("mount it with `bucket {}`", id.name()))
            }
            E::OtherKind { id, found: "model" } => {
                Self::new(Exit::NotFound, message).hint(format!("a model has no prefix: {}", id.name()))
            }
            E::OtherKind { id, found } => {
                Self::new(Exit::NotFound, message).hint(format!("write {found}s/{}", id.name()))
            }
            E::RevisionNotFound { .. } => {
                Self::new(Exit::NotFound, message).hint("a revision is a branch, a tag or a commit id")
            }
            E::EntryNotFound => Self::new(Exit::NotFound, message),
            E::Gated(_) => Self::new(Exit::NoAccess, message)
                .hint("log in as a user who has access, with `hf auth login`, HF_TOKEN or `--token-file`"),
            E::Conflict(_) => Self::new(Exit::Failure, message),
            E::Unauthorized(_) => Self::new(Exit::NoAccess, message)
                .hint("log in with `hf auth login`, or set HF_TOKEN or `--token-file`"),
            E::Forbidden(_) => {
                Self::new(Exit::NoAccess, message).hint("the token needs write permission for this bucket")
            }
            E::TokenFile { .. } => Self::new(Exit::NoAccess, message),
            E::Quota(_) => Self::new(Exit::Full, message),
            E::Partial { source, .. } => Self::from(&**source),
            E::Network(_) | E::Malformed(_) => Self::new(Exit::Unavailable, message),
            E::Status { .. } if transient => Self::new(Exit::Unavailable, message),
            E::Status { .. } | E::Local(_) => Self::new(Exit::Failure, message),
        }
    }
}

impl From<hub::Error> for Failure {
    fn from(error: hub::Error) -> Self {
        Self::from(&error)
    }
}

#[cfg(feature = "local-hub")]
impl From<hub::local::InvalidRepositoryId> for Failure {
    fn from(error: hub::local::InvalidRepositoryId) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

#[cfg(feature = "local-hub")]
impl From<hub::local::ImportError> for Failure {
    fn from(error: hub::local::ImportError) -> Self {
        use hub::local::{FolderError as F, ImportError as E};
        let message = error.to_string();
        match error {
            E::Folder(F::NotAFolder(_)) => Self::new(Exit::NotFound, message),
            E::Folder(F::HoldsHub(_)) => {
                Self::new(Exit::Usage, message).hint("import a folder apart from the directory that --dir names")
            }
            E::Folder(F::Read { source, .. }) => Self { message, ..Self::from(source) },
            E::Folder(_) => Self::new(Exit::Usage, message).hint("nothing was imported; remove or rename it"),
            E::Ref(_) => Self::new(Exit::Usage, message),
            E::Store { source, .. } => Self { message, ..Self::from(source) },
            E::Hub(source) => source.into(),
        }
    }
}

impl From<xet::Error> for Failure {
    fn from(error: xet::Error) -> Self {
        use xet::Error as E;
        let message = error.to_string();
        let transient = error.is_transient();
        match error {
            E::Malformed { .. } | E::HashMismatch { .. } => Self::new(Exit::Integrity, message).hint(INTEGRITY_HINT),
            E::NotFound(_) => Self::new(Exit::NotFound, message),
            E::Unauthorized | E::Forbidden(_) => Self::new(Exit::NoAccess, message),
            // A token that the Hub won't give is the Hub's failure, with its code.
            E::Token(source) => match source.downcast_ref::<hub::Error>() {
                Some(error) => Self::from(error),
                None => Self::new(Exit::Unavailable, message),
            },
            E::Network(_) => Self::new(Exit::Unavailable, message),
            E::Status { .. } if transient => Self::new(Exit::Unavailable, message),
            E::Io(source) => xet::io_error(source).into(),
            E::RangeNotSatisfiable | E::Status { .. } => Self::new(Exit::Failure, message),
        }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        use store::Error as E;
        let message = error.to_string();
        match error {
            E::Hub(source) => source.into(),
            E::Cas(source) | E::Corrupt(source) => source.into(),
            E::Unauthentic(source) | E::Crypto(source) => source.into(),
            E::DamagedBlob => Self::new(Exit::Integrity, message).hint(INTEGRITY_HINT),
            E::Io(source) => source.into(),
            E::WrongKey { .. } => Self::new(Exit::WrongKey, message)
                .hint("use the key this bucket was written with, or `--new-key` to start a further one in it"),
            E::NotFound => Self::new(Exit::NotFound, message),
            E::SourceIsFile => Self::new(Exit::NotFound, message).hint("mount the folder that it is in"),
            E::NoSuchFolder => Self::new(Exit::NotFound, message)
                .hint("check its name; a writable mount starts a folder that is missing"),
            E::InvalidName | E::NameTooLong => Self::new(Exit::Usage, message),
            E::ReadOnly
            | E::NotEmpty(_)
            | E::NoContent
            | E::UnsupportedBlob
            | E::LengthMismatch
            | E::WrongSide
            | E::Refused(_)
            | E::Unstorable(_) => Self::new(Exit::Failure, message),
        }
    }
}

impl From<fs::Error> for Failure {
    fn from(error: fs::Error) -> Self {
        use fs::Error as E;
        let message = error.to_string();
        match error {
            E::Store(source) => source.into(),
            E::Staging(source) => Failure::from(source).about("staging"),
            E::Busy(_) => {
                Self::new(Exit::MountPoint, message).hint("stop the other mount first: `hf-mount status` lists it")
            }
            E::Mount(_) => Self::new(Exit::System, message),
            E::MountBusy => Self::new(Exit::MountPoint, message),
            E::TimedOut => Self::new(Exit::Unavailable, message),
            E::EarlierJournal(_) => Self::new(Exit::Failure, message).hint(EARLIER_JOURNAL_HINT),
            _ => Self::new(Exit::Failure, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_the_hub_denies_is_no_access_at_the_cas_too() {
        let denied = std::sync::Arc::new(hub::Error::Forbidden("read only".into()));
        let error = xet::Error::Token(denied);
        assert_eq!(Failure::from(error.clone()).exit, Exit::NoAccess);
        assert_eq!(Failure::from(error).exit, Exit::NoAccess);
    }

    #[test]
    fn earlier_journal_keeps_exit_code_of_refused_journals_and_has_hint() {
        let damaged = fs::Error::Journal { path: "j".into(), why: "damaged".into() };
        let earlier = Failure::from(fs::Error::EarlierJournal("staging/journal".into()));
        assert_eq!((earlier.exit, Failure::from(damaged).exit), (Exit::Failure, Exit::Failure));
        assert!(earlier.message.contains("staging/journal") && earlier.message.contains("kept as it is"));
        assert!(earlier.hint.unwrap().contains("the version that wrote it"));
    }

    #[test]
    fn a_raised_version_is_10_and_everything_else_that_fails_to_authenticate_is_20() {
        assert_eq!(Failure::from(crypto::Error::NewerVersion(3)).exit, Exit::NewerFormat);
        for error in [crypto::Error::Unauthentic, crypto::Error::UnauthenticRecord(0), crypto::Error::FormatMismatch] {
            assert_eq!(Failure::from(store::Error::from(error)).exit, Exit::Integrity);
        }
    }
}
