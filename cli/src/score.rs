//! `kvtier score`: teacher-forced log-probabilities of a document's first tokens.

use kvtier_engine::tokenizer::SpecialTokens;
use serde_json::json;

use crate::args::ScoreArgs;
use crate::disk::Below;
use crate::failure::Failure;
use crate::load;
use crate::output::{self, Watcher};

/// Runs the command.
pub fn run(args: &ScoreArgs) -> Result<(), Failure> {
    let document = load::read_document(&args.file)?;
    let loaded = load::load(&args.engine)?;
    let mut tokens = loaded.tokenizer.encode(&document, SpecialTokens::Plain).map_err(Failure::input)?;
    tokens.truncate(args.max_tokens as usize);
    if tokens.len() < 2 {
        return Err(Failure::input(format!(
            "{} has {} tokens; at least 2 are needed",
            args.file.display(),
            tokens.len()
        )));
    }
    let mut engine = load::open(&loaded, &args.engine, Below::default(), false)?;
    let mut watcher = Watcher::new(&loaded.tokenizer, false);
    let score = engine.score(&tokens, &mut |progress| watcher.show(progress))?;
    watcher.finish()?;
    check_finite(&score.logprob)?;
    if args.json {
        return output::print_line(
            &json!({ "tokens": tokens, "logprob": score.logprob, "top1": score.top1 }).to_string(),
        );
    }
    let mean = score.logprob.iter().sum::<f64>() / score.logprob.len() as f64;
    let right = score.top1.iter().zip(&tokens[1..]).filter(|(top, next)| top == next).count();
    output::print_table(&[
        vec!["tokens".to_owned(), tokens.len().to_string()],
        vec!["mean log-probability".to_owned(), format!("{mean:.4} nats")],
        vec!["perplexity".to_owned(), format!("{:.3}", (-mean).exp())],
        vec!["top-1".to_owned(), format!("{:.1} %", 100.0 * right as f64 / score.top1.len() as f64)],
    ])
}

/// JSON has no word for NaN and infinities, and a mean over them says nothing.
fn check_finite(logprob: &[f64]) -> Result<(), Failure> {
    match logprob.iter().position(|value| !value.is_finite()) {
        Some(position) => Err(Failure {
            code: 3,
            message: format!(
                "score the document: the log-probability of token {} is {}; the model's numbers overflow, --path reference may help",
                position + 1,
                logprob[position]
            ),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_probability_that_is_no_number_is_refused() {
        assert!(check_finite(&[-1.5, 0.0]).is_ok());
        for value in [f64::NAN, f64::NEG_INFINITY] {
            let refused = check_finite(&[-1.5, value]).unwrap_err();
            assert_eq!(refused.code, 3);
            assert!(refused.message.contains("token 2") && refused.message.lines().count() == 1, "{}", refused.message);
        }
    }
}
