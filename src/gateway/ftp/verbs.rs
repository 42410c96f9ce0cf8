//! Commands that need a login.

use super::command::{Command, Site, format_time, time_and_path};
use super::entry::{Entry, Facts};
use super::login::Caller;
use super::place::{Argument, Place, file_key, prefix};
use super::reply::Reply;
use super::session::Session;
use super::transfer::{Folder, Form, List, Shown, receive, send};
use crate::gateway::{Bucket, Conditions, Error, Found, Key, Permission, Start, Tags};
use crate::store::PlainPath;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use time::OffsetDateTime;

/// Most entries of a list over the control connection.
const MAX_STAT: usize = 10_000;

/// An opened bucket and a path in it.
struct At {
    bucket: Arc<Bucket>,
    name: String,
    path: PlainPath,
}

impl At {
    /// Returns the key of a file.
    fn key(&self) -> Result<Key, Error> {
        file_key(&self.path)
    }
}

/// Source of the entries of a list.
enum Target {
    /// Everything in this folder.
    Folder(Place),
    /// A file.
    File(Entry),
    /// Names in this folder that match.
    Matching(Place, wildmatch::WildMatch),
}

impl Session {
    /// Carries out a command of a client that has logged in.
    pub(super) async fn work(&mut self, command: Command) -> Result<Reply, Reply> {
        match command {
            Command::Cwd(path) => self.change_folder(self.folder.at(&path)?).await,
            Command::Cdup => self.change_folder(self.folder.parent()).await,
            Command::Pwd => Ok(Reply::new(257, format!("{} is the current folder.", self.folder.quoted()))),
            Command::List(path) => self.list(path, Form::Long).await,
            Command::Nlst(path) => self.list(path, Form::Names).await,
            Command::Mlsd(path) => self.list(path, Form::Facts(self.facts)).await,
            Command::Mlst(path) => self.mlst(path).await,
            Command::Stat(path) => self.stat(path).await,
            Command::Retr(path) => self.retrieve(path).await,
            Command::Stor(path) => {
                self.store(path, if self.rest > 0 { Start::At(self.rest) } else { Start::Replace }).await
            }
            Command::Appe(path) => self.store(path, Start::End).await,
            Command::Stou => self.store(unique_name()?, Start::Create).await,
            Command::Rest(offset) => {
                self.rest = offset;
                Ok(Reply::new(350, format!("The next transfer starts at {offset}.")))
            }
            Command::Dele(path) => self.delete(path).await,
            Command::Mkd(path) => self.make_folder(path).await,
            Command::Rmd(path) => self.remove_folder(path).await,
            Command::Rnfr(path) => self.rename_from(path).await,
            Command::Rnto(path) => self.rename_to(path).await,
            Command::Size(path) => Ok(Reply::new(213, self.find(&path).await?.len.to_string())),
            Command::Mdtm(path) => self.modified(path).await,
            Command::Mfmt(time, path) => self.set_modified(time, &path, true).await,
            Command::Site(Site::Utime(time, path)) => self.set_modified(time, &path, false).await,
            Command::Xmd5(path) => self.md5(path).await,
            command => self.set(command),
        }
    }

    /// Carries out a command that concerns the session only.
    fn set(&mut self, command: Command) -> Result<Reply, Reply> {
        let known = |is_known: bool, text: &str| match is_known {
            true => Ok(Reply::new(200, text)),
            false => Err(Reply::new(504, "This server doesn't have that form.")),
        };
        match command {
            Command::Type(kind) => {
                let text = "Content is sent as it is, in every type.";
                known(matches!(kind.as_str(), "A" | "A N" | "I" | "L 8" | "L8"), text)
            }
            Command::Mode(mode) => known(mode == "S", "Stream mode."),
            Command::Stru(structure) => known(structure == "F", "Files."),
            Command::Allo => Ok(Reply::new(202, "No room needs to be made.")),
            Command::Site(Site::Chmod) => Ok(Reply::new(202, "Files here have no permissions of their own.")),
            Command::Site(Site::Help) => Ok(Reply::new(214, "SITE UTIME, SITE CHMOD, SITE HELP.")),
            _ => Err(Reply::new(502, "This server doesn't have that command.")),
        }
    }

