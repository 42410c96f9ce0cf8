//! Where the settings of the gateways come from: options, the environment, a TOML file, defaults, in this order.
//!
//! Each key of the file is the name of an option of `hugbucket serve`, so there is one list of settings. `hugbucket s3`
//! and `ftp` take the same file and leave out what isn't theirs. Every option also has a variable: `HUGBUCKET_` and its
//! name in capitals.

use super::exit::{Exit, Failure, Outcome};
use super::gateway::KEY_VARIABLES;
use clap::builder::{BoolishValueParser, Resettable};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Commands whose settings may come from a file. The last one has all settings.
const COMMANDS: [&str; 3] = ["s3", "ftp", ALL];
const ALL: &str = "serve";
/// Settings that a file must not hold: it is easily copied and shared.
const SECRETS: [&str; 1] = ["hf_token"];
/// Settings whose value isn't shown. A database URL may hold a password.
const HIDDEN: [&str; 2] = ["hf_token", "state"];
/// Options of the Hub, whose variables are those of other programs too.
const OTHER_VARIABLES: [(&str, &str); 2] = [("hub_endpoint", "HF_ENDPOINT"), ("hf_token", "HF_TOKEN")];

/// The parsed command line, and which settings came from the file.
pub struct Settings {
    /// The options, as clap parsed them.
    pub matches: ArgMatches,
    from_file: BTreeSet<String>,
}

/// Parses a command line. If no command is given and the variable `MODE` is set, the command is `serve`, and it can be
/// reached from outside, as in a container.
pub fn parse(command: Command, mut line: Vec<OsString>) -> Outcome<Settings> {
    let mut command = with_variables(command);
    let is_option = |word: &OsString| word.to_str().is_some_and(|word| word.starts_with('-'));
    let asks = |word: &OsString| ["-h", "--help", "-V", "--version"].iter().any(|&text| word == text);
    if is_set("MODE") && line.get(1).is_none_or(is_option) && !line.iter().any(asks) {
        line.insert(1, ALL.into());
        let everywhere = |arg: Arg, port: &str| arg.default_value(format!("0.0.0.0:{port}"));
        command = command.mut_subcommand(ALL, |serve| {
            serve.mut_args(|arg| match arg.get_id().as_str() {
                "s3_listen" => everywhere(arg, "9000"),
                "ftp_listen" => everywhere(arg, "2121"),
                _ => arg,
            })
        });
    }
    let from_file = add_file(&command, &mut line)?;
    let matches = command.try_get_matches_from(line).unwrap_or_else(|error| error.exit());
    Ok(Settings { matches, from_file })
}

/// Returns true if a variable has a value. An empty one counts as not set: files that pass variables on set those too
/// that have none.
pub fn is_set(variable: impl AsRef<OsStr>) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// Gives each option of the gateways a variable.
fn with_variables(mut command: Command) -> Command {
    for name in COMMANDS {
        if command.find_subcommand(name).is_some() {
            command = command.mut_subcommand(name, |command| command.mut_args(with_variable));
        }
    }
    command
}

fn with_variable(arg: Arg) -> Arg {
    let Some(name) = arg.get_long().map(|long| long.replace('-', "_").to_uppercase()) else { return arg };
    let is_others = OTHER_VARIABLES.iter().any(|(id, _)| arg.get_id() == id);
    let arg = match arg.get_action() {
        ArgAction::Append if arg.get_value_delimiter().is_none() => arg.value_delimiter(','),
        ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        ArgAction::Help | ArgAction::Version | ArgAction::Count => return arg,
        _ => arg,
    };
    // `--listen` of a single gateway has the variable of its setting.
    let name = match arg.get_id().as_str() {
        id @ ("s3_listen" | "ftp_listen") => id.to_uppercase(),
        _ => name,
    };
    let variable = match arg.get_env() {
        _ if is_others => return arg,
        Some(variable) => variable.to_os_string(),
        None => format!("HUGBUCKET_{name}").into(),
    };
    let is_hidden = arg.get_env().is_none();
    // Without a value the option must not take an empty one.
    let is_empty = std::env::var_os(&variable).is_some_and(|value| value.is_empty());
    match is_empty {
        true => arg.env(Resettable::<clap::builder::OsStr>::Reset),
        false => arg.env(variable).hide_env(is_hidden),
    }
}

