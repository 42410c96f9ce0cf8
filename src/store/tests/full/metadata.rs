//! Metadata objects through the whole client.

use super::{Stack, done, stream};
use crate::hub::{BatchOp, Hub};
use crate::store::testing::{bucket, path};
use crate::store::{Change, Described, Error, Expect, Op, View, metadata::MAX_METADATA};

async fn put_described(view: &dyn View, at: &str, content: &[u8], json: &[u8]) {
    let session = view.put().await.unwrap();
    let stored = session.add(stream(content)).await.unwrap();
    let metadata = Some(session.add_metadata(json).await.unwrap());
    session.finish().await.unwrap();
    let change = Change::Put { stored, mtime: time::OffsetDateTime::UNIX_EPOCH, metadata };
    done(view, Op { path: path(at), expect: Expect::Any, change }).await;
}

async fn described(view: &dyn View, at: &str) -> Described {
    view.described(&[path(at)]).await.unwrap().pop().unwrap()
}

async fn json(view: &dyn View, at: &str) -> Option<Vec<u8>> {
    let object = described(view, at).await.metadata?;
    Some(view.metadata(&object).await.unwrap()?.trim_ascii_end().to_vec())
}

#[tokio::test]
async fn metadata_is_read_by_every_view_of_the_key_and_shown_by_none() {
    let stack = Stack::new().await;
    for (view, key) in [(stack.keyed().await, Some(())), (stack.plain().await, None)] {
        put_described(&*view, "d/f", b"content", br#"{"a":"canary text"}"#).await;
        assert_eq!(json(&*view, "d/f").await.unwrap(), br#"{"a":"canary text"}"#);
        assert_eq!(described(&*view, "d/g").await, Described { file: None, metadata: None });
        let again = if key.is_some() { stack.keyed().await } else { stack.plain().await };
        assert_eq!(json(&*again, "d/f").await.unwrap(), br#"{"a":"canary text"}"#);
        if key.is_some() {
            let shown: Vec<_> = view.list(&path("")).await.unwrap().entries.into_iter().map(|e| e.name).collect();
            assert_eq!((shown, view.hidden().foreign), (vec!["d".to_owned()], 0));
        }
        let rename = Change::Rename { to: path("moved"), expect_to: Expect::Absent };
        done(&*view, Op { path: path("d/f"), expect: Expect::Any, change: rename }).await;
        assert_eq!((json(&*view, "d/f").await, json(&*view, "moved").await.is_some()), (None, true));
        done(&*view, Op { path: path("moved"), expect: Expect::Any, change: Change::Delete }).await;
        let left = stack.endpoint.client().tree(&bucket(), "", true).await.unwrap();
        assert!(left.iter().all(|entry| !entry.key().contains("-M2") && !entry.key().contains(".hugbucket")));
    }
}

#[tokio::test]
async fn damaged_metadata_is_none_and_hides_nothing() {
    let stack = Stack::new().await;
    let view = stack.keyed().await;
    put_described(&*view, "f", b"content", b"{}").await;
    let key = crate::store::testing::counting_keys().metadata().key("f");
    stack.raw(&key, b"HFEM\x02 and no metadata").await;
    assert_eq!(json(&*view, "f").await, None);
    assert!(described(&*view, "f").await.file.is_some());
    // The tree is empty without the file, whatever metadata is left.
    done(&*view, Op { path: path("f"), expect: Expect::Any, change: Change::Delete }).await;
    stack.raw(&key, b"an orphan").await;
    stack.keyed().await;
}

#[tokio::test]
async fn bucket_with_orphaned_metadata_alone_counts_as_empty() {
    let stack = Stack::new().await;
    let view = stack.plain().await;
    let buckets = crate::store::buckets::Buckets::new(stack.endpoint.clone());
    put_described(&*view, "f", b"content", b"{}").await;
    assert!(matches!(buckets.remove_empty(&bucket()).await, Err(Error::NotEmpty(1))));
    let client = stack.endpoint.client();
    client.batch(&bucket(), &[BatchOp::Delete { key: "f".into() }]).await.unwrap();
    buckets.remove_empty(&bucket()).await.unwrap();
}

#[tokio::test]
async fn too_much_metadata_is_refused() {
    let stack = Stack::new().await;
    for view in [stack.keyed().await, stack.plain().await] {
        let session = view.put().await.unwrap();
        let refused = session.add_metadata(&vec![b' '; MAX_METADATA + 1]).await;
        assert!(matches!(refused, Err(Error::Unstorable(_))), "{refused:?}");
        put_described(&*view, "large", b"content", &vec![b'1'; MAX_METADATA]).await;
        assert_eq!(json(&*view, "large").await.map(|json| json.len()), Some(MAX_METADATA));
        done(&*view, Op { path: path("large"), expect: Expect::Any, change: Change::Delete }).await;
    }
}
