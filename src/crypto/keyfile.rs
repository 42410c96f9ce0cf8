//! The forms of a key file (format spec, section 1): 32 raw bytes, or hex with white space anywhere.
//!
//! Exactly 32 bytes are the key, whatever they are; everything else is hex or an error. No message and no warning
//! holds a byte of the file.

use zeroize::Zeroizing;

use super::secret::opaque_debug;
use super::{Error, MasterKey};

/// How the key was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Exactly 32 bytes.
    Raw,
    /// 64 hex digits.
    Hex,
}

/// A parsed key file.
pub struct KeyFile {
    /// The key.
    pub master: MasterKey,
    /// Its form.
    pub form: Form,
    /// Things to tell the user, without key bytes: looks like half a hex key, all printable, 32 equal bytes.
    pub warnings: Vec<&'static str>,
}

/// The most bytes that are worth reading from a key file: more can't be a key, but for absurd white space.
pub const MAX_LEN: usize = 4096;

/// Hex digits of a key.
const DIGITS: usize = 64;

/// Parses the contents of a key file.
pub fn parse(bytes: &[u8]) -> Result<KeyFile, Error> {
    if bytes.len() > MAX_LEN {
        return Err(refusal(format!("longer than {MAX_LEN} bytes")));
    }
    let form = if bytes.len() == 32 { Form::Raw } else { Form::Hex };
    let master = MasterKey::try_fill(|place| match form {
        Form::Raw => {
            place.copy_from_slice(bytes);
            Ok(())
        }
        Form::Hex => parse_hex(bytes, place),
    })?;
    let warnings = warnings(form, master.expose());
    Ok(KeyFile { master, form, warnings })
}

/// 64 lowercase hex digits and a newline.
pub fn to_hex(master: &MasterKey) -> Zeroizing<String> {
    // Reserved in full: a string that grows leaves its old, unwiped buffer behind.
    let mut hex = Zeroizing::new(String::with_capacity(DIGITS + 1));
    for byte in master.expose() {
        hex.push(digit(byte >> 4));
        hex.push(digit(byte & 0xf));
    }
    hex.push('\n');
    hex
}

fn digit(nibble: u8) -> char {
    char::from_digit(nibble.into(), 16).expect("four bits are a hex digit")
}

/// Writes each digit to its place at once, so that no second copy of the key has to be wiped.
fn parse_hex(bytes: &[u8], key: &mut [u8; 32]) -> Result<(), Error> {
    let mut digits = 0;
    for (offset, &byte) in bytes.iter().enumerate() {
        if is_space(byte) {
            continue;
        }
        let Some(nibble) = char::from(byte).to_digit(16) else {
            return Err(refusal(format!("neither 32 bytes nor hex digits only (offset {offset})")));
        };
        if let Some(place) = key.get_mut(digits / 2) {
            *place = *place << 4 | nibble as u8;
        }
        digits += 1;
    }
    if digits == DIGITS {
        return Ok(());
    }
    Err(refusal(format!("{digits} hex digits where {DIGITS} are needed")))
}

fn warnings(form: Form, key: &[u8; 32]) -> Vec<&'static str> {
    let mut warnings = Vec::new();
    let text = |is_part: fn(&u8) -> bool| form == Form::Raw && key.iter().all(is_part);
    if text(|&byte| byte.is_ascii_hexdigit() || is_space(byte)) {
        warnings.push("32 hex digits are taken as 32 raw bytes; half of a hex key?");
    } else if text(|&byte| byte.is_ascii_graphic() || is_space(byte)) {
        warnings.push("the 32 raw bytes are all printable text; a real key is random");
    }
    if key.iter().all(|&byte| byte == key[0]) {
        warnings.push("all 32 bytes of the key are equal; a placeholder?");
    }
    warnings
}

/// White space by the format: no vertical tab, no form feed.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn refusal(why: String) -> Error {
    Error::KeyFile(why)
}

opaque_debug!(KeyFile);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Random, SystemRandom};

    #[test]
    fn hex_of_a_key_parses_to_the_key() {
        let key = MasterKey::generate(&mut SystemRandom).unwrap();
        let hex = to_hex(&key);
        assert_eq!(hex.len(), 65);
        assert_eq!(hex.capacity(), 65, "grown, so an unwiped buffer was left behind");
        let parsed = parse(hex.as_bytes()).unwrap();
        assert_eq!((parsed.master.expose(), parsed.form), (key.expose(), Form::Hex));
        assert!(parsed.warnings.is_empty());
    }

    #[test]
    fn equal_bytes_are_warned_of_in_hex_too() {
        assert_eq!(parse("00".repeat(32).as_bytes()).unwrap().warnings.len(), 1);
    }

    #[test]
    fn overlong_files_are_refused_even_if_they_hold_a_key() {
        let mut file = b"0f".repeat(32);
        file.resize(MAX_LEN, b' ');
        assert!(parse(&file).is_ok());
        file.push(b' ');
        assert!(parse(&file).is_err());
    }

    #[test]
    fn refusals_show_no_byte_of_the_file() {
        for file in [b"QQQQ".repeat(16), b"Q".repeat(63), b"7".repeat(63), b"7".repeat(66)] {
            let Err(Error::KeyFile(why)) = parse(&file) else { panic!("accepted") };
            assert!(!why.contains('Q') && !why.contains("77"), "{why}");
        }
    }

    proptest! {
        #[test]
        fn any_hex_with_any_white_space_is_the_key(
            key in any::<[u8; 32]>(),
            spaces in proptest::collection::vec((0..65usize, "[ \t\r\n]"), 0..20),
            upper in any::<bool>(),
        ) {
            let mut text = hex::encode(key);
            if upper {
                text.make_ascii_uppercase();
            }
            for (at, space) in spaces {
                text.insert_str(at, &space);
            }
            let parsed = parse(text.as_bytes()).unwrap();
            prop_assert_eq!(parsed.master.expose(), &key);
        }

        #[test]
        fn any_32_bytes_are_the_key(key in any::<[u8; 32]>()) {
            let parsed = parse(&key).unwrap();
            prop_assert_eq!((parsed.master.expose(), parsed.form), (&key, Form::Raw));
        }

        #[test]
        fn other_bytes_are_refused(mut file in proptest::collection::vec(any::<u8>(), 0..100)) {
            file.push(b'g');
            prop_assume!(file.len() != 32);
            prop_assert!(parse(&file).is_err());
        }
    }

    #[test]
    fn a_failing_generator_gives_no_key() {
        struct Broken;
        impl Random for Broken {
            fn fill(&mut self, _: &mut [u8]) -> Result<(), Error> {
                Err(Error::Random("broken".into()))
            }
        }
        assert!(matches!(MasterKey::generate(&mut Broken), Err(Error::Random(_))));
    }
}
