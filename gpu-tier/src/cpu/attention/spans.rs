//! From one span of a job to addresses, in the forms in which the job's rows read it.

use super::super::device::CpuDevice;
use super::super::memory::Access;
use super::closed::ClosedSpan;
use super::closed::places::{self, Sections};
use super::unit::{NOWHERE, PIECE_TOKENS, Pieces, SPAN};
use super::views::{Layout, Work, check_section, missing, shape};
use crate::attention::closed::{AttendMixed, Closed, ClosedPlace};
use crate::attention::{Geometry, SectionPlace};
use crate::error::DeviceError;

/// One span of a job, KV head 0.
pub(super) struct Span {
    pub(super) index: u32,
    /// For rows that read it exactly; nowhere if there are none.
    pub(super) pieces: Pieces,
    /// For rows that read it closed.
    pub(super) closed: Option<ClosedSpan>,
    /// First position that reads it closed.
    pub(super) closed_from: i64,
}

impl Span {
    /// Addresses of one span, of KV head 0, in the forms in which the job's rows read it.
    pub(super) fn resolve(
        device: &CpuDevice,
        access: &mut Access<'_>,
        work: &mut Work,
        job: &AttendMixed<'_>,
        span: u32,
    ) -> Result<Span, DeviceError> {
        let first = i64::from(span) * SPAN as i64;
        let (first_row, end) = (i64::from(job.first_position), i64::from(job.first_position) + i64::from(job.rows));
        if first >= end {
            return Err(shape("attend", format!("span {span}, but the last position is {}", (end - 1).max(0))));
        }
        let block_tokens = work.geometry.block_tokens as usize;
        let (block, in_block) = (span as usize * SPAN / block_tokens, span as usize * SPAN % block_tokens);
        let place = job.closed.get(block).copied().flatten();
        let block_end = (block as i64 + 1) * block_tokens as i64;
        let closed_from = match work.closed {
            // Whoever sees all of it.
            Some(_) if place.is_some() && job.exact.get(block).copied().flatten().is_none() => block_end - 1,
            Some(_) if place.is_some() && block >= 1 => block_end + i64::from(job.window),
            _ => i64::MAX,
        };
        let mut resolved = Span { index: span, pieces: NOWHERE, closed: None, closed_from };
        if first_row.max(first) < closed_from {
            resolved.pieces = span_pieces(device, access, work, job, span)?;
        }
        if let (Some(forms), Some(place)) = (work.closed, place)
            && closed_from < end
        {
            let (sections, in_host) = closed_sections(device, access, &work.geometry, forms, place, block)?;
            resolved.closed = Some(places::span(&work.geometry, forms, sections, in_block / SPAN));
            let bytes = places::span_bytes(&work.geometry, forms);
            *(if in_host { &mut work.host_bytes } else { &mut work.device_bytes }) += bytes;
        }
        Ok(resolved)
    }
}

/// Addresses of one span's pieces, of KV head 0, as far as the last row sees them; counts the bytes to be read.
fn span_pieces(
    device: &CpuDevice,
    access: &mut Access<'_>,
    work: &mut Work,
    job: &AttendMixed<'_>,
    span: u32,
) -> Result<Pieces, DeviceError> {
    let geometry = work.geometry;
    let layout = Layout::of(&geometry);
    let first = span as usize * SPAN;
    let end = job.first_position as usize + job.rows as usize;
    let tokens = (end - first).min(SPAN);
    let block_tokens = geometry.block_tokens as usize;
    let mut pieces = NOWHERE;
    let mut known: Option<(usize, *const u8, bool)> = None;
    for (i, piece) in pieces[..tokens.div_ceil(PIECE_TOKENS)].iter_mut().enumerate() {
        let position = first + i * PIECE_TOKENS;
        let (block, token) = (position / block_tokens, position % block_tokens);
        let (section, in_host) = match known {
            Some((known, section, in_host)) if known == block => (section, in_host),
            _ => {
                let place = job.exact.get(block).copied().flatten().ok_or_else(|| missing("attend", block))?;
                let (bytes, alignment) = (geometry.section_bytes(), geometry.element.bytes());
                section_address(device, access, "attend", place, block, (bytes, alignment))?
            }
        };
        known = Some((block, section, in_host));
        piece.keys = section.wrapping_add(token * layout.element_bytes);
        piece.values =
            section.wrapping_add(layout.key_bytes + token * geometry.head_dim as usize * layout.element_bytes);
        let read = PIECE_TOKENS + (tokens - i * PIECE_TOKENS).min(PIECE_TOKENS);
        let bytes =
            read as u64 * u64::from(geometry.head_dim) * geometry.element.bytes() * u64::from(geometry.kv_heads);
        *(if in_host { &mut work.host_bytes } else { &mut work.device_bytes }) += bytes;
    }
    Ok(pieces)
}

/// Addresses of a closed block's sections and whether they are in the host arena.
fn closed_sections(
    device: &CpuDevice,
    access: &mut Access<'_>,
    geometry: &Geometry,
    forms: Closed,
    place: ClosedPlace,
    block: usize,
) -> Result<(Sections, bool), DeviceError> {
    let kv_heads = u64::from(geometry.kv_heads);
    let mut address =
        |place, bytes: u64| section_address(device, access, "attend", place, block, (kv_heads * bytes, 2));
    let (codes, in_host) = address(place.codes, forms.code_bytes(geometry))?;
    let (scale, _) = address(place.scale, forms.scale_bytes(geometry))?;
    let header_bytes = forms.header_bytes(geometry);
    let header = match place.header {
        Some(header) if header_bytes > 0 => address(header, header_bytes)?.0,
        None if header_bytes == 0 => std::ptr::null(),
        _ => return Err(shape("attend", format!("header section of block {block}: {:?}", place.header))),
    };
    Ok((Sections { header, scale, codes }, in_host))
}

/// Address of a section of given bytes and alignment, and whether it is in the host arena.
pub(super) fn section_address(
    device: &CpuDevice,
    access: &mut Access<'_>,
    what: &'static str,
    place: SectionPlace,
    block: usize,
    (bytes, alignment): (u64, u64),
) -> Result<(*const u8, bool), DeviceError> {
    use crate::device::Device as _;
    match place {
        SectionPlace::Device(range) => {
            check_section(what, block, (range.offset, range.bytes), bytes, alignment)?;
            Ok((access.address(range)?.cast_const(), false))
        }
        SectionPlace::Host(range) => {
            if !device.info().in_place {
                return Err(DeviceError::NotResident { section: block });
            }
            check_section(what, block, (range.offset, range.bytes), bytes, alignment)?;
            Ok((device.host_address(range, true)?.cast_const(), true))
        }
    }
}
