//! What a daemon finds that was kept for it: the list of namespaces beside its store, and the service manager's descriptors.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use bolero::{check, produce};
use cache_core::buffer::round_to_pages;
use cache_core::chain::Link;
use cache_core::codec::image::layer;
use cache_core::contract::SHAPE;
use cache_core::form::{Form, FormMapId, Lineage};
use cache_core::hash::{BlockHash, Namespace, TenantId};
use cache_core::header::{encoded_bytes, seal_image, verify_image};
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use cache_core::sum::header_sum;
use host_tier::{Adopted, promised};
use kvtier_daemon::testing::parsers::{extent_name, extent_of_name, namespaces, namespaces_line};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::{Outcomes, bytes, edit, edits};

/// Lines that were written are found, in their order, and nothing else is.
#[test]
fn lists_of_namespaces() {
    let lines: Vec<[u8; 72]> =
        (0..8).map(|number| namespaces_line(&Namespace([number; 32]), &TenantId([number + 100; 32]))).collect();
    let whole = lines.concat();
    let generator = (edits(), produce::<Option<u16>>(), bytes(200));
    check!().with_iterations(50_000).with_generator(generator).for_each(|(edits, cut, odd)| {
        let list = edit(&whole, edits, *cut);
        let expected: Vec<_> = (0..8u8)
            .zip(list.chunks_exact(72))
            .filter(|(number, line)| **line == lines[usize::from(*number)])
            .map(|(number, _)| (Namespace([number; 32]), TenantId([number + 100; 32])))
            .collect();
        assert_eq!(namespaces(&list), expected);
        assert_eq!(namespaces(odd), []);
    });
}

/// `LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`: no more names than are promised, and none to another process.
#[test]
fn promises_of_a_service_manager() {
    const NUMBERS: [&str; 12] =
        ["", "0", "1", "2", "007", "-1", "+3", "65536", "65537", "4294967296", "99999999999999999999", " 1"];
    let number = || (0..=15usize, bytes(4));
    let generator = (number(), number(), bytes(40), produce::<Option<bool>>());
    check!().with_iterations(50_000).with_generator(generator).for_each(|(pid, count, names, is_ours)| {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let number =
            |(which, odd): &(usize, Vec<u8>)| NUMBERS.get(*which).map_or_else(|| text(odd), |n| Some((*n).to_owned()));
        let (pid, count) = (if *is_ours == Some(true) { Some("7".to_owned()) } else { number(pid) }, number(count));
        let found = promised(7, |name| match name {
            "LISTEN_PID" => pid.clone(),
            "LISTEN_FDS" => count.clone(),
            "LISTEN_FDNAMES" => text(names).filter(|_| is_ours.is_some()),
            _ => panic!("{name} is no variable of the service manager's"),
        });
        let expected = count.and_then(|count| count.parse::<usize>().ok()).filter(|count| *count <= 65_536);
        let is_ours = pid.and_then(|pid| pid.parse().ok()) == Some(7);
        assert_eq!(found.len(), expected.filter(|_| is_ours).unwrap_or(0));
        assert!(found.iter().all(|name| !name.contains(':')));
    });
}

/// The name of an extent says a shape that slots can have, or the extent is let go.
#[test]
fn names_of_extents() {
    let forms = [Form::Raw16, Form::Kc4vt4, "kc4vt4:k8=0-1:v8=0".parse().expect("a form")];
    let names = forms.map(|form| extent_name(&BlockShape { form, ..SHAPE }, 7).expect("it is short enough"));
    for (name, form) in names.iter().zip(forms) {
        assert_eq!(extent_of_name(name), Some((BlockShape { form, ..SHAPE }, 7)));
    }
    let generator = (produce::<u8>(), edits(), produce::<Option<u16>>(), produce::<bool>(), bytes(80));
    let outcomes = Outcomes::default();
    check!().with_iterations(50_000).with_generator(generator).for_each(|(which, edits, cut, is_digits, odd)| {
        let sample = names[usize::from(*which) % names.len()].as_bytes();
        // Digits in the places of digits, or anything.
        let edits: Vec<_> = edits
            .iter()
            .map(|(at, byte)| (*at, if *is_digits { b"0123456789abcdef"[usize::from(byte % 16)] } else { *byte }))
            .collect();
        for name in [&edit(sample, &edits, *cut)[..], odd] {
            let read = extent_of_name(&String::from_utf8_lossy(name)).ok_or(());
            let Some((shape, slots)) = outcomes.note(read) else { continue };
            assert!(slots > 0 && shape.sections().count() > 0);
            let again = extent_name(&shape, slots).expect("it was short enough");
            assert_eq!(extent_of_name(&again), Some((shape, slots)));
        }
    });
    outcomes.expect_both();
}

