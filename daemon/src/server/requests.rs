//! What became of the blocks of named requests, as long as they are remembered.

use std::collections::{BTreeMap, VecDeque};

use crate::stats::{BlockStory, Explanation};

/// Requests that are remembered.
const REQUESTS_MAX: usize = 1024;
/// Blocks of one request that are remembered.
const BLOCKS_MAX: usize = 4096;
/// Blocks of all of them together: about 200 bytes each.
const ALL_BLOCKS_MAX: usize = 64 << 10;

/// A request's blocks by their place in the chain: the last word about each counts.
struct Told {
    request: String,
    blocks: BTreeMap<u32, BlockStory>,
}

#[derive(Default)]
pub(crate) struct Requests {
    told: VecDeque<Told>,
    blocks: usize,
}

impl Requests {
    /// Adds blocks to a request; the oldest requests are forgotten for it.
    pub(crate) fn note(&mut self, request: &str, stories: Vec<BlockStory>) {
        let at = self.told.iter().rposition(|told| told.request == request);
        let mut told = match at {
            // The one that is spoken of is the youngest.
            Some(at) => self.told.remove(at).expect("it is there"),
            None => Told { request: request.to_owned(), blocks: BTreeMap::new() },
        };
        self.blocks -= told.blocks.len().min(self.blocks);
        for story in stories {
            if told.blocks.len() < BLOCKS_MAX || told.blocks.contains_key(&story.position) {
                told.blocks.insert(story.position, story);
            }
        }
        self.blocks += told.blocks.len();
        self.told.push_back(told);
        while self.told.len() > REQUESTS_MAX || self.blocks > ALL_BLOCKS_MAX {
            self.blocks -= self.told.pop_front().map_or(0, |told| told.blocks.len());
        }
    }

    pub(crate) fn find(&self, request: &str) -> Option<Explanation> {
        let told = self.told.iter().rfind(|told| told.request == request)?;
        Some(Explanation { blocks: told.blocks.values().cloned().collect(), ..Explanation::new(request) })
    }
}

#[cfg(test)]
mod tests {
    use cache_core::miss::MissReason;
    use cache_core::units::Tier;

    use super::*;

    fn hits(blocks: usize) -> Vec<BlockStory> {
        (0..blocks as u32).map(|position| BlockStory::hit(position, Tier::Host)).collect()
    }

    #[test]
    fn the_oldest_request_is_forgotten_and_blocks_are_bounded() {
        let mut requests = Requests::default();
        for number in 0..=REQUESTS_MAX {
            requests.note(&format!("request {number}"), hits(1));
        }
        assert!(requests.find("request 0").is_none());
        requests.note("request 1", hits(2 * BLOCKS_MAX));
        assert_eq!(requests.find("request 1").unwrap().blocks.len(), BLOCKS_MAX);
        for number in 0..2 * ALL_BLOCKS_MAX / BLOCKS_MAX {
            requests.note(&format!("long request {number}"), hits(BLOCKS_MAX));
            assert_eq!(requests.blocks, requests.told.iter().map(|told| told.blocks.len()).sum::<usize>());
        }
        assert!(requests.blocks <= ALL_BLOCKS_MAX);
        assert!(requests.find("request 1").is_none() && requests.find("request 2").is_none());
    }

    #[test]
    fn the_last_word_about_a_block_counts() {
        let mut requests = Requests::default();
        requests.note("one", hits(3));
        requests.note("one", vec![BlockStory::miss(1, MissReason::LeaseLost)]);
        let told = requests.find("one").unwrap().blocks;
        assert_eq!(told.iter().map(|story| story.position).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(told[1], BlockStory::miss(1, MissReason::LeaseLost));
    }
}
