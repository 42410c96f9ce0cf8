//! The sources of the Hub token (CLI contract: `--token-file`, `--hf-token`, `HF_TOKEN`, the file
//! that `hf auth login` writes).
//!
//! A file is read again for every request, so that a rotated token is taken up without a restart. Token bytes are wiped
//! when dropped and appear in no error and no log.

use super::Error;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Longest token file read, in bytes. Tokens have some dozens; signed ones (OIDC) a few thousand.
const MAX_FILE: usize = 16 * 1024;

/// Token files read at once: more would help nobody, and one that can't be read holds a thread.
const READERS: usize = 4;

/// A secret text: wiped on drop, no revealing Debug.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Gives the token for each request.
#[derive(Clone, Debug)]
pub struct TokenProvider(Source);

#[derive(Clone, Debug)]
enum Source {
    Anonymous,
    Fixed(Arc<Secret>),
    /// Named by the user: it must hold a token.
    File(Arc<Path>),
    /// Written by `hf auth login`: missing or empty means logged out.
    Login(Arc<Path>),
}

impl TokenProvider {
    /// No token.
    pub fn anonymous() -> Self {
        Self(Source::Anonymous)
    }

    /// A fixed token. White space around it is dropped; an empty one is no token.
    pub fn fixed(token: String) -> Self {
        let token = Zeroizing::new(token);
        match token.trim() {
            "" => Self::anonymous(),
            text => Self(Source::Fixed(Arc::new(Secret::new(text.to_owned())))),
        }
    }

    /// A file that is read again for every request.
    pub fn file(path: PathBuf) -> Self {
        Self(Source::File(path.into()))
    }

    /// By the rules above; `None` everywhere means anonymous. Empty values count as not given.
    pub fn resolve(token_file: Option<PathBuf>, token: Option<String>, env: &dyn Fn(&str) -> Option<String>) -> Self {
        if let Some(path) = token_file {
            return Self::file(path);
        }
        let given = |text: &String| !text.trim().is_empty();
        if let Some(token) = token.filter(given).or_else(|| env("HF_TOKEN").filter(given)) {
            return Self::fixed(token);
        }
        let folder = || env("HF_HOME").filter(given).map(PathBuf::from);
        let cache = || env("HOME").filter(given).map(|home| Path::new(&home).join(".cache/huggingface"));
        let login = env("HF_TOKEN_PATH").filter(given).map(PathBuf::from);
        match login.or_else(|| Some(folder().or_else(cache)?.join("token"))) {
            Some(path) => Self(Source::Login(path.into())),
            None => Self::anonymous(),
        }
    }

    /// The token now. Reads a file where it comes from one: blocks for as long as that takes.
    pub fn token(&self) -> Result<Option<Secret>, Error> {
        match &self.0 {
            Source::Anonymous => Ok(None),
            Source::Fixed(secret) => Ok(Some(Secret::new(secret.expose().to_owned()))),
            Source::File(path) => match read(path) {
                Ok(Some(secret)) => Ok(Some(secret)),
                Ok(None) => Err(unreadable(path, io::Error::new(io::ErrorKind::InvalidData, "it is empty"))),
                Err(source) => Err(unreadable(path, source)),
            },
            Source::Login(path) => match read(path) {
                Ok(found) => Ok(found),
                Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(unreadable(path, source)),
            },
        }
    }

    /// [`Self::token`] for async callers: a file on a stalled disk blocks no task but the caller's,
    /// and no more than [`READERS`] threads.
    pub(super) async fn current(&self) -> Result<Option<Secret>, Error> {
        static READING: Semaphore = Semaphore::const_new(READERS);
        if matches!(self.0, Source::Anonymous | Source::Fixed(_)) {
            return self.token();
        }
        let gone = || Error::Network("the runtime is shutting down".to_owned());
        let reading = READING.acquire().await.map_err(|_| gone())?;
        let provider = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            // Kept until the file is read, though the caller may be gone by then.
            let _reading = reading;
            provider.token()
        });
        read.await.unwrap_or_else(|_| Err(gone()))
    }

    /// That [`Self::current`] has taken too long.
    pub(super) fn too_slow(&self) -> Error {
        match &self.0 {
            Source::File(path) | Source::Login(path) => unreadable(path, io::ErrorKind::TimedOut.into()),
            Source::Anonymous | Source::Fixed(_) => Error::Network("out of time".to_owned()),
        }
    }
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    Error::TokenFile { path: path.display().to_string(), source }
}

