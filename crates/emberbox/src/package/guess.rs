//! Guesses runtime and handler from what a package contains.

use regex::Regex;

/// What a package contains: names, and the text of a file by its name.
pub trait Contents {
    /// Paths relative to the package's root, with `/`.
    fn names(&self) -> Vec<String>;
    /// A file as text; `None` if it is not there or not UTF-8.
    fn text(&self, name: &str) -> Option<String>;
}

/// A language that Emberbox recognises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    /// Any executable called `bootstrap`.
    Custom,
    /// `python3.X`.
    Python,
    /// `nodejsX.x`.
    Node,
}

impl Language {
    /// Of a runtime's name; `None` for one that Emberbox has no guess for.
    pub fn of_runtime(runtime: &str) -> Option<Self> {
        if runtime.starts_with("provided") {
            Some(Self::Custom)
        } else if runtime.starts_with("python") {
            Some(Self::Python)
        } else if runtime.starts_with("nodejs") {
            Some(Self::Node)
        } else {
            None
        }
    }
}

/// What was found, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guess {
    /// In which language.
    pub language: Language,
    /// `file.function`.
    pub handler: String,
    /// Why, for the user: "app.py has a function `handler`".
    pub because: String,
}

/// File names without extension, in the order in which they are tried: AWS's own defaults first.
const PYTHON_MODULES: [&str; 5] = ["lambda_function", "handler", "app", "index", "main"];
const NODE_MODULES: [&str; 4] = ["index", "handler", "app", "main"];

/// Looks for `bootstrap`, then for a Python handler, then for a Node.js handler; only for `language` if that is given.
pub fn guess(contents: &dyn Contents, language: Option<Language>) -> Option<Guess> {
    let names: Vec<String> = contents.names().into_iter().filter(|n| !n.contains('/')).collect();
    let wanted = |l: Language| language.is_none_or(|given| given == l);
    if wanted(Language::Custom) && names.iter().any(|n| n == "bootstrap") {
        return Some(Guess {
            language: Language::Custom,
            handler: "bootstrap".into(),
            because: "it has an executable `bootstrap`".into(),
        });
    }
    if wanted(Language::Python)
        && let Some(found) = find(&names, contents, Language::Python, &PYTHON_MODULES, &["py"], python_handler)
    {
        return Some(found);
    }
    if wanted(Language::Node) {
        return find(&names, contents, Language::Node, &NODE_MODULES, &["mjs", "js", "cjs"], node_handler);
    }
    None
}

fn find(
    names: &[String],
    contents: &dyn Contents,
    language: Language,
    modules: &[&str],
    extensions: &[&str],
    handler_in: fn(&str) -> Option<String>,
) -> Option<Guess> {
    let mut candidates: Vec<(usize, &str, &str)> = names
        .iter()
        .filter_map(|name| {
            let (module, extension) = name.rsplit_once('.')?;
            let known = extensions.contains(&extension) && !module.contains('.') && !module.is_empty();
            let rank = modules.iter().position(|m| *m == module).unwrap_or(modules.len());
            known.then_some((rank, name.as_str(), module))
        })
        .collect();
    candidates.sort_unstable();
    candidates.into_iter().find_map(|(_, name, module)| {
        let function = handler_in(&contents.text(name)?)?;
        Some(Guess {
            language,
            handler: format!("{module}.{function}"),
            because: format!("{name} has a function `{function}`"),
        })
    })
}

fn python_handler(source: &str) -> Option<String> {
    first_match(source, &[r"(?m)^(?:async[ \t]+)?def[ \t]+(lambda_handler|handler)[ \t]*\("])
}

fn node_handler(source: &str) -> Option<String> {
    first_match(
        source,
        &[
            r"(?m)^[ \t]*(?:module\.)?exports\.(handler|lambdaHandler)[ \t]*=",
            r"(?m)^export[ \t]+(?:const|let|var|async[ \t]+function|function)[ \t]*\*?[ \t]*(handler|lambdaHandler)\b",
            r"(?m)^export[ \t]*\{[^}]*\b(handler|lambdaHandler)\b",
            r"(?m)^module\.exports[ \t]*=[ \t]*\{[^}]*\b(handler|lambdaHandler)\b",
        ],
    )
}

fn first_match(source: &str, patterns: &[&str]) -> Option<String> {
    patterns.iter().find_map(|pattern| {
        let regex = Regex::new(pattern).expect("a constant that the tests compile");
        regex.captures(source).map(|c| c[1].to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Files(BTreeMap<String, String>);

    impl Contents for Files {
        fn names(&self) -> Vec<String> {
            self.0.keys().cloned().collect()
        }

        fn text(&self, name: &str) -> Option<String> {
            self.0.get(name).cloned()
        }
    }

    fn of(files: &[(&str, &str)]) -> Option<(Language, String)> {
        let files = Files(files.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect());
        guess(&files, None).map(|g| (g.language, g.handler))
    }

    const PY: &str = "import json\n\ndef handler(event, context):\n    return 1\n";

    #[test]
    fn finds_handlers() {
        use Language::*;
        let is = |language, handler: &str| Some((language, handler.to_owned()));
        assert_eq!(of(&[("bootstrap", ""), ("app.py", PY)]), is(Custom, "bootstrap"));
        assert_eq!(
            of(&[("lambda_function.py", "def lambda_handler(e, c):")]),
            is(Python, "lambda_function.lambda_handler")
        );
        assert_eq!(
            of(&[("app.py", PY), ("zebra.py", PY), ("index.js", "exports.handler = 1")]),
            is(Python, "app.handler")
        );
        assert_eq!(of(&[("anything.py", PY)]), is(Python, "anything.handler"));
        assert_eq!(of(&[("app.py", "import x"), ("index.py", PY)]), is(Python, "index.handler"));
        assert_eq!(of(&[("index.mjs", "export const handler = async () => 1;")]), is(Node, "index.handler"));
        assert_eq!(of(&[("index.js", "module.exports.handler = f")]), is(Node, "index.handler"));
        assert_eq!(
            of(&[("app.js", "async function handler() {}\nmodule.exports = { handler };")]),
            is(Node, "app.handler")
        );
        assert_eq!(of(&[("a.mjs", "function handler() {}\nexport { handler };")]), is(Node, "a.handler"));
        assert_eq!(of(&[("a.mjs", "export async function lambdaHandler(e) {}")]), is(Node, "a.lambdaHandler"));
    }

    #[test]
    fn does_not_find_what_is_not_there() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("sub/bootstrap", ""), ("sub/app.py", PY)]), None, "only the root counts");
        assert_eq!(of(&[("app.py", "# def handler(\n    def handler(self):")]), None);
        assert_eq!(of(&[("index.js", "console.log('handler')")]), None);
        assert_eq!(of(&[(".py", PY), ("a.b.py", PY)]), None, "cannot be imported");
    }
}
