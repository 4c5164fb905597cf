//! Which new traces are taken.

/// Takes a share of the traces, the same ones wherever it is asked: by the 56 bits of their ids that are random, as
/// OpenTelemetry's and W3C's consistent probability sampling do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sampler {
    threshold: u64,
}

const BITS: u32 = 56;

impl Sampler {
    /// `share` of all: 0 none, 1 each; what is outside counts as the nearer of them.
    pub fn new(share: f64) -> Self {
        let all = 1_u64 << BITS;
        let left_out = (1.0 - share).clamp(0.0, 1.0) * all as f64;
        Self { threshold: left_out as u64 }
    }

    /// Whether the trace with this lower half is taken.
    pub fn takes(self, low: u64) -> bool {
        low & ((1 << BITS) - 1) >= self.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_its_share() {
        let ids = (0..10_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for (share, expected) in [(0.0, 0..=0), (0.01, 60..=140), (0.5, 4800..=5200), (1.0, 10_000..=10_000)] {
            let taken = ids.clone().filter(|id| Sampler::new(share).takes(*id)).count();
            assert!(expected.contains(&taken), "{share}: {taken}");
        }
        assert!(!Sampler::new(f64::NAN).takes(0) || Sampler::new(f64::NAN).threshold == 0);
    }

    #[test]
    fn a_larger_share_has_all_of_a_smaller_one() {
        for id in (0..1000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            assert!(!Sampler::new(0.1).takes(id) || Sampler::new(0.2).takes(id));
        }
    }
}
