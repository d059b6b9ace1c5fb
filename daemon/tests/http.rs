//! The statistics endpoint over real connections: what each path answers, what every answer carries, and figures that agree.

mod figures;
mod served;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use figures::Figures;
use kvtier_daemon::stats::{Explanation, Snapshot, Source};
use serde_json::{Value, json};
use served::Served;

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    text: String,
}

/// Asks for a path; `host` instead of the address that is asked.
fn ask(served: &Served, path: &str, host: Option<&str>) -> Answer {
    // A connection of its own, closed at once: one that is kept would hold up the endpoint's end.
    let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).max_idle_connections(0).build();
    let request =
        ureq::Agent::from(config).get(format!("http://{}{path}", served.address)).header("connection", "close");
    let request = match host {
        Some(host) => request.header("host", host),
        None => request,
    };
    let mut answer = request.call().unwrap();
    let headers = answer.headers().iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    Answer { status: answer.status().as_u16(), headers, text: answer.body_mut().read_to_string().unwrap() }
}

fn get(served: &Served, path: &str) -> Answer {
    let answer = ask(served, path, None);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer
}

/// One line of Prometheus text: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

/// A family: its type, and its samples in order.
#[derive(Debug)]
struct Family {
    kind: String,
    samples: Vec<Sample>,
}

fn is_name(text: &str) -> bool {
    let first = text.starts_with(|letter: char| letter.is_ascii_lowercase());
    first && text.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect(line);
    let value: f64 = value.parse().expect(line);
    let Some((name, rest)) = series.split_once('{') else {
        return (series.to_owned(), BTreeMap::new(), value);
    };
    let mut rest = rest.strip_suffix('}').expect(line);
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").expect(line);
        let end = after.find('"').expect(line);
        assert!(is_name(label) && !after[..end].contains('\\'), "{line}");
        assert!(labels.insert(label.to_owned(), after[..end].to_owned()).is_none(), "twice {label}: {line}");
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    (name.to_owned(), labels, value)
}

/// Reads the text format strictly: each family once, with help and type ahead of its samples, no series twice, names as they should be.
fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n'));
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let (mut helped, mut current) = (BTreeSet::new(), String::new());
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, what) = help.split_once(' ').expect(line);
            let is_ours = ["kvtier_", "process_"].iter().any(|prefix| name.starts_with(prefix));
            assert!(is_name(name) && is_ours && !what.is_empty(), "{line}");
            assert!(helped.insert(name.to_owned()), "{name} is told twice");
            current = name.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect(line);
            assert_eq!(name, current, "{line} stands apart from its help");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            families.insert(name.to_owned(), Family { kind: kind.to_owned(), samples: Vec::new() });
        } else {
            let (name, labels, value) = sample(line);
            let family = families.get_mut(&current).expect(line);
            let suffix = name.strip_prefix(&current).unwrap_or_else(|| panic!("{line} is not of {current}"));
            let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line}");
            assert!(seen.insert(format!("{name}{labels:?}")), "twice: {line}");
            family.samples.push((name, labels, value));
        }
    }
    families
}

fn value(families: &BTreeMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels: BTreeMap<String, String> = labels.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let family = families.iter().find(|(family, _)| {
        name.starts_with(family.as_str()) && {
            let rest = &name[family.len()..];
            rest.is_empty() || ["_bucket", "_sum", "_count"].contains(&rest)
        }
    });
    let (_, family) = family.unwrap_or_else(|| panic!("no family of {name}"));
    let found = family.samples.iter().find(|(own, held, _)| own == name && *held == labels);
    found.unwrap_or_else(|| panic!("no {name}{labels:?}")).2
}

