//! The body of the fuzz target of what the CAS says to a chunk query.

use super::*;

/// An answer: it is taken in or it isn't, and what is found by it is what it says.
pub fn dedup(data: &[u8]) {
    let shared = Mutex::new(State::default());
    let lists = crate::Known::in_memory();
    let found = learn(&Hash([1; 32]), data, &shared, None, Some(&lists));
    let Ok(shard) = Shard::parse(data) else {
        assert_eq!(found, 0);
        return;
    };
    assert!(found <= shard.xorbs.len());
    let known = &shared.lock().unwrap_or_else(PoisonError::into_inner).known;
    for xorb in &shard.xorbs {
        for (at, chunk) in xorb.chunks.iter().enumerate() {
            // Under a key nothing of the answer itself is found; where hashes are plain, at least that chunk.
            let Some((holder, index)) = known.find(&chunk.hash) else { continue };
            let rest = xorb.chunks[at..].iter().map(|chunk| (&chunk.hash, chunk.raw_len));
            assert!(holder.run(index, rest) <= xorb.chunks.len() - at);
            assert!(shard.xorbs.iter().any(|xorb| xorb.hash == holder.hash));
        }
    }
}
