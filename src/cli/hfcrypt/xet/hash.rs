//! `xet hash`.

use crate::cli::exit::{Failure, Outcome};
use crate::cli::term::say;
use crate::cli::{print_json, term};
use crate::xet::hash::chunk_hashes;
use crate::xet::{Hash, merkle};
use serde::Serialize;
use std::fs::File;
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
    let hashes = chunk_hashes(File::open(path)?)?;
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