/// Slots of the sample.
const SLOTS: u32 = 3;

/// Memory as an extent has it: generation words, slot images; all slots but the last have a copy.
fn extent() -> Vec<u8> {
    let mut memory = vec![0; round_to_pages(8 * u64::from(SLOTS)) as usize];
    for slot in 0..SLOTS {
        let generation = u64::from(2 * slot + 2) - u64::from(slot + 1 == SLOTS);
        memory[8 * slot as usize..][..8].copy_from_slice(&generation.to_le_bytes());
        let key = CopyKey::exact(Namespace([1; 32]), BlockHash([slot as u8; 32]));
        let mut image = vec![slot as u8; SHAPE.slot_bytes() as usize];
        let link = Link { hash: key.hash, parent: None, depth: 0 };
        seal_image(&SHAPE, key, Lineage::of(FormMapId::RAW16), link, &mut image);
        memory.extend(image);
    }
    memory
}

fn memory_file(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let file = File::from(memfd_create(c"fuzz", MemfdFlags::ALLOW_SEALING).expect("a memfd"));
    file.write_all_at(bytes, 0).expect("memory");
    fcntl_add_seals(&file, seals).expect("seals");
    file.into()
}

/// The memory of an extent, spoilt anywhere, under sums of headers that are right again or not: a copy that verifies has the bytes that were sealed.
#[test]
fn extents() {
    let sample = extent();
    let slots_begin = round_to_pages(8 * u64::from(SLOTS)) as usize;
    let header_bytes = encoded_bytes(SHAPE.section_count()) as usize;
    let slot_bytes = SHAPE.slot_bytes() as usize;
    let whole = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    assert_eq!(Adopted::open(memory_file(&sample, whole), SHAPE, SLOTS).expect("an extent").copies().count(), 2);
    let places = produce::<Vec<(u8, u16, u8)>>().with().len(0..=8usize);
    let generator = (places, produce::<bool>(), 0..=9u8, 0..=12u32, produce::<Option<i8>>());
    let (opened, verified) = (Outcomes::default(), Outcomes::default());
    check!().with_iterations(20_000).with_generator(generator).for_each(|(places, is_sealed, seal, slots, longer)| {
        let mut memory = sample.clone();
        for (which, at, byte) in places {
            // Words, headers and images in equal shares.
            let slot = usize::from(which / 3) % SLOTS as usize;
            let (begin, length) = match which % 3 {
                0 => (8 * slot, 8),
                1 => (slots_begin + slot * slot_bytes, header_bytes),
                _ => (slots_begin + slot * slot_bytes, slot_bytes),
            };
            memory[begin + usize::from(*at) % length] = *byte;
        }
        if *is_sealed {
            for image in memory[slots_begin..].chunks_mut(slot_bytes) {
                let sum = header_sum(&image[..header_bytes - 8]);
                image[header_bytes - 8..header_bytes].copy_from_slice(&sum.to_le_bytes());
            }
        }
        let length = longer.map_or(memory.len(), |by| memory.len().saturating_add_signed(isize::from(by) * 512));
        memory.resize(length, 0);
        let seals = [
            SealFlags::SHRINK,
            SealFlags::SHRINK | SealFlags::GROW,
            whole - SealFlags::SEAL,
            whole - SealFlags::SHRINK,
            whole | SealFlags::WRITE,
        ];
        let seals = seals.get(usize::from(*seal)).copied().unwrap_or(whole);
        let slots = if *slots < 6 { *slots } else { SLOTS };
        let adopted = Adopted::open(memory_file(&memory, seals), SHAPE, slots);
        let Some(adopted) = opened.note(adopted) else { return };
        assert!(seals.contains(whole) && length == slots_begin + slots as usize * slot_bytes);
        for copy in adopted.copies() {
            let mut image = vec![0; slot_bytes];
            adopted.read(copy.slot, 0, &mut image);
            assert!(adopted.is_current(copy.slot, copy.generation), "nobody can write it");
            if verified.note(verify_image(&SHAPE, &copy.header.key, &image)).is_some() {
                let sealed = &sample[slots_begin + copy.slot as usize * slot_bytes..][..slot_bytes];
                let is_same = |index| layer(&SHAPE, &image, index).codes == layer(&SHAPE, sealed, index).codes;
                assert!((0..SHAPE.layers).all(is_same), "other values under the sums");
            }
        }
    });
    opened.expect_both();
    verified.expect_both();
}
