//! Text with `*`, which stands for any characters, also none; `\*` and `\\` are the plain characters.

/// A parsed wildcard: the pieces between the stars.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wildcard {
    pieces: Vec<String>,
}

impl Wildcard {
    /// The message says what is wrong.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut pieces = vec![String::new()];
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '*' if chars.peek() == Some(&'*') => return Err("consecutive wildcard characters are not allowed"),
                '*' => pieces.push(String::new()),
                '\\' => match chars.next() {
                    Some(escaped @ ('*' | '\\')) => last(&mut pieces).push(escaped),
                    _ => return Err("only '*' and '\\' can be escaped"),
                },
                c => last(&mut pieces).push(c),
            }
        }
        Ok(Self { pieces })
    }

    pub fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = self.pieces.as_slice() else { return self.pieces[0] == text };
        let Some(rest) = text.strip_prefix(first.as_str()) else { return false };
        let Some(mut rest) = rest.strip_suffix(last.as_str()) else { return false };
        // The leftmost place leaves the most for the others.
        for piece in middle {
            let Some(at) = rest.find(piece.as_str()) else { return false };
            rest = &rest[at + piece.len()..];
        }
        true
    }
}

fn last(pieces: &mut [String]) -> &mut String {
    pieces.last_mut().expect("there is a piece from the start")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(wildcard: &str, text: &str) -> bool {
        Wildcard::parse(wildcard).unwrap().matches(text)
    }

    #[test]
    fn stars_stand_for_anything() {
        for (wildcard, text, expected) in [
            ("a*b", "ab", true),
            ("a*b", "axxb", true),
            ("a*b", "axxbc", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*a*a*", "aa", true),
            ("*a*a*", "a", false),
            ("ab*ba", "aba", false),
            (r"a\*b", "a*b", true),
            (r"a\*b", "axb", false),
            (r"a\\*", r"a\x", true),
            ("dir/*.png", "dir/a/b.png", true),
        ] {
            assert_eq!(matches(wildcard, text), expected, "{wildcard} {text}");
        }
        for wrong in ["a**b", r"a\", r"a\b"] {
            assert!(Wildcard::parse(wrong).is_err(), "{wrong}");
        }
    }

    /// Slow and plainly right.
    fn naive(pieces: &[String], text: &str) -> bool {
        match pieces {
            [] => unreachable!("there is always a piece"),
            [only] => only == text,
            [first, rest @ ..] => text.strip_prefix(first.as_str()).is_some_and(|text| {
                (0..=text.len()).filter(|i| text.is_char_boundary(*i)).any(|i| naive(rest, &text[i..]))
            }),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_search(wildcard in "[ab*é]{0,8}", text in "[abé]{0,10}") {
            if let Ok(wildcard) = Wildcard::parse(&wildcard) {
                prop_assert_eq!(wildcard.matches(&text), naive(&wildcard.pieces, &text));
            }
        }
    }
}
