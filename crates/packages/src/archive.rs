//! Reads a zip's directory and decides what each entry becomes. Pure: bytes in, plan out.
//!
//! The plan is safe to carry out in an empty directory: every path is relative and normal, no two entries claim one
//! path, no entry lies below a file or symlink, and no symlink leads out of the package, even through others.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};

use time::{Date, Month, PrimitiveDateTime, Time};
use zip::ZipArchive;
use zip::read::ZipFile;
use zip::result::ZipError;

use crate::{Limits, PackageError};

/// Components of paths that are walked to check the symlinks of one package: some for each of the most entries there can
/// be. A package whose links lead to each other by long ways could otherwise keep a processor busy for an hour.
const MAX_STEPS: usize = 2_000_000;
/// Symlinks followed in one path before it counts as a loop, as in Linux.
const MAX_LINKS: usize = 40;
/// Where a package can be mounted: an absolute symlink below one of these stays inside it.
const MOUNTS: [&str; 2] = ["/var/task", "/opt"];

const TYPE_MASK: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

pub(crate) type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// What an entry becomes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Directory,
    File(FileEntry),
    /// With its target, as in the zip.
    Symlink(String),
}

/// A regular file of the package.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FileEntry {
    /// Index in the zip.
    pub index: usize,
    /// Permission bits, without setuid, setgid and sticky.
    pub mode: u32,
    /// As the zip has it (which names no time zone), taken as UTC.
    pub modified: Option<PrimitiveDateTime>,
}

/// Everything in the package, by path: parents come before what they contain.
pub(crate) type Plan = BTreeMap<String, Kind>;

/// Opens the zip and makes the plan.
pub(crate) fn plan<'a>(zip: &'a [u8], limits: &Limits) -> Result<(Archive<'a>, Plan), PackageError> {
    let mut archive = ZipArchive::new(Cursor::new(zip)).map_err(refused)?;
    if archive.len() > limits.entries {
        return Err(PackageError::unzip(format!("has more than {} entries", limits.entries)));
    }
    if archive.has_duplicate_names() {
        return Err(PackageError::unzip("has two entries with one name"));
    }
    if archive.has_overlapping_entries().map_err(refused)? {
        return Err(PackageError::unzip("has overlapping entries"));
    }
    let mut plan = Plan::new();
    let mut total = 0u64;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(refused)?;
        total = total.saturating_add(entry.size());
        if total > limits.unzipped {
            return Err(PackageError::UnzippedTooLarge { limit: limits.unzipped });
        }
        let name = entry.name().map_err(refused)?.into_owned();
        let Some(path) = normal_path(&name, limits.path)? else { continue };
        let kind = kind(&mut entry, index, &name, limits)?;
        match plan.get(&path) {
            None => drop(plan.insert(path, kind)),
            Some(Kind::Directory) if kind == Kind::Directory => {}
            Some(_) => return Err(PackageError::unzip(format!("two entries become {path:?}"))),
        }
    }
    add_parents(&mut plan)?;
    check_symlinks(&plan)?;
    Ok((archive, plan))
}

/// Any failure of the zip library comes from the bytes: they are in memory.
pub(crate) fn refused(error: ZipError) -> PackageError {
    PackageError::unzip(error.to_string())
}

