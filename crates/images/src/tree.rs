//! A file system in memory, with the contents of its files elsewhere. Pure.
//!
//! Layers are applied to this and not to a directory of the host: a link that leads out of the image, a device or a
//! file's owner is then a value, and nothing that the host could follow or open.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;

use crate::limits;

/// How many symbolic links a path may lead through: Linux's limit.
const LINKS: usize = 40;

/// What is kept of a file's metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Meta {
    /// Permissions, with the sticky bit; never setuid or setgid.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// In seconds since 1970.
    pub(crate) mtime: u32,
}

/// Where a file's contents are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    /// In a file of the host.
    Host { path: PathBuf, len: u64 },
    /// In the scratch file.
    Scratch { offset: u64, len: u64 },
    /// Here.
    Bytes(&'static [u8]),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Directory(BTreeMap<Vec<u8>, Node>),
    File(Content),
    Symlink(Vec<u8>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    /// Which layer brought it: a whiteout deletes what comes from layers below its own.
    layer: u32,
    pub(crate) kind: Kind,
}

/// Why a path or what is at it cannot be in an image.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("the path has a component `..`")]
    Parent,
    #[error("the path has a zero byte")]
    Zero,
    #[error("the path is longer than {} bytes, or than {} directories", limits::PATH, limits::DEPTH)]
    TooLong,
    #[error("the image has more names than fit into {} MiB", limits::TREE >> 20)]
    TooLarge,
    #[error("it is the root, which has to be a directory")]
    Root,
    #[error("the path leads through more than {LINKS} symbolic links")]
    Loop,
    #[error("the path leads through something that is no directory")]
    NotADirectory,
    #[error("the hard link's target {0} is no file in this or a lower layer")]
    LinkTarget(String),
    #[error("{0} is no name that a whiteout can delete")]
    Whiteout(String),
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    root: Node,
    layer: u32,
    /// Of directories that nothing brought.
    implied: Meta,
    /// Memory that is left, in bytes. What is replaced does not give its own back.
    room: usize,
}

type Names = Vec<Vec<u8>>;

/// Memory that a name takes, in bytes, roughly: a directory has room for eleven before it has one.
fn cost(name: &[u8], kind: &Kind) -> usize {
    const ENTRY: usize = size_of::<(Vec<u8>, Node)>() + 64;
    ENTRY
        + name.len()
        + match kind {
            Kind::Directory(_) => 11 * ENTRY,
            Kind::File(_) => 0,
            Kind::Symlink(target) => target.len(),
        }
}

impl Tree {
    /// Nothing but a root; directories that no entry describes have `mtime`.
    pub(crate) fn new(mtime: u32) -> Self {
        let implied = Meta { mode: 0o755, uid: 0, gid: 0, mtime };
        Self {
            root: Node { meta: implied, layer: 0, kind: Kind::Directory(BTreeMap::new()) },
            layer: 0,
            implied,
            room: limits::TREE,
        }
    }

    pub(crate) fn root(&self) -> &Node {
        &self.root
    }

    /// From here on, what comes is one layer higher.
    pub(crate) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// Puts something at `path`, in the place of what is there; a directory over a directory keeps what is in it.
    pub(crate) fn insert(&mut self, path: &[u8], meta: Meta, kind: Kind) -> Result<(), TreeError> {
        let mut names = components(path)?;
        let Some(name) = names.pop() else {
            if !matches!(kind, Kind::Directory(_)) {
                return Err(TreeError::Root);
            }
            self.root.meta = meta;
            return Ok(());
        };
        let layer = self.layer;
        self.room = self.room.checked_sub(cost(&name, &kind)).ok_or(TreeError::TooLarge)?;
        let children = self.directory(&names)?;
        match (children.get_mut(&name), kind) {
            (Some(there @ Node { kind: Kind::Directory(_), .. }), Kind::Directory(_)) => {
                there.meta = meta;
                there.layer = layer;
            }
            (_, kind) => {
                children.insert(name, Node { meta, layer, kind });
            }
        }
        Ok(())
    }

