//! Every parser of the wire protocol against arbitrary bytes and spoilt frames: a value or an error, never a panic, never more memory than the
//! length of the input warrants; and what was read is written again as it was.
//!
//! `BOLERO_RANDOM_TEST_TIME_MS=600000 BOLERO_RANDOM_ITERATIONS=1000000000` makes each run for ten minutes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bolero::{ValueGenerator, check, produce};
use cache_core::manifest::Manifest;
use cache_core::payload::BlockShape;
use kvtier_sdk::wire::*;
use samples::sample;

#[path = "common/wire_samples.rs"]
mod samples;

/// Inputs of each test, unless the environment says otherwise.
const ITERATIONS: usize = 20_000;

struct Counting;

thread_local! {
    /// Bytes that this thread has asked for, freed or not.
    static ASKED_BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // The cell is gone while a thread ends: nothing is measured then.
    let _ = ASKED_BYTES.try_with(|asked| asked.set(asked.get() + bytes));
}

// SAFETY: every method hands its arguments to the system's allocator unchanged and returns what that returns; the count beside it touches a
// thread-local integer that neither allocates nor has a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: `address` comes from `System`, to which every allocation went.
        unsafe { System.dealloc(address, layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes);
        // SAFETY: as for `dealloc`, and the caller keeps `realloc`'s contract.
        unsafe { System.realloc(address, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs a parser over `input` and checks what it asked the allocator for: the names of forms cost a little, the input pays for all else.
fn bounded<'a, T>(input: &'a [u8], parse: impl FnOnce(&'a [u8]) -> T) -> T {
    let before = ASKED_BYTES.get();
    let parsed = parse(input);
    let asked = ASKED_BYTES.get() - before;
    assert!(asked <= 256 + 4 * input.len(), "{asked} bytes for an input of {}", input.len());
    parsed
}

/// A form has several names, of which one is written.
fn has_one_spelling(kind: Kind) -> bool {
    kind != Kind::OpenNamespace
}

fn check_message(header: &FrameHeader, body: &[u8]) {
    let mut out = Vec::new();
    if header.is_reply {
        let Ok(parsed) = bounded(body, |body| Reply::parse(header, body)) else { return };
        match &parsed {
            Ok(reply) => reply.encode_frame(header.request_id, &mut out).unwrap(),
            Err(refusal) => refusal.encode_frame(header.kind, header.request_id, &mut out),
        }
        let (frame, _) = Frame::parse(&out, BODY_BYTES_MAX).unwrap().unwrap();
        assert_eq!(frame, Frame { header: *header, body });
        assert_eq!(Reply::parse(&frame.header, frame.body).unwrap(), parsed);
    } else {
        let Ok(parsed) = bounded(body, |body| Request::parse(header, body)) else { return };
        parsed.encode_frame(header.request_id, header.deadline_ms, &mut out).unwrap();
        let (frame, _) = Frame::parse(&out, BODY_BYTES_MAX).unwrap().unwrap();
        assert!(frame == Frame { header: *header, body } || !has_one_spelling(parsed.kind()));
        assert_eq!(Request::parse(&frame.header, frame.body).unwrap(), parsed);
    }
}

fn check_stream(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((frame, behind))) = bounded(rest, |bytes| Frame::parse(bytes, BODY_BYTES_BEFORE_HELLO)) {
        check_message(&frame.header, frame.body);
        rest = behind;
    }
    let (mut stream, mut body) = (bytes, Vec::new());
    while let Ok(Some(header)) = read_frame(&mut stream, BODY_BYTES_BEFORE_HELLO, &mut body) {
        assert_eq!(header.body_bytes as usize, body.len());
    }
    assert!(body.capacity() <= BODY_BYTES_BEFORE_HELLO as usize);
}

fn bytes(most: usize) -> impl ValueGenerator<Output = Vec<u8>> {
    produce::<Vec<u8>>().with().len(0..=most)
}

#[test]
fn arbitrary_bytes_are_frames_or_errors() {
    check!().with_iterations(ITERATIONS).with_generator(bytes(200)).for_each(|bytes| check_stream(bytes));
}

#[test]
fn arbitrary_bodies_of_every_kind_are_messages_or_errors() {
    let generator = (0..=22u16, produce::<bool>(), 0..=15u32, bytes(300));
    check!().with_iterations(ITERATIONS).with_generator(generator).for_each(|(kind, is_reply, status, body)| {
        let status = if *is_reply { *status } else { 0 };
        let body_bytes = body.len() as u32;
        let header =
            FrameHeader { kind: *kind, is_reply: *is_reply, body_bytes, status, request_id: 7, deadline_ms: 0 };
        check_message(&header, body);
    });
}

#[test]
fn spoilt_frames_are_frames_or_errors() {
    let frames = sample().frames();
    let edits = produce::<Vec<(u16, u8)>>().with().len(0..=6usize);
    let generator = (produce::<u8>(), edits, produce::<u16>(), produce::<bool>());
    check!().with_iterations(ITERATIONS).with_generator(generator).for_each(|(which, edits, cut, is_cut)| {
        let mut frame = frames[usize::from(*which) % frames.len()].clone();
        for (position, byte) in edits {
            let position = usize::from(*position) % frame.len();
            frame[position] = *byte;
        }
        if *is_cut {
            frame.truncate(usize::from(*cut) % (frame.len() + 1));
        }
        check_stream(&frame);
        if let Some((header, body)) = frame.split_first_chunk()
            && let Ok(header) = FrameHeader::parse(header, BODY_BYTES_MAX)
        {
            // With the length that is there, so that edits and cuts reach the parsers of bodies.
            check_message(&FrameHeader { body_bytes: body.len() as u32, ..header }, body);
        }
    });
}

#[test]
fn spliced_bodies_are_messages_or_errors() {
    let bodies: Vec<Vec<u8>> = sample().frames().iter().map(|frame| frame[FrameHeader::BYTES..].to_vec()).collect();
    let generator = (0..=22u16, produce::<bool>(), produce::<[u8; 2]>(), produce::<[u16; 2]>());
    check!().with_iterations(ITERATIONS).with_generator(generator).for_each(|(kind, is_reply, which, cuts)| {
        let [front, back] = which.map(|which| bodies[usize::from(which) % bodies.len()].as_slice());
        let cut = |body: &[u8], at: u16| usize::from(at) % (body.len() + 1);
        let body = [&front[..cut(front, cuts[0])], &back[cut(back, cuts[1])..]].concat();
        let body_bytes = body.len() as u32;
        let header =
            FrameHeader { kind: *kind, is_reply: *is_reply, body_bytes, status: 0, request_id: 7, deadline_ms: 0 };
        check_message(&header, &body);
    });
}

/// What reads a manifest or a shape allocates; counts and lengths that lie must not make it.
#[test]
fn manifests_and_shapes_of_lying_lengths_are_errors() {
    let parts = sample();
    let mut bodies = [Vec::new(), Vec::new()];
    parts.manifest.encode(&mut bodies[0]);
    let shape = BlockShape { layers: 2, kv_heads: 3, head_dim: 64, block_tokens: 64, form: parts.form };
    shape.encode(&mut bodies[1]);
    let generator = (produce::<bool>(), produce::<u16>(), produce::<u64>(), 0..=63u8);
    check!().with_iterations(ITERATIONS).with_generator(generator).for_each(|(is_shape, position, number, shift)| {
        let mut body = bodies[usize::from(*is_shape)].clone();
        let position = usize::from(*position) % (body.len() - 8);
        body[position..position + 8].copy_from_slice(&(number >> shift).to_le_bytes());
        let mut out = Vec::new();
        if *is_shape {
            if let Ok(shape) = bounded(&body, BlockShape::decode) {
                assert!(shape.slot_bytes() <= SLOT_BYTES_MAX && shape.sections().count() > 0);
                shape.encode(&mut out);
                assert_eq!(BlockShape::decode(&out), Ok(shape));
            }
        } else if let Ok(manifest) = bounded(&body, Manifest::decode) {
            manifest.encode(&mut out);
            assert_eq!(out, body);
        }
    });
}
