//! Which shared libraries a program needs, by the word of the dynamic loader itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::RuntimeError;

/// What functions find in the base root under any circumstances. An installation brings none of these along: they must
/// match the dynamic loader of the root.
const OF_THE_BASE: [&str; 13] = [
    "ld-linux",
    "libanl.so",
    "libc.so",
    "libdl.so",
    "libgcc_s.so",
    "libm.so",
    "libnss_",
    "libpthread.so",
    "libresolv.so",
    "librt.so",
    "libstdc++.so",
    "libutil.so",
    "libmvec.so",
];

/// The libraries of some files: name as the loader looks for it → file on this host.
#[derive(Debug, Default)]
pub(crate) struct Closure {
    pub libraries: BTreeMap<String, PathBuf>,
    /// The dynamic loader, by the absolute path that programs name it with.
    pub loader: Option<PathBuf>,
}

/// Asks `ldd`. Files that are not dynamic programs add nothing.
pub(crate) fn closure(files: &[PathBuf]) -> Result<Closure, RuntimeError> {
    let mut closure = Closure::default();
    if files.is_empty() {
        return Ok(closure);
    }
    // LD_LIBRARY_PATH and LD_PRELOAD of the caller must not decide what goes in. `ldd` fails when any one file is no
    // dynamic program, having told about the others.
    let mut command = Command::new("ldd");
    command.args(files).env_clear().env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin").env("LC_ALL", "C");
    let output = command
        .output()
        .map_err(|e| RuntimeError::Command { what: "ldd (of the C library)".to_owned(), cause: e.to_string() })?;
    closure.read(&String::from_utf8_lossy(&output.stdout));
    Ok(closure)
}

impl Closure {
    fn read(&mut self, output: &str) {
        for line in output.lines() {
            let Some(line) = line.strip_prefix('\t') else { continue };
            let line = line.split(" (0x").next().unwrap_or(line);
            match line.split_once(" => ") {
                Some((name, path)) if path.starts_with('/') && !name.starts_with('/') => {
                    self.libraries.insert(name.to_owned(), path.into());
                }
                None if line.starts_with('/') => self.loader = Some(line.into()),
                // The kernel's own (linux-vdso), "not found", "statically linked".
                _ => {}
            }
        }
    }

    /// Without what the base root has.
    pub(crate) fn beyond_base(self) -> BTreeMap<String, PathBuf> {
        let beyond = |name: &String| !OF_THE_BASE.iter().any(|start| name.starts_with(start));
        self.libraries.into_iter().filter(|(name, _)| beyond(name)).collect()
    }
}

/// Finds a library by name in the loader's usual directories.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let dirs = [multiarch.as_str(), "/usr/lib64", "/lib64", "/usr/lib", "/lib"];
    dirs.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ldd_says() {
        let mut closure = Closure::default();
        closure.read(
            "/usr/bin/curl:\n\tlinux-vdso.so.1 (0x00007ffd)\n\tlibcurl.so.4 => /lib/x86_64-linux-gnu/libcurl.so.4 (0x00007f1)\n\
             \tlibgone.so => not found\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f3)\nshell:\n\tnot a dynamic executable\n\tstatically linked\n",
        );
        assert_eq!(closure.loader, Some("/lib64/ld-linux-x86-64.so.2".into()));
        assert_eq!(closure.libraries.keys().collect::<Vec<_>>(), ["libc.so.6", "libcurl.so.4"]);
        assert_eq!(closure.beyond_base().keys().collect::<Vec<_>>(), ["libcurl.so.4"]);
    }
}