/// Adds the settings of the file that `line` names, as options. Returns their ids.
fn add_file(command: &Command, line: &mut Vec<OsString>) -> Outcome<BTreeSet<String>> {
    let mut added = BTreeSet::new();
    // The parse that follows reports errors of the line.
    let Ok(first) = command.clone().ignore_errors(true).try_get_matches_from(&*line) else { return Ok(added) };
    let Some((name, given)) = first.subcommand().filter(|(name, _)| COMMANDS.contains(name)) else { return Ok(added) };
    let Some(path) = given.get_raw("config").and_then(|mut values| values.next()) else { return Ok(added) };
    let path = Path::new(path);
    let wrong = |why: String| Failure::new(Exit::Usage, why).about(path.display());
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let own = command.find_subcommand(name);
    let all = command.find_subcommand(ALL);
    for (key, values) in read(&text).map_err(wrong)? {
        let Some(arg) = all.and_then(|all| find(all, &key)) else {
            return Err(
                wrong(format!("{key} is no setting")).hint("each key is the name of an option: hugbucket serve --help")
            );
        };
        let id = arg.get_id().as_str();
        if SECRETS.contains(&id) || id == "config" {
            return Err(wrong(format!("{key} can't be in the file")));
        }
        let is_given = given.try_contains_id(id).is_ok()
            && matches!(given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        if is_given || own.is_none_or(|own| find(own, &key).is_none()) {
            continue;
        }
        let takes_value = arg.get_action().takes_values();
        for value in values {
            match (takes_value, value.as_str()) {
                (true, value) => line.push(format!("--{key}={value}").into()),
                (false, "true") => line.push(format!("--{key}").into()),
                (false, "false") => {}
                (false, _) => return Err(wrong(format!("{key} is true or false"))),
            }
        }
        added.insert(id.to_owned());
    }
    Ok(added)
}

fn find<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    let is_named = |arg: &&Arg| {
        arg.get_long() == Some(key) || arg.get_visible_aliases().is_some_and(|aliases| aliases.contains(&key))
    };
    command.get_arguments().find(is_named)
}

/// Reads a file: each key with its values.
fn read(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    let line_at = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_at(span.start));
        format!("line {line}: {}", error.message())
    })?;
    let scalar = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Boolean(boolean) => Some(boolean.to_string()),
        _ => None,
    };
    let mut settings = Vec::new();
    for (key, value) in table.get_ref() {
        let values = match value.get_ref() {
            DeValue::Array(values) => values.iter().map(|value| scalar(value.get_ref())).collect(),
            single => scalar(single).map(|value| vec![value]),
        };
        let wrong = || {
            let line = line_at(value.span().start);
            format!("line {line}: {} is a text, a number, true or false, or a list of those", key.get_ref())
        };
        settings.push((key.get_ref().to_string(), values.ok_or_else(wrong)?));
    }
    Ok(settings)
}

/// A setting, for `hugbucket config show`.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// Name of the option, or of a variable that no option has.
    pub name: String,
    /// Its values. A secret is shown as `(hidden)`.
    pub values: Vec<String>,
    /// Where they come from.
    pub source: String,
}

impl Settings {
    /// Lists the settings of `serve`.
    pub fn list(&self, command: &Command) -> Vec<Setting> {
        let command = with_variables(command.clone());
        let (Some(serve), Some((_, found))) = (command.find_subcommand(ALL), self.matches.subcommand()) else {
            return Vec::new();
        };
        let args = serve.get_arguments().filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version" | "config"));
        let mut settings: Vec<Setting> = args.filter_map(|arg| self.setting(arg, found)).collect();
        let variables = KEY_VARIABLES.iter().flat_map(|(id, secret)| [(*id, false), (*secret, true)]);
        for (name, is_secret) in variables {
            let Some(value) = std::env::var(name).ok().filter(|value| !value.is_empty()) else { continue };
            let value = if is_secret { "(hidden)".to_owned() } else { value };
            settings.push(Setting { name: name.to_owned(), values: vec![value], source: "environment".to_owned() });
        }
        settings
    }

