//! What goes to a terminal: hostile text escaped, progress only where somebody watches.

use crate::xet::foreign;
use std::io;

/// `text` with control characters escaped, so that a name can't move the cursor or fake a line.
pub fn escape(text: &str) -> String {
    foreign::escape(text)
}

/// Exit code of a program whose reader has gone, as shells know it.
const BROKEN_PIPE: i32 = 141;

/// Writes to stdout. Where the reader has gone (`… | head`) the process ends quietly, as it would by its signal.
pub fn print(text: std::fmt::Arguments<'_>) {
    if let Err(error) = io::Write::write_fmt(&mut io::stdout().lock(), text) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("error: cannot write to standard output: {error}");
        }
        std::process::exit(BROKEN_PIPE);
    }
}

/// `println!` through [`print`].
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::term::print(format_args!("{}\n", format_args!($($text)*))) };
}
pub(crate) use say;

/// A progress bar over `total` bytes on stderr; hidden where stderr is no terminal.
pub fn byte_progress(total: u64, what: &'static str) -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .expect("the template is fixed and valid");
    indicatif::ProgressBar::new(total).with_style(style).with_message(what)
}

#[cfg(test)]
mod tests {
    #[test]
    fn control_characters_and_direction_marks_are_escaped() {
        assert_eq!(super::escape("a\x1b[2J\nb\u{202e}c é"), "a\\u{1b}[2J\\nb\\u{202e}c é");
    }
}
