//! `kvtier explain`: why the blocks of a request were there or not.

use std::net::SocketAddr;

use clap::Args;
use kvtier_daemon::stats::{BlockStory, Explanation};

use crate::endpoint::{Endpoint, escaped};
use crate::failure::Failure;
use crate::output;

/// `kvtier explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The request's id, as `run --json` prints it
    #[arg(value_name = "REQUEST")]
    pub request: String,
    /// The daemon's statistics endpoint [default: where its settings have it, 127.0.0.1:7411]
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Option<SocketAddr>,
    /// The answer of /explain on stdout, one line
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. Exit codes: 2 for settings that cannot be used, 3 where no daemon answers or it does not know the request.
pub fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let endpoint = Endpoint::new(args.http)?;
    let path = format!("/explain?request={}", escaped(&args.request));
    if args.json {
        return output::print_line(endpoint.text(&path)?.trim_end());
    }
    let explanation: Explanation = endpoint.read(&path)?;
    output::print_line(&format!("request {}: {} blocks", explanation.request, explanation.blocks.len()))?;
    for run in alike(&explanation.blocks) {
        let (first, last) = (run[0].position, run[run.len() - 1].position);
        let range = if first == last { format!("block {first}") } else { format!("blocks {first} to {last}") };
        output::print_line(&format!("  {range}: {}", run[0].sentence()))?;
    }
    Ok(())
}

/// Neighbours with the same story, told once.
fn alike(blocks: &[BlockStory]) -> impl Iterator<Item = &[BlockStory]> {
    blocks.chunk_by(|one, next| one.sentence() == next.sentence() && one.position + 1 == next.position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_with_one_story_are_told_together() {
        let story = |position, reason: Option<&'static str>| BlockStory {
            position,
            tier: reason.is_none().then(|| "host".into()),
            reason: reason.map(Into::into),
            evicted_from: None,
            ago_ms: None,
            field: None,
        };
        let blocks = [story(0, None), story(1, None), story(2, Some("evicted")), story(4, Some("evicted"))];
        let lengths: Vec<usize> = alike(&blocks).map(<[_]>::len).collect();
        assert_eq!(lengths, [2, 1, 1]);
    }
}