    fn setting(&self, arg: &Arg, found: &ArgMatches) -> Option<Setting> {
        let (id, name) = (arg.get_id().as_str(), arg.get_long()?.to_owned());
        let hide = |value: String| if HIDDEN.contains(&id) { "(hidden)".to_owned() } else { value };
        let variable = OTHER_VARIABLES.iter().find(|(other, _)| *other == id).map(|(_, variable)| *variable);
        let from_variable = variable.and_then(|variable| Some((variable, std::env::var(variable).ok()?)));
        let (values, source) = match (found.value_source(id), from_variable) {
            (Some(ValueSource::CommandLine), _) if self.from_file.contains(id) => (raw(found, id), "file".to_owned()),
            (Some(ValueSource::CommandLine), _) => (raw(found, id), "option".to_owned()),
            (Some(ValueSource::EnvVariable), _) => {
                let variable = arg.get_env().unwrap_or_default().to_string_lossy();
                (raw(found, id), format!("environment ({variable})"))
            }
            (_, Some((variable, value))) => (vec![value], format!("environment ({variable})")),
            _ => (raw(found, id), "default".to_owned()),
        };
        Some(Setting { name, values: values.into_iter().map(hide).collect(), source })
    }
}

/// Returns the values of an option as they were written. A flag has `true` or `false`.
fn raw(found: &ArgMatches, id: &str) -> Vec<String> {
    let values = found.get_raw(id).into_iter().flatten();
    let values: Vec<String> = values.map(|value| value.to_string_lossy().into_owned()).collect();
    match found.try_get_one::<bool>(id) {
        Ok(Some(is_set)) => vec![is_set.to_string()],
        _ => values,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let all = [
            Arg::new("namespace").long("namespace").action(ArgAction::Append),
            Arg::new("s3_listen").long("s3-listen").default_value("127.0.0.1:9000"),
            Arg::new("anonymous").long("anonymous").action(ArgAction::SetTrue),
            Arg::new("config").long("config"),
            Arg::new("hf_token").long("hf-token"),
        ];
        let s3 = Command::new("s3").args([all[1].clone().long("listen").visible_alias("s3-listen"), all[3].clone()]);
        Command::new("test").subcommand(Command::new(ALL).args(all)).subcommand(s3)
    }

    /// Parses a command line with this file.
    fn parsed(line: &[&str], file: &str) -> Outcome<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, file).unwrap();
        let option = format!("--config={}", path.display());
        let line = ["test"].iter().chain(line).map(|word| OsString::from(*word)).chain([option.into()]);
        parse(command(), line.collect())
    }

    fn sources(settings: &Settings) -> Vec<(String, Vec<String>, String)> {
        let shown = settings.list(&command()).into_iter().filter(|setting| setting.name.to_lowercase() == setting.name);
        shown.map(|setting| (setting.name, setting.values, setting.source)).collect()
    }

    #[test]
    fn options_win_over_the_file_and_the_file_over_defaults() {
        let file = "namespace = [\"a\", \"b\"]\nanonymous = true\ns3-listen = \"1.1.1.1:1\"";
        let settings = parsed(&["serve", "--s3-listen", "2.2.2.2:2"], file).unwrap();
        let found = sources(&settings);
        let texts = |values: &[&str]| values.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(found[0], ("namespace".into(), texts(&["a", "b"]), "file".into()));
        assert_eq!(found[1], ("s3-listen".into(), texts(&["2.2.2.2:2"]), "option".into()));
        assert_eq!(found[2], ("anonymous".into(), texts(&["true"]), "file".into()));
        let settings = parsed(&["serve"], "").unwrap();
        assert_eq!(sources(&settings)[1].2, "default");
        // The same file serves a single gateway, which leaves out what isn't its own.
        let settings = parsed(&["s3"], file).unwrap();
        let (_, found) = settings.matches.subcommand().unwrap();
        assert_eq!(found.get_one::<String>("s3_listen").unwrap(), "1.1.1.1:1");
    }

    #[test]
    fn faults_of_the_file_name_key_or_line() {
        for (file, part) in [
            ("a = 1", "a is no setting"),
            ("namespace = \"x\"\n=", "line 2: "),
            ("\nnamespace = { x = 1 }", "line 2: namespace is"),
            ("namespace = [[\"x\"]]", "line 1: namespace is"),
            ("anonymous = \"yes\"", "anonymous is true or false"),
            ("hf-token = \"hf_secret\"", "hf-token can't be in the file"),
            ("config = \"x\"", "config can't be in the file"),
        ] {
            let failure = parsed(&["serve"], file).err().expect(file);
            assert!(failure.message.contains(part) && !failure.message.contains("secret"), "{file}: {failure:?}");
            assert_eq!(failure.exit, Exit::Usage);
        }
        let missing = parse(command(), ["test", "serve", "--config=/nowhere/x"].map(OsString::from).to_vec());
        assert_eq!(missing.err().map(|failure| failure.exit), Some(Exit::Usage));
    }
}
