//! `inspect`.

use crate::cli::exit::{Failure, Outcome};
use crate::cli::print_json;
use crate::cli::term::say;
use crate::crypto::geometry::HEADER_LEN;
use crate::crypto::{Format, header};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

/// Says what can be said without a key. None of it is authenticated, and the output says so.
pub(super) fn inspect(path: &Path, json: bool) -> Outcome<ExitCode> {
    let about = |e: std::io::Error| Failure::from(e).about(path.display());
    let file = File::open(path).map_err(about)?;
    let len = file.metadata().map_err(about)?.len();
    let mut head = Vec::with_capacity(HEADER_LEN);
    file.take(HEADER_LEN as u64).read_to_end(&mut head).map_err(about)?;
    let probe = header::probe(&head, len).map_err(|e| Failure::from(e).about(path.display()))?;
    let (version, exact) = match probe.format {
        Format::V1 => (1, true),
        Format::V2 => (2, false),
    };
    let file_id = probe.file_id.map(|id| id.0.iter().map(|b| format!("{b:02x}")).collect::<String>());
    if json {
        print_json(&serde_json::json!({
            "format": version, "algorithm": "aegis-128x2", "stored_len": len, "records": probe.records,
            "plain_len": exact.then_some(probe.plain_len.0), "plain_len_at_most": probe.plain_len.0,
            "file_id": file_id, "authenticated": false,
        }))?;
    } else {
        say!(
            "format     {version} (aegis-128x2, records of 65536 bytes)\nstored     {len} bytes, {} records",
            probe.records
        );
        say!("plaintext  {} {} bytes", if exact { "says it has" } else { "at most" }, probe.plain_len.0);
        if let Some(id) = file_id {
            say!("file id    {id}");
        }
        say!("nothing of this is authenticated: `hfcrypt verify` does that with the key");
    }
    Ok(ExitCode::SUCCESS)
}
