//! `/opt` of a function: its layers, a later one over an earlier one.
//!
//! One layer is mounted as it is. Two or more are merged once per host into a directory of hard links, named by the
//! hash of the list.

use std::io;
use std::path::{Path, PathBuf};

use domain::WorkerError;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Directory to mount at `/opt`, if there is any layer.
pub(crate) async fn opt(store: &Path, layers: Vec<(String, PathBuf)>) -> Result<Option<PathBuf>, WorkerError> {
    match layers.as_slice() {
        [] => return Ok(None),
        [(_, only)] => return Ok(Some(only.clone())),
        _ => {}
    }
    let mut hash = Sha256::new();
    for (sha256, _) in &layers {
        hash.update(sha256.as_bytes());
        hash.update(b"\n");
    }
    let target = store.join(hex::encode(hash.finalize()));
    if target.is_dir() {
        return Ok(Some(target));
    }
    let temporary = store.join(format!(".{}", Uuid::new_v4()));
    let merged = tokio::task::spawn_blocking({
        let (target, temporary) = (target.clone(), temporary.clone());
        move || {
            std::fs::create_dir_all(&temporary)?;
            for (_, layer) in &layers {
                merge(layer, &temporary)?;
            }
            match std::fs::rename(&temporary, &target) {
                // Another Init was faster with the same.
                Err(_) if target.is_dir() => std::fs::remove_dir_all(&temporary),
                other => other,
            }
        }
    });
    match merged.await {
        Ok(Ok(())) => Ok(Some(target)),
        Ok(Err(error)) => {
            // Nothing half done may stay; the error that counts is the first.
            let _ = std::fs::remove_dir_all(&temporary);
            Err(WorkerError::Package(format!("merge layers into {}: {error}", target.display())))
        }
        Err(error) => Err(WorkerError::Package(format!("merge layers into {}: {error}", target.display()))),
    }
}

/// Lays one tree over another.
fn merge(from: &Path, to: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        let below = target.symlink_metadata().map(|m| m.is_dir());
        if kind.is_dir() {
            if matches!(below, Ok(false)) {
                std::fs::remove_file(&target)?;
            }
            if !matches!(below, Ok(true)) {
                std::fs::create_dir(&target)?;
                std::fs::set_permissions(&target, source.metadata()?.permissions())?;
            }
            merge(&source, &target)?;
            continue;
        }
        match below {
            Ok(true) => std::fs::remove_dir_all(&target)?,
            Ok(false) => std::fs::remove_file(&target)?,
            Err(_) => {}
        }
        if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&source)?, &target)?;
        } else if std::fs::hard_link(&source, &target).is_err() {
            // Another file system.
            std::fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_later_layer_lies_over_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str, files: &[(&str, &str)]| {
            for (path, text) in files {
                let path = dir.path().join(name).join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            (name.to_owned(), dir.path().join(name))
        };
        let layers = vec![
            layer("a", &[("bin/x", "a"), ("y", "a"), ("d/z", "a")]),
            layer("b", &[("bin/x", "b"), ("y/f", "b"), ("d", "b")]),
        ];
        let opt = opt(&dir.path().join("merged"), layers).await.unwrap().unwrap();
        let text = |path: &str| std::fs::read_to_string(opt.join(path)).unwrap();
        assert_eq!((text("bin/x"), text("y/f"), text("d")), ("b".into(), "b".into(), "b".into()));
        assert_eq!(std::fs::read_to_string(dir.path().join("a/bin/x")).unwrap(), "a");
    }
}