#[test]
fn prometheus_text_parses_and_agrees_with_the_snapshot() {
    let figures = Figures::new(false);
    let served = Served::new(figures.clone());
    let answer = get(&served, "/metrics");
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let families = parse(&answer.text);
    let snapshot = serde_json::to_value(figures.snapshot()).unwrap();
    let number = |path: &str| snapshot.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path}"));
    for (name, labels, path) in [
        ("kvtier_lookup_requested_tokens_total", vec![], "/requested/tokens"),
        ("kvtier_lookup_hit_tokens_total", vec![("tier", "host")], "/hits/host/tokens"),
        ("kvtier_lookup_hit_tokens_total", vec![("tier", "disk")], "/hits/disk/tokens"),
        ("kvtier_lookup_hit_bytes_total", vec![("tier", "host")], "/hits/host/bytes"),
        ("kvtier_lookup_hit_bytes_total", vec![("tier", "disk")], "/hits/disk/bytes"),
        ("kvtier_lookup_blocks_total", vec![("result", "host")], "/hits/host/blocks"),
        ("kvtier_lookup_blocks_total", vec![("result", "disk")], "/hits/disk/blocks"),
        ("kvtier_store_tokens_total", vec![("result", "accepted")], "/stores/accepted/tokens"),
        ("kvtier_store_bytes_total", vec![("result", "accepted")], "/stores/accepted/bytes"),
        ("kvtier_store_bytes_total", vec![("result", "present")], "/stores/present/bytes"),
        ("kvtier_load_tokens_total", vec![], "/loads/tokens"),
        ("kvtier_load_bytes_total", vec![], "/loads/bytes"),
        ("kvtier_saved_bytes_total", vec![("by", "sharing")], "/saved/sharing_bytes"),
        ("kvtier_tier_used_bytes", vec![("tier", "host")], "/tiers/host/used_bytes"),
        ("kvtier_tier_used_bytes", vec![("tier", "disk")], "/tiers/disk/used_bytes"),
        ("kvtier_tier_capacity_bytes", vec![("tier", "disk")], "/tiers/disk/budget_bytes"),
        ("kvtier_tier_entries", vec![("tier", "disk")], "/tiers/disk/blocks"),
        ("kvtier_disk_io_bytes_total", vec![("op", "read")], "/tiers/disk/read_bytes"),
        ("kvtier_disk_io_bytes_total", vec![("op", "write")], "/tiers/disk/written_bytes"),
        ("kvtier_io_errors_total", vec![("tier", "disk")], "/tiers/disk/io_errors"),
        ("kvtier_io_inflight", vec![("tier", "disk")], "/tiers/disk/io_inflight"),
        ("kvtier_clients", vec![], "/clients/count"),
        ("kvtier_clients_limit", vec![], "/clients/limit"),
        ("kvtier_leases", vec![], "/leases/count"),
        ("kvtier_leased_bytes", vec![], "/leases/bytes"),
        ("kvtier_leases_lost_total", vec![], "/leases/lost"),
        ("kvtier_reservations", vec![], "/reservations"),
        ("kvtier_get_copied_bytes_total", vec![], "/copied_bytes"),
        ("kvtier_scrubbed_bytes_total", vec![], "/scrubbed_bytes"),
        ("process_cpu_seconds_total", vec![], "/process/cpu_seconds"),
        ("process_start_time_seconds", vec![], "/process/start_time_seconds"),
        ("process_resident_memory_bytes", vec![], "/process/resident_bytes"),
        ("process_virtual_memory_bytes", vec![], "/process/virtual_bytes"),
        ("process_open_fds", vec![], "/process/open_fds"),
        ("process_max_fds", vec![], "/process/max_fds"),
    ] {
        assert_eq!(value(&families, name, &labels), number(path), "{name}{labels:?}");
    }
    for (name, label, path) in [
        ("kvtier_lookup_blocks_total", "result", "/misses"),
        ("kvtier_store_skipped_total", "reason", "/stores/refused"),
        ("kvtier_saved_bytes_total", "by", "/saved/form_bytes"),
        ("kvtier_evictions_total", "tier", "/evictions"),
        ("kvtier_evicted_bytes_total", "tier", "/evicted_bytes"),
        ("kvtier_client_rejects_total", "reason", "/clients/rejected"),
        ("kvtier_leases_reclaimed_total", "reason", "/leases/reclaimed"),
        ("kvtier_integrity_failures_total", "tier", "/integrity_failures"),
        ("kvtier_protocol_errors_total", "kind", "/protocol_errors"),
    ] {
        for (key, count) in snapshot.pointer(path).unwrap().as_object().unwrap() {
            assert_eq!(value(&families, name, &[(label, key)]), count.as_f64().unwrap(), "{name} {key}");
        }
    }
    assert_eq!(value(&families, "kvtier_state", &[("state", "ready")]), 1.0);
    assert_eq!(value(&families, "kvtier_state", &[("state", "draining")]), 0.0);
    assert_eq!(value(&families, "kvtier_tier_state", &[("tier", "disk"), ("state", "offline")]), 1.0);
}

