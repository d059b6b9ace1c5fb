//! What many measurements say together.

use crate::quality::compare::RowDifference;

/// Neighbouring positions that are counted as one observation where errors are estimated.
pub const CLUSTER: usize = 64;

/// What the rows of a text say about a form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Mean KL(exact || form) in nats.
    pub kl_mean: f64,
    /// Its standard error; `None` for one run of neighbours, which has none to be compared with.
    pub kl_mean_error: Option<f64>,
    /// Median.
    pub kl_median: f64,
    /// 99th percentile.
    pub kl_p99: f64,
    /// Largest.
    pub kl_max: f64,
    /// Share of rows with the same most likely token.
    pub top1: f64,
    /// Perplexity under the form over exact perplexity: exp(mean(nll_form - nll_exact)).
    pub ppl_ratio: f64,
    /// Its standard error.
    pub ppl_ratio_error: Option<f64>,
    /// Rows.
    pub positions: usize,
}

impl Summary {
    /// `runs`: rows of one text each, in the order of their positions. `None` when there are none.
    ///
    /// Errors are estimated over runs of [`CLUSTER`] neighbouring rows ([`mean_and_error`]), since neighbours share context and are alike;
    /// the ratio's by the delta method, ratio x error of the mean.
    pub fn of(runs: &[Vec<RowDifference>]) -> Option<Summary> {
        let rows: Vec<&RowDifference> = runs.iter().flatten().collect();
        let mut sorted: Vec<f64> = rows.iter().map(|row| row.kl).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let kl_max = *sorted.last()?;
        let over = |value: &dyn Fn(&RowDifference) -> f64| {
            let clusters: Vec<Vec<f64>> =
                runs.iter().flat_map(|run| run.chunks(CLUSTER)).map(|rows| rows.iter().map(value).collect()).collect();
            mean_and_error(&clusters)
        };
        let (kl_mean, kl_mean_error) = over(&|row| row.kl);
        let (log_ratio, log_error) = over(&|row| row.nll_form - row.nll_exact);
        let ppl_ratio = libm::exp(log_ratio);
        Some(Summary {
            kl_mean,
            kl_mean_error,
            kl_median: quantile(&sorted, 0.5),
            kl_p99: quantile(&sorted, 0.99),
            kl_max,
            top1: rows.iter().filter(|row| row.same_top).count() as f64 / rows.len() as f64,
            ppl_ratio,
            ppl_ratio_error: log_error.map(|error| ppl_ratio * error),
            positions: rows.len(),
        })
    }
}

/// The least value that at least a share `q` of `sorted` does not exceed (nearest rank). Panics when it is empty.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Mean of all values, and its standard error when the values of a cluster may depend on each other and those of two do not:
/// sqrt(c / (c - 1) x sum over clusters of (sum in it - its size x mean)^2) / n, for c clusters with n values. With clusters of one value
/// this is the usual s / sqrt(n). Source: Cochran, Sampling Techniques, ratio estimator over clusters (section 11.8). `None` for one cluster.
pub fn mean_and_error(clusters: &[Vec<f64>]) -> (f64, Option<f64>) {
    let count = clusters.iter().map(Vec::len).sum::<usize>() as f64;
    let mean = clusters.iter().flatten().sum::<f64>() / count;
    if clusters.len() < 2 {
        return (mean, None);
    }
    let squares: f64 = clusters.iter().map(|values| values.iter().map(|value| value - mean).sum::<f64>().powi(2)).sum();
    let many = clusters.len() as f64;
    (mean, Some((many / (many - 1.0) * squares).sqrt() / count))
}

/// Mean of paired differences with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Mean.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// Mean +- t x error over clusters, t from Student's distribution with one degree of freedom less than there are clusters. `None` for
    /// fewer than 2 clusters.
    pub fn of(clusters: &[Vec<f64>]) -> Option<Interval> {
        let (mean, error) = mean_and_error(clusters);
        // Before the degrees of freedom, of which one cluster has none.
        let error = error?;
        let reach = student_975(clusters.len() - 1) * error;
        Some(Interval { mean, low: mean - reach, high: mean + reach })
    }
}

