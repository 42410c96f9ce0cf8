//! `quickstart`: no account, no flags. Everything lies in one folder, so everything is undone by removing it.

use super::start::Orders;
use super::{mountpoint, registry, start};
use crate::cli::args::{HubArgs, MountArgs, SourceText, read_key_file};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::term::say;
use crate::cli::{CommonArgs, dirs, hfcrypt};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// The bucket it makes.
const BUCKET: &str = "local/quickstart";

/// Only to have every option at its default.
#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    mount: MountArgs,
}

/// `quickstart`.
pub(super) async fn quickstart(common: &CommonArgs, point: PathBuf) -> Outcome<ExitCode> {
    let folder = dirs::data_home()?.join("hf-mount/quickstart");
    dirs::make_private(&folder).map_err(|e| Failure::from(e).about(folder.display()))?;
    let key = folder.join("key.bin");
    let hub = folder.join("hub");
    let made = !key.exists();
    if made {
        hfcrypt::keygen::write_new(&key, false)?;
    }
    let id = crate::crypto::Keys::derive(&read_key_file(&key)?.master).id();
    let already = mountpoint::absolute(&point).ok().and_then(|point| registry::find(&point).ok().flatten());
    match already
        .filter(|record| record.is_alive() && record.bucket == BUCKET && mountpoint::is_mounted(&record.mountpoint))
    {
        Some(_) => say!("{} is mounted already", point.display()),
        None => {
            let mut mount = Defaults::parse_from(["quickstart"]).mount;
            let endpoint = url::Url::from_file_path(&hub)
                .map_err(|()| Failure::new(Exit::System, format!("{}: not an absolute path", hub.display())))?;
            mount.hub = HubArgs { hub_endpoint: Some(endpoint.into()), ..Default::default() };
            mount.source.encryption_key_file = Some(key.clone());
            mount.source.create = true;
            let mount = MountArgs { cache_dir: Some(mount.cache_dir()?), ..mount };
            start::detach_dead(&point)?;
            let (mountpoint, made) = mountpoint::prepare(&point)?;
            let orders =
                Orders { common: common.clone(), mount, source: SourceText::Bucket(BUCKET.to_owned()), mountpoint };
            start::launch(&orders).await?;
            made.keep();
            say!("mounted an encrypted bucket on {}", orders.mountpoint.display());
        }
    }
    say!("  key:   {} (id {id}{})", key.display(), if made { ", new" } else { "" });
    say!("  Hub:   {} (embedded; it only ever holds ciphertext)", hub.display());
    say!("  keep a copy of the key elsewhere: without it the data is lost");
    say!("to unmount:  hf-mount stop {}", point.display());
    say!("to undo:     rm -r {}", folder.display());
    Ok(ExitCode::SUCCESS)
}
