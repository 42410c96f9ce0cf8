//! Speed of the pure parts of `xet`, as ratios to what the crates beneath allow in the same process.
//!
//! `cargo bench --bench xet`. Each line is the median over rounds in which both sides take turns;
//! above 1: we are faster. One core.

use hfcrypt::xet::chunker::Chunker;
use hfcrypt::xet::hash::chunk_hash;
use hfcrypt::xet::merkle::Tree;
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;

/// Bytes of a content: far more than the caches hold would measure memory, which is what a client streams from.
const LEN: usize = 64 * 1024 * 1024;
const ROUNDS: usize = 15;
/// Rolling hashes that end a chunk (Xet spec, section 3).
const MASK: u64 = 0xffff_0000_0000_0000;

fn main() {
    let random = random(LEN);
    let text: Vec<u8> = (0..LEN / 16).flat_map(|i| format!("{i:010} row\n ").into_bytes()).take(LEN).collect();
    for (name, data) in [("random", &random), ("text", &text)] {
        ratio(&format!("{name}: boundaries / gearhash over all bytes"), || gear(data), || cut(data, |_| ()));
        ratio(
            &format!("{name}: boundaries and chunk hashes / gearhash, then blake3"),
            || {
                gear(data);
                data.chunks(64 * 1024).for_each(|chunk| sink(blake3::keyed_hash(&[7; 32], chunk)));
            },
            || cut(data, |chunk| sink(chunk_hash(chunk))),
        );
    }
    let chunks: Vec<_> = random.chunks(64 * 1024).map(|chunk| (chunk_hash(chunk), chunk.len() as u64)).collect();
    share("the file's tree", &random, || sink(chunks.iter().copied().collect::<Tree>().into_file_hash()));
    let crc = || crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &random);
    share("CRC-64/NVME", &random, || sink(crc()));
}

fn gear(mut data: &[u8]) {
    let mut hasher = gearhash::Hasher::default();
    while let Some(end) = hasher.next_match(data, MASK) {
        data = &data[black_box(end)..];
    }
}

/// In buffers of a MiB, as an upload does it; what is at the edge of two is left out.
fn cut(data: &[u8], mut each: impl FnMut(&[u8])) {
    let mut chunker = Chunker::new();
    for mut buffer in data.chunks(1024 * 1024) {
        while let Some(end) = chunker.next_boundary(buffer) {
            each(&buffer[..end]);
            buffer = &buffer[end..];
        }
        each(buffer);
    }
}

/// Takes what nobody needs, so that the compiler has to make it.
fn sink<T>(value: T) {
    black_box(value);
}

fn time(mut work: impl FnMut()) -> f64 {
    let start = now();
    work();
    now() - start
}

/// Seconds of CPU that this thread has taken, so that other programs disturb little.
fn now() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// How much faster `ours` is.
fn ratio(name: &str, mut theirs: impl FnMut(), mut ours: impl FnMut()) {
    let mut rounds: Vec<_> = (0..ROUNDS).map(|_| (time(&mut theirs), time(&mut ours))).collect();
    rounds.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    let (theirs, ours) = rounds[ROUNDS / 2];
    let speed = |time: f64| LEN as f64 / time / 1e9;
    println!("{name}: {:.2} ({:.2} and {:.2} GB/s here)", theirs / ours, speed(ours), speed(theirs));
}

/// How much of the time for boundaries and chunk hashes something takes on top.
fn share(name: &str, data: &[u8], mut work: impl FnMut()) {
    let mut shares: Vec<_> =
        (0..ROUNDS).map(|_| time(&mut work) / time(|| cut(data, |chunk| sink(chunk_hash(chunk))))).collect();
    shares.sort_by(f64::total_cmp);
    println!("{name}: {:.1} % of boundaries and chunk hashes", 100.0 * shares[ROUNDS / 2]);
}

/// Bytes that don't compress.
fn random(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes
}
