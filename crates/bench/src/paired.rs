//! Two things beside each other on a host that others use as well: short rounds by turns, and the median of their ratios.
//!
//! What else the host does comes and goes within seconds. So ours and theirs are measured in rounds of a fraction of a
//! second, in the order ours, theirs, theirs, ours: whatever grows or fades meanwhile meets both alike. Each such block
//! gives one ratio, and what meets a single round spoils one ratio of many, which moves their median little. (The ratio of
//! two sums, by contrast, has all of it.)

use std::fmt;

use anyhow::Result;

/// Ours ÷ theirs, of each block.
#[derive(Clone, Debug, Default)]
pub struct Ratios(Vec<f64>);

impl Ratios {
    /// Of some ratios.
    pub fn new(mut ratios: Vec<f64>) -> Self {
        ratios.sort_by(f64::total_cmp);
        Self(ratios)
    }

    /// The middle one; not a number if there is none.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Between which the middle half of them lies.
    pub fn quartiles(&self) -> [f64; 2] {
        [self.quantile(0.25), self.quantile(0.75)]
    }

    /// Between two of them in proportion.
    fn quantile(&self, q: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return f64::NAN };
        let place = q * last as f64;
        let (below, above) = (self.0[place.floor() as usize], self.0[place.ceil() as usize]);
        below + (above - below) * place.fract()
    }
}

/// For a cell.
impl fmt::Display for Ratios {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.quartiles();
        write!(f, "{:.2} × ({} pairs, the middle half {low:.2} to {high:.2})", self.median(), self.0.len())
    }
}

/// Measures so many blocks of four rounds, each of which gives a number.
pub async fn paired(
    blocks: u32,
    mut ours: impl AsyncFnMut() -> Result<f64>,
    mut theirs: impl AsyncFnMut() -> Result<f64>,
) -> Result<Ratios> {
    let mut ratios = Vec::new();
    for _ in 0..blocks {
        let first = ours().await?;
        let between = theirs().await? + theirs().await?;
        ratios.push((first + ours().await?) / between);
    }
    Ok(Ratios::new(ratios))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let of = |ratios: &[f64]| Ratios::new(ratios.to_vec());
        assert!(of(&[]).median().is_nan());
        assert_eq!(of(&[0.8]).median(), 0.8);
        assert_eq!(of(&[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(of(&[4.0, 1.0, 3.0, 2.0]).median(), 2.5);
        assert_eq!(of(&[5.0, 1.0, 4.0, 2.0, 3.0]).quartiles(), [2.0, 4.0]);
        assert_eq!(of(&[1.0, 2.0]).quartiles(), [1.25, 1.75]);
        let shown = of(&[0.8, 0.84, 0.82]).to_string();
        assert_eq!(shown, "0.82 × (3 pairs, the middle half 0.81 to 0.83)");
    }

    #[test]
    fn one_bad_round_moves_the_median_little() {
        let mut ratios = vec![0.81, 0.82, 0.83, 0.84, 0.85];
        let before = Ratios::new(ratios.clone()).median();
        ratios[4] = 90.0;
        assert_eq!(Ratios::new(ratios).median(), before);
    }

    #[tokio::test]
    async fn a_host_that_slows_down_meets_both_alike() {
        let (speed, order) = (RefCell::new(100.0), RefCell::new(String::new()));
        let round = |who: char, work: f64| {
            order.borrow_mut().push(who);
            *speed.borrow_mut() -= 5.0;
            Ok(work * *speed.borrow())
        };
        let ratios = paired(3, async || round('o', 0.8), async || round('t', 1.0)).await.unwrap();
        assert_eq!(*order.borrow(), "ottoottootto");
        for quantile in [ratios.median(), ratios.quartiles()[0], ratios.quartiles()[1]] {
            assert!((quantile - 0.8).abs() < 1e-9, "{quantile}");
        }
    }

    #[tokio::test]
    async fn a_round_that_fails_ends_it() {
        let failed = paired(2, async || Ok(1.0), async || anyhow::bail!("no answer")).await;
        assert_eq!(failed.unwrap_err().to_string(), "no answer");
    }
}
