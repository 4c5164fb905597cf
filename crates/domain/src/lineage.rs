//! Recursion detection: how often a chain of invocations has come through the same function.
//!
//! `X-Amzn-Trace-Id: Root=…;Lineage=<hash>:<count>[|<hash>:<count>…]`; the hash names a function. Lambda stops a chain
//! at about 16 invocations (developer guide, "recursive loop detection"). What a function sends on with its trace
//! header carries the counts to the next invocation.

use sha2::{Digest, Sha256};

use crate::arn::FunctionArn;

/// A chain that came through one function more often than this is a loop.
pub const LIMIT: u32 = 16;

/// Functions that a lineage remembers, so that a header stays short; the one not seen for longest goes first. A loop
/// through more functions than this is not seen.
const FUNCTIONS: usize = 16;

/// The trace header as the function gets it, with this invocation counted; and the count.
pub fn hop(trace: &str, function: &FunctionArn) -> (String, u32) {
    let own = tag(function);
    if !trace.contains("Lineage=") {
        // The first of a chain, as most are.
        let separator = if trace.is_empty() || trace.ends_with(';') { "" } else { ";" };
        return ([trace, separator, "Lineage=", &own, ":1"].concat(), 1);
    }
    let mut counts: Vec<(&str, u32)> = Vec::new();
    let mut fields: Vec<&str> = Vec::new();
    for field in trace.split(';').filter(|field| !field.is_empty()) {
        match field.strip_prefix("Lineage=") {
            // Python's SDK escapes what it sends on.
            Some(lineage) => counts.extend(lineage.split('|').flat_map(|part| part.split("%7C")).filter_map(|entry| {
                let (hash, count) = entry.rsplit_once(':')?;
                Some((hash, count.parse().ok()?))
            })),
            None => fields.push(field),
        }
    }
    // Twice in a header is once with the higher count: no header may lower it.
    let before = counts.iter().filter(|(hash, _)| *hash == own).map(|(_, count)| *count).max().unwrap_or(0);
    let count = before.saturating_add(1);
    counts.retain(|(hash, _)| *hash != own);
    let skip = (counts.len() + 1).saturating_sub(FUNCTIONS);
    counts.drain(..skip);
    counts.push((&own, count));
    let lineage: Vec<String> = counts.iter().map(|(hash, count)| format!("{hash}:{count}")).collect();
    let lineage = format!("Lineage={}", lineage.join("|"));
    fields.push(&lineage);
    (fields.join(";"), count)
}

/// What names a function in a lineage.
fn tag(function: &FunctionArn) -> String {
    let mut hash = Sha256::new();
    for part in function.parts() {
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    format!("{:08x}", u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

/// Whether a count is that of a loop.
pub fn is_loop(count: u32) -> bool {
    count > LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str) -> FunctionArn {
        FunctionArn { region: "us-east-1".into(), account: crate::AccountId::local(), name: name.into() }
    }

    #[test]
    fn a_loop_is_seen_after_sixteen_hops() {
        let (a, b) = (function("a"), function("b"));
        let mut trace = "Root=1-5-6;Sampled=0".to_owned();
        for round in 1..=17 {
            let (next, count) = hop(&trace, &a);
            assert_eq!((count, is_loop(count)), (round, round > 16));
            trace = hop(&next, &b).0;
        }
        assert!(trace.starts_with("Root=1-5-6;Sampled=0;Lineage="), "{trace}");
        assert!(trace.ends_with(":17"), "{trace}");
    }

    #[test]
    fn a_function_keeps_its_tag() {
        // Headers that are on their way while Emberbox is updated still count.
        let trace = hop("Root=1-5-6;", &function("a"));
        assert_eq!(trace, ("Root=1-5-6;Lineage=285fdfbe:1".to_owned(), 1));
        assert_eq!(hop("", &function("a")).0, "Lineage=285fdfbe:1");
    }

    #[test]
    fn a_header_may_be_escaped() {
        let (a, b) = (function("a"), function("b"));
        let trace = hop(&hop("Root=1", &a).0, &b).0;
        assert_eq!(hop(&trace.replace('|', "%7C"), &a), hop(&trace, &a));
        assert_eq!(hop(&trace.replace('|', "%7C"), &a).1, 2);
    }

    #[test]
    fn nonsense_is_dropped_and_long_headers_stay_short() {
        assert_eq!(hop("Lineage=;;Lineage=x:y|:|z", &function("a")).1, 1);
        let trace = (0..50).fold(String::new(), |trace, i| hop(&trace, &function(&i.to_string())).0);
        assert_eq!(trace.matches('|').count(), FUNCTIONS - 1);
    }
}
