//! `docs/stats.schema.json` beside the answer of `/stats`.

mod figures;

use std::path::Path;

use figures::Figures;
use kvtier_daemon::stats::{Counters, Gauges, Source};
use serde_json::{Value, json};

fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/stats.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_answer_of_stats_is_as_its_schema_says() {
    let answer = serde_json::to_value(Figures::new(false).snapshot()).unwrap();
    let schema = jsonschema::validator_for(&schema()).unwrap();
    let errors: Vec<String> = schema.iter_errors(&answer).map(|error| error.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new());
    let empty = serde_json::to_value(Counters::default().snapshot(Gauges::default())).unwrap();
    assert!(schema.is_valid(&empty), "a daemon without a disk: {empty}");
}

/// Every field that is taken away, and every one that nobody knows, is noticed: the schema leaves nothing out.
#[test]
fn the_schema_names_every_field_of_the_answer() {
    fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, inner) in fields {
                    found.push(format!("{at}/{name}"));
                    paths(inner, &format!("{at}/{name}"), found);
                }
            }
            Value::Array(items) => items.iter().take(1).for_each(|item| paths(item, &format!("{at}/0"), found)),
            _ => {}
        }
    }
    let answer = serde_json::to_value(Figures::new(false).snapshot()).unwrap();
    let schema = jsonschema::validator_for(&schema()).unwrap();
    let mut all = Vec::new();
    paths(&answer, "", &mut all);
    assert!(all.len() > 100, "{all:?}");
    for path in all {
        let (parent, name) = path.rsplit_once('/').unwrap();
        let mut without = answer.clone();
        without.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
        assert!(!schema.is_valid(&without), "{path} may be missing");
        let mut other = answer.clone();
        *other.pointer_mut(&path).unwrap() = json!([[]]);
        assert!(!schema.is_valid(&other), "{path} may be anything");
    }
    let mut more = answer.clone();
    more["tiers"]["tape"] = json!({});
    assert!(!schema.is_valid(&more));
}
