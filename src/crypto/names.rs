//! Path components <-> stored components (format spec, sections 2 and 4b).
//!
//! `parent` is always the plaintext path of the directory that holds the name: components joined
//! with `/`, no slash in front or at the end, empty at the root. Names are UTF-8 bytes as they are: no
//! normalization, no case folding.
//!
//! A stored text is believed only when the name it decrypts to encrypts back to that very text. So names and stored
//! names are one-to-one, and list, stat, overwrite and delete always mean the same object.

use std::borrow::Cow;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::secret::{Secret, opaque_debug};
use super::wide::WideCipher;
use super::{Error, Format, base91};

/// The directory at the bucket's root that holds the encrypted tree; literal, and what the empty path is stored as.
pub const ROOT: &str = ".enc";
/// In front of the stored component of a long name.
pub const LONG_PREFIX: &str = "-L2";
/// In front of the stored component of a long name's sidecar.
pub const SIDECAR_PREFIX: &str = "-N2";
/// Bytes of every sidecar: one length, so that it tells nothing of the name's.
pub const SIDECAR_LEN: usize = SIDECAR_MAGIC.len() + SIDECAR_INPUT;
/// Bytes of the longest name that its stored text holds; the limit of format 1.
pub const MAX_SHORT: usize = LARGEST_INPUT - ZEROS;
/// Bytes of the longest name of format 2.
pub const MAX_LONG: usize = 255;

/// Zero bytes in front of a name: what authenticates it, to 2^-96.
const ZEROS: usize = 12;
/// Names are filled up to a multiple of this many bytes.
const STEP: usize = 32;
/// The most input bytes of a name that is filled up: one step more could need over 255 symbols.
const LARGEST_STEP: usize = 192;
/// The most input bytes at all: one more could need over 255 symbols.
const LARGEST_INPUT: usize = 206;
/// Symbols of the longest stored component: what common file systems take.
const MAX_STORED: usize = 255;
const _: () = assert!(base91::max_len(LARGEST_STEP) <= MAX_STORED);
const _: () = assert!(base91::max_len(LARGEST_STEP + STEP) > MAX_STORED);
const _: () = assert!(base91::max_len(LARGEST_INPUT) <= MAX_STORED);
const _: () = assert!(base91::max_len(LARGEST_INPUT + 1) > MAX_STORED);

const SIDECAR_MAGIC: &[u8; 5] = b"HFEN\x02";
/// Input bytes of a sidecar: the longest name and its zeros, filled up.
const SIDECAR_INPUT: usize = 288;
/// A buffer for any input that a writer makes.
type Input = [u8; SIDECAR_INPUT];

/// What a plain name is stored as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredName {
    /// The stored component.
    pub text: String,
    /// The object beside it that holds a long name (format 2, 195 bytes and more).
    pub sidecar: Option<Sidecar>,
}

/// A long-name sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    /// Its stored component (`-N2…`), or in a [`SealedPath`] its full object key.
    pub text: String,
    /// Its 293 bytes.
    pub bytes: Vec<u8>,
}

/// A whole path as an object key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedPath {
    /// `.enc/…`; `.enc` itself for the empty path.
    pub key: String,
    /// The sidecars of its long components, outermost first, `text` being full object keys.
    pub sidecars: Vec<Sidecar>,
}

/// What a stored component is to this key (format spec, section 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Decrypts, and encrypts back to the same text.
    Own(String),
    /// A `-L2…` component: fetch the sidecar of this name beside it and call [`NameCipher::open_long`].
    /// Without a sidecar it is foreign.
    NeedsSidecar(String),
    /// Starts with `-` and is no `-L2`: skipped.
    Extension,
    /// Doesn't decode or authenticate: another key's, the other format's, or damaged.
    Foreign,
    /// Authenticates but breaks a name rule.
    Suspicious,
}

/// The cipher for names of one format under one key. Its key schedule is expanded once; wiped on drop.
pub struct NameCipher {
    cipher: WideCipher,
    /// Only format 2 has long names.
    long_name_key: Option<Secret<32>>,
}

impl NameCipher {
    pub(super) fn v1(path_key: &Secret<16>) -> Self {
        Self { cipher: WideCipher::new(path_key), long_name_key: None }
    }