/// The entry's path without `.` and empty components; `None` for the package's own root.
fn normal_path(name: &str, limit: usize) -> Result<Option<String>, PackageError> {
    let refuse = |why: &str| Err(PackageError::unzip(format!("entry {name:?} {why}")));
    if name.len() > limit {
        return Err(PackageError::unzip(format!("has an entry name longer than {limit} bytes")));
    }
    if name.is_empty() || name.contains('\0') {
        return refuse("has no valid name");
    }
    if name.starts_with('/') {
        return refuse("has an absolute path");
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return refuse("leads out of the package");
    }
    if parts.iter().any(|part| part.len() > 255) {
        return refuse("has a component longer than 255 bytes");
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

fn kind(
    entry: &mut ZipFile<'_, Cursor<&[u8]>>,
    index: usize,
    name: &str,
    limits: &Limits,
) -> Result<Kind, PackageError> {
    // Not the library's `unix_mode`, which trusts the upper half only when the zip says it was made on Unix; Python's
    // zipfile writes it on Windows too.
    let mode = entry.external_attributes() >> 16;
    if name.ends_with('/') {
        return Ok(Kind::Directory);
    }
    match mode & TYPE_MASK {
        DIRECTORY => Ok(Kind::Directory),
        SYMLINK => {
            let mut target = String::new();
            let limit = limits.path as u64;
            entry.take(limit + 1).read_to_string(&mut target).map_err(|e| PackageError::unzip(e.to_string()))?;
            if target.is_empty() || target.len() as u64 > limit || target.contains('\0') {
                return Err(PackageError::unzip(format!("symlink {name:?} has no valid target")));
            }
            Ok(Kind::Symlink(target))
        }
        0 | REGULAR => {
            let permissions = mode & 0o777;
            let mode = if permissions == 0 { 0o644 } else { permissions };
            Ok(Kind::File(FileEntry { index, mode, modified: modified(entry) }))
        }
        other => Err(PackageError::unzip(format!("entry {name:?} is neither file, directory nor symlink ({other:o})"))),
    }
}

fn modified(entry: &ZipFile<'_, Cursor<&[u8]>>) -> Option<PrimitiveDateTime> {
    let at = entry.last_modified()?;
    let month = Month::try_from(at.month()).ok()?;
    let date = Date::from_calendar_date(i32::from(at.year()), month, at.day()).ok()?;
    Some(PrimitiveDateTime::new(date, Time::from_hms(at.hour(), at.minute(), at.second()).ok()?))
}

/// Adds the directories that the zip leaves out, and refuses entries below something that is no directory.
fn add_parents(plan: &mut Plan) -> Result<(), PackageError> {
    let paths: Vec<String> = plan.keys().cloned().collect();
    for path in paths {
        // From the innermost on: a parent that is there already has had its own parents added, or will.
        for (end, _) in path.rmatch_indices('/') {
            match plan.get(&path[..end]) {
                None => drop(plan.insert(path[..end].to_owned(), Kind::Directory)),
                Some(Kind::Directory) => break,
                Some(_) => {
                    return Err(PackageError::unzip(format!("{path:?} lies below something that is no directory")));
                }
            }
        }
    }
    Ok(())
}

fn check_symlinks(plan: &Plan) -> Result<(), PackageError> {
    let links: HashMap<&str, &str> = plan
        .iter()
        .filter_map(|(path, kind)| match kind {
            Kind::Symlink(target) => Some((path.as_str(), target.as_str())),
            _ => None,
        })
        .collect();
    let mut steps = MAX_STEPS;
    for (path, target) in &links {
        let inside = stays_inside(path, &links, &mut steps);
        if steps == 0 {
            return Err(PackageError::unzip("has symlinks that lead to each other in too many steps"));
        }
        if !inside {
            return Err(PackageError::unzip(format!("symlink {path:?} → {target:?} leads out of the package")));
        }
    }
    Ok(())
}

/// Whether following the symlink at `path` as the kernel would never leaves the package. A dangling link and a loop
/// stay inside. Takes each component that it walks off `steps`, and stops at zero.
fn stays_inside(path: &str, links: &HashMap<&str, &str>, steps: &mut usize) -> bool {
    let mut at: Vec<&str> = Vec::new();
    let mut todo: Vec<&str> = path.rsplit('/').collect();
    let mut followed = 0;
    while let Some(part) = todo.pop() {
        *steps = steps.saturating_sub(1);
        if *steps == 0 {
            return false;
        }
        match part {
            "" | "." => continue,
            ".." => {
                if at.pop().is_none() {
                    return false;
                }
                continue;
            }
            _ => at.push(part),
        }
        let Some(target) = links.get(at.join("/").as_str()) else { continue };
        followed += 1;
        if followed > MAX_LINKS {
            return true;
        }
        let inner = if target.starts_with('/') {
            let below = MOUNTS.iter().find_map(|mount| target.strip_prefix(mount));
            let Some(below) = below.filter(|rest| rest.is_empty() || rest.starts_with('/')) else { return false };
            at.clear();
            below
        } else {
            at.pop();
            target
        };
        todo.extend(inner.rsplit('/'));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(links: &[(&str, &str)], path: &str) -> bool {
        stays_inside(path, &links.iter().copied().collect(), &mut 1000)
    }

    #[test]
    fn paths_are_made_normal_or_refused() {
        let ok = |name| normal_path(name, 1024).expect(name);
        assert_eq!(ok("a/b.py"), Some("a/b.py".into()));
        assert_eq!(ok("./a//./b/"), Some("a/b".into()));
        assert_eq!(ok("./"), None);
        assert_eq!(ok("a\\..\\b"), Some("a\\..\\b".into()), "a backslash is no separator on Linux, nor on AWS");
        for name in ["", "/etc/passwd", "../a", "a/../../b", "a/..", "nul\0", &"x".repeat(256), &"x/".repeat(600)] {
            assert!(normal_path(name, 1024).is_err(), "{name:?}");
        }
    }

    #[test]
    fn symlinks_are_followed_as_the_kernel_does() {
        assert!(inside(&[("lib.so", "lib.so.1")], "lib.so"));
        assert!(inside(&[("a/b", "../c/d")], "a/b"));
        assert!(inside(&[("a", "b"), ("b", "a")], "a"), "a loop goes nowhere");
        assert!(inside(&[("a", "/var/task/x")], "a"));
        assert!(inside(&[("a", "/opt")], "a"));
        assert!(!inside(&[("a", "/etc/shadow")], "a"));
        assert!(!inside(&[("a", "/var/tasks")], "a"));
        assert!(!inside(&[("a", "/opt/../etc")], "a"));
        assert!(!inside(&[("a", "..")], "a"));
        assert!(!inside(&[("a/b", "../../c")], "a/b"));
        // Innocent by its text (it seems to stay in `a`), but `a/up` leads to the root, from where `..` leads out.
        assert!(!inside(&[("a/up", ".."), ("x", "a/up/..")], "x"));
    }
}
