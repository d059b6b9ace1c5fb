//! Every setting: its name, what it says, how it is read and how it is written.

use std::collections::BTreeMap;
use std::path::Path;

use cache_core::hash::TenantId;
use disk_tier::Admission;
use tracing::Level;

use crate::config::given::{Given, OFF};
use crate::config::{Config, Size, Verify};

/// A setting.
pub struct Key {
    /// In a file. A variable has it in capitals after `KVTIER_`.
    pub name: &'static str,
    /// What it says, with its unit.
    pub what: &'static str,
    /// Its default, in words.
    pub default: &'static str,
    pub(crate) set: fn(&mut Config, &Given<'_>) -> Result<(), String>,
    pub(crate) show: fn(&Config) -> String,
}

impl Key {
    /// The variable that gives it.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name.to_uppercase())
    }
}

/// What our variables begin with.
pub(crate) const VARIABLE_PREFIX: &str = "KVTIER_";

/// A day, for what is given in milliseconds.
const DAY_MS: u64 = 86_400_000;

const ADMISSIONS: [(&str, Admission); 2] = [("always", Admission::Always), ("second-hit", Admission::SecondHit)];
const VERIFICATIONS: [(&str, Verify); 2] = [("on_entry", Verify::OnEntry), ("always", Verify::Always)];
const LEVELS: [(&str, Level); 5] = [
    ("error", Level::ERROR),
    ("warn", Level::WARN),
    ("info", Level::INFO),
    ("debug", Level::DEBUG),
    ("trace", Level::TRACE),
];

