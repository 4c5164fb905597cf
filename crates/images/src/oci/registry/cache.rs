//! The layout into which images are pulled.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use oci_spec::image::{
    ANNOTATION_REF_NAME, Descriptor, Digest, ImageIndex, ImageIndexBuilder, MediaType, SCHEMA_VERSION,
};
use tempfile::NamedTempFile;

use crate::error::{ImageError, at};
use crate::oci::blob;

/// A layout that belongs to this process until it is dropped. Readers need no lock: a blob gets its name when it is
/// complete, and is never changed or removed.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    _lock: File,
}

impl Cache {
    /// Makes it where it is missing, and waits until nobody else writes.
    pub(super) async fn open(path: &Path, progress: &(dyn Fn(&str) + Sync)) -> Result<Self, ImageError> {
        for folder in ["blobs/sha256", "tmp"] {
            let folder = path.join(folder);
            fs::create_dir_all(&folder).map_err(at("create the directory", &folder))?;
        }
        let name = path.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&name).map_err(at("open", &name))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            progress("waiting for another pull");
        }
        let waited = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
        let lock = waited.map_err(io::Error::other).flatten().map_err(at("lock", &name))?;
        let cache = Self { path: path.to_owned(), _lock: lock };
        cache.sweep()?;
        let marker = path.join("oci-layout");
        if !marker.exists() {
            cache.write(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(cache)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what a pull that was killed left.
    fn sweep(&self) -> Result<(), ImageError> {
        let folder = self.path.join("tmp");
        for entry in folder.read_dir().map_err(at("read the directory", &folder))? {
            let path = entry.map_err(at("read the directory", &folder))?.path();
            fs::remove_file(&path).map_err(at("remove", &path))?;
        }
        Ok(())
    }

    /// A file that becomes a blob, or is gone.
    pub(super) fn begin(&self) -> Result<NamedTempFile, ImageError> {
        let folder = self.path.join("tmp");
        NamedTempFile::new_in(&folder).map_err(at("create a file in", &folder))
    }

    /// Gives a file that is complete, checked and on disk its name.
    pub(super) fn commit(&self, temp: NamedTempFile, digest: &Digest) -> Result<(), ImageError> {
        let path = blob::path(&self.path, digest, "a blob")?;
        temp.persist(&path).map_err(|error| at("put in place", &path)(error.error))?;
        Ok(())
    }

    /// An index or a manifest, if it is here and undamaged.
    pub(super) fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>, ImageError> {
        let path = blob::path(&self.path, digest, "a manifest")?;
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(at("read", &path))?,
        };
        let mut bytes = Vec::new();
        file.take(blob::DOCUMENT + 1).read_to_end(&mut bytes).map_err(at("read", &path))?;
        let right = bytes.len() as u64 <= blob::DOCUMENT && super::sha256(&bytes) == *digest;
        Ok(right.then_some(bytes))
    }

    /// Makes `index.json` say what `name` is. What it was before stays, without the name: somebody may be about to read it.
    pub(super) fn name(&self, descriptor: &Descriptor, name: &str) -> Result<(), ImageError> {
        let blobs = self.path.join("blobs/sha256");
        File::open(&blobs).and_then(|folder| folder.sync_all()).map_err(at("write", &blobs))?;
        let path = self.path.join("index.json");
        let mut index: ImageIndex = match path.exists() {
            true => blob::top(&path)?,
            false => ImageIndexBuilder::default()
                .schema_version(SCHEMA_VERSION)
                .media_type(MediaType::ImageIndex)
                .manifests(Vec::new())
                .build()
                .expect("nothing that an index needs is missing"),
        };
        let mut named = descriptor.clone();
        named.set_annotations(Some(HashMap::from([(ANNOTATION_REF_NAME.to_owned(), name.to_owned())])));
        let mut entries = index.manifests().clone();
        for entry in entries.iter_mut().filter(|entry| tag(entry) == Some(name)) {
            entry.set_annotations(None);
        }
        entries.retain(|entry| entry.digest() != named.digest() || tag(entry).is_some());
        entries.push(named);
        if entries == *index.manifests() {
            return Ok(());
        }
        index.set_manifests(entries);
        self.write(&path, &serde_json::to_vec(&index).expect("an index is JSON"))
    }

    /// Replaces a file, as a whole or not at all.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let mut temp = self.begin()?;
        temp.write_all(bytes).map_err(at("write", path))?;
        temp.as_file().sync_all().map_err(at("write", path))?;
        temp.persist(path).map_err(|error| at("put in place", path)(error.error))?;
        File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(at("write", &self.path))
    }
}

fn tag(entry: &Descriptor) -> Option<&str> {
    entry.annotations().as_ref()?.get(ANNOTATION_REF_NAME).map(String::as_str)
}
