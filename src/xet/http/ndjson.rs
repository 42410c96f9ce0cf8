//! Frames of a v2 shard answer: one JSON object per line (Xet spec, 10.6). A pure codec.
//!
//! Fed with the body as it comes, in pieces of any size, it gives the first terminal frame; all
//! others are progress and only keep the answer alive. A line above [`MAX_LINE`] or one that is no
//! frame is an error, and so is an end without a terminal frame.

use crate::Error;
use serde::Deserialize;

/// Longest line in bytes, without its end: what the protocol allows.
pub const MAX_LINE: usize = 1024 * 1024;

/// How a shard upload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The shard is registered.
    Registered,
    /// It is not.
    Failed {
        /// The server's words, as sent.
        message: String,
        /// Whether the whole shard may be sent again.
        retryable: bool,
    },
}

/// A line. Unknown fields and unknown types are for newer clients.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Frame {
    Result,
    Error {
        #[serde(default)]
        message: String,
        #[serde(default)]
        retryable: bool,
    },
    #[serde(other)]
    Progress,
}

/// Cuts a body into lines and looks for the terminal frame.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The line that has not ended.
    line: Vec<u8>,
}

impl Decoder {
    /// At the start of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next bytes of the body. After `Some`, nothing that follows matters.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Option<Outcome>, Error> {
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            self.extend(&bytes[..end])?;
            bytes = &bytes[end + 1..];
            let outcome = parse(&self.line)?;
            self.line.clear();
            if outcome.is_some() {
                return Ok(outcome);
            }
        }
        self.extend(bytes)?;
        Ok(None)
    }

    /// The end of the body: the last line need not be terminated.
    pub fn finish(self) -> Result<Outcome, Error> {
        parse(&self.line)?.ok_or_else(|| malformed("it ends without a result"))
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() > MAX_LINE - self.line.len() {
            return Err(malformed("a line is longer than 1 MiB"));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }
}

fn parse(line: &[u8]) -> Result<Option<Outcome>, Error> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice(line).map_err(|_| malformed("a line is no frame"))? {
        Frame::Result => Ok(Some(Outcome::Registered)),
        Frame::Error { message, retryable } => Ok(Some(Outcome::Failed { message, retryable })),
        Frame::Progress => Ok(None),
    }
}

fn malformed(why: &str) -> Error {
    Error::Malformed { what: "shard answer", why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(body: &str) -> Result<Outcome, Error> {
        let mut decoder = Decoder::new();
        match decoder.push(body.as_bytes())? {
            Some(outcome) => Ok(outcome),
            None => decoder.finish(),
        }
    }

    #[test]
    fn progress_blank_and_unknown_lines_are_passed_over() {
        let body = "{\"type\":\"validating\",\"verified\":1,\"total\":2}\n\n \r\n{\"type\":\"committing\",\"stage\":\"syncing\"}\n\
                    {\"type\":\"news\",\"x\":[1]}\n{\"type\":\"result\",\"more\":1}\n";
        assert_eq!(of(body).unwrap(), Outcome::Registered);
    }

    #[test]
    fn last_line_needs_no_end() {
        assert_eq!(of("{\"type\":\"result\"}").unwrap(), Outcome::Registered);
    }

    #[test]
    fn error_frame_is_final_unless_it_says_retryable() {
        let failed = |retryable| Outcome::Failed { message: "no".into(), retryable };
        assert_eq!(of("{\"type\":\"error\",\"message\":\"no\"}\n").unwrap(), failed(false));
        assert_eq!(of("{\"type\":\"error\",\"message\":\"no\",\"retryable\":true}\n").unwrap(), failed(true));
    }

    #[test]
    fn what_follows_the_terminal_frame_is_ignored() {
        assert_eq!(of("{\"type\":\"result\"}\nrubbish\n").unwrap(), Outcome::Registered);
    }

    #[test]
    fn body_without_terminal_frame_is_rejected() {
        for body in ["", "\n\n", "{\"type\":\"validating\"}\n", "{\"type\":\"result\"", "{}", "[]\n", "result\n"] {
            assert!(matches!(of(body), Err(Error::Malformed { .. })), "{body:?}");
        }
    }

    #[test]
    fn line_at_the_limit_is_taken_and_above_it_rejected() {
        let frame = |len: usize| {
            let (head, tail) = ("{\"type\":\"error\",\"message\":\"", "\"}");
            format!("{head}{}{tail}\n", "m".repeat(len - head.len() - tail.len()))
        };
        assert!(matches!(of(&frame(MAX_LINE)), Ok(Outcome::Failed { .. })));
        assert!(matches!(of(&frame(MAX_LINE + 1)), Err(Error::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_say_the_same(step: u8, lines in prop::collection::vec(
            prop::sample::select(vec!["", "{\"type\":\"validating\"}", "{\"type\":\"error\",\"retryable\":true}", "{\"type\":\"result\"}", "x"]), 0..6)) {
            let mut data = vec![step];
            data.extend_from_slice(lines.join("\n").as_bytes());
            crate::fuzz::ndjson(&data);
        }
    }
}
