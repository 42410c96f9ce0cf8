//! `xet inspect`.

use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::print_json;
use crate::cli::term::say;
use crate::xet::merkle::xorb_hash;
use crate::xet::shard::{self, Shard};
use crate::xet::xorb;
use crate::xet::{Error, Hash, Scheme, hash};
use serde::Serialize;
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

/// What every shard begins with; no chunk header does.
const SHARD_START: &[u8] = b"HFRepoMetaData";
/// What ends the chunks of a xorb, where something follows them.
const FOOTER_START: &[u8] = b"XETBLOB";
/// Both formats end at the same order of size; nothing longer is read.
const MOST: usize = if xorb::MAX_SERIALISED > shard::MAX_SHARD { xorb::MAX_SERIALISED } else { shard::MAX_SHARD };

pub(super) fn inspect(path: &Path, chunks: bool, json: bool) -> Outcome<ExitCode> {
    let about = |e: std::io::Error| Failure::from(e).about(path.display());
    let mut bytes = Vec::new();
    File::open(path).map_err(about)?.take(MOST as u64 + 1).read_to_end(&mut bytes).map_err(about)?;
    if bytes.len() > MOST {
        return Err(Failure::new(Exit::Integrity, "longer than any xorb or shard").about(path.display()));
    }
    let done = match bytes.starts_with(SHARD_START) {
        true => inspect_shard(&bytes, chunks, json),
        false => inspect_xorb(&bytes, chunks, json),
    };
    done.map_err(|failure| failure.about(path.display()))
}

/// A chunk of a xorb.
#[derive(Serialize)]
struct Chunk {
    hash: Hash,
    /// In the file.
    offset: usize,
    stored: u32,
    length: u32,
    scheme: &'static str,
}

