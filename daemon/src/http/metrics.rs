//! A snapshot as Prometheus text: counters in tokens and bytes, explicit buckets, rates left to the reader's queries.
//!
//! `docs/daemon.md` lists the names. Every figure comes from the snapshot, which counts each thing once; the text is written by the
//! exporter's own formatting.

use std::fmt::Display;

use metrics::{Key, Label};
use metrics_exporter_prometheus::LabelSet;
use metrics_exporter_prometheus::formatting::{write_help_line, write_metric_line, write_type_line};

use crate::stats::{Ages, ByName, Latency, Process, Snapshot, State, TierUse};

/// The media type of the text.
pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The whole answer of `/metrics`.
pub(crate) fn render(snapshot: &Snapshot) -> String {
    let mut text = Text(String::with_capacity(16 << 10));
    about(&mut text, snapshot);
    lookups(&mut text, snapshot);
    stores(&mut text, snapshot);
    tiers(&mut text, snapshot);
    clients(&mut text, snapshot);
    trust(&mut text, snapshot);
    let latency = &snapshot.latency;
    let operations = latency.operations.iter().map(|(operation, times)| (vec![("op", &**operation)], times));
    text.histogram("kvtier_op_duration_seconds", "Duration of operations", &latency.bounds_us, operations);
    ages(&mut text, &snapshot.ages);
    process(&mut text, &snapshot.process);
    text.0
}

