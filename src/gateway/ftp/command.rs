//! Commands of the control connection (RFC 959, section 5.3; RFC 2228, 2389, 2428, 3659).

use super::place::Argument;
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};
use zeroize::Zeroizing;

/// Longest line of the control connection in bytes. A path has at most 1,024 in a bucket.
pub(super) const MAX_LINE: usize = 4096;

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Name of the access key.
    User(String),
    /// Its secret.
    Pass(Zeroizing<String>),
    /// Security mechanism.
    Auth(String),
    /// Size of a protection buffer, which TLS doesn't have.
    Pbsz,
    /// Level of protection of data connections.
    Prot(String),
    Cwd(Argument),
    Cdup,
    Pwd,
    /// List in the form of `ls -l`. No path: the current folder.
    List(Argument),
    /// Names only.
    Nlst(Argument),
    /// List in a form for programs.
    Mlsd(Argument),
    /// One entry in that form, over the control connection.
    Mlst(Argument),
    Stat(Argument),
    Retr(Argument),
    Stor(Argument),
    /// Store under a name of the server's choice.
    Stou,
    Appe(Argument),
    /// Offset at which the next transfer starts.
    Rest(u64),
    Dele(Argument),
    Mkd(Argument),
    Rmd(Argument),
    Rnfr(Argument),
    Rnto(Argument),
    Size(Argument),
    /// Time of the last change. With a time in front of the path it is set.
    Mdtm(Argument),
    /// Sets the time of the last change.
    Mfmt(OffsetDateTime, Argument),
    /// MD5 of the content.
    Xmd5(Argument),
    Type(String),
    Mode(String),
    Stru(String),
    /// A transfer opens the data connection to this address.
    Port(String),
    Eprt(String),
    Pasv,
    /// Network protocol, or `ALL`.
    Epsv(String),
    Abor,
    Feat,
    Opts(String),
    Site(Site),
    Syst,
    Noop,
    Help,
    Clnt,
    /// Room for a file, which needs none.
    Allo,
    Quit,
}

impl Command {
    /// Returns the path that the command names.
    #[cfg(any(test, fuzzing, feature = "fuzzing"))]
    pub(super) fn path(&self) -> Option<&Argument> {
        use Command::*;
        match self {
            Cwd(path)
            | List(path)
            | Nlst(path)
            | Mlsd(path)
            | Mlst(path)
            | Stat(path)
            | Retr(path)
            | Stor(path)
            | Appe(path)
            | Dele(path)
            | Mkd(path)
            | Rmd(path)
            | Rnfr(path)
            | Rnto(path)
            | Size(path)
            | Mdtm(path)
            | Mfmt(_, path)
            | Xmd5(path)
            | Site(self::Site::Utime(_, path)) => Some(path),
            _ => None,
        }
    }
}

/// A command of this server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Site {
    /// Sets the time of the last change.
    Utime(OffsetDateTime, Argument),
    /// Sets permissions, which files here don't have.
    Chmod,
    Help,
}

/// Why a line is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    /// No command of this server.
    Unknown,
    /// A command of the standards that this server doesn't have.
    NotImplemented,
    /// A wrong argument.
    Argument(&'static str),
}

/// Parses a line, without its end.
pub(super) fn parse(line: &[u8]) -> Result<Command, Syntax> {
    let text = std::str::from_utf8(without_telnet(line)).map_err(|_| Syntax::Argument("the line is not UTF-8"))?;
    if text.chars().any(char::is_control) {
        return Err(Syntax::Argument("the line has control characters"));
    }
    // Only one space separates an argument: a name may begin with another one.
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    if verb.len() > 4 || !verb.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Syntax::Unknown);
    }
    let verb = verb.to_ascii_uppercase();
    match plain(&verb, rest) {
        Some(command) => Ok(command),
        None => with_argument(&verb, rest),
    }
}

/// Returns the line behind the signals that clients send before `ABOR` (RFC 959, section 4.1.3): commands of Telnet,
/// which no UTF-8 text holds.
fn without_telnet(mut line: &[u8]) -> &[u8] {
    while let [0xf0..=0xff, rest @ ..] = line {
        line = rest;
    }
    line
}

