//! Layouts that the tests write, each part of them right or wrong as a test wants it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use images::oci::Layout;
use images::{Image, ImageError, Limits, Options, Source, build};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Whether something that a test needs is there; where it is not the test is skipped, or fails where nothing may be.
pub fn given(test: &str, need: &str, there: bool) -> bool {
    if !there {
        assert!(std::env::var_os("EMBERBOX_REQUIRE_ALL").is_none(), "{test} needs {need}");
        eprintln!("SKIPPED {test}: needs {need}");
    }
    there
}

pub fn unsquashfs(test: &str) -> bool {
    given(test, "unsquashfs", Command::new("unsquashfs").arg("-version").output().is_ok())
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// This machine's architecture in OCI's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A tar archive of files; a name that ends with `/` is a directory.
pub fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_ustar();
        let directory = path.ends_with('/');
        header.set_entry_type(if directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(if directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(text.len() as u64);
        archive.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layout in a directory of its own.
pub struct Made {
    pub dir: tempfile::TempDir,
}

impl Made {
    /// Without any image.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir }
    }

    /// With one image of one file.
    pub fn simple() -> Self {
        let made = Self::new();
        let image = made.image(&[(TAR, tar(&[("hello", "world")]))]);
        made.index(&[image]);
        made
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where the blob of a descriptor is.
    pub fn file(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        self.path().join("blobs/sha256").join(digest)
    }

    /// Adds a blob; gives its descriptor.
    pub fn blob(&self, media: &str, bytes: &[u8]) -> Value {
        let descriptor = json!({ "mediaType": media, "digest": digest(bytes), "size": bytes.len() });
        fs::write(self.file(&descriptor), bytes).unwrap();
        descriptor
    }

    pub fn document(&self, media: &str, document: &Value) -> Value {
        self.blob(media, document.to_string().as_bytes())
    }

    /// Adds an image of these layers, compressed as their types say; gives its manifest's descriptor.
    pub fn image(&self, layers: &[(&str, Vec<u8>)]) -> Value {
        let ids: Vec<String> = layers.iter().map(|(_, tar)| digest(tar)).collect();
        self.image_with(
            layers,
            &json!({ "os": "linux", "architecture": architecture(), "rootfs": {
                "type": "layers", "diff_ids": ids,
            }}),
        )
    }

    /// The same with a configuration of the test's own.
    pub fn image_with(&self, layers: &[(&str, Vec<u8>)], config: &Value) -> Value {
        let layers: Vec<Value> = layers
            .iter()
            .map(|(media, tar)| match *media {
                GZIP => self.blob(media, &gzip(tar)),
                ZSTD => self.blob(media, &zstd::encode_all(&tar[..], 1).unwrap()),
                _ => self.blob(media, tar),
            })
            .collect();
        let config = self.document(CONFIG, config);
        self.manifest(&config, &layers)
    }

    pub fn manifest(&self, config: &Value, layers: &[Value]) -> Value {
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        self.document(MANIFEST, &manifest)
    }

    /// Writes `index.json`.
    pub fn index(&self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    /// Makes the squashfs; `suffix` is `:TAG`, `@DIGEST` or nothing.
    pub fn build(&self, suffix: &str, output: &Path, limits: Limits) -> Result<Image, ImageError> {
        let layout = Layout::parse(&format!("{}{suffix}", self.path().display()));
        build(&Source::Oci(layout), &Options { limits, ..Options::default() }, output, &|_| {})
    }

    /// Why there is no image. Whatever the reason is, nothing is left of it.
    pub fn refused(&self, suffix: &str) -> String {
        self.refused_within(suffix, Limits::default())
    }

    pub fn refused_within(&self, suffix: &str, limits: Limits) -> String {
        let out = tempfile::tempdir().unwrap();
        let error = self.build(suffix, &out.path().join("image"), limits).unwrap_err().to_string();
        assert_eq!(out.path().read_dir().unwrap().count(), 0, "{error}");
        error
    }
}

/// A descriptor with more in it.
pub fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    descriptor[key] = value;
    descriptor
}

pub fn tagged(descriptor: Value, tag: &str) -> Value {
    with(descriptor, "annotations", json!({ "org.opencontainers.image.ref.name": tag }))
}

pub fn platform(descriptor: Value, os: &str, architecture: &str) -> Value {
    with(descriptor, "platform", json!({ "os": os, "architecture": architecture }))
}
