//! Block hashes along a token sequence.

use crate::hash::{BlockHash, FieldHasher, Namespace};

/// One link of a chain: a block, the block before it, and how many blocks stand before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// This block.
    pub hash: BlockHash,
    /// The block before it; `None` for block 0.
    pub parent: Option<BlockHash>,
    /// Blocks before it.
    pub depth: u32,
}

/// Hash of the block that holds `tokens` after `parent` (`None`: it is block 0).
pub fn block_hash(namespace: Namespace, parent: Option<BlockHash>, tokens: &[u32]) -> BlockHash {
    let mut hasher = FieldHasher::new("kvtier.block.v1");
    match parent {
        None => hasher.field(&[]),
        Some(parent) => hasher.field(parent.bytes()),
    };
    hasher.field(namespace.bytes()).tokens(tokens);
    BlockHash(hasher.finish())
}

/// The chain of full blocks of one sequence, extended as tokens come.
#[derive(Clone, Debug)]
pub struct Chain {
    namespace: Namespace,
    block_tokens: u32,
    links: Vec<Link>,
}

impl Chain {
    /// An empty chain. Panics when `block_tokens` is 0.
    pub fn new(namespace: Namespace, block_tokens: u32) -> Chain {
        assert!(block_tokens > 0, "a block holds at least one token");
        Chain { namespace, block_tokens, links: Vec::new() }
    }

    /// The chain over all full blocks of `tokens`; a partial tail is left out.
    pub fn over(namespace: Namespace, block_tokens: u32, tokens: &[u32]) -> Chain {
        let mut chain = Chain::new(namespace, block_tokens);
        for block in tokens.chunks_exact(block_tokens as usize) {
            chain.push(block);
        }
        chain
    }

    /// Adds the next full block and returns its link. Panics when `tokens` is not exactly one block.
    pub fn push(&mut self, tokens: &[u32]) -> Link {
        assert_eq!(tokens.len(), self.block_tokens as usize, "a chain is made of full blocks");
        let parent = self.links.last().map(|link| link.hash);
        let link = Link { hash: block_hash(self.namespace, parent, tokens), parent, depth: self.links.len() as u32 };
        self.links.push(link);
        link
    }

    /// The links, block 0 first.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The namespace.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_vectors() {
        let namespace = Namespace([1; 32]);
        let first = block_hash(namespace, None, &[1, 2, 3, 4]);
        assert_eq!(first.to_string(), "fbb56ca224734adec2add95d76e90f43264a61643c07857030955a9f1a2af933");
        let second = block_hash(namespace, Some(first), &[5, 6, 7, 8]);
        assert_eq!(second.to_string(), "6b6181017b86b73cd35b1308e807de455e04ae990d8a9c7180a4d4aa07ee6ab2");
    }

    #[test]
    fn one_early_token_changes_every_later_block() {
        let namespace = Namespace([1; 32]);
        let tokens: Vec<u32> = (0..40).collect();
        let mut other = tokens.clone();
        other[9] = 99;
        let (a, b) = (Chain::over(namespace, 8, &tokens), Chain::over(namespace, 8, &other));
        assert_eq!(a.links()[0], b.links()[0]);
        assert!((1..5).all(|index| a.links()[index].hash != b.links()[index].hash));
    }

    #[test]
    fn the_partial_tail_is_left_out() {
        assert_eq!(Chain::over(Namespace([0; 32]), 16, &[0; 47]).links().len(), 2);
    }
}