/// All settings, in the order in which they are printed.
pub static KEYS: [Key; 21] = [
    Key {
        name: "socket",
        what: "path of the Unix socket; its folder is made with mode 0750",
        default: "`/run/kvtier/kvtier.sock` for root, else `$XDG_RUNTIME_DIR/kvtier/kvtier.sock`, \
                  or `kvtier-UID/kvtier.sock` among the temporary files",
        set: |config, given| given.path().map(|path| config.socket = path),
        show: |config| path(&config.socket),
    },
    Key {
        name: "http",
        what: "address and port of the statistics endpoint; `off` for none",
        default: "`127.0.0.1:7411`",
        set: |config, given| {
            config.http = match given.is_off() {
                true => None,
                false => Some(given.text()?.parse().map_err(|_| "give ADDRESS:PORT, such as 127.0.0.1:7411, or off")?),
            };
            Ok(())
        },
        show: |config| config.http.map_or_else(off, |address| quoted(&address.to_string())),
    },
    Key {
        name: "http_public",
        what: "whether the statistics endpoint may listen beyond this machine; it asks for no password",
        default: "`false`",
        set: |config, given| given.truth().map(|truth| config.http_public = truth),
        show: |config| config.http_public.to_string(),
    },
    Key {
        name: "host_mem",
        what: "hard limit of the host arena, metadata included",
        default: "a quarter of RAM",
        set: |config, given| given.size().map(|bytes| config.host_mem_bytes = bytes),
        show: |config| size(config.host_mem_bytes),
    },
    Key {
        name: "disk",
        what: "folder of the store in which blocks outlive the daemon, made when it is not there; `off` for none",
        default: "`off`",
        set: |config, given| {
            config.disk = if given.is_off() { None } else { Some(given.path()?) };
            Ok(())
        },
        show: |config| config.disk.as_deref().map_or_else(off, path),
    },
    Key {
        name: "disk_size",
        what: "hard limit of everything in that folder, at least 64MiB",
        default: "`8GiB`",
        set: |config, given| given.size().map(|bytes| config.disk_size_bytes = bytes),
        show: |config| size(config.disk_size_bytes),
    },
    Key {
        name: "disk_admission",
        what: "which blocks are written: `always`, or those offered for the second time, `second-hit`",
        default: "`always`",
        set: |config, given| given.word(&ADMISSIONS).map(|admission| config.disk_admission = admission),
        show: |config| word(&ADMISSIONS, config.disk_admission),
    },
    Key {
        name: "disk_io",
        what: "the way to the disk: `auto`, `io_uring` or `pread`; `auto` is io_uring where the kernel allows it",
        default: "`auto`",
        set: |config, given| {
            let choice = given.text()?.parse().map_err(|_| "give auto, io_uring or pread")?;
            config.disk_io = choice;
            Ok(())
        },
        show: |config| quoted(&config.disk_io.to_string()),
    },
    Key {
        name: "allow_uids",
        what: "users whose processes may connect, by user id in the daemon's user namespace; one that it does not map is never let in",
        default: "the daemon's own user",
        set: |config, given| given.numbers().map(|uids| config.allow_uids = uids),
        show: |config| format!("{:?}", config.allow_uids),
    },
    Key {
        name: "clients_max",
        what: "connections at once, at most (1 to 10000)",
        default: "`256`",
        set: |config, given| given.number(1..=10_000).map(|number| config.clients_max = number as u32),
        show: |config| config.clients_max.to_string(),
    },
    Key {
        name: "client_staging",
        what: "memory that a client may have for blocks on their way in, taken out of `host_mem` when it first stores one; an eighth of that, or as much \
               as one client may have if it is more (at most a quarter), is kept free for it",
        default: "`64MiB`",
        set: |config, given| given.size().map(|bytes| config.client_staging_bytes = bytes),
        show: |config| size(config.client_staging_bytes),
    },
    Key {
        name: "touch_ahead",
        what: "memory for new blocks that is committed before they come, in the background, at most a quarter of `host_mem`; `off` for none",
        default: "`256MiB`",
        set: |config, given| {
            config.touch_ahead_bytes = if given.is_off() { 0 } else { given.size()? };
            Ok(())
        },
        show: |config| if config.touch_ahead_bytes == 0 { off() } else { size(config.touch_ahead_bytes) },
    },
    Key {
        name: "deadline_ms",
        what: "milliseconds that a call may take when it names no deadline itself (1 to a day)",
        default: "`1000`",
        set: |config, given| given.number(1..=DAY_MS).map(|number| config.deadline_ms = number as u32),
        show: |config| config.deadline_ms.to_string(),
    },
    Key {
        name: "lease_ttl_ms",
        what: "milliseconds after which a lease that nobody released ends, whatever its client does meanwhile; 0.2 s or a 64th of that later at most (1000 to a day)",
        default: "`600000`",
        set: |config, given| given.number(1000..=DAY_MS).map(|number| config.lease_ttl_ms = number),
        show: |config| config.lease_ttl_ms.to_string(),
    },
    Key {
        name: "hello_timeout_ms",
        what: "milliseconds that a connection may take to introduce itself, or to finish a frame (1 to a day)",
        default: "`5000`",
        set: |config, given| given.number(1..=DAY_MS).map(|number| config.hello_timeout_ms = number),
        show: |config| config.hello_timeout_ms.to_string(),
    },
    Key {
        name: "idle_timeout_ms",
        what: "milliseconds without a call after which a client that holds nothing is let go; 0 for never",
        default: "`0`",
        set: |config, given| given.number(0..=DAY_MS).map(|number| config.idle_timeout_ms = number),
        show: |config| config.idle_timeout_ms.to_string(),
    },
    Key {
        name: "tenant_quota",
        what: "bytes that a tenant may have in memory, and on the disk, when `quotas` does not name it; `off` for no limit",
        default: "`off`",
        set: |config, given| {
            config.tenant_quota_bytes = if given.is_off() { None } else { Some(given.size()?) };
            Ok(())
        },
        show: |config| config.tenant_quota_bytes.map_or_else(off, size),
    },
    Key {
        name: "quotas",
        what: "bytes by tenant: 64 hexadecimal digits, the digest of its salt, and a size",
        default: "none",
        set: |config, given| {
            let quotas = given.sizes()?.into_iter().map(|(name, bytes)| Ok((tenant(&name)?, bytes)));
            config.quotas = quotas.collect::<Result<BTreeMap<_, _>, String>>()?;
            Ok(())
        },
        show: |config| {
            let pairs: Vec<String> =
                config.quotas.iter().map(|(tenant, bytes)| format!("{tenant} = {}", size(*bytes))).collect();
            if pairs.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", pairs.join(", ")) }
        },
    },
    Key {
        name: "verify",
        what: "when sums of blocks in memory are checked: as they enter (`on_entry`), or on each hit too (`always`)",
        default: "`on_entry`",
        set: |config, given| given.word(&VERIFICATIONS).map(|verify| config.verify = verify),
        show: |config| word(&VERIFICATIONS, config.verify),
    },
    Key {
        name: "scrub_rate",
        what: "bytes a second of blocks in memory that are checked again in the background; `off` for none",
        default: "`64MiB`",
        set: |config, given| {
            config.scrub_bytes_s = if given.is_off() { 0 } else { given.size()? };
            Ok(())
        },
        show: |config| if config.scrub_bytes_s == 0 { off() } else { size(config.scrub_bytes_s) },
    },
    Key {
        name: "log_level",
        what: "what is logged: `error`, `warn`, `info`, `debug` or `trace`; never token ids, salts or keys",
        default: "`info`",
        set: |config, given| given.word(&LEVELS).map(|level| config.log_level = level),
        show: |config| word(&LEVELS, config.log_level),
    },
];

fn tenant(text: &str) -> Result<TenantId, String> {
    let wrong = || format!("`{text}` is no tenant; give the 64 hexadecimal digits of its digest");
    let digits: Vec<u8> = text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    if digits.len() != 64 || text.chars().count() != 64 {
        return Err(wrong());
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Ok(TenantId(bytes))
}

fn off() -> String {
    quoted(OFF)
}

fn size(bytes: u64) -> String {
    quoted(&Size(bytes).exact())
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn word<T: PartialEq>(words: &[(&str, T)], value: T) -> String {
    let found = words.iter().find(|(_, known)| *known == value).expect("every value has its word");
    quoted(found.0)
}

/// As TOML writes text.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
