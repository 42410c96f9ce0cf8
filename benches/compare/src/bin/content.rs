//! Writes a file to upload: `content random|text|floats LEN SEED FILE`.
//!
//! * `random`: doesn't compress, as ciphertext.
//! * `text`: lines of a log, words of a vocabulary as often as in a language; LZ4 leaves about 63 % of it.
//! * `floats`: 32-bit weights around zero; LZ4 leaves 96 % of them when their bytes are regrouped, else all.

use std::fs::File;
use std::io::{BufWriter, Result, Write};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, len, seed, path] = &arguments[..] else { panic!("content random|text|floats LEN SEED FILE") };
    let (len, seed): (u64, u64) = (len.parse().expect("a length"), seed.parse().expect("a number"));
    let mut words = Words::new(seed);
    let block: &mut dyn FnMut(&mut Vec<u8>) = match kind.as_str() {
        "random" => &mut |block| (0..BLOCK / 8).for_each(|_| block.extend_from_slice(&words.next().to_le_bytes())),
        "floats" => {
            &mut |block| (0..BLOCK / 4).for_each(|_| block.extend_from_slice(&weight(&mut words).to_le_bytes()))
        }
        "text" => {
            let mut log = Log::new(words);
            &mut move |block| {
                while block.len() < BLOCK {
                    log.line(block)
                }
            }
        }
        _ => panic!("no such content: {kind}"),
    };
    let mut file = BufWriter::with_capacity(0, File::create(path)?);
    let (mut left, mut bytes) = (len, Vec::new());
    while left > 0 {
        bytes.clear();
        block(&mut bytes);
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&bytes)?;
        left -= bytes.len() as u64;
    }
    file.flush()
}

/// Bytes made at a time.
const BLOCK: usize = 256 * 1024;

/// Xorshift64* over a scrambled seed.
struct Words(u64);

impl Words {
    fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In `0..n`.
    fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 32) * n as u64 >> 32) as usize
    }
}

/// About normal: the sum of four uniform numbers.
fn weight(words: &mut Words) -> f32 {
    let word = words.next();
    let sum: f32 = (0..4).map(|i| f32::from((word >> (16 * i)) as u16)).sum();
    (sum - 2.0 * 65_535.0) / 65_536.0 * 0.04
}

struct Log {
    words: Words,
    vocabulary: Vec<String>,
    lines: u64,
}

impl Log {
    fn new(mut words: Words) -> Self {
        let vocabulary = (0..4000)
            .map(|_| (0..3 + words.below(8)).map(|_| char::from(b"etaoinshrdlucmfwypvbgk"[words.below(22)])).collect());
        Self { vocabulary: vocabulary.collect(), words, lines: 0 }
    }

    fn line(&mut self, block: &mut Vec<u8>) {
        self.lines += 1;
        let (id, level) = (self.words.next(), ["debug", "info", "info", "warning"][self.words.below(4)]);
        let _ =
            write!(block, "{{\"line\": {}, \"id\": \"{id:016x}\", \"level\": \"{level}\", \"text\": \"", self.lines);
        for _ in 0..6 + self.words.below(20) {
            // The product of two uniform numbers is small more often than not.
            let rank = self.words.below(4000) * self.words.below(4000) / 4000;
            block.extend_from_slice(self.vocabulary[rank].as_bytes());
            block.push(b' ');
        }
        block.extend_from_slice(b"\"}\n");
    }
}
