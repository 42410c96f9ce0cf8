//! Replies of the control connection (RFC 959, section 4.2), and those of failures.

use super::command::Syntax;
use crate::gateway::Error;
use crate::store::Cause;

/// A reply: a code and its text. A text of several lines is a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    text: String,
}

impl Reply {
    pub(super) fn new(code: u16, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// Returns the reply as it is sent. In a text of several lines all between the first and the last are indented, so
    /// none of them looks like the end.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Self { code, text } = self;
        let lines: Vec<&str> = text.lines().collect();
        let text = match lines.as_slice() {
            [first, middle @ .., last] => {
                let middle: String = middle.iter().map(|line| format!(" {line}\r\n")).collect();
                format!("{code}-{first}\r\n{middle}{code} {last}\r\n")
            }
            _ => format!("{code} {text}\r\n"),
        };
        text.into_bytes()
    }
}

impl From<Syntax> for Reply {
    fn from(syntax: Syntax) -> Self {
        match syntax {
            Syntax::Unknown => Self::new(500, "There is no such command."),
            Syntax::NotImplemented => Self::new(502, "This server doesn't have that command."),
            Syntax::Argument(why) => Self::new(501, format!("Wrong argument: {why}.")),
        }
    }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        let code = code_of(&error);
        if code == 451 {
            tracing::warn!(%error, "the Hub, the CAS or the state failed");
        }
        Self::new(code, format!("Failed: {error}."))
    }
}

/// Returns the code of a failure: 450 and 451 for one that passes, 550 for one that lasts, 552 for a full quota, 553
/// for a name that can't be used.
fn code_of(error: &Error) -> u16 {
    match error {
        Error::InvalidKey(_) | Error::KeyTooLong | Error::InvalidBucketName | Error::NameTaken => 553,
        Error::PreconditionFailed(_) | Error::Conflict | Error::Busy => 450,
        Error::TooLarge(_) => 552,
        Error::InvalidRange => 554,
        Error::Body(_) | Error::IncompleteBody => 426,
        Error::State(_) => 451,
        Error::Store(error) => match error.cause() {
            Cause::Denied | Cause::ReadOnly | Cause::Integrity => 550,
            Cause::NoSpace | Cause::LocalQuota | Cause::TooLarge => 552,
            _ => 451,
        },
        _ => 550,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_within_a_reply_never_look_like_its_end() {
        let text = |text: &str| String::from_utf8(Reply::new(211, text).to_bytes()).unwrap();
        assert_eq!(text("One."), "211 One.\r\n");
        assert_eq!(text("Has:\n211 x\nEnd"), "211-Has:\r\n 211 x\r\n211 End\r\n");
    }
}
