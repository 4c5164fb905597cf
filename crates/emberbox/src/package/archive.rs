//! Writes zips that depend on nothing but names, contents and the executable bit, so that the same folder gives the same
//! `CodeSha256` on every machine and at any time.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use zip::write::SimpleFileOptions;

/// One file of a package.
pub struct File {
    /// Contents.
    pub bytes: Vec<u8>,
    /// Whether anybody may execute it.
    pub executable: bool,
}

impl File {
    /// Reads one from the disk.
    pub fn read(path: &Path) -> Result<Self> {
        let reading = || format!("read {}", path.display());
        let executable = fs::metadata(path).with_context(reading)?.permissions().mode() & 0o111 != 0;
        Ok(Self { bytes: fs::read(path).with_context(reading)?, executable })
    }
}

/// Zips files in the order of their names, with a fixed time and modes 644 or 755: Lambda runs a function as another
/// user than the one who owns the files, so everybody must be able to read them.
pub fn write_zip(files: &BTreeMap<String, File>) -> Result<Vec<u8>> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, file) in files {
        // `bootstrap` is executed whatever the folder said: nobody means one that cannot be.
        let mode = if file.executable || name == "bootstrap" { 0o755 } else { 0o644 };
        let options = SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated)
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(mode);
        let adding = || format!("add {name} to the package");
        zip.start_file(name.as_str(), options).with_context(adding)?;
        zip.write_all(&file.bytes).with_context(adding)?;
    }
    Ok(zip.finish().context("finish the package")?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_files_same_zip_with_modes() {
        let files = || {
            BTreeMap::from([
                ("z.txt".to_owned(), File { bytes: b"z".to_vec(), executable: false }),
                ("bin/run".to_owned(), File { bytes: b"#!/bin/sh".to_vec(), executable: true }),
                ("bootstrap".to_owned(), File { bytes: b"#!/bin/sh".to_vec(), executable: false }),
            ])
        };
        let zip = write_zip(&files()).unwrap();
        assert_eq!(zip, write_zip(&files()).unwrap());
        let mut archive = zip::ZipArchive::new(Cursor::new(zip)).unwrap();
        let mode = |archive: &mut zip::ZipArchive<_>, name| archive.by_name(name).unwrap().unix_mode().unwrap() & 0o777;
        assert_eq!(mode(&mut archive, "z.txt"), 0o644);
        assert_eq!(mode(&mut archive, "bin/run"), 0o755);
        assert_eq!(mode(&mut archive, "bootstrap"), 0o755);
    }
}
