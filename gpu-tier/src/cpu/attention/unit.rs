//! The unit of attention work: some rows of one sequence, one KV head, one span.

use crate::attention::{Element, SPAN_TOKENS};

/// Tokens of a piece: the least part of a span that lies in one block for every block size.
pub(super) const PIECE_TOKENS: usize = 16;
/// Pieces of a span.
pub(super) const PIECES: usize = SPAN_TOKENS as usize / PIECE_TOKENS;
/// Tokens of a span.
pub(super) const SPAN: usize = SPAN_TOKENS as usize;
/// Most query vectors a kernel handles at once.
pub(super) const TILE: usize = 6;
/// With at least this many query vectors, keys and values are widened to f32 once and reused.
const WIDEN_FROM: usize = 12;
/// Largest `head_dim`.
pub(super) const HEAD_DIM_MAX: usize = crate::attention::checks::HEAD_DIM_MAX as usize;

/// Where 16 tokens of one KV head are: the first key element (its channels are `block_tokens` apart) and the first
/// value row. Null where no row sees a token.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) keys: *const u8,
    pub(super) values: *const u8,
}

/// The pieces of a span, of one KV head.
pub(super) type Pieces = [Piece; PIECES];

/// No bytes at all.
pub(super) const NOWHERE: Pieces = [Piece { keys: std::ptr::null(), values: std::ptr::null() }; PIECES];

/// Moves every present piece by `bytes`: from one KV head to another.
pub(super) fn shifted(pieces: &Pieces, bytes: usize) -> Pieces {
    let by = |from: *const u8| if from.is_null() { from } else { from.wrapping_add(bytes) };
    pieces.map(|piece| Piece { keys: by(piece.keys), values: by(piece.values) })
}

/// One unit. Query vector `i` is head `i % group` of row `i / group`; row r sees the first
/// `min(64, first_visible + r)` tokens of the span.
///
/// # Safety
/// A unit is made by `attend` after every range was checked and pinned: all present pieces, `queries` and `targets` are
/// valid for the layout stated here, for `rows` rows. Targets of units that run at once do not overlap.
pub(super) struct Unit {
    pub(super) element: Element,
    pub(super) head_dim: usize,
    /// Elements between two channels of a piece's keys.
    pub(super) key_stride: usize,
    pub(super) scale: f32,
    pub(super) pieces: Pieces,
    /// What the same worker reads next, if it is known.
    pub(super) next: Option<Pieces>,
    /// Query vector of row 0 and the first head of the group; heads are `head_dim` apart.
    pub(super) queries: *const f32,
    /// f32 between two rows of queries.
    pub(super) query_row: usize,
    /// (m, l, o) of row 0 and the first head.
    pub(super) targets: *mut f32,
    /// f32 between two rows of targets.
    pub(super) target_row: usize,
    /// f32 between two heads of targets.
    pub(super) target_head: usize,
    /// First row of the unit that sees the span.
    pub(super) first_row: usize,
    /// One past its last row.
    pub(super) end_row: usize,
    /// Query heads of the KV head.
    pub(super) group: usize,
    /// Tokens that row 0 sees; not positive when it sees none.
    pub(super) first_visible: i64,
    /// Merge into the target (else overwrite it).
    pub(super) fold: bool,
}

impl Unit {
    /// The unit's query vectors.
    pub(super) fn vectors(&self) -> std::ops::Range<usize> {
        self.first_row * self.group..self.end_row * self.group
    }

    /// Tokens of the span that query vector `i` sees, at least 1.
    pub(super) fn visible(&self, i: usize) -> usize {
        (self.first_visible + (i / self.group) as i64).clamp(1, SPAN as i64) as usize
    }

    /// Query vector `i`.
    pub(super) fn query(&self, i: usize) -> *const f32 {
        self.queries.wrapping_add(i / self.group * self.query_row + i % self.group * self.head_dim)
    }

    /// Target of query vector `i`.
    pub(super) fn target(&self, i: usize) -> *mut f32 {
        self.targets.wrapping_add(i / self.group * self.target_row + i % self.group * self.target_head)
    }

    /// Whether widening keys and values first pays.
    pub(super) fn is_wide(&self) -> bool {
        self.vectors().len() >= WIDEN_FROM
    }
}

/// Sixteen f32 on a cache line of their own.
#[derive(Clone, Copy)]
#[repr(align(64))]
#[expect(dead_code, reason = "only its size and alignment are used; kernels write through pointers")]
struct Line([f32; 16]);

/// Working space of one worker; grows to what the largest head needs.
#[derive(Default)]
pub(crate) struct Scratch {
    lines: Vec<Line>,
}

/// The parts of a [`Scratch`], all 64-byte aligned.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    /// Keys in f32, `[head_dim][64]`.
    pub(super) keys: *mut f32,
    /// Values in f32, `[64][head_dim]`.
    pub(super) values: *mut f32,
    /// Scores, then probabilities, `[TILE][64]`.
    pub(super) scores: *mut f32,
    /// Sums of values, `[TILE][head_dim]`.
    pub(super) sums: *mut f32,
}

impl Scratch {
    /// Room for `count` bf16, valid until the scratch is asked again.
    pub(super) fn words(&mut self, count: usize) -> *mut u16 {
        self.grow(count.div_ceil(2));
        self.lines.as_mut_ptr().cast()
    }

    fn grow(&mut self, floats: usize) {
        if self.lines.len() * 16 < floats {
            self.lines.resize(floats.div_ceil(16), Line([0.0; 16]));
        }
    }

    /// The parts for a head size, valid until the scratch is asked again.
    pub(super) fn parts(&mut self, head_dim: usize) -> Parts {
        let sizes = [head_dim * SPAN, head_dim * SPAN, TILE * SPAN, TILE * head_dim];
        self.grow(sizes.iter().sum());
        let start: *mut f32 = self.lines.as_mut_ptr().cast();
        let [keys, values, scores, _] = sizes;
        Parts {
            keys: start,
            values: start.wrapping_add(keys),
            scores: start.wrapping_add(keys + values),
            sums: start.wrapping_add(keys + values + scores),
        }
    }
}
