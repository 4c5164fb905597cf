//! Runtime files: TOML in, checked recipes out. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::image::Bootstrap;

/// Files that come with Emberbox.
pub(crate) const BUILT_IN: [(&str, &str); 3] = [
    ("python.toml", include_str!("../runtimes/python.toml")),
    ("nodejs.toml", include_str!("../runtimes/nodejs.toml")),
    ("provided.toml", include_str!("../runtimes/provided.toml")),
];

/// Where something can be mounted in the base root: these directories exist in it.
pub(crate) const MOUNT_POINTS: [&str; 4] = ["/opt", "/var/lang", "/var/runtime", "/mnt"];

/// One file: a template for the runtimes it names. `{name}` and `{version}` in its strings stand for the full name and
/// its version (`python3.12` → `3.12`, `nodejs20.x` → `20`).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    names: Vec<String>,
    root: Option<PathBuf>,
    execution_env: Option<String>,
    bootstrap: BootstrapFile,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    install: Install,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BootstrapFile {
    command: Option<Vec<String>>,
    search: Option<Vec<String>>,
    /// The command understands `_EMBERBOX_STANDBY` (`sandbox::Standby`), so that it can be started in advance.
    #[serde(default)]
    standby: bool,
}

/// The other form of a file: a runtime that is another one with more mounted into it, or with other variables.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extension {
    name: String,
    extends: String,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    mounts: Vec<Mount>,
}

/// A read-only directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mount {
    /// On this host.
    pub source: PathBuf,
    /// In the sandbox.
    pub target: String,
}

/// What Emberbox installs for the runtime.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Install {
    #[serde(default)]
    pub kind: InstallKind,
    /// For pip or npm, each with its exact version.
    #[serde(default)]
    pub packages: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InstallKind {
    /// Interpreter and packages from this host's Python of that version.
    Python,
    /// Likewise with Node.js.
    Node,
    /// Nothing: root and mounts have it all.
    #[default]
    None,
}

/// One runtime.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Recipe {
    pub name: String,
    /// The runtime whose installation it uses: itself, or the one that it extends.
    pub installation: String,
    pub version: String,
    /// Absent: the base userland.
    pub root: Option<PathBuf>,
    pub execution_env: Option<String>,
    pub bootstrap: Bootstrap,
    pub standby: bool,
    pub environment: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub install: Install,
}

/// Reads one file. `known` are the runtimes that it may extend.
pub(crate) fn parse(text: &str, known: &dyn Fn(&str) -> Option<Recipe>) -> Result<Vec<Recipe>, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    if table.contains_key("extends") {
        return Ok(vec![extend(toml::from_str(text).map_err(|e| e.to_string())?, known)?]);
    }
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    if file.names.is_empty() {
        return Err("names no runtime".to_owned());
    }
    file.names.iter().map(|name| expand(&file, name)).collect()
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
        return Err(format!("{name:?} is no name for a runtime: letters, digits, '.', '-' and '_' are allowed"));
    }
    Ok(())
}

fn extend(file: Extension, known: &dyn Fn(&str) -> Option<Recipe>) -> Result<Recipe, String> {
    check_name(&file.name)?;
    let Some(mut recipe) = known(&file.extends) else {
        return Err(format!("extends {}, which is no runtime that comes before it", file.extends));
    };
    recipe.name = file.name;
    for mount in file.mounts {
        check_mount(&recipe, &mount)?;
        recipe.mounts.retain(|other| other.target != mount.target);
        recipe.mounts.push(mount);
    }
    recipe.environment.retain(|(key, _)| !file.environment.contains_key(key));
    recipe.environment.extend(file.environment);
    Ok(recipe)
}

