//! Access keys of the gateway, and what each of them may do.

use super::Error;
use serde::Deserialize;
use std::collections::HashMap;
use zeroize::Zeroizing;

/// What an access key may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// List and read.
    Read,
    /// List, read, write and remove.
    #[default]
    Write,
}

/// Where an access key may do it: a bucket, or the keys of a bucket that begin with a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Scope {
    bucket: String,
    prefix: String,
}

impl TryFrom<String> for Scope {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (bucket, prefix) = text.split_once('/').unwrap_or((&text, ""));
        match bucket.is_empty() {
            true => Err("a scope has the form BUCKET or BUCKET/PREFIX"),
            false => Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() }),
        }
    }
}

/// An access key.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessKey {
    /// Its id, which requests name.
    pub access_key_id: String,
    /// Its secret, which signs requests.
    pub secret_access_key: Zeroizing<String>,
    /// What it may do.
    #[serde(default)]
    pub permission: Permission,
    /// Where. Without a scope: everywhere.
    #[serde(default)]
    pub scopes: Vec<Scope>,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccessKey({}, {:?}, {:?})", self.access_key_id, self.permission, self.scopes)
    }
}

impl AccessKey {
    /// Fails if the key may not do `needed` with a place. `bucket`: `None` for the list of buckets, which every key may
    /// see in part (see [`AccessKey::may_see`]). `key`: the object's key, or the prefix of a list; `None` for the
    /// bucket
    /// itself.
    pub fn check(&self, needed: Permission, bucket: Option<&str>, key: Option<&str>) -> Result<(), Error> {
        if needed > self.permission {
            return Err(Error::Denied);
        }
        let Some(bucket) = bucket else { return Ok(()) };
        let covers = |scope: &Scope| {
            let prefix = scope.prefix.as_str();
            scope.bucket == bucket && (prefix.is_empty() || key.is_some_and(|key| key.starts_with(prefix)))
        };
        if self.scopes.is_empty() || self.scopes.iter().any(covers) { Ok(()) } else { Err(Error::Denied) }
    }

    /// Returns true if the key may know of a folder: one of its scopes covers it or lies in it.
    /// `folder`: the prefix of its keys, which ends in `/`; empty for the bucket itself.
    pub fn may_enter(&self, bucket: &str, folder: &str) -> bool {
        let meets = |scope: &Scope| {
            scope.bucket == bucket && (folder.starts_with(&scope.prefix) || scope.prefix.starts_with(folder))
        };
        self.scopes.is_empty() || self.scopes.iter().any(meets)
    }

    /// Returns true if a secret is the key's. Takes the same time for all secrets of one length.
    pub fn has_secret(&self, secret: &str) -> bool {
        // Comparing hashes of blake3 takes constant time.
        blake3::hash(secret.as_bytes()) == blake3::hash(self.secret_access_key.as_bytes())
    }

    /// Returns true if the key has a scope in a bucket.
    pub fn may_see(&self, bucket: &str) -> bool {
        self.scopes.is_empty() || self.scopes.iter().any(|scope| scope.bucket == bucket)
    }
}

/// All access keys of a gateway.
#[derive(Clone, Debug, Default)]
pub struct AccessKeys(HashMap<String, AccessKey>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<AccessKey>,
}

impl AccessKeys {
    /// Collects access keys. Fails if an id is empty or comes twice, or a secret is empty.
    pub fn new(keys: Vec<AccessKey>) -> Result<Self, String> {
        let mut all = HashMap::new();
        for key in keys {
            if key.access_key_id.is_empty() || key.secret_access_key.is_empty() {
                return Err("an access key has an empty id or secret".into());
            }
            if let Some(twice) = all.insert(key.access_key_id.clone(), key) {
                return Err(format!("the access key {} comes twice", twice.access_key_id));
            }
        }
        Ok(Self(all))
    }

    /// Reads access keys in TOML: a table `[[key]]` for each.
    pub fn parse(text: &str) -> Result<Vec<AccessKey>, String> {
        // The message of the parser may quote a secret.
        let at = |error: toml::de::Error| match error.span() {
            Some(span) => format!("line {}: no valid access key", text[..span.start].matches('\n').count() + 1),
            None => "it is no TOML file with a table [[key]] for each access key".to_owned(),
        };
        toml::from_str::<File>(text).map(|file| file.key).map_err(at)
    }

    /// Returns true if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the access key of this id.
    pub fn get(&self, id: &str) -> Option<&AccessKey> {
        self.0.get(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Permission::{Read, Write};

    const FILE: &str = r#"
        [[key]]
        access_key_id = "admin"
        secret_access_key = "s1"

        [[key]]
        access_key_id = "reader"
        secret_access_key = "s2"
        permission = "read"
        scopes = ["data", "models/public/"]
    "#;

    #[test]
    fn access_key_may_do_what_its_scopes_cover() {
        let keys = AccessKeys::new(AccessKeys::parse(FILE).unwrap()).unwrap();
        let (admin, reader) = (keys.get("admin").unwrap(), keys.get("reader").unwrap());
        for (bucket, key) in [(None, None), (Some("any"), None), (Some("any"), Some("key"))] {
            assert!(admin.check(Write, bucket, key).is_ok());
        }
        let allowed =
            [(None, None), (Some("data"), None), (Some("data"), Some("k")), (Some("models"), Some("public/k"))];
        for (bucket, key) in allowed {
            assert!(reader.check(Read, bucket, key).is_ok(), "{bucket:?} {key:?}");
            assert!(reader.check(Write, bucket, key).is_err());
        }
        let denied = [
            ("other", None),
            ("models", None),
            ("models", Some("private/k")),
            ("models", Some("")),
            ("dat", Some("k")),
        ];
        for (bucket, key) in denied {
            assert!(reader.check(Read, Some(bucket), key).is_err(), "{bucket} {key:?}");
        }
        assert!(reader.may_see("models") && !reader.may_see("other") && admin.may_see("other"));
        assert!(keys.get("nobody").is_none());
        for (bucket, folder, may) in [
            ("models", "", true),
            ("models", "public/", true),
            ("models", "public/deep/", true),
            ("models", "private/", false),
            ("models", "pub/", false),
            ("data", "any/", true),
            ("other", "", false),
        ] {
            assert_eq!(reader.may_enter(bucket, folder), may, "{bucket} {folder}");
        }
        assert!(admin.may_enter("other", "x/") && admin.has_secret("s1") && !admin.has_secret("s2"));
    }

    #[test]
    fn faults_of_file_name_the_line_and_no_secret() {
        let wrong = FILE.replace("permission = \"read\"", "permission = \"all\"");
        let error = AccessKeys::parse(&wrong).unwrap_err();
        assert!(error.starts_with("line 9: ") && !error.contains("s2"), "{error}");
        let number = AccessKeys::parse(&FILE.replace("\"s2\"", "123456")).unwrap_err();
        assert!(number.starts_with("line 8: ") && !number.contains("123456"), "{number}");
        assert!(AccessKeys::parse("[[key]]\naccess_key_id = \"a\"").is_err());
        assert!(AccessKeys::parse("[[key]]\nscopes = [\"/x\"]").is_err());
        let twice = AccessKeys::parse(&FILE.replace("reader", "admin")).unwrap();
        assert!(AccessKeys::new(twice).unwrap_err().contains("twice"));
        let debug = format!("{:?}", AccessKeys::parse(FILE).unwrap());
        assert!(!debug.contains("s1"), "{debug}");
    }
}
