//! Files of keys: text, a line a key, so that an operator can read, copy and reorder them.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::Keyring;
use crate::keyring::{KEY_LEN, random_key};

const HEAD: &str = "\
# Emberbox: keys of the functions' environment variables. The first one encrypts, all of them decrypt.
# Keep a copy of this file elsewhere: without it the variables are lost.
# For a new key, put another line before the first: openssl rand -base64 32
";

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The system refuses.
    #[error("{operation} the key file {path}: {source}", path = path.display())]
    Io {
        /// A verb.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is no key. Its text is not told, since it may be most of one.
    #[error(
        "line {line} of the key file {path} is no key: a key is 32 bytes in base64, as `openssl rand -base64 32` prints it",
        path = path.display()
    )]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// There is no key at all.
    #[error(
        "the key file {path} holds no key. Put the keys back from a backup; only where nothing was encrypted yet, write one \
         line with what `openssl rand -base64 32` prints",
        path = path.display()
    )]
    Empty {
        /// Which file.
        path: PathBuf,
    },
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> KeyFileError + 'a {
    move |source| KeyFileError::Io { operation, path: path.to_owned(), source }
}

/// Reads the keys of a file: one a line, in base64; empty lines and lines that begin with `#` are passed over. `None` if
/// there is no such file.
pub fn read(path: &Path) -> Result<Option<Keyring>, KeyFileError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = BASE64.decode(line).ok().and_then(|bytes| <[u8; KEY_LEN]>::try_from(bytes).ok());
        keys.push(key.ok_or_else(|| KeyFileError::Line { path: path.to_owned(), line: index + 1 })?);
    }
    if keys.is_empty() {
        return Err(KeyFileError::Empty { path: path.to_owned() });
    }
    Ok(Some(Keyring::new(&keys, path.display().to_string())))
}

/// Makes a file with one new key, for its owner alone (mode 0600). When this returns, the file survives power loss: what is
/// encrypted from now on must not outlive its key. Legal where there is none; an error if there is one.
pub fn create(path: &Path) -> Result<Keyring, KeyFileError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let key = random_key();
    let write = || -> io::Result<()> {
        // Under its name only when it is whole. Its mode is that of temporary files, 0600.
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        writeln!(file, "{HEAD}{}", BASE64.encode(key))?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(failed("make", path))?;
    Ok(Keyring::new(&[key], path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::Context;

    const HERE: Context<'_> = Context { kind: "k", name: "n" };

    #[test]
    fn a_file_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.key");
        assert!(read(&path).unwrap().is_none());
        let sealed = create(&path).unwrap().seal(b"x", HERE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(read(&path).unwrap().unwrap().open(&sealed, HERE).unwrap().plain, b"x");
        let error = create(&path).unwrap_err().to_string();
        assert!(error.starts_with(&format!("make the key file {}: ", path.display())), "{error}");
        assert_eq!(read(&path).unwrap().unwrap().open(&sealed, HERE).unwrap().plain, b"x", "it is still the old one");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "and no draft is left");
    }

    #[test]
    fn a_new_first_line_is_a_new_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let sealed = create(&path).unwrap().seal(b"x", HERE);
        let old = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("  {}  \n\n{old}", BASE64.encode([5; 32]))).unwrap();
        let keys = read(&path).unwrap().unwrap();
        assert!(!keys.open(&sealed, HERE).unwrap().current);
        assert_ne!(crate::key_of(&sealed), Some(keys.current()));
    }

    #[test]
    fn mistakes_name_file_and_line_and_never_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let good = BASE64.encode([5; 32]);
        for (text, line) in [(format!("# c\n{good}\n{}", &good[1..]), 3), ("hunter2".to_owned(), 1)] {
            std::fs::write(&path, &text).unwrap();
            let error = read(&path).unwrap_err();
            assert!(matches!(&error, KeyFileError::Line { line: at, .. } if *at == line), "{error}");
            let error = error.to_string();
            assert!(error.contains(&path.display().to_string()) && error.contains("openssl"), "{error}");
            assert!(!error.contains("hunter2") && !error.contains(&good[1..]), "{error}");
        }
        for text in ["", "# nothing\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(read(&path), Err(KeyFileError::Empty { .. })));
        }
        assert!(matches!(read(dir.path()), Err(KeyFileError::Io { operation: "read", .. })));
    }
}
