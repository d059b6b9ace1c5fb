//! What the compiled kernels do, as counted by executing their PTX on a CPU: the table `kernels/traffic.tsv`, which
//! `gpu-tier/tests/cuda_counts.rs` checks. Counts, not times.

/// Lines of cells between tabs; the first line names the columns.
const TABLE: &str = include_str!("../../kernels/traffic.tsv");

/// Names of the columns. The first two, `work` and `architecture`, are text; the others are numbers.
pub fn columns() -> impl Iterator<Item = &'static str> {
    TABLE.lines().take(1).flat_map(|line| line.split('\t'))
}

/// Cells of each kind of work, architecture and head size.
pub fn rows() -> impl Iterator<Item = impl Iterator<Item = &'static str>> {
    TABLE.lines().skip(1).map(|line| line.split('\t'))
}
