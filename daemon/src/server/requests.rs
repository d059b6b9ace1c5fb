//! What became of the blocks of named requests, as long as they are remembered.

use std::collections::VecDeque;

use crate::stats::{BlockStory, Explanation};

/// Requests that are remembered.
const REQUESTS_MAX: usize = 1024;
/// Blocks of one request that are remembered.
const BLOCKS_MAX: usize = 4096;

#[derive(Default)]
pub(crate) struct Requests(VecDeque<Explanation>);

impl Requests {
    /// Adds blocks to a request; the oldest request is forgotten for a new one.
    pub(crate) fn note(&mut self, request: &str, stories: Vec<BlockStory>) {
        let index = self.0.iter().rposition(|known| known.request == request).unwrap_or_else(|| {
            if self.0.len() == REQUESTS_MAX {
                self.0.pop_front();
            }
            self.0.push_back(Explanation::new(request));
            self.0.len() - 1
        });
        let known = &mut self.0[index].blocks;
        let left = BLOCKS_MAX.saturating_sub(known.len());
        known.extend(stories.into_iter().take(left));
    }

    pub(crate) fn find(&self, request: &str) -> Option<Explanation> {
        self.0.iter().rfind(|known| known.request == request).cloned()
    }
}

#[cfg(test)]
mod tests {
    use cache_core::units::Tier;

    use super::*;

    #[test]
    fn the_oldest_request_is_forgotten_and_blocks_are_bounded() {
        let mut requests = Requests::default();
        for number in 0..=REQUESTS_MAX {
            requests.note(&format!("request {number}"), vec![BlockStory::hit(0, Tier::Host)]);
        }
        assert!(requests.find("request 0").is_none());
        for _ in 0..2 {
            requests.note("request 1", vec![BlockStory::hit(0, Tier::Host); BLOCKS_MAX]);
        }
        assert_eq!(requests.find("request 1").unwrap().blocks.len(), BLOCKS_MAX);
    }
}
