//! HCTR2 with AES-128, the wide-block cipher of names and sealed headers (format spec, section 2).
//!
//! A change of any bit of input, tweak or key changes every bit of the output, so known bytes in the plaintext
//! authenticate all of it. The key schedule is expanded once. No length is refused but one below a block.

use hctr2_rs::Hctr2_128;

use super::secret::Secret;

/// Bytes of the shortest input.
const BLOCK: usize = 16;

/// An expanded key.
pub(super) struct WideCipher(Box<Hctr2_128>);

impl WideCipher {
    pub(super) fn new(key: &Secret<16>) -> Self {
        Self(Box::new(Hctr2_128::new(key.expose())))
    }

    /// Encrypts `plain` into `out` of the same length. Lengths are the caller's constants, never input.
    pub(super) fn encrypt(&self, plain: &[u8], tweak: &[u8], out: &mut [u8]) {
        assert!(plain.len() >= BLOCK && plain.len() == out.len(), "length of a wide block");
        self.0.encrypt(plain, tweak, out).expect("a block or more");
    }

    /// Decrypts `sealed` into `out` of the same length; at least a block.
    pub(super) fn decrypt(&self, sealed: &[u8], tweak: &[u8], out: &mut [u8]) {
        assert!(sealed.len() >= BLOCK && sealed.len() == out.len(), "length of a wide block");
        self.0.decrypt(sealed, tweak, out).expect("a block or more");
    }
}
