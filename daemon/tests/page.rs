//! The live page in a real browser, under figures that change with every answer: it shows what `/stats` said and nothing else, at two
//! widths and in both colour schemes, without an error on the console.

mod figures;
mod rig;
mod served;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use figures::Figures;
use serde_json::Value;
use served::Served;

/// Answers that the page takes in each view.
const ANSWERS: usize = 3;

fn browser() -> Option<&'static str> {
    let is_there =
        |program: &&str| Command::new(program).arg("--version").output().is_ok_and(|ran| ran.status.success());
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(is_there)
}

/// What a figure is shown as may be off by half of its last digit, 0.5 % at most.
fn is_shown(text: &str, form: &str, value: &Value) -> bool {
    let Some(number) = value.as_f64() else {
        return match value {
            Value::Null => text == "–",
            Value::String(word) => text == word,
            _ => false,
        };
    };
    let words: Vec<&str> = text.split(' ').collect();
    let units =
        |unit: &str, scales: &[(&str, f64)]| scales.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
    let shown = match (form, words.as_slice()) {
        ("word", [word]) => return *word == number.to_string(),
        ("count", [count]) => return count.replace(',', "").parse() == Ok(number),
        ("share", [share, "%"]) => {
            return share.parse::<f64>().is_ok_and(|share| (share - 100.0 * number).abs() < 0.051);
        }
        ("age", pairs) => {
            let scale = |unit| units(unit, &[("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)]);
            let seconds: Option<f64> =
                pairs.chunks(2).map(|pair| Some(pair[0].parse::<f64>().ok()? * scale(*pair.get(1)?)?)).sum();
            // Two units are shown; what is left is less than the second of them.
            return seconds.is_some_and(|seconds| (0.0..3600.0).contains(&(number / 1e3 - seconds)));
        }
        ("bytes", [value, unit]) => {
            let scales =
                [("B", 1.0), ("KiB", 1024.0), ("MiB", 1048576.0), ("GiB", 1073741824.0), ("TiB", 1099511627776.0)];
            units(unit, &scales).zip(value.parse::<f64>().ok())
        }
        ("time", [value, unit]) => units(unit, &[("µs", 1.0), ("ms", 1e3), ("s", 1e6)]).zip(value.parse::<f64>().ok()),
        _ => None,
    };
    shown.is_some_and(|(scale, value)| (value * scale - number).abs() <= 0.005 * number.abs())
}

#[test]
fn the_page_shows_what_stats_says_at_two_widths_and_in_both_schemes() {
    let Some(browser) = browser() else {
        println!("SKIP: no chromium");
        return;
    };
    let figures = Figures::new(true);
    let served = Served::new(figures.clone());
    let url = format!("http://{}/", served.address);
    let views = views(browser, &url);
    look(&views, &url, |_, uptime_ms| {
        let given = figures.given.lock().unwrap();
        serde_json::to_value(given.get(&uptime_ms).expect("the page shows an answer that was given")).unwrap()
    });
}

/// A real daemon, and clients that read, store, miss and break off while the browser looks.
#[test]
fn the_page_shows_a_real_daemon_at_work() {
    let Some(browser) = browser() else {
        println!("SKIP: no chromium");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let daemon = rig::start(folder.path(), |config| {
        rig::with_disk(folder.path(), config);
        config.tenant_quota_bytes = Some(8 << 20);
    });
    let traffic = rig::traffic::Traffic::start(&daemon.socket);
    let url = format!("http://{}/", daemon.http);
    let views = views(browser, &url);
    let worked = traffic.end();
    // What the browser received is what it shows.
    look(&views, &url, |view, uptime_ms| view["answers"][uptime_ms.to_string()].clone());
    let answer = |view: &Value| view["answers"].as_object().unwrap().values().next_back().unwrap().clone();
    let (first, last) = (answer(&views[0]), answer(&views[3]));
    assert!(last["requested"]["blocks"].as_u64() > first["requested"]["blocks"].as_u64(), "the traffic went on");
    let end = daemon.stats();
    assert!(end["requested"]["blocks"].as_u64().unwrap() >= worked, "{worked} blocks: {end}");
    daemon.end();
}

/// What the browser tells of its four views of a page. A picture of each is left in the folder that `KVTIER_PAGE_PICTURES` names.
fn views(browser: &str, url: &str) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("page.py");
    let mut command = Command::new("python3");
    command.arg(script).args([browser, url, &ANSWERS.to_string()]).args(std::env::var_os("KVTIER_PAGE_PICTURES"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let views: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(views.len(), 4, "{text}");
    views
}

/// Checks all views. `answer`: what was answered in a view, by its uptime.
fn look(views: &[Value], url: &str, answer: impl Fn(&Value, u64) -> Value) {
    let mut papers = BTreeSet::new();
    for view in views {
        let name = format!("{} px, {}", view["width"], view["scheme"]);
        assert_eq!(view["errors"], Value::Array(Vec::new()), "{name}");
        assert_eq!(view["unnamed"], Value::Array(Vec::new()), "{name}");
        assert_eq!(view["cut"], Value::Array(Vec::new()), "{name}");
        assert!(view["overflow"].as_i64().unwrap() <= 0, "{name}: wider than the window");
        assert!(view["bars"].as_u64().unwrap() >= 3, "{name}: an empty history");
        for asked in view["requests"].as_array().unwrap() {
            let asked = asked.as_str().unwrap();
            assert!(asked.starts_with(url) || asked == "data:,", "{name}: {asked}");
        }
        papers.insert((view["scheme"].to_string(), view["paper"].to_string(), view["ink"].to_string()));
        let shown = view["shown"].as_array().unwrap();
        assert!(shown.len() >= ANSWERS, "{name}: {} answers", shown.len());
        shown.iter().for_each(|shown| agrees(&answer(view, shown["uptime_ms"].as_u64().unwrap()), shown, &name));
    }
    assert_eq!(papers.len(), 2, "each scheme has its colours: {papers:?}");
}

/// Everything in a view of one answer is that answer's.
fn agrees(answer: &Value, shown: &Value, name: &str) {
    assert!(answer.is_object(), "{name}: no answer for {shown}");
    let values = shown["values"].as_object().unwrap();
    assert!(values.len() > 60, "{name}: only {} figures", values.len());
    for (place, text) in values {
        let (path, form) = place.rsplit_once(' ').unwrap();
        let value = answer.pointer(&format!("/{}", path.replace('.', "/"))).unwrap_or(&Value::Null);
        assert!(is_shown(text.as_str().unwrap(), form, value), "{name}: {path} is {value}, shown as {text}");
    }
}

#[test]
fn a_figure_that_is_off_is_noticed() {
    let shown = |text: &str, form: &str, value: f64| is_shown(text, form, &Value::from(value));
    assert!(shown("1,234", "count", 1234.0) && !shown("1,235", "count", 1234.0));
    assert!(shown("1.50 GiB", "bytes", 1610612736.0) && !shown("1.52 GiB", "bytes", 1610612736.0));
    assert!(shown("7.30 µs", "time", 7.3) && !shown("7.30 ms", "time", 7.3));
    assert!(shown("62.5 %", "share", 0.625) && !shown("62.6 %", "share", 0.625));
    assert!(shown("1 d 1 h", "age", 90_061_000.0) && !shown("2 d 1 h", "age", 90_061_000.0));
    assert!(is_shown("–", "time", &Value::Null) && !is_shown("0", "time", &Value::Null));
}