    pub(super) fn v2(path_key: &Secret<16>, long_name_key: Secret<32>) -> Self {
        Self { cipher: WideCipher::new(path_key), long_name_key: Some(long_name_key) }
    }

    /// The format.
    pub fn format(&self) -> Format {
        if self.long_name_key.is_some() { Format::V2 } else { Format::V1 }
    }

    /// Checks a plain name (empty, `.`, `..`, NUL, `/`, length) without encrypting it.
    pub fn check(&self, name: &str) -> Result<(), Error> {
        check_form(name)?;
        if name.len() > self.max_len() { Err(Error::NameTooLong(name.len())) } else { Ok(()) }
    }

    /// Encrypts one component.
    pub fn seal(&self, parent: &str, name: &str) -> Result<StoredName, Error> {
        self.check(name)?;
        match &self.long_name_key {
            Some(key) if name.len() > MAX_SHORT => {
                let token = token_text(key, parent, name)?;
                let bytes = self.sidecar_bytes(parent, name);
                let sidecar = Sidecar { text: format!("{SIDECAR_PREFIX}{token}"), bytes };
                Ok(StoredName { text: format!("{LONG_PREFIX}{token}"), sidecar: Some(sidecar) })
            }
            _ => Ok(StoredName { text: self.short_text(parent, name), sidecar: None }),
        }
    }

    /// Encrypts a whole path.
    pub fn seal_path(&self, path: &str) -> Result<SealedPath, Error> {
        let mut sealed = SealedPath { key: ROOT.to_owned(), sidecars: Vec::new() };
        if path.is_empty() {
            return Ok(sealed);
        }
        let mut parent_len = 0;
        for name in path.split('/') {
            let stored = self.seal(&path[..parent_len], name)?;
            if let Some(mut sidecar) = stored.sidecar {
                sidecar.text = format!("{}/{}", sealed.key, sidecar.text);
                sealed.sidecars.push(sidecar);
            }
            sealed.key.push('/');
            sealed.key.push_str(&stored.text);
            // The parent of the next component ends with this one; only the first has no slash in front.
            parent_len += name.len() + usize::from(parent_len > 0);
        }
        Ok(sealed)
    }

    /// Decrypts one stored component. Any input is fine.
    pub fn open(&self, parent: &str, stored: &str) -> Verdict {
        if stored.starts_with('-') {
            return match (stored.strip_prefix(LONG_PREFIX), self.format()) {
                (None, _) => Verdict::Extension,
                (Some(token), Format::V2) => Verdict::NeedsSidecar(format!("{SIDECAR_PREFIX}{token}")),
                (Some(_), Format::V1) => Verdict::Foreign,
            };
        }
        let Some(sealed) = self.decode(stored) else { return Verdict::Foreign };
        let Some(plain) = self.decrypt(parent, &sealed) else { return Verdict::Foreign };
        match name_in(&plain) {
            Some(name) if name.len() <= MAX_SHORT && self.short_text(parent, name) == stored => {
                Verdict::Own(name.to_owned())
            }
            _ => Verdict::Suspicious,
        }
    }

    /// Decrypts a `-L2…` component with the bytes of its sidecar.
    pub fn open_long(&self, parent: &str, stored: &str, sidecar: &[u8]) -> Verdict {
        let (Some(key), Some(token)) = (&self.long_name_key, stored.strip_prefix(LONG_PREFIX)) else {
            return Verdict::Foreign;
        };
        let sealed = match sidecar.strip_prefix(SIDECAR_MAGIC) {
            Some(sealed) if sealed.len() == SIDECAR_INPUT => sealed,
            _ => return Verdict::Foreign,
        };
        let Some(plain) = self.decrypt(parent, sealed) else { return Verdict::Foreign };
        match name_in(&plain) {
            Some(name)
                if name.len() > MAX_SHORT
                    && name.len() <= MAX_LONG
                    && token_text(key, parent, name).is_ok_and(|right| right == token) =>
            {
                Verdict::Own(name.to_owned())
            }
            _ => Verdict::Suspicious,
        }
    }

    fn max_len(&self) -> usize {
        match self.format() {
            Format::V1 => MAX_SHORT,
            Format::V2 => MAX_LONG,
        }
    }

