//! A daemon's statistics endpoint, asked over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use kvtier_daemon::config::{Config, Sources};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::Failure;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Room for an answer: the list of clients is the only part that grows.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// An endpoint.
pub struct Endpoint {
    address: SocketAddr,
    agent: ureq::Agent,
}

impl Endpoint {
    /// The endpoint at `address`, else where a daemon with this user's settings has it. Errors: exit code 2.
    pub fn new(address: Option<SocketAddr>) -> Result<Endpoint, Failure> {
        let address = match address {
            Some(address) => address,
            None => configured()?,
        };
        // A proxy that the environment names is for the world outside.
        let config = ureq::Agent::config_builder().timeout_global(Some(LIMIT)).http_status_as_error(false).proxy(None);
        Ok(Endpoint { address, agent: config.build().into() })
    }

    /// What it answers, as text. Errors: exit code 3, with the endpoint's own words where it has any.
    pub fn text(&self, path: &str) -> Result<String, Failure> {
        let failed = |error: ureq::Error| Failure {
            code: 3,
            message: format!("no daemon answers at http://{}: {error}; --http names another address", self.address),
        };
        let mut answer = self.agent.get(format!("http://{}{path}", self.address)).call().map_err(failed)?;
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string().map_err(failed)?;
        if answer.status().is_success() {
            return Ok(text);
        }
        let told = serde_json::from_str::<Value>(&text).ok().and_then(|told| Some(told["error"].as_str()?.to_owned()));
        Err(Failure { code: 3, message: told.unwrap_or_else(|| format!("{path} answers {}", answer.status())) })
    }

    /// What it answers, understood. Errors: exit code 3.
    pub fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let failed = |error| Failure {
            code: 3,
            message: format!("{path} at {} answers what this version does not understand: {error}", self.address),
        };
        serde_json::from_str(&self.text(path)?).map_err(failed)
    }
}

fn configured() -> Result<SocketAddr, Failure> {
    let sources = Sources::here(None, Vec::new());
    let config = sources.and_then(|sources| Config::load(&sources)).map_err(|error| Failure::from_error(&error, 2))?;
    config.http.ok_or_else(|| Failure::input("the settings say http = \"off\"; --http names an address"))
}

/// A word for a query: all but the plainest characters are escaped.
pub fn escaped(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    word.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_escaped_for_a_query() {
        assert_eq!(escaped("chat-7 a&b=ü"), "chat-7%20a%26b%3D%C3%BC");
    }
}