/// Returns a command whose argument may be missing, or means nothing.
fn plain(verb: &str, rest: &str) -> Option<Command> {
    Some(match verb {
        "PBSZ" => Command::Pbsz,
        "CDUP" | "XCUP" => Command::Cdup,
        "PWD" | "XPWD" => Command::Pwd,
        "LIST" => Command::List(Argument::without_options(rest)),
        "NLST" => Command::Nlst(Argument::without_options(rest)),
        "MLSD" => Command::Mlsd(Argument::new(rest)),
        "MLST" => Command::Mlst(Argument::new(rest)),
        "STAT" => Command::Stat(Argument::without_options(rest)),
        "STOU" => Command::Stou,
        "PASV" => Command::Pasv,
        "EPSV" => Command::Epsv(rest.trim().to_ascii_uppercase()),
        "ABOR" => Command::Abor,
        "FEAT" => Command::Feat,
        "SYST" => Command::Syst,
        "NOOP" => Command::Noop,
        "HELP" => Command::Help,
        "CLNT" | "CSID" => Command::Clnt,
        "ALLO" => Command::Allo,
        "QUIT" => Command::Quit,
        // An empty password is one.
        "PASS" => Command::Pass(Zeroizing::new(rest.to_owned())),
        _ => return None,
    })
}

fn with_argument(verb: &str, rest: &str) -> Result<Command, Syntax> {
    let word = || match rest.trim() {
        "" => Err(Syntax::Argument("the command needs an argument")),
        word => Ok(word.to_owned()),
    };
    let path = || match rest {
        "" => Err(Syntax::Argument("the command needs a path")),
        path => Ok(Argument::new(path)),
    };
    Ok(match verb {
        "USER" => Command::User(word()?),
        "AUTH" => Command::Auth(word()?.to_ascii_uppercase()),
        "PROT" => Command::Prot(word()?.to_ascii_uppercase()),
        "CWD" | "XCWD" => Command::Cwd(path()?),
        "RETR" => Command::Retr(path()?),
        "STOR" => Command::Stor(path()?),
        "APPE" => Command::Appe(path()?),
        "REST" => Command::Rest(word()?.parse().map_err(|_| Syntax::Argument("the offset is a number of bytes"))?),
        "DELE" => Command::Dele(path()?),
        "MKD" | "XMKD" => Command::Mkd(path()?),
        "RMD" | "XRMD" => Command::Rmd(path()?),
        "RNFR" => Command::Rnfr(path()?),
        "RNTO" => Command::Rnto(path()?),
        "SIZE" => Command::Size(path()?),
        "MDTM" => Command::Mdtm(path()?),
        "MFMT" => {
            let (time, path) = time_and_path(rest).ok_or(WRONG_TIME)?;
            Command::Mfmt(time, Argument::new(path))
        }
        "XMD5" => Command::Xmd5(path()?),
        "TYPE" => Command::Type(word()?.to_ascii_uppercase()),
        "MODE" => Command::Mode(word()?.to_ascii_uppercase()),
        "STRU" => Command::Stru(word()?.to_ascii_uppercase()),
        "PORT" => Command::Port(word()?),
        "EPRT" => Command::Eprt(word()?),
        "OPTS" => Command::Opts(word()?),
        "SITE" => Command::Site(site(rest)?),
        "ACCT" | "ADAT" | "CCC" | "CONF" | "ENC" | "HOST" | "LANG" | "MIC" | "REIN" | "SMNT" => {
            return Err(Syntax::NotImplemented);
        }
        _ => return Err(Syntax::Unknown),
    })
}

const WRONG_TIME: Syntax = Syntax::Argument("a time has the form YYYYMMDDhhmmss[.sss] and is followed by a path");

fn site(rest: &str) -> Result<Site, Syntax> {
    let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    match verb.to_ascii_uppercase().as_str() {
        "UTIME" => {
            let (time, path) = utime(rest).ok_or(WRONG_TIME)?;
            Ok(Site::Utime(time, Argument::new(path)))
        }
        "CHMOD" => Ok(Site::Chmod),
        "HELP" => Ok(Site::Help),
        _ => Err(Syntax::NotImplemented),
    }
}

/// Returns time and path of `SITE UTIME`, which has two forms: `time path`, and `path atime mtime ctime UTC`.
fn utime(rest: &str) -> Option<(OffsetDateTime, &str)> {
    let long = || {
        let mut fields = rest.strip_suffix(" UTC")?.rsplitn(4, ' ');
        let (_changed, modified, _read, path) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some((parse_time(modified)?, path))
    };
    long().or_else(|| time_and_path(rest)).filter(|(_, path)| !path.is_empty())
}

/// Splits `time path`.
pub(super) fn time_and_path(text: &str) -> Option<(OffsetDateTime, &str)> {
    let (time, path) = text.split_once(' ')?;
    (!path.is_empty()).then_some((parse_time(time)?, path))
}

