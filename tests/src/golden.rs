//! Golden log-probabilities.

use kvtier_engine::run::engine::Engine;
use serde_json::Value;

/// One prompt with its teacher-forced log-probabilities.
pub struct Golden {
    /// What the prompt is about.
    pub name: String,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Log-probability of each next token.
    pub logprob: Vec<f64>,
}

/// Reads `engine/tests/golden/NAME`.
pub fn load(name: &str) -> Vec<Golden> {
    let path = format!("{}/../engine/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {path}: {error}"));
    let file: Value = serde_json::from_str(&text).expect("JSON");
    let prompts = file["prompts"].as_array().expect("a list of prompts");
    prompts
        .iter()
        .map(|prompt| Golden {
            name: prompt["name"].as_str().expect("a name").to_owned(),
            tokens: numbers(&prompt["tokens"]).map(|value| value as u32).collect(),
            logprob: numbers(&prompt["logprob"]).collect(),
        })
        .collect()
}

fn numbers(list: &Value) -> impl Iterator<Item = f64> {
    list.as_array().expect("a list").iter().map(|value| value.as_f64().expect("a number"))
}

/// Largest difference between the engine's log-probabilities and the golden ones.
pub fn worst_difference(engine: &mut Engine, golden: &Golden) -> f64 {
    let score = engine.score(&golden.tokens, &mut |_| {}).expect("a score");
    assert_eq!(score.logprob.len(), golden.logprob.len());
    score.logprob.iter().zip(&golden.logprob).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f64::max)
}
