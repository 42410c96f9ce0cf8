//! Maps the bucket names of clients to buckets of the Hub, and back.
//!
//! A bucket of the Hub is `namespace/name`. Clients know one flat list of names:
//!
//! - `name` is the bucket `name` of the default namespace,
//! - `namespace.name` is a bucket of another namespace that the gateway serves,
//! - `me.name` is a bucket of the default namespace too. A list shows this form for a name that would otherwise
//!   mean a bucket of another namespace.
//!
//! Names of the Hub may have capitals, `_` and `.`. S3 doesn't allow those, but clients send them.

use super::Error;
use crate::store::buckets::BucketId;

/// Prefix that always means the default namespace.
const OWN: &str = "me";

/// The namespaces that a gateway serves.
#[derive(Clone, Debug)]
pub struct Namespaces {
    default: String,
    others: Vec<String>,
}

impl Namespaces {
    /// `default` is the namespace of names without a prefix. `others` are served too.
    pub fn new(default: String, others: Vec<String>) -> Self {
        let others = others.into_iter().filter(|other| *other != default && other != OWN).collect();
        Self { default, others }
    }

    /// Returns the served namespaces, the default one first.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.default.as_str()).chain(self.others.iter().map(String::as_str))
    }

    /// Returns the bucket that a client means.
    pub fn bucket(&self, name: &str) -> Result<BucketId, Error> {
        let (namespace, name) = match name.split_once('.') {
            Some((OWN, name)) => (self.default.as_str(), name),
            Some((namespace, name)) if self.others.iter().any(|other| other == namespace) => (namespace, name),
            _ => (self.default.as_str(), name),
        };
        BucketId::new(namespace, name).map_err(|_| Error::InvalidBucketName)
    }

    /// Returns the name of a bucket for clients. `None`: its namespace isn't served.
    pub fn name(&self, bucket: &BucketId) -> Option<String> {
        if bucket.namespace() != self.default {
            let other = self.others.iter().find(|other| *other == bucket.namespace())?;
            return Some(format!("{other}.{}", bucket.name()));
        }
        let means_itself = self.bucket(bucket.name()).is_ok_and(|found| found == *bucket);
        Some(if means_itself { bucket.name().to_owned() } else { format!("{OWN}.{}", bucket.name()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_has_one_name_that_means_it() {
        let namespaces = Namespaces::new("alice".into(), vec!["org".into(), "alice".into(), "me".into()]);
        assert_eq!(namespaces.all().collect::<Vec<_>>(), ["alice", "org"]);
        let cases = [
            ("alice", "data", "data"),
            ("alice", "Weird_Name.v2", "Weird_Name.v2"),
            ("alice", "org.data", "me.org.data"),
            ("alice", "me.data", "me.me.data"),
            ("alice", "other.data", "other.data"),
            ("org", "data", "org.data"),
            ("org", "a.b", "org.a.b"),
        ];
        for (namespace, name, shown) in cases {
            let bucket = BucketId::new(namespace, name).unwrap();
            assert_eq!(namespaces.name(&bucket).as_deref(), Some(shown));
            assert_eq!(namespaces.bucket(shown).unwrap(), bucket, "{shown}");
        }
        assert_eq!(namespaces.bucket("me.data").unwrap(), BucketId::new("alice", "data").unwrap());
        assert_eq!(namespaces.name(&BucketId::new("stranger", "data").unwrap()), None);
        for name in ["", "a b", "..", "org.", "ü"] {
            assert!(matches!(namespaces.bucket(name), Err(Error::InvalidBucketName)), "{name:?}");
        }
    }
}
