//! Every instruction set's codecs against the reference, bit for bit. The long form is `soak_forms.rs`.

mod foreign;

use cache_core::codec::suite::parity;
use gpu_tier::cpu::codec::Simd;
use gpu_tier::cpu::isa::Isa;

#[test]
fn every_set_equals_the_reference_on_a_million_cases() {
    for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar) {
        let cases = parity(&Simd::new(isa), 0x5eed, 340_000);
        assert!(cases > 1_000_000);
        println!("{}: {cases} cases", isa.name());
    }
}

#[test]
fn every_set_makes_the_same_of_bytes_that_no_encoder_wrote() {
    for isa in Isa::available() {
        foreign::decode(&Simd::new(isa), 0xf0e1, 20_000);
    }
}

#[test]
fn the_scalar_set_is_the_reference() {
    assert_eq!(parity(&Simd::new(Isa::Scalar), 0x5eed, 1_000), 3_000);
}
