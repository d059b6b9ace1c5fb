//! A scene on device `cuda` beside the `cpu` device and f64.

use gpu_tier::cpu::isa::Isa;

use crate::device::{Engine, cpu, cuda};
use crate::double::Double;
use crate::scene::{Plan, Scene, Stage, WAYS, WHOLE};

/// Relative to the largest value of a head.
const TOLERANCE: f64 = 2e-3;

/// Every way to attend a scene on both devices.
pub fn check(engine: Engine, scene: Scene) {
    let double = Double::take();
    let (cuda, cpu) = (cuda(&double, engine), cpu(*Isa::available().last().unwrap()));
    let (ours, twin) = (Stage::new(&cuda, scene).unwrap(), Stage::new(&cpu, scene).unwrap());
    for ((what, ours), (_, twin)) in ours.written().unwrap().iter().zip(twin.written().unwrap()) {
        let differs = ours.iter().zip(&twin).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what}, {scene:?}");
    }
    let closed_only = scene.closed.map(|_| Plan { closed_only: true, ..WHOLE });
    for plan in WAYS.iter().chain(&closed_only) {
        let (found, expected) = (ours.attend(plan).unwrap(), twin.attend(plan).unwrap());
        let differs = found.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(
            differs,
            None,
            "{:?} of {:?}, {plan:?}, {scene:?}",
            differs.map(|i| found[i]),
            differs.map(|i| expected[i])
        );
        let distance = ours.distance(&found, plan.closed_only).unwrap();
        assert!(distance < TOLERANCE, "{distance:e} from f64, {plan:?}, {scene:?}");
    }
    drop(ours);
    drop(cuda);
    double.assert_nothing_left();
}
