//! From one span of a job to addresses, in the forms in which the job's rows read it.

use super::{Resolver, missing, shape};
use crate::attention::closed::{AttendMixed, Closed, ClosedPlace};
use crate::attention::{Geometry, SPAN_TOKENS};
use crate::cuda::kernels::attend::SpanPlace;
use crate::error::DeviceError;

/// Tokens of a piece: the least part of a span that lies in one block for every block size.
const PIECE_TOKENS: u64 = 16;
const SPAN: u64 = SPAN_TOKENS as u64;

/// Checks the list of spans: inside a store of partials, in order for a running state, each once.
pub(super) fn check(job: &AttendMixed<'_>, dimension: Option<u32>) -> Result<(), DeviceError> {
    let fails = |problem: String| Err(shape("attend", problem));
    if let Some(span) = job.spans.iter().find(|span| dimension.is_some_and(|dimension| **span >= dimension)) {
        return fails(format!("span {span} in a store of {dimension:?}"));
    }
    if let Some(pair) = job.spans.windows(2).find(|pair| dimension.is_none() && pair[1] <= pair[0]) {
        return fails(format!("span {} after {} into a running state", pair[1], pair[0]));
    }
    let mut once = job.spans.to_vec();
    once.sort_unstable();
    match once.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => fails(format!("span {} twice", pair[0])),
        None => Ok(()),
    }
}

/// Addresses of one span, of KV head 0; adds the KV bytes that are to be read to `bytes`.
pub(super) fn resolve(
    resolver: &Resolver<'_>,
    geometry: &Geometry,
    closed: Option<Closed>,
    job: &AttendMixed<'_>,
    index: u32,
    bytes: &mut u64,
) -> Result<SpanPlace, DeviceError> {
    let first = u64::from(index) * SPAN;
    let (first_row, end) = (u64::from(job.first_position), u64::from(job.first_position) + u64::from(job.rows));
    if first >= end {
        return Err(shape("attend", format!("span {index}, but the last position is {}", end.saturating_sub(1))));
    }
    let block_tokens = u64::from(geometry.block_tokens);
    let block = usize::try_from(first / block_tokens).expect("an index of a block");
    let place = job.closed.get(block).copied().flatten();
    let block_end = (block as u64 + 1) * block_tokens;
    let closed_from = match closed {
        // Whoever sees all of it.
        Some(_) if place.is_some() && job.exact.get(block).copied().flatten().is_none() => block_end - 1,
        Some(_) if place.is_some() && block >= 1 => block_end + u64::from(job.window),
        _ => u64::MAX,
    };
    let mut span =
        SpanPlace { index, closed_from: closed_from.min(u64::from(u32::MAX)) as u32, ..SpanPlace::default() };
    if first_row.max(first) < closed_from {
        pieces(resolver, geometry, job, &mut span, bytes)?;
    }
    if let (Some(forms), Some(place)) = (closed, place)
        && closed_from < end
    {
        sections(resolver, geometry, forms, (block, place), &mut span)?;
        let per_block = forms.scale_bytes(geometry) + forms.code_bytes(geometry);
        *bytes += u64::from(geometry.kv_heads) * (forms.header_bytes(geometry) + per_block * SPAN / block_tokens);
    }
    Ok(span)
}

/// The exact section of the block of each piece, as far as the last row sees them.
fn pieces(
    resolver: &Resolver<'_>,
    geometry: &Geometry,
    job: &AttendMixed<'_>,
    span: &mut SpanPlace,
    bytes: &mut u64,
) -> Result<(), DeviceError> {
    let first = u64::from(span.index) * SPAN;
    let tokens = (u64::from(job.first_position) + u64::from(job.rows) - first).min(SPAN);
    for (i, piece) in span.exact[..tokens.div_ceil(PIECE_TOKENS) as usize].iter_mut().enumerate() {
        let before = i as u64 * PIECE_TOKENS;
        let block = usize::try_from((first + before) / u64::from(geometry.block_tokens)).expect("an index of a block");
        let place = job.exact.get(block).copied().flatten().ok_or_else(|| missing("attend", block))?;
        *piece = Some(resolver.section(place, block, geometry.section_bytes())?);
        // Whole pieces of keys, rows of values.
        let read = PIECE_TOKENS + (tokens - before).min(PIECE_TOKENS);
        *bytes += read * u64::from(geometry.head_dim) * geometry.element.bytes() * u64::from(geometry.kv_heads);
    }
    Ok(())
}

fn sections(
    resolver: &Resolver<'_>,
    geometry: &Geometry,
    forms: Closed,
    (block, place): (usize, ClosedPlace),
    span: &mut SpanPlace,
) -> Result<(), DeviceError> {
    let heads = u64::from(geometry.kv_heads);
    span.codes = Some(resolver.section(place.codes, block, heads * forms.code_bytes(geometry))?);
    span.scale = Some(resolver.section(place.scale, block, heads * forms.scale_bytes(geometry))?);
    let header_bytes = forms.header_bytes(geometry);
    span.header = match place.header {
        Some(header) if header_bytes > 0 => Some(resolver.section(header, block, heads * header_bytes)?),
        None if header_bytes == 0 => None,
        header => return Err(shape("attend", format!("header section of block {block}: {header:?}"))),
    };
    Ok(())
}
