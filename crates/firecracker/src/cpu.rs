//! Custom CPU templates: which features of the processor a guest sees (`PUT /cpu-config`, x86_64).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};

/// A template. The empty one changes nothing.
#[derive(Clone, Default, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct CpuConfig {
    /// Numbers of KVM capabilities to require, or, with `!` before, not to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kvm_capabilities: Vec<String>,
    /// Changes of CPUID.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// Changes of model specific registers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub msr_modifiers: Vec<MsrModifier>,
}

/// What changes in one leaf of CPUID. Firecracker refuses to boot where the processor has no such leaf.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct CpuidModifier {
    /// Leaf, e.g. `0x1`.
    pub leaf: String,
    /// Its part, e.g. `0x0`.
    pub subleaf: String,
    /// KVM's flags of the entry; 1 where the subleaf matters.
    pub flags: u32,
    /// By register.
    pub modifiers: Vec<CpuidRegister>,
}

/// What changes in one register of a leaf.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct CpuidRegister {
    /// Which.
    pub register: Register,
    /// Its bits.
    pub bitmap: Bitmap<32>,
}

/// A register that CPUID answers in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "names of registers")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What changes in one model specific register.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct MsrModifier {
    /// Which, e.g. `0x10a`.
    pub addr: String,
    /// Its bits.
    pub bitmap: Bitmap<64>,
}

/// For each of a register's `BITS` (at most 64) bits: set, cleared, or as the processor has it. As text, the highest bit
/// first: `0bxx01…`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bitmap<const BITS: usize> {
    changed: u64,
    values: u64,
}

impl<const BITS: usize> Bitmap<BITS> {
    const ALL: u64 = u64::MAX >> (64 - BITS);

    /// Sets and clears these bits; one in both is cleared. Bits that the register does not have are ignored.
    pub const fn new(set: u64, clear: u64) -> Self {
        Self { changed: (set | clear) & Self::ALL, values: set & !clear & Self::ALL }
    }

    /// The bits that become 1.
    pub const fn set(self) -> u64 {
        self.values
    }

    /// The bits that become 0.
    pub const fn cleared(self) -> u64 {
        self.changed & !self.values
    }
}

impl<const BITS: usize> fmt::Display for Bitmap<BITS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0b")?;
        (0..BITS).rev().try_for_each(|bit| {
            let at = |bits: u64| (bits >> bit) & 1 == 1;
            f.write_str(match (at(self.changed), at(self.values)) {
                (false, _) => "x",
                (true, false) => "0",
                (true, true) => "1",
            })
        })
    }
}

impl<const BITS: usize> Serialize for Bitmap<BITS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const BITS: usize> Deserialize<'de> for Bitmap<BITS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0b").ok_or_else(|| D::Error::custom("a bitmap starts with 0b"))?;
        let (mut set, mut clear, mut bits) = (0, 0, 0);
        // `_` separates. Fewer digits than bits are the lower ones.
        for digit in digits.chars().filter(|digit| *digit != '_') {
            (set, clear) = (set << 1, clear << 1);
            bits += 1;
            match digit {
                '1' => set |= 1,
                '0' => clear |= 1,
                'x' => {}
                _ => return Err(D::Error::custom("a bitmap consists of 0, 1, x and _")),
            }
        }
        if bits > BITS {
            return Err(D::Error::custom(format!("a bitmap of {bits} bits for a register of {BITS}")));
        }
        Ok(Self::new(set, clear))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bitmap_survives_its_text(set: u64, clear: u64) {
            let bitmap = Bitmap::<64>::new(set, clear);
            let text = serde_json::to_string(&bitmap).unwrap();
            prop_assert_eq!(serde_json::from_str::<Bitmap<64>>(&text).unwrap(), bitmap);
            let bitmap = Bitmap::<32>::new(set, clear);
            let text = serde_json::to_string(&bitmap).unwrap();
            prop_assert_eq!(text.len(), 32 + 4);
            prop_assert_eq!(serde_json::from_str::<Bitmap<32>>(&text).unwrap(), bitmap);
            prop_assert_eq!(bitmap.set() & bitmap.cleared(), 0);
        }

        #[test]
        fn any_text_is_a_bitmap_or_an_error(text in "(0b)?[01x_y]{0,70}") {
            let json = serde_json::to_string(&text).unwrap();
            let digits = text.chars().skip(2).filter(|digit| *digit != '_').count();
            let good = text.starts_with("0b") && !text.contains('y') && digits <= 32;
            prop_assert_eq!(serde_json::from_str::<Bitmap<32>>(&json).is_ok(), good);
        }
    }

    #[test]
    fn shorter_texts_are_the_lower_bits() {
        let bitmap: Bitmap<32> = serde_json::from_str("\"0b1_0x\"").unwrap();
        assert_eq!((bitmap.set(), bitmap.cleared()), (4, 2));
        assert_eq!(bitmap.to_string(), format!("0b{}10x", "x".repeat(29)));
    }
}
