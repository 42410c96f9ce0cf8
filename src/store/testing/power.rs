//! A view over an embedded Hub that can lose its power.

pub(crate) use crate::hub::local::testing::Machine;

use super::{bucket, counting_keys};
use crate::hub::client::bucket_tokens;
use crate::hub::local::testing::IMPATIENCE;
use crate::store::source::{Ends, open_over};
use crate::store::{OpenOptions, Source, View};
use crate::xet::http::{self, HttpCas};
use std::sync::Arc;

/// Opens a bucket of the machine's Hub, as a client with or without a key that has just started.
pub(crate) async fn open_on(machine: &Machine, with_key: bool) -> Arc<dyn View> {
    let (hub, sender) = machine.client();
    let options = http::Options { first_delay: IMPATIENCE, ..http::Options::default() };
    let bucket = crate::hub::require_bucket(&*hub, &bucket(), true).await.unwrap();
    let cas = Arc::new(HttpCas::new(sender, bucket_tokens(hub.clone(), bucket.clone()), options));
    // The address may differ between processes. The source doesn't.
    let source = Source::Bucket { id: bucket.clone(), prefix: String::new() };
    let ends = Ends { hub, bucket, cas, blobs: None, identity: "http://power".into(), endpoint: None };
    let options = OpenOptions { keys: with_key.then(counting_keys), create: true, ..OpenOptions::default() };
    open_over(ends, &source, options).await.unwrap().view
}