#[test]
fn histograms_are_cumulative_and_end_with_everything() {
    let figures = Figures::new(false);
    let served = Served::new(figures.clone());
    let families = parse(&get(&served, "/metrics").text);
    let Snapshot { latency, ages, .. } = figures.snapshot();
    let operations = latency.operations.iter().map(|(operation, times)| {
        ("kvtier_op_duration_seconds", ("op", operation.to_string()), times, &latency.bounds_us)
    });
    let of_host = |name, times| (name, ("tier", "host".to_owned()), times, &ages.bounds_us);
    let all = operations.chain([
        of_host("kvtier_block_lifetime_seconds", &ages.lifetime),
        of_host("kvtier_block_idle_before_evict_seconds", &ages.idle_before_evict),
        of_host("kvtier_block_reuse_gap_seconds", &ages.reuse_gap),
    ]);
    for (metric, (label, of), times, bounds_us) in all {
        assert!(times.count > 0 || label == "op", "{metric}");
        let own = |name: &str| -> Vec<(Option<String>, f64)> {
            let full = format!("{metric}{name}");
            let samples = &families[metric].samples;
            let held = samples.iter().filter(|(found, labels, _)| *found == full && labels[label] == of);
            held.map(|(_, labels, value)| (labels.get("le").cloned(), *value)).collect()
        };
        let buckets = own("_bucket");
        let ends: Vec<f64> =
            buckets.iter().map(|(end, _)| end.as_ref().unwrap().replace("+Inf", "inf").parse().unwrap()).collect();
        let expected = bounds_us.iter().map(|bound| *bound as f64 / 1e6).chain([f64::INFINITY]);
        assert_eq!(ends, expected.collect::<Vec<f64>>());
        assert!(buckets.is_sorted_by(|one, next| one.1 <= next.1), "{metric} {of}: {buckets:?}");
        assert_eq!(buckets.last().unwrap().1, times.count as f64);
        assert_eq!(own("_count"), [(None, times.count as f64)]);
        assert!((own("_sum")[0].1 - times.sum_us / 1e6).abs() < 1e-9);
    }
}

#[test]
fn the_operators_page_lists_every_metric_and_no_other() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/daemon.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let kinds = [" | counter |", " | gauge |", " | histogram |"];
    let names = rows.filter(|(_, rest)| kinds.iter().any(|kind| rest.starts_with(kind)));
    let named: BTreeSet<String> = names.map(|(name, _)| name.split('{').next().unwrap().to_owned()).collect();
    let served = Served::new(Figures::new(false));
    let found: BTreeSet<String> = parse(&get(&served, "/metrics").text).into_keys().collect();
    assert_eq!(named, found);
}

#[test]
fn the_answer_of_stats_is_the_snapshot() {
    let figures = Figures::new(false);
    let served = Served::new(figures.clone());
    let text = get(&served, "/stats").text;
    assert_eq!(text, serde_json::to_string(&figures.snapshot()).unwrap());
    assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap().tiers, figures.snapshot().tiers);
}

#[test]
fn a_request_is_explained_block_by_block_and_an_unknown_one_is_not() {
    let served = Served::new(Figures::new(false));
    let answer: Explanation = serde_json::from_str(&get(&served, "/explain?request=chat%207%26a%3Db").text).unwrap();
    let told: Vec<String> = answer.blocks.iter().map(|block| block.sentence()).collect();
    assert_eq!(
        told,
        ["found in host", "missed: evicted from disk 2.5 s before", "missed: namespace; rope.base differs"]
    );
    let unknown = ask(&served, "/explain?request=other", None);
    assert!(unknown.status == 404 && unknown.text.contains("`other`"), "{}", unknown.text);
    assert_eq!(ask(&served, "/explain", None).status, 400);
}

#[test]
fn readiness_follows_the_source_and_tells_its_reasons() {
    let figures = Figures::new(false);
    let served = Served::new(figures.clone());
    assert_eq!(get(&served, "/healthz").text, "ok\n");
    assert_eq!(get(&served, "/readyz").text, r#"{"ready":true,"reasons":[]}"#);
    figures.reasons.lock().unwrap().push("the disk's index is being read".to_owned());
    let answer = ask(&served, "/readyz", None);
    assert_eq!((answer.status, answer.text.contains("the disk's index is being read")), (503, true), "{}", answer.text);
    assert_eq!(get(&served, "/healthz").text, "ok\n", "alive, though not ready");
    let version: Value = serde_json::from_str(&get(&served, "/version").text).unwrap();
    assert_eq!((&version["version"], &version["stats_version"]), (&json!(env!("CARGO_PKG_VERSION")), &json!(1)));
}

#[test]
fn every_answer_is_fresh_and_lets_nothing_in_from_outside() {
    let served = Served::new(Figures::new(false));
    for path in ["/", "/stats", "/metrics", "/healthz", "/readyz", "/version", "/explain?request=x", "/absent"] {
        let answer = ask(&served, path, None);
        assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        let policy = &answer.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'; connect-src 'self';"), "{path}: {policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{path}: {policy}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{path}");
    }
    let page = get(&served, "/").text;
    for outside in ["src=\"http", "href=\"http", "url(", "@import", "style=\""] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
}

#[test]
fn a_request_for_another_host_is_refused() {
    let served = Served::new(Figures::new(false));
    let answer = ask(&served, "/stats", Some("attacker.example"));
    assert_eq!((answer.status, answer.text.contains("leases")), (403, false));
    assert_eq!(ask(&served, "/stats", Some("localhost:7411")).status, 200);
}

#[test]
fn a_taken_port_is_named_with_the_setting() {
    let served = Served::new(Figures::new(false));
    let error = kvtier_daemon::http::Endpoint::bind(served.address).unwrap_err().to_string();
    assert!(error.contains(&served.address.to_string()) && error.contains("http = \"off\""), "{error}");
}