fn check_mount(recipe: &Recipe, mount: &Mount) -> Result<(), String> {
    let target = &mount.target;
    absolute(target.clone())?;
    absolute(mount.source.to_string_lossy().into_owned())?;
    if recipe.root.is_none() && !MOUNT_POINTS.contains(&target.as_str()) {
        return Err(format!("{target} is no mount point; the base userland has {}", MOUNT_POINTS.join(", ")));
    }
    if recipe.install.kind != InstallKind::None && matches!(target.as_str(), "/var/lang" | "/var/runtime") {
        return Err("/var/lang and /var/runtime are taken by what is installed".to_owned());
    }
    Ok(())
}

fn expand(file: &File, name: &str) -> Result<Recipe, String> {
    check_name(name)?;
    let version = version(name);
    let fill = |text: &str| text.replace("{name}", name).replace("{version}", version);
    let fill_all = |texts: &[String]| texts.iter().map(|text| fill(text)).collect::<Vec<_>>();
    let bootstrap = match (&file.bootstrap.command, &file.bootstrap.search) {
        (Some(command), None) => Bootstrap::Command(fill_all(command)),
        (None, Some(search)) => Bootstrap::Search(fill_all(search)),
        _ => return Err("bootstrap needs either command or search".to_owned()),
    };
    let programs = match &bootstrap {
        Bootstrap::Command(command) => command.get(..1).unwrap_or_default(),
        Bootstrap::Search(search) => search,
    };
    if programs.is_empty() || programs.iter().any(|program| !program.starts_with('/')) {
        return Err("bootstrap needs an absolute path".to_owned());
    }
    let fill_path = |path: &Path| absolute(fill(&path.to_string_lossy()));
    let root = file.root.as_deref().map(fill_path).transpose()?;
    let mut recipe = Recipe {
        name: name.to_owned(),
        installation: name.to_owned(),
        version: version.to_owned(),
        root,
        execution_env: file.execution_env.as_deref().map(fill),
        bootstrap,
        standby: file.bootstrap.standby,
        environment: file.environment.iter().map(|(key, value)| (key.clone(), fill(value))).collect(),
        mounts: Vec::new(),
        install: Install { kind: file.install.kind, packages: fill_all(&file.install.packages) },
    };
    for mount in &file.mounts {
        let mount = Mount { source: fill(&mount.source.to_string_lossy()).into(), target: fill(&mount.target) };
        check_mount(&recipe, &mount)?;
        recipe.mounts.push(mount);
    }
    Ok(recipe)
}

fn absolute(path: String) -> Result<PathBuf, String> {
    if path.starts_with('/') { Ok(path.into()) } else { Err(format!("{path:?} is not an absolute path")) }
}

/// `python3.12` → `3.12`, `nodejs20.x` → `20`, `provided.al2023` → `al2023`.
fn version(name: &str) -> &str {
    let start = name.find(|c: char| c.is_ascii_digit()).unwrap_or(0);
    match name.split_once('.') {
        Some((language, version)) if !language.contains(|c: char| c.is_ascii_digit()) => version,
        _ => name[start..].trim_end_matches(".x"),
    }
}

