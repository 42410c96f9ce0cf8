//! Where key bytes live: on the heap, so that a move copies a pointer and not the key, and wiped on drop.

use zeroize::Zeroizing;

/// `N` secret bytes. No `Clone`, no revealing `Debug`.
pub(super) struct Secret<const N: usize>(Box<Zeroizing<[u8; N]>>);

impl<const N: usize> Secret<N> {
    /// Zeros in their final place, then `write` puts the secret there.
    pub(super) fn try_fill<E>(write: impl FnOnce(&mut [u8; N]) -> Result<(), E>) -> Result<Self, E> {
        let mut place = Box::new(Zeroizing::new([0; N]));
        write(&mut place)?;
        Ok(Self(place))
    }

    /// As [`Secret::try_fill`], for a source that cannot fail.
    pub(super) fn fill(write: impl FnOnce(&mut [u8; N])) -> Self {
        let mut place = Box::new(Zeroizing::new([0; N]));
        write(&mut place);
        Self(place)
    }

    pub(super) fn expose(&self) -> &[u8; N] {
        &self.0
    }
}

/// `Debug` for types that hold keys: the name of the type and nothing of its content.
macro_rules! opaque_debug {
    ($($name:ident),+) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )+};
}
pub(super) use opaque_debug;
