//! The least work of any client: one file through one bare connection, with the necessary hashes,
//! on one thread.
//!
//! `floor upload ADDRESS FILE` reads, finds chunks, hashes them and sends; `floor download ADDRESS LEN FILE` receives,
//! hashes pieces of a chunk's average length and writes. There is no protocol, no tree and nothing that is compressed.

use hfcrypt::xet::chunker::{Chunker, MAX_CHUNK};
use hfcrypt::xet::download::Place;
use hfcrypt::xet::hash::chunk_hash;
use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Bytes of a chunk, on average.
const CHUNK: usize = 64 * 1024;
/// Bytes moved at once.
const BUFFER: usize = 512 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["upload", address, path] => upload(TcpStream::connect(address)?, File::open(path)?),
        ["download", address, len, path] => download(TcpStream::connect(address)?, len.parse()?, &File::create(path)?),
        _ => Err("see the top of this program's source".into()),
    }
}

fn upload(mut peer: TcpStream, mut file: File) -> Result<(), Box<dyn Error>> {
    let mut chunker = Chunker::new();
    // Behind the beginning of a chunk that the buffer before ended in.
    let mut buffer = vec![0; MAX_CHUNK + BUFFER];
    let mut kept = 0;
    loop {
        let read = file.read(&mut buffer[kept..][..BUFFER])?;
        let (mut start, mut unseen, end) = (0, kept, kept + read);
        while let Some(len) = chunker.next_boundary(&buffer[unseen..end]) {
            unseen += len;
            black_box(chunk_hash(&buffer[start..unseen]));
            start = unseen;
        }
        peer.write_all(&buffer[kept..end])?;
        if read == 0 {
            black_box(chunk_hash(&buffer[..end]));
            return Ok(());
        }
        buffer.copy_within(start..end, 0);
        kept = end - start;
    }
}

fn download(mut peer: TcpStream, len: u64, file: &File) -> Result<(), Box<dyn Error>> {
    file.reserve(len)?;
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    while at < len {
        let wanted = BUFFER.min(usize::try_from(len - at)?);
        peer.read_exact(&mut buffer[..wanted])?;
        buffer[..wanted].chunks(CHUNK).for_each(|chunk| _ = black_box(chunk_hash(chunk)));
        file.write_at(at, &buffer[..wanted])?;
        at += wanted as u64;
    }
    Ok(())
}