fn about(text: &mut Text, snapshot: &Snapshot) {
    text.family("kvtier_build_info", "gauge", "Version of the daemon; always 1");
    text.line("kvtier_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.single("kvtier_uptime_seconds", "gauge", "Time since the daemon was started", snapshot.uptime_ms as f64 / 1e3);
    text.family("kvtier_state", "gauge", "1 for the state that the daemon is in");
    for state in State::ALL {
        text.line("kvtier_state", &[("state", state.name())], u8::from(state == snapshot.state));
    }
}

fn lookups(text: &mut Text, snapshot: &Snapshot) {
    let (requested, hits) = (&snapshot.requested, &snapshot.hits);
    let asked = "Tokens that clients asked to lease";
    text.single("kvtier_lookup_requested_tokens_total", "counter", asked, requested.tokens);
    let tiers = [("host", &hits.host), ("disk", &hits.disk)];
    text.family("kvtier_lookup_hit_tokens_total", "counter", "Tokens found, by tier");
    for (tier, amount) in tiers {
        text.line("kvtier_lookup_hit_tokens_total", &[("tier", tier)], amount.tokens);
    }
    text.family("kvtier_lookup_hit_bytes_total", "counter", "Bytes found, by tier");
    for (tier, amount) in tiers {
        text.line("kvtier_lookup_hit_bytes_total", &[("tier", tier)], amount.bytes);
    }
    text.family(
        "kvtier_lookup_blocks_total",
        "counter",
        "Blocks looked up: the tier of a hit, or the reason of a miss",
    );
    for (tier, amount) in tiers {
        text.line("kvtier_lookup_blocks_total", &[("result", tier)], amount.blocks);
    }
    for (reason, blocks) in &snapshot.misses {
        text.line("kvtier_lookup_blocks_total", &[("result", reason)], blocks);
    }
}

fn stores(text: &mut Text, snapshot: &Snapshot) {
    let stores = &snapshot.stores;
    let results = [("accepted", &stores.accepted), ("present", &stores.present)];
    text.family("kvtier_store_tokens_total", "counter", "Tokens offered: taken, or there already");
    for (result, amount) in results {
        text.line("kvtier_store_tokens_total", &[("result", result)], amount.tokens);
    }
    text.family("kvtier_store_bytes_total", "counter", "Bytes offered: taken, or there already");
    for (result, amount) in results {
        text.line("kvtier_store_bytes_total", &[("result", result)], amount.bytes);
    }
    text.by_name(
        "kvtier_store_skipped_total",
        "counter",
        "Offered blocks that were not taken",
        "reason",
        &stores.refused,
    );
    text.single("kvtier_load_tokens_total", "counter", "Tokens read from the disk into memory", snapshot.loads.tokens);
    text.single("kvtier_load_bytes_total", "counter", "Bytes read from the disk into memory", snapshot.loads.bytes);
    let saved = &snapshot.saved;
    text.family(
        "kvtier_saved_bytes_total",
        "counter",
        "Bytes not stored: there already, or smaller than 16-bit values",
    );
    text.line("kvtier_saved_bytes_total", &[("by", "sharing")], saved.sharing_bytes);
    for (form, bytes) in &saved.form_bytes {
        text.line("kvtier_saved_bytes_total", &[("by", form)], bytes);
    }
}

fn tiers(text: &mut Text, snapshot: &Snapshot) {
    let disk = snapshot.tiers.disk.as_ref();
    let tiers: Vec<(&str, TierUse)> =
        [("host", snapshot.tiers.host)].into_iter().chain(disk.map(|disk| ("disk", disk.usage))).collect();
    let gauge = |text: &mut Text, name: &'static str, what: &'static str, of: fn(&TierUse) -> u64| {
        text.family(name, "gauge", what);
        for (tier, usage) in &tiers {
            text.line(name, &[("tier", tier)], of(usage));
        }
    };
    gauge(text, "kvtier_tier_used_bytes", "Bytes in use, metadata included", |usage| usage.used_bytes);
    gauge(text, "kvtier_tier_capacity_bytes", "The hard limit", |usage| usage.budget_bytes);
    gauge(text, "kvtier_tier_entries", "Blocks that can be found", |usage| usage.blocks);
    text.by_name("kvtier_evictions_total", "counter", "Copies dropped to make room", "tier", &snapshot.evictions);
    text.by_name("kvtier_evicted_bytes_total", "counter", "Bytes of these copies", "tier", &snapshot.evicted_bytes);
    let Some(disk) = disk else { return };
    text.family("kvtier_tier_state", "gauge", "1 for the state that a tier is in");
    for state in ["recovering", "ready", "offline", "closed"] {
        text.line("kvtier_tier_state", &[("tier", "disk"), ("state", state)], u8::from(state == disk.state));
    }
    text.family("kvtier_disk_io_bytes_total", "counter", "Bytes read and written, all that a drive sees");
    text.line("kvtier_disk_io_bytes_total", &[("op", "read")], disk.read_bytes);
    text.line("kvtier_disk_io_bytes_total", &[("op", "write")], disk.written_bytes);
    text.family("kvtier_io_errors_total", "counter", "Operations that failed or were not ended in time");
    text.line("kvtier_io_errors_total", &[("tier", "disk")], disk.io_errors);
    text.family("kvtier_io_inflight", "gauge", "Operations under way");
    text.line("kvtier_io_inflight", &[("tier", "disk")], disk.io_inflight);
}

fn clients(text: &mut Text, snapshot: &Snapshot) {
    let (clients, leases) = (&snapshot.clients, &snapshot.leases);
    text.single("kvtier_clients", "gauge", "Connections", clients.count);
    text.single("kvtier_clients_limit", "gauge", "Connections at once, at most", clients.limit);
    let what = "Connections that were refused or ended by the daemon";
    text.by_name("kvtier_client_rejects_total", "counter", what, "reason", &clients.rejected);
    text.single("kvtier_leases", "gauge", "Leases that stand", leases.count);
    text.single("kvtier_leased_bytes", "gauge", "Bytes of the slots that leases hold", leases.bytes);
    text.single("kvtier_leases_lost_total", "counter", "Leases whose slot had changed hands", leases.lost);
    let what = "Leases that the daemon ended";
    text.by_name("kvtier_leases_reclaimed_total", "counter", what, "reason", &leases.reclaimed);
    text.single("kvtier_reservations", "gauge", "Slots that are being filled", snapshot.reservations);
}

fn trust(text: &mut Text, snapshot: &Snapshot) {
    let failures = &snapshot.integrity_failures;
    text.by_name("kvtier_integrity_failures_total", "counter", "Copies that did not verify", "tier", failures);
    let what = "What clients did that the protocol forbids";
    text.by_name("kvtier_protocol_errors_total", "counter", what, "kind", &snapshot.protocol_errors);
    let what = "Bytes of blocks brought back from the daemon before to answer a get";
    text.single("kvtier_get_copied_bytes_total", "counter", what, snapshot.copied_bytes);
    let what = "Bytes in memory that were checked again";
    text.single("kvtier_scrubbed_bytes_total", "counter", what, snapshot.scrubbed_bytes);
}

fn ages(text: &mut Text, ages: &Ages) {
    for (name, what, times) in [
        ("kvtier_block_lifetime_seconds", "From a copy's coming until it was evicted", &ages.lifetime),
        (
            "kvtier_block_idle_before_evict_seconds",
            "From a copy's last use until it was evicted",
            &ages.idle_before_evict,
        ),
        ("kvtier_block_reuse_gap_seconds", "From one use of a copy to the next", &ages.reuse_gap),
    ] {
        text.histogram(name, what, &ages.bounds_us, [(vec![("tier", "host")], times)]);
    }
}

/// Under the names that every client of Prometheus gives them.
fn process(text: &mut Text, process: &Process) {
    let gauge = "gauge";
    text.single("process_cpu_seconds_total", "counter", "Processor time, user and system", process.cpu_seconds);
    text.single("process_start_time_seconds", gauge, "When the process was started", process.start_time_seconds);
    text.single("process_resident_memory_bytes", gauge, "Memory that the process has", process.resident_bytes);
    text.single("process_virtual_memory_bytes", gauge, "Address space of the process", process.virtual_bytes);
    text.single("process_open_fds", gauge, "Descriptors that are open", process.open_fds);
    text.single("process_max_fds", gauge, "Descriptors that may be", process.max_fds);
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, what: &str) {
        write_help_line(&mut self.0, name, None, None, what);
        write_type_line(&mut self.0, name, None, None, kind);
    }

    fn line(&mut self, name: &str, labels: &[(&'static str, &str)], value: impl Display) {
        write_metric_line(&mut self.0, name, None, &set(labels), None::<(&'static str, &str)>, value, None);
    }

    fn single(&mut self, name: &str, kind: &str, what: &str, value: impl Display) {
        self.family(name, kind, what);
        self.line(name, &[], value);
    }

    fn by_name(&mut self, name: &str, kind: &str, what: &str, label: &'static str, counts: &ByName) {
        self.family(name, kind, what);
        for (value, count) in counts {
            self.line(name, &[(label, value)], count);
        }
    }

    /// Buckets count everything up to their end, which is given in seconds.
    fn histogram<'a>(
        &mut self,
        name: &str,
        what: &str,
        bounds_us: &[u64],
        all: impl IntoIterator<Item = (Vec<(&'static str, &'a str)>, &'a Latency)>,
    ) {
        self.family(name, "histogram", what);
        for (labels, times) in all {
            let labels = set(&labels);
            let mut total = 0;
            let ends = bounds_us.iter().map(|bound| (*bound as f64 / 1e6).to_string()).chain(["+Inf".to_owned()]);
            for (end, count) in ends.zip(&times.counts) {
                total += count;
                write_metric_line(&mut self.0, name, Some("bucket"), &labels, Some(("le", end)), total, None);
            }
            let none = None::<(&'static str, &str)>;
            write_metric_line(&mut self.0, name, Some("sum"), &labels, none, times.sum_us / 1e6, None);
            write_metric_line(&mut self.0, name, Some("count"), &labels, none, total, None);
        }
    }
}

fn set(labels: &[(&'static str, &str)]) -> LabelSet {
    let labels: Vec<Label> = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    LabelSet::from_key_and_global(&Key::from_parts("", labels), &Default::default())
}
