//! The instrument that judges stored forms: what it must say of forms whose difference is known.

use std::path::Path;

use kvtier_engine::EngineError;
use kvtier_engine::quality::gate::{self, Gate};
use kvtier_engine::quality::retrieval::{self, Grid};
use kvtier_engine::quality::tasks::{self, Task, TrialError};
use kvtier_engine::quality::{divergence, greedy, hit};
use kvtier_engine::run::Form;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_tests::disk::with_disk;
use kvtier_tests::{fixture, options, plain, turn};

fn open(form: Form, store: Option<&Path>) -> Result<Engine, EngineError> {
    let options = match store {
        Some(folder) => with_disk(folder, options()),
        None => plain(),
    };
    Ok(fixture().engine(EngineOptions { form, ..options }))
}

fn quiet(_: usize, _: usize) {}


#[test]
fn probe() {
    let grid = Grid { tokens: 2048, depths: 3, seeds: 1 };
    let found = retrieval::measure(&open, &[Form::I8h, Form::Kc4vt4], grid, &fixture().tokenizer, &mut quiet).unwrap();
    for row in &found { println!("{} {} {} {} {:?} {:?}", row.task.name(), row.form.name(), row.exact_right, row.form_right, row.difference, row.depths.iter().map(|d|(d.exact,d.form)).collect::<Vec<_>>()); }
}
