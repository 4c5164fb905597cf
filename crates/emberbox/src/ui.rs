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
