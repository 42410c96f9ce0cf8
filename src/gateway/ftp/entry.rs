//! Entries of lists, in the form of `ls -l` and in that for programs (RFC 3659, section 7).

use super::command::format_time;
use time::{Month, OffsetDateTime, UtcOffset};

/// An entry of a list.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Size in bytes. `None`: a folder.
    pub(super) len: Option<u64>,
    /// Time of the last change, if it is known.
    pub(super) modified: Option<OffsetDateTime>,
    /// True if the client may change it.
    pub(super) writable: bool,
}

/// Age beyond which `ls` shows the year in place of the hour.
const HALF_A_YEAR: time::Duration = time::Duration::days(183);

impl Entry {
    /// Returns the line of `LIST`, in the form that clients read: that of `ls -l`, with times in UTC.
    pub(super) fn ls_line(&self, now: OffsetDateTime) -> String {
        let mode = match (self.len.is_some(), self.writable) {
            (false, true) => "drwxr-xr-x",
            (false, false) => "dr-xr-xr-x",
            (true, true) => "-rw-r--r--",
            (true, false) => "-r--r--r--",
        };
        let (len, date) = (self.len.unwrap_or(0), ls_date(self.modified.unwrap_or(OffsetDateTime::UNIX_EPOCH), now));
        format!("{mode}   1 owner    group    {len:>13} {date} {}\r\n", self.name)
    }

    /// Returns the line of `MLSD` and `MLST`: the chosen facts, a space and the name.
    pub(super) fn facts_line(&self, facts: Facts, kind: &str, name: &str) -> String {
        let mut line = String::new();
        if facts.kind {
            line += &format!("type={kind};");
        }
        if let Some(len) = self.len.filter(|_| facts.size) {
            line += &format!("size={len};");
        }
        if let Some(time) = self.modified.filter(|_| facts.modify) {
            line += &format!("modify={};", format_time(time));
        }
        if facts.perm {
            let perm = match (self.len.is_some(), self.writable) {
                (false, true) => "flcdmpe",
                (false, false) => "le",
                (true, true) => "adfrw",
                (true, false) => "r",
            };
            line += &format!("perm={perm};");
        }
        format!("{line} {name}")
    }

    /// Returns the value of the fact `type`.
    pub(super) fn kind(&self) -> &'static str {
        if self.len.is_some() { "file" } else { "dir" }
    }
}

/// Returns true if a name can be shown: lists separate names by line ends, so one with control characters would forge
/// entries. Such names are left out.
pub(super) fn is_shown(name: &str) -> bool {
    !name.chars().any(char::is_control)
}

fn ls_date(time: OffsetDateTime, now: OffsetDateTime) -> String {
    let time = time.to_offset(UtcOffset::UTC);
    let month = match time.month() {
        Month::January => "Jan",
        Month::February => "Feb",
        Month::March => "Mar",
        Month::April => "Apr",
        Month::May => "May",
        Month::June => "Jun",
        Month::July => "Jul",
        Month::August => "Aug",
        Month::September => "Sep",
        Month::October => "Oct",
        Month::November => "Nov",
        Month::December => "Dec",
    };
    let is_recent = time <= now + time::Duration::DAY && now - time < HALF_A_YEAR;
    match is_recent {
        true => format!("{month} {:>2} {:02}:{:02}", time.day(), time.hour(), time.minute()),
        false => format!("{month} {:>2}  {:04}", time.day(), time.year().clamp(0, 9999)),
    }
}

/// The facts that a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    kind: bool,
    size: bool,
    modify: bool,
    perm: bool,
}

impl Facts {
    pub(super) const ALL: Self = Self { kind: true, size: true, modify: true, perm: true };

    /// Reads the argument of `OPTS MLST`. Unknown facts are left out.
    pub(super) fn parse(text: &str) -> Self {
        let has = |fact: &str| text.split(';').any(|found| found.trim().eq_ignore_ascii_case(fact));
        Self { kind: has("type"), size: has("size"), modify: has("modify"), perm: has("perm") }
    }

    /// Returns the facts as `OPTS MLST` answers them.
    pub(super) fn names(self) -> String {
        let all = [(self.kind, "type;"), (self.size, "size;"), (self.modify, "modify;"), (self.perm, "perm;")];
        all.into_iter().filter_map(|(wanted, name)| wanted.then_some(name)).collect()
    }

    /// Returns all facts, with a star at those that are wanted (RFC 3659, section 7.8).
    pub(super) fn feature(self) -> String {
        let star = |wanted| if wanted { "*" } else { "" };
        let Self { kind, size, modify, perm } = self;
        format!("MLST type{};size{};modify{};perm{};", star(kind), star(size), star(modify), star(perm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn lines_have_the_forms_that_clients_read() {
        let now = datetime!(2026-11-30 12:00 UTC);
        let file = |modified| Entry { name: "a b".into(), len: Some(7), modified, writable: true };
        let recent = file(Some(datetime!(2026-11-03 04:05:06 UTC)));
        assert_eq!(recent.ls_line(now), "-rw-r--r--   1 owner    group                7 Nov  3 04:05 a b\r\n");
        let old = file(Some(datetime!(2025-11-30 04:05 UTC)));
        assert!(old.ls_line(now).ends_with(" Nov 30  2025 a b\r\n"));
        let folder = Entry { name: "d".into(), len: None, modified: None, writable: false };
        assert_eq!(folder.ls_line(now), "dr-xr-xr-x   1 owner    group                0 Jan  1  1970 d\r\n");
        let line = recent.facts_line(Facts::ALL, "file", "a b");
        assert_eq!(line, "type=file;size=7;modify=20261103040506;perm=adfrw; a b");
        assert_eq!(folder.facts_line(Facts::ALL, "cdir", "/d"), "type=cdir;perm=le; /d");
    }

    #[test]
    fn client_chooses_facts() {
        let facts = Facts::parse("Type;SIZE;unix.mode;");
        assert_eq!(facts.names(), "type;size;");
        assert_eq!(facts.feature(), "MLST type*;size*;modify;perm;");
        let entry = Entry { name: "f".into(), len: Some(1), modified: None, writable: true };
        assert_eq!(entry.facts_line(facts, "file", "f"), "type=file;size=1; f");
        assert_eq!(Facts::parse("").names(), "");
    }
}