    /// The stored text of a checked name of at most [`MAX_SHORT`] bytes.
    fn short_text(&self, parent: &str, name: &str) -> String {
        let len = input_len(self.format(), name.len());
        let mut out: Input = [0; SIDECAR_INPUT];
        self.encrypt(parent, name, &mut out[..len]);
        let mut text = base91::encode(&out[..len]);
        if self.format() == Format::V2 {
            replace_symbols(&mut text);
        }
        text
    }

    fn sidecar_bytes(&self, parent: &str, name: &str) -> Vec<u8> {
        let mut bytes = vec![0; SIDECAR_LEN];
        bytes[..SIDECAR_MAGIC.len()].copy_from_slice(SIDECAR_MAGIC);
        self.encrypt(parent, name, &mut bytes[SIDECAR_MAGIC.len()..]);
        bytes
    }

    /// Encrypts zeros and `name`, as long together as `out`.
    fn encrypt(&self, parent: &str, name: &str, out: &mut [u8]) {
        let mut input: Input = [0; SIDECAR_INPUT];
        let input = &mut input[..out.len()];
        input[out.len() - name.len()..].copy_from_slice(name.as_bytes());
        self.cipher.encrypt(input, parent.as_bytes(), out);
    }

    /// The plaintext, authenticating zeros included.
    fn decrypt(&self, parent: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        if sealed.len() < STEP {
            return None;
        }
        let mut plain = vec![0; sealed.len()];
        self.cipher.decrypt(sealed, parent.as_bytes(), &mut plain);
        let authentic = bool::from(plain[..ZEROS].ct_eq(&[0; ZEROS]));
        authentic.then_some(plain)
    }

    fn decode(&self, stored: &str) -> Option<Vec<u8>> {
        match self.format() {
            Format::V1 => base91::decode(stored),
            Format::V2 => base91::decode(&restore_symbols(stored)),
        }
    }
}

/// Bytes that a short name is encrypted as.
fn input_len(format: Format, name_len: usize) -> usize {
    let exact = name_len + ZEROS;
    let stepped = exact.next_multiple_of(STEP);
    match format {
        _ if stepped <= LARGEST_STEP => stepped,
        Format::V1 => exact,
        Format::V2 => LARGEST_INPUT,
    }
}

/// The name rules that hold for every length.
fn check_form(name: &str) -> Result<(), Error> {
    let wrong = match name {
        "" => "empty",
        "." | ".." => "`.` and `..` mean directories",
        _ if name.contains('/') => "holds a slash",
        _ if name.contains('\0') => "holds a NUL",
        _ => return Ok(()),
    };
    Err(Error::NameInvalid(wrong))
}

/// The name behind all zeros, if it is one.
fn name_in(plain: &[u8]) -> Option<&str> {
    let start = plain.iter().position(|&byte| byte != 0)?;
    let name = std::str::from_utf8(&plain[start..]).ok()?;
    check_form(name).is_ok().then_some(name)
}

/// What stands behind `-L2` and `-N2` for a long name.
fn token_text(key: &Secret<32>, parent: &str, name: &str) -> Result<String, Error> {
    let parent_len = u32::try_from(parent.len()).map_err(|_| Error::OutOfRange)?;
    let mut mac = Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes any key length");
    mac.update(&parent_len.to_le_bytes());
    mac.update(parent.as_bytes());
    mac.update(name.as_bytes());
    let mut text = base91::encode(&mac.finalize().into_bytes());
    // Behind a prefix the second symbol is the prefix's letter, so the last one alone can need replacing.
    replace_last(&mut text);
    Ok(text)
}

/// Format 2 stores `:` at index 1 and `.` at the end as `-`: the official client takes the one for a drive letter,
/// and the Hub is said to refuse keys with the other.
pub(super) fn replace_symbols(text: &mut String) {
    if text.as_bytes().get(1) == Some(&b':') {
        text.replace_range(1..2, "-");
    }
    replace_last(text);
}

fn replace_last(text: &mut String) {
    if text.ends_with('.') {
        text.pop();
        text.push('-');
    }
}

/// Undoes [`replace_symbols`]. The literal forms pass too: they are aliases, caught by encrypting again.
fn restore_symbols(stored: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(stored);
    if stored.as_bytes().get(1) == Some(&b'-') {
        text.to_mut().replace_range(1..2, ":");
    }
    if text.ends_with('-') {
        let text = text.to_mut();
        text.pop();
        text.push('.');
    }
    text
}

opaque_debug!(NameCipher);

#[cfg(test)]
mod tests;