    pub(super) fn options(&mut self, text: &str) -> Result<Reply, Reply> {
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        match (verb.to_ascii_uppercase().as_str(), rest.trim().to_ascii_uppercase().as_str()) {
            ("UTF8" | "UTF-8", "" | "ON") => Ok(Reply::new(200, "Names are always UTF-8.")),
            ("UTF8" | "UTF-8", _) => Err(Reply::new(504, "Names are always UTF-8.")),
            ("MLST", facts) => {
                self.facts = Facts::parse(facts);
                Ok(Reply::new(200, format!("MLST OPTS {}", self.facts.names())))
            }
            _ => Err(Reply::new(501, "Wrong argument: UTF8 ON, or MLST with facts.")),
        }
    }

    fn caller(&self) -> Result<&Caller, Reply> {
        self.caller.as_ref().ok_or_else(|| Reply::new(530, "Log in with USER and PASS first."))
    }

    /// Opens the bucket of a place, for a caller that may do `needed` there. `is_folder`: true if the place stands for
    /// everything in a folder.
    async fn open(&self, place: &Place, needed: Permission, is_folder: bool) -> Result<At, Reply> {
        let Place::In { bucket: name, path } = place else {
            return Err(Error::InvalidKey("the root holds buckets only").into());
        };
        if path.is_root() && !is_folder {
            return Err(Error::InvalidKey("files lie in buckets").into());
        }
        let key = if is_folder { prefix(path) } else { path.as_str().to_owned() };
        self.caller()?.check(needed, name, &key)?;
        let bucket = self.shared.gateway.bucket(name).await?;
        Ok(At { bucket, name: name.clone(), path: path.clone() })
    }

    /// Returns a file.
    async fn find(&self, path: &Argument) -> Result<Found, Reply> {
        let at = self.open(&self.folder.at(path)?, Permission::Read, false).await?;
        self.result(&at, at.bucket.head(&at.key()?).await)
    }

    /// Passes on a result. A bucket that was found missing is closed.
    fn result<T>(&self, at: &At, result: Result<T, Error>) -> Result<T, Reply> {
        if let Err(Error::NoSuchBucket) = result {
            self.shared.gateway.forget(at.bucket.id());
        }
        result.map_err(Reply::from)
    }