/// The trimmed text of a token file, `None` where there is none.
fn read(path: &Path) -> io::Result<Option<Secret>> {
    let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    // Room for all of it at once: a buffer that grew would leave copies of the token behind.
    let mut bytes = Zeroizing::new(vec![0; MAX_FILE + 1]);
    let mut file = std::fs::File::open(path)?;
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if filled > MAX_FILE {
        return Err(invalid("it is too long for a token"));
    }
    let text = std::str::from_utf8(&bytes[..filled]).map_err(|_| invalid("it is not text"))?.trim();
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(invalid("it holds characters that no token has"));
    }
    Ok((!text.is_empty()).then(|| Secret::new(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(provider: &TokenProvider) -> Option<String> {
        provider.token().unwrap().map(|secret| secret.expose().to_owned())
    }

    fn environment(vars: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        let vars: Vec<_> = vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        move |name| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone())
    }

    #[test]
    fn sources_are_tried_in_the_promised_order() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let flag = write("flag", " hf_flagfile\n");
        let path = write("path", "hf_path");
        write("home/token", "hf_home");
        write("user/.cache/huggingface/token", "hf_user");
        let [path, home, user] =
            [path, dir.path().join("home"), dir.path().join("user")].map(|p| p.to_str().unwrap().to_owned());
        let all = [("HF_TOKEN", "hf_env"), ("HF_TOKEN_PATH", &*path), ("HF_HOME", &*home), ("HOME", &*user)];
        let resolve = |file: Option<&PathBuf>, token: Option<&str>, skip: usize| {
            shown(&TokenProvider::resolve(file.cloned(), token.map(str::to_owned), &environment(&all[skip..])))
        };
        assert_eq!(resolve(Some(&flag), Some("hf_arg"), 0).unwrap(), "hf_flagfile");
        assert_eq!(resolve(None, Some("hf_arg"), 0).unwrap(), "hf_arg");
        assert_eq!(resolve(None, Some(" "), 0).unwrap(), "hf_env");
        assert_eq!(resolve(None, None, 1).unwrap(), "hf_path");
        assert_eq!(resolve(None, None, 2).unwrap(), "hf_home");
        assert_eq!(resolve(None, None, 3).unwrap(), "hf_user");
        assert_eq!(resolve(None, None, 4), None);
    }

    #[test]
    fn a_token_file_is_read_again_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let provider = TokenProvider::file(path.clone());
        std::fs::write(&path, "\thf_one \r\n").unwrap();
        assert_eq!(shown(&provider).unwrap(), "hf_one");
        std::fs::write(&path, "hf_two").unwrap();
        assert_eq!(shown(&provider).unwrap(), "hf_two");
    }

    #[test]
    fn a_named_file_without_a_token_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let provider = TokenProvider::file(path.clone());
        assert!(matches!(provider.token(), Err(Error::TokenFile { .. })), "missing");
        for bad in [&b""[..], b" \n", b"hf_\xff", b"hf_a\nhf_b", b"hf a", &[b'x'; MAX_FILE + 1]] {
            std::fs::write(&path, bad).unwrap();
            let error = provider.token().unwrap_err();
            assert!(matches!(error, Error::TokenFile { .. }), "{bad:?}");
            assert!(!error.to_string().contains("hf_"), "{error}");
        }
        std::fs::write(&path, [b'x'; MAX_FILE]).unwrap();
        assert_eq!(shown(&provider).unwrap().len(), MAX_FILE);
    }

    #[test]
    fn a_login_file_that_is_missing_or_empty_means_anonymous() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap().to_owned();
        let provider = TokenProvider::resolve(None, None, &environment(&[("HF_HOME", &home)]));
        assert_eq!(shown(&provider), None);
        std::fs::write(dir.path().join("token"), "\n").unwrap();
        assert_eq!(shown(&provider), None);
        std::fs::write(dir.path().join("token"), "hf_late").unwrap();
        assert_eq!(shown(&provider).unwrap(), "hf_late");
    }

    #[test]
    fn debug_reveals_nothing() {
        let provider = TokenProvider::fixed(" hf_secret ".to_owned());
        assert_eq!(shown(&provider).unwrap(), "hf_secret");
        assert!(!format!("{provider:?} {:?}", provider.token()).contains("hf_secret"));
    }
}