fn inspect_xorb(bytes: &[u8], list: bool, json: bool) -> Outcome<ExitCode> {
    let (chunks, area_len) = chunks_of(bytes)?;
    let leaves: Vec<_> = chunks.iter().map(|chunk| (chunk.hash, u64::from(chunk.length))).collect();
    let hash = xorb_hash(&leaves);
    let footer = match area_len == bytes.len() {
        true => "none",
        // Checks all of it against the chunk headers, and its hashes against its own xorb hash.
        false if xorb::parse_footer(bytes)?.chunks.iter().map(|chunk| chunk.hash).eq(chunks.iter().map(|c| c.hash)) => {
            "agrees with the chunks"
        }
        false => return Err(Failure::from(Error::HashMismatch { what: "footer", expected: hash })),
    };
    let length: u64 = leaves.iter().map(|(_, len)| len).sum();
    let count = |name: &str| chunks.iter().filter(|chunk| chunk.scheme == name).count();
    let schemes = [Scheme::None, Scheme::Lz4, Scheme::Bg4Lz4].map(name);
    if json {
        let mut told = json!({
            "kind": "xorb", "hash": hash, "chunk_count": chunks.len(), "length": length, "stored": area_len, "footer": footer,
            "schemes": schemes.iter().map(|name| (*name, count(name))).collect::<std::collections::BTreeMap<_, _>>(),
        });
        if list {
            told["chunks"] = json!(chunks);
        }
        print_json(&told)?;
        return Ok(ExitCode::SUCCESS);
    }
    say!("xorb     {hash}\nchunks   {}, {length} bytes stored in {area_len}\nfooter   {footer}", chunks.len());
    say!("schemes  {}", schemes.map(|name| format!("{name} {}", count(name))).join(", "));
    if list {
        say!("index  hash  offset  stored  length  scheme");
        for (index, Chunk { hash, offset, stored, length, scheme }) in chunks.iter().enumerate() {
            say!("{index:>5}  {hash} {offset:>9} {stored:>7} {length:>7}  {scheme}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Decodes all chunks; gives the length of the bytes that they take too. A part of a xorb, as a
/// range of it is served, is chunks as well.
fn chunks_of(bytes: &[u8]) -> Outcome<(Vec<Chunk>, usize)> {
    let mut chunks = Vec::new();
    let mut raw = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() && !rest.starts_with(FOOTER_START) {
        let offset = bytes.len() - rest.len();
        let damaged = |error: Error| Failure::from(error).about(format!("chunk {} at byte {offset}", chunks.len()));
        let (header, stored) = xorb::take_chunk(&mut rest).map_err(damaged)?;
        let hash = hash::chunk_hash(xorb::open_chunk(header, stored, &mut raw).map_err(damaged)?);
        let (stored, length) = (header.stored_len, header.raw_len);
        chunks.push(Chunk { hash, offset, stored, length, scheme: name(header.scheme) });
    }
    if chunks.is_empty() {
        return Err(Failure::new(Exit::Integrity, "neither a xorb nor a shard: it begins with no chunk"));
    }
    Ok((chunks, bytes.len() - rest.len()))
}

fn name(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::None => "none",
        Scheme::Lz4 => "lz4",
        Scheme::Bg4Lz4 => "bg4-lz4",
    }
}

/// Which of the forms a shard comes in (Xet spec, 7.6).
fn form(shard: &Shard) -> &'static str {
    match &shard.footer {
        None => "upload",
        Some(_) if shard.files.is_empty() => "dedup answer",
        Some(_) => "stored",
    }
}

fn inspect_shard(bytes: &[u8], list: bool, json: bool) -> Outcome<ExitCode> {
    let shard = Shard::parse(bytes)?;
    let keyed = shard.footer.as_ref().is_some_and(|footer| footer.hmac_key != [0; 32]);
    let hash = hash::chunk_hash(bytes);
    let file_len = |file: &shard::FileInfo| file.segments.iter().map(|term| u64::from(term.raw_len)).sum::<u64>();
    if json {
        let files = shard.files.iter().map(|file| {
            let term = |(i, term): (usize, &shard::Segment)| {
                json!({"xorb": term.xorb, "start": term.start, "end": term.end, "length": term.raw_len, "verification": file.verification.get(i)})
            };
            let terms: Vec<_> = file.segments.iter().enumerate().map(term).collect();
            let mut told = json!({"hash": file.hash, "length": file_len(file), "term_count": terms.len(), "verified": file.verification.len() == terms.len()});
            if let Some(digest) = file.sha256 {
                told["sha256"] = json!(hex(&digest));
            }
            if list {
                told["terms"] = json!(terms);
            }
            told
        });
        let xorbs = shard.xorbs.iter().map(|xorb| {
            let chunk = |chunk: &shard::ShardChunk| json!({"hash": chunk.hash, "offset": chunk.raw_start, "length": chunk.raw_len, "flags": chunk.flags});
            let mut told = json!({"hash": xorb.hash, "length": xorb.raw_len, "stored": xorb.stored_len, "chunk_count": xorb.chunks.len()});
            if list {
                told["chunks"] = xorb.chunks.iter().map(chunk).collect();
            }
            told
        });
        let (files, xorbs): (Vec<_>, Vec<_>) = (files.collect(), xorbs.collect());
        let footer = shard.footer.as_ref().map(|f| json!({"created": f.created, "expires": f.expires, "keyed": keyed}));
        print_json(
            &json!({"kind": "shard", "form": form(&shard), "hash": hash, "files": files, "xorbs": xorbs, "footer": footer}),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    say!("shard    {hash}\nform     {}", form(&shard));
    if let Some(footer) = &shard.footer {
        let never = footer.expires == u64::MAX;
        let expires = if never { "never".to_owned() } else { footer.expires.to_string() };
        say!(
            "footer   created {}, expires {expires} (Unix seconds), chunk hashes {}",
            footer.created,
            if keyed { "keyed" } else { "plain" }
        );
    }
    for file in &shard.files {
        let proof = if file.verification.len() == file.segments.len() { "with" } else { "without" };
        say!(
            "file     {}  {} bytes in {} terms, {proof} verification hashes",
            file.hash,
            file_len(file),
            file.segments.len()
        );
        for term in file.segments.iter().filter(|_| list) {
            say!("  term   {} [{}, {})  {} bytes", term.xorb, term.start, term.end, term.raw_len);
        }
    }
    for xorb in &shard.xorbs {
        say!(
            "xorb     {}  {} chunks, {} bytes stored in {}",
            xorb.hash,
            xorb.chunks.len(),
            xorb.raw_len,
            xorb.stored_len
        );
        for chunk in xorb.chunks.iter().filter(|_| list) {
            say!("  chunk  {} at {}  {} bytes, flags {:#x}", chunk.hash, chunk.raw_start, chunk.raw_len, chunk.flags);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