    /// Returns true if a folder is there for the caller.
    async fn is_folder(&self, place: &Place) -> Result<bool, Reply> {
        let Place::In { bucket: name, path } = place else { return Ok(true) };
        if !self.caller()?.may_enter(name, &prefix(path)) {
            return Ok(false);
        }
        let bucket = match self.shared.gateway.bucket(name).await {
            Ok(bucket) => bucket,
            Err(Error::NoSuchBucket | Error::InvalidBucketName) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if path.is_root() || self.shared.emptied.has(name, path) {
            return Ok(true);
        }
        let at = At { bucket, name: name.clone(), path: path.clone() };
        self.result(&at, at.bucket.is_folder(path).await)
    }

    async fn change_folder(&mut self, to: Place) -> Result<Reply, Reply> {
        if !self.is_folder(&to).await? {
            return Err(Reply::new(550, "There is no such folder."));
        }
        self.folder = to;
        Ok(Reply::new(250, format!("{} is the current folder.", self.folder.quoted())))
    }

    /// Finds what a list shall show. `exact`: whether the path has to be that of a folder.
    async fn target(&self, argument: &Argument, exact: bool) -> Result<Target, Reply> {
        if argument.as_str().is_empty() {
            return Ok(Target::Folder(self.folder.clone()));
        }
        let place = self.folder.at(argument)?;
        if self.is_folder(&place).await? {
            return Ok(Target::Folder(place));
        }
        if matches!(&place, Place::In { path, .. } if path.is_root()) {
            return Err(Reply::new(550, "There is no such bucket."));
        }
        match self.find(argument).await {
            Ok(_) if exact => return Err(Reply::new(501, "It is a file.")),
            Err(_) if exact => return Err(Reply::new(550, "There is no such folder.")),
            Ok(found) => return Ok(Target::File(self.file_entry(&place, &found))),
            Err(reply) if reply.code != 550 => return Err(reply),
            Err(_) => {}
        }
        let (pattern, parent) = (place.name(), place.parent());
        if pattern.contains(['*', '?']) && self.is_folder(&parent).await? {
            return Ok(Target::Matching(parent, wildmatch::WildMatch::new(pattern)));
        }
        Err(Reply::new(550, "There is no such file or folder."))
    }

    fn file_entry(&self, place: &Place, found: &Found) -> Entry {
        let writable = match (place, &self.caller) {
            (Place::In { bucket, path }, Some(caller)) => caller.may(Permission::Write, bucket, path.as_str()),
            _ => false,
        };
        let (len, modified) = (Some(found.len), Some(found.modified));
        Entry { name: place.name().to_owned(), len, modified, writable }
    }

    /// Returns the entries of a folder, a page at a time.
    async fn entries(&self, place: &Place) -> Result<List, Reply> {
        let caller = self.caller()?.clone();
        let Place::In { bucket: name, path } = place else {
            let buckets = self.shared.gateway.list_buckets().await?;
            let seen = buckets.into_iter().filter(|(name, _)| caller.may_enter(name, ""));
            let entry = |(name, info): (String, crate::store::buckets::BucketInfo)| {
                let writable = caller.may(Permission::Write, &name, "");
                Entry { name, len: None, modified: info.created_at, writable }
            };
            return Ok(List::Fixed(seen.map(entry).collect()));
        };
        let bucket = self.shared.gateway.bucket(name).await?;
        Ok(List::Folder(Folder::new(bucket, name.clone(), path.clone(), caller)))
    }

    async fn shown(&self, argument: &Argument, form: Form) -> Result<Shown, Reply> {
        let mut before = String::new();
        let (list, pattern) = match self.target(argument, matches!(form, Form::Facts(_))).await? {
            Target::File(entry) => (List::Fixed(vec![entry]), None),
            Target::Folder(place) => {
                let text = argument.as_str();
                before = if text.is_empty() || text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
                (self.entries(&place).await?, None)
            }
            Target::Matching(place, pattern) => (self.entries(&place).await?, Some(pattern)),
        };
        if before.is_empty()
            && let Some((folder, _)) = argument.as_str().rsplit_once('/')
        {
            before = format!("{folder}/");
        }
        Ok(Shown { list, form, before, pattern })
    }

    async fn list(&mut self, argument: Argument, form: Form) -> Result<Reply, Reply> {
        let shown = self.shown(&argument, form).await?;
        let metrics = self.shared.metrics.clone();
        self.transfer("Here comes the list.".to_owned(), |wire, _| async move {
            shown.send(wire, &metrics.sent).await?;
            Ok(Reply::new(226, "The list is complete."))
        })
        .await
    }

    async fn mlst(&mut self, argument: Argument) -> Result<Reply, Reply> {
        let place = self.folder.at(&argument)?;
        let (entry, kind) = match self.target(&argument, false).await? {
            Target::File(entry) => (entry, "file"),
            Target::Folder(_) => {
                let writable = match &place {
                    Place::Root => false,
                    Place::In { bucket, path } => self.caller()?.may(Permission::Write, bucket, &prefix(path)),
                };
                (Entry { name: String::new(), len: None, modified: None, writable }, "dir")
            }
            Target::Matching(..) => return Err(Reply::new(550, "There is no such file or folder.")),
        };
        let line = entry.facts_line(self.facts, kind, &place.to_text());
        Ok(Reply::new(250, format!("Here it is:\n{line}\nEnd")))
    }

    async fn stat(&mut self, argument: Argument) -> Result<Reply, Reply> {
        if argument.as_str().is_empty() {
            return Ok(Reply::new(
                211,
                format!("{} is the current folder, and no transfer runs.", self.folder.quoted()),
            ));
        }
        let mut shown = self.shown(&argument, Form::Long).await?;
        let (mut text, mut entries) = (String::from("Here it is:\n"), 0);
        while let Some(lines) = shown.lines().await? {
            entries += lines.lines().count();
            text += &lines;
            if entries >= MAX_STAT {
                return Err(Reply::new(450, "The folder is too large for STAT: use LIST."));
            }
        }
        Ok(Reply::new(213, text + "End"))
    }

    async fn retrieve(&mut self, path: Argument) -> Result<Reply, Reply> {
        let place = self.folder.at(&path)?;
        let at = self.open(&place, Permission::Read, false).await?;
        let found = self.result(&at, at.bucket.head(&at.key()?).await)?;
        let (start, end) = (self.rest, found.len);
        if start > end {
            return Err(Error::InvalidRange.into());
        }
        let content = self.result(&at, at.bucket.open(&found.version).await)?.stream(start..end);
        let metrics = self.shared.metrics.clone();
        let opening = format!("Opening a data connection for {} ({} bytes).", place.name(), end - start);
        self.transfer(opening, |wire, _| async move {
            let sent = send(wire, content, &metrics.sent).await?;
            match sent == end - start {
                true => Ok(Reply::new(226, "The file was sent.")),
                false => Err(Reply::new(451, "The file ended early.")),
            }
        })
        .await
    }

    async fn store(&mut self, path: Argument, start: Start) -> Result<Reply, Reply> {
        let place = self.folder.at_file(&path)?;
        if path.as_str().ends_with('/') {
            return Err(Error::InvalidKey("a name that ends in / is that of a folder").into());
        }
        let at = self.open(&place, Permission::Write, false).await?;
        if let Start::At(_) | Start::End = start {
            // The result holds present content, which only readers may see.
            self.caller()?.check(Permission::Read, &at.name, at.path.as_str())?;
        }
        let (key, bucket) = (at.key()?, at.bucket.clone());
        let metrics = self.shared.metrics.clone();
        let opening = match start {
            Start::Create => format!("FILE: {}", place.name()),
            _ => format!("Opening a data connection for {}.", place.name()),
        };
        let (shared, name, path) = (self.shared.clone(), at.name.clone(), at.path.clone());
        self.transfer(opening, |wire, pulse| async move {
            let count = move |bytes| {
                metrics.received.fetch_add(bytes, Ordering::Relaxed);
            };
            bucket.write_file(&key, receive(wire, pulse, count), start).await?;
            shared.emptied.remove(&name, &path);
            Ok(Reply::new(226, "The file was stored."))
        })
        .await
    }

    async fn delete(&mut self, path: Argument) -> Result<Reply, Reply> {
        let at = self.open(&self.folder.at(&path)?, Permission::Write, false).await?;
        let key = at.key()?;
        // A removal of what isn't there is an error here.
        self.result(&at, at.bucket.head(&key).await)?;
        self.result(&at, at.bucket.delete(&key, Conditions::default()).await)?;
        self.shared.emptied.note(&at.name, &at.path);
        Ok(Reply::new(250, "The file was removed."))
    }

    fn may_change_buckets(&self, name: &str) -> Result<(), Reply> {
        if !self.shared.options.allow_bucket_changes {
            return Err(Reply::new(550, "Buckets can't be created or removed here (--allow-bucket-changes)."));
        }
        Ok(self.caller()?.check_buckets(name)?)
    }

    async fn make_folder(&mut self, path: Argument) -> Result<Reply, Reply> {
        let place = self.folder.at(&path)?;
        let made = Reply::new(257, format!("{} was made.", place.quoted()));
        match &place {
            Place::Root => return Err(Reply::new(550, "It exists already.")),
            Place::In { bucket, path } if path.is_root() => {
                if self.is_folder(&place).await? {
                    return Err(Reply::new(550, "It exists already."));
                }
                self.may_change_buckets(bucket)?;
                self.shared.gateway.create_bucket(bucket).await?;
                return Ok(made);
            }
            Place::In { .. } => {}
        }
        let at = self.open(&place, Permission::Write, true).await?;
        match at.bucket.make_folder(&at.path).await {
            Err(Error::NameTaken) => Err(Reply::new(550, "It exists already.")),
            result => self.result(&at, result).map(|()| made),
        }
    }

    async fn remove_folder(&mut self, path: Argument) -> Result<Reply, Reply> {
        let place = self.folder.at(&path)?;
        let removed = Reply::new(250, "The folder was removed.");
        if let Place::In { bucket, path } = &place
            && path.is_root()
        {
            self.may_change_buckets(bucket)?;
            self.shared.gateway.delete_bucket(bucket).await?;
            self.shared.emptied.forget(bucket, path);
            return Ok(removed);
        }
        let at = self.open(&place, Permission::Write, true).await?;
        match at.bucket.remove_folder(&at.path).await {
            Err(Error::NoSuchKey) if self.shared.emptied.remove(&at.name, &at.path) => Ok(removed),
            Err(Error::NoSuchKey) => Err(Reply::new(550, "There is no such folder.")),
            result => {
                self.result(&at, result)?;
                self.shared.emptied.remove(&at.name, &at.path);
                self.shared.emptied.note(&at.name, &at.path);
                Ok(removed)
            }
        }
    }

    async fn rename_from(&mut self, path: Argument) -> Result<Reply, Reply> {
        let place = self.folder.at(&path)?;
        let at = self.open(&place, Permission::Write, false).await?;
        let is_folder = match at.bucket.head(&at.key()?).await {
            Ok(_) => false,
            Err(Error::NoSuchKey) if self.is_folder(&place).await? => {
                self.open(&place, Permission::Write, true).await?;
                true
            }
            Err(error) => return self.result(&at, Err(error)),
        };
        self.renamed = Some((place, is_folder));
        Ok(Reply::new(350, "Say RNTO with the new name."))
    }

    async fn rename_to(&mut self, path: Argument) -> Result<Reply, Reply> {
        let Some((from, is_folder)) = self.renamed.take() else { return Err(Reply::new(503, "Say RNFR first.")) };
        let to = if is_folder { self.folder.at(&path)? } else { self.folder.at_file(&path)? };
        let to = self.open(&to, Permission::Write, is_folder).await?;
        let from = self.open(&from, Permission::Write, is_folder).await?;
        let is_same_bucket = from.bucket.id() == to.bucket.id();
        match (is_folder, is_same_bucket) {
            (true, true) => self.result(&to, from.bucket.move_folder(&from.path, &to.path).await)?,
            (true, false) => return Err(Reply::new(553, "A folder can't be moved to another bucket.")),
            (false, true) => self.result(&to, from.bucket.move_file(&from.key()?, &to.key()?).await)?,
            (false, false) => {
                let (key, source) = (to.key()?, from.key()?);
                let found = self.result(&from, from.bucket.head(&source).await)?;
                let copied = to.bucket.copy(&key, &from.bucket, &source, Default::default()).await;
                self.result(&to, copied)?;
                // Another writer's new version stays.
                let if_match = Some(Tags::Of(vec![found.etag]));
                let conditions = Conditions { if_match, ..Conditions::default() };
                self.result(&from, from.bucket.delete(&source, conditions).await)?;
            }
        }
        self.shared.emptied.forget(&from.name, &from.path);
        self.shared.emptied.forget(&to.name, &to.path);
        self.shared.emptied.note(&from.name, &from.path);
        Ok(Reply::new(250, "It was renamed."))
    }

    async fn modified(&mut self, path: Argument) -> Result<Reply, Reply> {
        match (self.find(&path).await, time_and_path(path.as_str())) {
            (Ok(found), _) => Ok(Reply::new(213, format_time(found.modified))),
            // Some clients set times with this command.
            (Err(_), Some((time, path))) => self.set_modified(time, &Argument::new(path), false).await,
            (Err(reply), None) => Err(reply),
        }
    }

    async fn set_modified(&mut self, time: OffsetDateTime, path: &Argument, is_mfmt: bool) -> Result<Reply, Reply> {
        let place = self.folder.at(path)?;
        let at = self.open(&place, Permission::Write, false).await?;
        self.result(&at, at.bucket.set_modified(&at.key()?, time).await)?;
        Ok(match is_mfmt {
            true => Reply::new(213, format!("Modify={}; {}", format_time(time), place.to_text())),
            false => Reply::new(213, "The time was set."),
        })
    }

    /// Answers with the MD5 of the content, where it is known: of files that came by S3 in one piece.
    async fn md5(&mut self, path: Argument) -> Result<Reply, Reply> {
        let found = self.find(&path).await?;
        let is_md5 = found.etag.len() == 32 && found.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match is_md5 {
            true => Ok(Reply::new(250, found.etag.to_uppercase())),
            false => Err(Reply::new(550, "The MD5 of this file was not computed.")),
        }
    }
}

/// Returns a name that no file has.
fn unique_name() -> Result<Argument, Reply> {
    let name = crate::gateway::random_name()?;
    Ok(Argument::new(&format!("stou-{name}")))
}
