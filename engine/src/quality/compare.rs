//! Two rows of logits for the same position, compared.

use crate::run::sampler::argmax;

/// The exact row of a position.
#[derive(Debug)]
pub struct ExactRow<'a> {
    logits: &'a [f32],
    probabilities: Vec<f64>,
    log_total: f64,
    top: u32,
}

/// How a form's row differs from the exact one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowDifference {
    /// Position in the sequence.
    pub position: usize,
    /// KL(exact || form) in nats.
    pub kl: f64,
    /// True when both have the same most likely token.
    pub same_top: bool,
    /// True when every logit has the same bits.
    pub same_bits: bool,
    /// -ln p(next token) in the exact row.
    pub nll_exact: f64,
    /// -ln p(next token) in the form's row.
    pub nll_form: f64,
}

impl<'a> ExactRow<'a> {
    /// `logits`: one per token of the vocabulary.
    pub fn new(logits: &'a [f32]) -> ExactRow<'a> {
        let mut probabilities = Vec::new();
        let log_total = weigh(logits, &mut |weight| probabilities.push(weight));
        let total: f64 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|weight| *weight /= total);
        ExactRow { logits, probabilities, log_total, top: argmax(logits) }
    }

    /// Compares `form`, the row of the same `position` under a form. `next`: the token that follows it.
    ///
    /// KL = sum p (a - b) - log sum exp a + log sum exp b, with `a` the exact logits, `b` the form's and p = softmax(a); in f64, in index
    /// order. Equal rows give exactly 0; what rounding leaves below 0 is 0.
    pub fn compare(&self, position: usize, form: &[f32], next: u32) -> RowDifference {
        let log_total = weigh(form, &mut |_| ());
        let pairs = self.logits.iter().zip(form);
        let expected: f64 = pairs.zip(&self.probabilities).map(|((a, b), p)| p * (f64::from(*a) - f64::from(*b))).sum();
        let kl = expected + (log_total - self.log_total);
        let nll = |logits: &[f32], log_total: f64| log_total - f64::from(logits[next as usize]);
        RowDifference {
            position,
            // Not `max`, which would turn a NaN into a 0.
            kl: if kl < 0.0 { 0.0 } else { kl },
            same_top: argmax(form) == self.top,
            same_bits: self.logits.iter().zip(form).all(|(a, b)| a.to_bits() == b.to_bits()),
            nll_exact: nll(self.logits, self.log_total),
            nll_form: nll(form, log_total),
        }
    }
}

/// log sum exp of `logits`; `each` gets every exp(logit - largest).
fn weigh(logits: &[f32], each: &mut dyn FnMut(f64)) -> f64 {
    let largest = f64::from(logits[argmax(logits) as usize]);
    let mut total = 0.0;
    for logit in logits {
        let weight = libm::exp(f64::from(*logit) - largest);
        total += weight;
        each(weight);
    }
    largest + libm::log(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): KL = 1/2 ln 2 + 1/4 ln 1/2 = 1/4 ln 2.
    #[test]
    fn two_rows_by_hand() {
        let (two, four) = (0.5f32.ln(), 0.25f32.ln());
        // A constant added to all logits changes nothing.
        let (exact, form) = ([two + 3.0, four + 3.0, four + 3.0], [four, four, two]);
        let difference = ExactRow::new(&exact).compare(7, &form, 0);
        assert_eq!(difference.position, 7);
        assert!((difference.kl - 0.25 * 2f64.ln()).abs() < 1e-6, "{difference:?}");
        assert!((difference.nll_exact - 2f64.ln()).abs() < 1e-6 && (difference.nll_form - 4f64.ln()).abs() < 1e-6);
        assert!(!difference.same_top && !difference.same_bits);
    }

    #[test]
    fn equal_rows_differ_by_exactly_nothing() {
        let row: Vec<f32> = (0..1000).map(|index| ((index * 37) % 101) as f32 * 0.31 - 9.0).collect();
        let difference = ExactRow::new(&row).compare(0, &row, 5);
        assert_eq!((difference.kl, difference.nll_exact), (0.0, difference.nll_form));
        assert!(difference.same_top && difference.same_bits);
        let mut other = row.clone();
        other[3] = f32::from_bits(other[3].to_bits() + 1);
        assert!(!ExactRow::new(&row).compare(0, &other, 5).same_bits);
    }

    #[test]
    fn a_row_that_is_no_number_does_not_pass_for_equal() {
        assert!(ExactRow::new(&[0.0, 1.0]).compare(0, &[f32::NAN, 1.0], 0).kl.is_nan());
    }
}
