//! The official CAS test server: prints its URL and serves until standard input ends.
//!
//! Its one argument is a folder to keep everything in; without it, it keeps everything in memory.

use hfcrypt::hub::Endpoint;
use hfcrypt::hub::token::TokenProvider;
use std::error::Error;
use tokio::io::{AsyncReadExt, stdin};
use xet_client::cas_client::LocalTestServerBuilder;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The official crates are built without TLS of their own and want a provider installed, which this does on the way.
    Endpoint::open("http://127.0.0.1", TokenProvider::fixed(String::new())).await?;
    let mut builder = LocalTestServerBuilder::new();
    if let Some(folder) = std::env::args_os().nth(1) {
        builder = builder.with_disk_location(folder);
    }
    let server = builder.start().await;
    println!("{}", server.http_endpoint());
    stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}
