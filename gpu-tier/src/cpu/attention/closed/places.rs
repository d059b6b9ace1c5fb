//! From sections of a closed block to the addresses of a span.

use super::super::unit::SPAN;
use super::{ClosedSpan, ClosedUnit};
use crate::attention::closed::{Closed, Codes};
use crate::attention::{Geometry, SPAN_TOKENS};

/// Sections of one layer of a closed block, resolved.
#[derive(Clone, Copy)]
pub(in super::super) struct Sections {
    /// Null when the form has no header plane.
    pub(in super::super) header: *const u8,
    pub(in super::super) scale: *const u8,
    pub(in super::super) codes: *const u8,
}

/// The span `index` of its block, of KV head 0. `index * 64` is less than the block's tokens.
pub(in super::super) fn span(geometry: &Geometry, forms: Closed, sections: Sections, index: usize) -> ClosedSpan {
    let (token, head_dim) = (index * SPAN, geometry.head_dim as usize);
    let (key_scale_bytes, key_code_bytes) =
        (forms.key_scale_bytes(geometry) as usize, forms.key_code_bytes(geometry) as usize);
    ClosedSpan {
        key_codes: sections.codes.wrapping_add(4 * token),
        value_codes: sections.codes.wrapping_add(key_code_bytes + token / forms.values.rows() * head_dim * 4),
        key_scales: match forms.keys {
            Codes::Rows4 => sections.header,
            Codes::Int8 => sections.scale.wrapping_add(2 * token),
        },
        value_scales: sections.scale.wrapping_add(key_scale_bytes + 2 * token),
    }
}

/// The same span of another KV head.
pub(in super::super) fn shifted(geometry: &Geometry, forms: Closed, span: &ClosedSpan, kv_head: usize) -> ClosedSpan {
    let by = |bytes: u64| kv_head * bytes as usize;
    let scale = by(forms.scale_bytes(geometry));
    let key_scale = if forms.keys == Codes::Rows4 { by(forms.header_bytes(geometry)) } else { scale };
    let codes = by(forms.code_bytes(geometry));
    ClosedSpan {
        key_codes: span.key_codes.wrapping_add(codes),
        value_codes: span.value_codes.wrapping_add(codes),
        key_scales: span.key_scales.wrapping_add(key_scale),
        value_scales: span.value_scales.wrapping_add(scale),
    }
}

/// Bytes that reading one span of every KV head takes.
pub(in super::super) fn span_bytes(geometry: &Geometry, forms: Closed) -> u64 {
    let tokens = u64::from(SPAN_TOKENS);
    let per_block = forms.scale_bytes(geometry) + forms.code_bytes(geometry);
    let span = per_block * tokens / u64::from(geometry.block_tokens);
    u64::from(geometry.kv_heads) * (forms.header_bytes(geometry) + span)
}

/// A piece of work: rows that read a span exactly, or closed.
pub(in super::super) enum Task<'u> {
    /// As `raw16` or `raw32`.
    Exact(&'u super::super::unit::Unit),
    /// As codes.
    Closed(&'u ClosedUnit),
}
