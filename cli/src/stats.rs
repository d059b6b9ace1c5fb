//! `kvtier stats`: a daemon's figures, as JSON or as short tables.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use clap::Args;
use kvtier_daemon::config::Size;
use kvtier_daemon::stats::{ByName, Snapshot, TierUse};

use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::output;

/// `kvtier stats`.
#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    /// The daemon's statistics endpoint [default: where its settings have it, 127.0.0.1:7411]
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Option<SocketAddr>,
    /// The answer of /stats on stdout, one line
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. Exit codes: 2 for settings that cannot be used, 3 where no daemon answers.
pub fn run(args: &StatsArgs) -> Result<(), Failure> {
    let endpoint = Endpoint::new(args.http)?;
    if args.json {
        return output::print_line(endpoint.text("/stats")?.trim_end());
    }
    let snapshot: Snapshot = endpoint.read("/stats")?;
    output::print_line(&headline(&snapshot))?;
    for table in [tiers(&snapshot), tokens(&snapshot), counts(&snapshot), latency(&snapshot), clients(&snapshot)] {
        output::print_line("")?;
        output::print_table(&table)?;
    }
    Ok(())
}

/// State, age, and what holds leases.
pub fn headline(snapshot: &Snapshot) -> String {
    let run = snapshot.daemon.get(..8).unwrap_or(&snapshot.daemon);
    let (clients, leases) = (&snapshot.clients, &snapshot.leases);
    format!(
        "kvtier {run}: {} for {}, {} of {} clients, {} leases on {}, {} slots being filled",
        snapshot.state.name(),
        age(snapshot.uptime_ms),
        clients.count,
        clients.limit,
        leases.count,
        Size(leases.bytes),
        snapshot.reservations
    )
}

/// Fill of each tier. The first row of this and the other tables is their head.
pub fn tiers(snapshot: &Snapshot) -> Vec<Vec<String>> {
    let disk = snapshot.tiers.disk.as_ref().map(|disk| ("disk", &disk.usage));
    let row = |(name, tier): (&str, &TierUse)| {
        vec![
            name.to_owned(),
            share(tier.fill),
            Size(tier.used_bytes).to_string(),
            Size(tier.budget_bytes).to_string(),
            tier.blocks.to_string(),
            snapshot.evictions.get(name).copied().unwrap_or(0).to_string(),
        ]
    };
    let rows = [("host", &snapshot.tiers.host)].into_iter().chain(disk).map(row);
    with_head(["tier", "fill", "used", "budget", "blocks", "evicted"], rows)
}

/// What became of the tokens that were asked for, and of those offered.
pub fn tokens(snapshot: &Snapshot) -> Vec<Vec<String>> {
    let all = snapshot.requested.tokens;
    let row = |(name, amount): (&str, kvtier_daemon::stats::Amount), of_all: bool| {
        let part = if of_all && all > 0 { share(amount.tokens as f64 / all as f64) } else { "-".to_owned() };
        vec![
            name.to_owned(),
            amount.tokens.to_string(),
            part,
            amount.blocks.to_string(),
            Size(amount.bytes).to_string(),
        ]
    };
    let rows = [
        row(("asked for", snapshot.requested), false),
        row(("host", snapshot.hits.host), true),
        row(("disk", snapshot.hits.disk), true),
        row(("stored", snapshot.stores.accepted), false),
        row(("there already", snapshot.stores.present), false),
        row(("loaded", snapshot.loads), false),
    ];
    with_head(["", "tokens", "share", "blocks", "bytes"], rows.into_iter())
}

/// Everything that is counted by reason and has happened, the most frequent first within its kind.
pub fn counts(snapshot: &Snapshot) -> Vec<Vec<String>> {
    let forms = snapshot.saved.form_bytes.clone().into_iter();
    let saved: ByName = forms.chain([("sharing".into(), snapshot.saved.sharing_bytes)]).collect();
    let kinds: [(&str, &ByName, bool); 7] = [
        ("missed", &snapshot.misses, false),
        ("saved by", &saved, true),
        ("not stored", &snapshot.stores.refused, false),
        ("failed check", &snapshot.integrity_failures, false),
        ("leases ended", &snapshot.leases.reclaimed, false),
        ("client refused", &snapshot.clients.rejected, false),
        ("protocol error", &snapshot.protocol_errors, false),
    ];
    let rows = kinds.into_iter().flat_map(|(kind, counts, is_bytes)| {
        let shown = move |count: u64| if is_bytes { Size(count).to_string() } else { count.to_string() };
        sorted(counts)
            .into_iter()
            .map(move |(name, count)| vec![format!("{kind}: {}", name.replace('_', " ")), shown(count)])
    });
    let single = [
        ("leases lost", snapshot.leases.lost.to_string()),
        ("copied for hits", Size(snapshot.copied_bytes).to_string()),
        ("checked again", Size(snapshot.scrubbed_bytes).to_string()),
    ];
    with_head(["", "so far"], rows.chain(single.map(|(name, count)| vec![name.to_owned(), count])))
}

/// Durations of operations that were called.
pub fn latency(snapshot: &Snapshot) -> Vec<Vec<String>> {
    let used = snapshot.latency.operations.iter().filter(|(_, times)| times.count > 0);
    let rows = used.map(|(name, times)| {
        let [p50, p90, p99] = [times.p50_us, times.p90_us, times.p99_us].map(|us| us.map_or("-".to_owned(), time));
        vec![name.to_string(), p50, p90, p99, times.count.to_string()]
    });
    with_head(["call", "p50", "p90", "p99", "calls"], rows)
}

/// Who is connected.
pub fn clients(snapshot: &Snapshot) -> Vec<Vec<String>> {
    let rows = snapshot.clients.connected.iter().map(|client| {
        // A name is the client's own text: nothing in it may move the cursor.
        let name: String = client.name.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
        let [pid, leases, filling] = [u64::from(client.pid), client.leases, client.reservations].map(|n| n.to_string());
        vec![name, pid, leases, filling, Size(client.staging_bytes).to_string()]
    });
    with_head(["client", "process", "leases", "filling", "staging"], rows)
}

/// Counts above 0, the largest first.
pub fn sorted(counts: &BTreeMap<kvtier_daemon::stats::Name, u64>) -> Vec<(&str, u64)> {
    let mut found: Vec<(&str, u64)> =
        counts.iter().filter(|(_, count)| **count > 0).map(|(name, count)| (name.as_ref(), *count)).collect();
    found.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    found
}

/// A part of a whole.
pub fn share(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

/// Microseconds in a unit that suits them.
fn time(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 1e3 => (us, "us"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

fn with_head<const N: usize>(head: [&str; N], rows: impl Iterator<Item = Vec<String>>) -> Vec<Vec<String>> {
    std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ages_have_units_that_suit_them() {
        assert_eq!([7.25, 60.0, 1500.0, 2.5e6].map(time), ["7.2 us", "60 us", "1.5 ms", "2.5 s"]);
        assert_eq!([900, 61_000, 3_660_000, 90_000_000].map(age), ["0 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    }
}
