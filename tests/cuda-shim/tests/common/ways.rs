//! A scene on device `cuda` beside the `cpu` device and f64.

use gpu_tier::DeviceError;
use gpu_tier::attention::Geometry;
use gpu_tier::attention::closed::{AttendMixed, Closed};
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cuda::{CudaDevice, QueryElement};
use gpu_tier::device::Stream;
use half::{bf16, f16};

use crate::device::{Engine, cpu, cuda, cuda_matrix};
use crate::double::Double;
use crate::scene::{Plan, Queries, Scene, Stage, WAYS, WHOLE, bytes_of};

/// Relative to the largest value of a head.
const TOLERANCE: f64 = 2e-3;

/// Every way to attend a scene on both devices, with queries of an element beside the same numbers in f32 on the `cpu` device.
pub fn check_queries(engine: Engine, scene: Scene, element: QueryElement) {
    let double = Double::take();
    let (cuda, cpu) = (cuda(&double, engine), cpu(*Isa::available().last().unwrap()));
    let (round, queries) = of(element);
    let ours = Stage::new(&cuda, scene).unwrap().round_queries(round).with_queries(queries);
    let twin = Stage::new(&cpu, scene).unwrap().round_queries(round);
    for ((what, ours), (_, twin)) in ours.written().unwrap().iter().zip(twin.written().unwrap()) {
        let differs = ours.iter().zip(&twin).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what}, {scene:?}");
    }
    for plan in plans(&scene) {
        let (found, expected) = (ours.attend(&plan).unwrap(), twin.attend(&plan).unwrap());
        assert_same(&found, &expected, &plan, &scene);
        let distance = ours.distance(&found, plan.closed_only).unwrap();
        assert!(distance < TOLERANCE, "{distance:e} from f64, {element:?}, {plan:?}, {scene:?}");
    }
    drop(ours);
    drop(cuda);
    double.assert_nothing_left();
}

/// Every way to attend a scene on matrix instructions, beside the first and f64. Returns how far from f64 it was.
pub fn check_matrix(engine: Engine, scene: Scene, element: QueryElement) -> f64 {
    let double = Double::take();
    let cuda = cuda_matrix(&double, engine);
    let (round, queries) = of(element);
    let stage = Stage::new(&cuda, scene).unwrap().round_queries(round).with_queries(queries);
    let expected = stage.attend(&WHOLE).unwrap();
    let mut worst = 0f64;
    for plan in plans(&scene) {
        let found = stage.attend(&plan).unwrap();
        if !plan.closed_only {
            assert_same(&found, &expected, &plan, &scene);
        }
        worst = worst.max(stage.distance(&found, plan.closed_only).unwrap());
        assert!(worst < TOLERANCE, "{worst:e} from f64, {element:?}, {plan:?}, {scene:?}");
    }
    drop(stage);
    drop(cuda);
    double.assert_nothing_left();
    worst
}

fn plans(scene: &Scene) -> Vec<Plan> {
    let closed_only = scene.closed.map(|_| Plan { closed_only: true, ..WHOLE });
    WAYS.into_iter().chain(closed_only).collect()
}

fn assert_same(found: &[f32], expected: &[f32], plan: &Plan, scene: &Scene) {
    let differs = found.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
    let at = |numbers: &[f32]| differs.map(|i| numbers[i]);
    assert_eq!(differs, None, "{:?} of {:?}, {plan:?}, {scene:?}", at(found), at(expected));
}

/// How queries are rounded and handed over.
fn of(element: QueryElement) -> (fn(f32) -> f32, Queries<CudaDevice>) {
    match element {
        QueryElement::F32 => (|x| x, Queries { encode: bytes_of, attend: attend_f32 }),
        QueryElement::Bf16 => {
            let encode = |all: &[f32]| all.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
            (|x| bf16::from_f32(x).to_f32(), Queries { encode, attend: attend_bf16 })
        }
        QueryElement::F16 => {
            let encode = |all: &[f32]| all.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
            (|x| f16::from_f32(x).to_f32(), Queries { encode, attend: attend_f16 })
        }
    }
}

type Closing = Option<Closed>;
type Outcome = Result<(), DeviceError>;

fn attend_f32(device: &CudaDevice, geometry: &Geometry, closed: Closing, job: &AttendMixed<'_>) -> Outcome {
    device.attend_queries(Stream::Compute, geometry, QueryElement::F32, closed, &[*job])
}

fn attend_bf16(device: &CudaDevice, geometry: &Geometry, closed: Closing, job: &AttendMixed<'_>) -> Outcome {
    device.attend_queries(Stream::Compute, geometry, QueryElement::Bf16, closed, &[*job])
}

fn attend_f16(device: &CudaDevice, geometry: &Geometry, closed: Closing, job: &AttendMixed<'_>) -> Outcome {
    device.attend_queries(Stream::Compute, geometry, QueryElement::F16, closed, &[*job])
}