/// Whether AWS had this runtime and has retired it (documentation, "Lambda runtimes", deprecated ones).
pub(crate) fn deprecated(name: &str) -> bool {
    const RETIRED: [&str; 27] = [
        "dotnet5.0",
        "dotnet6",
        "dotnet7",
        "dotnetcore1.0",
        "dotnetcore2.0",
        "dotnetcore2.1",
        "dotnetcore3.1",
        "go1.x",
        "java8",
        "nodejs",
        "nodejs4.3",
        "nodejs4.3-edge",
        "nodejs6.10",
        "nodejs8.10",
        "nodejs10.x",
        "nodejs12.x",
        "nodejs14.x",
        "nodejs16.x",
        "provided",
        "python2.7",
        "python3.6",
        "python3.7",
        "python3.8",
        "python3.9",
        "ruby2.5",
        "ruby2.7",
        "ruby3.2",
    ];
    RETIRED.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Recipe>, String> {
        super::parse(text, &|_| None)
    }

    #[test]
    fn the_built_in_files_are_right() {
        let mut names = Vec::new();
        for (file, text) in BUILT_IN {
            names.extend(parse(text).expect(file).into_iter().map(|recipe| recipe.name));
        }
        for name in ["python3.12", "nodejs20.x", "provided.al2023", "provided.al2"] {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
        assert!(!names.iter().any(|name| deprecated(name)));
    }

    #[test]
    fn placeholders_are_filled() {
        let python = parse(BUILT_IN[0].1).unwrap().into_iter().find(|r| r.name == "python3.12").unwrap();
        assert_eq!(python.execution_env.as_deref(), Some("AWS_Lambda_python3.12"));
        let command = ["/var/lang/bin/python3.12", "/var/runtime/bootstrap.py"].map(str::to_owned).to_vec();
        assert_eq!(python.bootstrap, Bootstrap::Command(command));
        let node = parse(BUILT_IN[1].1).unwrap().into_iter().find(|r| r.name == "nodejs20.x").unwrap();
        assert!(node.environment[0].1.starts_with("/opt/nodejs/node20/node_modules:"));
        assert_eq!(version("provided.al2023"), "al2023");
    }

    #[test]
    fn a_user_adds_a_runtime() {
        let text = r#"
            names = ["ruby3.4"]
            root = "/srv/ruby"
            execution_env = "AWS_Lambda_{name}"
            bootstrap = { command = ["/var/runtime/bootstrap"] }
            environment = { GEM_PATH = "/opt/ruby/gems/{version}.0" }
            mounts = [{ source = "/srv/client-{version}", target = "/var/runtime" }]
        "#;
        let recipe = &parse(text).unwrap()[0];
        assert_eq!(recipe.environment, [("GEM_PATH".into(), "/opt/ruby/gems/3.4.0".into())]);
        assert_eq!(recipe.mounts, [Mount { source: "/srv/client-3.4".into(), target: "/var/runtime".into() }]);
    }

    #[test]
    fn a_user_extends_a_runtime() {
        let python = || parse(BUILT_IN[0].1).unwrap().into_iter().find(|r| r.name == "python3.12");
        let text = r#"
            name = "watched"
            extends = "python3.12"
            environment = { PYTHONPATH = "/opt:/var/runtime", WATCHED = "1" }
            mounts = [{ source = "/srv/watched", target = "/opt" }]
        "#;
        let recipe = super::parse(text, &|name| python().filter(|r| r.name == name)).unwrap().remove(0);
        assert_eq!((recipe.name.as_str(), recipe.installation.as_str()), ("watched", "python3.12"));
        assert_eq!(recipe.bootstrap, python().unwrap().bootstrap);
        assert_eq!(recipe.mounts, [Mount { source: "/srv/watched".into(), target: "/opt".into() }]);
        assert_eq!(recipe.environment[0], ("PYTHONPATH".into(), "/opt:/var/runtime".into()));
        assert!(parse(text).unwrap_err().contains("python3.12"));
        let taken = text.replace("\"/opt\" }", "\"/var/lang\" }");
        assert!(super::parse(&taken, &|_| python()).unwrap_err().contains("taken"));
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |text: &str| parse(text).unwrap_err();
        let search = "names = ['a']\nbootstrap = { search = ['/b'] }\n";
        assert!(refused("names = ['a']").contains("bootstrap"));
        assert!(refused("names = ['../a']\nbootstrap = { search = ['/b'] }").contains("no name"));
        assert!(refused("names = ['a']\nbootstrap = { command = [] }").contains("absolute"));
        assert!(refused("names = ['a']\nbootstrap = { command = ['b'] }").contains("absolute"));
        assert!(refused(&format!("{search}mounts = [{{ source = '/a', target = '/usr' }}]")).contains("mount point"));
        assert!(refused(&format!("{search}root = 'here'")).contains("absolute"));
        assert!(refused(&format!("{search}colour = 'red'")).contains("colour"));
    }
}
