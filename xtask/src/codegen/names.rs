//! Rust names and doc comments from the model's.

/// `KMSKeyArn` → `kms_key_arn`, `S3Bucket` → `s3_bucket`, `tagKeys` → `tag_keys`.
pub fn snake(name: &str) -> String {
    // Units that count as one word each.
    let name = name.replace("GiB", "Gib").replace("MiB", "Mib").replace("VCpu", "Vcpu");
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (index, &c) in chars.iter().enumerate() {
        if c.is_ascii_uppercase() && index > 0 {
            let after_word = !chars[index - 1].is_ascii_uppercase();
            let starts_word = chars.get(index + 1).is_some_and(char::is_ascii_lowercase);
            if after_word || starts_word {
                out.push('_');
            }
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// The name of a struct's field: snake case, raw where it is a keyword.
pub fn field(name: &str) -> String {
    match snake(name).as_str() {
        keyword @ ("type" | "match" | "ref" | "move" | "use" | "where" | "in" | "final") => format!("r#{keyword}"),
        name => name.to_owned(),
    }
}

/// The name of a static.
pub fn constant(name: &str) -> String {
    snake(name).to_ascii_uppercase()
}

/// The member's name in validation messages: AWS lowers the first letter and nothing else.
pub fn path(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_lowercase().to_string() + chars.as_str())
}

/// The variant of an enum's value: `TRIM_HORIZON` → `TrimHorizon`, `nodejs20.x` → `Nodejs20X`, `python3.10` → `Python3_10`.
pub fn variant(value: &str) -> String {
    let mut out = String::new();
    for word in value.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        let between_digits =
            out.ends_with(|c: char| c.is_ascii_digit()) && word.starts_with(|c: char| c.is_ascii_digit());
        if between_digits {
            out.push('_');
        }
        let shouted = word.len() > 1 && !word.contains(|c: char| c.is_ascii_lowercase());
        let (first, rest) = word.split_at(1);
        out.push_str(&first.to_ascii_uppercase());
        out.push_str(&if shouted { rest.to_ascii_lowercase() } else { rest.to_owned() });
    }
    // `Unknown` is the variant for values that the model does not know.
    if out == "Unknown" { "UnknownValue".to_owned() } else { out }
}

/// The first sentence of the model's HTML documentation, as doc comment lines.
pub fn doc(html: &str, fallback: &str) -> String {
    let mut text = String::new();
    let mut in_tag = false;
    let mut tag = String::new();
    for c in html.chars() {
        match c {
            '<' => {
                in_tag = true;
                tag.clear();
            }
            '>' if in_tag => {
                in_tag = false;
                match tag.as_str() {
                    "code" | "/code" => text.push('`'),
                    "/p" if !text.trim().is_empty() => break,
                    _ => {}
                }
            }
            c if in_tag => tag.push(c),
            c => text.push(c),
        }
    }
    for (entity, character) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&amp;", "&")] {
        text = text.replace(entity, character);
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace("` .", "`.");
    let sentence = match text.find(". ") {
        Some(end) if !text[..end].ends_with("e.g") && !text[..end].ends_with("i.e") => &text[..=end],
        _ => &text,
    };
    let sentence = if sentence.is_empty() { fallback } else { sentence };
    // What rustdoc would take for a link, a footnote or HTML.
    let sentence = if sentence.matches('`').count() % 2 == 1 { sentence.replace('`', "") } else { sentence.to_owned() };
    let sentence = escape_outside_code(&sentence);
    sentence.lines().map(|line| format!("/// {line}\n")).collect()
}

fn escape_outside_code(text: &str) -> String {
    let mut in_code = false;
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '`' => in_code = !in_code,
            '[' | ']' | '<' | '>' | '*' | '_' if !in_code => out.push('\\'),
            _ => {}
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields() {
        for (name, expected) in [
            ("CodeSha256", "code_sha256"),
            ("S3Bucket", "s3_bucket"),
            ("KMSKeyArn", "kms_key_arn"),
            ("SourceKMSKeyArn", "source_kms_key_arn"),
            ("UUID", "uuid"),
            ("S3ObjectVersion", "s3_object_version"),
            ("tagKeys", "tag_keys"),
            ("ExecutionEnvironmentMemoryGiBPerVCpu", "execution_environment_memory_gib_per_vcpu"),
            ("Ipv6AllowedForDualStack", "ipv6_allowed_for_dual_stack"),
            ("Type", "r#type"),
        ] {
            assert_eq!(field(name), expected);
        }
    }

    #[test]
    fn names_of_variants() {
        for (value, expected) in [
            ("TRIM_HORIZON", "TrimHorizon"),
            ("RequestResponse", "RequestResponse"),
            ("nodejs20.x", "Nodejs20X"),
            ("python3.10", "Python3_10"),
            ("x86_64", "X86_64"),
            ("provided.al2023", "ProvidedAl2023"),
            ("Unknown", "UnknownValue"),
        ] {
            assert_eq!(variant(value), expected);
        }
    }

    #[test]
    fn documentation_is_its_first_sentence() {
        assert_eq!(doc("<p>The <code>Arn</code> of it. More [text].</p><p>Next</p>", ""), "/// The `Arn` of it.\n");
        assert_eq!(doc("", "Nothing said."), "/// Nothing said.\n");
    }
}
