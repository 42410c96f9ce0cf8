//! Stores the content of files that are imported: small ones as blobs in the database, all others in Xet.
//!
//! Content that is stored and not in any commit can't be read by anybody. So an import that fails half way has changed
//! nothing that a client sees, and the next one finds what was stored.

use super::error::ImportError;
use super::folder::Found;
use super::git::{Oid, blob_id, is_pointer, pointer};
use crate::hub::RepoKind;
use crate::hub::local::db::Db;
use crate::xet::compression::Policy;
use crate::xet::{Hash, UploadSession};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

/// Largest file that is a blob whatever its name is, in bytes: the limit of the real Hub.
const LARGEST_BLOB: u64 = 10 * 1024 * 1024;
/// Bytes of blobs that are written in one transaction, unless one alone is larger.
const BATCH: usize = 8 * 1024 * 1024;

/// Blobs that are written in one transaction: it takes a small part of a second.
const BATCH_FILES: usize = 10_000;

/// Ends of names of files that the Hub keeps in LFS by default.
const LFS_ENDS: &[&str] = &[
    ".7z",
    ".arrow",
    ".bin",
    ".bz2",
    ".ckpt",
    ".ftz",
    ".gguf",
    ".gz",
    ".h5",
    ".joblib",
    ".mlmodel",
    ".model",
    ".msgpack",
    ".npy",
    ".npz",
    ".onnx",
    ".ot",
    ".parquet",
    ".pb",
    ".pickle",
    ".pkl",
    ".pt",
    ".pth",
    ".rar",
    ".safetensors",
    ".tar",
    ".tflite",
    ".tgz",
    ".wasm",
    ".xz",
    ".zip",
    ".zst",
];
/// Further ends for datasets: archives, audio, images and videos.
const DATASET_ENDS: &[&str] = &[
    ".aac", ".avro", ".bmp", ".flac", ".gif", ".jpeg", ".jpg", ".lz4", ".mds", ".mp3", ".mp4", ".ogg", ".pcm", ".png",
    ".raw", ".sam", ".tiff", ".wav", ".webm", ".webp",
];

/// A stored file. Sizes are bytes.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) oid: Oid,
    pub(super) size: u64,
    /// SHA-256 and Xet hash; `None` for a blob.
    pub(super) xet: Option<([u8; 32], Hash)>,
}

/// Returns true if a file is kept outside of Git because of its name.
fn is_lfs_name(kind: RepoKind, path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    let is_named = ends(LFS_ENDS) || name.contains(".lfs.") || name.contains(".tar.") || name.contains("tfevents");
    let is_saved_model = path.starts_with("saved_model/") || path.contains("/saved_model/");
    is_named || is_saved_model || (kind == RepoKind::Dataset && ends(DATASET_ENDS))
}

/// Stores files for one import.
pub(super) struct ContentWriter {
    db: Db,
    session: UploadSession,
    kind: RepoKind,
    /// Blobs that are not in the database yet.
    pending: Vec<(Oid, Vec<u8>)>,
    pending_bytes: usize,
}

impl ContentWriter {
    /// A writer that uploads large files with `session`.
    pub(super) fn new(db: Db, session: UploadSession, kind: RepoKind) -> Self {
        Self { db, session, kind, pending: Vec::new(), pending_bytes: 0 }
    }

    /// Stores one file. It may be committed after [`Self::finish`].
    pub(super) async fn add(&mut self, found: &Found) -> Result<Content, ImportError> {
        let is_large = found.size > LARGEST_BLOB || (found.size > 0 && is_lfs_name(self.kind, &found.path));
        if !is_large && let Some(content) = read_small(found).await? {
            return self.add_blob(content).await;
        }
        let sha256 = Arc::new(Mutex::new(Sha256::new()));
        let file = File::open(&found.source).map_err(|source| unreadable(found, source))?;
        let hashed = Hashed { file, sha256: Arc::clone(&sha256) };
        let added = self.session.add_file(hashed, Policy::Auto).await;
        let uploaded = added.map_err(|source| ImportError::Store { path: found.path.clone(), source })?;
        if uploaded.len == 0 {
            // It was emptied meanwhile. The pointer of an empty file is the empty file itself.
            return self.add_blob(Vec::new()).await;
        }
        let digest = sha256.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let digest: [u8; 32] = digest.finalize().into();
        let oid = blob_id(pointer(&digest, uploaded.len).as_bytes());
        Ok(Content { oid, size: uploaded.len, xet: Some((digest, uploaded.hash)) })
    }

    /// Returns when everything is on disk.
    pub(super) async fn finish(mut self) -> Result<(), ImportError> {
        self.flush().await?;
        let finished = self.session.finish().await;
        finished.map(drop).map_err(|source| ImportError::Store { path: "the large files".into(), source })
    }

    async fn add_blob(&mut self, content: Vec<u8>) -> Result<Content, ImportError> {
        let (oid, size) = (blob_id(&content), content.len());
        if self.pending_bytes + size > BATCH || self.pending.len() >= BATCH_FILES {
            self.flush().await?;
        }
        self.pending_bytes += size;
        self.pending.push((oid, content));
        Ok(Content { oid, size: size as u64, xet: None })
    }

    async fn flush(&mut self) -> Result<(), ImportError> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let write = move |transaction: &rusqlite::Transaction<'_>| {
            let sql = "INSERT INTO git_blobs (oid, content) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
            let mut insert = transaction.prepare_cached(sql)?;
            pending.iter().try_for_each(|(oid, content)| insert.execute((oid, content)).map(drop))?;
            Ok::<_, ImportError>(())
        };
        self.db.write(write).await
    }
}

/// Reads a file that may be a blob; `None` if it has become too large for that, or if it is an LFS pointer.
///
/// As a blob, a pointer would stand for the content that it names: for Git, and for the files of this Hub.
async fn read_small(found: &Found) -> Result<Option<Vec<u8>>, ImportError> {
    let (path, limit) = (found.source.clone(), LARGEST_BLOB + 1);
    let read = move || {
        let mut content = Vec::new();
        File::open(path)?.take(limit).read_to_end(&mut content).map(|_| content)
    };
    let content = tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let content = content.map_err(|source| unreadable(found, source))?;
    Ok(Some(content).filter(|content| content.len() as u64 <= LARGEST_BLOB && !is_pointer(content)))
}

fn unreadable(found: &Found, source: io::Error) -> ImportError {
    super::folder::FolderError::Read { path: found.source.clone(), source }.into()
}

/// A file whose SHA-256 is computed while it is read.
struct Hashed {
    file: File,
    sha256: Arc<Mutex<Sha256>>,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.sha256.lock().unwrap_or_else(PoisonError::into_inner).update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_patterns_name_files_outside_of_git() {
        for path in ["a/model.safetensors", "x.bin", "x.tar.bz3", "events.out.tfevents.1", "saved_model/x", "a/x.gguf"]
        {
            assert!(is_lfs_name(RepoKind::Model, path), "{path}");
        }
        for path in ["config.json", "README.md", "x.bin.txt", "bin", "a.zip/x", "picture.png", "my_saved_model/x"] {
            assert!(!is_lfs_name(RepoKind::Model, path), "{path}");
        }
        assert!(is_lfs_name(RepoKind::Dataset, "picture.png"));
    }
}
