//! Which options were asked for, and which are there. Pure.

use std::collections::HashMap;

/// The options of `asked` that `effective` (a `.config`) has not, as they were asked for.
pub(super) fn lost<'a>(asked: &'a str, effective: &str) -> Vec<&'a str> {
    let effective: HashMap<&str, &str> = options(effective).map(|(name, value, _)| (name, value)).collect();
    let lost = options(asked).filter(|(name, value, _)| effective.get(name).copied().unwrap_or("n") != *value);
    lost.map(|(_, _, line)| line).collect()
}

/// The name of the option in a line of Kconfig's.
pub(super) fn name(line: &str) -> Option<&str> {
    options(line).next().map(|(name, _, _)| name)
}

/// Name, value and line of each option in a file of Kconfig's.
fn options(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    text.lines().map(str::trim).filter_map(|line| {
        let off = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set"));
        let (name, value) = match off {
            Some(name) => (name, "n"),
            None => line.split_once('=')?,
        };
        // A comment may have an equals sign as well.
        name.starts_with("CONFIG_").then_some((name, value, line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_did_not_survive() {
        let asked =
            "# why = because\nCONFIG_A=y\nCONFIG_B=16\nCONFIG_C=y\n# CONFIG_D is not set\n# CONFIG_E is not set\n";
        assert_eq!(lost(asked, "CONFIG_A=y\nCONFIG_B=16\nCONFIG_C=y\n# CONFIG_D is not set\n"), Vec::<&str>::new());
        assert_eq!(
            lost(asked, "CONFIG_A=m\nCONFIG_B=8\nCONFIG_E=y\n"),
            ["CONFIG_A=y", "CONFIG_B=16", "CONFIG_C=y", "# CONFIG_E is not set"]
        );
        assert_eq!(
            (name("CONFIG_B=16"), name("# CONFIG_E is not set"), name("# why")),
            (Some("CONFIG_B"), Some("CONFIG_E"), None)
        );
    }

    #[test]
    fn our_configuration_asks_for_each_option_once() {
        let asked = super::super::asked();
        let mut names: Vec<&str> = options(&asked).map(|(name, _, _)| name).collect();
        assert!(names.len() > 100);
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