    /// A second name for the file at `target`, a path from the root of the image.
    ///
    /// In an image that nobody can write, two names of a file are two files that are alike.
    pub(crate) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let resolved = self.resolve(components(target)?, false)?;
        let there = self.get(&resolved).filter(|node| !matches!(node.kind, Kind::Directory(_)));
        let there = there.ok_or_else(|| TreeError::LinkTarget(String::from_utf8_lossy(target).into_owned()))?;
        let Node { meta, kind, .. } = there.clone();
        self.insert(path, meta, kind)
    }

    /// What an entry with a name of OCI's whiteouts does. Any other name is none: false.
    ///
    /// OCI image specification, "Whiteouts": `.wh.NAME` deletes NAME, `.wh..wh..opq` all that is in the directory; both
    /// only what lower layers brought, wherever in the layer they stand.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<bool, TreeError> {
        let mut names = components(path)?;
        let Some(last) = names.pop() else { return Ok(false) };
        let Some(name) = last.strip_prefix(b".wh.") else { return Ok(false) };
        let layer = self.layer;
        let parent = self.resolve(names, true)?;
        if name == b".wh..opq" {
            if let Some(Node { kind: Kind::Directory(children), .. }) = self.get_mut(&parent) {
                children.retain(|_, child| !prune(child, layer));
            }
        } else if name.starts_with(b".wh.") {
            // Other bookkeeping of AUFS, such as `.wh..wh.plnk`.
        } else if matches!(name, b"" | b"." | b"..") {
            return Err(TreeError::Whiteout(String::from_utf8_lossy(&last).into_owned()));
        } else if let Some(Node { kind: Kind::Directory(children), .. }) = self.get_mut(&parent)
            && children.get_mut(name).is_some_and(|child| prune(child, layer))
        {
            children.remove(name);
        }
        Ok(true)
    }

    /// Makes an empty directory, or a file, where there is nothing of that name.
    pub(crate) fn ensure(&mut self, path: &str, kind: Kind, mode: u16) -> Result<(), TreeError> {
        let resolved = self.resolve(components(path.as_bytes())?, true)?;
        if self.get(&resolved).is_some() {
            return Ok(());
        }
        let meta = Meta { mode, ..self.implied };
        self.insert(path.as_bytes(), meta, kind)
    }

    /// What is in the directory that `names` lead to, links followed; missing directories are made.
    fn directory(&mut self, names: &[Vec<u8>]) -> Result<&mut BTreeMap<Vec<u8>, Node>, TreeError> {
        let resolved = self.resolve(names.to_vec(), true)?;
        let (layer, implied) = (self.layer, self.implied);
        let mut node = &mut self.root;
        for name in resolved {
            let Kind::Directory(children) = &mut node.kind else { return Err(TreeError::NotADirectory) };
            node = match children.entry(name) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(free) => {
                    let kind = Kind::Directory(BTreeMap::new());
                    self.room = self.room.checked_sub(cost(free.key(), &kind)).ok_or(TreeError::TooLarge)?;
                    free.insert(Node { meta: implied, layer, kind })
                }
            };
        }
        match &mut node.kind {
            Kind::Directory(children) => Ok(children),
            _ => Err(TreeError::NotADirectory),
        }
    }

    /// The path without links that `names` lead to, as a process whose root is the image would walk it.
    fn resolve(&self, names: Names, follow_last: bool) -> Result<Names, TreeError> {
        let mut todo: Names = names;
        todo.reverse();
        let mut done = Names::new();
        let mut links = 0;
        let mut steps = 0;
        while let Some(name) = todo.pop() {
            // Links whose targets wander to and fro, which no honest image has, may cost no more than this.
            steps += 1;
            if steps > 16 * limits::DEPTH {
                return Err(TreeError::Loop);
            }
            match &name[..] {
                b"" | b"." => {}
                // The root is its own parent.
                b".." => drop(done.pop()),
                _ => {
                    done.push(name);
                    let Some(Node { kind: Kind::Symlink(target), .. }) = self.get(&done) else {
                        if done.len() > limits::DEPTH {
                            return Err(TreeError::TooLong);
                        }
                        continue;
                    };
                    if todo.is_empty() && !follow_last {
                        continue;
                    }
                    links += 1;
                    if links > LINKS {
                        return Err(TreeError::Loop);
                    }
                    done.pop();
                    if target.starts_with(b"/") {
                        done.clear();
                    }
                    todo.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
            }
        }
        Ok(done)
    }

    fn get(&self, names: &[Vec<u8>]) -> Option<&Node> {
        names.iter().try_fold(&self.root, |node, name| match &node.kind {
            Kind::Directory(children) => children.get(name),
            _ => None,
        })
    }

    fn get_mut(&mut self, names: &[Vec<u8>]) -> Option<&mut Node> {
        names.iter().try_fold(&mut self.root, |node, name| match &mut node.kind {
            Kind::Directory(children) => children.get_mut(name),
            _ => None,
        })
    }
}

/// Deletes what layers below `layer` brought; true when nothing is left.
fn prune(node: &mut Node, layer: u32) -> bool {
    if let Kind::Directory(children) = &mut node.kind {
        children.retain(|_, child| !prune(child, layer));
        if !children.is_empty() {
            return false;
        }
    }
    node.layer < layer
}

/// The components of a path in an archive, which may begin with `/` or `./` and may not climb.
fn components(path: &[u8]) -> Result<Names, TreeError> {
    if path.len() > limits::PATH {
        return Err(TreeError::TooLong);
    }
    if path.contains(&0) {
        return Err(TreeError::Zero);
    }
    let names: Names =
        path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec).collect();
    if names.iter().any(|name| name == b"..") {
        return Err(TreeError::Parent);
    }
    if names.len() > limits::DEPTH || names.iter().any(|name| name.len() > 255) {
        return Err(TreeError::TooLong);
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
