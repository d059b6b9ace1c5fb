//! A value as it was given, and what it is read as.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::config::Size;

/// The word for a setting without a value.
pub(crate) const OFF: &str = "off";

/// A value as it was written.
#[derive(Clone, Copy)]
pub(crate) enum Given<'a> {
    /// In a variable or after a flag.
    Text(&'a str),
    /// In the file.
    Toml(&'a toml::Value),
}

impl Given<'_> {
    /// As it was written, for messages.
    pub(crate) fn shown(self) -> String {
        match self {
            Given::Text(text) => text.to_owned(),
            Given::Toml(value) => value.to_string(),
        }
    }

    /// Plain text. Errors: anything else in a file.
    pub(crate) fn text(&self) -> Result<&str, String> {
        match self {
            Given::Text(text) => Ok(text),
            Given::Toml(toml::Value::String(text)) => Ok(text),
            Given::Toml(_) => Err("give text in quotes".to_owned()),
        }
    }

    pub(crate) fn is_off(&self) -> bool {
        self.text() == Ok(OFF)
    }

    /// A size in bytes.
    pub(crate) fn size(&self) -> Result<u64, String> {
        let text = self.text().map_err(|_| "give a size in quotes with its unit, such as \"512MiB\"".to_owned())?;
        Ok(text.parse::<Size>()?.0)
    }

    /// A whole number. Errors name the range.
    pub(crate) fn number(&self, range: RangeInclusive<u64>) -> Result<u64, String> {
        let number = match self {
            Given::Text(text) => text.parse().ok(),
            Given::Toml(toml::Value::Integer(number)) => u64::try_from(*number).ok(),
            Given::Toml(_) => None,
        };
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("give a whole number from {} to {}", range.start(), range.end()))
    }

    /// True or false.
    pub(crate) fn truth(&self) -> Result<bool, String> {
        match self {
            Given::Text("true") | Given::Toml(toml::Value::Boolean(true)) => Ok(true),
            Given::Text("false") | Given::Toml(toml::Value::Boolean(false)) => Ok(false),
            _ => Err("give true or false".to_owned()),
        }
    }

    /// One of some words.
    pub(crate) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, String> {
        let text = self.text().ok();
        let found = words.iter().find(|(word, _)| Some(*word) == text).map(|(_, value)| *value);
        found.ok_or_else(|| format!("give {}", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ")))
    }

    /// A path. Relative ones start where the command was typed, so a file has none.
    pub(crate) fn path(&self) -> Result<PathBuf, String> {
        let path = PathBuf::from(self.text()?);
        if path.as_os_str().is_empty() {
            return Err("give a path".to_owned());
        }
        match self {
            Given::Toml(_) if !path.is_absolute() => Err("give a path from the root on".to_owned()),
            _ => std::path::absolute(&path).map_err(|error| error.to_string()),
        }
    }

    /// Numbers in a list, or with commas between them.
    pub(crate) fn numbers(&self) -> Result<Vec<u32>, String> {
        let wrong = || "give user ids, such as [1000, 1001] in a file and 1000,1001 elsewhere".to_owned();
        match self {
            Given::Text(text) => text.split(',').map(|part| part.trim().parse().map_err(|_| wrong())).collect(),
            Given::Toml(toml::Value::Array(values)) => {
                let number = |value: &toml::Value| value.as_integer().and_then(|number| u32::try_from(number).ok());
                values.iter().map(|value| number(value).ok_or_else(wrong)).collect()
            }
            Given::Toml(_) => Err(wrong()),
        }
    }

    /// Sizes by name: a table in a file, `NAME=SIZE,NAME=SIZE` elsewhere.
    pub(crate) fn sizes(&self) -> Result<Vec<(String, u64)>, String> {
        match self {
            Given::Text(text) => {
                let pair = |part: &str| {
                    let (name, size) = part.split_once('=').ok_or("give TENANT=SIZE, with commas between several")?;
                    Ok((name.trim().to_owned(), size.trim().parse::<Size>()?.0))
                };
                text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
            }
            Given::Toml(toml::Value::Table(table)) => {
                table.iter().map(|(name, value)| Ok((name.clone(), Given::Toml(value).size()?))).collect()
            }
            Given::Toml(_) => Err("give a table of TENANT = \"SIZE\"".to_owned()),
        }
    }
}
