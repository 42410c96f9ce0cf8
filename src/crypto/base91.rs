//! basE91 with the file-safe alphabet (format spec, section 2).
//!
//! Bits are taken least significant first, 13 or 14 for each pair of symbols. The text is public (it is what the
//! server stores), so neither direction is constant-time.

/// Symbols by value. basE91's own, but for `'` in the place of `/`.
const ALPHABET: &[u8; 91] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&()*+,.':;<=>?@[]^_`{|}~\"";

/// What [`VALUES`] holds for bytes outside the alphabet.
const NO_SYMBOL: u8 = 0xff;

/// Values by symbol.
const VALUES: [u8; 256] = {
    let mut values = [NO_SYMBOL; 256];
    let mut value = 0;
    while value < ALPHABET.len() {
        values[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// A pair of symbols holds 91 * 91 = 8281 values, 89 more than 13 bits. So the 13-bit values up to this one
/// leave room for a fourteenth bit.
const LAST_OF_14_BITS: u32 = 88;

/// The most symbols that `bytes` bytes can need.
pub const fn max_len(bytes: usize) -> usize {
    let bits = bytes * 8;
    bits / 13 * 2 + if bits.is_multiple_of(13) { 0 } else { 2 }
}

/// Encodes.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(max_len(bytes.len()));
    encode_into(bytes, &mut text);
    text
}

/// Appends the encoding of `bytes` to `text`.
pub fn encode_into(bytes: &[u8], text: &mut String) {
    let mut symbol = |value: u32| text.push(char::from(ALPHABET[value as usize]));
    let (mut bits, mut count) = (0u32, 0u32);
    for &byte in bytes {
        bits |= u32::from(byte) << count;
        count += 8;
        if count > 13 {
            let width = if bits & 0x1fff > LAST_OF_14_BITS { 13 } else { 14 };
            let value = bits & ((1 << width) - 1);
            symbol(value % 91);
            symbol(value / 91);
            bits >>= width;
            count -= width;
        }
    }
    if count > 0 {
        symbol(bits % 91);
        if count > 7 || bits > 90 {
            symbol(bits / 91);
        }
    }
}

/// Decodes strictly as far as the text alone allows; aliases pass and are caught by the caller who encodes again.
///
/// `None` for a byte outside the alphabet, left-over bits that are not zero, or a last symbol too large for its byte.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 2 * 14 / 8 + 1);
    let (mut bits, mut count) = (0u32, 0u32);
    let (pairs, last) = text.as_bytes().as_chunks::<2>();
    for &[low, high] in pairs {
        let value = value_of(low)? + 91 * value_of(high)?;
        bits |= value << count;
        count += if value & 0x1fff > LAST_OF_14_BITS { 13 } else { 14 };
        while count >= 8 {
            bytes.push((bits & 0xff) as u8);
            bits >>= 8;
            count -= 8;
        }
    }
    match last {
        [] if bits == 0 => {}
        [symbol] => bytes.push(u8::try_from(bits | value_of(*symbol)? << count).ok()?),
        _ => return None,
    }
    Some(bytes)
}

fn value_of(symbol: u8) -> Option<u32> {
    let value = VALUES[usize::from(symbol)];
    (value != NO_SYMBOL).then_some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The format's own words, bit by bit.
    fn slow_encode(bytes: &[u8]) -> String {
        let mut bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).map(move |i| byte >> i & 1)).collect();
        let take = |bits: &mut Vec<u8>, n: usize| {
            bits.drain(..n).enumerate().map(|(i, bit)| usize::from(bit) << i).sum::<usize>()
        };
        let mut text = String::new();
        while bits.len() > 13 {
            let thirteen = take(&mut bits.clone(), 13);
            let value = take(&mut bits, if thirteen <= 88 { 14 } else { 13 });
            text.push(ALPHABET[value % 91] as char);
            text.push(ALPHABET[value / 91] as char);
        }
        let left = bits.len();
        if left > 0 {
            let value = take(&mut bits, left);
            text.push(ALPHABET[value % 91] as char);
            if left > 7 || value > 90 {
                text.push(ALPHABET[value / 91] as char);
            }
        }
        text
    }

    #[test]
    fn all_inputs_up_to_two_bytes_agree_with_the_slow_twin() {
        for first in 0..=255u8 {
            for input in (0..=255u8).map(|second| vec![first, second]).chain([vec![first], vec![]]) {
                let text = encode(&input);
                assert_eq!(text, slow_encode(&input));
                assert!(text.len() <= max_len(input.len()));
                assert_eq!(decode(&text), Some(input));
            }
        }
    }

    #[test]
    fn every_text_up_to_three_symbols_is_canonical_or_the_only_alias() {
        let symbols: Vec<char> = ALPHABET.iter().map(|&symbol| char::from(symbol)).collect();
        let mut texts = vec![String::new()];
        let mut spellings = std::collections::HashMap::<Vec<u8>, usize>::new();
        for _ in 0..3 {
            texts = texts.iter().flat_map(|text| symbols.iter().map(move |symbol| format!("{text}{symbol}"))).collect();
            for text in &texts {
                let Some(bytes) = decode(text) else { continue };
                let canonical = encode(&bytes);
                assert!(canonical == *text || canonical == format!("{text}A") || format!("{canonical}A") == *text);
                *spellings.entry(bytes).or_default() += 1;
            }
        }
        assert!(spellings.values().all(|&count| count <= 2));
    }

    #[test]
    fn long_inputs_do_not_exceed_the_bound() {
        // Zero bits take 14 at a time, 0x59 (89, 13 bits) and ones as few as possible.
        for len in 0..400 {
            for byte in [0, 0x59, 0xff] {
                assert!(encode(&vec![byte; len]).len() <= max_len(len));
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let text = encode(&bytes);
            prop_assert_eq!(&text, &slow_encode(&bytes));
            prop_assert_eq!(decode(&text), Some(bytes));
        }

        #[test]
        fn any_text_decodes_or_not_without_panic(text in ".{0,300}") {
            let _ = decode(&text);
        }
    }
}
