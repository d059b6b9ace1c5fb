//! Where values come from, and in which order.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::given::Given;
use crate::config::keys::{KEYS, Key, VARIABLE_PREFIX};
use crate::config::suggest::nearest;
use crate::config::{Config, ConfigError, Machine, Origin};

/// Names the file, as `--config` does.
const FILE_VARIABLE: &str = "KVTIER_CONFIG";
/// Variables of our prefix that are no settings of the daemon: the engine's, and those of developer commands.
const OTHER_VARIABLES: [&str; 14] = [
    "KVTIER_DEVICE",
    "KVTIER_FUZZ_SECONDS",
    "KVTIER_IO_TEST_CHILD",
    "KVTIER_ISA",
    "KVTIER_MODEL_DIR",
    "KVTIER_PAGE_PICTURES",
    "KVTIER_PYTHON",
    "KVTIER_SEED",
    "KVTIER_SEEDS",
    "KVTIER_SOAK",
    "KVTIER_SOAK_MINUTES",
    "KVTIER_TEST_DRIVER",
    "KVTIER_TEST_REPORT_CUDA",
    "KVTIER_WRITE_HEADER",
];

/// A value that was typed.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The key.
    pub key: &'static str,
    /// The flag, as it is typed.
    pub flag: &'static str,
    /// Its value.
    pub value: String,
}

/// Everything that can say something about the settings.
#[derive(Clone, Debug)]
pub struct Sources {
    /// What defaults are made from.
    pub machine: Machine,
    /// The file that `--config` names.
    pub file: Option<PathBuf>,
    /// Variables of the environment, all of them.
    pub environment: Vec<(OsString, OsString)>,
    /// What was typed.
    pub flags: Vec<Flag>,
}

impl Sources {
    /// This machine and this process's environment. Errors: `Machine`.
    pub fn here(file: Option<PathBuf>, flags: Vec<Flag>) -> Result<Sources, ConfigError> {
        Ok(Sources { machine: Machine::here()?, file, environment: std::env::vars_os().collect(), flags })
    }

    pub(crate) fn apply(&self, config: &mut Config) -> Result<(), ConfigError> {
        let variables = self.variables();
        if let Some(path) = self.find_file(&variables) {
            read_file(config, &path)?;
        }
        for (name, value) in variables.iter().filter(|(name, _)| name != FILE_VARIABLE) {
            let key = KEYS.iter().find(|key| key.variable() == *name).ok_or_else(|| unknown_variable(name))?;
            set(config, key, Given::Text(value), Origin::Environment(name.clone()))?;
        }
        for Flag { key, flag, value } in &self.flags {
            let key = KEYS.iter().find(|known| known.name == *key).expect("a flag's key is in the table");
            set(config, key, Given::Text(value), Origin::Flag(flag))?;
        }
        Ok(())
    }

    /// Variables that speak of the daemon, in the order of their names. An empty one says nothing.
    fn variables(&self) -> Vec<(String, String)> {
        let mut found: Vec<_> = self
            .environment
            .iter()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, value)| name.starts_with(VARIABLE_PREFIX) && !value.is_empty())
            .filter(|(name, _)| !OTHER_VARIABLES.contains(&name.as_str()))
            .collect();
        found.sort();
        found
    }

    /// The file that was named, else the first conventional one that exists.
    fn find_file(&self, variables: &[(String, String)]) -> Option<PathBuf> {
        let variable = variables.iter().find(|(name, _)| name == FILE_VARIABLE);
        let named = self.file.clone().or_else(|| variable.map(|(_, value)| PathBuf::from(value)));
        named.or_else(|| self.machine.file())
    }
}

fn read_file(config: &mut Config, path: &Path) -> Result<(), ConfigError> {
    let failed = |source: io::Error| ConfigError::Read { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count()),
        message: error.message().to_owned(),
    })?;
    for (name, value) in &table {
        let origin = Origin::File(path.to_owned());
        match KEYS.iter().find(|key| key.name == name) {
            Some(key) => set(config, key, Given::Toml(value), origin)?,
            None => return Err(unknown_key(name, origin)),
        }
    }
    Ok(())
}

fn set(config: &mut Config, key: &Key, given: Given<'_>, origin: Origin) -> Result<(), ConfigError> {
    let wrong = |problem| ConfigError::Value { key: key.name, value: given.shown(), origin: origin.clone(), problem };
    (key.set)(config, &given).map_err(wrong)?;
    config.origins.insert(key.name, origin);
    Ok(())
}

fn unknown_key(name: &str, origin: Origin) -> ConfigError {
    let fix = match nearest(name, KEYS.iter().map(|key| key.name)) {
        Some(known) => format!("did you mean `{known}`?"),
        None => "kvtier serve --print-config lists them".to_owned(),
    };
    ConfigError::Unknown { kind: "setting", name: name.to_owned(), origin, fix }
}

fn unknown_variable(name: &str) -> ConfigError {
    let known: Vec<String> = KEYS.iter().map(Key::variable).chain([FILE_VARIABLE.to_owned()]).collect();
    let others = OTHER_VARIABLES.iter().copied();
    let fix = match nearest(name, known.iter().map(String::as_str).chain(others)) {
        Some(known) => format!("did you mean `{known}`?"),
        None => "kvtier serve --print-config lists the settings; a variable is KVTIER_ and one of them in capitals"
            .to_owned(),
    };
    ConfigError::Unknown { kind: "variable", name: name.to_owned(), origin: Origin::Environment(name.to_owned()), fix }
}
