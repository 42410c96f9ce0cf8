//! `xet hash`.

use crate::cli::exit::{Failure, Outcome};
use crate::cli::term::say;
use crate::cli::{print_json, term};
use crate::xet::chunker::Chunker;
use crate::xet::{Hash, hash, merkle};
use serde::Serialize;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Serialize)]
struct Chunk {
    offset: u64,
    length: u64,
    hash: Hash,
}

#[derive(Serialize)]
struct Hashed {
    path: String,
    size: u64,
    hash: Hash,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunks: Option<Vec<Chunk>>,
}

#[derive(Serialize)]
struct Files {
    files: Vec<Hashed>,
}

/// Bytes read at once: some chunks' worth.
const READ: usize = 1 << 20;

pub(super) fn hash_files(files: &[PathBuf], chunks: bool, json: bool) -> Outcome<ExitCode> {
    let mut all = Files { files: Vec::new() };
    for path in files {
        let hashed = hash_file(path, chunks).map_err(|e| Failure::from(e).about(path.display()))?;
        if json {
            all.files.push(hashed);
            continue;
        }
        say!("{}  {}", hashed.hash, term::escape(&hashed.path));
        for chunk in hashed.chunks.iter().flatten() {
            say!("  {} {:>12} {:>7}", chunk.hash, chunk.offset, chunk.length);
        }
    }
    if json {
        print_json(&all)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn hash_file(path: &Path, keep_chunks: bool) -> std::io::Result<Hashed> {
    let mut file = File::open(path)?;
    let mut chunker = Chunker::new();
    let mut hashes = Vec::new();
    let mut buffer = vec![0; READ];
    let mut pending: Vec<u8> = Vec::new();
    loop {
        let n = match file.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if n == 0 {
            break;
        }
        let mut rest = &buffer[..n];
        while let Some(end) = chunker.next_boundary(rest) {
            let (chunk, later) = rest.split_at(end);
            match pending.is_empty() {
                true => hashes.push((hash::chunk_hash(chunk), chunk.len() as u64)),
                false => {
                    pending.extend_from_slice(chunk);
                    hashes.push((hash::chunk_hash(&pending), pending.len() as u64));
                    pending.clear();
                }
            }
            rest = later;
        }
        pending.extend_from_slice(rest);
    }
    if !pending.is_empty() {
        hashes.push((hash::chunk_hash(&pending), pending.len() as u64));
    }
    let mut offset = 0;
    let chunks = keep_chunks.then(|| {
        let place = |&(hash, length): &(Hash, u64)| {
            let chunk = Chunk { offset, length, hash };
            offset += length;
            chunk
        };
        hashes.iter().map(place).collect()
    });
    let size = hashes.iter().map(|(_, len)| len).sum();
    Ok(Hashed { path: path.display().to_string(), size, hash: merkle::file_hash(&hashes), chunks })
}