/// 97.5 % point of Student's distribution: a table up to 4 degrees of freedom, then the expansion of Abramowitz and Stegun, 26.7.5
/// (off by less than 0.001).
fn student_975(freedom: usize) -> f64 {
    const TABLE: [f64; 4] = [12.706, 4.303, 3.182, 2.776];
    if let Some(point) = TABLE.get(freedom - 1) {
        return *point;
    }
    let (x, v) = (1.959_964_f64, freedom as f64);
    let g1 = (x.powi(3) + x) / 4.0;
    let g2 = (5.0 * x.powi(5) + 16.0 * x.powi(3) + 3.0 * x) / 96.0;
    let g3 = (3.0 * x.powi(7) + 19.0 * x.powi(5) + 17.0 * x.powi(3) - 15.0 * x) / 384.0;
    let g4 = (79.0 * x.powi(9) + 776.0 * x.powi(7) + 1482.0 * x.powi(5) - 1920.0 * x.powi(3) - 945.0 * x) / 92_160.0;
    x + g1 / v + g2 / v.powi(2) + g3 / v.powi(3) + g4 / v.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kl: f64, same_top: bool, nll_exact: f64, nll_form: f64) -> RowDifference {
        RowDifference { position: 0, kl, same_top, same_bits: false, nll_exact, nll_form }
    }

    #[test]
    fn ranks_by_hand() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|q| quantile(&values, q)), [1.0, 100.0, 198.0, 200.0]);
        assert_eq!(quantile(&[3.0], 0.5), 3.0);
    }

    /// 1, 2, 3, 6: mean 3, deviations -2, -1, 0, 3, s^2 = 14 / 3, error sqrt(14 / 12).
    #[test]
    fn errors_by_hand() {
        let alone: Vec<Vec<f64>> = [1.0, 2.0, 3.0, 6.0].iter().map(|value| vec![*value]).collect();
        let (mean, error) = mean_and_error(&alone);
        assert_eq!(mean, 3.0);
        assert!((error.unwrap() - (14.0f64 / 12.0).sqrt()).abs() < 1e-12);
        // In pairs: sums of deviations -3 and 3, sqrt(2 / 1 x 18) / 4 = 1.5.
        assert_eq!(mean_and_error(&[vec![1.0, 2.0], vec![3.0, 6.0]]), (3.0, Some(1.5)));
        assert_eq!(mean_and_error(&[vec![1.0, 2.0]]), (1.5, None));
    }

    /// Rows that repeat each other 64 times say no more than one of them.
    #[test]
    fn copies_of_a_row_do_not_shrink_the_error() {
        let distinct = [0.1, 0.5, 0.2, 0.9, 0.4];
        let alone: Vec<Vec<f64>> = distinct.iter().map(|value| vec![*value]).collect();
        let runs = [distinct.iter().flat_map(|kl| vec![row(*kl, true, 1.0, 1.0); CLUSTER]).collect()];
        let expected = mean_and_error(&alone).1.unwrap();
        assert!((Summary::of(&runs).unwrap().kl_mean_error.unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn a_summary_by_hand() {
        let runs = [vec![row(0.0, true, 1.0, 1.5)], vec![row(0.4, false, 2.0, 1.9), row(0.2, true, 3.0, 3.2)]];
        let summary = Summary::of(&runs).unwrap();
        assert!((summary.kl_mean - 0.2).abs() < 1e-12 && (summary.top1 - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((summary.kl_median, summary.kl_p99, summary.kl_max, summary.positions), (0.2, 0.4, 0.4, 3));
        // Differences 0.5 | -0.1, 0.2: mean 0.2; sums of deviations 0.3, -0.3; error sqrt(2 x 0.18) / 3 = 0.2.
        assert!((summary.ppl_ratio - 0.2f64.exp()).abs() < 1e-12);
        assert!((summary.ppl_ratio_error.unwrap() - 0.2 * 0.2f64.exp()).abs() < 1e-12);
        assert_eq!(Summary::of(&[Vec::new()]), None);
    }

    #[test]
    fn intervals_follow_student() {
        for (freedom, point) in [(1, 12.706), (4, 2.776), (5, 2.571), (10, 2.228), (21, 2.080), (1000, 1.962)] {
            assert!((student_975(freedom) - point).abs() < 1e-3, "{freedom}: {}", student_975(freedom));
        }
        let interval = Interval::of(&[vec![1.0], vec![2.0], vec![3.0], vec![6.0]]).unwrap();
        assert!((interval.high - (3.0 + 3.182 * (14.0f64 / 12.0).sqrt())).abs() < 1e-9);
        assert!((interval.low + interval.high - 6.0).abs() < 1e-9);
        assert_eq!(Interval::of(&[vec![1.0]]), None);
    }
}
