//! How fast PTX is executed here: instructions of threads per second and core.

use std::time::Instant;

use cuda_ladder::{Arena, Launch, Module};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let module = Module::parse(include_str!("../tests/kernels/basics.compute_80.ptx"))?;
    let (rows, columns) = (2000u32, 1000u32);
    let mut memory = Arena::new();
    let from = memory.upload(&vec![0; (4 * rows * columns) as usize]);
    let to = memory.allocate((4 * rows * columns) as usize);
    let entry = module.entry("softmax").ok_or("no softmax")?;
    let params = entry.pack(&[&from.to_le_bytes(), &to.to_le_bytes(), &columns.to_le_bytes()])?;
    let start = Instant::now();
    let counts = module.run(entry, &Launch::new([rows, 1, 1], [128, 1, 1], &params), &mut memory)?;
    let seconds = start.elapsed().as_secs_f64();
    let total = counts.thread_total() as f64;
    println!("{:.0} M thread instructions in {seconds:.2} s: {:.0} M/s", total / 1e6, total / 1e6 / seconds);
    Ok(())
}
