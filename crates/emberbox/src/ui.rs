//! How the command line looks: a little colour and a progress bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Whether what is printed goes to a terminal that takes colours; some of it goes to stdout, some to stderr.
pub fn coloured() -> bool {
    std::io::stdout().is_terminal()
        && std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn paint(code: &str, text: &str) -> String {
    if coloured() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// For headings.
pub fn bold(text: &str) -> String {
    paint("1", text)
}

/// For less important words.
pub fn dim(text: &str) -> String {
    paint("2", text)
}

/// For what is good.
pub fn good(text: &str) -> String {
    paint("32", text)
}

/// For what is missing.
pub fn bad(text: &str) -> String {
    paint("31", text)
}

/// What stands before an error message.
pub fn error_label() -> String {
    paint("1;31", "error:")
}

/// An error with its causes. Some errors name their cause in their own words: it is not said twice.
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A bar of bytes on stderr; silent off a terminal.
pub fn bytes_bar(what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), target());
    let style = ProgressStyle::with_template("{msg:<12} [{bar:30}] {bytes:>10} of {total_bytes}, {bytes_per_sec}");
    bar.set_style(style.expect("a constant template").progress_chars("=> "));
    bar.set_message(what.to_owned());
    bar
}

/// A spinner on stderr; silent off a terminal.
pub fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a constant template"));
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// Breaks text between words, so that lines that begin after `indent` columns end before the 80th; the first line is
/// left to the caller to indent.
pub fn wrap(text: &str, indent: usize) -> String {
    let width = 79_usize.saturating_sub(indent).max(20);
    let mut out = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_not_said_twice() {
        let error = anyhow::anyhow!("in use").context("listen on port 1: in use").context("start");
        assert_eq!(explain(&error), "start: listen on port 1: in use");
    }

    #[test]
    fn wraps_between_words() {
        assert_eq!(wrap("a bb  ccc", 4), "a bb ccc");
        let text = wrap(&"word ".repeat(30), 10);
        assert!(
            text.lines().count() == 3 && text.lines().skip(1).all(|line| line.starts_with("          word")),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 79));
        assert_eq!(wrap(&"x".repeat(200), 70).lines().count(), 1, "a long word stays whole");
    }
}
