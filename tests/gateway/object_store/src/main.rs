//! Runs the checks that the crate `object_store` publishes for stores, against the S3 server of the environment.
//!
//! The settings are those of `AmazonS3Builder::from_env` (`AWS_ENDPOINT`, `AWS_BUCKET`, and so on). The bucket is
//! emptied before each check. A check prints `NAME ok` or `NAME failed`, and the message of a failure goes to stderr.
//! The exit code is 1 if a check has failed.
//!
//! The argument is a text. The last check writes the object `kept/parts` in two parts that contain this text, and the
//! object `kept/tags` with a tag. It prints a signed URL of the latter. Both objects stay in the bucket.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum, S3CopyIfNotExists};
use object_store::signer::{Method, Signer};
use object_store::{ObjectStore, ObjectStoreExt, PutOptions, TagSet, integration, path::Path};
use tokio::runtime::Runtime;

/// Length of a part of `kept/parts`, bytes: the smallest that S3 allows for a part that isn't the last one.
const PART_LEN: usize = 5 << 20;

fn main() -> ExitCode {
    let marker = std::env::args().nth(1).expect("a text for the object that stays");
    rustls::crypto::ring::default_provider().install_default().expect("no other provider");
    let mut checks = Checks { runtime: Runtime::new().expect("a runtime"), failures: 0 };
    checks.published(&store(builder()));
    let by_parts = store(builder().with_copy_if_not_exists(S3CopyIfNotExists::Multipart));
    checks.run("copy_if_not_exists", integration::copy_if_not_exists(&by_parts));
    checks.run("copy_rename_nonexistent_object", integration::copy_rename_nonexistent_object(&by_parts));
    let unsigned = store(builder().with_unsigned_payload(true));
    checks.run("put_get_delete_list unsigned", integration::put_get_delete_list(&unsigned));
    for checksum in [Checksum::SHA256, Checksum::CRC64NVME] {
        let checked = store(builder().with_checksum_algorithm(checksum));
        checks.run(&format!("put_get_delete_list {checksum}"), integration::put_get_delete_list(&checked));
    }
    checks.run("kept", keep(&store(builder()), &marker));
    ExitCode::from(u8::from(checks.failures > 0))
}

fn builder() -> AmazonS3Builder {
    AmazonS3Builder::from_env()
}

fn store(builder: AmazonS3Builder) -> AmazonS3 {
    builder.build().expect("the settings of a store")
}

struct Checks {
    runtime: Runtime,
    failures: usize,
}

impl Checks {
    /// Empties the bucket and runs a check, which panics if it fails.
    fn run(&mut self, name: &str, check: impl Future<Output = ()>) {
        self.runtime.block_on(empty(&store(builder())));
        let passed = catch_unwind(AssertUnwindSafe(|| self.runtime.block_on(check))).is_ok();
        println!("{name} {}", if passed { "ok" } else { "failed" });
        self.failures += usize::from(!passed);
    }

    /// Runs the published checks that fit a store with its default settings.
    fn published(&mut self, s3: &AmazonS3) {
        self.run("put_get_delete_list", integration::put_get_delete_list(s3));
        self.run("put_get_attributes", integration::put_get_attributes(s3));
        self.run("get_opts", integration::get_opts(s3));
        self.run("get_nonexistent_object", async {
            let error = integration::get_nonexistent_object(s3, None).await.unwrap_err();
            assert!(error.to_string().contains("not found"), "{error}");
        });
        self.run("stream_get", integration::stream_get(s3));
        self.run("list_uses_directories_correctly", integration::list_uses_directories_correctly(s3));
        self.run("list_with_delimiter", integration::list_with_delimiter(s3));
        self.run("list_with_offset_exclusivity", integration::list_with_offset_exclusivity(s3));
        self.run("list_paginated", integration::list_paginated(s3, s3));
        self.run("rename_and_copy", integration::rename_and_copy(s3));
        self.run("multipart", integration::multipart(s3, s3));
        self.run("multipart_with_opts", integration::multipart_with_opts(s3, s3));
        self.run("multipart_put_part_out_of_order", integration::multipart_put_part_out_of_order(s3, s3));
        self.run("multipart_race_condition", integration::multipart_race_condition(s3, true));
        self.run("multipart_out_of_order", integration::multipart_out_of_order(s3));
        self.run("put_opts", integration::put_opts(s3, true));
    }
}

/// Removes what another check has left: some of them need an empty bucket.
async fn empty(s3: &AmazonS3) {
    let left: Vec<_> = s3.list(None).try_collect().await.expect("a list of the bucket");
    for object in left {
        s3.delete(&object.location).await.expect("an object is removed");
    }
}

/// Writes the objects that the test looks at afterwards, and prints a signed URL.
async fn keep(s3: &AmazonS3, marker: &str) {
    let mut upload = s3.put_multipart(&Path::from("kept/parts")).await.unwrap();
    let text = marker.repeat(PART_LEN / marker.len() + 1);
    upload.put_part(text[..PART_LEN].to_owned().into()).await.unwrap();
    upload.put_part(marker.to_owned().into()).await.unwrap();
    upload.complete().await.unwrap();
    let mut tags = TagSet::default();
    tags.push("kind", "a test");
    let tagged = Path::from("kept/tags");
    let options = PutOptions { tags, ..PutOptions::default() };
    s3.put_opts(&tagged, marker.to_owned().into(), options).await.unwrap();
    println!("{}", s3.signed_url(Method::GET, &tagged, Duration::from_secs(60)).await.unwrap());
}