/// Parses a time (RFC 3659, section 2.3): `YYYYMMDDhhmmss`, with a fraction of the second or without, in UTC.
pub(super) fn parse_time(text: &str) -> Option<OffsetDateTime> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() != 14 || !are_digits(whole) || !are_digits(fraction) {
        return None;
    }
    let number = |at: std::ops::Range<usize>| whole[at].parse::<u8>().ok();
    let month = Month::try_from(number(4..6)?).ok()?;
    let date = Date::from_calendar_date(whole[..4].parse().ok()?, month, number(6..8)?).ok()?;
    let millis = format!("{fraction:0<3}")[..3].parse().ok()?;
    // A leap second is the last one of its minute.
    let time = Time::from_hms_milli(number(8..10)?, number(10..12)?, number(12..14)?.min(59), millis).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc())
}

/// Writes a time in that form. Years beyond four digits are cut to what it can show.
pub(super) fn format_time(time: OffsetDateTime) -> String {
    let time = time.to_offset(time::UtcOffset::UTC);
    let (year, month, day) = (time.year().clamp(0, 9999), u8::from(time.month()), time.day());
    let (hour, minute, second) = time.to_hms();
    match time.millisecond() {
        0 => format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}"),
        millis => format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}.{millis:03}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn path(text: &str) -> Argument {
        Argument::new(text)
    }

    #[test]
    fn commands_are_taken_in_any_case_and_with_the_spaces_of_names() {
        let cases: [(&[u8], Command); 12] = [
            (b"USER alice", Command::User("alice".into())),
            (b"pass  a b", Command::Pass(Zeroizing::new(" a b".into()))),
            (b"Pass", Command::Pass(Zeroizing::new(String::new()))),
            (b"RETR  two  spaces ", Command::Retr(path(" two  spaces "))),
            (b"opts utf8 on", Command::Opts("utf8 on".into())),
            (b"\xff\xf4\xff\xf2ABOR", Command::Abor),
            (b"REST 18446744073709551615", Command::Rest(u64::MAX)),
            (b"LIST -la", Command::List(path(""))),
            (b"NLST -a -l a b", Command::Nlst(path("a b"))),
            (b"LIST -a-file", Command::List(path("-a-file"))),
            ("CWD /ü".as_bytes(), Command::Cwd(path("/ü"))),
            (b"site chmod 644 x", Command::Site(Site::Chmod)),
        ];
        for (line, command) in cases {
            assert_eq!(parse(line), Ok(command), "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn lines_that_are_no_commands_say_why() {
        for line in [&b"RETR"[..], b"RETR a\rDELE b", b"RETR a\0", b"RETR a\x7fb", b"RETR \xc3", b"REST -1", b"REST x"]
        {
            assert!(matches!(parse(line), Err(Syntax::Argument(_))), "{:?}", String::from_utf8_lossy(line));
        }
        for line in [&b""[..], b" USER x", b"GET / HTTP/1.1", b"XYZZ", b"RETRIEVE x", b"A\xc3\xbc"] {
            assert_eq!(parse(line), Err(Syntax::Unknown), "{:?}", String::from_utf8_lossy(line));
        }
        assert_eq!(parse(b"REIN"), Err(Syntax::NotImplemented));
        assert_eq!(parse(b"SITE EXEC x"), Err(Syntax::NotImplemented));
    }

    #[test]
    fn times_have_all_forms_that_clients_send() {
        let time = datetime!(2020-02-29 23:59:58 UTC);
        let text = "20200229235958";
        for line in [
            format!("MFMT {text} a b"),
            format!("SITE UTIME {text} a b"),
            format!("SITE UTIME a b 20010101000000 {text} 20010101000000 UTC"),
        ] {
            let command = parse(line.as_bytes()).unwrap();
            let (Command::Mfmt(found, file) | Command::Site(Site::Utime(found, file))) = command else {
                panic!("{line}")
            };
            assert_eq!((found, file), (time, path("a b")), "{line}");
        }
        assert_eq!(format_time(time), text);
        let exact = datetime!(1999-12-31 00:00:00.250 UTC);
        assert_eq!((parse_time("19991231000000.25"), format_time(exact).as_str()), (Some(exact), "19991231000000.250"));
        for wrong in
            ["", "2020", "20200230000000", "20201301000000", "2020010100000", "20200101000000.", "2020010100000x"]
        {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
        for line in ["MFMT x a", "MFMT 20200101000000", "SITE UTIME", "SITE UTIME a b c d UTC", "MFMT 20200101000000 "]
        {
            assert!(matches!(parse(line.as_bytes()), Err(Syntax::Argument(_))), "{line}");
        }
    }
}
